//! Text for people: text from outside (files, servers, clients) in a form that is safe to print,
//! and times, durations, numbers and tables.
//!
//! Invariant: no control character of a text from outside is printed, so such a text cannot break a
//! line or control a terminal.

use std::time::{Duration, SystemTime};

use jiff::{Timestamp, Unit};

/// A time for RFC 3339 output, rounded to the millisecond. A time after the year 9999 becomes the
/// last one of that year.
pub fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at)
        .and_then(|at| at.round(Unit::Millisecond))
        .unwrap_or(Timestamp::MAX)
}

/// An error with its causes, in one line. Often only a cause says what is wrong.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    one_line(&text)
}

/// Replaces each control character with a space. So a manifest's text, a file's name or a server's
/// response stays one line and cannot control a terminal.
pub fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A duration in whole seconds, for people: `1h 2m 3s`.
pub fn seconds(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// A number with its digits in groups of three: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The one of some names that a misspelt one most likely means: it differs in case, or in one letter
/// of three, at most two. `None` if none is near.
pub fn near<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_lowercase();
    let names = names.map(|name| (edits(&lower, &name.to_lowercase()), name));
    let near = names.filter(|(edits, _)| *edits <= (lower.chars().count() / 3).min(2));
    near.min().map(|(_, name)| name)
}

/// The letters to add, remove or replace that make one text the other (Levenshtein's distance).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut before: Vec<usize> = (0..=to.len()).collect();
    for (row, letter) in from.chars().enumerate() {
        let mut now = vec![row + 1];
        for (column, other) in to.iter().enumerate() {
            let replaced = before[column] + usize::from(letter != *other);
            now.push(replaced.min(before[column + 1] + 1).min(now[column] + 1));
        }
        before = now;
    }
    before[to.len()]
}

/// How [`table`] lays out its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// All columns are aligned left and stand two spaces apart.
    Words,
    /// The first column is aligned left. The others are aligned right and stand three spaces apart.
    Numbers,
}

/// Rows as lines, the heading first. A column is as wide as its widest cell, counted in characters.
/// Each cell becomes one line of text without control characters. No line ends in a space.
pub fn table(rows: &[Vec<String>], columns: Columns) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| one_line(cell)).collect())
        .collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| Some(row.get(column)?.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let gap = match columns {
        Columns::Words => "  ",
        Columns::Numbers => "   ",
    };
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells: Vec<String> = cells
            .map(|(column, (cell, &width))| match columns {
                Columns::Numbers if column > 0 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            })
            .collect();
        text += cells.join(gap).trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<const R: usize, const C: usize>(rows: [[&str; C]; R]) -> Vec<Vec<String>> {
        rows.map(|row| row.map(str::to_owned).into()).into()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_eq!(
            table(&rows([["A", "B"], ["läng", "x"], ["", ""]]), Columns::Words),
            "A     B\nläng  x\n\n"
        );
        assert_eq!(
            table(
                &rows([["", "sent"], ["a", "1"], ["bc", "12345"]]),
                Columns::Numbers
            ),
            "      sent\na        1\nbc   12345\n"
        );
    }

    #[test]
    fn a_cell_is_one_line_without_control_characters() {
        assert_eq!(
            table(&rows([["a\nb", "\u{1b}[31m"]]), Columns::Words),
            "a b   [31m\n"
        );
    }

    #[test]
    fn a_misspelt_name_means_the_nearest_one() {
        let near = |text| {
            near(
                text,
                ["Service", "Pod", "EndpointSlice", "shop-2"].into_iter(),
            )
        };
        for (text, meant) in [
            ("service", "Service"),
            ("Services", "Service"),
            ("Sevrice", "Service"),
            ("Pods", "Pod"),
            ("EndpointSlcie", "EndpointSlice"),
            ("shop-3", "shop-2"),
        ] {
            assert_eq!(near(text), Some(meant), "{text}");
        }
        for far in ["", "Job", "Node", "Endpoints", "Deployment", "é"] {
            assert_eq!(near(far), None, "{far}");
        }
    }

    #[test]
    fn digits_stand_in_groups_of_three() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
