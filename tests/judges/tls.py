#!/usr/bin/env python3
"""Test suites of others against Ebbtide's TLS: tlsfuzzer's scripts for servers, beside nginx, and testssl.sh's grade.

tls.py [--only WORD] [--write] [--proxy PATH]

Both servers have an RSA certificate, TLS 1.2 and 1.3, and one page of HTTP/1.1 behind them. A cell is "passed of all"
conversations. --only: the scripts with this word in their name.  --write: writes the section of RESULTS.md.
Ends with 1 if a script failed in another way than `KNOWN` says.
Needs openssl, and tlsfuzzer: its folder at $EBBTIDE_JUDGES/tlsfuzzer, and a Python with tlslite-ng 0.9.0b2 at $EBBTIDE_JUDGES/venv.
nginx, and testssl.sh 3.2 or newer at $EBBTIDE_JUDGES/testssl, are left out if they are not there.
"""
import collections
import json
import os
import re
import shutil
import subprocess

import rig

ECDHE = "-d -C TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
SCRIPTS = {
    "test-ccs": ECDHE,
    "test-cve-2016-6309": ECDHE,
    "test-downgrade-protection": "-d --server-max-protocol TLSv1.3",
    "test-early-application-data": ECDHE,
    "test-extended-master-secret-extension": "-d",
    "test-fuzzed-ciphertext": ECDHE + " -n 40",
    "test-invalid-content-type": ECDHE,
    "test-large-number-of-extensions": "-d",
    "test-message-skipping": "-d",
    "test-record-layer-fragmentation": ECDHE,
    "test-renegotiation-disabled": ECDHE,
    "test-ssl-death-alert": "-d",
    "test-sslv2hello-protocol": "-d",
    "test-truncating-of-client-hello": ECDHE + " -n 40",
    "test-zero-length-data": ECDHE,
    "test-tls13-0rtt-garbage": "-d",
    "test-tls13-ccs": "",
    "test-tls13-conversation": "",
    "test-tls13-crfg-curves": "",
    "test-tls13-empty-alert": "",
    "test-tls13-finished": "",
    "test-tls13-finished-plaintext": "",
    "test-tls13-hrr": "",
    "test-tls13-invalid-ciphers": "",
    "test-tls13-keyupdate": "",
    "test-tls13-large-number-of-extensions": "",
    "test-tls13-legacy-version": "",
    "test-tls13-multiple-ccs-messages": "",
    "test-tls13-record-layer-limits": "",
    "test-tls13-record-padding": "",
    "test-tls13-session-resumption": "-d",
    "test-tls13-unencrypted-alert": "",
    "test-tls13-unrecognised-groups": "",
    "test-tls13-version-negotiation": "-d",
    "test-tls13-zero-content-type": "",
    "test-tls13-zero-length-data": "",
}
# Some scripts name only suites of CBC, which rustls does not have. Where they say ECDHE with CBC, ECDHE with GCM is meant.
AEAD = """
import runpy, sys
from tlslite.constants import CipherSuite
for name in dir(CipherSuite):
    if name.startswith("TLS_ECDHE_RSA_WITH_AES_") and "_CBC_" in name:
        setattr(CipherSuite, name, CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)
sys.argv[0] = {file!r}
runpy.run_path({file!r}, run_name="__main__")
"""
# What fails with Ebbtide, by script and kind of failure, and why. All of it is what rustls has chosen.
ALERT, CLOSED, REFUSED, ACCEPTED = "another alert", "closed without an alert", "refused", "accepted"
LIMIT = "messages of a handshake have at most 64 KiB"
OLD = "TLS 1.1 and 1.0, DHE and renegotiation are not offered"
KNOWN = {
    "test-ccs": {ALERT: "decode_error"},
    "test-downgrade-protection": {REFUSED: OLD},
    "test-extended-master-secret-extension": {REFUSED: OLD, ALERT: "illegal_parameter"},
    "test-large-number-of-extensions": {CLOSED: LIMIT},
    "test-record-layer-fragmentation": {CLOSED: LIMIT, ACCEPTED: "a record in the clear may have 2 KiB too many"},
    "test-ssl-death-alert": {CLOSED: "warnings are bounded"},
    "test-sslv2hello-protocol": {REFUSED: "the hello of SSL 2 is not known"},
    "test-truncating-of-client-hello": {CLOSED: LIMIT},
    "test-tls13-0rtt-garbage": {REFUSED: "early data is skipped up to 16 KiB with its records", CLOSED: "the same"},
    "test-tls13-crfg-curves": {REFUSED: "X448 is not offered", ALERT: "the same; decode_error for an empty share, as nginx"},
    "test-tls13-empty-alert": {ALERT: "decode_error"},
    "test-tls13-finished": {ALERT: "decrypt_error"},
    "test-tls13-finished-plaintext": {ALERT: "bad_record_mac"},
    "test-tls13-keyupdate": {ACCEPTED: "a key update is answered with the next data", ALERT: "the same"},
    "test-tls13-large-number-of-extensions": {REFUSED: "an extension that is known may not be empty"},
    "test-tls13-legacy-version": {ACCEPTED: "the legacy version is ignored"},
    "test-tls13-multiple-ccs-messages": {ACCEPTED: "a second message is ignored, too"},
    "test-tls13-record-layer-limits": {ALERT: "bad_record_mac or decrypt_error", ACCEPTED: "a record in the clear may have 2 KiB too many"},
    "test-tls13-session-resumption": {ACCEPTED: "a resumption without key exchange becomes a full handshake"},
    "test-tls13-unrecognised-groups": {REFUSED: "FFDHE is not offered"},
    "test-tls13-version-negotiation": {REFUSED: OLD},
    "test-tls13-zero-content-type": {CLOSED: "a record without a type has no alert", ALERT: "the same"},
    "test-tls13-zero-length-data": {CLOSED: "data within the handshake has no alert"},
}


