//! `cargo bench --bench scale`: what an event, a Service and an endpoint cost as a cluster grows,
//! and how soon a drain begins while the proxy has other work.
//!
//! A complete run writes its tables into `benches/README.md`. No measured time makes it fail. It
//! runs in a network namespace of its own, where all of 10.0.0.0/8 is this machine: that needs
//! `unshare` and `ip`, and the right to make a namespace. Nothing outside is connected to.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

#[path = "../../tests/discovery/kubernetes/api.rs"]
#[allow(dead_code, unused_imports, clippy::unwrap_used)]
// A part of the tests, which use more of it.
mod api;
#[path = "../compare/guard.rs"]
#[allow(dead_code)] // The other bench uses more of it.
mod guard;
mod lab;
mod measure;
mod report;
mod trouble;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;

use lab::{Lab, Plan};
use report::{Cost, Reaction, Report};
use trouble::{Scene, Under};

#[derive(Parser)]
#[command(about = "What Ebbtide costs at size: see benches/README.md")]
struct Options {
    /// A tenth of the size, to see that all works; its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Only these parts: cost, reaction, memory
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
    /// Only rows of `reaction` whose names contain this
    #[arg(long, default_value = "")]
    row: String,
    /// Write the tables into benches/README.md
    #[arg(long)]
    write: bool,
    /// The argument that cargo bench gives to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == "guard") {
        let cores: Vec<usize> = arguments[2]
            .split(',')
            .filter_map(|it| it.parse().ok())
            .collect();
        return guard::main(&cores, &arguments[4..]);
    }
    if std::env::var_os(INSIDE).is_none() {
        return Err(enter_namespace(&arguments[1..]));
    }
    run(&Options::parse()).map(|()| std::process::ExitCode::SUCCESS)
}

/// Runs this program again in a network namespace of its own. Returns only if that fails.
fn enter_namespace(arguments: &[String]) -> anyhow::Error {
    let network = "ip link set lo up && ip route add local 10.0.0.0/8 dev lo && exec \"$@\"";
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--net", "sh", "-c", network, "sh"]);
    let program = std::env::current_exe().unwrap_or_default();
    let failed = command.arg(program).args(arguments).env(INSIDE, "1").exec();
    anyhow::Error::new(failed).context("unshare (util-linux) is needed")
}

fn run(options: &Options) -> anyhow::Result<()> {
    ebbtide::net::socket::raise_descriptor_limit();
    lab::open_endpoints()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let servers = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    let wants = |part: &str| options.parts.is_empty() || options.parts.iter().any(|it| it == part);
    let scale = if options.quick { 10 } else { 1 };
    let mut report = Report::default();
    if wants("cost") {
        for services in [10, 500, 3_000, 5_000] {
            let services = if services > 10 {
                services / scale
            } else {
                services
            };
            report.add_cost(
                cost(&servers, services).with_context(|| format!("{services} Services"))?,
            );
        }
    }
    if wants("reaction") {
        for scene in trouble::scenes(3_000 / scale) {
            if scene.name.contains(&options.row) {
                let name = scene.name;
                report.add_reaction(reaction(&servers, scene).with_context(|| name)?);
            }
        }
    }
    if wants("memory") {
        let (services, endpoints) = (1_000 / scale, 10_000 / scale);
        let empty = lab::start_from_files(0, 0)?.0;
        let each = |bytes: u64, of: usize| bytes.saturating_sub(empty) as f64 / of as f64;
        let of_endpoints = lab::start_from_files(1, endpoints)?.0;
        report.add_fact("private bytes an endpoint", each(of_endpoints, endpoints));
        let of_services = lab::start_from_files(services, 1)?.0;
        report.add_fact(
            "private bytes a Service of one endpoint, with its nodePort",
            each(of_services, services),
        );
        let (bytes, took) = lab::start_from_files(5_000 / scale, 20)?;
        report.add_fact(
            "5,000 Services with 100,000 endpoints, from files: start until ready, ms",
            took.as_secs_f64() * 1e3,
        );
        report.add_fact("the same: private MB", bytes as f64 / 1e6);
    }
    report.finish(options.write)
}

/// What events cost the control thread at this number of Services.
fn cost(servers: &tokio::runtime::Handle, services: usize) -> anyhow::Result<Cost> {
    let plan = Plan {
        services,
        shop: trouble::SHOP,
        silent: 0,
        log_stalls: false,
    };
    let lab = Lab::start(servers, plan)?;
    let measured = |thread: &str, count: usize, every_us: u64, step: &dyn Fn(usize)| {
        let before = lab.cpu(thread);
        let mut due = Instant::now();
        for n in 0..count {
            step(n);
            due += Duration::from_micros(every_us);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        std::thread::sleep(Duration::from_millis(300));
        (lab.cpu(thread) - before).as_secs_f64() * 1e6 / count as f64
    };
    let no_op = measured("control", 600, 3_333, &|n| {
        lab.touch_shop_pod(n % trouble::SHOP)
    });
    let toggle = |n: usize| lab.set_ready(n % services.min(10), n / services.min(10) % 2 == 1);
    let change = measured("control", 400, 5_000, &toggle);
    let workers = measured("worker", 400, 5_000, &toggle);
    let removal = measured("control", services.min(50) / 2, 20_000, &|_| {
        lab.delete_services(1)
    });
    Ok(Cost {
        services,
        no_op,
        change,
        workers,
        removal,
    })
}

/// How soon drains begin in this scene, and how soon the proxy ends.
fn reaction(servers: &tokio::runtime::Handle, scene: Scene) -> anyhow::Result<Reaction> {
    let lab = Arc::new(Lab::start(servers, scene.plan)?);
    let before = lab.reactions()?;
    let troubles = Under::start(&lab, scene.troubles);
    std::thread::sleep(Duration::from_millis(300));
    for n in 0..DRAINS {
        lab.delete_shop_pod(n);
        std::thread::sleep(Duration::from_millis(15));
    }
    troubles.stop();
    let counts: Vec<(f64, u64)> = lab
        .reactions()?
        .iter()
        .zip(before)
        .map(|((bound, now), (_, before))| (*bound, now - before))
        .collect();
    let troubles = Under::start(&lab, scene.troubles);
    std::thread::sleep(Duration::from_millis(300));
    let ended = lab.signal_and_wait()?;
    troubles.stop();
    let allowed = Duration::from_secs(lab::LAME_DUCK_S + lab::SHUTDOWN_S + 2);
    Ok(Reaction {
        name: scene.name,
        wanted_ms: scene.wanted_ms,
        counts,
        ended,
        allowed,
    })
}

/// Drains in a row of the table of reactions.
const DRAINS: usize = 200;
const INSIDE: &str = "EBBTIDE_BENCH_INSIDE";
