//! `ebbtide demo`: what a rolling update costs the clients, first behind a balancer that learns late, then behind Ebbtide.
//!
//! Both phases are the same but for the balancer: real processes that die at once at SIGTERM, rolled to new versions while
//! eight keep-alive clients ask. The parts ([`fleet`], [`load`], [`late`], [`proxy`], [`client`]) are also what the
//! integration tests are made of. Whatever way this ends, no process and no file is left behind.

pub mod child;
pub mod client;
pub mod fleet;
pub mod late;
pub mod load;
pub mod proxy;
pub mod sample;

use std::cell::Cell;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::command::demo::fleet::Fleet;
use crate::command::demo::late::Late;
use crate::command::demo::load::{Load, Report, Snapshot};
use crate::command::demo::proxy::Proxy;

/// What is shown.
pub struct Settings {
    /// The program that has `sample-app` and `run`.
    pub binary: PathBuf,
    /// The load's time in each phase.
    pub load: Duration,
    /// The second phase goes on until `stop`.
    pub stay: bool,
    pub second: Second,
    pub stop: CancellationToken,
}

/// Who balances in the second phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second {
    Ebbtide,
    /// A stand-in for tests of the demo itself.
    Late(Duration),
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub report: Report,
    /// Requests sent to another endpoint after they were lost; `None` where the balancer knows no requests.
    pub replayed: Option<u64>,
    /// Processes replaced while the load ran.
    pub replaced: usize,
}

/// The command. True only if Ebbtide failed no request and its clients never needed a second socket.
///
/// # Errors
/// Something could not be started, or Ebbtide ended by itself.
pub fn run(load: Duration, stay: bool) -> anyhow::Result<bool> {
    let binary = std::env::current_exe().context("cannot find this program's own file")?;
    let stop = CancellationToken::new();
    let settings = Settings {
        binary,
        load,
        stay,
        second: Second::Ebbtide,
        stop,
    };
    // Current thread, and so the main one: the children die with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Taken before there is any child: from here on no signal ends this process without ending them.
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
            Some((_, ebbtide)) => Ok(ebbtide.is_clean()),
            None => {
                eprintln!("ebbtide demo: interrupted");
                Ok(false)
            }
        }
    })
}

