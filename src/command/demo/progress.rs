//! The progress of a phase on standard error: a bar on a terminal, a line every few seconds
//! elsewhere.

use std::cell::Cell;
use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::command::demo::load::Snapshot;
use crate::command::demo::plan::Plan;
use crate::text::grouped;

/// Draws until `progress` has no sender any more, which means that the load is over. `update` holds
/// the number of the update under way.
pub(super) async fn draw(
    plan: &Plan,
    mut progress: watch::Receiver<Snapshot>,
    update: &Cell<usize>,
) -> anyhow::Result<()> {
    let bar = match plan.endless {
        true => ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("     {spinner} {msg}")?),
        false => ProgressBar::new(plan.load.as_millis() as u64)
            .with_style(ProgressStyle::with_template("     {bar:24} {msg}")?.progress_chars("━━─")),
    };
    let mut line_at = LINES;
    loop {
        let over = progress.changed().await.is_err();
        let now = progress.borrow_and_update().clone();
        let text = status_line(plan, &now, update.get());
        if bar.is_hidden() && (over || is_due(plan, now.elapsed, line_at)) {
            line_at = now.elapsed + LINES;
            // Standard error may be closed. That is no reason to end before the phase is over.
            let _ = writeln!(std::io::stderr(), "     {text}");
        }
        bar.set_position(now.elapsed.as_millis() as u64);
        bar.set_message(text);
        if over {
            bar.abandon();
            return Ok(());
        }
    }
}

/// Whether a line is due while the load runs. The last one comes at its end.
fn is_due(plan: &Plan, elapsed: Duration, line_at: Duration) -> bool {
    elapsed >= line_at && (plan.endless || elapsed < plan.load)
}

fn status_line(plan: &Plan, now: &Snapshot, update: usize) -> String {
    let update = match (update, plan.updates) {
        (0, _) => "no update yet".to_owned(),
        (n, usize::MAX) => format!("update {n}"),
        (n, all) => format!("update {n} of {all}"),
    };
    let (seconds, requests) = (now.elapsed.as_secs(), grouped(now.ok + now.failed));
    format!(
        "{seconds:>3} s  {requests} requests, {} failed, {} sockets, {update}",
        grouped(now.failed),
        now.sockets
    )
}

/// The time between two lines where there is no terminal.
const LINES: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_load_is_not_due_twice() {
        let second = Duration::from_secs(1);
        let plan = Plan::new(20 * second);
        assert!(is_due(&plan, 15 * second, 15 * second));
        assert!(!is_due(&plan, 14 * second, 15 * second));
        assert!(
            !is_due(&plan, 20 * second, 20 * second),
            "its end is a line"
        );
        let endless = Plan::new(20 * second).or_endless(true);
        assert!(is_due(&endless, 25 * second, 25 * second));
    }
}
