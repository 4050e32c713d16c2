//! The command: both phases one after the other, with what they print.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::command::demo::comparison::{Row, build, table, verdict};
use crate::command::demo::fleet::{Fleet, Options};
use crate::command::demo::late::Late;
use crate::command::demo::load::{CLIENTS, Report};
use crate::command::demo::page::Page;
use crate::command::demo::plan::{LATE, Plan, REPLICAS};
use crate::command::demo::proxy::{self, Proxy};
use crate::command::demo::stop::{stop_at_signal, unless};
use crate::command::demo::under_load::under_load;

/// What the demo shows.
pub struct Settings {
    /// The program that has `sample-app` and `run`.
    pub binary: PathBuf,
    /// How long the load runs in each phase.
    pub load: Duration,
    /// Whether the second phase goes on until `stop`.
    pub stay: bool,
    /// The balancer of the second phase.
    pub second: Second,
    /// Stops the demo.
    pub stop: CancellationToken,
}

/// The balancer of the second phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second {
    /// A real `ebbtide run`.
    Ebbtide,
    /// A balancer that learns this late. It stands for Ebbtide in tests of the demo itself.
    Late(Duration),
}

/// The command. Returns true only if Ebbtide failed no request and no client needed a second
/// socket. `report`: the file of the report, if one is wanted.
///
/// # Errors
/// A process cannot be started, or Ebbtide ended before the load was over.
pub fn run(load: Duration, stay: bool, report: Option<&Path>) -> anyhow::Result<bool> {
    let page = report.map(Page::at).transpose()?;
    let binary = std::env::current_exe().context("cannot find this program's own file")?;
    let stop = CancellationToken::new();
    let settings = Settings {
        binary,
        load,
        stay,
        second: Second::Ebbtide,
        stop,
    };
    // The children end with the thread that started them, so this must be the main thread.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // The handlers are set before the first child starts. From then on, no signal ends this
        // process without its children.
        let signals = [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ];
        let signals = tokio::spawn(stop_at_signal(
            signals,
            settings.stop.clone(),
            String::new(),
        ));
        let rows = show(&settings).await;
        signals.abort();
        match rows? {
            Some((late, ebbtide)) => {
                if let Some(page) = page {
                    let verdict = verdict(Some(&late), &ebbtide);
                    let what = "What a rolling update costs the clients, on one machine";
                    page.write(what, &[&late, &ebbtide], &verdict)?;
                }
                Ok(ebbtide.is_clean())
            }
            None => {
                eprintln!("ebbtide demo: interrupted");
                Ok(false)
            }
        }
    })
}

/// Runs both phases and prints their progress. Returns `None` if it is stopped before both phases
/// have a result.
///
/// # Errors
/// As [`run`]; the load is too short.
pub async fn show(settings: &Settings) -> anyhow::Result<Option<(Row, Row)>> {
    ensure!(
        settings.load >= SHORTEST,
        "--for must be at least {SHORTEST:?}, to have time for an update"
    );
    let plan = Plan::new(settings.load);
    print_introduction(settings, &plan);

    println!("1/2  A balancer that learns one second late, like kube-proxy with its minSyncPeriod");
    let stop = &settings.stop;
    let Some(late) = unless(stop, late_phase(settings, &plan, LATE, stop)).await else {
        return Ok(None);
    };
    let late = late?;

    println!("\n2/2  Ebbtide, under the same load and the same updates");
    // With --stay an interruption is the normal end. The load stops, and the table is still
    // printed.
    let endless = CancellationToken::new();
    let abort = if settings.stay { &endless } else { stop };
    let second = async {
        match settings.second {
            Second::Ebbtide => ebbtide_phase(settings, &plan).await,
            Second::Late(delay) => {
                let plan = plan.or_endless(settings.stay);
                Ok(Row {
                    name: "stand-in",
                    ..late_phase(settings, &plan, delay, stop).await?
                })
            }
        }
    };
    let Some(second) = unless(abort, second).await else {
        return Ok(None);
    };
    let second = second?;

    println!(
        "\n{}{}\n\n{}",
        table(&[&late, &second]),
        build(cfg!(debug_assertions)),
        verdict(Some(&late), &second)
    );
    Ok(Some((late, second)))
}

