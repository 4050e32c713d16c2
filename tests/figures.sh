#!/usr/bin/env bash
# Rewrites the table of tests/FIGURES.md from the FIGURE lines of a test log:
#   cargo test --locked --no-fail-fast -- --nocapture | tests/figures.sh      (or: tests/figures.sh LOG...)
# A line is `FIGURE <group> <name>: <text>`. A group that the logs do not contain keeps its rows.
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
HEADER = ["| group | what | figure | repeat |", "|---|---|---|---|"]
found = {}
for line in fileinput.input(sys.argv[1:], encoding="utf-8", errors="replace"):
    # The test harness may write `test name ... ` before it, on the same line.
    match = re.search(r"\bFIGURE (\S+) ([^:]+): (.+)", line)
    if match:
        group, name, text = (part.strip().replace("|", "\\|") for part in match.groups())
        found.setdefault(group, {})[name] = text
if not found:
    sys.exit("no FIGURE line in the log: the table stays as it is")
page = open("FIGURES.md", encoding="utf-8").read()
head, old = page.split("\n".join(HEADER) + "\n")
rows = {}
for row in old.splitlines():
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    # A short soak or a single fuzz target keeps the rows of the other runs.
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
table = HEADER + [row for group in sorted(rows) for row in rows[group]]
open("FIGURES.md", "w", encoding="utf-8").write(head + "\n".join(table) + "\n")
print(sum(map(len, found.values())), "figures of", ", ".join(sorted(found)))
' "$@"
