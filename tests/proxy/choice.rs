//! The choice of an endpoint in the real proxy: equal shares, new endpoints, slow endpoints, and
//! endpoints that must get nothing (contract 1.8 and 1.9). A new endpoint gets its share and is not
//! flooded. The pick itself is tested in `src/proxy/balancer.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ebbtide::command::demo::client::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::ask::get;
use crate::proxy::scripted::Scripted;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An HTTP endpoint that counts its requests and answers each after a delay.
struct Counting {
    endpoint: Scripted,
    requests: Arc<AtomicUsize>,
}

impl Counting {
    async fn start(takes: Duration) -> Self {
        let requests = Arc::new(AtomicUsize::new(0));
        let count = requests.clone();
        let endpoint = Scripted::start(move |mut stream: TcpStream, _| {
            let count = count.clone();
            async move {
                let mut buf = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buf).await {
                    // The proxy sends one request at a time, and each fits one segment.
                    assert!(buf[..n].ends_with(b"\r\n\r\n"));
                    count.fetch_add(1, Ordering::SeqCst);
                    if !takes.is_zero() {
                        tokio::time::sleep(takes).await;
                    }
                    if stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            }
        })
        .await;
        Self { endpoint, requests }
    }

    /// `count` such endpoints, and their entries for the slices.
    async fn many(count: usize, takes: Duration) -> (Vec<Self>, Vec<Ep>) {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(Self::start(takes).await);
        }
        let entries = all
            .iter()
            .enumerate()
            .map(|(n, e)| Ep::new(&format!("e{n}"), e.endpoint.address))
            .collect();
        (all, entries)
    }

    fn got(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn total(endpoints: &[Counting]) -> usize {
    endpoints.iter().map(Counting::got).sum()
}

/// `clients` keep-alive clients that send until `stop` returns true. Returns all response times.
async fn load(
    rig: &Rig,
    clients: usize,
    stop: impl Fn() -> bool + Clone + Send + 'static,
) -> Vec<Duration> {
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (address, stop) = (rig.web(), stop.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(address).await.unwrap();
                let mut times = Vec::new();
                while !stop() {
                    let began = Instant::now();
                    let answer = get(&mut client).await;
                    assert_eq!(answer.status, 200);
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(soon("the load's end", task).await.unwrap());
    }
    times
}

/// A rollout in its middle: four endpoints of one version, two of the other, all equal.
#[tokio::test]
async fn four_and_two_share_two_to_one_over_10_000_requests() {
    let (all, entries) = Counting::many(6, Duration::ZERO).await;
    let rig = Rig::start("").await;
    rig.endpoints(&entries);
    rig.usable(6).await;
    let sent = Arc::new(AtomicUsize::new(0));
    load(&rig, 8, move || {
        sent.fetch_add(1, Ordering::SeqCst) >= 10_000
    })
    .await;
    assert_eq!(total(&all), 10_000);
    let two = total(&all[4..]);
    assert!(
        (3_167..=3_500).contains(&two),
        "{two} of 10,000 went to two of six"
    );
}

#[tokio::test]
async fn an_endpoint_that_joins_under_load_is_not_flooded_http() {
    let (all, entries) = Counting::many(4, Duration::from_millis(20)).await;
    let rig = Rig::start("").await;
    rig.endpoints(&entries[..3]);
    rig.usable(3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let watch = async {
        let all = &all;
        eventually("three under load", async || total(all) > 600).await;
        rig.endpoints(&entries);
        rig.usable(4).await;
        let before = (total(all), all[3].got());
        eventually("1,000 more", async || total(all) >= before.0 + 1_000).await;
        let (others, joined) = (total(all) - before.0, all[3].got() - before.1);
        stop.store(true, Ordering::SeqCst);
        (joined, others)
    };
    let ((joined, of), _) = tokio::join!(
        watch,
        load(&rig, 200, move || stopped.load(Ordering::SeqCst))
    );
    assert!(
        joined * 100 <= of * 37,
        "{joined} of {of} requests where a quarter is fair"
    );
    assert!(
        joined * 100 >= of * 10,
        "{joined} of {of} requests: the new endpoint must get some"
    );
}

#[tokio::test]
async fn an_endpoint_that_joins_gets_its_share_of_tcp_connections() {
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(echo().await);
    }
    let entries: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(n, e)| Ep::new(&format!("e{n}"), e.endpoint.address))
        .collect();
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&entries[..3]);
    rig.usable(3).await;
    let usable = Instant::now();
    let mut open = Vec::new();
    for _ in 0..150 {
        open.push(said_hello(&rig).await);
    }
    for old in &all[..3] {
        // Active and connecting ones count, so long connections are spread evenly.
        assert!(
            (40..=60).contains(&old.got()),
            "{} of 150 on one of three",
            old.got()
        );
    }
    // Endpoints that join within a moment of each other are equals.
    eventually("the three no longer count as new", async || {
        usable.elapsed() > Duration::from_millis(500)
    })
    .await;
    rig.endpoints(&entries);
    rig.usable(4).await;
    for _ in 0..100 {
        open.push(said_hello(&rig).await);
    }
    let joined = all[3].got();
    assert!(
        (10..=40).contains(&joined),
        "{joined} of 100 connections where a quarter is fair"
    );
}

