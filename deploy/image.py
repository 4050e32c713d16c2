#!/usr/bin/env python3
"""image.py BINARY OUT.tar: makes the container image of a static binary for `docker load`, without a daemon.

The same binary gives the same bytes. The Dockerfile builds the same image. tests/program/deploy.rs
checks that both are alike.
"""

import hashlib
import io
import json
import pathlib
import struct
import subprocess
import sys
import tarfile

TAG = "ebbtide:dev"
UID = 10901  # the manifests' runAsUser
LIMIT = 24_500_000  # bytes of the whole archive; a new dependency has to be worth its part (TLS and HTTP/2 brought about 4 MB, Ingress and the Gateway API about 2; the gate and the hand-over 0.8; the picture of a rollout, reports and the planner 0.5; the terminal page of `status --watch` 0.3; authorities from objects, CORS, shared UDP sockets and the hints of `check` 0.5; BackendTLSPolicies, 421 and what `check` reads of a cluster 0.3)
EPOCH = "1970-01-01T00:00:00Z"


def main(binary, out):
    program = pathlib.Path(binary).read_bytes()
    inspect(program)
    # "ebbtide VERSION (COMMIT)"
    version = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout.split(None, 1)[1].strip()
    architecture, layer, config = parts(program, version)
    manifest = encode([{"Config": f"{digest(config)}.json", "RepoTags": [TAG], "Layers": ["layer.tar"]}])
    image = tar({f"{digest(config)}.json": (0o644, config), "layer.tar": (0o644, layer), "manifest.json": (0o644, manifest)})
    if len(image) > LIMIT:
        sys.exit(f"image.py: {out} would have {len(image):,} bytes, more than the limit of {LIMIT:,}; not written")
    out = pathlib.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(image)
    print(f"{out}: {TAG}, {version}, {architecture}, {len(image):,} bytes, sha256:{digest(image)}")


def parts(program, version):
    """Returns the architecture of a static program, and the layer and the configuration of its image."""
    architecture = inspect(program)
    layer = tar({
        "ebbtide": (0o755, program),
        "etc/": (0o755, b""),
        "etc/group": (0o644, f"ebbtide:x:{UID}:\n".encode()),
        "etc/passwd": (0o644, f"ebbtide:x:{UID}:{UID}:Ebbtide:/:/sbin/nologin\n".encode()),
        "tmp/": (0o1777, b""),
    })
    config = encode({
        "architecture": architecture,
        "os": "linux",
        "created": EPOCH,
        "config": {
            "User": f"{UID}:{UID}",
            "Entrypoint": ["/ebbtide"],
            "Cmd": ["run"],
            "Labels": {
                "org.opencontainers.image.title": "ebbtide",
                "org.opencontainers.image.licenses": "Apache-2.0",
                "org.opencontainers.image.version": version,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest(layer)]},
        "history": [{"created": EPOCH, "created_by": "deploy/image.py"}],
    })
    return architecture, layer, config


def index(programs, version, name):
    """Returns one archive with the images of several architectures, in the OCI image layout, for `ctr images import`,
    `podman load`, `skopeo copy oci-archive:` and newer `docker load`."""
    blobs, manifests = {}, []

    def blob(data, media, **more):
        blobs[f"blobs/sha256/{digest(data)}"] = (0o644, data)
        return {"mediaType": f"application/vnd.oci.image.{media}", "digest": f"sha256:{digest(data)}", "size": len(data), **more}

    for program in programs:
        architecture, layer, config = parts(program, version)
        manifest = encode({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(config, "config.v1+json"),
            "layers": [blob(layer, "layer.v1.tar")],
        })
        manifests.append(blob(manifest, "manifest.v1+json", platform={"architecture": architecture, "os": "linux"}))
    every = encode({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests})
    names = {"io.containerd.image.name": f"docker.io/library/{name}", "org.opencontainers.image.ref.name": name.rsplit(":", 1)[1]}
    top = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [blob(every, "index.v1+json", annotations=names)]}
    layout = encode({"imageLayoutVersion": "1.0.0"})
    folders = {"blobs/": (0o755, b""), "blobs/sha256/": (0o755, b"")}
    return tar({"oci-layout": (0o644, layout), "index.json": (0o644, encode(top)), **folders, **blobs})


def inspect(program):
    """Returns the architecture of an ELF program. Refuses one that needs a dynamic loader, since the image has none."""
    if program[:6] != b"\x7fELF\x02\x01":
        sys.exit("image.py: the file is no 64-bit little-endian ELF program")
    machine, = struct.unpack_from("<H", program, 18)
    headers, = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = [struct.unpack_from("<I", program, headers + i * size)[0] for i in range(count)]
    if 3 in kinds:  # PT_INTERP
        sys.exit("image.py: the program is not static (build it with deploy/build-static)")
    names = {62: "amd64", 183: "arm64"}
    return names.get(machine) or sys.exit(f"image.py: machine {machine} is neither amd64 nor arm64")


def tar(entries, time=0):
    """Returns a tar of these files, owned by root, in this order, with this time. A name that ends in a slash is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (mode, data) in entries.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.mode, entry.size, entry.mtime = mode, len(data), time
            if name.endswith("/"):
                entry.type = tarfile.DIRTYPE
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def encode(value):
    return json.dumps(value, sort_keys=True).encode()


def digest(data):
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.splitlines()[0])
    main(*sys.argv[1:])
