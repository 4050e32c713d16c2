//! `cargo bench --bench compare`: Ebbtide beside HAProxy, nginx, Caddy and Pingap, on the same
//! cores with the same load.
//!
//! Writes the tables (`benches/README.md` after a complete run, `target/compare.md` after every
//! run) and `target/compare.json`. No measured time makes it fail. It needs Linux. If a peer or a
//! tool is missing, it names the peer and how to install it, and the cells stay empty. All
//! connections are on loopback, each step has a time limit, and no process or file is left behind.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

mod backend;
mod control;
mod guard;
mod load;
mod machine;
mod measure;
mod peers;
mod report;
mod results;
mod rows;
#[path = "../scene/mod.rs"]
#[allow(clippy::unwrap_used)] // A bench that cannot build its scene should stop.
mod scene;
mod secure;
mod targets;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use backend::Backend;
use machine::Machine;
use peers::{ALL, Kind, Mode};
use results::Results;
use rows::{Bench, Cores, GROUPS};

#[derive(Parser)]
#[command(about = "Ebbtide beside its peers: see benches/README.md")]
struct Options {
    /// Groups of rows to measure: keepalive, tcp, connections, latency, bulk, idle, slow, rollout,
    /// secure, control
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Peers to measure: ebbtide, direct, haproxy, nginx, caddy, pingap
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Rounds of each row
    #[arg(long)]
    rounds: Option<usize>,
    /// The length of one measurement
    #[arg(long)]
    seconds: Option<f64>,
    /// One short round, to see whether all works; its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Write benches/README.md even if not all rows and peers were measured
    #[arg(long)]
    write: bool,
    /// Name what is missing and how to install it, and measure nothing
    #[arg(long)]
    list: bool,
    /// The argument that cargo bench gives to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().collect();
    let cores = |list: &String| {
        list.split(',')
            .filter_map(|core| core.parse().ok())
            .collect::<Vec<usize>>()
    };
    // The bench starts its own binary as guard, backend, load and window.
    match arguments.get(1).map(String::as_str) {
        Some("guard") => guard::main(&cores(&arguments[2]), &arguments[4..]),
        Some("backend") => backend::main(&cores(&arguments[2])).map(|()| ExitCode::SUCCESS),
        Some("load") => {
            load::main(&cores(&arguments[2]), &arguments[3]).map(|()| ExitCode::SUCCESS)
        }
        Some("window") => measure::window(arguments[2].parse()?, arguments[3].parse()?)
            .map(|()| ExitCode::SUCCESS),
        _ => compare(&Options::parse()).map(|()| ExitCode::SUCCESS),
    }
}