def nginx(folder, proxy, port):
    """nginx before the same page; its address with TLS."""
    address = rig.free_address()
    text = (
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; user root; events {{}}\nhttp {{ access_log off;\n"
        + "".join(f"{what}_temp_path {folder}/{what};\n" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + f"server {{ listen {address} ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {proxy.certificate}; ssl_certificate_key {proxy.key};\n"
        f"location / {{ proxy_pass http://127.0.0.1:{port}; proxy_http_version 1.1; }} }} }}\n"
    )
    (folder / "nginx.conf").write_text(text)
    rig.start(["nginx", "-c", folder / "nginx.conf"], address, stderr=subprocess.DEVNULL)
    return address


def fuzz(script, options, address, server):
    """(passed, of all, {name: why} of what failed)"""
    if server == "nginx" and script == "test-tls13-large-number-of-extensions":
        # The script wants to know that this server names its groups.
        options += " --supgroup"
    port = address.rsplit(":", 1)[1]
    file = rig.CACHE / f"tlsfuzzer/scripts/{script}.py"
    argv = [rig.CACHE / "venv/bin/python", "-c", AEAD.format(file=str(file)), "-h", "localhost", "-p", port, *options.split()]
    environment = {**os.environ, "PYTHONPATH": str(rig.CACHE / "tlsfuzzer")}
    try:
        ended = subprocess.run([str(word) for word in argv], env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return 0, 0, {"all": "not ended after 300 s"}
    total, passed = (re.search(rf"^{word}: (\d+)", ended.stdout, re.M) for word in ("TOTAL", "PASS"))
    if not total:
        return 0, 0, {"all": (ended.stderr or ended.stdout)[-300:]}
    failed = {}
    for part in re.split(r"^(?=\S.* \.\.\.$)", ended.stdout, flags=re.M)[1:]:
        if re.search(r"^Traceback|^Error encountered", part, re.M):
            why = re.findall(r"^(?:AssertionError|\w+(?:\.\w+)*(?:Error|Exception|Alert)\b).*", part, re.M)
            failed[part.split(" ...")[0]] = why[-1] if why else "?"
    return int(passed[1]), int(total[1]), failed


def kind(why):
    """Which kind of failure this is."""
    if "does not match received" in why:
        return ALERT
    if "Unexpected closure" in why:
        return CLOSED
    return REFUSED if "Unexpected message from peer: Alert" in why else ACCEPTED


def grade(proxy):
    """What testssl.sh says: [(what, verdict)]. None: it is not there."""
    program = rig.CACHE / "testssl/testssl.sh"
    if not program.exists():
        return None
    url = f"https://localhost:{proxy.addresses['web', True].rsplit(':', 1)[1]}/"
    argv = ["bash", program, "--color", "0", "--quiet", "--warnings", "off", "--add-ca", proxy.authority, "--ip", "127.0.0.1", url]
    text = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=600).stdout
    return re.findall(r"^ ?(Protocol Support|Key Exchange|Cipher Strength|Final Score|Overall Grade|Grade cap reasons)\b(?: +\(weighted\))? +(.+)$", text, re.M)


def main(args, folder, say):
    wrong = []
    port = rig.page()
    proxy = rig.Proxy(folder, args.proxy, {"web": "http"}, kind="rsa")
    proxy.tell("web", port, ["127.0.0.1"])
    servers = {"Ebbtide": proxy.start().addresses["web", True]}
    if shutil.which("nginx"):
        servers["nginx"] = nginx(folder, proxy, port)
    say("| tlsfuzzer | " + " | ".join(servers) + " | what fails with Ebbtide |\n|---|" + "---|" * (len(servers) + 1))
    details = {}
    for script, options in SCRIPTS.items():
        if args.only and args.only not in script:
            continue
        rows = {name: fuzz(script, options, address, name) for name, address in servers.items()}
        details[script] = rows
        failed = rows["Ebbtide"][2]
        kinds = collections.Counter(map(kind, failed.values()))
        known = KNOWN.get(script, {})
        say(f"| {script} | " + " | ".join(f"{row[0]} of {row[1]}" for row in rows.values()) + " | "
            + "; ".join(f"{n} {what}: {known.get(what, 'NEW')}" for what, n in kinds.most_common()) + " |")
        wrong += [f"{script}: {name}: {why}" for name, why in failed.items() if kind(why) not in known]
        if args.details:
            args.details.write_text(json.dumps(details, indent=1))
    graded = {} if args.only else dict(grade(proxy) or {})
    if graded:
        say("\n| testssl.sh | |\n|---|---|\n" + "\n".join(f"| {what} | {verdict} |" for what, verdict in graded.items()))
        if graded.get("Overall Grade") not in ("A", "A+"):
            wrong.append(f"testssl.sh: {graded}")
    return wrong


if __name__ == "__main__":
    if not (rig.CACHE / "tlsfuzzer/scripts").exists():
        raise SystemExit(print(f"SKIPPED: tlsfuzzer is not at {rig.CACHE}/tlsfuzzer"))
    words = rig.parser(__doc__)
    words.add_argument("--only", default="")
    words.add_argument("--details", type=rig.pathlib.Path, help="a file for what failed")
    rig.run(main, words)
