//! All loads and faults together, for a long time: 200 clients of six kinds, a rollout every 5 s,
//! and faults that the contract covers. No request may fail, no keep-alive connection may be lost,
//! and memory, descriptors and threads must not grow. 20 s by default, `EBBTIDE_SOAK=60s` in CI,
//! `EBBTIDE_SOAK=30m` in full, best in a release build.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ebbtide::command::demo::client::{Client, Failure};
use ebbtide::command::demo::fleet::{Fleet, Options};
use ebbtide::command::demo::proxy::{Proxy, config};
use ebbtide::routing::drains::KEPT;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::alone::{alone, beside_others};
use super::listen::listen;
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::manifests::{endpoint, service, slice};
use crate::support::memory::own_bytes;
use crate::support::vitals::open_descriptors;
use crate::support::wait::eventually;

/// The clients of each kind: 200 in all.
const KINDS: [(Kind, usize); 6] = [
    (Kind::KeepAlive, 80),
    (Kind::NewConnection, 30),
    (Kind::Upload, 20),
    (Kind::LongPoll, 30),
    (Kind::Echo, 20),
    (Kind::Tunnel, 20),
];
/// Longer than any promised response takes.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    KeepAlive,
    NewConnection,
    /// A PUT with a body that fits the replay buffer.
    Upload,
    LongPoll,
    /// A TCP connection. Its endpoints are not rolled, because a process that exits takes its
    /// connections with it.
    Echo,
    /// `101`, then bytes. Its endpoints are not rolled, like those of `Echo`.
    Tunnel,
}

/// What the clients experienced.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    /// Keep-alive connections of clients that ended (contract 1.5).
    lost_sockets: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
}

