//! Drains in the real proxy (contract 1.1 to 1.9): a terminating endpoint leaves rotation, its
//! connections drain, what is lost with it is replayed, and one receipt counts it all. Replays in
//! detail are in `replay.rs`, TCP in `tcp.rs`, holds in `hold.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ebbtide::command::demo::client::Client;
use ebbtide::contract::endpoint::Endpoint;
use ebbtide::contract::reason::{Outcome, Trigger};
use ebbtide::contract::snapshot::Port;
use ebbtide::routing::drains::Record;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::proxy::ask::get;
use crate::proxy::play::{Act, OK, Play};
use crate::proxy::scripted::Scripted;
use crate::support::folder::Ep;
use crate::support::manifests::uid_of;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An endpoint that answers every request with `body` and keeps the connection.
async fn answering(body: &'static str) -> Scripted {
    Scripted::start(move |mut stream: TcpStream, _| async move {
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buf).await {
            let requests = buf[..n].windows(4).filter(|w| w == b"\r\n\r\n").count();
            for _ in 0..requests {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Contract 1.1: once the change is in force, nothing reaches the endpoint.
#[tokio::test]
async fn a_terminating_endpoint_gets_nothing_more() {
    let (a, b) = (answering("a").await, answering("b").await);
    let rig = Rig::start("").await;
    let (ep_a, ep_b) = (Ep::new("a", a.address), Ep::new("b", b.address));
    rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
    rig.usable(2).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 2 {
        seen.insert(get(&mut client).await.text().into_owned());
    }
    // The snapshot of a worker that has not seen the change yet.
    let old = port(&rig);
    rig.endpoints(&[ep_a.terminating(), ep_b]);
    eventually("a drain", async || rig.receipts().len() == 1).await;
    eventually("no lease, whichever snapshot a worker holds", async || {
        old.usable
            .iter()
            .filter(|e| e.enter().is_none())
            .map(|e| e.address)
            .eq([a.address])
    })
    .await;
    for _ in 0..200 {
        let answer = get(&mut client).await;
        assert_eq!(answer.text(), "b");
    }
}

/// Writes a Pod manifest for each name, and returns a slice endpoint for each, at the address of
/// its [`Play`].
async fn pods(rig: &Rig, plays: &[(&str, &Play)]) -> Vec<Ep> {
    let endpoints: Vec<Ep> = plays
        .iter()
        .map(|(name, play)| Ep::new(name, play.address()).of_pod())
        .collect();
    for ep in &endpoints {
        rig.pod(&ep.name, "v1", None);
    }
    rig.endpoints(&endpoints);
    rig.usable(plays.len()).await;
    endpoints
}

async fn good() -> Play {
    Play::start(|_| Act::Say(OK.into())).await
}

/// Waits until everything written to the manifests before is in force. `n` must differ in each
/// call.
async fn in_force(rig: &Rig, n: u32) {
    let mark = Duration::from_millis(20_000 + u64::from(n));
    rig.service(&[(
        "ebbtide.dev/hold-timeout",
        &format!("{}ms", mark.as_millis()),
    )]);
    eventually("the manifests in force", async || {
        port(rig).policy.hold_timeout == mark
    })
    .await;
}

fn port(rig: &Rig) -> Arc<Port> {
    rig.running()
        .admin
        .snapshot
        .load()
        .ports
        .values()
        .next()
        .unwrap()
        .clone()
}

/// The endpoint at this address in the published table.
fn at(rig: &Rig, play: &Play) -> Option<Arc<Endpoint>> {
    port(rig)
        .all
        .iter()
        .filter(|e| e.address == play.address())
        .max_by_key(|e| e.id)
        .cloned()
}

fn ended(rig: &Rig) -> Vec<Record> {
    rig.receipts()
        .into_iter()
        .filter(|r| r.ended.is_some())
        .collect()
}

/// Sends `count` requests at the same time, each on a client of its own, and waits until they are
/// in flight on `plays`.
async fn in_flight(rig: &Rig, plays: &[&Play], count: usize) -> JoinSet<u16> {
    let mut requests = JoinSet::new();
    for _ in 0..count {
        let mut client = Client::connect(rig.web()).await.unwrap();
        requests.spawn(async move { client.exchange("GET", "/", "", b"").await.unwrap().status });
    }
    eventually("in flight", async || {
        plays.iter().map(|p| p.requests().len()).sum::<usize>() == count
    })
    .await;
    requests
}

/// Contract 1.3: for a drain, and for each way out of rotation.
#[tokio::test]
async fn idle_connections_are_closed_when_their_endpoint_drains_or_is_out() {
    type Change = fn(Ep) -> Option<Ep>;
    let changes: &[(&str, Change)] = &[
        ("drains", |ep| Some(ep.terminating())),
        ("is not ready", |ep| Some(ep.not_ready())),
        ("is removed", |_| None),
    ];
    for (name, change) in changes {
        let (a, b) = (
            Play::start(|_| Act::SayLater(OK.into())).await,
            good().await,
        );
        let rig = Rig::start("").await;
        let endpoints = pods(&rig, &[("a", &a)]).await;
        let requests = in_flight(&rig, &[&a], 5).await;
        a.release();
        assert!(
            soon("responses", requests.join_all())
                .await
                .iter()
                .all(|status| *status == 200)
        );
        assert_eq!(a.open(), 5, "{name}: idle now");
        let ep_b = Ep::new("b", b.address()).of_pod();
        rig.pod("b", "v1", None);
        rig.endpoints(&[endpoints[0].clone(), ep_b.clone()]);
        rig.usable(2).await;
        let changed: Vec<Ep> = change(endpoints[0].clone())
            .into_iter()
            .chain([ep_b])
            .collect();
        rig.endpoints(&changed);
        eventually(name, async || a.open() == 0).await;
    }
}

/// One drain has one receipt, however often its signals are repeated, and the receipt's numbers are
/// right.
#[tokio::test]
async fn a_drain_is_reported_once_and_its_receipt_counts() {
    let (a, b) = (
        Play::start(|t| {
            if t.number < 3 {
                Act::Say(OK.into())
            } else {
                Act::SayLater(OK.into())
            }
        })
        .await,
        good().await,
    );
    let rig = Rig::start("").await;
    let endpoints = pods(&rig, &[("a", &a)]).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(get(&mut client).await.status, 200);
    }
    let mut requests = JoinSet::new();
    for _ in 0..4 {
        let mut client = Client::connect(rig.web()).await.unwrap();
        requests.spawn(async move { client.exchange("GET", "/", "", b"").await.unwrap().status });
    }
    eventually("in flight", async || a.requests().len() == 7).await;
    let ep_b = Ep::new("b", b.address()).of_pod();
    rig.pod("b", "v2", None);
    rig.endpoints(&[endpoints[0].clone(), ep_b.clone()]);
    rig.usable(2).await;

    rig.pod("a", "v1", Some(30));
    eventually("the drain", async || rig.receipts().len() == 1).await;
    let running = rig.receipts().remove(0);
    assert_eq!(
        (running.ended.is_none(), running.in_flight, running.trigger),
        (true, 4, Trigger::PodDeleted)
    );
    assert_eq!(running.pod.as_deref(), Some("a"));
    // Repeated signals in other forms: from the slice, from changes of other slices, from the end
    // of the Pod object.
    rig.endpoints(&[endpoints[0].clone().terminating(), ep_b.clone()]);
    in_force(&rig, 1).await;
    rig.pod("a", "v1", Some(20));
    in_force(&rig, 2).await;
    assert_eq!(rig.receipts().len(), 1);
    a.release();
    assert!(
        soon("responses", requests.join_all())
            .await
            .iter()
            .all(|status| *status == 200)
    );
    eventually("the receipt", async || ended(&rig).len() == 1).await;
    // The endpoint has drained, and its pod still runs. Signals about others change nothing for it.
    in_force(&rig, 3).await;
    rig.remove("pod-a.json");
    in_force(&rig, 4).await;
    rig.endpoints(std::slice::from_ref(&ep_b));
    in_force(&rig, 5).await;
    let all = rig.receipts();
    assert_eq!(all.len(), 1, "{all:?}");
    let record = &all[0];
    assert_eq!(
        (
            record.finished,
            record.replayed,
            record.forced,
            record.idle_closed
        ),
        (4, 0, 0, 0),
        "the first connection was in use again: {record:?}"
    );
    assert_eq!(record.ended.unwrap().1, Outcome::Drained);
    assert_eq!(get(&mut client).await.status, 200);
    assert_eq!(
        rig.metric("ebbtide_drains_total", "trigger=\"podDeleted\""),
        1.0
    );
    assert_eq!(rig.metric("ebbtide_drains_total", ""), 1.0);
    assert_eq!(rig.metric("ebbtide_drain_reaction_seconds_count", ""), 1.0);
    assert_eq!(rig.metric("ebbtide_drain_duration_seconds_count", ""), 1.0);
}

/// The receipt counts idle connections, also where nothing was in flight and the drain ends
/// immediately.
#[tokio::test]
async fn a_receipt_counts_the_idle_connections() {
    for _ in 0..10 {
        let (a, b) = (
            Play::start(|_| Act::SayLater(OK.into())).await,
            good().await,
        );
        let rig = Rig::start("").await;
        let ep_a = Ep::new("a", a.address());
        rig.endpoints(std::slice::from_ref(&ep_a));
        rig.usable(1).await;
        let requests = in_flight(&rig, &[&a], 6).await;
        a.release();
        assert!(
            soon("responses", requests.join_all())
                .await
                .iter()
                .all(|status| *status == 200)
        );
        eventually("no lease left", async || {
            at(&rig, &a).is_some_and(|e| e.leases() == 0)
        })
        .await;
        let ep_b = Ep::new("b", b.address());
        rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
        rig.usable(2).await;
        rig.endpoints(&[ep_a.terminating(), ep_b]);
        eventually("the receipt", async || ended(&rig).len() == 1).await;
        assert_eq!(ended(&rig)[0].idle_closed, 6, "{:?}", ended(&rig));
    }
}

/// A replayed loss is counted before the receipt is written.
#[tokio::test]
async fn a_receipt_counts_what_was_replayed() {
    for _ in 0..10 {
        let (a, b) = (Play::start(|_| Act::Hang).await, good().await);
        let rig = Rig::start("").await;
        let ep_a = Ep::new("a", a.address());
        rig.endpoints(std::slice::from_ref(&ep_a));
        rig.usable(1).await;
        let requests = in_flight(&rig, &[&a], 3).await;
        let ep_b = Ep::new("b", b.address());
        rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
        rig.usable(2).await;
        rig.endpoints(&[ep_a.terminating(), ep_b]);
        eventually("the drain", async || rig.receipts().len() == 1).await;
        a.drop_connections();
        assert!(
            soon("responses", requests.join_all())
                .await
                .iter()
                .all(|status| *status == 200)
        );
        eventually("the receipt", async || ended(&rig).len() == 1).await;
        let record = ended(&rig).remove(0);
        assert_eq!(
            (record.finished, record.replayed, record.forced),
            (0, 3, 0),
            "{record:?}"
        );
        assert_eq!(record.ended.unwrap().1, Outcome::Drained);
    }
}

/// Contract 1.7 without a UID: the address belongs to another endpoint now, and the old endpoint
/// goes on draining.
#[tokio::test]
async fn an_address_that_comes_back_without_a_uid_is_a_new_endpoint() {
    let (a, b) = (
        Play::start(|t| {
            if t.number == 0 {
                Act::SayLater(OK.into())
            } else {
                Act::Say(OK.into())
            }
        })
        .await,
        good().await,
    );
    let rig = Rig::start("").await;
    let (ep_a, ep_b) = (Ep::new("a", a.address()), Ep::new("b", b.address()));
    rig.endpoints(std::slice::from_ref(&ep_a));
    rig.usable(1).await;
    let old = at(&rig, &a).unwrap();
    let requests = in_flight(&rig, &[&a], 1).await;
    rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
    rig.usable(2).await;
    rig.endpoints(&[ep_a.clone().terminating(), ep_b.clone()]);
    eventually("the drain", async || old.is_draining()).await;
    rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
    rig.usable(2).await;
    let new = port(&rig)
        .usable
        .iter()
        .find(|e| e.address == a.address())
        .cloned()
        .unwrap();
    assert_ne!(new.id, old.id);
    assert_eq!(
        (old.leases(), new.leases(), old.enter().is_none()),
        (1, 0, true)
    );
    reaches(&rig, &a, 2).await;
    assert!(ended(&rig).is_empty(), "the old endpoint still drains");
    a.release();
    assert_eq!(
        soon("the old endpoint's response", requests.join_all()).await,
        [200]
    );
    eventually("the receipt", async || ended(&rig).len() == 1).await;
    assert_eq!((ended(&rig)[0].finished, rig.receipts().len()), (1, 1));
    assert!(!new.is_draining());
}

/// The same where the old endpoint has not begun to drain, because there is no other.
#[tokio::test]
async fn a_last_resort_that_is_shown_alive_without_a_uid_is_a_new_endpoint() {
    let a = Play::start(|t| {
        if t.number == 0 {
            Act::SayLater(OK.into())
        } else {
            Act::Say(OK.into())
        }
    })
    .await;
    let rig = Rig::start("").await;
    let ep = Ep::new("a", a.address());
    rig.endpoints(std::slice::from_ref(&ep));
    rig.usable(1).await;
    let old = at(&rig, &a).unwrap();
    let requests = in_flight(&rig, &[&a], 1).await;
    rig.endpoints(&[ep.clone().terminating()]);
    eventually("a last resort", async || port(&rig).last_resort.len() == 1).await;
    assert!(!old.is_draining() && rig.receipts().is_empty());
    rig.endpoints(std::slice::from_ref(&ep));
    rig.usable(1).await;
    let new = port(&rig).usable[0].clone();
    assert_ne!(new.id, old.id);
    assert!(old.is_draining() && old.drain_deadline().is_some() && new.drain_deadline().is_none());
    let mut client = Client::connect(rig.web()).await.unwrap();
    assert_eq!(get(&mut client).await.status, 200);
    a.release();
    assert_eq!(
        soon("the old endpoint's response", requests.join_all()).await,
        [200]
    );
    eventually("the receipt", async || ended(&rig).len() == 1).await;
    assert_eq!((ended(&rig)[0].finished, rig.receipts().len()), (1, 1));
}

/// Contract 1.7 with a UID: a deletion is never taken back.
#[tokio::test]
async fn a_pod_shown_ready_after_its_deletion_gets_nothing() {
    let (a, b) = (good().await, good().await);
    let rig = Rig::start("").await;
    let endpoints = pods(&rig, &[("a", &a), ("b", &b)]).await;
    rig.pod("a", "v1", Some(30));
    rig.usable(1).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    let seen = a.requests().len();
    let steps: [&dyn Fn(); 5] = [
        // The slice does not show the deletion yet.
        &|| rig.endpoints(&endpoints),
        &|| rig.pod("a", "v1", None),
        &|| rig.remove("pod-a.json"),
        &|| rig.pod("a", "v1", None),
        &|| {
            rig.endpoints(&endpoints[1..]);
            rig.endpoints(&endpoints);
        },
    ];
    for (number, step) in steps.iter().enumerate() {
        step();
        in_force(&rig, number as u32).await;
        assert_eq!(port(&rig).usable.len(), 1, "step {number}");
        for _ in 0..30 {
            assert_eq!(get(&mut client).await.status, 200);
        }
        assert_eq!(
            (a.requests().len(), rig.receipts().len()),
            (seen, 1),
            "step {number}"
        );
    }
}

/// Where no pod is known, removal is a drain, and `drain-timeout` sets its deadline.
#[tokio::test]
async fn a_removal_without_a_pod_drains_with_the_drain_timeout() {
    for of_pod in [false, true] {
        let (a, b) = (Play::start(|_| Act::Hang).await, good().await);
        let rig = Rig::start("timeouts: {drain: 500ms}").await;
        // A targetRef alone does not make the pod known.
        let ep = |name, play: &Play| Ep {
            pod: of_pod,
            ..Ep::new(name, play.address())
        };
        let (ep_a, ep_b) = (ep("a", &a), ep("b", &b));
        rig.endpoints(std::slice::from_ref(&ep_a));
        rig.usable(1).await;
        let requests = in_flight(&rig, &[&a], 2).await;
        rig.endpoints(&[ep_a, ep_b.clone()]);
        rig.usable(2).await;
        let before = Instant::now();
        rig.endpoints(&[ep_b]);
        eventually("the drain", async || rig.receipts().len() == 1).await;
        let record = rig.receipts().remove(0);
        assert_eq!((record.trigger, record.in_flight), (Trigger::Removed, 2));
        assert!(record.deadline.unwrap() >= before + Duration::from_millis(500));
        assert_eq!(soon("replays", requests.join_all()).await, [200, 200]);
        assert!(Instant::now() >= record.deadline.unwrap());
        eventually("the receipt", async || ended(&rig).len() == 1).await;
        assert_eq!((ended(&rig)[0].replayed, ended(&rig)[0].forced), (2, 0));
    }
}

/// Removal is not termination (contract 1.7): a selector that is switched away and back finds the
/// same endpoint, with its connection untouched.
#[tokio::test]
async fn a_removal_while_the_pod_lives_is_reversible() {
    for not_ready in [false, true] {
        let (a, b) = (
            Play::start(|t| {
                if t.number == 0 {
                    Act::SayLater(OK.into())
                } else {
                    Act::Say(OK.into())
                }
            })
            .await,
            good().await,
        );
        let rig = Rig::start("timeouts: {drain: 100ms}").await;
        let endpoints = pods(&rig, &[("a", &a)]).await;
        let before = at(&rig, &a).unwrap();
        let requests = in_flight(&rig, &[&a], 1).await;
        rig.pod("b", "v1", None);
        let ep_b = Ep::new("b", b.address()).of_pod();
        rig.endpoints(&[endpoints[0].clone(), ep_b.clone()]);
        rig.usable(2).await;
        if not_ready {
            rig.endpoints(&[endpoints[0].clone().not_ready(), ep_b.clone()]);
        } else {
            rig.endpoints(std::slice::from_ref(&ep_b));
        }
        rig.usable(1).await;
        let mut client = Client::connect(rig.web()).await.unwrap();
        for _ in 0..100 {
            assert_eq!(get(&mut client).await.status, 200);
        }
        assert_eq!(
            (a.requests().len(), before.leases(), before.drain_deadline()),
            (1, 1, None)
        );
        rig.endpoints(&[endpoints[0].clone(), ep_b]);
        rig.usable(2).await;
        assert_eq!(at(&rig, &a).unwrap().id, before.id, "the same endpoint");
        reaches(&rig, &a, 2).await;
        a.release();
        assert_eq!(soon("its response", requests.join_all()).await, [200]);
        assert!(rig.receipts().is_empty());
    }
}

/// Sends requests until the endpoint has received `requests` in all. Many clients ask at the same
/// time: while the endpoint holds a request, its cost is higher, and a single client would never
/// choose it.
async fn reaches(rig: &Rig, endpoint: &Play, requests: usize) {
    let web = rig.web();
    for _ in 0..1_000 {
        if endpoint.requests().len() >= requests {
            return;
        }
        let clients = (0..16).map(|_| {
            tokio::spawn(async move { get(&mut Client::connect(web).await.unwrap()).await.status })
        });
        for client in clients.collect::<Vec<_>>() {
            assert_eq!(soon("a response", client).await.unwrap(), 200);
        }
    }
    panic!(
        "{requests} requests have not reached {}",
        endpoint.address()
    );
}

/// The end of the pod makes an earlier removal a drain (contract 1.7).
#[tokio::test]
async fn a_removed_endpoint_drains_when_its_pod_is_deleted() {
    for deletion in [true, false] {
        let (a, b) = (
            Play::start(|_| Act::SayLater(OK.into())).await,
            good().await,
        );
        let rig = Rig::start("").await;
        let endpoints = pods(&rig, &[("a", &a)]).await;
        let requests = in_flight(&rig, &[&a], 1).await;
        rig.pod("b", "v1", None);
        rig.endpoints(&[endpoints[0].clone(), Ep::new("b", b.address()).of_pod()]);
        rig.usable(2).await;
        rig.endpoints(&[Ep::new("b", b.address()).of_pod()]);
        rig.usable(1).await;
        in_force(&rig, 1).await;
        assert!(rig.receipts().is_empty());
        if deletion {
            rig.pod("a", "v1", Some(30));
        } else {
            rig.remove("pod-a.json");
        }
        eventually("the drain", async || rig.receipts().len() == 1).await;
        let record = rig.receipts().remove(0);
        assert_eq!(
            (record.trigger, record.in_flight, record.deadline.is_some()),
            (Trigger::PodDeleted, 1, true)
        );
        a.release();
        assert_eq!(soon("its response", requests.join_all()).await, [200]);
        eventually("the receipt", async || ended(&rig).len() == 1).await;
        assert_eq!(ended(&rig)[0].finished, 1);
    }
}

/// Contract 1.4: the deadline is the pod's own, and later events only shorten it.
#[tokio::test]
async fn a_drain_deadline_only_shortens() {
    let (a, b) = (
        Play::start(|_| Act::SayLater(OK.into())).await,
        good().await,
    );
    let rig = Rig::start("").await;
    let endpoints = pods(&rig, &[("a", &a)]).await;
    // The grace period of the pod's spec differs from that of its deletion.
    let pod = |deletion: Option<u64>| {
        let mut metadata = json!({"namespace": "web", "name": "a", "uid": uid_of("a")});
        if let Some(grace) = deletion {
            metadata["deletionTimestamp"] = json!(
                jiff::Timestamp::now()
                    .strftime("%Y-%m-%dT%H:%M:%SZ")
                    .to_string()
            );
            metadata["deletionGracePeriodSeconds"] = json!(grace);
        }
        let spec = json!({"terminationGracePeriodSeconds": 5});
        rig.write(
            "pod-a.json",
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
        );
    };
    pod(None);
    let requests = in_flight(&rig, &[&a], 1).await;
    rig.pod("b", "v1", None);
    let ep_b = Ep::new("b", b.address()).of_pod();
    rig.endpoints(&[endpoints[0].clone(), ep_b.clone()]);
    rig.usable(2).await;
    let endpoint = at(&rig, &a).unwrap();
    let left = |from: Instant| (endpoint.drain_deadline().unwrap() - from).as_secs_f64();

    let begin = Instant::now();
    pod(Some(100));
    eventually("the drain", async || endpoint.is_draining()).await;
    let first = endpoint.drain_deadline();
    // At least the grace and 3 s after the event. This machine decides how late the event is read.
    assert!(left(begin) >= 103.0, "{}", left(begin));
    rig.endpoints(&[endpoints[0].clone().terminating(), ep_b.clone()]);
    in_force(&rig, 1).await;
    assert_eq!(
        endpoint.drain_deadline(),
        first,
        "the slice reports the same, later"
    );
    pod(Some(200));
    in_force(&rig, 2).await;
    assert_eq!(endpoint.drain_deadline(), first, "a longer grace");
    pod(Some(50));
    eventually("a shorter deadline", async || {
        endpoint.drain_deadline() < first
    })
    .await;
    let second = endpoint.drain_deadline();
    assert!(left(begin) >= 53.0);
    rig.remove("pod-a.json");
    eventually("the pod is known to be gone", async || endpoint.pod_gone()).await;
    assert_eq!(
        endpoint.drain_deadline(),
        second,
        "the end of the Pod object"
    );
    rig.endpoints(std::slice::from_ref(&ep_b));
    in_force(&rig, 3).await;
    assert_eq!(endpoint.drain_deadline(), second, "the end in the slice");
    a.release();
    assert_eq!(soon("its response", requests.join_all()).await, [200]);
}

/// Contract 1.9: an endpoint that serves while it terminates is used only if no other is usable.
#[tokio::test]
async fn the_last_resort_serves_until_another_one_is_usable() {
    let (a, b) = (good().await, good().await);
    let rig = Rig::start("").await;
    let endpoints = pods(&rig, &[("a", &a)]).await;
    let endpoint = at(&rig, &a).unwrap();
    rig.pod("a", "v1", Some(60));
    rig.endpoints(&[endpoints[0].clone().terminating()]);
    eventually("a last resort", async || port(&rig).last_resort.len() == 1).await;
    in_force(&rig, 1).await;
    assert!(port(&rig).usable.is_empty() && !endpoint.is_draining() && rig.receipts().is_empty());
    let mut client = Client::connect(rig.web()).await.unwrap();
    for _ in 0..20 {
        assert_eq!(get(&mut client).await.status, 200);
    }
    assert_eq!(a.requests().len(), 20);
    rig.pod("b", "v2", None);
    rig.endpoints(&[
        endpoints[0].clone().terminating(),
        Ep::new("b", b.address()).of_pod(),
    ]);
    rig.usable(1).await;
    eventually("its drain", async || endpoint.is_draining()).await;
    for _ in 0..50 {
        assert_eq!(get(&mut client).await.status, 200);
    }
    assert_eq!((a.requests().len(), b.requests().len()), (20, 50));
    eventually("the receipt", async || ended(&rig).len() == 1).await;
    // The other endpoint is out again, so the last resort serves again.
    rig.endpoints(&[
        endpoints[0].clone().terminating(),
        Ep::new("b", b.address()).of_pod().not_ready(),
    ]);
    eventually("a last resort again", async || {
        port(&rig).last_resort.len() == 1
    })
    .await;
    assert_eq!(get(&mut client).await.status, 200);
    assert_eq!((a.requests().len(), b.requests().len()), (21, 50));
}

/// The last resort ends when it stops serving, and when its deadline passes.
#[tokio::test]
async fn the_last_resort_ends_with_serving_and_with_its_deadline() {
    for by_deadline in [false, true] {
        let a = good().await;
        let rig = Rig::start("timeouts: {hold: 200ms, drain: 600ms}").await;
        let ep = Ep::new("a", a.address());
        rig.endpoints(std::slice::from_ref(&ep));
        rig.usable(1).await;
        let endpoint = at(&rig, &a).unwrap();
        rig.endpoints(&[ep.clone().terminating()]);
        let mut client = Client::connect(rig.web()).await.unwrap();
        assert_eq!(get(&mut client).await.status, 200);
        if !by_deadline {
            rig.endpoints(&[Ep {
                serving: false,
                ..ep.terminating()
            }]);
        }
        eventually("its drain", async || endpoint.is_draining()).await;
        assert_eq!(
            Instant::now() >= endpoint.drain_deadline().unwrap(),
            by_deadline
        );
        let answer = get(&mut client).await;
        assert_eq!(
            (answer.status, answer.header("retry-after").is_some()),
            (503, true)
        );
        eventually("the receipt", async || ended(&rig).len() == 1).await;
        in_force(&rig, 1).await;
        assert_eq!(rig.receipts().len(), 1);
    }
}
