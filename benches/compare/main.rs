//! `cargo bench --bench compare`: Ebbtide beside HAProxy, nginx, Caddy and Pingap, on the same cores with the same load.
//!
//! Writes the table (`benches/README.md` after a whole run, `target/compare.md` after any) and `target/compare.json`. Timing
//! never fails it. It needs Linux; a peer or tool that is missing is named, with the way to install it, and its cells stay
//! empty. All of it is on loopback, bounded in time, and leaves no process or file behind.

mod backend;
mod control;
mod guard;
mod load;
mod measure;
mod peers;
mod report;
mod rows;
#[path = "../scene/mod.rs"]
#[allow(clippy::unwrap_used)] // As in the other benches: without its scene one should stop.
mod scene;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use backend::Backend;
use peers::{ALL, Kind, Mode};
use report::{Machine, Results};
use rows::{Bench, Cores, GROUPS};

#[derive(Parser)]
#[command(about = "Ebbtide beside its peers: see benches/README.md")]
struct Options {
    /// Groups of rows: keepalive, tcp, connections, latency, bulk, idle, slow, rollout, control.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// ebbtide, direct, haproxy, nginx, caddy, pingap.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    #[arg(long)]
    rounds: Option<usize>,
    /// Of one measurement.
    #[arg(long)]
    seconds: Option<f64>,
    /// One short round: whether everything works, not what it measures.
    #[arg(long)]
    quick: bool,
    /// Write benches/README.md although not everything was measured.
    #[arg(long)]
    write: bool,
    /// Says what is missing and how to install it, and measures nothing.
    #[arg(long)]
    list: bool,
    /// What cargo bench gives to every bench.
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
    // The processes that this one starts are itself.
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
            "no rows {group}; there are {}",
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
        bench.results.markdown(&machine),
        bench.results.json(&machine),
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
        std::fs::write(root.join("benches/README.md"), &markdown).context("benches/README.md")?;
    }
    eprintln!(
        "written: target/compare.md, target/compare.json{}",
        if whole { ", benches/README.md" } else { "" }
    );
    Ok(())
}

fn named(names: &[String]) -> anyhow::Result<Vec<Kind>> {
    let kind = |name: &String| {
        let found = ALL
            .into_iter()
            .find(|kind| kind.name() == name.split('-').next().unwrap_or_default());
        found.with_context(|| {
            format!(
                "no peer {name}; there are {}",
                ALL.map(Kind::name).join(", ")
            )
        })
    };
    // In the order in which they take turns, whatever order they were named in.
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
            "MISSING: wrk: the bench's own load counts requests instead; to install it: apt-get install wrk".into(),
        );
    }
    if !fortio {
        lines.push("MISSING: fortio: no second opinion on latencies; to install it: benches/compare/install.sh".into());
    }
    lines
}

/// Where the cluster's build or `install.sh` has put it.
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
            "control" => crate::control::run(self),
            _ => anyhow::bail!(
                "no such group of rows: {group}; there are {}",
                GROUPS.join(", ")
            ),
        }
    }
}
