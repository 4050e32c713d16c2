//! The rows that compare Ebbtide with its peers. Each group visits the peers in turn, round after
//! round (A B C A B C …). A visit starts the proxy, measures it, and ends it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;

use crate::backend::Backend;
use crate::guard;
use crate::load::{self, Idle, Report, Running, Spec};
use crate::measure;
use crate::peers::{Kind, Mode, Peer, Purpose};
use crate::results::{Better, Results};

/// The settings and results of one run of the bench.
pub struct Bench {
    /// What runs on which core.
    pub cores: Cores,
    /// The length of one measurement in seconds.
    pub seconds: f64,
    /// Rounds of each row.
    pub rounds: usize,
    /// Whether the run is only a test of the bench.
    pub quick: bool,
    /// The peers to measure.
    pub kinds: Vec<Kind>,
    /// The program wrk, if it is installed.
    pub wrk: Option<PathBuf>,
    /// The program fortio, if it is installed.
    pub fortio: Option<PathBuf>,
    /// The endpoints.
    pub backend: Backend,
    /// What was measured.
    pub results: Results,
    /// The progress on a terminal.
    pub progress: ProgressBar,
}

/// What runs on which core.
pub struct Cores {
    /// The cores of the proxy.
    pub proxy: Vec<usize>,
    /// The cores of the load.
    pub load: Vec<usize>,
    /// The cores of the endpoints.
    pub backend: Vec<usize>,
}

impl Cores {
    /// The proxy has one worker, so it gets one core. If there are only two cores, load and
    /// endpoints share the other one.
    pub fn of(count: usize) -> Self {
        match count {
            0 | 1 => Self {
                proxy: vec![0],
                load: vec![0],
                backend: vec![0],
            },
            2 => Self {
                proxy: vec![0],
                load: vec![1],
                backend: vec![1],
            },
            3 => Self {
                proxy: vec![0],
                load: vec![1],
                backend: vec![2],
            },
            _ => Self {
                proxy: vec![0],
                load: vec![2, 3],
                backend: vec![1],
            },
        }
    }
}

/// All groups of rows, in their order.
pub const GROUPS: [&str; 10] = [
    "keepalive",
    "tcp",
    "connections",
    "latency",
    "bulk",
    "idle",
    "slow",
    "rollout",
    "secure",
    "control",
];

/// What is done with each peer: the peer, what it is, and the round.
pub type Visit<'a> = &'a mut dyn FnMut(&mut Bench, &mut Peer, Kind, usize) -> anyhow::Result<()>;

impl Bench {
    /// Visits the peers of a mode in turn. A peer that fails gets a note, and its cell stays empty.
    pub fn in_turn(
        &mut self,
        group: &'static str,
        mode: Mode,
        purpose: Purpose,
        rounds: usize,
        live: &[SocketAddr],
        visit: Visit<'_>,
    ) {
        for round in 0..rounds {
            for kind in self.kinds.clone() {
                if !kind.speaks(mode) || kind.program().is_err() {
                    continue;
                }
                self.progress.set_message(format!(
                    "{group}: {} ({}/{rounds})",
                    kind.name(),
                    round + 1
                ));
                let peer = Peer::start(kind, mode, purpose, &self.cores.proxy, live, &[]);
                let done = peer.and_then(|mut peer| visit(self, &mut peer, kind, round));
                if let Err(error) = done {
                    self.results.failed(group, kind, &error);
                }
                self.progress.inc(1);
            }
        }
    }

    /// Endpoints that answer immediately.
    pub fn endpoints(&mut self, count: usize) -> anyhow::Result<Vec<SocketAddr>> {
        self.backend.open(count)
    }

