//! Tells the service manager, where one has started this process, when it serves and when it ends.
//!
//! Source: sd_notify(3). Nothing is sent without `NOTIFY_SOCKET`.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::admin::readiness::readiness;
use crate::observe::health::Health;

/// Tells until the process ends: ready once, the line of `/readyz` as it changes, the end, and that the
/// control loop turns, if the manager wants to hear that.
pub(super) async fn tell(health: Arc<Health>) {
    let watchdog = sd_notify::watchdog_enabled();
    let mut said = None;
    loop {
        let state = health.state();
        let (is_ready, line) = match readiness(&state) {
            Ok(line) => (true, line),
            Err(line) => (false, line),
        };
        let mut news = Vec::new();
        let now = (is_ready, state.shutting_down, line);
        if said.as_ref() != Some(&now) {
            news.push(NotifyState::Status(&now.2));
            if state.shutting_down {
                news.push(NotifyState::Stopping);
            } else if is_ready {
                news.push(NotifyState::Ready);
            }
        }
        if watchdog.is_some_and(|within| health.since_beat() < within) {
            news.push(NotifyState::Watchdog);
        }
        if !news.is_empty()
            && let Err(error) = sd_notify::notify(&news)
        {
            tracing::warn!(%error, "the service manager cannot be told");
            return;
        }
        said = Some(now);
        tokio::time::sleep(LOOK).await;
    }
}

/// How often the state is looked at. A manager's watchdog that bites sooner than a few of these is not
/// of use.
const LOOK: Duration = Duration::from_millis(100);
