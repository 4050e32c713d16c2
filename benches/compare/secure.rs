//! The rows of TLS, HTTP/2 and gRPC, by the load generators of others: fortio and h2load.
//!
//! Load and endpoints need more of their core for these than for HTTP/1.1, so they may be what a rate ends
//! at. What a request costs the proxy says more.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::guard::{self, Guard};
use crate::measure;
use crate::peers::{self, Kind, Mode, Peer, Purpose};
use crate::results::Better;
use crate::rows::Bench;

const GROUP: &str = "secure";

/// A load from these cores, to this address, for some seconds.
type Load<'a> = &'a dyn Fn(&[usize], SocketAddr, f64) -> anyhow::Result<Counted>;

/// What a load has counted.
struct Counted {
    good: u64,
    failed: u64,
    seconds: f64,
}

impl Bench {
    /// Handshakes of TLS, HTTP/2 over TLS, and unary calls of gRPC.
    pub fn secure(&mut self) -> anyhow::Result<()> {
        self.handshakes()?;
        self.http2()?;
        self.calls()
    }

    /// A connection with a full handshake (TLS 1.3, P-256) for each request.
    fn handshakes(&mut self) -> anyhow::Result<()> {
        let fortio = self.fortio.clone().context("fortio is missing")?;
        let live = self.endpoints(4)?;
        let load = |cores: &[usize], to: SocketAddr, seconds: f64| {
            let to = format!("https://{to}/1k");
            let options = ["-k", "-keepalive=false", "-c", "16"];
            fortio_load(&fortio, cores, &options, &to, seconds)
        };
        self.each(Mode::Secure, &live, ("TLS", "handshake"), &load);
        Ok(())
    }

    /// One connection, and 64, with 100 streams each.
    fn http2(&mut self) -> anyhow::Result<()> {
        let h2load = peers::on_path("h2load")
            .context("h2load is missing: apt-get install nghttp2-client")?;
        let live = self.endpoints(4)?;
        for clients in ["1", "64"] {
            let load = |cores: &[usize], to: SocketAddr, seconds: f64| {
                h2load_run(&h2load, cores, clients, to, seconds)
            };
            let row = format!("HTTP/2 over TLS, {clients} x 100");
            self.each(Mode::Secure, &live, (&row, "request"), &load);
        }
        Ok(())
    }

    /// fortio's Ping, to fortio's server.
    fn calls(&mut self) -> anyhow::Result<()> {
        let fortio = self.fortio.clone().context("fortio is missing")?;
        let folder = tempfile::tempdir()?;
        let mut servers = Vec::new();
        let mut live = Vec::new();
        for n in 0..4 {
            let at = peers::free_address()?;
            let listens = format!("-grpc-port={at}");
            let off = ["http", "tcp", "udp", "redirect"].map(|it| format!("-{it}-port=disabled"));
            let arguments = [&["server".to_owned(), listens][..], &off].concat();
            let log = folder.path().join(n.to_string());
            servers.push(Guard::start(
                &self.cores.backend,
                &fortio,
                &arguments,
                &log,
            )?);
            live.push(at);
        }
        std::thread::sleep(Duration::from_millis(500));
        let load = |cores: &[usize], to: SocketAddr, seconds: f64| {
            let options = ["-grpc", "-ping", "-c", "32"];
            fortio_load(&fortio, cores, &options, &to.to_string(), seconds)
        };
        self.each(Mode::Grpc, &live, ("gRPC unary", "call"), &load);
        Ok(())
    }

    /// Visits each peer with a load.
    fn each(&mut self, mode: Mode, live: &[SocketAddr], (row, unit): (&str, &str), load: Load<'_>) {
        let mut visit = |b: &mut Self, peer: &mut Peer, kind: Kind, _: usize| {
            load(&b.cores.load, peer.to[0], b.seconds.min(1.0) / 2.0)?;
            let (pids, before) = (peer.pids(), measure::cpu(&peer.pids()));
            let Counted {
                good,
                failed,
                seconds,
            } = load(&b.cores.load, peer.to[0], b.seconds)?;
            let cpu = measure::cpu(&pids) - before;
            ensure!(good > 0, "nothing was answered");
            if failed > 0 {
                let text = format!(
                    "{}: {row}: {failed} of {} failed",
                    kind.name(),
                    good + failed
                );
                b.results.note(GROUP, text);
            }
            let rate = good as f64 / seconds;
            let each = cpu.as_secs_f64() * 1e6 / good as f64;
            b.results.add(
                GROUP,
                &format!("{row}: {unit}s/s"),
                Better::More,
                kind,
                rate,
            );
            let name = format!("{row}: CPU-µs a {unit}");
            b.results.add(GROUP, &name, Better::Less, kind, each);
            Ok(())
        };
        self.in_turn(GROUP, mode, Purpose::Load, self.rounds, live, &mut visit);
    }
}

fn fortio_load(
    fortio: &Path,
    cores: &[usize],
    options: &[&str],
    to: &str,
    seconds: f64,
) -> anyhow::Result<Counted> {
    let time = format!("{seconds:.1}s");
    let rest = [
        "-quiet",
        "-allow-initial-errors",
        "-qps",
        "0",
        "-t",
        &time,
        "-json",
        "-",
        to,
    ];
    let arguments = [&["load"][..], options, &rest].concat();
    let text = run(fortio, cores, &arguments, seconds)?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let codes = json["RetCodes"]
        .as_object()
        .context("fortio counted nothing")?;
    let count = |good: bool| -> u64 {
        let of = codes
            .iter()
            .filter(|(code, _)| (*code == "200" || *code == "SERVING") == good);
        of.filter_map(|(_, count)| count.as_u64()).sum()
    };
    // Nanoseconds.
    let took = json["ActualDuration"]
        .as_f64()
        .context("fortio has no duration")?
        / 1e9;
    Ok(Counted {
        good: count(true),
        failed: count(false),
        seconds: took,
    })
}

fn h2load_run(
    h2load: &Path,
    cores: &[usize],
    clients: &str,
    to: SocketAddr,
    seconds: f64,
) -> anyhow::Result<Counted> {
    let to = format!("https://{to}/1k");
    // It takes whole numbers only.
    let time = format!("{:.0}ms", seconds * 1e3);
    let arguments = ["-D", &time, "-c", clients, "-m", "100", &to];
    let text = run(h2load, cores, &arguments, seconds)?;
    // "finished in 1.00s, …", "requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, …"
    let line = text.lines().find(|line| line.starts_with("requests: "));
    let number = |what: &str| {
        let part = line?.split([':', ',']).find(|part| part.ends_with(what))?;
        part.split_whitespace().next()?.parse::<u64>().ok()
    };
    match (number("succeeded"), number("failed")) {
        (Some(good), Some(failed)) => Ok(Counted {
            good,
            failed,
            seconds,
        }),
        _ => bail!("h2load counted nothing: {text}"),
    }
}

fn run(
    program: &Path,
    cores: &[usize],
    arguments: &[&str],
    seconds: f64,
) -> anyhow::Result<String> {
    let arguments: Vec<String> = arguments.iter().map(|it| (*it).to_owned()).collect();
    guard::run(
        cores,
        program,
        &arguments,
        Duration::from_secs_f64(seconds + 30.0),
    )
}
