//! The Gateway API from an API server: kinds that are not installed hold up nothing, and the elected
//! instance says what is served.

use ebbtide::command::demo::client::Client;
use serde_json::{Value, json};

use super::api::objects::GATEWAYS;
use super::api::{Api, Kind};
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
