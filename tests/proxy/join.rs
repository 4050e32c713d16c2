//! Endpoints that join, flap, move between slices, or stand by while others serve (contract 1.7,
//! 1.8 and 2.6). An endpoint gets nothing before the proxy has connected to it. One that returns is
//! the same endpoint, and its connections go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ebbtide::command::demo::client::Client;
use ebbtide::command::demo::fleet::{Fleet, Options};
use ebbtide::command::demo::load::Load;
use ebbtide::command::demo::proxy::{self, Proxy};
use ebbtide::contract::endpoint::EndpointId;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::proxy::ask::get;
use crate::proxy::scripted::Scripted;
use crate::proxy::tcp::{Station, known, passes, through, to_end};
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::manifests::{endpoint, slice};
use crate::support::process::Process;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An endpoint that answers every request with `body`, and the count of its requests.
async fn answering(body: &'static str) -> (Scripted, Arc<AtomicUsize>) {
    answering_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), body)
}

fn answering_on(listener: TcpListener, body: &'static str) -> (Scripted, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let scripted = Scripted::on(listener, move |mut stream: TcpStream, _| {
        let count = count.clone();
        async move {
            let mut head = Vec::new();
            while let Ok(1..) = stream.read_buf(&mut head).await {
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    count.fetch_add(1, Ordering::SeqCst);
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    (scripted, requests)
}

async fn ask(client: &mut Client) -> String {
    let answer = get(client).await;
    assert_eq!(
        (answer.status, answer.keep_alive),
        (200, true),
        "{}",
        answer.text()
    );
    answer.text().into_owned()
}

fn id(rig: &Rig, station: &Station) -> Option<EndpointId> {
    known(rig, station.scripted.address).map(|endpoint| endpoint.id)
}

fn is_open(rig: &Rig, station: &Station) -> bool {
    known(rig, station.scripted.address).is_some_and(|endpoint| endpoint.is_open())
}

fn nobody_drained(rig: &Rig) {
    assert_eq!(rig.receipts().len(), 0);
}

/// Pods that are ready immediately and listen a second later. The old pods leave in between.
#[tokio::test]
async fn pods_that_are_ready_before_they_listen_cost_nobody_anything() {
    let mut options = Options::new(BINARY);
    options.replicas = 2;
    let mut fleet = Fleet::start(options).await.unwrap();
    let config = proxy::config(&fleet.manifests(), "workers: 2");
    let proxy = Proxy::start(BINARY.as_ref(), fleet.folder(), &config, &["web"])
        .await
        .unwrap();
    let mut load = Load::new(proxy.web().unwrap(), "/", Duration::from_secs(120));
    (load.timeout, load.by_body) = (Duration::from_secs(15), true);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let load = tokio::spawn(async move { load.run(&stopped, |_| ()).await });
    tokio::time::sleep(Duration::from_millis(500)).await;

    let first = fleet.ids();
    fleet.options.listen_after = Some(Duration::from_secs(1));
    // First one pod joins while others serve. Then two join while all others leave.
    fleet.replace(first[0], "v2").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let second = fleet.ids();
    fleet.scale_up(2, "v3").await.unwrap();
    fleet.retire(&second).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_000)).await;

    stop.cancel();
    let report = soon("the load's end", load).await.unwrap();
    println!("{report}");
    assert_eq!(
        (report.failed, report.sockets),
        (0, 8),
        "{report}\n{}",
        proxy.log_tail()
    );
    for version in ["v1", "v2", "v3"] {
        assert!(
            report.by_body.keys().any(|body| body.starts_with(version)),
            "{version}: {:?}",
            report.by_body
        );
    }
    let connects = proxy
        .metric("ebbtide_retries_total", |labels| {
            labels.contains("reason=\"connect\"")
        })
        .await
        .unwrap();
    println!("failed connects in the data plane: {connects}");
}

#[tokio::test]
async fn an_endpoint_is_published_once_it_has_been_connected_to() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let rig = Rig::start("").await;
    rig.endpoints(&[Ep::new("late", gone)]);
    eventually("known and ready", async || {
        known(&rig, gone).is_some_and(|e| e.conditions().ready)
    })
    .await;
    let web = rig.web();
    let asked = tokio::spawn(async move { ask(&mut Client::connect(web).await.unwrap()).await });
    eventually("held", async || rig.metric("ebbtide_held{", "") == 1.0).await;
    assert!(!known(&rig, gone).unwrap().is_open());
    let (_late, _) = answering_on(TcpListener::bind(gone).await.unwrap(), "late");
    assert_eq!(asked.await.unwrap(), "late");
    assert_eq!(
        rig.metric("ebbtide_retries_total", "reason=\"connect\""),
        0.0
    );
}

