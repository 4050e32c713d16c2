//! What was measured, as a table for people and JSON for programs, and how it compares with the targets.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::load::Report;
use crate::peers::{ALL, Kind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
    /// Tells how to read the others.
    Neither,
}

/// One line of a table: a figure of every peer, one value a round.
struct Row {
    group: String,
    name: String,
    better: Better,
    values: BTreeMap<Kind, Vec<f64>>,
}

#[derive(Default)]
pub struct Results {
    rows: Vec<Row>,
    notes: Vec<(String, String)>,
    /// Peers that were asked for and are not installed.
    missing: Vec<Kind>,
}

/// One line of the targets' table.
struct Target {
    what: &'static str,
    /// What Ebbtide has, as text, and how it compares with the least and the goal; `None` where it was not measured.
    found: Option<(String, bool, bool)>,
    least: &'static str,
    goal: &'static str,
}

impl Results {
    pub fn of(kinds: &[Kind]) -> Self {
        Self {
            missing: kinds
                .iter()
                .copied()
                .filter(|kind| kind.program().is_err())
                .collect(),
            ..Self::default()
        }
    }

    pub fn add(&mut self, group: &str, name: &str, better: Better, kind: Kind, value: f64) {
        let at = self
            .rows
            .iter()
            .position(|row| row.group == group && row.name == name)
            .unwrap_or_else(|| {
                let (group, name) = (group.to_owned(), name.to_owned());
                self.rows.push(Row {
                    group,
                    name,
                    better,
                    values: BTreeMap::new(),
                });
                self.rows.len() - 1
            });
        self.rows[at].values.entry(kind).or_default().push(value);
    }

    pub fn note(&mut self, group: &str, text: String) {
        if !self.notes.contains(&(group.to_owned(), text.clone())) {
            self.notes.push((group.to_owned(), text));
        }
    }

    pub fn failed(&mut self, group: &str, kind: Kind, error: &anyhow::Error) {
        let text: String = format!("{error:#}")
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(300)
            .collect();
        self.note(
            group,
            format!("{}: not measured to the end: {text}", kind.name()),
        );
    }

    /// A load that failed in part is told of: its figures are not worth those of the others.
    pub fn failures(&mut self, group: &str, kind: Kind, report: &Report) {
        if report.failed > 0 {
            self.note(
                group,
                format!(
                    "{}: {} requests of {} failed",
                    kind.name(),
                    report.failed,
                    report.requests
                ),
            );
        }
    }

    /// The least median of all proxies.
    pub fn slowest(&self, group: &str, name: &str) -> Option<f64> {
        let row = self.row(group, name)?;
        row.values
            .iter()
            .filter(|(kind, _)| **kind != Kind::Direct)
            .map(|(_, values)| median(values))
            .reduce(f64::min)
    }

