//! The results as a table for people and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::peers::{ALL, Kind};
use crate::results::{Better, Results, Row, least, median, most, number};
use crate::targets::{Target, targets};

/// The results as JSON for programs.
pub fn json(results: &Results, machine: &Machine) -> Value {
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
    let notes: Vec<_> = results
        .notes
        .iter()
        .map(|(group, text)| json!({"group": group, "note": text}))
        .collect();
    json!({
        "machine": machine.facts.iter().cloned().collect::<BTreeMap<_, _>>(),
        "versions": machine.versions.iter().cloned().collect::<BTreeMap<_, _>>(),
        "rows": results.rows.iter().map(row).collect::<Vec<_>>(),
        "targets": targets(results).iter().map(target).collect::<Vec<_>>(),
        "notes": notes,
    })
}

/// The results as tables for people.
pub fn markdown(results: &Results, machine: &Machine) -> String {
    let mut text = String::from(HEAD);
    text += "## Machine\n\n| | |\n|---|---|\n";
    for (name, value) in machine.facts.iter().chain(&machine.versions) {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text += "\n## Targets\n\n| row | Ebbtide | at least | goal | |\n|---|---|---|---|---|\n";
    for target in targets(results) {
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
    for row in &results.rows {
        if !groups.contains(&row.group.as_str()) {
            groups.push(&row.group);
        }
    }
    for group in groups {
        let rows: Vec<&Row> = results
            .rows
            .iter()
            .filter(|row| row.group == group)
            .collect();
        let missing =
            |kind: &Kind| !["control", "tcp"].contains(&group) && results.missing.contains(kind);
        let kinds = ALL
            .into_iter()
            .filter(|kind| missing(kind) || rows.iter().any(|r| r.values.contains_key(kind)));
        let kinds: Vec<Kind> = kinds.collect();
        let _ = writeln!(text, "\n## {group}\n");
        for (_, note) in results.notes.iter().filter(|(of, _)| of == group) {
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
                    cell(row, *kind)
                }
            });
            let cells = cells.collect::<Vec<_>>().join(" | ");
            let _ = writeln!(text, "| {} | {cells} |", row.name);
        }
    }
    text
}

/// One cell: the median, the range, and Ebbtide's ratio to this peer.
fn cell(row: &Row, kind: Kind) -> String {
    let Some(values) = row.values.get(&kind) else {
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
    match row.ratio(kind) {
        Some(ratio) if kind != Kind::Ebbtide && row.better != Better::Neither => {
            let behind = if row.better == Better::More {
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

const HEAD: &str = "## How to read the tables\n\n\
    Written by `cargo bench --bench compare`, not by hand. Each cell is the median of the rounds [least–most]. × is \
    the median over the rounds of each round's ratio: Ebbtide's figure divided by that peer's. So it is not the ratio of the \
    two medians in the row. It is in bold where Ebbtide is behind. Each proxy has one worker thread on its own core. The load \
    and the endpoints run on other cores, and all connections are on loopback. `direct` is the load without a proxy. The \
    configurations of the peers are in `benches/compare/`, with the reason for each tuning line. A cell is \
    empty if the peer does not support the protocol, or failed (see the notes).\n\n";
