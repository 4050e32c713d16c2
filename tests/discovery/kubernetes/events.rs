//! Events on Services, as `kubectl describe` shows them (contract 2.9 and 1.10): what is not
//! served, drains, rollout receipts, and ports that cannot be bound. What is not served is one
//! Event however many proxies post it. A server that refuses Events costs nothing else.

use serde_json::{Value, json};

use super::api::{Api, Kind};
use super::rig::{Rig, WEB, claimed, deleting, pod, ready, service, shop, slice};
use crate::support::wait::eventually;

fn posted(api: &Api, reason: &str) -> Vec<Value> {
    api.posted()
        .into_iter()
        .filter(|event| event["reason"] == reason)
        .collect()
}

#[tokio::test]
async fn a_drain_is_an_event_on_its_service_and_a_burst_of_them_has_a_receipt() {
    let api = shop(3).await;
    let rig = Rig::start(&api).await;
    rig.shop(&[1, 2, 3]).await;
    for n in [1, 2] {
        rig.count_request(n);
        api.apply(&deleting(pod(&format!("p{n}")), &api, 30, 30));
    }
    api.apply(&slice("s", "shop", &[ready(3, "p3")]));
    eventually("two Events", async || {
        posted(&api, "EndpointDrained").len() == 2
    })
    .await;
    rig.count_request(3);
    let mut events = posted(&api, "EndpointDrained");
    events.sort_by_key(|event| event["note"].to_string());
    let note = events[0]["note"].as_str().unwrap();
    assert!(
        note.starts_with("pod p1 (10.0.0.1:8080): drained in ") && note.contains("(podDeleted)"),
        "{note}"
    );
    let expected = json!({"apiVersion": "v1", "kind": "Service", "namespace": "web", "name": "shop", "uid": "uid-shop"});
    assert_eq!(events[0]["regarding"], expected);
    assert_eq!(
        (&events[0]["type"], &events[0]["action"]),
        (&"Normal".into(), &"Drain".into())
    );
    assert!(
        events
            .iter()
            .all(|event| event["metadata"]["namespace"] == "web")
    );
    assert_ne!(events[0]["metadata"]["name"], events[1]["metadata"]["name"]);

    eventually("a receipt", async || {
        !posted(&api, "RolloutReceipt").is_empty()
    })
    .await;
    let receipt = posted(&api, "RolloutReceipt").remove(0);
    let note = receipt["note"].as_str().unwrap();
    // The third endpoint joined a moment before, so it counts as come.
    assert!(
        note.starts_with("2 pods gone, 1 come in ") && note.contains(" failed, "),
        "{note}"
    );
    assert_eq!(posted(&api, "RolloutReceipt").len(), 1);
}

#[tokio::test]
async fn what_is_not_served_is_one_event_however_many_proxies_post_it() {
    let api = shop(1).await;
    let mut near = claimed(service("near"));
    let voice = json!({"name": "voice", "port": 5060, "protocol": "SCTP"});
    near["spec"]["ports"].as_array_mut().unwrap().push(voice);
    near["metadata"]["annotations"]["ebbtide.dev/hold-timeout"] = "soon".into();
    api.apply(&near);
    let rigs = [Rig::start(&api).await, Rig::start(&api).await];
    eventually("two Events", async || posted(&api, "NotServed").len() == 2).await;
    let notes: Vec<String> = posted(&api, "NotServed")
        .iter()
        .map(|event| event["note"].to_string())
        .collect();
    assert!(
        notes
            .iter()
            .any(|note| note.contains("spec.ports[1].protocol: SCTP is not served")),
        "{notes:?}"
    );
    assert!(
        notes
            .iter()
            .any(|note| note.contains("ebbtide.dev/hold-timeout")),
        "{notes:?}"
    );
    assert!(
        posted(&api, "NotServed")
            .iter()
            .all(|event| event["type"] == "Warning")
    );
    // One of the two has posted each. The other is told that it exists, and posts nothing else.
    eventually("both have asked", async || api.refused_events() >= 2).await;
    assert_eq!(posted(&api, "NotServed").len(), 2);
    drop(rigs);
}

#[tokio::test]
async fn of_all_proxies_one_reports_a_drain_and_only_if_it_touched_a_request() {
    let api = shop(4).await;
    let rigs = [Rig::start(&api).await, Rig::start(&api).await];
    for rig in &rigs {
        rig.shop(&[1, 2, 3, 4]).await;
        rig.count_request(2);
    }
    for n in [1, 2, 3] {
        api.apply(&deleting(pod(&format!("p{n}")), &api, 30, 30));
    }
    for rig in &rigs {
        rig.shop(&[4]).await;
        eventually("drained", async || rig.drained() == [1, 2, 3]).await;
    }
    eventually("the second to post is refused", async || {
        api.refused_events() == 1
    })
    .await;
    let drained = posted(&api, "EndpointDrained");
    let notes: Vec<&str> = drained
        .iter()
        .filter_map(|it| it["note"].as_str())
        .collect();
    assert!(
        notes.len() == 1 && notes[0].starts_with("pod p2 "),
        "{notes:?}"
    );
}

#[tokio::test]
async fn a_port_that_cannot_be_bound_is_an_event_and_tried_again() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let api = shop(1).await;
    let mut shop = claimed(service("shop"));
    shop["spec"]["ports"][0]["nodePort"] = port.into();
    api.apply(&shop);
    let rig = Rig::launch(
        &api,
        "",
        &format!("{WEB}\nnodePorts: {{addresses: [127.0.0.1]}}"),
    );
    eventually("an Event", async || {
        !posted(&api, "PortNotBound").is_empty()
    })
    .await;
    let event = posted(&api, "PortNotBound").remove(0);
    let note = event["note"].as_str().unwrap();
    assert!(
        note.starts_with(&format!("127.0.0.1:{port} cannot be bound, trying again: ")),
        "{note}"
    );
    eventually("ready, and reporting the port", async || {
        let (code, line) = rig.readyz().await;
        code == 200 && line.contains("not bound, trying again") && line.contains(&port.to_string())
    })
    .await;
    drop(taken);
    rig.clean().await;
    assert_eq!(
        posted(&api, "PortNotBound").len(),
        1,
        "posted once, not for each try"
    );
}

#[tokio::test]
async fn an_api_server_that_refuses_events_changes_nothing_else() {
    let api = shop(2).await;
    api.refuse_events();
    let rig = Rig::start(&api).await;
    rig.shop(&[1, 2]).await;
    rig.count_request(1);
    api.apply(&deleting(pod("p1"), &api, 30, 30));
    api.apply(&slice("s", "shop", &[ready(2, "p2")]));
    eventually("counted", async || rig.errors("event") > 0).await;
    eventually("drained", async || rig.drained() == [1]).await;
    api.delete(Kind::Pods, "web", "p1");
    rig.settled().await;
    rig.clean().await;
}
