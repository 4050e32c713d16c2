//! Holds (contract 1.9): while no endpoint is usable, requests and connections wait. The wait is
//! bounded in number and in time, and the release is paced. After the wait an HTTP client gets 503
//! and a TCP client gets a reset.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ebbtide::command::demo::child;
use ebbtide::command::demo::client::{Client, Response};
use ebbtide::command::demo::fleet::{Fleet, Options, Tell};
use ebbtide::command::demo::load::{Load, Report};
use ebbtide::command::demo::pod::PodId;
use ebbtide::command::demo::proxy::{self, Proxy};
use ebbtide::contract::snapshot::Port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::proxy::ask::get;
use crate::proxy::scripted::Scripted;
use crate::proxy::tcp::{known, to_end};
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An endpoint that answers every request with 200 after `service`. `most` is the highest number of
/// requests it had at the same time.
async fn serving(listener: TcpListener, service: Duration, most: Arc<AtomicUsize>) -> Scripted {
    let now = Arc::new(AtomicUsize::new(0));
    Scripted::on(listener, move |mut stream: TcpStream, _| {
        let (now, most) = (now.clone(), most.clone());
        async move {
            let mut head = Vec::new();
            while let Ok(1..) = stream.read_buf(&mut head).await {
                if !head.ends_with(b"\r\n\r\n") {
                    continue;
                }
                head.clear();
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(service).await;
                now.fetch_sub(1, Ordering::SeqCst);
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
}

async fn answering() -> Scripted {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    serving(listener, Duration::ZERO, Arc::default()).await
}

/// Sends a request from a client of its own. The response is still to come.
fn asking(web: SocketAddr) -> JoinHandle<(Response, Client)> {
    tokio::spawn(async move {
        let mut client = Client::connect(web).await.unwrap();
        let answer = get(&mut client).await;
        (answer, client)
    })
}

/// How a connection ends that the proxy resets immediately: the reset may arrive before the connect
/// has returned.
async fn refused(web: SocketAddr) -> ErrorKind {
    match TcpStream::connect(web).await {
        Ok(mut client) => to_end(&mut client).await.1.unwrap(),
        Err(error) => error.kind(),
    }
}

async fn held(rig: &Rig, count: usize) {
    eventually(&format!("{count} held"), async || {
        rig.metric("ebbtide_held{", "") == count as f64
    })
    .await;
}

/// A fleet behind a proxy, and eight clients at 500/s until `stop`.
struct Scene {
    fleet: Fleet,
    proxy: Proxy,
    stop: CancellationToken,
    load: JoinHandle<Report>,
}

impl Scene {
    async fn start(options: Options, path: &str, rate: f64) -> Self {
        let fleet = Fleet::start(options).await.unwrap();
        let config = proxy::config(&fleet.manifests(), "workers: 2");
        let proxy = Proxy::start(BINARY.as_ref(), fleet.folder(), &config, &["web"])
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let mut load = Load::new(proxy.web().unwrap(), path, Duration::from_secs(120));
        (load.timeout, load.rate) = (Duration::from_secs(15), rate);
        let stopped = stop.clone();
        let load = tokio::spawn(async move { load.run(&stopped, |_| ()).await });
        tokio::time::sleep(Duration::from_millis(700)).await;
        Self {
            fleet,
            proxy,
            stop,
            load,
        }
    }

    fn ids(&self) -> Vec<PodId> {
        self.fleet.ids()
    }

    /// Waits for some more load. Then nothing may have been lost, neither a request nor a socket.
    async fn ends_unharmed(self) -> Report {
        tokio::time::sleep(Duration::from_millis(700)).await;
        self.stop.cancel();
        let report = soon("the load's end", self.load).await.unwrap();
        assert_eq!(
            (report.failed, report.sockets),
            (0, 8),
            "{report}\n{}",
            self.proxy.log_tail()
        );
        assert!(report.ok > 50, "{report}");
        println!("{report}");
        report
    }
}

async fn recreate(path: &str, rate: f64, tell: Tell) {
    let mut options = Options::new(BINARY);
    options.tell = tell;
    let mut scene = Scene::start(options, path, rate).await;
    let old = scene.ids();
    scene.fleet.retire(&old).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    scene.fleet.scale_up(3, "v2").await.unwrap();
    let report = scene.ends_unharmed().await;
    assert!(
        report.longest_stall > Duration::from_secs(2),
        "nothing was held: {report}"
    );
}

#[tokio::test]
async fn recreate_fails_nobody() {
    recreate("/", 500.0, Tell::PodAndSlice).await;
}

/// Slow requests, so that every client has one in flight on an endpoint that dies.
#[tokio::test]
async fn recreate_replays_what_was_in_flight() {
    recreate("/slow?ms=60", 100.0, Tell::Slice).await;
}

/// A crash without a change of any manifest: all endpoints are ejected, and come back at the same
/// addresses.
#[tokio::test]
async fn endpoints_that_die_and_come_back_unannounced_fail_nobody() {
    let rig = Rig::start("").await;
    let mut listeners = Vec::new();
    for _ in 0..2 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    rig.endpoints(&[Ep::new("a", addresses[0]), Ep::new("b", addresses[1])]);
    rig.usable(2).await;
    // From the endpoint's view the connects are refused. From the proxy's view the endpoints are
    // ejected.
    drop(listeners);
    let first = asking(rig.web());
    eventually("both ejected", async || {
        addresses
            .iter()
            .all(|a| known(&rig, *a).unwrap().is_ejected())
    })
    .await;
    held(&rig, 1).await;
    let second = asking(rig.web());
    held(&rig, 2).await;
    let back = serving(
        TcpListener::bind(addresses[1]).await.unwrap(),
        Duration::ZERO,
        Arc::default(),
    )
    .await;
    for asked in [first, second] {
        assert_eq!(asked.await.unwrap().0.status, 200);
    }
    assert_eq!(back.address, addresses[1]);
    assert!(known(&rig, addresses[0]).unwrap().is_ejected());
}

/// One replica, killed and started again at its address while eight keep-alive clients use it.
#[tokio::test]
async fn the_restart_of_the_only_replica_fails_nobody() {
    for path in ["/", "/slow?ms=60"] {
        let mut options = Options::new(BINARY);
        (options.replicas, options.tell) = (1, Tell::Slice);
        let mut scene = Scene::start(options, path, if path == "/" { 500.0 } else { 100.0 }).await;
        let only = scene.ids()[0];
        let address = scene.fleet.pod(only).unwrap().address;
        scene.fleet.crash(only).await.unwrap();
        let mut process = None;
        for _ in 0..3 {
            // This kills the previous process in the middle of its work.
            drop(process.take());
            tokio::time::sleep(Duration::from_millis(400)).await;
            let mut app = child::sample_app(BINARY.as_ref());
            process = Some(
                app.args(["--listen", &address.to_string()])
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap(),
            );
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        scene.ends_unharmed().await;
    }
}

/// An endpoint that ends without notice accepts a second connection and loses it, too. Both losses
/// count, and within the attempts they are no reason to give up.
#[tokio::test]
async fn an_endpoint_that_loses_two_connections_before_it_refuses_one_fails_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ending = tokio::spawn(async move {
        let mut lost = 0;
        while lost < 2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            if let Ok(1..) = stream.read(&mut [0; 4096]).await {
                lost += 1;
                if lost == 2 {
                    drop(listener);
                    return;
                }
            }
        }
    });
    let rig = Rig::start("retry: {attempts: 3}").await;
    rig.endpoints(&[Ep::new("only", address)]);
    rig.usable(1).await;
    let asked = asking(rig.web());
    soon("its end", ending).await.unwrap();
    eventually("ejected", async || {
        known(&rig, address).unwrap().is_ejected()
    })
    .await;
    let _back = serving(
        TcpListener::bind(address).await.unwrap(),
        Duration::ZERO,
        Arc::default(),
    )
    .await;
    assert_eq!(asked.await.unwrap().0.status, 200);
}

/// The only replica closes its idle connections, because its keep-alive timeout is over, while the
/// next requests arrive.
#[tokio::test]
async fn stale_connections_to_the_only_replica_fail_nobody() {
    // Every connection serves one request and is then closed without notice, at a moment when its
    // next request may already be written.
    let once = Scripted::start(|mut stream: TcpStream, number| async move {
        let mut head = Vec::new();
        while let Ok(1..) = stream.read_buf(&mut head).await {
            if head.ends_with(b"\r\n\r\n") {
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await;
                // Some end by a FIN, some by a reset, and some only after the next request has
                // arrived.
                match number % 3 {
                    0 => {}
                    1 => stream.set_zero_linger().unwrap(),
                    _ => _ = stream.read(&mut [0; 4096]).await,
                }
                return;
            }
        }
    })
    .await;
    let rig = Rig::start("").await;
    rig.endpoints(&[Ep::new("once", once.address)]);
    rig.usable(1).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    for i in 0..300 {
        let answer = get(&mut client).await;
        assert_eq!(
            (answer.status, answer.keep_alive),
            (200, true),
            "request {i}"
        );
    }
    assert!(
        rig.metric("ebbtide_retries_total", "reason=\"stale\"") > 0.0,
        "no connection was ever stale"
    );
}

#[tokio::test]
async fn past_the_hold_time_http_gets_503_and_keeps_its_connection() {
    let a = answering().await;
    let rig = Rig::start("timeouts: {hold: 1m}").await;
    rig.service(&[("ebbtide.dev/hold-timeout", "300ms")]);
    let held_for = |port: &Arc<Port>| port.policy.hold_timeout == Duration::from_millis(300);
    eventually("the annotation", async || {
        rig.running()
            .admin
            .snapshot
            .load()
            .ports
            .values()
            .all(held_for)
    })
    .await;
    let began = Instant::now();
    let (answer, mut client) = asking(rig.web()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!((answer.status, answer.keep_alive), (503, true));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(answer.header("x-ebbtide-reason"), Some("no_endpoint"));
    rig.endpoints(&[Ep::new("a", a.address)]);
    rig.usable(1).await;
    let answer = get(&mut client).await;
    assert_eq!(
        (answer.status, answer.text().into_owned()),
        (200, "ok".into())
    );
    assert_eq!(rig.metric("ebbtide_held_total", "outcome=\"expired\""), 1.0);
}

#[tokio::test]
async fn past_the_hold_time_tcp_gets_a_reset() {
    let rig = Rig::with_protocol("tcp", "timeouts: {hold: 300ms}").await;
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    let began = Instant::now();
    held(&rig, 1).await;
    assert_eq!(
        to_end(&mut client).await,
        (Vec::new(), Some(ErrorKind::ConnectionReset))
    );
    assert!(began.elapsed() >= Duration::from_millis(200), "not held");
}

#[tokio::test]
async fn one_over_the_bound_is_refused_immediately_while_the_others_wait() {
    let a = answering().await;
    let rig = Rig::start("limits: {held: 4}").await;
    let waiting: Vec<_> = (0..4).map(|_| asking(rig.web())).collect();
    held(&rig, 4).await;
    let (answer, mut fifth) = asking(rig.web()).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("x-ebbtide-reason")),
        (503, Some("hold_full"))
    );
    assert!(answer.header("retry-after").is_some());
    held(&rig, 4).await;
    assert!(waiting.iter().all(|asked| !asked.is_finished()));
    rig.endpoints(&[Ep::new("a", a.address)]);
    for asked in waiting {
        assert_eq!(asked.await.unwrap().0.status, 200);
    }
    assert_eq!(get(&mut fifth).await.status, 200);
    held(&rig, 0).await;
}

#[tokio::test]
async fn a_tcp_connection_over_the_bound_is_reset_immediately() {
    let rig = Rig::with_protocol("tcp", "limits: {held: 1}").await;
    let _first = TcpStream::connect(rig.web()).await.unwrap();
    held(&rig, 1).await;
    assert_eq!(refused(rig.web()).await, ErrorKind::ConnectionReset);
    held(&rig, 1).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let a = answering().await;
    let rig = Rig::start("limits: {held: 2}\ntimeouts: {hold: 1m}").await;
    let mut leaver = TcpStream::connect(rig.web()).await.unwrap();
    leaver
        .write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await
        .unwrap();
    let mut resetter = TcpStream::connect(rig.web()).await.unwrap();
    resetter
        .write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await
        .unwrap();
    held(&rig, 2).await;
    resetter.set_zero_linger().unwrap();
    drop(resetter);
    held(&rig, 1).await;
    drop(leaver);
    held(&rig, 0).await;
    assert_eq!(rig.metric("ebbtide_held_total", "outcome=\"left\""), 2.0);
    let new_clients = [asking(rig.web()), asking(rig.web())];
    held(&rig, 2).await;
    rig.endpoints(&[Ep::new("a", a.address)]);
    for asked in new_clients {
        assert_eq!(asked.await.unwrap().0.status, 200);
    }
}

#[tokio::test]
async fn the_release_does_not_flood_the_first_endpoint() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let most = Arc::new(AtomicUsize::new(0));
    let rig = Rig::start("timeouts: {hold: 1m}").await;
    let waiting: Vec<_> = (0..600).map(|_| asking(rig.web())).collect();
    held(&rig, 600).await;
    let first = serving(listener, Duration::from_millis(100), most.clone()).await;
    let began = Instant::now();
    rig.endpoints(&[Ep::new("first", first.address)]);
    for asked in waiting {
        assert_eq!(asked.await.unwrap().0.status, 200);
    }
    let most = most.load(Ordering::SeqCst);
    println!(
        "600 released in {:?}, at most {most} at the same time",
        began.elapsed()
    );
    // One release a millisecond, each request takes 100 ms: about 100, and some more where a late
    // timer catches up.
    assert!(most < 300, "{most} of 600 at the same time");
}

/// Without a Service of this name there is nothing to wait for.
#[tokio::test]
async fn without_the_service_there_is_no_waiting() {
    let rig = Rig::start("timeouts: {hold: 1m}").await;
    rig.remove("service.json");
    eventually("the Service is gone", async || {
        rig.running().admin.snapshot.load().ports.is_empty()
    })
    .await;
    let (answer, _) = asking(rig.web()).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("x-ebbtide-reason")),
        (503, Some("no_service"))
    );
    assert!(answer.header("retry-after").is_some());

    let rig = Rig::with_protocol("tcp", "timeouts: {hold: 1m}").await;
    rig.remove("service.json");
    eventually("the Service is gone", async || {
        rig.running().admin.snapshot.load().ports.is_empty()
    })
    .await;
    assert_eq!(refused(rig.web()).await, ErrorKind::ConnectionReset);
}