/// Runs both phases and prints as it goes. `None` when stopped before there was something to compare.
pub async fn show(settings: &Settings) -> anyhow::Result<Option<(Row, Row)>> {
    ensure!(
        settings.load >= SHORTEST,
        "--for must be at least {SHORTEST:?}, to have time for an update"
    );
    let plan = Plan::new(settings.load);
    print_introduction(settings, &plan);

    println!("1/2  A balancer that learns one second late, as kube-proxy with its minSyncPeriod");
    let stop = &settings.stop;
    let Some(late) = unless(stop, late_phase(settings, &plan, LATE, stop)).await else {
        return Ok(None);
    };
    let late = late?;

    println!("\n2/2  Ebbtide, under the same load and the same updates");
    // With --stay an interruption is the normal end: the load stops, and the table is still printed.
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
        "\n{}\n\n{}",
        table(&[&late, &second]),
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
    let mut fleet = Fleet::start(fleet::Options::new(&settings.binary)).await?;
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
    let mut fleet = Fleet::start(fleet::Options::new(&settings.binary)).await?;
    let config = proxy::config(&fleet.manifests(), "");
    let mut proxy = Proxy::start(&settings.binary, fleet.folder(), &config, &["web"]).await?;
    println!("     status page: http://{}/", proxy.admin);
    let plan = plan.or_endless(settings.stay);
    let target = proxy.web()?;
    let (report, replaced) = tokio::select! {
        result = phase(&plan, &mut fleet, target, &settings.stop) => result?,
        status = proxy.wait() => bail!("Ebbtide ended by itself ({}); it said last:\n{}", status?, proxy.log_tail()),
    };
    // A connect that moved on to another endpoint was no replay: nothing had been sent.
    let replays = |labels: &str| !labels.contains("reason=\"connect\"");
    let replayed = proxy.metric("ebbtide_retries_total", replays).await? as u64;
    let status = proxy.stop(PATIENCE).await?;
    ensure!(
        status.success(),
        "Ebbtide did not end cleanly ({status}); it said last:\n{}",
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

/// The load and the updates side by side; returns what the load met and how many processes were replaced meanwhile. `roll`
/// is given what is cancelled when the load is over.
pub(crate) async fn under_load(
    plan: &Plan,
    target: SocketAddr,
    stop: &CancellationToken,
    update: &Cell<usize>,
    roll: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<usize>,
) -> anyhow::Result<(Report, usize)> {
    // Ends the load's thread also when this future is dropped.
    let over = stop.child_token();
    let _guard = over.clone().drop_guard();
    let load = Load {
        timeout: TIMEOUT,
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

/// Runs the load on a thread of its own, so that no time which this one needs to start processes counts as latency.
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
            // Nobody waits for it when the phase was interrupted.
            let _ = done.send(report);
        })?;
    Ok((seen, report))
}

/// Rolls the fleet to v2, v3 and so on, one process a step, until the plan is done or the load is over.
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

/// Draws until the load is over: a bar on a terminal, else a line every few seconds.
async fn draw(
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
        if bar.is_hidden() && (over || now.elapsed >= line_at) {
            line_at = now.elapsed + LINES;
            // Nobody may be reading any more, which is no reason to end in the middle.
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

/// When which process is replaced.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub load: Duration,
    endless: bool,
    pub lead: Duration,
    /// From one process's replacement to the next's; as long again between two updates.
    step: Duration,
    /// `usize::MAX`: as many as will be.
    updates: usize,
}

impl Plan {
    /// As many updates as fit with steps longer than the late balancer is late; in a short load one with shorter steps.
    fn new(load: Duration) -> Self {
        let lead = (load / 8).min(Duration::from_secs(1));
        let length = STEP * (REPLICAS + 1);
        let updates = ((load - 2 * lead + STEP).as_secs_f64() / length.as_secs_f64()) as usize;
        let step = STEP.min((load - 2 * lead) / REPLICAS);
        Self {
            load,
            endless: false,
            lead,
            step,
            updates: updates.max(1),
        }
    }

    /// Its updates take as long as they take.
    pub fn of_unknown_updates(load: Duration) -> Self {
        Self {
            updates: usize::MAX,
            ..Self::new(load)
        }
    }

    fn or_endless(&self, stay: bool) -> Self {
        match stay {
            true => Self {
                load: ENDLESS,
                endless: true,
                updates: usize::MAX,
                ..self.clone()
            },
            false => self.clone(),
        }
    }
}

impl Row {
    /// No request failed, all were sent, and no client needed a second socket.
    pub fn is_clean(&self) -> bool {
        self.report.failed == 0 && self.report.ok > 0 && self.report.sockets == CLIENTS
    }
}

fn print_introduction(settings: &Settings, plan: &Plan) {
    let updates = match plan.updates {
        1 => "a rolling update".to_owned(),
        n => format!("{n} rolling updates"),
    };
    println!("Ebbtide demo: what a rolling update costs the clients\n");
    println!(
        "     application  {REPLICAS} processes that exit at once at SIGTERM: no preStop hook, no graceful shutdown"
    );
    println!(
        "     load         {CLIENTS} keep-alive clients, 500 requests a second, 5 ms of work for each"
    );
    println!(
        "     updates      {updates} in {:?}: a new process joins, then an old one gets SIGTERM,",
        settings.load
    );
    println!(
        "                  from 50 ms before to 50 ms after its manifest says that it leaves\n"
    );
}

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
    .map(str::to_owned);
    let lines = rows.iter().map(|row| {
        let Report {
            sent,
            failed,
            sockets,
            longest_stall,
            latency,
            ..
        } = &row.report;
        let replayed = row.replayed.map_or("-".to_owned(), grouped);
        let times = (milliseconds(*longest_stall), milliseconds(latency.p99));
        [
            row.name.to_owned(),
            grouped(*sent),
            grouped(*failed),
            replayed,
            grouped(*sockets),
            times.0,
            times.1,
        ]
    });
    let lines: Vec<[String; 7]> = std::iter::once(head).chain(lines).collect();
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let text = |line: &[String; 7]| {
        let cells = line.iter().enumerate().map(|(column, cell)| match column {
            0 => format!("     {cell:<0$}", width(column)),
            _ => format!("{cell:>0$}", width(column) + 3),
        });
        cells.collect::<String>()
    };
    lines.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// What the second row says, and what the first one had to bear.
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

/// A load's length, as a command line gives it.
pub fn load_time(text: &str) -> Result<Duration, String> {
    crate::config::value::duration(text, Duration::from_secs(1)..=Duration::from_secs(3600))
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

/// Digits in groups of three.
fn grouped(number: u64) -> String {
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

/// `None` when stopped first; the future is then dropped, and with it all that it started.
pub(crate) async fn unless<T>(
    stop: &CancellationToken,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        () = stop.cancelled() => None,
        value = future => Some(value),
    }
}

/// The first signal asks for an end, the second one is it (the kernel then ends the children), with some last words.
pub(crate) async fn stop_at_signal<const N: usize>(
    mut signals: [Signal; N],
    stop: CancellationToken,
    last_words: String,
) {
    loop {
        futures::future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
        if stop.is_cancelled() {
            let _ = std::io::stderr().write_all(last_words.as_bytes());
            std::process::exit(1);
        }
        stop.cancel();
    }
}

pub(crate) const CLIENTS: u64 = 8;
const REPLICAS: u32 = 3;
const PATH: &str = "/slow?ms=5";
const LATE: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(1500);
const TIMEOUT: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_secs(2);
const LINES: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 3600);

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
    fn the_plan_fits_into_the_load_with_steps_longer_than_the_late_balancer_is_late() {
        for (seconds, updates) in [(2, 1), (5, 1), (8, 1), (13, 2), (20, 3), (60, 9)] {
            let plan = Plan::new(Duration::from_secs(seconds));
            assert_eq!(plan.updates, updates, "{seconds} s");
            let steps = (REPLICAS + 1) * plan.updates as u32 - 1;
            assert!(
                plan.lead + plan.step * steps <= plan.load - plan.lead,
                "{seconds} s: {plan:?}"
            );
            assert!(plan.step > LATE || seconds < 6, "{seconds} s: {plan:?}");
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