async fn late_phase(
    settings: &Settings,
    plan: &Plan,
    delay: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<Row> {
    let mut fleet = Fleet::start(Options::new(&settings.binary)).await?;
    let late = Late::start(fleet.endpoints(), delay)?;
    let (report, replaced) = phase(plan, &mut fleet, late.address, stop).await?;
    Ok(Row {
        name: "late balancer",
        report,
        replayed: None,
        replaced,
    })
}

async fn ebbtide_phase(settings: &Settings, plan: &Plan) -> anyhow::Result<Row> {
    let mut fleet = Fleet::start(Options::new(&settings.binary)).await?;
    let config = proxy::config(&fleet.manifests(), "");
    let mut proxy = Proxy::start(&settings.binary, fleet.folder(), &config, &["web"]).await?;
    println!("     status page: http://{}/", proxy.admin);
    let plan = plan.or_endless(settings.stay);
    let target = proxy.web()?;
    let (report, replaced) = tokio::select! {
        result = phase(&plan, &mut fleet, target, &settings.stop) => result?,
        status = proxy.wait() => bail!("Ebbtide ended before the load was over ({}); its last log lines:\n{}", status?, proxy.log_tail()),
    };
    // A failed connect is not counted as a replay, because nothing had been sent.
    let replays = |labels: &str| !labels.contains("reason=\"connect\"");
    let replayed = proxy.metric("ebbtide_retries_total", replays).await? as u64;
    let status = proxy.stop(PATIENCE).await?;
    ensure!(
        status.success(),
        "Ebbtide did not end cleanly ({status}); its last log lines:\n{}",
        proxy.log_tail()
    );
    Ok(Row {
        name: "Ebbtide",
        report,
        replayed: Some(replayed),
        replaced,
    })
}

async fn phase(
    plan: &Plan,
    fleet: &mut Fleet,
    target: SocketAddr,
    stop: &CancellationToken,
) -> anyhow::Result<(Report, usize)> {
    let update = Cell::new(0);
    under_load(plan, target, stop, &update, async |over| {
        roll(plan, fleet, &over, &update).await
    })
    .await
}

/// Rolls the fleet to v2, v3 and so on, one process at each step, until the plan is done or the
/// load is over. Returns how many processes were replaced.
async fn roll(
    plan: &Plan,
    fleet: &mut Fleet,
    over: &CancellationToken,
    update: &Cell<usize>,
) -> anyhow::Result<usize> {
    let mut next = Instant::now() + plan.lead;
    for number in 1..=plan.updates {
        for old in fleet.ids() {
            tokio::select! {
                () = over.cancelled() => return Ok(fleet.ended),
                () = sleep_until(next) => {}
            }
            update.set(number);
            next = Instant::now() + plan.step;
            fleet.replace(old, &format!("v{}", number + 1)).await?;
        }
        next += plan.step;
    }
    Ok(fleet.ended)
}

fn print_introduction(settings: &Settings, plan: &Plan) {
    let updates = match plan.updates {
        1 => "a rolling update".to_owned(),
        n => format!("{n} rolling updates"),
    };
    println!("Ebbtide demo: what a rolling update costs the clients\n");
    println!(
        "     application  {REPLICAS} processes that exit immediately at SIGTERM: no preStop hook, no graceful shutdown"
    );
    println!(
        "     load         {CLIENTS} keep-alive clients, 500 requests a second, 5 ms of work for each"
    );
    println!(
        "     updates      {updates} in {:?}: a new process joins, then an old one gets SIGTERM,",
        settings.load
    );
    println!("                  at most 50 ms before or after its manifest says that it leaves\n");
}

/// The shortest load that has time for an update.
const SHORTEST: Duration = Duration::from_secs(2);
/// How long Ebbtide may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
