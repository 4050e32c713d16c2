//! Rolling updates of a small Deployment with real processes. Each old process is killed around the
//! moment its manifest changes. No request may fail, and no client connection may close (contract
//! 1).
//!
//! `EBBTIDE_FULL=1` runs five updates of ten endpoints, with 30,000 requests in a minute.

use std::net::SocketAddr;
use std::time::Duration;

use ebbtide::command::demo::fleet::{Fleet, Options, Tell};
use ebbtide::command::demo::load::{Load, Report};
use ebbtide::command::demo::proxy::{Proxy, config};
use rustix::process::Signal;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::support::binary::BINARY;
use crate::support::wait::eventually;

/// Five replicas. Each gets SIGKILL within 50 ms of the change of its manifest.
pub async fn five() -> Fleet {
    fleet(5, Tell::PodAndSlice).await
}

async fn fleet(replicas: usize, tell: Tell) -> Fleet {
    let options = Options {
        replicas,
        tell,
        signal: Signal::KILL,
        signal_offset: -50..=50,
        ..Options::new(BINARY)
    };
    Fleet::start(options).await.unwrap()
}

/// Waits until the proxy serves so many endpoints.
async fn ready(proxy: &Proxy, count: usize) {
    eventually(&format!("{count} ready endpoints"), async || {
        let status = proxy.page("/api/v1/status").await.unwrap();
        status.text().matches("\"state\":\"ready\"").count() >= count
    })
    .await;
}

/// Replaces each of [`five`] once under 3,000 requests of 8 keep-alive clients at `to`. None may fail,
/// and no connection may end. `each` is called after each replacement, with its number.
pub async fn roll_five(
    fleet: &mut Fleet,
    proxy: &Proxy,
    to: impl Future<Output = SocketAddr>,
    mut each: impl FnMut(usize),
) {
    ready(proxy, 5).await;
    let load = Load {
        timeout: Duration::from_secs(180),
        ..Load::new(to.await, "/slow?ms=3", Duration::from_secs(6))
    };
    let stop = CancellationToken::new();
    let update = async {
        for (number, old) in fleet.ids().into_iter().enumerate() {
            fleet.replace(old, "v2").await.unwrap();
            each(number);
        }
    };
    let (report, ()) = tokio::join!(load.run(&stop, |_| {}), update);
    assert_eq!(report.failed, 0, "{report}\n{}", proxy.log_tail());
    assert_eq!((report.sent, report.sockets), (3_000, 8), "{report}");
}

/// Ten replicas under 8 keep-alive clients at 500/s, with `rolls` updates in nine tenths of
/// `seconds`. Each old process gets its SIGKILL between 50 ms before and 50 ms after its manifest
/// changes.
async fn roll(tell: Tell, path: &str, rolls: usize, seconds: u64) -> (Report, Fleet, Proxy) {
    let mut fleet = fleet(10, tell).await;
    let proxy = Proxy::start(
        BINARY.as_ref(),
        fleet.folder(),
        &config(&fleet.manifests(), "workers: 2"),
        &["web"],
    )
    .await
    .unwrap();
    let web = proxy.web().unwrap();
    ready(&proxy, 10).await;
    // A busy machine sends late, which is no failure of the proxy. The timeout leaves time to send
    // everything.
    let load = Load {
        timeout: Duration::from_secs(180),
        ..Load::new(web, path, Duration::from_secs(seconds))
    };
    let stop = CancellationToken::new();
    let begin = Instant::now();
    let update = async {
        let mut done = 0;
        for version in 2..2 + rolls {
            for old in fleet.ids() {
                fleet.replace(old, &format!("v{version}")).await.unwrap();
                done += 1;
                // Spread over the load's time, however long a replacement takes on this machine.
                sleep_until(
                    begin
                        + Duration::from_secs_f64(
                            seconds as f64 * 0.9 * done as f64 / (10 * rolls) as f64,
                        ),
                )
                .await;
            }
        }
    };
    let (report, ()) = tokio::join!(load.run(&stop, |_| {}), update);
    (report, fleet, proxy)
}

async fn roll_without_loss(tell: Tell, path: &str, short: (usize, u64)) {
    let (rolls, seconds) = if std::env::var_os("EBBTIDE_FULL").is_some() {
        (5, 60)
    } else {
        short
    };
    let (report, fleet, proxy) = roll(tell, path, rolls, seconds).await;
    let replays = proxy
        .metric("ebbtide_retries_total", |l| l.contains("reason=\"replay\""))
        .await
        .unwrap();
    let stale = proxy
        .metric("ebbtide_retries_total", |l| l.contains("reason=\"stale\""))
        .await
        .unwrap();
    let drains = proxy
        .metric("ebbtide_drains_total", |_| true)
        .await
        .unwrap();
    println!(
        "{tell:?}: {report}; {} ended, {drains} drains, {replays} replays, {stale} stale",
        fleet.ended
    );
    assert_eq!(report.failed, 0, "{report}\n{}", proxy.log_tail());
    assert_eq!(
        (report.sent, report.ok),
        (500 * seconds, 500 * seconds),
        "{report}"
    );
    assert_eq!(report.sockets, 8, "{report}");
    assert_eq!(fleet.ended, 10 * rolls);
    assert_eq!(
        drains as usize,
        10 * rolls,
        "one receipt for each endpoint that left"
    );
}

#[tokio::test]
async fn rolling_updates_by_pods_and_slices_cost_nothing() {
    // Slow requests, so that processes die with requests in flight.
    roll_without_loss(Tell::PodAndSlice, "/slow?ms=3", (2, 15)).await;
}

#[tokio::test]
async fn rolling_updates_by_slices_alone_cost_nothing() {
    roll_without_loss(Tell::Slice, "/slow?ms=3", (1, 6)).await;
}

#[tokio::test]
async fn rolling_updates_by_removal_alone_cost_nothing() {
    roll_without_loss(Tell::Removal, "/", (1, 6)).await;
}