fn compare(options: &Options) -> anyhow::Result<()> {
    let kinds: Vec<Kind> = if options.peers.is_empty() {
        ALL.to_vec()
    } else {
        named(&options.peers)?
    };
    let groups = if options.rows.is_empty() {
        GROUPS.map(str::to_owned).to_vec()
    } else {
        options.rows.clone()
    };
    for group in &groups {
        anyhow::ensure!(
            GROUPS.contains(&group.as_str()),
            "there is no group of rows {group}; the groups are {}",
            GROUPS.join(", ")
        );
    }
    let (wrk, fortio) = (
        peers::on_path("wrk"),
        peers::on_path("fortio").or_else(lab_fortio),
    );
    let missing = missing(&kinds, wrk.is_some(), fortio.is_some());
    missing.iter().for_each(|line| eprintln!("{line}"));
    if options.list {
        return Ok(());
    }
    ebbtide::net::socket::raise_descriptor_limit();
    let cores = Cores::of(std::thread::available_parallelism()?.get());
    let words = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect::<Vec<_>>()
        .join(" ");
    let command = format!(
        "cargo bench --bench compare{}{words}",
        if words.is_empty() { "" } else { " -- " }
    );
    let placed = format!(
        "proxies on {}, load on {}, endpoints on {}",
        guard::list(&cores.proxy),
        guard::list(&cores.load),
        guard::list(&cores.backend)
    );
    let machine = Machine::look(&command, &placed);
    let (rounds, seconds) = if options.quick { (1, 0.7) } else { (7, 1.0) };
    let mut bench = Bench {
        backend: Backend::start(&cores.backend)?,
        cores,
        seconds: options.seconds.unwrap_or(seconds),
        rounds: options.rounds.unwrap_or(rounds).max(1),
        quick: options.quick,
        results: Results::of(&kinds),
        kinds,
        wrk,
        fortio,
        progress: progress(),
    };
    let begun = Instant::now();
    for group in &groups {
        let note = missing.iter().filter(|_| group == &groups[0]);
        note.for_each(|line| bench.results.note(group, line.clone()));
        if !std::io::stderr().is_terminal() {
            eprintln!("{:>5.0} s  {group}", begun.elapsed().as_secs_f64());
        }
        if let Err(error) = bench.run(group) {
            eprintln!("{group}: {error:#}");
            bench.results.failed(group, Kind::Ebbtide, &error);
        }
    }
    bench.progress.finish_and_clear();
    let (mut markdown, json) = (
        report::markdown(&bench.results, &machine),
        report::json(&bench.results, &machine),
    );
    markdown += &format!(
        "\nIt took {:.0} minutes.\n",
        begun.elapsed().as_secs_f64() / 60.0
    );
    print!("{markdown}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::create_dir_all(root.join("target"))?;
    std::fs::write(root.join("target/compare.json"), format!("{json:#}\n"))
        .context("target/compare.json")?;
    std::fs::write(root.join("target/compare.md"), &markdown).context("target/compare.md")?;
    let whole = options.rows.is_empty() && options.peers.is_empty() && !options.quick;
    if whole || options.write {
        let page = root.join("benches/README.md");
        let by_hand = std::fs::read_to_string(&page).context("benches/README.md")?;
        let by_hand = by_hand.split(MARK).next().unwrap_or_default();
        std::fs::write(&page, format!("{by_hand}{MARK}{markdown}")).context("benches/README.md")?;
    }
    eprintln!(
        "written: target/compare.md, target/compare.json{}",
        if whole { ", benches/README.md" } else { "" }
    );
    Ok(())
}

/// In `benches/README.md`. The text above this line is by hand, and a run keeps it.
const MARK: &str = "<!-- `make compare` writes everything below this line. -->\n\n";

fn named(names: &[String]) -> anyhow::Result<Vec<Kind>> {
    let kind = |name: &String| {
        let found = ALL
            .into_iter()
            .find(|kind| kind.name() == name.split('-').next().unwrap_or_default());
        found.with_context(|| {
            format!(
                "there is no peer {name}; the peers are {}",
                ALL.map(Kind::name).join(", ")
            )
        })
    };
    // The order in which they take turns does not depend on the order on the command line.
    let mut kinds = names.iter().map(kind).collect::<anyhow::Result<Vec<_>>>()?;
    kinds.sort_unstable();
    kinds.dedup();
    Ok(kinds)
}

fn missing(kinds: &[Kind], wrk: bool, fortio: bool) -> Vec<String> {
    let peer = |kind: &Kind| {
        let cure = kind.program().err()?;
        Some(format!(
            "MISSING: {}: its cells are empty; to install it: {cure}",
            kind.name()
        ))
    };
    let mut lines: Vec<String> = kinds.iter().filter_map(peer).collect();
    if !wrk {
        lines.push(
            "MISSING: wrk: the bench's own load measures requests instead; to install it: apt-get install wrk".into(),
        );
    }
    if !fortio {
        lines.push("MISSING: fortio: no second measurement of latencies; to install it: benches/compare/install.sh".into());
    }
    lines
}

/// fortio, where `install.sh` or the build of the test cluster puts it.
fn lab_fortio() -> Option<PathBuf> {
    let lab = peers::tools()
        .parent()?
        .parent()?
        .join("ebbtide-lab/bin/fortio");
    [peers::tools().join("fortio"), lab]
        .into_iter()
        .find(|file| file.is_file())
}

fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {elapsed_precise} {pos} visits, {msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

impl Bench {
    /// Measures one group of rows.
    ///
    /// # Errors
    /// There is no such group, or it could not be measured at all.
    pub fn run(&mut self, group: &str) -> anyhow::Result<()> {
        match group {
            "keepalive" => self.keep_alive(Mode::Http, "keepalive", &[8, 64, 1000]),
            "tcp" => self.keep_alive(Mode::Tcp, "tcp", &[8, 64]),
            "connections" => {
                self.connections(Mode::Http)?;
                self.connections(Mode::Tcp)
            }
            "latency" => self.latency(),
            "bulk" => {
                self.bulk(Mode::Http)?;
                self.bulk(Mode::Tcp)
            }
            "idle" => {
                self.idle(Mode::Tcp)?;
                self.idle(Mode::Http)
            }
            "slow" => self.slow(),
            "rollout" => self.rollout(),
            "secure" => self.secure(),
            "control" => crate::control::run(self),
            _ => anyhow::bail!(
                "there is no group of rows {group}; the groups are {}",
                GROUPS.join(", ")
            ),
        }
    }
}
