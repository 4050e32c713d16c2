"""The measurements as tables, as JSON and as tests/cluster/README.md."""
import datetime
import json
import os
import re

from lab import HERE, LAB, say

COLUMNS = {"iptables": "kube-proxy iptables", "nftables": "kube-proxy nftables", "ebbtide": "Ebbtide"}

# In README.md. The text above this line is by hand, and `Report.write` keeps it.
MARK = "<!-- `make e2e` writes everything below this line. -->\n"


class Report:
    def __init__(self, columns, knobs):
        self.columns, self.knobs = [c for c in COLUMNS if c in columns], knobs
        self.tables = {}   # title -> {(case, measure): {column: text}}
        self.raw = []
        self.targets = []  # (text, met, decides)
        self.started = datetime.datetime.now()
        self.file = f"{LAB}/results/{self.started:%Y-%m-%dT%H%M%S}.json"

    def row(self, title, case, measure, column, text, raw=None):
        self.tables.setdefault(title, {}).setdefault((case, measure), {})[column] = str(text)
        self.raw.append({"experiment": title, "case": case, "measure": measure, "column": column, "value": text if raw is None else raw})
        say(f"  {column}: {case}, {measure}: {text}")

    def load(self, title, case, column, results):
        """Adds the rows that every load has, with one figure for each round."""
        each = lambda key: ", ".join(f"{r[key]:,}" for r in results)
        late = sum(r["late"] for r in results)
        total = sum(r["requests"] for r in results)
        self.row(title, case, "failed", column, f"{each('failed')} of {total:,}" + (f" (+{late} late)" if late else ""), results)
        self.row(title, case, "sockets", column, each("sockets"))
        self.row(title, case, "worst, ms", column, each("worst_ms"))

    def target(self, column, text, met, decides=True):
        if column == "ebbtide":
            self.targets.append((text, met, decides))
            if not met:
                say(f"  MISSED: {text}")

    def save(self):
        with open(self.file, "w") as file:
            json.dump({"started": self.started.isoformat(), "knobs": self.knobs, "results": self.raw,
                       "targets": [{"target": t, "met": m, "decides": d} for t, m, d in self.targets]}, file, indent=1)

    def markdown(self, facts=""):
        out = []
        for title, rows in self.tables.items():
            out += [f"## {title}", ""] + ([facts, ""] if facts else [])
            columns = self.columns_of(rows)
            out += ["| | | " + " | ".join(COLUMNS.get(c, c) for c in columns) + " |", "|---|---|" + "---|" * len(columns)]
            previous = None
            for (case, measure), cells in rows.items():
                shown = "" if case == previous else case
                out.append(f"| {shown} | {measure} | " + " | ".join(cells.get(c, "–") for c in columns) + " |")
                previous = case
            out.append("")
        if self.targets:
            out += ["## Targets", "", "Targets on time depend on the machine and do not fail the run.", "", "| target | |", "|---|---|"]
            out += self.met()
            out.append("")
        return "\n".join(out)

    def columns_of(self, rows):
        """Those of the run, or a table's own, by what its cells name."""
        named = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        return self.columns if set(named) <= set(COLUMNS) else named

    def met(self):
        return [f"| {text} | {'met' if met else '**missed**'}{'' if decides else ' (time)'} |" for text, met, decides in self.targets]

    def write(self, versions):
        """Writes the experiments of this run, and keeps those of earlier ones."""
        facts = ", ".join(f"{k} {v}" for k, v in versions.items())
        knobs = ", ".join(f"{k} {v}" for k, v in self.knobs.items())
        page = os.path.join(HERE, "README.md")
        with open(page) as file:
            by_hand, earlier = file.read().split(MARK)
        sections = {}
        for text in (earlier, self.markdown(f"Measured on {self.started:%Y-%m-%d}: {facts}. Lengths: {knobs}.")):
            for section in re.split(r"^(?=## )", text, flags=re.M)[1:]:
                sections[re.match(r"## ([^.\n]*)", section)[1]] = section.strip() + "\n"
        new = {line.split(" | ")[0] for line in self.met()}
        before = [line for line in re.findall(r"^\| \w+: .*$", earlier.partition("## Targets")[2], re.M) if line.split(" | ")[0] not in new]
        targets = "\n".join(sorted(before + self.met()))
        sections["Targets"] = re.sub(r"(\|---\|---\|\n).*", lambda m: m[1] + targets + "\n", sections["Targets"], flags=re.S)
        order = sorted(sections, key=lambda it: (it == "Targets", it == "SLI", it))
        with open(page, "w") as file:
            file.write(f"{by_hand}{MARK}\n" + "\n".join(sections[name] for name in order))

    def failed(self):
        return any(decides and not met for _, met, decides in self.targets)
