//! The tables of this bench, on standard output and in `benches/README.md`.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// What the control thread and the workers use for one event, in microseconds.
pub struct Cost {
    pub services: usize,
    pub no_op: f64,
    pub change: f64,
    pub workers: f64,
    pub removal: f64,
}

/// How soon drains began while something else went on.
pub struct Reaction {
    pub name: &'static str,
    pub wanted_ms: f64,
    /// Drains by reaction: a bound in seconds, and how many were within it.
    pub counts: Vec<(f64, u64)>,
    /// The time from SIGTERM to the process's end, and what is allowed.
    pub ended: Duration,
    pub allowed: Duration,
}

/// A row of the table of costs: its name and its value.
type CostRow = (&'static str, fn(&Cost) -> f64);

/// All results.
#[derive(Default)]
pub struct Report {
    costs: Vec<Cost>,
    reactions: Vec<Reaction>,
    facts: Vec<(&'static str, f64)>,
}

impl Reaction {
    /// The least bound in milliseconds that holds for this part of the drains.
    fn quantile(&self, part: f64) -> f64 {
        let all = self.drains() as f64;
        let within = self
            .counts
            .iter()
            .find(|(_, count)| *count as f64 >= all * part);
        within.map_or(f64::INFINITY, |(bound, _)| bound * 1e3)
    }

    fn drains(&self) -> u64 {
        self.counts.last().map_or(0, |(_, count)| *count)
    }
}

impl Report {
    pub fn add_cost(&mut self, cost: Cost) {
        eprintln!(
            "{} Services: no-op {:.0} µs, change {:.0} µs (workers {:.0} µs), removal {:.0} µs",
            cost.services, cost.no_op, cost.change, cost.workers, cost.removal
        );
        self.costs.push(cost);
    }

    pub fn add_reaction(&mut self, it: Reaction) {
        eprintln!(
            "{}: p50 ≤ {} ms, p99 ≤ {} ms, {} drains; ended in {:?}",
            it.name,
            it.quantile(0.5),
            it.quantile(0.99),
            it.drains(),
            it.ended
        );
        self.reactions.push(it);
    }

    pub fn add_fact(&mut self, name: &'static str, value: f64) {
        eprintln!("{name}: {value:.0}");
        self.facts.push((name, value));
    }

    /// Prints the tables, and writes them into the page if `write`.
    pub fn finish(&self, write: bool) -> anyhow::Result<()> {
        let text = self.markdown();
        print!("{text}");
        if write {
            let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/README.md");
            let old = std::fs::read_to_string(&page)?;
            let (before, rest) = old
                .split_once(BEGIN)
                .context("benches/README.md has no place for the tables")?;
            let (_, after) = rest
                .split_once(END)
                .context("benches/README.md: the place for the tables has no end")?;
            std::fs::write(page, format!("{before}{BEGIN}\n\n{text}\n{END}{after}"))?;
        }
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        if !self.costs.is_empty() {
            text += "| processor time of an event, µs |";
            self.costs
                .iter()
                .for_each(|it| _ = write!(text, " {} Services |", it.services));
            text += "\n|---|";
            self.costs.iter().for_each(|_| text += "---:|");
            let rows: [CostRow; 4] = [
                ("a pod event that changes nothing: control thread", |it| {
                    it.no_op
                }),
                ("one endpoint changes: control thread", |it| it.change),
                ("one endpoint changes: all workers", |it| it.workers),
                ("a Service is removed: control thread", |it| it.removal),
            ];
            for (name, value) in rows {
                let _ = write!(text, "\n| {name} |");
                self.costs
                    .iter()
                    .for_each(|it| _ = write!(text, " {:.0} |", value(it)));
            }
            text += "\n\n";
        }
        if !self.reactions.is_empty() {
            text += "| from an event to `begin_drain`, ms | p50 at most | p99 at most | wanted | drains | SIGTERM to the end, s | wanted |\n|---|---:|---:|---:|---:|---:|---:|\n";
        }
        for it in &self.reactions {
            let missed = |met: bool| if met { "" } else { " **missed**" };
            let (p50, p99) = (it.quantile(0.5), it.quantile(0.99));
            let _ = writeln!(
                text,
                "| {} | {p50} | {p99}{} | {} | {} | {:.2}{} | {} |",
                it.name,
                missed(p99 <= it.wanted_ms),
                it.wanted_ms,
                it.drains(),
                it.ended.as_secs_f64(),
                missed(it.ended <= it.allowed),
                it.allowed.as_secs()
            );
        }
        if !self.facts.is_empty() {
            text += "\n| | |\n|---|---:|\n";
        }
        for (name, value) in &self.facts {
            let _ = writeln!(text, "| {name} | {value:.0} |");
        }
        text
    }
}

/// The tables stand between these lines of the page.
const BEGIN: &str = "<!-- `make scale` writes from here -->";
const END: &str = "<!-- to here -->";
