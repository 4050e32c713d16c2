#!/usr/bin/env python3
"""release.py OUT [ARCHITECTURE=BINARY ...] [manual=PROGRAM]: makes all files of a release of this checkout in the folder OUT.

Without binaries, it builds them for x86_64 and aarch64 (deploy/build-static); without `manual`, that, too. The same
commit, toolchain and Python give the same files: all times are that of the commit, and no path of the machine is kept.
"""

import gzip
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import uuid

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import image  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
# Nothing of where a file was built.
FLAGS = "--remap-path-prefix={root}=/ebbtide --remap-path-prefix={cargo}=/cargo"
POSTINST = """#!/bin/sh
set -e
# Both instances of the unit are this user.
if [ "$1" = configure ] && ! getent passwd ebbtide >/dev/null; then
    useradd --system --no-create-home --home-dir / --shell /usr/sbin/nologin ebbtide
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
"""


def main(out, *given):
    out = pathlib.Path(out)
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    commit, time = git("rev-parse", "--short=9", "HEAD"), int(git("log", "-1", "--format=%ct"))
    if git("status", "--porcelain", "--untracked-files=no"):
        print("release.py: the checkout has changes that are in no commit; this is no release to give away", file=sys.stderr)
    binaries = dict(it.split("=", 1) for it in given)
    manual = pages(binaries.pop("manual", None))
    binaries = binaries or {it: build(it) for it in DEBIAN}
    programs = {it: pathlib.Path(path).read_bytes() for it, path in binaries.items()}
    files = {}
    for architecture, program in programs.items():
        image.inspect(program)
        top = f"ebbtide-{version}-linux-{architecture}"
        files[f"{top}.tar.gz"] = archive(standalone(top, program, manual), time)
        files[f"ebbtide_{version}_{DEBIAN[architecture]}.deb"] = package(version, DEBIAN[architecture], program, manual, time)
    name = f"ebbtide:{version}"
    files[f"ebbtide-{version}-image.tar"] = image.index(programs.values(), f"{version} ({commit})", name)
    files[f"ebbtide-chart-{version}.tgz"] = archive(tree("deploy/helm/ebbtide", "ebbtide"), time)
    kustomize = {**tree("deploy/kustomize", "kustomize"), **tree("deploy/monitoring", "monitoring")}
    files[f"ebbtide-manifests-{version}.tar.gz"] = archive(kustomize, time)
    files[f"ebbtide-{version}.cdx.json"] = bill_of_materials(version, commit)
    files["CHANGELOG.md"] = (ROOT / "CHANGELOG.md").read_bytes()
    files["SHA256SUMS"] = "".join(f"{image.digest(data)}  {name}\n" for name, data in sorted(files.items())).encode()
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
        print(f"{len(data):>12,}  {name}")


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def build(architecture):
    cargo = os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo"
    flags = FLAGS.format(root=ROOT, cargo=cargo)
    maps = f"-ffile-prefix-map={ROOT}=/ebbtide -ffile-prefix-map={cargo}=/cargo"
    more = {"RELEASE_RUSTFLAGS": flags, f"CFLAGS_{architecture}_unknown_linux_gnu": maps}
    print(f"building for {architecture}", file=sys.stderr)
    built = subprocess.run(["deploy/build-static", architecture], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **more})
    return ROOT / built.stdout.strip()


def pages(program):
    """The man pages and the completions, by name."""
    called = [program] if program else ["cargo", "run", "--quiet", "--locked", "--example", "manual", "--"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*called, folder], cwd=ROOT, check=True)
        return {it.name: it.read_bytes() for it in sorted(pathlib.Path(folder).iterdir())}


def standalone(top, program, manual):
    """What one unpacks where there is no package."""
    entries = {f"{top}/": (0o755, b""), f"{top}/ebbtide": (0o755, program)}
    for path in ["README.md", "LICENSE", "CHANGELOG.md", "config/ebbtide.yaml", "config/standalone.yaml", "deploy/systemd/ebbtide@.service"]:
        if (ROOT / path).exists():
            entries[f"{top}/{pathlib.Path(path).name}"] = (0o644, (ROOT / path).read_bytes())
    for name, data in manual.items():
        entries[f"{top}/{'man' if name.endswith('.1') else 'completions'}/{name}"] = (0o644, data)
    return entries


