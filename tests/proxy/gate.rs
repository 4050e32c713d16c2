//! The gate (contract 16), on loopback: a call to the pod's own address is held until every instance
//! has let go of the pod, and no failure holds it for longer. How the kubelet's call comes here is
//! tested with real packets in `tests/addresses/gate.rs`.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use ebbtide::command::demo::client::Client;
use ebbtide::command::wait::wait;
use ebbtide::contract::name::ObjectName;
use ebbtide::gate::log::{Has, Hold, Outcome};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::proxy::ask::get;
use crate::proxy::play::{Act, OK, Play};
use crate::support::folder::{Ep, Folder};
use crate::support::manifests::uid_of;
use crate::support::rig::{NODE, Rig, one_listener};
use crate::support::wait::{eventually, soon};

/// A port of loopback that is free now.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

impl Rig {
    /// A proxy whose gate listens at `gate`, with these peers. All pods have the address of the gate, so
    /// a call to the gate is one to the pod of this node.
    async fn gated(gate: SocketAddr, peers: &[SocketAddr], more: &str) -> Self {
        let peers: Vec<_> = peers.iter().map(|it| format!("'{it}'")).collect();
        let text = format!(
            "gate: {{addresses: [127.0.0.1], port: {}, peers: [{}]{more}}}\ntimeouts: {{drain: 10m}}",
            gate.port(),
            peers.join(", ")
        );
        let rig = Self::run(Folder::new(), &one_listener("http", &text)).await;
        eventually("the gate", async || TcpStream::connect(gate).await.is_ok()).await;
        rig
    }

    /// Writes endpoints. The first is the pod of this node.
    fn pods(&self, endpoints: &[&Ep]) {
        for (at, ep) in endpoints.iter().enumerate() {
            let mut slice = ep.slice_of("shop", "");
            slice["endpoints"][0]["nodeName"] = json!(if at == 0 { NODE } else { "other" });
            self.write(&format!("slice-{}.json", ep.name), &slice);
        }
    }

    fn holds(&self) -> Vec<Hold> {
        self.running().admin.gate.log.holds()
    }
}

/// The kubelet's call. The answer's body.
fn call(gate: SocketAddr) -> JoinHandle<std::io::Result<String>> {
    tokio::spawn(async move {
        let mut stream = TcpStream::connect(gate).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        Ok(body.trim().to_owned())
    })
}

async fn answered(call: JoinHandle<std::io::Result<String>>) -> String {
    soon("the gate's answer", call).await.unwrap().unwrap()
}

