//! What the gate asks of the API server: whether a pod is deleted, and where the other instances are.

use std::collections::BTreeSet;
use std::time::Duration;

use ebbtide::cluster::api::connect;
use ebbtide::contract::name::ObjectName;
use ebbtide::discovery::confirm::{self, Confirm};
use ebbtide::discovery::instances;
use ebbtide::discovery::object::{Change, Object};
use ebbtide::discovery::source::Message;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use super::api::{Api, Kind, Verb};
use super::rig::{Rig, Times, WEB, deleting, pod, ready, shop, slice, terminating, within};
use crate::support::manifests::{endpoint, uid_of};
use crate::support::wait::{eventually, soon};

fn client(api: &Api) -> (kube::Client, std::sync::Arc<ebbtide::cluster::api::Clock>) {
    let server = format!("http://{}", api.address).parse().unwrap();
    let (client, clock, _) = connect(kube::Config::new(server)).unwrap();
    (client, clock)
}

struct Asks {
    questions: mpsc::Sender<Confirm>,
    messages: mpsc::Receiver<Message>,
}

impl Asks {
    fn start(api: &Api, is_watched: bool) -> Self {
        let (questions, queue) = mpsc::channel(8);
        let (out, messages) = mpsc::channel(8);
        tokio::spawn(confirm::run(client(api), queue, is_watched, out));
        Self {
            questions,
            messages,
        }
    }

    /// The answer; `None`: the API server does not say.
    async fn ask(&self, name: &str, uid: &str) -> Option<bool> {
        let (answer, answered) = oneshot::channel();
        let pod = ObjectName::new("web", name);
        let uid = uid.to_owned();
        let question = Confirm { pod, uid, answer };
        self.questions.send(question).await.unwrap();
        soon("an answer, or none", answered).await.ok()
    }

    fn changes(&mut self) -> Vec<Change> {
        match self.messages.try_recv() {
            Ok(Message::Changes { changes, .. }) => changes,
            Ok(other) => panic!("{other:?}"),
            Err(_) => Vec::new(),
        }
    }
}

#[tokio::test]
async fn a_deletion_is_told_to_the_table_before_the_gate_hears_of_it() {
    let api = Api::start().await;
    let mut asks = Asks::start(&api, true);
    api.apply(&pod("p1"));
    assert_eq!(asks.ask("p1", &uid_of("p1")).await, Some(false));
    assert!(asks.changes().is_empty());
    api.apply(&deleting(pod("p1"), &api, 20, 30));
    assert_eq!(asks.ask("p1", &uid_of("p1")).await, Some(true));
    let changes = asks.changes();
    let [Change::Apply(Object::Pod(told))] = &changes[..] else {
        panic!("{changes:?}");
    };
    let deletion = told.deletion.as_ref().unwrap();
    assert_eq!(deletion.grace, Some(Duration::from_secs(30)));
    assert_eq!(
        (told.name.name.as_str(), told.uid.as_str()),
        ("p1", &*uid_of("p1"))
    );
    // Another pod has the name, or none.
    assert_eq!(asks.ask("p1", "another").await, Some(true));
    assert_eq!(asks.ask("p2", &uid_of("p2")).await, Some(true));
    assert!(asks.changes().is_empty());
    // Nothing would show the end of a pod that no watch shows.
    let mut asks = Asks::start(&api, false);
    assert_eq!(asks.ask("p1", &uid_of("p1")).await, Some(true));
    let namespace = "web".to_owned();
    assert_eq!(asks.changes()[1..], [Change::Forget { namespace }]);
    assert_eq!(api.count(Kind::Pods, Verb::Get), 5);
}

#[tokio::test]
async fn without_the_api_server_nobody_says_that_a_pod_leaves() {
    let api = Api::start().await;
    let mut asks = Asks::start(&api, true);
    api.apply(&deleting(pod("p1"), &api, 20, 30));
    api.unplug();
    assert_eq!(asks.ask("p1", &uid_of("p1")).await, None);
    assert!(asks.changes().is_empty());
    api.plug();
    assert_eq!(asks.ask("p1", &uid_of("p1")).await, Some(true));
}

/// A port of loopback that is free now.
fn free() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn the_instance_of_its_node_tells_the_others_of_a_pod_that_is_deleted() {
    let api = shop(2).await;
    let mut of_node = pod("p1");
    of_node["spec"]["nodeName"] = json!("n1");
    api.apply(&of_node);
    let (here, there) = (free(), free());
    let gate = |own: u16, other: u16| {
        format!(
            "{WEB}\ngate: {{addresses: [127.0.0.1], port: {own}, peers: ['127.0.0.1:{other}']}}"
        )
    };
    // The other instance watches no pod, and the slices say nothing.
    let other = Rig::launch(&api, "pods: none", &gate(there, here));
    other.ready().await;
    other.shop(&[1, 2]).await;
    let listens = async || {
        tokio::net::TcpStream::connect(("127.0.0.1", there))
            .await
            .is_ok()
    };
    eventually("the other's gate", listens).await;
    api.node("n1", Some((json!({}), json!({}))));
    let node = Times {
        node: Some("n1"),
        ..Times::default()
    };
    let rig = Rig::with_times(&api, "", &gate(here, there), node);
    rig.ready().await;
    rig.shop(&[1, 2]).await;
    api.apply(&deleting(of_node, &api, 30, 30));
    rig.shop(&[2]).await;
    other.shop(&[2]).await;
    assert_eq!(rig.drained(), [1]);
    assert!(other.drained().is_empty(), "a hint drains nothing");
    // The slice confirms it.
    api.apply(&slice("s", "shop", &[terminating(1, "p1"), ready(2, "p2")]));
    eventually("the drain", async || other.drained() == [1]).await;
    assert_eq!(other.usable("shop"), [2]);
}

#[tokio::test]
async fn the_instances_are_the_ready_endpoints_of_their_service() {
    let api = Api::start().await;
    let (out, mut known) = watch::channel(BTreeSet::new());
    let service = ObjectName::new("system", "gate");
    let (silence, (client, _)) = (Duration::from_secs(75), client(&api));
    tokio::spawn(instances::run(client, silence, service, out));
    let mut are = async |last: &[u8]| {
        let wanted = last.iter().map(|last| [10, 0, 0, *last].into()).collect();
        eventually("the instances", async || {
            *known.borrow_and_update() == wanted
        })
        .await;
    };
    let of = |name: &str, service: &str, endpoints: &[_]| {
        within("system", slice(name, service, endpoints))
    };
    let unready = endpoint("10.0.0.3", Some("c"), [false, false, false]);
    let mut unknown = endpoint("10.0.0.4", Some("d"), [true, true, false]);
    unknown["conditions"] = json!({});
    api.apply(&of(
        "one",
        "gate",
        &[ready(1, "a"), ready(2, "b"), unready, unknown],
    ));
    api.apply(&of("other", "another", &[ready(9, "x")]));
    are(&[1, 2, 4]).await;
    api.apply(&of("two", "gate", &[ready(5, "e")]));
    are(&[1, 2, 4, 5]).await;
    api.apply(&of("one", "gate", &[ready(2, "b")]));
    are(&[2, 5]).await;
    // What was known stays while the API server is away.
    api.unplug();
    api.plug();
    api.delete(Kind::Slices, "system", "two");
    are(&[2]).await;
}
