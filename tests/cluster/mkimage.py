#!/usr/bin/env python3
"""Makes a container image without a daemon, in `docker load` format: one layer, from scratch or on a root file system.

mkimage.py OUT.tar NAME:TAG [--base ROOTFS.tar] [--env K=V]... [--link TARGET=/image/path]... [--entry ARG]... HOSTFILE=/image/path...
"""
import argparse
import hashlib
import io
import json
import os
import platform
import tarfile


def tar(entries):
    """Returns the bytes of an archive of (name, data, mode), where data is None for a folder and a text for a link.

    The same input gives the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data, mode in entries:
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = mode, 0
            if data is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def base(path):
    """A root file system as a layer. The runtime makes its own device nodes, and a sandbox may not be allowed to."""
    out = io.BytesIO()
    with tarfile.open(path) as source, tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info in source:
            if not info.isdev():
                archive.addfile(info, source.extractfile(info) if info.isreg() else None)
    return out.getvalue()


def layer(files, links, folders):
    entries = []
    for spec in files + links:
        source, target = spec.split("=", 1)
        target = target.lstrip("/")
        folder = os.path.dirname(target)
        while folder:
            folders.setdefault(folder, 0o755)
            folder = os.path.dirname(folder)
        if spec in links:
            entries.append((target, source, 0o777))
            continue
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        with open(source, "rb") as file:
            entries.append((target, file.read(), mode))
    return tar([(name, None, mode) for name, mode in sorted(folders.items())] + entries)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("name")
    parser.add_argument("files", nargs="+", metavar="HOSTFILE=/image/path")
    parser.add_argument("--base")
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--link", action="append", default=[])
    parser.add_argument("--entry", action="append", default=[])
    args = parser.parse_intermixed_args()
    folders = {} if args.base else {"tmp": 0o1777, "etc": 0o755, "var/log/nginx": 0o755, "var/lib/nginx": 0o755}
    layers = {"layer.tar": layer(args.files, args.link, folders)}
    if args.base:
        layers = {"base.tar": base(args.base), **layers}
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = json.dumps({
        "architecture": arch, "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": args.entry, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin:/"] + args.env},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(blob).hexdigest() for blob in layers.values()]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "mkimage.py"}] * len(layers),
    }, sort_keys=True).encode()
    digest = hashlib.sha256(config).hexdigest()
    manifest = json.dumps([{"Config": digest + ".json", "RepoTags": [args.name], "Layers": list(layers)}]).encode()
    with open(args.out, "wb") as file:
        file.write(tar([(name, blob, 0o644) for name, blob in layers.items()] + [(digest + ".json", config, 0o644), ("manifest.json", manifest, 0o644)]))


main()
