//! What was measured: rows of figures, one value for each peer and round, and notes about them.

use std::collections::BTreeMap;

use crate::load::Report;
use crate::peers::Kind;

/// Which direction of a row is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// More is better.
    More,
    /// Less is better.
    Less,
    /// Neither; the row helps to read the other rows.
    Neither,
}

/// One row of a table: a figure for each peer, with one value for each round.
pub struct Row {
    /// The group of rows.
    pub group: String,
    /// The name of the figure.
    pub name: String,
    /// Which direction is good.
    pub better: Better,
    /// The values of each peer, in the order of the rounds.
    pub values: BTreeMap<Kind, Vec<f64>>,
}

/// All rows and notes.
#[derive(Default)]
pub struct Results {
    /// The rows, in the order in which they were measured first.
    pub rows: Vec<Row>,
    /// Notes, each with its group.
    pub notes: Vec<(String, String)>,
    /// Peers that were selected and are not installed.
    pub missing: Vec<Kind>,
}

impl Results {
    /// Empty results for these peers.
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

    /// Adds the value of one round.
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

    /// Adds a note to a group, once.
    pub fn note(&mut self, group: &str, text: String) {
        if !self.notes.contains(&(group.to_owned(), text.clone())) {
            self.notes.push((group.to_owned(), text));
        }
    }

    /// Notes that a peer could not be measured.
    pub fn failed(&mut self, group: &str, kind: Kind, error: &anyhow::Error) {
        let text: String = format!("{error:#}")
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(300)
            .collect();
        self.note(
            group,
            format!("{}: not measured completely: {text}", kind.name()),
        );
    }

    /// Notes failed requests, because the figures of such a load cannot be compared with the
    /// others.
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

    /// The lowest median of all proxies in a row.
    pub fn slowest(&self, group: &str, name: &str) -> Option<f64> {
        let row = self.row(group, name)?;
        row.values
            .iter()
            .filter(|(kind, _)| **kind != Kind::Direct)
            .map(|(_, values)| median(values))
            .reduce(f64::min)
    }

    /// A row by its group and name.
    pub fn row(&self, group: &str, name: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.group == group && row.name == name)
    }
}

impl Row {
    /// The median over the rounds of each round's ratio: Ebbtide's figure divided by this peer's.
    /// Only rounds that both have count.
    pub fn ratio(&self, kind: Kind) -> Option<f64> {
        let (ours, theirs) = (self.values.get(&Kind::Ebbtide)?, self.values.get(&kind)?);
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        Some(median(&ratios)).filter(|ratio| ratio.is_finite())
    }
}

/// The median; NaN if there is no value.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The smallest value.
pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The largest value.
pub fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// A number with three or four significant digits.
pub fn number(value: f64) -> String {
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
