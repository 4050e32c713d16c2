//! A namespace that cannot be listed holds up only itself (contract 1.10): the others are served,
//! its ports are left to the process that serves them now, and `/readyz` names it. Without the pods
//! of a namespace, its slices are enough to serve it.

use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::{Value, json};

use super::api::{Api, Kind, Order};
use super::rig::{Rig, Times, claimed, pod, ready, service, shop, slice, terminating, within};
use crate::support::wait::eventually;

/// A port that is free now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn accepts(port: u16) -> bool {
    TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_ok()
}

/// A claimed Service `app` in a namespace, with a nodePort, one endpoint and its pod.
fn app(api: &Api, namespace: &str, node_port: u16) {
    let mut app = claimed(service("app"));
    app["spec"]["ports"][0]["nodePort"] = node_port.into();
    app["metadata"]["uid"] = format!("uid-{namespace}").into();
    api.apply(&within(namespace, app));
    let name = format!("p-{namespace}");
    api.apply(&within(namespace, slice("s", "app", &[ready(7, &name)])));
    api.apply(&within(namespace, pod(&name)));
}

/// Both kinds of listeners in each of two namespaces.
struct Two {
    api: Api,
    ports: [u16; 2],
    config: String,
}

impl Two {
    async fn new() -> Self {
        let (api, ports) = (Api::start().await, [free_port(), free_port()]);
        app(&api, "a", ports[0]);
        app(&api, "b", ports[1]);
        let config = "nodePorts: {addresses: [127.0.0.1]}\nlisteners: \
                      [{name: of-a, address: '127.0.0.1:0', service: a/app, port: 80}, \
                      {name: of-b, address: '127.0.0.1:0', service: b/app, port: 80}]";
        let config = config.to_owned();
        Self { api, ports, config }
    }

    fn launch(&self, source: &str) -> Rig {
        Rig::with_times(&self.api, source, &self.config, Times::impatient())
    }

    /// Namespace `a` is served, and `b` is not and is named.
    async fn serves_a_alone(&self, rig: &Rig, what: &str) {
        rig.ready().await;
        let named = "not served, because they cannot be listed: namespaces b";
        eventually(&format!("{what}: named"), async || {
            rig.readyz().await.1.contains(named)
        })
        .await;
        assert_eq!(rig.usable("a/app"), [7], "{what}");
        let bound = |name| rig.running().listener(name).is_some();
        eventually(&format!("{what}: bound"), async || {
            accepts(self.ports[0]) && bound("of-a")
        })
        .await;
        assert!(!accepts(self.ports[1]) && !bound("of-b"), "{what}");
    }

    /// Both namespaces are served.
    async fn serves_both(&self, rig: &Rig, what: &str) {
        eventually(what, async || {
            let bound = |name| rig.running().listener(name).is_some();
            rig.usable("b/app") == [7] && accepts(self.ports[1]) && bound("of-b")
        })
        .await;
    }
}

#[tokio::test]
async fn a_namespace_that_cannot_be_listed_holds_up_only_itself() {
    for kind in [Kind::Services, Kind::Slices] {
        let two = Two::new().await;
        two.api.forbid(kind, Some("b"));
        let rig = two.launch("namespaces: [a, b]");
        let what = format!("{kind:?}");
        two.serves_a_alone(&rig, &what).await;
        let (_, line) = rig.readyz().await;
        assert!(line.contains("grant list and watch"), "{kind:?}: {line}");
        two.api.allow(kind, Some("b"));
        two.serves_both(&rig, &what).await;
        rig.clean().await;
    }
}

#[tokio::test]
async fn a_namespace_without_its_pods_is_served_by_its_slices() {
    let two = Two::new().await;
    two.api.forbid(Kind::Pods, Some("b"));
    let rig = two.launch("");
    two.serves_both(&rig, "served").await;
    eventually("ready, and the pods are named", async || {
        let (code, line) = rig.readyz().await;
        code == 200 && line.contains("Pods in namespace b") && !line.contains("not served")
    })
    .await;
    let draining = slice("s", "app", &[terminating(7, "p-b"), ready(8, "q-b")]);
    two.api.apply(&within("b", draining));
    eventually("a drain", async || {
        rig.usable("b/app") == [8] && rig.running().admin.drains.records().len() == 1
    })
    .await;
    two.api.allow(Kind::Pods, Some("b"));
    rig.clean().await;
    assert_eq!(
        (rig.usable("a/app"), rig.usable("b/app")),
        (vec![7], vec![8])
    );
}

#[tokio::test]
async fn rights_that_are_taken_away_cost_the_namespace_only_a_restart() {
    let two = Two::new().await;
    let rig = two.launch("namespaces: [a, b]");
    two.serves_both(&rig, "at first").await;
    for kind in super::api::KINDS {
        two.api.forbid(kind, Some("b"));
        two.api.order(kind, Order::Cut);
    }
    eventually("named", async || {
        rig.readyz().await.1.contains("namespace b")
    })
    .await;
    two.serves_both(&rig, "by the last table").await;
    drop(rig);
    let rig = two.launch("namespaces: [a, b]");
    two.serves_a_alone(&rig, "after the restart").await;
}

/// What cannot be served is counted and named. An empty list does not show that a name is wrong.
#[tokio::test]
async fn namespaces_that_are_forbidden_or_do_not_exist_are_counted_and_named() {
    let two = Two::new().await;
    two.api.forbid(Kind::Slices, Some("b"));
    two.api.without_namespace("misspelt");
    let rig = two.launch("namespaces: [a, b, misspelt]");
    two.serves_a_alone(&rig, "beside them").await;
    eventually("both are named", async || {
        let (_, line) = rig.readyz().await;
        line.contains("namespaces that do not exist: misspelt") && line.contains("namespaces b")
    })
    .await;
    // The page is rendered at most once a second.
    eventually("both are counted", async || {
        rig.failed_namespaces().await == "2"
    })
    .await;
    two.api.allow(Kind::Slices, Some("b"));
    two.serves_both(&rig, "allowed").await;
    eventually("one is counted", async || {
        rig.failed_namespaces().await == "1"
    })
    .await;
    let line = "ready; namespaces that do not exist: misspelt".to_owned();
    eventually("nothing else is wrong", async || {
        rig.readyz().await == (200, line.clone())
    })
    .await;
}

#[tokio::test]
async fn if_nothing_can_be_listed_it_is_not_ready_however_long_that_lasts() {
    let api = shop(1).await;
    api.forbid(Kind::Slices, Some("web"));
    let rig = Rig::with_times(&api, "", super::rig::WEB, Times::impatient());
    eventually("some tries", async || rig.errors("list") >= 4).await;
    let (code, line) = rig.readyz().await;
    assert_eq!(code, 503, "{line}");
    api.allow(Kind::Slices, Some("web"));
    rig.clean().await;
    rig.shop(&[1]).await;
}

#[tokio::test]
async fn a_namespace_that_comes_later_is_not_waited_for() {
    let api = shop(1).await;
    let rig = Rig::start(&api).await;
    api.forbid(Kind::Pods, Some("later"));
    let app: Value = claimed(service("app"));
    api.apply(&within("later", app));
    eventually("routed", async || rig.port("later/app").is_some()).await;
    let (code, line) = rig.readyz().await;
    assert_eq!(code, 200, "{line}");
    assert!(!line.contains("not served"), "{line}");
    assert_eq!(json!(rig.usable("shop")), json!([1]));
}
