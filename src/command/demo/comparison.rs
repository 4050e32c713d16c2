//! The result of the demo and the drill: a table with one row for each phase, and the verdict in
//! words.

use std::time::Duration;

use crate::command::demo::load::{CLIENTS, Report};
use crate::text::{self, Columns, grouped};

/// One row of the table: one phase.
#[derive(Debug)]
pub struct Row {
    /// The balancer of the phase.
    pub name: &'static str,
    /// What the clients met.
    pub report: Report,
    /// Requests that were lost and sent again to another endpoint. `None` if the balancer knows no
    /// requests.
    pub replayed: Option<u64>,
    /// Processes or pods that were replaced while the load ran.
    pub replaced: usize,
}

impl Row {
    /// Whether no request failed, requests were sent, and no client needed a second socket.
    pub fn is_clean(&self) -> bool {
        self.report.failed == 0 && self.report.ok > 0 && self.report.sockets == CLIENTS
    }
}

/// The rows as a table with its heading, indented by five spaces, without a line break at the end.
pub(crate) fn table(rows: &[&Row]) -> String {
    let head = [
        "",
        "requests",
        "failed",
        "replayed",
        "client sockets",
        "longest stall",
        "p99",
    ]
    .map(str::to_owned)
    .to_vec();
    let lines = rows.iter().map(|row| {
        let Report {
            sent,
            failed,
            sockets,
            longest_stall,
            latency,
            ..
        } = &row.report;
        vec![
            row.name.to_owned(),
            grouped(*sent),
            grouped(*failed),
            row.replayed.map_or("-".to_owned(), grouped),
            grouped(*sockets),
            milliseconds(*longest_stall),
            milliseconds(latency.p99),
        ]
    });
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(lines).collect();
    let table = text::table(&lines, Columns::Numbers);
    let lines: Vec<String> = table.lines().map(|line| format!("     {line}")).collect();
    lines.join("\n")
}

/// What the table lacks to be read rightly: nothing of a release build.
pub(crate) fn build(is_debug: bool) -> &'static str {
    match is_debug {
        true => "\n     (a debug build: slower than a release, `cargo build --release`)",
        false => "",
    }
}

/// The result of the second phase in words, and what the first phase cost the clients.
pub(crate) fn verdict(before: Option<&Row>, second: &Row) -> String {
    let name = second.name;
    let behind = before.map(|before| {
        let failed = counted(before.report.failed, "request");
        let broken = counted(before.report.sockets.saturating_sub(CLIENTS), "connection");
        format!(
            ";\nbehind the {} {failed} failed and {broken} broke",
            before.name
        )
    });
    let behind = behind.unwrap_or_default();
    if second.is_clean() {
        return format!(
            "{name} answered every request on the {CLIENTS} connections first opened{behind}."
        );
    }
    let Report {
        failed,
        sockets,
        errors,
        ..
    } = &second.report;
    let errors = errors
        .iter()
        .map(|(kind, count)| format!("{kind} {}", grouped(*count)))
        .collect::<Vec<_>>()
        .join(", ");
    let errors = if errors.is_empty() {
        errors
    } else {
        format!(" ({errors})")
    };
    let (failed, sockets) = (counted(*failed, "request"), counted(*sockets, "socket"));
    format!("{name} failed {failed}{errors} and its {CLIENTS} clients used {sockets}{behind}.")
}

fn counted(count: u64, noun: &str) -> String {
    format!(
        "{} {noun}{}",
        grouped(count),
        if count == 1 { "" } else { "s" }
    )
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", grouped(time.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, failed: u64, sockets: u64, replayed: Option<u64>) -> Row {
        let errors = if failed > 0 {
            [("reset".to_owned(), failed)].into()
        } else {
            Default::default()
        };
        let longest_stall = Duration::from_millis(1234);
        let report = Report {
            sent: 10_000,
            ok: 10_000 - failed,
            failed,
            sockets,
            errors,
            longest_stall,
            ..Report::default()
        };
        Row {
            name,
            report,
            replayed,
            replaced: 3,
        }
    }

    #[test]
    fn the_table_is_aligned_and_the_verdict_follows_from_it() {
        let (late, ebbtide) = (
            row("late balancer", 1, 31, None),
            row("Ebbtide", 0, 8, Some(12)),
        );
        let expected = "                     requests   failed   replayed   client sockets   longest stall    p99\n     \
                        late balancer     10,000        1          -               31        1,234 ms   0 ms\n     \
                        Ebbtide           10,000        0         12                8        1,234 ms   0 ms";
        assert_eq!(table(&[&late, &ebbtide]), expected);
        assert!(
            verdict(Some(&late), &ebbtide)
                .starts_with("Ebbtide answered every request on the 8 connections")
        );
        assert!(
            verdict(Some(&late), &ebbtide).ends_with("1 request failed and 23 connections broke.")
        );

        assert!(build(true).contains("debug build") && build(false).is_empty());
        assert_eq!(
            verdict(None, &ebbtide),
            "Ebbtide answered every request on the 8 connections first opened."
        );
        assert!(
            !row("Ebbtide", 0, 9, None).is_clean(),
            "a lost socket is a failure"
        );
        let bad = row("Ebbtide", 1_000, 1_008, Some(0));
        assert!(!bad.is_clean());
        assert!(verdict(Some(&late), &bad).starts_with(
            "Ebbtide failed 1,000 requests (reset 1,000) and its 8 clients used 1,008"
        ));
    }
}
