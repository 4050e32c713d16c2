//! The Gateway API from an API server: kinds that are not installed hold up nothing, and the elected
//! instance says what is served.

use std::collections::BTreeSet;

use ebbtide::command::demo::client::Client;
use serde_json::{Value, json};

use super::api::objects::GATEWAYS;
use super::api::{Api, Fault, Kind, Verb};
use super::rig::{Rig, ready, service, shop, slice};
use crate::support::wait::eventually;

const GATEWAY: &str = "gateway: {addresses: [127.67.0.0/29]}\ntimeouts: {hold: 0s}";

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let mut metadata = json!({"name": name, "uid": name, "generation": 1});
    if kind != "GatewayClass" {
        metadata["namespace"] = json!("web");
    }
    json!({"apiVersion": GATEWAYS, "kind": kind, "metadata": metadata, "spec": spec})
}

fn add_edge(api: &Api, port: u16) {
    let class = json!({"controllerName": "ebbtide.dev/gateway"});
    api.apply(&object("GatewayClass", "ours", class));
    let listeners = json!([{"name": "http", "port": port, "protocol": "HTTP"}]);
    let spec = json!({"gatewayClassName": "ours", "listeners": listeners});
    api.apply(&object("Gateway", "edge", spec));
}

fn route(to: &str) -> Value {
    let rules = json!([{"backendRefs": [{"name": to, "port": 80}]}]);
    let spec = json!({"parentRefs": [{"name": "edge"}], "rules": rules});
    object("HTTPRoute", "shop", spec)
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// Type, status and reason of each condition.
fn conditions(of: &Value) -> String {
    let all = of.as_array().into_iter().flatten();
    let all = all.map(|it| format!("{}={} {}", it["type"], it["status"], it["reason"]));
    all.collect::<Vec<_>>().join(", ").replace('"', "")
}

async fn says(api: &Api, expected: &str) {
    eventually(expected, async || {
        let route = api.object(Kind::HttpRoutes, "web", "shop");
        conditions(&route["status"]["parents"][0]["conditions"]) == expected
    })
    .await;
}

#[tokio::test]
async fn a_route_is_served_and_its_status_follows_the_services() {
    let (api, port) = (shop(1).await, free_port());
    add_edge(&api, port);
    api.apply(&route("shop"));
    let rig = Rig::launch(&api, "", GATEWAY);
    rig.ready().await;
    says(
        &api,
        "Accepted=True Accepted, ResolvedRefs=True ResolvedRefs",
    )
    .await;
    let edge = api.object(Kind::Gateways, "web", "edge");
    assert_eq!(edge["status"]["addresses"][0]["value"], "127.67.0.1");
    let class = api.object(Kind::GatewayClasses, "", "ours");
    assert_eq!(
        conditions(&class["status"]["conditions"]),
        "Accepted=True Accepted"
    );
    rig.shop(&[1]).await;
    api.apply(&route("late"));
    says(
        &api,
        "Accepted=True Accepted, ResolvedRefs=False BackendNotFound",
    )
    .await;
    let name = format!("web/gateway/edge:{port}@127.67.0.1");
    let address = rig.running().listener(&name).unwrap();
    let mut client = Client::connect(address).await.unwrap();
    let answer = client.exchange("GET", "/", "", b"").await.unwrap();
    assert_eq!(answer.status, 500);
    api.apply(&service("late"));
    api.apply(&slice("s-late", "late", &[ready(7, "late")]));
    says(
        &api,
        "Accepted=True Accepted, ResolvedRefs=True ResolvedRefs",
    )
    .await;
    eventually("its endpoint", async || rig.usable("late") == [7]).await;
    assert_eq!(
        api.patched().iter().filter(|it| it.name == "edge").count(),
        1
    );
}

fn policy(name: &str) -> Value {
    let target = json!({"group": "", "kind": "Service", "name": "shop"});
    let authority = json!({"group": "", "kind": "ConfigMap", "name": "ca"});
    let validation = json!({"hostname": "shop.example", "caCertificateRefs": [authority]});
    let spec = json!({"targetRefs": [target], "validation": validation});
    object("BackendTLSPolicy", name, spec)
}

#[tokio::test]
async fn a_policy_says_what_it_comes_to_for_each_gateway_and_follows_its_config_map() {
    let (api, port) = (shop(1).await, free_port());
    add_edge(&api, port);
    api.apply(&route("shop"));
    let mut first = policy("a");
    let others =
        json!([{"ancestorRef": {"name": "x"}, "controllerName": "other", "conditions": []}]);
    first["status"] = json!({"ancestors": others});
    api.apply(&first);
    api.apply(&policy("b"));
    let mut idle = policy("idle");
    idle["spec"]["targetRefs"][0]["name"] = json!("nobody");
    idle["spec"]["validation"]["caCertificateRefs"][0]["name"] = json!("unread");
    api.apply(&idle);
    let rig = Rig::launch(&api, "", GATEWAY);
    rig.ready().await;
    let ancestors =
        |name: &str| api.object(Kind::Policies, "web", name)["status"]["ancestors"].clone();
    let says = async |name: &str, place: usize, expected: &str| {
        eventually(&format!("{name}: {expected}"), async || {
            conditions(&ancestors(name)[place]["conditions"]) == expected
        })
        .await;
    };
    let missing = "Accepted=False NoValidCACertificate, ResolvedRefs=False InvalidCACertificateRef";
    says("a", 1, missing).await;
    assert_eq!(ancestors("a")[0], others[0]);
    let reference = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "web", "name": "edge"});
    assert_eq!(ancestors("a")[1]["ancestorRef"], reference);
    let conflicted = "Accepted=False Conflicted, ResolvedRefs=False InvalidCACertificateRef";
    says("b", 0, conflicted).await;
    let made = rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap();
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "web", "name": "ca"},
        "data": {"ca.crt": made.cert.pem()},
    });
    api.apply(&map);
    let fine = "Accepted=True Accepted, ResolvedRefs=True ResolvedRefs";
    says("a", 1, fine).await;
    api.delete(Kind::ConfigMaps, "web", "ca");
    says("a", 1, missing).await;
    api.delete(Kind::Policies, "web", "a");
    api.apply(&map);
    says("b", 0, fine).await;
    assert_eq!(ancestors("idle"), Value::Null);
    let asked = api.asked().into_iter();
    let asked = asked.filter(|it| it.kind == Kind::ConfigMaps);
    let selectors: BTreeSet<_> = asked.filter_map(|it| it.selector).collect();
    let named = ["metadata.name=ca".to_owned()];
    assert!(selectors.iter().eq(&named), "{selectors:?}");
}

