//! One phase of the demo or the drill: updates while a load runs.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::command::demo::load::{Load, Report, Snapshot};
use crate::command::demo::plan::Plan;
use crate::command::demo::progress::draw;

/// Runs the load and the updates at the same time. Returns the load's report and the number of
/// processes that `roll` replaced. `roll` gets a token that is cancelled when the load is over; it
/// stores the number of the update under way in `update`.
pub(crate) async fn under_load(
    plan: &Plan,
    target: SocketAddr,
    stop: &CancellationToken,
    update: &Cell<usize>,
    roll: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<usize>,
) -> anyhow::Result<(Report, usize)> {
    // The guard also ends the load's thread if this future is dropped.
    let over = stop.child_token();
    let _guard = over.clone().drop_guard();
    let load = Load {
        timeout: TIMEOUT,
        by_second: true,
        ..Load::new(target, PATH, plan.load)
    };
    let (progress, report) = start_load(load, over.clone())?;
    let load = async {
        let report = report
            .await
            .context("the load's thread ended without a report");
        over.cancel();
        report
    };
    let (report, replaced, ()) =
        tokio::try_join!(load, roll(over.clone()), draw(plan, progress, update))?;
    Ok((report, replaced))
}

/// Runs the load on its own thread. This thread starts processes, and that time must not count as
/// latency.
fn start_load(
    load: Load,
    stop: CancellationToken,
) -> anyhow::Result<(watch::Receiver<Snapshot>, oneshot::Receiver<Report>)> {
    let (progress, seen) = watch::channel(Snapshot::default());
    let (done, report) = oneshot::channel();
    std::thread::Builder::new()
        .name("load".into())
        .spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            else {
                return;
            };
            let report = runtime.block_on(load.run(&stop, |snapshot| {
                progress.send_replace(snapshot);
            }));
            // The receiver is gone if the phase was interrupted.
            let _ = done.send(report);
        })?;
    Ok((seen, report))
}

/// The request of the load: 5 ms of work.
const PATH: &str = "/slow?ms=5";
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(5);