/// A TCP endpoint that echoes, and counts the connections that sent something.
async fn echo() -> Counting {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let endpoint = Scripted::start(move |mut stream: TcpStream, _| {
        let count = count.clone();
        async move {
            let mut buf = [0; 64];
            let mut first = true;
            while let Ok(n @ 1..) = stream.read(&mut buf).await {
                count.fetch_add(usize::from(std::mem::take(&mut first)), Ordering::SeqCst);
                if stream.write_all(&buf[..n]).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    Counting { endpoint, requests }
}

async fn said_hello(rig: &Rig) -> TcpStream {
    let mut stream = TcpStream::connect(rig.web()).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    soon("an echo", stream.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"hello");
    stream
}

#[tokio::test]
async fn one_slow_endpoint_among_eleven_does_not_set_the_p99() {
    let (mut all, mut entries) = Counting::many(10, Duration::from_millis(1)).await;
    all.push(Counting::start(Duration::from_millis(400)).await);
    entries.push(Ep::new("slow", all[10].endpoint.address));
    let rig = Rig::start("").await;
    rig.endpoints(&entries);
    rig.usable(11).await;
    // Until the slow endpoint has answered once, the proxy cannot know that it is slow.
    let slow = all[10].requests.clone();
    let warm = Instant::now();
    load(&rig, 8, move || {
        slow.load(Ordering::SeqCst) > 0 && warm.elapsed() > Duration::from_millis(800)
    })
    .await;
    let (before, before_slow) = (total(&all), all[10].got());
    let sent = Arc::new(AtomicUsize::new(0));
    let mut times = load(&rig, 8, move || {
        sent.fetch_add(1, Ordering::SeqCst) >= 4_000
    })
    .await;
    let (after, slow) = (total(&all) - before, all[10].got() - before_slow);
    assert!(
        slow * 100 < after,
        "{slow} of {after} went to the slow endpoint"
    );
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    assert!(
        p99 < Duration::from_millis(400),
        "p99 is {p99:?}, that of the slow endpoint"
    );
}

/// An endpoint that is not ready gets nothing: not as the first choice, not as a retry, and not
/// when no other endpoint is left.
#[tokio::test]
async fn a_not_ready_endpoint_gets_nothing_ever() {
    let idle = Counting::start(Duration::ZERO).await;
    // This endpoint loses every request, so that each is replayed.
    let losing = Scripted::start(|mut stream: TcpStream, _| async move {
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    let rig = Rig::start("timeouts: {hold: 300ms}").await;
    let (ready, lossy) = (
        Ep::new("idle", idle.endpoint.address),
        Ep::new("losing", losing.address),
    );
    let not_ready = ready.clone().not_ready();
    let request = async || {
        let mut client = Client::connect(rig.web()).await.unwrap();
        get(&mut client).await.status
    };
    // First the endpoint serves, to show that it can. Then it becomes not ready.
    rig.endpoints(std::slice::from_ref(&ready));
    rig.usable(1).await;
    assert_eq!((request().await, idle.got()), (200, 1));
    rig.endpoints(&[not_ready.clone(), lossy]);
    eventually("only the other is usable", async || {
        let snapshot = rig.running().admin.snapshot.load();
        snapshot
            .ports
            .values()
            .any(|p| p.usable.len() == 1 && p.usable[0].address == losing.address)
    })
    .await;
    let accepted = idle.endpoint.accepted();
    assert_eq!(request().await, 502);
    assert!(
        losing.accepted() > 2,
        "one join check, then the first try and the replays on the usable endpoint"
    );
    rig.endpoints(std::slice::from_ref(&not_ready));
    rig.usable(0).await;
    assert_eq!(request().await, 503);
    assert_eq!(
        (idle.got(), idle.endpoint.accepted()),
        (1, accepted),
        "not even a join check"
    );
    rig.endpoints(&[ready]);
    rig.usable(1).await;
    assert_eq!((request().await, idle.got()), (200, 2));
}

#[tokio::test]
async fn the_last_resort_serves_until_something_usable_is_published() {
    let (all, entries) = Counting::many(2, Duration::ZERO).await;
    let rig = Rig::start("").await;
    rig.endpoints(&entries[..1]);
    rig.usable(1).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    let leaver = entries[0].clone().terminating();
    rig.endpoints(std::slice::from_ref(&leaver));
    rig.usable(0).await;
    for _ in 0..20 {
        assert_eq!(get(&mut client).await.status, 200);
    }
    assert_eq!(all[0].got(), 20);
    assert!(rig.receipts().is_empty(), "its drain is deferred");
    rig.endpoints(&[leaver, entries[1].clone()]);
    rig.usable(1).await;
    eventually("its drain", async || rig.receipts().len() == 1).await;
    for _ in 0..20 {
        assert_eq!(get(&mut client).await.status, 200);
    }
    assert_eq!((all[0].got(), all[1].got()), (20, 20));
}

/// An endpoint that refuses connections costs no client anything, and gets nothing more until it
/// answers again.
#[tokio::test]
async fn an_ejected_endpoint_is_passed_over_until_it_answers() {
    let (all, entries) = Counting::many(2, Duration::ZERO).await;
    let gone = TcpStream::connect(all[0].endpoint.address)
        .await
        .unwrap()
        .peer_addr()
        .unwrap();
    let rig = Rig::start("").await;
    rig.endpoints(&entries);
    rig.usable(2).await;
    let ejected = || {
        let snapshot = rig.running().admin.snapshot.load();
        snapshot
            .ports
            .values()
            .any(|p| p.usable.iter().any(|e| e.address == gone && e.is_ejected()))
    };
    // Its listener closes, so the very next connect is refused.
    let mut all = all.into_iter();
    let (first, second) = (all.next().unwrap(), all.next().unwrap());
    drop(first);
    eventually("a refusal", async || {
        std::net::TcpStream::connect(gone).is_err()
    })
    .await;
    let mut sent = 0;
    while !ejected() {
        sent += 1;
        assert!(sent < 1_000, "the refusing endpoint was never picked");
        let mut client = Client::connect(rig.web()).await.unwrap();
        assert_eq!(
            soon("a response", client.exchange("POST", "/", "", b""))
                .await
                .unwrap()
                .status,
            200
        );
    }
    assert_eq!(second.got(), sent);
    let retries = rig.metric("ebbtide_retries_total", "reason=\"connect\"");
    for _ in 0..100 {
        let mut client = Client::connect(rig.web()).await.unwrap();
        assert_eq!(get(&mut client).await.status, 200);
    }
    assert_eq!(
        rig.metric("ebbtide_retries_total", "reason=\"connect\""),
        retries,
        "a client tried it again"
    );
    let listener = tokio::net::TcpListener::bind(gone).await.unwrap();
    let back = Scripted::on(listener, |mut stream: TcpStream, _| async move {
        while let Ok(1..) = stream.read(&mut [0; 4096]).await {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback")
                .await;
        }
    });
    eventually("its return", async || !ejected()).await;
    for n in 0.. {
        assert!(n < 1_000, "it gets nothing after its return");
        let mut client = Client::connect(rig.web()).await.unwrap();
        if get(&mut client).await.text() == "back" {
            break;
        }
    }
    drop(back);
}