    /// Throughput of clients that keep their connections, and what each request costs the proxy.
    /// The numbers of clients are measured one after the other, so peers are compared within
    /// seconds: a minute later the machine may be faster or slower.
    pub fn keep_alive(
        &mut self,
        mode: Mode,
        group: &'static str,
        clients: &[usize],
    ) -> anyhow::Result<()> {
        let live = self.endpoints(4)?;
        for &clients in clients {
            let row = |what: &str| format!("{clients} clients: {what}");
            self.in_turn(
                group,
                mode,
                Purpose::Load,
                self.rounds,
                &live,
                &mut |b, peer, kind, round| {
                    let spec = Spec::new(&peer.to, "/1k", clients, b.seconds);
                    // Before the measurement, this load fills connections, pools and buffers.
                    b.throughput(&Spec {
                        seconds: b.seconds.min(1.0) / 2.0,
                        ..spec.clone()
                    })?;
                    let (pids, before) = (peer.pids(), measure::cpu(&peer.pids()));
                    let report = b.throughput(&spec)?;
                    let cpu = measure::cpu(&pids) - before;
                    b.results.failures(group, kind, &report);
                    b.results.add(
                        group,
                        &row("requests/s"),
                        Better::More,
                        kind,
                        report.requests as f64 / report.seconds,
                    );
                    if kind == Kind::Direct {
                        return Ok(());
                    }
                    let each = cpu.as_secs_f64() * 1e6 / report.requests as f64;
                    b.results
                        .add(group, &row("CPU-µs a request"), Better::Less, kind, each);
                    let busy = 100.0 * cpu.as_secs_f64() / report.seconds;
                    b.results.add(
                        group,
                        &row("the proxy's core busy, %"),
                        Better::Neither,
                        kind,
                        busy,
                    );
                    if round == 0 {
                        let calls = b.counted(peer, live[0], &spec)?;
                        let each = calls.all as f64 / calls.requests as f64;
                        b.results.add(
                            group,
                            &row("system calls a request"),
                            Better::Less,
                            kind,
                            each,
                        );
                    }
                    Ok(())
                },
            );
        }
        Ok(())
    }

    fn throughput(&self, spec: &Spec) -> anyhow::Result<Report> {
        match &self.wrk {
            // wrk measures whole seconds only.
            Some(wrk) if spec.seconds >= 1.0 => load::wrk(wrk, &self.cores.load, spec),
            _ => load::run(&self.cores.load, spec),
        }
    }

    /// Counts system calls and requests during another load, whose times are not used.
    fn counted(
        &self,
        peer: &Peer,
        counter: SocketAddr,
        spec: &Spec,
    ) -> anyhow::Result<measure::Calls> {
        let stretch = if self.quick { 0.5 } else { 1.0 };
        let running = Running::start(
            &self.cores.load,
            &Spec {
                seconds: stretch + 1.2,
                ..spec.clone()
            },
        );
        std::thread::sleep(Duration::from_millis(400));
        let counted =
            measure::system_calls(&peer.pids(), counter, Duration::from_secs_f64(stretch));
        running.finish()?;
        counted
    }

    /// Connections a second, with one request on each, and what each costs the proxy.
    pub fn connections(&mut self, mode: Mode) -> anyhow::Result<()> {
        let live = self.endpoints(8)?;
        let name = if mode == Mode::Http { "HTTP" } else { "TCP" };
        let group = "connections";
        self.in_turn(
            group,
            mode,
            Purpose::Load,
            self.rounds,
            &live,
            &mut |b, peer, kind, round| {
                let spec = Spec {
                    fresh: true,
                    ..Spec::new(&peer.to, "/1k", 32, b.seconds)
                };
                load::run(
                    &b.cores.load,
                    &Spec {
                        seconds: 0.3,
                        ..spec.clone()
                    },
                )?;
                let (pids, before) = (peer.pids(), measure::cpu(&peer.pids()));
                let report = load::run(&b.cores.load, &spec)?;
                let cpu = measure::cpu(&pids) - before;
                b.results.failures(group, kind, &report);
                let rate = report.requests as f64 / report.seconds;
                b.results.add(
                    group,
                    &format!("{name}: connections/s"),
                    Better::More,
                    kind,
                    rate,
                );
                if kind != Kind::Direct {
                    let each = cpu.as_secs_f64() * 1e6 / report.requests as f64;
                    b.results.add(
                        group,
                        &format!("{name}: CPU-µs a connection"),
                        Better::Less,
                        kind,
                        each,
                    );
                    if round == 0 {
                        let calls = b.counted(peer, live[0], &spec)?;
                        let each = calls.all as f64 / calls.requests as f64;
                        b.results.add(
                            group,
                            &format!("{name}: system calls a connection"),
                            Better::Less,
                            kind,
                            each,
                        );
                    }
                }
                Ok(())
            },
        );
        Ok(())
    }