    fn row(&self, group: &str, name: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.group == group && row.name == name)
    }

    pub fn json(&self, machine: &Machine) -> Value {
        let row = |row: &Row| {
            let peer = |(kind, values): (&Kind, &Vec<f64>)| {
                let value = json!({
                    "rounds": values, "median": median(values), "min": least(values), "max": most(values),
                    "ebbtideRatio": row.ratio(*kind),
                });
                (kind.name().to_owned(), value)
            };
            let better = match row.better {
                Better::More => "more",
                Better::Less => "less",
                Better::Neither => "neither",
            };
            let peers: serde_json::Map<_, _> = row.values.iter().map(peer).collect();
            json!({"group": row.group, "row": row.name, "better": better, "peers": peers})
        };
        let target = |target: &Target| {
            let found = target.found.as_ref();
            json!({
                "target": target.what, "least": target.least, "goal": target.goal,
                "measured": found.map(|(text, ..)| text), "met": found.map(|(_, met, _)| met),
                "goalMet": found.map(|(.., met)| met),
            })
        };
        let notes: Vec<_> = self
            .notes
            .iter()
            .map(|(group, text)| json!({"group": group, "note": text}))
            .collect();
        json!({
            "machine": machine.facts.iter().cloned().collect::<BTreeMap<_, _>>(),
            "versions": machine.versions.iter().cloned().collect::<BTreeMap<_, _>>(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "targets": self.targets().iter().map(target).collect::<Vec<_>>(),
            "notes": notes,
        })
    }

    pub fn markdown(&self, machine: &Machine) -> String {
        let mut text = String::from(HEAD);
        text += "## Machine\n\n| | |\n|---|---|\n";
        for (name, value) in machine.facts.iter().chain(&machine.versions) {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        text += "\n## Targets\n\n| row | Ebbtide | at least | goal | |\n|---|---|---|---|---|\n";
        for target in self.targets() {
            let (found, mark) = match &target.found {
                None => ("not measured", ""),
                Some((found, _, true)) => (found.as_str(), "goal met"),
                Some((found, true, false)) => (found.as_str(), "met"),
                Some((found, false, false)) => (found.as_str(), "**missed**"),
            };
            let _ = writeln!(
                text,
                "| {} | {found} | {} | {} | {mark} |",
                target.what, target.least, target.goal
            );
        }
        let mut groups: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !groups.contains(&row.group.as_str()) {
                groups.push(&row.group);
            }
        }
        for group in groups {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.group == group).collect();
            let missing =
                |kind: &Kind| !["control", "tcp"].contains(&group) && self.missing.contains(kind);
            let kinds = ALL
                .into_iter()
                .filter(|kind| missing(kind) || rows.iter().any(|r| r.values.contains_key(kind)));
            let kinds: Vec<Kind> = kinds.collect();
            let _ = writeln!(text, "\n## {group}\n");
            for (_, note) in self.notes.iter().filter(|(of, _)| of == group) {
                let _ = writeln!(text, "- {note}");
            }
            let names = kinds
                .iter()
                .map(|kind| kind.name())
                .collect::<Vec<_>>()
                .join(" | ");
            let _ = writeln!(
                text,
                "\n| | {names} |\n|---|{}",
                "---:|".repeat(kinds.len())
            );
            for row in rows {
                let cells = kinds.iter().map(|kind| {
                    if missing(kind) && !row.name.starts_with("TCP") {
                        "missing".to_owned()
                    } else {
                        row.cell(*kind)
                    }
                });
                let cells = cells.collect::<Vec<_>>().join(" | ");
                let _ = writeln!(text, "| {} | {cells} |", row.name);
            }
        }
        text
    }

    /// Those of the issue that asked for this bench.
    fn targets(&self) -> Vec<Target> {
        use Better::{Less, More};
        const BOTH: &[Kind] = &[Kind::Haproxy, Kind::Nginx];
        const PEERS: &[Kind] = &[Kind::Haproxy, Kind::Nginx, Kind::Caddy, Kind::Pingap];
        let wide = ["64 clients: requests/s", "1000 clients: requests/s"];
        let cpu = [
            "8 clients: CPU-µs a request",
            "64 clients: CPU-µs a request",
            "1000 clients: CPU-µs a request",
        ];
        let rates = ["HTTP: connections/s", "TCP: connections/s"];
        let bulk: Vec<String> = ["HTTP", "TCP"]
            .iter()
            .flat_map(|mode| {
                ["64 MiB answers", "1 MiB answers"].map(|what| format!("{mode} {what}: GB/s"))
            })
            .collect();
        let bulk: Vec<&str> = bulk.iter().map(String::as_str).collect();
        let uploads = ["HTTP 64 MiB uploads: GB/s", "TCP 64 MiB uploads: GB/s"];
        vec![
            self.against(
                "keep-alive, 64 and 1,000 clients",
                "keepalive",
                &wide,
                BOTH,
                More,
                "1.15",
                "1.3",
            ),
            self.against(
                "keep-alive, 8 clients",
                "keepalive",
                &["8 clients: requests/s"],
                BOTH,
                More,
                "1.3",
                "1.5",
            ),
            self.against(
                "TCP requests/s",
                "tcp",
                &["64 clients: requests/s", "8 clients: requests/s"],
                BOTH,
                More,
                "1.0",
                "1.1",
            ),
            self.against(
                "connections/s, TCP and HTTP",
                "connections",
                &rates,
                PEERS,
                More,
                "1.05",
                "1.2",
            ),
            self.against(
                "bulk and 1 MiB answers, to HAProxy and nginx",
                "bulk",
                &bulk,
                BOTH,
                More,
                "1.3",
                "2",
            ),
            self.against(
                "uploads, to HAProxy and nginx",
                "bulk",
                &uploads,
                BOTH,
                More,
                "1.3",
                "2",
            ),
            self.against(
                "bulk and 1 MiB answers, to direct",
                "bulk",
                &bulk,
                &[Kind::Direct],
                More,
                "0.8",
                "0.8",
            ),
            self.against(
                "CPU-µs a request, HTTP",
                "keepalive",
                &cpu,
                PEERS,
                Less,
                "0.95",
                "0.85",
            ),
            self.against(
                "CPU-µs a request, TCP",
                "tcp",
                &cpu[..2],
                BOTH,
                Less,
                "0.95",
                "0.85",
            ),
            self.against(
                "p99.9 at half load",
                "latency",
                &["p99.9, µs"],
                PEERS,
                Less,
                "1.0",
                "0.5",
            ),
            self.idle("idle memory of a TCP pair, bytes", "TCP pair", "1536"),
            self.idle(
                "idle memory of an HTTP client, bytes",
                "HTTP client",
                "2560",
            ),
            self.own(
                "event to every worker, p99 at 10,000 endpoints, µs",
                "10000 endpoints: event to snapshot p99, µs",
                "1000",
                "200",
            ),
            self.own(
                "pick at 10,000 endpoints, ns",
                "pick of 10000, ns",
                "100",
                "20",
            ),
            self.rollout(),
        ]
    }

    /// Ebbtide's ratio to those of `kinds` that were measured, the worst of all rows.
    #[allow(clippy::too_many_arguments)] // One line of a table.
    fn against(
        &self,
        what: &'static str,
        group: &str,
        rows: &[&str],
        kinds: &[Kind],
        better: Better,
        least: &'static str,
        goal: &'static str,
    ) -> Target {
        let ratios = rows
            .iter()
            .filter_map(|row| self.row(group, row))
            .flat_map(|row| {
                kinds
                    .iter()
                    .filter_map(|kind| Some((row.ratio(*kind)?, *kind, row.name.as_str())))
            });
        let worst = ratios.reduce(|a, b| {
            let a_is_worse = if better == Better::More {
                a.0 < b.0
            } else {
                a.0 > b.0
            };
            if a_is_worse { a } else { b }
        });
        let found = worst.map(|(ratio, kind, row)| {
            let row = row.split(':').next().unwrap_or_default();
            let text = format!("{ratio:.2} × {} ({row})", kind.name());
            (
                text,
                meets(ratio, least, better),
                meets(ratio, goal, better),
            )
        });
        Target {
            what,
            found,
            least,
            goal,
        }
    }

    fn own(
        &self,
        what: &'static str,
        row: &str,
        least: &'static str,
        goal: &'static str,
    ) -> Target {
        let value = self
            .row("control", row)
            .and_then(|row| row.values.get(&Kind::Ebbtide))
            .map(|values| median(values));
        let found = value.map(|v| {
            (
                number(v),
                meets(v, least, Better::Less),
                meets(v, goal, Better::Less),
            )
        });
        Target {
            what,
            found,
            least,
            goal,
        }
    }

    fn idle(&self, what: &'static str, who: &str, least: &'static str) -> Target {
        let row = self.row("idle", &format!("{who}: private bytes grown / connections"));
        let all = self.row(
            "idle",
            &format!("{who}: private bytes in all / connections"),
        );
        let found = row
            .and_then(|row| row.values.get(&Kind::Ebbtide))
            .map(|values| {
                let value = median(values);
                let below_all = all.is_some_and(|row| {
                    row.values.keys().all(|kind| {
                        *kind == Kind::Ebbtide || row.ratio(*kind).is_some_and(|ratio| ratio < 1.0)
                    })
                });
                let met = meets(value, least, Better::Less);
                (number(value), met, met && below_all)
            });
        Target {
            what,
            found,
            least,
            goal: "and below every peer's, in all",
        }
    }

    fn rollout(&self) -> Target {
        let value = |row: &str| self.row("rollout", row)?.values.get(&Kind::Ebbtide);
        let found = value("failed requests")
            .zip(value("p99 rolling / quiet"))
            .map(|(failed, ratio)| {
                let (failed, ratio) = (most(failed), median(ratio));
                (
                    format!("{failed} failed, p99 × {ratio:.2}"),
                    failed == 0.0 && ratio <= 1.5,
                    failed == 0.0 && ratio <= 1.1,
                )
            });
        Target {
            what: "rollout",
            found,
            least: "0 failed, p99 within 1.5 × quiet",
            goal: "1.1 ×",
        }
    }
}