def package(version, architecture, program, manual, time):
    """A Debian package: an `ar` archive of its form's version, its control files and its files."""
    entries = {
        "usr/bin/ebbtide": (0o755, program),
        "usr/lib/systemd/system/ebbtide@.service": (0o644, (ROOT / "deploy/systemd/ebbtide@.service").read_bytes()),
        "etc/ebbtide/manifests/": (0o755, b""),
        "etc/ebbtide/ebbtide.yaml": (0o644, (ROOT / "config/standalone.yaml").read_bytes()),
        "usr/share/doc/ebbtide/examples/ebbtide.yaml": (0o644, (ROOT / "config/ebbtide.yaml").read_bytes()),
        "usr/share/bash-completion/completions/ebbtide": (0o644, manual["ebbtide.bash"]),
        "usr/share/fish/vendor_completions.d/ebbtide.fish": (0o644, manual["ebbtide.fish"]),
        "usr/share/zsh/vendor-completions/_ebbtide": (0o644, manual["_ebbtide"]),
    }
    for name, data in manual.items():
        if name.endswith(".1"):
            entries[f"usr/share/man/man1/{name}.gz"] = (0o644, gzip.compress(data, mtime=0))
    entries = {f"./{name}": it for name, it in with_folders(entries).items()}
    size = sum(len(data) for _, data in entries.values()) // 1024
    control = (
        f"Package: ebbtide\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: The Ebbtide project <ebbtide@localhost>\n"
        f"Installed-Size: {size}\nDepends: passwd\nSection: net\nPriority: optional\n"
        "Description: connection-draining TCP and HTTP proxy\n"
        " Rollouts cost no client a request or its connection.\n"
    )
    controls = {
        "./control": (0o644, control.encode()),
        "./conffiles": (0o644, b"/etc/ebbtide/ebbtide.yaml\n"),
        "./postinst": (0o755, POSTINST.encode()),
    }
    members = [("debian-binary", b"2.0\n"), ("control.tar.gz", archive(controls, time)), ("data.tar.gz", archive(entries, time))]
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{time:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return out


def tree(folder, top):
    """The files that git has in a folder; links are what they lead to."""
    entries = {}
    for path in git("ls-files", folder).splitlines():
        source = ROOT / path
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        entries[f"{top}/{source.relative_to(ROOT / folder)}"] = (mode, source.read_bytes())
    return with_folders(entries)


def with_folders(entries):
    """Each folder comes before what it holds."""
    folders = {f"{parent}/" for name in entries for parent in pathlib.PurePosixPath(name).parents if str(parent) != "."}
    return dict(sorted({**{it: (0o755, b"") for it in folders}, **entries}.items()))


def archive(entries, time):
    return gzip.compress(image.tar(entries, time), mtime=0)


def bill_of_materials(version, commit):
    """Every crate in the program, in the form of CycloneDX 1.5, with the checksum of its source."""
    called = ["cargo", "metadata", "--locked", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(called, cwd=ROOT, check=True, capture_output=True).stdout)
    lock = (ROOT / "Cargo.lock").read_text()
    sums = {(name, number): digest for name, number, digest in re.findall(r'name = "(.+)"\nversion = "(.+)"\nsource = .+\nchecksum = "(.+)"', lock)}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    crates = {crate["id"]: crate for crate in metadata["packages"]}

    def needs(identity):
        """What is linked into a crate, or runs to build it."""
        return [it["pkg"] for it in nodes[identity]["deps"] if any(kind["kind"] != "dev" for kind in it["dep_kinds"])]

    root = metadata["resolve"]["root"]
    reached, todo = {root}, [root]
    while todo:
        new = set(needs(todo.pop())) - reached
        reached |= new
        todo += new

    def named(identity):
        return f"pkg:cargo/{crates[identity]['name']}@{crates[identity]['version']}"

    def component(identity):
        crate = crates[identity]
        made = {"type": "library", "bom-ref": named(identity), "name": crate["name"], "version": crate["version"], "purl": named(identity)}
        if crate["license"]:
            made["licenses"] = [{"expression": crate["license"].replace("/", " OR ")}]
        checksum = sums.get((crate["name"], crate["version"]))
        if checksum:
            made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return made

    program = {**component(root), "type": "application", "version": version, "properties": [{"name": "commit", "value": commit}]}
    libraries = sorted(reached - {root}, key=named)
    return (json.dumps({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'ebbtide {version} {commit}')}",
        "version": 1,
        "metadata": {"component": program},
        "components": [component(it) for it in libraries],
        "dependencies": [{"ref": named(it), "dependsOn": sorted(map(named, needs(it)))} for it in [root, *libraries]],
    }, indent=1) + "\n").encode()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.split("\n\n")[0])
    main(*sys.argv[1:])