    /// Latencies at one rate for all peers: half of what the slowest peer can do.
    pub fn latency(&mut self) -> anyhow::Result<()> {
        let (live, rate) = (self.endpoints(4)?, self.half_of_the_slowest()?);
        // More rounds than other rows: one stall of the machine in two seconds is the p99.9 of that
        // visit.
        let (group, seconds, rounds) = ("latency", self.seconds * 2.0, self.rounds * 3);
        self.results.note(
            group,
            format!(
                "{rate:.0} requests/s, 64 clients; latencies count from the moment at which a request was due."
            ),
        );
        self.in_turn(
            group,
            Mode::Http,
            Purpose::Load,
            rounds,
            &live,
            &mut |b, peer, kind, round| {
                let spec = Spec {
                    rate: Some(rate),
                    ..Spec::new(&peer.to, "/1k", 64, seconds)
                };
                load::run(
                    &b.cores.load,
                    &Spec {
                        seconds: 0.5,
                        ..spec.clone()
                    },
                )?;
                let report = load::run(&b.cores.load, &spec)?;
                b.results.failures(group, kind, &report);
                b.results
                    .add(group, "p50, µs", Better::Less, kind, report.p50);
                b.results
                    .add(group, "p99, µs", Better::Less, kind, report.p99);
                b.results
                    .add(group, "p99.9, µs", Better::Less, kind, report.p999);
                if round == 0
                    && let Some(fortio) = b.fortio.clone()
                {
                    let (p50, p99) = fortio_latencies(&fortio, &b.cores.load, &spec)?;
                    b.results
                        .add(group, "p50 by fortio, µs", Better::Less, kind, p50);
                    b.results
                        .add(group, "p99 by fortio, µs", Better::Less, kind, p99);
                }
                Ok(())
            },
        );
        Ok(())
    }

    /// Half of the lowest rate: from the keep-alive rows if they were measured, otherwise by a
    /// short load on each peer.
    fn half_of_the_slowest(&mut self) -> anyhow::Result<f64> {
        if let Some(slowest) = self.results.slowest("keepalive", "64 clients: requests/s") {
            return Ok(slowest / 2.0);
        }
        let live = self.endpoints(4)?;
        let mut slowest = f64::INFINITY;
        self.in_turn(
            "latency",
            Mode::Http,
            Purpose::Load,
            1,
            &live,
            &mut |b, peer, _, _| {
                let report = load::run(&b.cores.load, &Spec::new(&peer.to, "/1k", 64, 1.0))?;
                slowest = slowest.min(report.requests as f64 / report.seconds);
                Ok(())
            },
        );
        anyhow::ensure!(slowest.is_finite(), "no peer answered");
        Ok(slowest / 2.0)
    }

    /// Large responses and uploads: throughput and what each GB costs the proxy.
    pub fn bulk(&mut self, mode: Mode) -> anyhow::Result<()> {
        let live = self.endpoints(4)?;
        let name = if mode == Mode::Http { "HTTP" } else { "TCP" };
        let group = "bulk";
        let transfers = [
            ("64 MiB answers", "/64m", 0),
            ("1 MiB answers", "/1m", 0),
            ("64 MiB uploads", "/up", 64 << 20),
        ];
        for (what, path, upload) in transfers {
            self.in_turn(group, mode, Purpose::Bulk, self.rounds, &live, &mut |b, peer, kind, round| {
                let spec = Spec { upload, ..Spec::new(&peer.to, path, 4, b.seconds) };
                load::run(&b.cores.load, &Spec { seconds: 0.3, ..spec.clone() })?;
                let (pids, before) = (peer.pids(), measure::cpu(&peer.pids()));
                let report = load::run(&b.cores.load, &spec)?;
                let cpu = measure::cpu(&pids) - before;
                b.results.failures(group, kind, &report);
                let gb = report.bytes as f64 / 1e9;
                b.results.add(group, &format!("{name} {what}: GB/s"), Better::More, kind, gb / report.seconds);
                if kind == Kind::Direct {
                    return Ok(());
                }
                let each = cpu.as_secs_f64() * 1e3 / gb;
                b.results.add(group, &format!("{name} {what}: CPU-ms a GB"), Better::Less, kind, each);
                if round == 0 && path == "/64m" {
                    let calls = b.counted(peer, live[0], &spec)?;
                    let calls_of = format!("{name} {what}: splice calls seen");
                    b.results.add(group, &calls_of, Better::Neither, kind, calls.splice as f64);
                    if kind == Kind::Haproxy && calls.splice == 0 {
                        anyhow::bail!("HAProxy did not splice, so its {name} figures are lower than they could be");
                    }
                }
                Ok(())
            });
        }
        Ok(())
    }