impl Row {
    fn cell(&self, kind: Kind) -> String {
        let Some(values) = self.values.get(&kind) else {
            return String::new();
        };
        let mut cell = number(median(values));
        if values.len() > 1 {
            let _ = write!(
                cell,
                " [{}–{}]",
                number(least(values)),
                number(most(values))
            );
        }
        match self.ratio(kind) {
            Some(ratio) if kind != Kind::Ebbtide && self.better != Better::Neither => {
                let behind = if self.better == Better::More {
                    ratio < 1.0
                } else {
                    ratio > 1.0
                };
                let mark = if behind { "**" } else { "" };
                let _ = write!(cell, "<br>{mark}× {ratio:.2}{mark}");
            }
            _ => {}
        }
        cell
    }

    /// Ebbtide's figure by this peer's: the median over the rounds that both have.
    fn ratio(&self, kind: Kind) -> Option<f64> {
        let (ours, theirs) = (self.values.get(&Kind::Ebbtide)?, self.values.get(&kind)?);
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        Some(median(&ratios)).filter(|ratio| ratio.is_finite())
    }
}

/// Where, with what and how this was measured.
pub struct Machine {
    pub facts: Vec<(String, String)>,
    pub versions: Vec<(String, String)>,
}

impl Machine {
    pub fn look(command: &str, cores: &str) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = file("/proc/cpuinfo");
        let processor = processor
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(": "));
        let memory = file("/proc/meminfo");
        let memory = memory
            .lines()
            .next()
            .and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%d %H:%M UTC")
            .to_string();
        let load = file("/proc/loadavg")
            .split_whitespace()
            .take(3)
            .collect::<Vec<_>>()
            .join(" ");
        let facts = [
            (
                "processor",
                processor.map_or("unknown", |(_, name)| name).to_owned(),
            ),
            ("cores", format!("{count}: {cores}")),
            (
                "memory",
                format!("{:.0} GiB", memory.unwrap_or(0.0) / f64::from(1 << 20)),
            ),
            (
                "kernel",
                file("/proc/sys/kernel/osrelease").trim().to_owned(),
            ),
            ("load before it began", load),
            ("DAMON (see TRIED.md)", damon().to_owned()),
            ("begun", now),
            ("command", format!("`{command}`")),
        ];
        let versions = ALL.into_iter().filter(|kind| *kind != Kind::Direct);
        let versions = versions.map(|kind| (kind.name().to_owned(), kind.version()));
        Self {
            facts: facts
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect(),
            versions: versions.collect(),
        }
    }
}