#[tokio::test]
async fn requests_wait_until_it_is_known_what_the_config_map_of_a_policy_holds() {
    let (api, port) = (shop(1).await, free_port());
    add_edge(&api, port);
    api.apply(&route("shop"));
    api.apply(&policy("a"));
    api.fault(Kind::ConfigMaps, Verb::List, Fault::Wait);
    let long = "gateway: {addresses: [127.67.0.0/29]}\ntimeouts: {hold: 5m}";
    let rig = Rig::launch(&api, "", long);
    rig.ready().await;
    rig.shop(&[1]).await;
    let name = format!("web/gateway/edge:{port}@127.67.0.1");
    let address = rig.running().listener(&name).unwrap();
    let client = tokio::spawn(async move {
        let mut client = Client::connect(address).await.unwrap();
        client.exchange("GET", "/", "", b"").await
    });
    let held = || rig.port("shop").unwrap().metrics.held_now.get();
    eventually("a request is held", async || held() == 1).await;
    let status = api.object(Kind::Policies, "web", "a")["status"].clone();
    assert_eq!(status, Value::Null, "nothing is said before");
    // The same request, which has been found by the routes before, goes on.
    api.lift(Kind::ConfigMaps, Verb::List);
    eventually("its end", async || held() == 0).await;
    assert_eq!(rig.port("shop").unwrap().metrics.held_expired.get(), 0);
    client.abort();
}