#[tokio::test]
async fn soak() {
    let _alone = alone().await;
    let wanted = std::env::var("EBBTIDE_SOAK").unwrap_or("20s".into());
    let time = humantime::parse_duration(&wanted).unwrap();
    // Each process ends up to 50 ms before or after its manifest reports it.
    let mut fleet = Fleet::start(Options {
        replicas: 4,
        ..Options::new(BINARY)
    })
    .await
    .unwrap();
    let steady = listen(talk).await;
    let half = listen(half_an_answer).await;
    write_steady(&fleet, steady);
    write(
        &fleet,
        "past.json",
        &service("past", json!({"ebbtide.dev/join-check": "off"})),
    );
    let more = "listeners: [";
    let text = config(&fleet.manifests(), "workers: 2\ntimeouts: {upstreamIdle: 5s}\n").replace(
        more,
        "listeners: [{name: tcp, address: '127.0.0.1:0', service: web/steady, port: 80, protocol: tcp},\n\
         {name: steady, address: '127.0.0.1:0', service: web/steady, port: 80, protocol: http},\n\
         {name: past, address: '127.0.0.1:0', service: web/past, port: 80, protocol: tcp},\n",
    );
    let proxy = Proxy::start(
        BINARY.as_ref(),
        fleet.folder(),
        &text,
        &["web", "tcp", "steady", "past"],
    )
    .await
    .unwrap();
    fill_what_is_kept(&fleet, &proxy).await;
    let pid = proxy.pid().unwrap();
    let (web, tcp, tunnels) = (
        proxy.web().unwrap(),
        proxy.listeners["tcp"],
        proxy.listeners["steady"],
    );
    wait_for_answer(web).await;
    wait_for_answer(tunnels).await;
    let fresh = (open_descriptors(pid), threads(pid));

    let (tally, stop) = (Arc::new(Tally::default()), CancellationToken::new());
    let mut clients = JoinSet::new();
    for (kind, count) in KINDS {
        for _ in 0..count {
            let to = match kind {
                Kind::Echo => tcp,
                Kind::Tunnel => tunnels,
                _ => web,
            };
            clients.spawn(client(kind, to, tally.clone(), stop.clone()));
        }
    }
    let begun = Instant::now();
    let (mut rollouts, mut faults, mut memory) = (0, 0, Vec::new());
    while begun.elapsed() < time {
        let due = Instant::now() + Duration::from_secs(5);
        fleet
            .roll(&format!("v{}", rollouts + 2), Duration::from_millis(100))
            .await
            .unwrap();
        rollouts += 1;
        fault(&mut fleet, rollouts, half).await;
        faults += 1;
        sleep(due.saturating_duration_since(Instant::now())).await;
        let bytes = own_bytes(pid) as f64;
        if rollouts % 12 == 0 {
            println!(
                "after {:.0} s: {:.2} MiB",
                begun.elapsed().as_secs_f64(),
                bytes / f64::from(1 << 20)
            );
        }
        // The first half of the run warms up. UIDs of removed pods are remembered for ten minutes,
        // and a worker keeps as many buffers as were once busy at the same time.
        if begun.elapsed() > time / 2 {
            memory.push((begun.elapsed().as_secs_f64(), bytes));
        }
    }
    stop.cancel();
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    // Idle connections to endpoints are closed within `upstreamIdle`. A client's end is noticed
    // immediately.
    until_settled(pid, fresh).await;
    let active = proxy
        .metric("ebbtide_connections_active", |_| true)
        .await
        .unwrap();
    let after = (open_descriptors(pid), threads(pid));
    let failures = tally.failures.lock().unwrap().clone();
    let failed: u64 = failures.values().sum();
    let slope = slope(&memory) * 3_600.0 / f64::from(1 << 20);
    println!(
        "FIGURE soak {wanted}: 200 clients, {} exchanges, {rollouts} rollouts, {faults} faults: {failed} failed {failures:?}, {} keep-alive \
         connections lost; memory {:.1} MiB at the end, slope {slope:+.2} MiB/h after warm-up; descriptors {} before, {} after; \
         threads {} before, {} after; a {} build",
        tally.done.load(Ordering::Relaxed),
        tally.lost_sockets.load(Ordering::Relaxed),
        own_bytes(pid) as f64 / f64::from(1 << 20),
        fresh.0,
        after.0,
        fresh.1,
        after.1,
        if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
    );
    assert_eq!(failed, 0, "{failures:?}\n{}", proxy.log_tail());
    assert_eq!(tally.lost_sockets.load(Ordering::Relaxed), 0);
    assert_eq!(active, 0.0);
    for (kind, _) in KINDS {
        assert!(tally.done.load(Ordering::Relaxed) > 0, "{kind:?}");
    }
    // In less time a slope is noise, because buffers have not reached their full number.
    if time >= Duration::from_secs(1_800) {
        assert!(slope < 1.0, "memory grows by {slope:.2} MiB an hour");
    }
}

/// One fault beside the rollout. The kinds take turns.
async fn fault(fleet: &mut Fleet, turn: usize, half: SocketAddr) {
    let ids = fleet.ids();
    match turn % 3 {
        // A process is killed. Its pod would restart, and is replaced here.
        0 => {
            fleet.crash(ids[0]).await.unwrap();
            sleep(Duration::from_millis(300)).await;
            fleet.replace(ids[0], "crashed").await.unwrap();
        }
        // An address that nothing listens on.
        1 => {
            let closed = std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            write_faulty(fleet, Some(closed));
            sleep(Duration::from_millis(500)).await;
            write_faulty(fleet, None);
        }
        // An endpoint that ends in the middle of a response head, and is then removed.
        _ => {
            write_faulty(fleet, Some(half));
            sleep(Duration::from_millis(20)).await;
            write_faulty(fleet, None);
        }
    }
}