/// Whether the kernel's scanner of memory takes a core for itself now and then: 4 ms of it are the tail of every latency.
fn damon() -> &'static str {
    let policy = |process: std::fs::DirEntry| {
        let read = |file| std::fs::read_to_string(process.path().join(file)).ok();
        read("comm").filter(|name| name.starts_with("kdamond"))?;
        read("sched")?
            .lines()
            .find(|line| line.starts_with("policy"))?
            .split_whitespace()
            .last()
            .map(str::to_owned)
    };
    match std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .find_map(policy)
    {
        None => "does not run",
        // SCHED_IDLE, sched(7).
        Some(policy) if policy == "5" => "runs at idle priority",
        Some(_) => "**runs, and takes a core for milliseconds**",
    }
}

fn meets(value: f64, bound: &str, better: Better) -> bool {
    let bound: f64 = bound.parse().unwrap_or(f64::NAN);
    if better == Better::More {
        value >= bound
    } else {
        value <= bound
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Three or four figures that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => {
            let digits = format!("{value:.0}");
            let grouped = digits
                .as_bytes()
                .rchunks(3)
                .rev()
                .map(|three| String::from_utf8_lossy(three));
            grouped.collect::<Vec<_>>().join(",")
        }
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

const HEAD: &str = "# Ebbtide beside its peers\n\n\
    Written by `cargo bench --bench compare`, not by hand. Each cell is the median of the rounds [least–most]; × is Ebbtide's \
    figure by that peer's, bold where Ebbtide is behind. One worker thread each on a core of its own; the load and the \
    endpoints are elsewhere, all on loopback. `direct` is the load without any proxy. The peers' configurations, with the reason \
    for each tuning line, are in `benches/compare/`. A cell is empty where a peer does not speak the protocol, or \
    failed (see the notes).\n\n";
