//! Ingress objects: their watch, and the Services to which they lead, which nobody has claimed.

use ebbtide::command::demo::client::Client;
use serde_json::{Value, json};

use super::api::{Api, Asked, Kind, Verb};
use super::rig::{Rig, Times, claimed, ready, service, shop, slice, within};
use crate::support::wait::eventually;

const INGRESS: &str = "ingress: {addresses: [127.0.0.1], httpPort: 0, httpsPort: 0}";

pub fn ingress(name: &str, class: &str, to: &str) -> Value {
    let backend = json!({"service": {"name": to, "port": {"number": 80}}});
    let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend}]);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"namespace": "web", "name": name, "uid": name},
        "spec": {"ingressClassName": class, "rules": [{"http": {"paths": paths}}]},
    })
}

fn add(api: &Api, name: &str, last: u8) {
    api.apply(&service(name));
    api.apply(&slice(&format!("s-{name}"), name, &[ready(last, name)]));
}

#[tokio::test]
async fn services_are_read_while_an_ingress_of_the_class_leads_to_them() {
    let api = shop(2).await;
    add(&api, "other", 7);
    api.apply(&ingress("a", "ebbtide", "shop"));
    api.apply(&ingress("b", "nginx", "other"));
    let rig = Rig::launch(&api, "", INGRESS);
    rig.ready().await;
    rig.shop(&[1, 2]).await;
    assert!(rig.port("other").is_none());
    api.apply(&ingress("b", "ebbtide", "other"));
    eventually("the second Service", async || rig.usable("other") == [7]).await;
    rig.shop(&[1, 2]).await;
    // Endpoints of a Service that is named alone are followed.
    api.apply(&slice("s-other", "other", &[ready(8, "other-2")]));
    eventually("its new endpoint", async || rig.usable("other") == [8]).await;
    // A third changes no watch, and the watch of the namespace has shown it already.
    add(&api, "third", 9);
    rig.shop(&[1, 2]).await;
    api.apply(&ingress("c", "ebbtide", "third"));
    eventually("the third Service", async || rig.usable("third") == [9]).await;
    api.delete(Kind::Ingresses, "web", "a");
    eventually("the end of the first", async || rig.port("shop").is_none()).await;
    assert_eq!(rig.usable("other"), [8]);
    assert_eq!(api.count(Kind::Ingresses, Verb::List), 1);
}

/// A request that comes before the Service of a new rule is read waits for it.
#[tokio::test]
async fn a_request_waits_for_a_service_that_was_just_named() {
    let api = shop(1).await;
    api.apply(&service("other"));
    api.apply(&ingress("a", "other-class", "other"));
    let rig = Rig::launch(&api, "", &format!("{INGRESS}\ntimeouts: {{hold: 0s}}"));
    rig.ready().await;
    let web = rig.running().listener("ingress-http@127.0.0.1").unwrap();
    api.hold(Kind::Services);
    api.apply(&ingress("a", "ebbtide", "other"));
    let first = async {
        loop {
            let mut client = Client::connect(web).await.unwrap();
            let answer = client.exchange("GET", "/", "", b"").await.unwrap();
            if answer.status != 404 {
                return answer.text().to_string();
            }
        }
    };
    let releases = async {
        eventually("the Service's watch", async || {
            let asked = api.asked();
            let of_it = |it: &&Asked| it.selector.as_deref() == Some("metadata.name=other");
            asked.iter().any(|it| of_it(&it))
        })
        .await;
        api.release(Kind::Services);
    };
    let (answer, ()) = tokio::join!(first, releases);
    assert!(answer.contains("no_endpoint"), "{answer}");
}

#[tokio::test]
async fn ingresses_are_not_read_where_they_are_not_served() {
    let api = shop(1).await;
    let rig = Rig::start(&api).await;
    rig.shop(&[1]).await;
    assert!(!api.asked().iter().any(|it| it.kind == Kind::Ingresses));
}

/// Without the right to read them, everything else is served.
#[tokio::test]
async fn ingresses_that_may_not_be_read_are_named_and_cost_no_other_service() {
    let api = Api::start().await;
    api.forbid(Kind::Ingresses, None);
    api.apply(&within("shop", claimed(service("shop"))));
    let slice = slice("s", "shop", &[ready(1, "p")]);
    api.apply(&within("shop", slice));
    let rig = Rig::with_times(&api, "pods: none", INGRESS, Times::impatient());
    eventually("the claimed Service", async || {
        let ports = rig.running().admin.snapshot.load().ports;
        ports.values().any(|port| port.usable.len() == 1)
    })
    .await;
    eventually("the problem", async || {
        let problems = rig.running().admin.health.state().problems;
        problems.iter().any(|it| it.subject.contains("Ingresses"))
    })
    .await;
}