#[tokio::test]
async fn without_the_join_check_an_endpoint_is_published_immediately() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let rig = Rig::start("").await;
    rig.service(&[("ebbtide.dev/join-check", "off")]);
    rig.endpoints(&[Ep::new("gone", gone)]);
    rig.usable(1).await;
    assert!(known(&rig, gone).unwrap().is_open());
}

#[tokio::test]
async fn an_endpoint_that_is_not_ready_gets_nothing_ever() {
    let (idle, _) = answering("idle").await;
    let (busy, _) = answering("busy").await;
    // Loses every connection after its request, so the proxy has every reason to try another
    // endpoint.
    let losing = Scripted::start(|mut stream: TcpStream, _| async move {
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    let rig = Rig::start("retry: {attempts: 10, budgetFloor: 1000}").await;
    rig.service(&[("ebbtide.dev/hold-timeout", "300ms")]);
    let standby = Ep::new("idle", idle.address).not_ready();
    rig.endpoints(&[
        standby.clone(),
        Ep::new("busy", busy.address),
        Ep::new("losing", losing.address),
    ]);
    rig.usable(2).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    for _ in 0..10 {
        assert_eq!(ask(&mut client).await, "busy");
    }
    // No other endpoint is left: the answer is 503 rather than an endpoint that is not ready.
    rig.endpoints(&[standby]);
    rig.usable(0).await;
    for _ in 0..2 {
        let answer = get(&mut client).await;
        assert_eq!(answer.status, 503);
    }
    assert_eq!(idle.accepted(), 0, "not even a join check");
    rig.endpoints(&[Ep::new("idle", idle.address)]);
    assert_eq!(ask_until(&mut client, "idle").await, "idle");
}

/// Sends requests until a 200 arrives. Its body must be `body`.
async fn ask_until(client: &mut Client, body: &str) -> String {
    loop {
        let answer = soon(body, client.exchange("GET", "/", "", b""))
            .await
            .unwrap();
        if answer.status == 200 {
            return answer.text().into_owned();
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_never_listens_costs_no_request_anything() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let (a, _) = answering("a").await;
    let rig = Rig::start("").await;
    rig.endpoints(&[Ep::new("gone", gone), Ep::new("a", a.address)]);
    rig.usable(1).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    for _ in 0..500 {
        assert_eq!(ask(&mut client).await, "a");
    }
    assert_eq!(rig.metric("ebbtide_retries_total", ""), 0.0);
    assert_eq!(rig.metric("ebbtide_held_total", ""), 0.0);
    assert_eq!(known(&rig, gone).unwrap().leases(), 0);
}

/// An endpoint that is ready and accepts nothing is named once, and once more when it accepts.
#[tokio::test]
async fn an_endpoint_that_has_never_accepted_is_named() {
    let (app, _) = answering("app").await;
    let process = Process::start("http", &[Ep::new("a", app.address)], "").await;
    // Until it listens, its port refuses.
    let late = TcpSocket::new_v4().unwrap();
    late.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = late.local_addr().unwrap();
    let both = [Ep::new("a", app.address), Ep::new("b", address)];
    process.folder.endpoints(&both);
    let never = process.lines("has never accepted a connection").await;
    assert_eq!(never[0]["endpoint"], address.to_string());
    let _listens = late.listen(16).unwrap();
    let now = process.lines("accepts connections now").await;
    assert_eq!(now[0]["endpoint"], address.to_string());
    assert_eq!(process.logged("has never accepted a connection").len(), 1);
}

#[tokio::test]
async fn a_flapping_endpoint_fails_nobody_and_comes_back() {
    let ((a, of_a), (b, of_b)) = (answering("a").await, answering("b").await);
    let rig = Rig::start("").await;
    let (ep_a, ep_b) = (Ep::new("a", a.address), Ep::new("b", b.address));
    rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
    rig.usable(2).await;
    let first = known(&rig, a.address).unwrap().id;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (web, stop) = (rig.web(), stop.clone());
        clients.push(tokio::spawn(async move {
            let mut client = Client::connect(web).await.unwrap();
            let mut asked = 0;
            while !stop.load(Ordering::SeqCst) {
                ask(&mut client).await;
                asked += 1;
            }
            asked
        }));
    }
    for _ in 0..25 {
        rig.endpoints(&[ep_a.clone().not_ready(), ep_b.clone()]);
        rig.usable(1).await;
        let (before, others) = (of_a.load(Ordering::SeqCst), of_b.load(Ordering::SeqCst));
        eventually("requests at b", async || {
            of_b.load(Ordering::SeqCst) > others + 20
        })
        .await;
        // A request that had its lease before may still have arrived: one for each client.
        assert!(of_a.load(Ordering::SeqCst) <= before + 4);
        rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
        rig.usable(2).await;
    }
    let before = of_a.load(Ordering::SeqCst);
    eventually("requests at a again", async || {
        of_a.load(Ordering::SeqCst) > before + 20
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    assert_eq!(known(&rig, a.address).unwrap().id, first);
    nobody_drained(&rig);
    assert_eq!(rig.metric("ebbtide_requests_total", "code=\"5xx\""), 0.0);
}

#[tokio::test]
async fn what_is_in_flight_on_an_endpoint_that_gets_unready_is_finished() {
    let (answer, arrived) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (go, seen) = (answer.clone(), arrived.clone());
    let slow = Scripted::start(move |mut stream: TcpStream, _| {
        let (go, seen) = (go.clone(), seen.clone());
        async move {
            if let Ok(1..) = stream.read(&mut [0; 4096]).await {
                seen.notify_one();
                go.notified().await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")
                    .await;
                // The endpoint keeps the connection open. The proxy may keep it or not.
                let _ = stream.read(&mut [0]).await;
            }
        }
    })
    .await;
    let (b, _) = answering("b").await;
    let rig = Rig::start("").await;
    rig.endpoints(&[Ep::new("slow", slow.address)]);
    rig.usable(1).await;
    let web = rig.web();
    let asked = tokio::spawn(async move {
        let mut client = Client::connect(web).await.unwrap();
        (ask(&mut client).await, ask(&mut client).await)
    });
    soon("the request at the endpoint", arrived.notified()).await;
    rig.endpoints(&[
        Ep::new("slow", slow.address).not_ready(),
        Ep::new("b", b.address),
    ]);
    rig.usable(1).await;
    let endpoint = known(&rig, slow.address).unwrap();
    eventually("out of rotation", async || !endpoint.is_open()).await;
    assert_eq!(endpoint.leases(), 1);
    answer.notify_one();
    assert_eq!(
        soon("both responses", asked).await.unwrap(),
        ("slow".to_owned(), "b".to_owned())
    );
    nobody_drained(&rig);
}

/// Blue and green, each with Pods. The Service's selector switches to green and back.
#[tokio::test]
async fn a_selector_switched_and_switched_back_returns_the_same_endpoints() {
    let (mut blue, mut green) = (Station::start().await, Station::start().await);
    let rig = Rig::with_protocol("tcp", "timeouts: {drain: 1s}").await;
    rig.pod("blue", "1", None);
    rig.pod("green", "2", None);
    let (ep_blue, ep_green) = (blue.ep("blue").of_pod(), green.ep("green").of_pod());
    rig.endpoints(std::slice::from_ref(&ep_blue));
    rig.usable(1).await;
    let before = id(&rig, &blue);
    let (mut client, mut server) = through(&rig, &mut blue).await;

    rig.endpoints(std::slice::from_ref(&ep_green));
    eventually("green serves", async || {
        is_open(&rig, &green) && !is_open(&rig, &blue)
    })
    .await;
    let (mut newer, mut newer_server) = through(&rig, &mut green).await;
    // Longer than a drain would have lasted.
    for _ in 0..15 {
        passes(&mut client, &mut server, b"still here").await;
        passes(&mut server, &mut client, b"yes").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    rig.endpoints(&[ep_blue]);
    eventually("blue serves", async || {
        is_open(&rig, &blue) && !is_open(&rig, &green)
    })
    .await;
    assert_eq!(id(&rig, &blue), before);
    passes(&mut client, &mut server, b"untouched").await;
    passes(&mut newer, &mut newer_server, b"this one too").await;
    let (_client, _server) = through(&rig, &mut blue).await;
    nobody_drained(&rig);
}

#[tokio::test]
async fn an_endpoint_that_moves_between_slices_never_leaves_rotation() {
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.pod("a", "1", None);
    rig.endpoints(&[a.ep("a").of_pod()]);
    rig.usable(1).await;
    let before = id(&rig, &a);
    let (mut client, mut server) = through(&rig, &mut a).await;
    let listed = [endpoint("127.0.0.1", Some("a"), [true, true, false])];
    let slice = |name: &str| slice(name, "shop", ("", a.scripted.address.port()), &listed);
    let generation = || rig.running().admin.snapshot.load().generation;
    let endpoint = known(&rig, a.scripted.address).unwrap();
    let watched = endpoint.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let watching = std::thread::spawn(move || {
        let mut looks = 0;
        while !stopped.load(Ordering::SeqCst) {
            assert!(watched.is_open(), "out of rotation");
            looks += 1;
        }
        looks
    });
    // Added to the new slice, then removed from the old one, three times.
    let mut old = "slice-a".to_owned();
    for round in 0..3 {
        let new = format!("moved-{round}");
        let now = generation();
        rig.write(&format!("{new}.json"), &slice(&new));
        eventually("the addition", async || generation() > now).await;
        let now = generation();
        rig.remove(&format!("{old}.json"));
        eventually("the removal", async || generation() > now).await;
        old = new;
    }
    stop.store(true, Ordering::SeqCst);
    assert!(watching.join().unwrap() > 1_000);
    // In the other order, the endpoint is out for a moment, and then the same endpoint returns.
    rig.remove(&format!("{old}.json"));
    eventually("out", async || !endpoint.is_open()).await;
    rig.write("back.json", &slice("back"));
    eventually("in again", async || endpoint.is_open()).await;
    assert_eq!(id(&rig, &a), before);
    passes(&mut client, &mut server, b"untouched").await;
    nobody_drained(&rig);
}

/// Writes Service `web/shop` with this UID.
fn service(rig: &Rig, uid: &str) {
    let metadata = json!({
        "namespace": "web", "name": "shop", "uid": uid, "annotations": {"ebbtide.dev/drain-timeout": "1500ms"},
    });
    let spec = json!({"ports": [{"port": 80, "protocol": "TCP"}]});
    rig.write(
        "service.json",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}),
    );
}

#[tokio::test]
async fn a_service_removed_and_made_again_has_the_same_endpoints() {
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    service(&rig, "1");
    rig.pod("a", "1", None);
    rig.endpoints(&[a.ep("a").of_pod()]);
    rig.usable(1).await;
    let endpoint = known(&rig, a.scripted.address).unwrap();
    let (mut client, mut server) = through(&rig, &mut a).await;
    rig.remove("service.json");
    eventually("out", async || !endpoint.is_open()).await;
    if let Ok(mut refused) = TcpStream::connect(rig.web()).await {
        assert_eq!(
            to_end(&mut refused).await.1,
            Some(std::io::ErrorKind::ConnectionReset)
        );
    }
    passes(&mut client, &mut server, b"untouched").await;
    service(&rig, "1");
    eventually("in again", async || endpoint.is_open()).await;
    assert_eq!(known(&rig, a.scripted.address).unwrap().id, endpoint.id);
    passes(&mut client, &mut server, b"untouched").await;
    let (_client, _server) = through(&rig, &mut a).await;
    nobody_drained(&rig);
}

/// Contract 1.7 and 2.8: the new Service gets endpoints of its own. The old ones drain, and only the
/// end of their pod sets a deadline. The drain timeout sets it where no pod is known.
#[tokio::test]
async fn a_service_under_an_old_name_is_a_new_one() {
    for pod_known in [true, false] {
        let mut a = Station::start().await;
        let rig = Rig::with_protocol("tcp", "").await;
        service(&rig, "1");
        if pod_known {
            rig.pod("a", "1", None);
        }
        rig.endpoints(&[a.ep("a").of_pod()]);
        rig.usable(1).await;
        let before = known(&rig, a.scripted.address).unwrap();
        let (mut client, mut server) = through(&rig, &mut a).await;
        service(&rig, "2");
        eventually("the old one drains", async || before.is_draining()).await;
        assert_eq!(before.drain_deadline().is_none(), pod_known);
        // A new connection may have to wait for the join check, and is then served.
        let (mut newer, mut newer_server) = through(&rig, &mut a).await;
        let now = known(&rig, a.scripted.address).unwrap();
        assert!(now.id > before.id);
        passes(&mut client, &mut server, b"until the deadline").await;
        let ended = || rig.receipts();
        if pod_known {
            // Longer than the drain timeout of 1.5 s and the second after which a connection counts
            // as quiet.
            tokio::time::sleep(Duration::from_secs(3)).await;
            passes(&mut client, &mut server, b"the pod lives").await;
            assert_eq!((before.leases(), before.drain_deadline()), (1, None));
            rig.pod("a", "1", Some(0));
            eventually("a deadline", async || before.drain_deadline().is_some()).await;
            assert_eq!(to_end(&mut client).await.1, None);
        } else {
            assert_eq!(to_end(&mut client).await.1, None);
            passes(&mut newer, &mut newer_server, b"untouched").await;
            assert!(now.drain_deadline().is_none());
        }
        eventually("the receipt", async || {
            ended().iter().any(|r| r.ended.is_some())
        })
        .await;
        assert!(before.drain_deadline().unwrap() <= std::time::Instant::now());
    }
}
