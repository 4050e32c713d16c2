#!/usr/bin/env bash
# Rewrites the table of tests/README.md from the FIGURE lines of a test log:
#   cargo test --locked --no-fail-fast -- --nocapture | tests/figures.sh      (or: tests/figures.sh LOG...)
# A line is `FIGURE <group> <name>: <text>`. Groups that the logs do not hold keep the rows they had.
set -euo pipefail
cd "$(dirname "$0")"
python3 -c '
import fileinput, re, sys
COMMANDS = {
    "attack": "cargo test --release --test hostile attacks -- --nocapture",
    "soak": "EBBTIDE_SOAK={name} cargo test --release --test hostile soak -- --nocapture",
    "framing": "cargo test --test wire framing -- --nocapture",
    "model": "cargo test --test model -- --nocapture",
    "faults": "cargo test --test proxy faults -- --nocapture",
    "faults world": "cargo test --test hostile faults -- --nocapture",
    "fuzz": "TIME=600 fuzz/run.sh {name}",
    "sanitize": "tests/sanitize.sh {name}",
}
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
found = {}
for line in fileinput.input(sys.argv[1:], encoding="utf-8", errors="replace"):
    # The test harness may write `test name ... ` before it, on the same line.
    match = re.search(r"\bFIGURE (\S+) ([^:]+): (.+)", line)
    if match:
        group, name, text = (part.strip().replace("|", "\\|") for part in match.groups())
        found.setdefault(group, {})[name] = text
if not found:
    sys.exit("no FIGURE line in the log: the table stays as it is")
page = open("README.md", encoding="utf-8").read()
head, rest = page.split(BEGIN)
old, tail = rest.split(END)
rows = {}
for row in old.strip().splitlines()[2:]:
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    # A short soak, or one fuzz target alone, does not put out what others have shown.
    if cells[0] not in found or cells[0] in ("soak", "fuzz", "sanitize") and cells[1] not in found[cells[0]]:
        rows.setdefault(cells[0], []).append(row)
for group, names in found.items():
    usual = COMMANDS.get(group, f"cargo test --test {group} -- --nocapture")
    for name, text in names.items():
        # A part of a group may have a command of its own.
        command = COMMANDS.get(f"{group} {name.split()[0]}", usual).format(name=name)
        if "--test proxy faults" in command and text.startswith("1000 seeds"):
            command = f"EBBTIDE_FULL=1 {command}"
        rows.setdefault(group, []).append(f"| {group} | {name} | {text} | `{command}` |")
table = ["| group | what | figure | repeat |", "|---|---|---|---|"] + [row for group in sorted(rows) for row in rows[group]]
open("README.md", "w", encoding="utf-8").write(head + BEGIN + "\n" + "\n".join(table) + "\n" + END + tail)
print(sum(map(len, found.values())), "figures of", ", ".join(sorted(found)))
' "$@"
