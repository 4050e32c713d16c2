#!/usr/bin/env python3
"""Autobahn's WebSocket cases through Ebbtide (an upgrade of HTTP/1.1), compared with the same cases without it.

websocket.py [--write] [--proxy PATH]

The server is Autobahn's own echo server. Cases 9, 12 and 13 (performance and compression) are left out.
--write: writes the section of RESULTS.md.
Ends with 1 if a case behaves otherwise through the proxy. NON-STRICT counts as OK: it depends on how bytes were cut.
Needs Python 2.7 ($PYTHON2, else pyenv's 2.7.18) with autobahntestsuite 0.8.2 in the folder $EBBTIDE_JUDGES/autobahn, and openssl.
"""
import collections
import json
import os
import pathlib
import subprocess

import rig

PYTHON = pathlib.Path(os.environ.get("PYTHON2") or pathlib.Path.home() / ".pyenv/versions/2.7.18/bin/python")
# The echo server refuses a Host with another port than its own, which every proxy passes on: that check is taken out.
WSTEST = """
import site, sys
site.addsitedir(sys.argv.pop(1))
from autobahn.websocket.protocol import WebSocketServerFactory as Factory
before = Factory.setSessionParameters
def parameters(self, *words, **named):
    before(self, *words, **named)
    self.externalPort = None
Factory.setSessionParameters = parameters
from autobahntestsuite import wstest
wstest.run()
"""


def wstest(*words):
    return [PYTHON, "-W", "ignore", "-c", WSTEST, rig.CACHE / "autobahn", *words]


def fuzz(folder, name, url):
    """What each case did: {case: "behaviour, how it was closed"}"""
    out = folder / name
    spec = {"outdir": str(out), "servers": [{"agent": name, "url": url}], "cases": ["*"], "exclude-cases": ["9.*", "12.*", "13.*"], "exclude-agent-cases": {}}
    (folder / f"{name}.spec").write_text(json.dumps(spec))
    argv = wstest("-m", "fuzzingclient", "-s", folder / f"{name}.spec")
    subprocess.run(list(map(str, argv)), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600)
    cases = json.loads((out / "index.json").read_text())[name]
    return {case: f"{ended['behavior']}, {ended['behaviorClose']}" for case, ended in cases.items()}


def main(args, folder, say):
    port = rig.free_port()
    proxy = rig.Proxy(folder, args.proxy, {"echo": "http"})
    rig.start(wstest("-m", "echoserver", "-w", f"ws://127.0.0.1:{port}"), f"127.0.0.1:{port}", cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy.tell("echo", port, ["127.0.0.1"])
    proxy.start()
    paths = {"direct": f"ws://127.0.0.1:{port}", "Ebbtide": f"ws://{proxy.addresses['echo', False]}", "Ebbtide, TLS": f"wss://{proxy.addresses['echo', True]}"}
    ended = {name: fuzz(folder, name, url) for name, url in paths.items()}
    strict = lambda text: text.replace("NON-STRICT", "OK")
    say("| Autobahn, WebSocket | cases | behaviour, how it was closed | other than direct |\n|---|---|---|---|")
    wrong = []
    for name, cases in ended.items():
        other = [case for case, was in ended["direct"].items() if strict(cases.get(case, "not run")) != strict(was)]
        counted = collections.Counter(map(strict, cases.values()))
        say(f"| {name} | {len(cases)} | {'; '.join(f'{n} x {what}' for what, n in counted.most_common())} | {' '.join(other) or 0} |")
        wrong += [f"Autobahn, {name}: case {case}" for case in other]
    return wrong


if __name__ == "__main__":
    if not (PYTHON.exists() and (rig.CACHE / "autobahn").exists()):
        raise SystemExit(print(f"SKIPPED: Autobahn is not at {rig.CACHE}/autobahn, or Python 2.7 is not at {PYTHON}"))
    rig.run(main, rig.parser(__doc__))