async fn client(kind: Kind, to: SocketAddr, tally: Arc<Tally>, stop: CancellationToken) {
    let mut http: Option<Client> = None;
    let mut raw: Option<TcpStream> = None;
    while !stop.is_cancelled() {
        let outcome = timeout(PATIENCE, once(kind, to, &mut http, &mut raw, &tally)).await;
        match outcome.unwrap_or_else(|_| Err("timeout".into())) {
            Ok(()) => _ = tally.done.fetch_add(1, Ordering::Relaxed),
            Err(why) => {
                (http, raw) = (None, None);
                *tally
                    .failures
                    .lock()
                    .unwrap()
                    .entry(format!("{kind:?}: {why}"))
                    .or_default() += 1;
            }
        }
        sleep(Duration::from_millis(fastrand::u64(20..200))).await;
    }
}

/// One exchange of the client's kind.
async fn once(
    kind: Kind,
    to: SocketAddr,
    http: &mut Option<Client>,
    raw: &mut Option<TcpStream>,
    tally: &Tally,
) -> Result<(), String> {
    let body = vec![b'u'; 40_000];
    let (method, path, body): (_, _, &[u8]) = match kind {
        Kind::KeepAlive | Kind::NewConnection => ("GET", "/", b""),
        Kind::Upload => ("PUT", "/slow?ms=20", &body),
        Kind::LongPoll => ("GET", "/slow?ms=1500", b""),
        Kind::Echo | Kind::Tunnel => {
            let stream = match raw {
                Some(stream) => stream,
                None => raw.insert(open(kind, to).await.map_err(|error| error.to_string())?),
            };
            return echoed(stream).await.map_err(|error| error.to_string());
        }
    };
    let client = match http {
        Some(client) => client,
        None => http.insert(
            Client::connect(to)
                .await
                .map_err(|error| error.to_string())?,
        ),
    };
    let response = client
        .exchange(method, path, "", body)
        .await
        .map_err(|failure: Failure| failure.to_string())?;
    tally
        .lost_sockets
        .fetch_add(u64::from(!response.keep_alive), Ordering::Relaxed);
    if kind == Kind::NewConnection || !response.keep_alive {
        *http = None;
    }
    if response.status == 200 {
        Ok(())
    } else {
        Err(format!("status {}", response.status))
    }
}

async fn open(kind: Kind, to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    if kind == Kind::Tunnel {
        let request = b"GET /tunnel HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(request).await?;
        let head = head(&mut stream).await?;
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(io::Error::other(head));
        }
    }
    Ok(stream)
}

async fn echoed(stream: &mut TcpStream) -> io::Result<()> {
    let (sent, mut got) = (fastrand::u64(..).to_be_bytes(), [0; 8]);
    // A first byte that cannot begin a request, because the endpoint would answer a request.
    stream.write_all(&[&[0], sent.as_slice()].concat()).await?;
    let mut zero = [0];
    stream.read_exact(&mut zero).await?;
    stream.read_exact(&mut got).await?;
    if got == sent {
        Ok(())
    } else {
        Err(io::Error::other("other bytes"))
    }
}

/// An endpoint that echoes bytes: immediately, or after `101` if they begin with a request.
async fn talk(mut stream: TcpStream) -> io::Result<()> {
    let mut first = [0];
    stream.read_exact(&mut first).await?;
    if first == *b"G" {
        let upgrade = head(&mut stream).await?.contains("websocket");
        let answer: &[u8] = match upgrade {
            true => b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            false => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        };
        stream.write_all(answer).await?;
        if !upgrade {
            return Ok(());
        }
    } else {
        stream.write_all(&first).await?;
    }
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await.map(|_| ())
}

async fn half_an_answer(mut stream: TcpStream) -> io::Result<()> {
    let _some = stream.read(&mut [0; 4_096]).await?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await
}