    /// The memory of idle connections.
    pub fn idle(&mut self, mode: Mode) -> anyhow::Result<()> {
        let count = if self.quick { 1_000 } else { 9_000 };
        let live = self.endpoints(4)?;
        let name = if mode == Mode::Http {
            "HTTP client"
        } else {
            "TCP pair"
        };
        let group = "idle";
        self.in_turn(
            group,
            mode,
            Purpose::Idle,
            1,
            &live,
            &mut |b, peer, kind, _| {
                // Memory that is allocated only once is allocated before the count begins.
                drop(Idle::open(&b.cores.load, &peer.to, 100)?);
                std::thread::sleep(Duration::from_millis(300));
                let (pids, kernel) = (peer.pids(), measure::kernel_bytes());
                let before = measure::private_bytes(&pids);
                let idle = Idle::open(&b.cores.load, &peer.to, count)?;
                std::thread::sleep(Duration::from_millis(500));
                let (after, kernel_after) =
                    (measure::private_bytes(&pids), measure::kernel_bytes());
                drop(idle);
                let each = |bytes: u64| bytes as f64 / count as f64;
                let row = |what: &str| format!("{name}: {what}");
                let held = each(kernel_after.saturating_sub(kernel));
                b.results.add(
                    group,
                    &row("kernel bytes, all ends"),
                    Better::Less,
                    kind,
                    held,
                );
                if kind != Kind::Direct {
                    b.results.add(
                        group,
                        &row("private bytes in all / connections"),
                        Better::Less,
                        kind,
                        each(after),
                    );
                    let grown = each(after.saturating_sub(before));
                    b.results.add(
                        group,
                        &row("private bytes grown / connections"),
                        Better::Less,
                        kind,
                        grown,
                    );
                }
                Ok(())
            },
        );
        self.results.note(group, format!("{count} connections after one exchange each. Peers allocate memory in advance, so the first figure is all memory of the process."));
        Ok(())
    }

    /// Two of twenty endpoints take 2 s for each response. Measures the clients of the other
    /// endpoints.
    pub fn slow(&mut self) -> anyhow::Result<()> {
        let mut live = self.endpoints(18)?;
        live.extend(self.backend.open_slow(2)?);
        let (group, seconds) = ("slow", self.seconds + 2.0);
        self.results.note(
            group,
            "256 clients, closed loop; 2 of 20 endpoints answer after 2 s.".to_owned(),
        );
        self.in_turn(
            group,
            Mode::Http,
            Purpose::Load,
            self.rounds,
            &live,
            &mut |b, peer, kind, _| {
                if kind == Kind::Direct {
                    return Ok(());
                }
                let report = load::run(&b.cores.load, &Spec::new(&peer.to, "/1k", 256, seconds))?;
                b.results.failures(group, kind, &report);
                b.results
                    .add(group, "p99 of the good, µs", Better::Less, kind, report.p99);
                b.results.add(
                    group,
                    "answers/s",
                    Better::More,
                    kind,
                    report.requests as f64 / report.seconds,
                );
                let share = 100.0 * report.slow as f64 / report.requests.max(1) as f64;
                b.results
                    .add(group, "of them slow, %", Better::Less, kind, share);
                Ok(())
            },
        );
        Ok(())
    }

    /// Ten of twenty endpoints are replaced every five seconds, at a constant rate of requests. The
    /// peer learns of the change in one step, and the leaving endpoints die 100 ms later.
    pub fn rollout(&mut self) -> anyhow::Result<()> {
        let rate = self.half_of_the_slowest()?;
        let (rolls, every) = if self.quick { (2, 1.5) } else { (4, 5.0) };
        let rounds = self.rounds.min(2);
        let group = "rollout";
        self.results.note(
            group,
            format!(
                "{rate:.0} requests/s, 64 clients; {rolls} times every {every} s ten of twenty endpoints are replaced."
            ),
        );
        for round in 0..rounds {
            for kind in self.kinds.clone() {
                if !Peer::can_roll(kind) || kind.program().is_err() {
                    continue;
                }
                self.progress.set_message(format!(
                    "{group}: {} ({}/{rounds})",
                    kind.name(),
                    round + 1
                ));
                if let Err(error) = self.roll(kind, rate, rolls, every) {
                    self.results.failed(group, kind, &error);
                }
                self.progress.inc(1);
            }
        }
        Ok(())
    }