/// Sends a POST, whose answer comes when the endpoint gives it.
fn post(to: SocketAddr) -> JoinHandle<std::io::Result<String>> {
    tokio::spawn(async move {
        let mut stream = TcpStream::connect(to).await?;
        let request =
            "POST / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })
}

/// An application that answers when it is told to, and one that answers at once.
async fn slow_and_fast() -> (Play, Play) {
    let slow = Play::start(|_| Act::SayLater(OK.into())).await;
    let fast =
        Play::start(|_| Act::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfast".to_vec()))
            .await;
    (slow, fast)
}

fn pod_of(play: &Play, name: &str) -> Ep {
    Ep::new(name, play.address()).of_pod()
}

/// A proxy with a POST in flight on pod `a` of this node, and pod `b`, which is fast.
struct Scene {
    rig: Rig,
    a: Play,
    ep_a: Ep,
    _b: Play,
    posted: JoinHandle<std::io::Result<String>>,
}

async fn scene(gate: SocketAddr, peers: &[SocketAddr], more: &str) -> Scene {
    let (a, b) = slow_and_fast().await;
    let (ep_a, ep_b) = (pod_of(&a, "a"), pod_of(&b, "b"));
    let rig = Rig::gated(gate, peers, more).await;
    rig.pods(&[&ep_a]);
    rig.usable(1).await;
    let posted = post(rig.web());
    eventually("the POST", async || a.heads() == 1).await;
    rig.pods(&[&ep_a, &ep_b]);
    rig.usable(2).await;
    Scene {
        rig,
        a,
        ep_a,
        _b: b,
        posted,
    }
}

async fn body(rig: &Rig) -> String {
    let mut client = Client::connect(rig.web()).await.unwrap();
    get(&mut client).await.text().into_owned()
}

#[tokio::test]
async fn a_post_in_flight_is_answered_before_its_pod_is_told_to_stop() {
    let gate = free();
    let Scene {
        rig,
        mut a,
        posted,
        _b,
        ..
    } = scene(gate, &[], "").await;
    let call = call(gate);
    // The call alone takes the pod out of rotation: no slice and no Pod says anything.
    rig.usable(1).await;
    for _ in 0..20 {
        assert_eq!(body(&rig).await, "fast");
    }
    assert!(!call.is_finished(), "a POST is in flight");
    let running = &rig.holds()[0];
    assert_eq!(
        (running.pod.to_string().as_str(), running.outcome),
        ("web/a", None)
    );
    a.release();
    assert_eq!(answered(call).await, "clear");
    // SIGTERM: the application exits at once.
    a.stop_listening();
    a.drop_connections();
    let answer = soon("the POST's answer", posted).await.unwrap().unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
    assert_eq!(a.heads(), 1);
    let receipt = &rig.holds()[0];
    assert_eq!(receipt.outcome, Some(Outcome::Clear));
    assert_eq!(receipt.by_whom(), "this instance (1 in flight)");
    assert_eq!(rig.metric("ebbtide_gate_calls_total", "clear"), 1.0);
}

#[tokio::test]
async fn a_hold_ends_with_half_of_the_grace_that_is_left() {
    let gate = free();
    let Scene { rig, a, _b, .. } = scene(gate, &[], "").await;
    rig.pod("a", "1", Some(2));
    rig.usable(1).await;
    // The POST never ends.
    assert_eq!(answered(call(gate)).await, "grace");
    assert_eq!(a.heads(), 1);
    assert_eq!(rig.holds()[0].outcome, Some(Outcome::Grace));
}

#[tokio::test]
async fn a_pod_that_is_the_last_one_serves_until_another_does() {
    let gate = free();
    let (_, fast) = slow_and_fast().await;
    let rig = Rig::gated(gate, &[], "").await;
    rig.pods(&[&pod_of(&fast, "a")]);
    rig.usable(1).await;
    let call = call(gate);
    eventually("the hold", async || !rig.holds().is_empty()).await;
    rig.usable(0).await;
    assert_eq!(body(&rig).await, "fast", "as last resort");
    assert!(!call.is_finished());
    let b = Play::start(|_| Act::Say(OK.into())).await;
    rig.pods(&[&pod_of(&fast, "a"), &pod_of(&b, "b")]);
    assert_eq!(answered(call).await, "clear");
    assert_eq!(body(&rig).await, "ok");
    assert!(rig.holds()[0].by_whom().contains("nothing else serves"));
}

#[tokio::test]
async fn a_container_that_is_restarted_gets_requests_when_it_is_ready_again() {
    let gate = free();
    let Scene {
        rig,
        a,
        ep_a,
        posted,
        _b,
        ..
    } = scene(gate, &[], "").await;
    a.release();
    posted.await.unwrap().unwrap();
    assert_eq!(answered(call(gate)).await, "clear");
    rig.usable(1).await;
    // The suspension would take ten minutes.
    rig.pods(&[&ep_a.clone().not_ready()]);
    eventually("not ready", async || {
        let snapshot = rig.running().admin.snapshot.load();
        snapshot.ports.values().any(|port| {
            port.all
                .iter()
                .any(|it| it.address == ep_a.address && !it.conditions().ready)
        })
    })
    .await;
    rig.pods(&[&ep_a]);
    rig.usable(2).await;
}

#[tokio::test]
async fn a_call_for_no_pod_of_this_node_is_answered_at_once() {
    let gate = free();
    let rig = Rig::gated(gate, &[], "").await;
    assert_eq!(answered(call(gate)).await, "unknown");
    // A pod of another node, and one without a UID.
    let (_, fast) = slow_and_fast().await;
    let elsewhere = pod_of(&fast, "a");
    rig.pods(&[&Ep::new("nobody", free()), &elsewhere]);
    rig.usable(1).await;
    assert_eq!(answered(call(gate)).await, "unknown");
    assert!(rig.holds().is_empty());
    assert_eq!(rig.metric("ebbtide_gate_calls_total", "unknown"), 2.0);
}

#[tokio::test]
async fn a_caller_that_hangs_up_ends_its_hold() {
    let gate = free();
    let Scene { rig, _b, .. } = scene(gate, &[], "").await;
    let call = call(gate);
    eventually("the hold", async || rig.holds().len() == 1).await;
    call.abort();
    eventually("its end", async || {
        rig.holds()[0].outcome == Some(Outcome::Gone)
    })
    .await;
    assert_eq!(rig.metric("ebbtide_gate_calls_total", "gone"), 1.0);
}

#[tokio::test]
async fn of_thousands_of_callers_some_are_held_and_all_are_answered() {
    let gate = free();
    let Scene { rig, a, _b, .. } = scene(gate, &[], "").await;
    let calls: Vec<_> = (0..1_500).map(|_| call(gate)).collect();
    eventually("many holds", async || rig.holds().len() >= 500).await;
    a.release();
    let mut ended = std::collections::BTreeMap::new();
    for call in calls {
        // One whose place was taken has its connection closed: the kubelet goes on.
        let how = soon("an end", call)
            .await
            .unwrap()
            .unwrap_or("closed".into());
        *ended.entry(how).or_insert(0) += 1;
    }
    assert!(ended["clear"] >= 500, "{ended:?}");
    assert!(
        ended
            .keys()
            .all(|how| ["clear", "full", "closed"].contains(&how.as_str())),
        "{ended:?}"
    );
    assert_eq!(answered(call(gate)).await, "clear");
    let running = rig.holds().iter().filter(|it| it.outcome.is_none()).count();
    assert_eq!(running, 0);
}

#[tokio::test]
async fn every_instance_lets_go_before_the_answer() {
    let (here, there) = (free(), free());
    let Scene {
        rig,
        a,
        ep_a,
        posted,
        _b,
        ..
    } = scene(here, &[there], "").await;
    // The other instance has a POST in flight, and knows nothing of an end.
    let other = Rig::gated(there, &[here], "").await;
    let b = Play::start(|_| Act::Say(OK.into())).await;
    other.pods(&[&pod_of(&b, "b"), &ep_a]);
    other.usable(2).await;
    let mut others = Vec::new();
    while a.heads() < 2 {
        others.push(post(other.web()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let call = call(here);
    // It takes the pod out of its rotation, for as long as the hold goes on.
    other.usable(1).await;
    rig.usable(1).await;
    eventually("who holds it", async || rig.holds()[0].holders.len() == 2).await;
    let has = Some(Has {
        open: false,
        in_flight: 1,
    });
    let holders = rig.holds()[0].holders.clone();
    assert_eq!((holders[1].peer, holders[0].has), (Some(there), has));
    let admin = format!("http://{}", rig.running().admin_address);
    let pod = ObjectName::new("web", "a");
    let waits = |admin: String, pod: ObjectName| {
        tokio::task::spawn_blocking(move || wait(&admin, &pod, Duration::ZERO).unwrap())
    };
    let left = waits(admin.clone(), pod.clone()).await.unwrap();
    assert_eq!(left[0], "this instance: 1 in flight");
    assert!(
        left[1].starts_with(&there.to_string()) && left[1].contains("in flight"),
        "{left:?}"
    );
    assert!(!call.is_finished());
    a.release();
    assert_eq!(answered(call).await, "clear");
    assert!(posted.await.unwrap().unwrap().ends_with("ok"));
    for post in others {
        assert!(post.await.unwrap().unwrap().ends_with("ok"));
    }
    assert_eq!(waits(admin, pod).await.unwrap(), Vec::<String>::new());
    // Nobody has confirmed the end, so the other instance's suspension ends by itself.
    other.usable(2).await;
}

#[tokio::test]
async fn an_instance_that_is_silent_or_gone_is_not_waited_for() {
    let (gate, gone) = (free(), free());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let peers = [silent.local_addr().unwrap(), gone];
    let Scene {
        rig, a, posted, _b, ..
    } = scene(gate, &peers, "").await;
    a.release();
    posted.await.unwrap().unwrap();
    assert_eq!(answered(call(gate)).await, "clear");
    assert!(rig.metric("ebbtide_gate_silent_total", "") >= 1.0);
    let receipt = &rig.holds()[0];
    assert!(
        receipt
            .by_whom()
            .contains(&format!("{} (does not answer)", peers[0])),
        "{receipt:?}"
    );
    let admin = format!("http://{}", rig.running().admin_address);
    let pod = ObjectName::new("web", "a");
    let left = tokio::task::spawn_blocking(move || wait(&admin, &pod, Duration::ZERO).unwrap());
    assert_eq!(left.await.unwrap().len(), 2, "nobody knows what they have");
}

/// Sends a hint as another instance would, without a signature.
async fn hint(gate: SocketAddr, body: &Value) -> String {
    let body = body.to_string();
    let mut stream = TcpStream::connect(gate).await.unwrap();
    let head = format!(
        "POST /api/v1/gate HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_forged_hint_costs_a_pod_two_seconds_and_with_a_key_nothing() {
    let gate = free();
    let Scene { rig, a, _b, .. } = scene(gate, &[], "").await;
    let of_a = json!({"pods": [uid_of("a"), "unknown"]});
    let answer = hint(gate, &of_a).await;
    let expected = r#"{"pods":[{"open":false,"inFlight":1},{"open":false,"inFlight":0}]}"#;
    assert!(answer.ends_with(expected), "{answer}");
    rig.usable(1).await;
    rig.usable(2).await;
    assert_eq!(a.heads(), 1, "nothing was cut");
    assert!(rig.receipts().is_empty(), "nothing drains");
    for bad in [
        json!({}),
        json!({"pods": 1}),
        json!({"pods": vec!["x"; 257]}),
    ] {
        assert!(hint(gate, &bad).await.starts_with("HTTP/1.1 400"), "{bad}");
    }
    let long = json!({"pods": ["x".repeat(100_000)]});
    assert!(hint(gate, &long).await.starts_with("HTTP/1.1 400"));
    assert_eq!(rig.metric("ebbtide_gate_hints_total", ""), 2.0);

    let (here, there) = (free(), free());
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (folder.path().join("right"), folder.path().join("wrong"));
    std::fs::write(&right, "0123456789abcdef\n").unwrap();
    std::fs::write(&wrong, "0123456789abcdeX\n").unwrap();
    let key = |path: &std::path::Path| format!(", key: {}", path.display());
    let signed = scene(here, &[there], &key(&right)).await;
    assert!(hint(here, &of_a).await.starts_with("HTTP/1.1 401"));
    assert_eq!(signed.rig.metric("ebbtide_gate_hints_total", ""), 0.0);
    // One with another key counts as silent, and one with the same as an instance.
    let other = Rig::gated(there, &[here], &key(&wrong)).await;
    signed.a.release();
    signed.posted.await.unwrap().unwrap();
    assert_eq!(answered(call(here)).await, "clear");
    assert_eq!(signed.rig.metric("ebbtide_gate_silent_total", ""), 1.0);
    drop(other);
    let _other = Rig::gated(there, &[here], &key(&right)).await;
    assert_eq!(answered(call(here)).await, "clear");
    assert_eq!(signed.rig.metric("ebbtide_gate_silent_total", ""), 1.0);
}