/// Reads a head up to and including the empty line.
async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn wait_for_answer(listener: SocketAddr) {
    eventually(&format!("a response at {listener}"), async || {
        let Ok(mut client) = Client::connect(listener).await else {
            return false;
        };
        client
            .exchange("GET", "/", "", b"")
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

/// Waits until the process has no more descriptors and threads than `fresh`. Idle connections to
/// endpoints close within `upstreamIdle`.
async fn until_settled(pid: u32, fresh: (u64, usize)) {
    let what = format!("no more descriptors and threads than {fresh:?}");
    eventually(&what, async || {
        open_descriptors(pid) <= fresh.0 && threads(pid) <= fresh.1
    })
    .await;
}

fn threads(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .count()
}

fn write_steady(fleet: &Fleet, address: SocketAddr) {
    write(fleet, "steady.json", &service("steady", json!({})));
    write(
        fleet,
        "steady-slice.json",
        &Ep::new("steady", address).slice_of("steady", ""),
    );
}

/// Adds and removes as many endpoints of an unused Service as the proxy remembers drains. Otherwise
/// its memory would grow for a quarter of an hour, until it forgets one drain for each new one.
async fn fill_what_is_kept(fleet: &Fleet, proxy: &Proxy) {
    for batch in 0..=KEPT / 100 {
        write_past(fleet, batch);
        eventually(
            &format!("the drains before batch {batch}, and its endpoints"),
            async || {
                let status = proxy.page("/api/v1/status").await.unwrap();
                let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
                let services = status["services"].as_array().unwrap();
                let past = services.iter().find(|it| it["name"] == "past");
                // A batch that has drained is gone from the list.
                past.is_some_and(|past| {
                    let all = past["endpoints"].as_array().unwrap();
                    let of_batch = format!("127.1.{batch}.");
                    let is_it = |address: &str| address.starts_with(&of_batch);
                    all.len() == 100
                        && all.iter().all(|it| {
                            it["state"] == "ready" && is_it(it["address"].as_str().unwrap())
                        })
                })
            },
        )
        .await;
    }
    std::fs::remove_file(fleet.manifests().join("past-slice.json")).unwrap();
}

/// A hundred endpoints at a time, published without a join check.
fn write_past(fleet: &Fleet, batch: usize) {
    let endpoints: Vec<_> = (0..100)
        .map(|n| endpoint(&format!("127.1.{batch}.{n}"), None, [true, true, false]))
        .collect();
    write(
        fleet,
        "past-slice.json",
        &slice("past", "past", ("", 9), &endpoints),
    );
}

/// Adds one endpoint to the fleet's own Service, or removes it.
fn write_faulty(fleet: &Fleet, address: Option<SocketAddr>) {
    match address {
        Some(address) => write(
            fleet,
            "faulty.json",
            &Ep::new("faulty", address).slice_of("shop", "http"),
        ),
        None => std::fs::remove_file(fleet.manifests().join("faulty.json")).unwrap(),
    }
}

/// Replaces a whole manifest by a rename.
fn write(fleet: &Fleet, file: &str, object: &serde_json::Value) {
    let temporary = fleet.folder().join(file);
    std::fs::write(&temporary, object.to_string()).unwrap();
    std::fs::rename(temporary, fleet.manifests().join(file)).unwrap();
}

/// The slope per unit of x, as the median over all pairs of points. One more buffer at the height
/// of a burst is a step, which the median ignores. A leak goes on.
fn slope(points: &[(f64, f64)]) -> f64 {
    let pairs = points
        .iter()
        .enumerate()
        .flat_map(|(i, a)| points[i + 1..].iter().map(move |b| (a, b)));
    let mut slopes: Vec<f64> = pairs.map(|(a, b)| (b.1 - a.1) / (b.0 - a.0)).collect();
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or_default()
}

#[test]
fn a_leak_has_a_slope_and_a_step_has_none() {
    let _turn = beside_others();
    let series = |of: fn(u32) -> f64| (0..180).map(|x| (f64::from(x), of(x))).collect::<Vec<_>>();
    assert_eq!(slope(&series(|x| if x < 60 { 5.0 } else { 6.0 })), 0.0);
    assert_eq!(slope(&series(|x| f64::from(x) * 2.0)), 2.0);
    let in_steps = slope(&series(|x| f64::from(x / 12) * 12.0));
    assert!((0.9..1.1).contains(&in_steps), "{in_steps}");
    assert_eq!(slope(&[]), 0.0);
}