    fn roll(&mut self, kind: Kind, rate: f64, rolls: usize, every: f64) -> anyhow::Result<()> {
        let group = "rollout";
        let all = self.endpoints(20 + 10 * rolls)?;
        let (live, spare) = all.split_at(20);
        let mut peer = Peer::start(
            kind,
            Mode::Http,
            Purpose::Rollout,
            &self.cores.proxy,
            live,
            spare,
        )?;
        let spec = Spec {
            rate: Some(rate),
            ..Spec::new(&peer.to, "/1k", 64, self.seconds.max(2.0))
        };
        let quiet = load::run(&self.cores.load, &spec)?;
        let seconds = every * rolls as f64;
        let running = Running::start(&self.cores.load, &Spec { seconds, ..spec });
        let replaced = self.replace(&mut peer, &all, rolls, every);
        let report = running.finish()?;
        replaced?;
        self.backend.close(&all)?;
        let add = &mut self.results;
        add.add(
            group,
            "failed requests",
            Better::Less,
            kind,
            report.failed as f64,
        );
        add.add(
            group,
            "clients' connections ended",
            Better::Less,
            kind,
            report.reconnects as f64,
        );
        add.add(
            group,
            "requests/s, rolling",
            Better::More,
            kind,
            report.requests as f64 / report.seconds,
        );
        add.add(group, "p99 quiet, µs", Better::Less, kind, quiet.p99);
        add.add(group, "p99 rolling, µs", Better::Less, kind, report.p99);
        add.add(
            group,
            "p99 rolling / quiet",
            Better::Less,
            kind,
            report.p99 / quiet.p99,
        );
        add.add(group, "longest, ms", Better::Less, kind, report.max / 1e3);
        Ok(())
    }

    fn replace(
        &mut self,
        peer: &mut Peer,
        all: &[SocketAddr],
        rolls: usize,
        every: f64,
    ) -> anyhow::Result<()> {
        let (stay, mut old) = (&all[..10], &all[10..20]);
        for roll in 0..rolls {
            std::thread::sleep(Duration::from_secs_f64(every / 2.0));
            let new = &all[20 + 10 * roll..30 + 10 * roll];
            let live = [stay, new].concat();
            peer.update(&live, old)?;
            std::thread::sleep(DEATH);
            self.backend.close(old)?;
            old = new;
            std::thread::sleep(Duration::from_secs_f64(every / 2.0).saturating_sub(DEATH));
        }
        Ok(())
    }
}

/// Latencies at the same rate by fortio. It counts from the moment at which a request was sent, so
/// a stall appears in fewer requests.
fn fortio_latencies(
    fortio: &std::path::Path,
    cores: &[usize],
    spec: &Spec,
) -> anyhow::Result<(f64, f64)> {
    let to = spec
        .to
        .first()
        .map(|to| format!("http://{to}{}", spec.path))
        .unwrap_or_default();
    let (rate, clients) = (
        spec.rate.unwrap_or(1.0).to_string(),
        spec.clients.to_string(),
    );
    let time = format!("{:.1}s", spec.seconds);
    let arguments = [
        "load",
        "-quiet",
        "-qps",
        &rate,
        "-c",
        &clients,
        "-t",
        &time,
        "-uniform",
        "-nocatchup",
        "-r",
        "0.000002",
        "-p",
        "50,99",
        "-json",
        "-",
        &to,
    ];
    let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    let text = guard::run(
        cores,
        fortio,
        &arguments,
        Duration::from_secs_f64(spec.seconds + 30.0),
    )?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let value = |n: usize| {
        json["DurationHistogram"]["Percentiles"][n]["Value"]
            .as_f64()
            .unwrap_or(f64::NAN)
            * 1e6
    };
    Ok((value(0), value(1)))
}

/// The time from the message that an endpoint leaves to its death.
const DEATH: Duration = Duration::from_millis(100);
