//! What a node asks the API server for (contract 2.7 and 2.8): only its own objects, from the
//! cache, and no longer than they are used. The source runs alone here, without a control loop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ebbtide::cluster::api::connect;
use ebbtide::config::settings::{Claim, Kubernetes, Node, PodWatch};
use ebbtide::contract::name::ObjectName;
use ebbtide::discovery::kubernetes::{self, Wanted};
use ebbtide::discovery::manifest::Reader;
use ebbtide::discovery::object::{Change, Hint, Object};
use ebbtide::discovery::source::{InUse, Message};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::api::{Api, CLAIM, KINDS, Kind, Order, Verb, certificate};
use super::rig::{claimed, pod, ready, service, shop, slice, within};
use crate::support::wait::eventually;

/// How long a response may be silent in a test of that.
const SILENCE: Duration = Duration::from_secs(2);

/// A source, and the objects that its messages leave.
struct Source {
    in_use: watch::Sender<InUse>,
    messages: mpsc::Receiver<Message>,
    objects: BTreeMap<(String, ObjectName), Object>,
    /// The names of removed slices.
    removed: Vec<ObjectName>,
    synced: bool,
    pod_ranges: Vec<ipnet::IpNet>,
    turns: usize,
}

impl Source {
    fn start(api: &Api, named: &[&str], pods: PodWatch) -> Self {
        let settings = Kubernetes {
            pods,
            ..Kubernetes::default()
        };
        let uri = format!("http://{}", api.address).parse().unwrap();
        Self::connect(kube::Config::new(uri), named, settings, Reader::default())
    }

    /// Over TLS.
    fn start_tls(api: &Api, settings: Kubernetes) -> Self {
        let uri = format!("https://{}", api.address).parse().unwrap();
        let mut config = kube::Config::new(uri);
        config.root_cert = Some(vec![certificate().to_vec()]);
        config.read_timeout = Some(settings.silence);
        Self::connect(config, &[], settings, Reader::default())
    }

    fn connect(config: kube::Config, named: &[&str], settings: Kubernetes, reader: Reader) -> Self {
        let server = config.cluster_url.to_string();
        let connected = connect(config).unwrap();
        let named = named.iter().map(|it| it.split_once('/').unwrap());
        let named = named.map(|(namespace, name)| ObjectName::new(namespace, name));
        let (in_use, used) = watch::channel(InUse {
            named: named.collect(),
            ..InUse::default()
        });
        let (out, messages) = mpsc::channel(64);
        let settings = Kubernetes {
            patience: Duration::from_secs(3_600),
            pods_patience: Duration::from_secs(3_600),
            ..settings
        };
        let wanted = Wanted {
            settings,
            reader,
            knows_pod_ranges: false,
            in_use: used,
        };
        tokio::spawn(kubernetes::run(connected, server, wanted, out, |_| ()));
        Self {
            in_use,
            messages,
            objects: BTreeMap::new(),
            removed: Vec::new(),
            synced: false,
            pod_ranges: Vec::new(),
            turns: 0,
        }
    }

    /// Reads messages until `condition` holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let all = async {
            while !condition(self) {
                let message = self.messages.recv().await.unwrap();
                self.take(message);
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, all)
            .await
            .unwrap_or_else(|_| panic!("not within {limit:?}: {what}"));
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Changes { changes, .. } => changes.into_iter().for_each(|it| self.change(it)),
            Message::Synced => self.synced = true,
            Message::PodRanges(ranges) => self.pod_ranges = ranges,
            Message::Standing(_)
            | Message::Problems(_)
            | Message::Published(_)
            | Message::Certificate { .. }
            | Message::Authorities { .. } => {}
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Apply(object) => {
                let key = (object.kind().to_string(), object.name().clone());
                self.objects.insert(key, object);
            }
            Change::Remove(kind, name) => {
                self.objects.remove(&(kind.to_string(), name.clone()));
                if kind.to_string() == "EndpointSlice" {
                    self.removed.push(name);
                }
            }
            Change::Forget { namespace } => self
                .objects
                .retain(|(kind, name), _| kind != "Pod" || name.namespace != namespace),
            Change::Replace { .. } => panic!("{change:?}"),
        }
    }

    /// Waits until the source has taken in all that was reported to it: it does that before it takes
    /// in a change of Service `stays/app`.
    async fn turn(&mut self, api: &Api) {
        self.turns += 1;
        let turn = self.turns.to_string();
        let mut app = within("stays", claimed(service("app")));
        app["metadata"]["annotations"]["ebbtide.dev/turn"] = turn.clone().into();
        api.apply(&app);
        let key = ("Service".to_owned(), ObjectName::new("stays", "app"));
        self.until("a turn", |it| match it.objects.get(&key) {
            Some(Object::Service(it)) => it.annotations.get("ebbtide.dev/turn") == Some(&turn),
            _ => false,
        })
        .await;
    }

    fn count(&self, kind: &str) -> usize {
        self.objects.keys().filter(|(of, _)| of == kind).count()
    }

    /// Reports what the table uses, as the control loop does once a minute.
    fn report(&self, routed: &[&str]) {
        let routed = routed.iter().map(|it| it.split_once('/').unwrap());
        let routed = routed
            .map(|(namespace, name)| ObjectName::new(namespace, name))
            .collect();
        self.in_use.send_modify(|it| it.routed = routed);
    }
}

fn app(api: &Api, namespace: &str) {
    api.apply(&within(namespace, claimed(service("app"))));
    let name = format!("p-{namespace}");
    api.apply(&within(namespace, slice("s", "app", &[ready(7, &name)])));
    api.apply(&within(namespace, pod(&name)));
}

fn remove_app(api: &Api, namespace: &str) {
    api.delete(Kind::Pods, namespace, &format!("p-{namespace}"));
    api.delete(Kind::Slices, namespace, "s");
    api.delete(Kind::Services, namespace, "app");
}

#[tokio::test]
async fn namespaces_that_come_and_go_leave_no_watch_and_no_connection_behind() {
    let api = Api::start().await;
    app(&api, "stays");
    let mut source = Source::start(&api, &[], PodWatch::All);
    source
        .until("the first table", |it| it.synced && it.count("Pod") == 1)
        .await;
    eventually("all is watched", async || api.watches() == 4).await;
    // One more is kept for the next list.
    eventually("no other connection", async || api.connections() <= 5).await;
    for round in 0..5 {
        let names: Vec<String> = (0..20).map(|n| format!("n-{round}-{n}")).collect();
        names.iter().for_each(|name| app(&api, name));
        source
            .until("all come", |it| {
                it.count("Pod") == 21 && it.count("EndpointSlice") == 21
            })
            .await;
        eventually("one more watch each", async || api.watches() == 24).await;
        names.iter().for_each(|name| remove_app(&api, name));
        source
            .until("all gone", |it| it.count("Service") == 1)
            .await;
        // A report that is older than the end of the use gives up nothing.
        let routed: Vec<String> = names.iter().map(|name| format!("{name}/app")).collect();
        let routed: Vec<&str> = routed.iter().map(String::as_str).collect();
        source.report(&routed);
        eventually("still watched", async || api.watches() == 24).await;
        for _ in 0..2 {
            source.report(&["stays/app"]);
            source.turn(&api).await;
        }
        eventually("given up", async || api.watches() == 4).await;
    }
    eventually("as many connections as before", async || {
        api.connections() <= 5
    })
    .await;
    assert!(api.complaints().is_empty());
}

#[tokio::test]
async fn many_namespaces_share_one_watch_of_pods_unless_that_is_refused() {
    for refused in [false, true] {
        let api = Api::start().await;
        if refused {
            api.forbid(Kind::Pods, None);
        }
        (0..40).for_each(|n| app(&api, &format!("n-{n}")));
        let mut source = Source::start(&api, &[], PodWatch::All);
        source
            .until("the first table", |it| it.synced && it.count("Pod") == 40)
            .await;
        let pods = if refused { 40 } else { 1 };
        eventually("watches", async || api.open(Kind::Pods) == pods).await;
        api.delete(Kind::Pods, "n-7", "p-n-7");
        source.until("a deletion", |it| it.count("Pod") == 39).await;
        assert_eq!(api.watches(), pods + 3);
    }
}

#[tokio::test]
async fn all_watches_share_one_connection_where_the_api_server_speaks_http_2() {
    let api = Api::start_tls().await;
    ["a", "b", "c"].iter().for_each(|it| app(&api, it));
    let mut source = Source::start_tls(&api, Kubernetes::default());
    source
        .until("the first table", |it| it.synced && it.count("Pod") == 3)
        .await;
    eventually("all is watched", async || api.watches() == 6).await;
    assert_eq!(api.connections(), 1);
    api.delete(Kind::Pods, "b", "p-b");
    source.until("a change", |it| it.count("Pod") == 2).await;
    assert_eq!(api.connections(), 1);
}

/// On one connection, an API server lets what is above 100 requests wait for ever.
#[tokio::test]
async fn more_watches_than_fit_on_a_connection_have_another() {
    let api = Api::start_tls().await;
    let namespaces: Vec<String> = (0..40).map(|n| format!("n-{n}")).collect();
    namespaces.iter().for_each(|it| app(&api, it));
    let settings = Kubernetes {
        namespaces,
        ..Kubernetes::default()
    };
    let mut source = Source::start_tls(&api, settings);
    source
        .until("the first table", |it| it.synced && it.count("Pod") == 40)
        .await;
    eventually("all is watched", async || api.watches() == 160).await;
    assert!(
        (2..=4).contains(&api.connections()),
        "{}",
        api.connections()
    );
}

#[tokio::test]
async fn the_api_server_selects_what_a_node_needs_from_its_cache() {
    let api = shop(2).await;
    app(&api, "other");
    api.apply(&within("other", service("unclaimed")));
    api.apply(&within("other", slice("u", "unclaimed", &[ready(9, "q")])));
    let mut source = Source::start(&api, &["web/shop"], PodWatch::All);
    source.until("the first table", |it| it.synced).await;
    eventually("all is watched", async || api.watches() == 7).await;
    let selectors: BTreeSet<_> = api
        .asked()
        .into_iter()
        .map(|it| (it.kind, it.namespace, it.selector))
        .collect();
    let unlabelled =
        "kubernetes.io/service-name in (app),service.kubernetes.io/service-proxy-name!=ebbtide";
    let (claim, web) = (
        "service.kubernetes.io/service-proxy-name=ebbtide",
        "web".to_owned(),
    );
    let expected = [
        (Kind::Services, None, Some(claim.to_owned())),
        (
            Kind::Services,
            Some(web.clone()),
            Some("metadata.name=shop".to_owned()),
        ),
        (Kind::Slices, None, Some(claim.to_owned())),
        (Kind::Slices, None, Some(unlabelled.to_owned())),
        (
            Kind::Slices,
            Some(web.clone()),
            Some("kubernetes.io/service-name in (shop)".to_owned()),
        ),
        (Kind::Pods, Some("other".to_owned()), None),
        (Kind::Pods, Some(web), None),
    ];
    assert_eq!(selectors, BTreeSet::from(expected));
    assert_eq!(
        (source.count("Service"), source.count("EndpointSlice")),
        (2, 2)
    );
    // The server of this test does not stream lists: this is asked once, or by the watches that
    // began before the first answer.
    assert!(KINDS.iter().all(|kind| api.count(*kind, Verb::Stream) <= 2));
    let lists = api.asked().into_iter().filter(|it| it.verb == Verb::List);
    let lists: Vec<String> = lists.map(|it| it.query).collect();
    let cached =
        |query: &String| query.contains("resourceVersion=0&resourceVersionMatch=NotOlderThan");
    assert!(lists.len() == 7 && lists.iter().all(cached), "{lists:?}");
    // After a 410, an older state must not come back.
    api.forget(Kind::Pods);
    eventually("listed again", async || {
        api.count(Kind::Pods, Verb::List) == 4
    })
    .await;
    let last = api
        .asked()
        .into_iter()
        .rfind(|it| it.verb == Verb::List)
        .unwrap();
    assert!(!last.query.contains("resourceVersion"), "{last:?}");
}

/// The zone of this node may be known after the first slices.
#[tokio::test]
async fn the_zone_of_this_node_is_asked_for_and_slices_are_read_with_it() {
    let api = Api::start().await;
    api.apply(&claimed(service("app")));
    let mut hinted = slice("s", "app", &[ready(7, "p"), ready(8, "q")]);
    for (i, zone) in ["a", "b"].iter().enumerate() {
        hinted["endpoints"][i]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    api.apply(&hinted);
    api.node("n1", None);
    let uri = format!("http://{}", api.address).parse().unwrap();
    let reader = Reader {
        node: Node {
            name: Some("n1".into()),
            zone: None,
        },
        ..Reader::default()
    };
    let settings = Kubernetes {
        pods: PodWatch::None,
        ..Kubernetes::default()
    };
    let mut source = Source::connect(kube::Config::new(uri), &[], settings, reader);
    let zones = |source: &Source| {
        let key = ("EndpointSlice".to_owned(), ObjectName::new("web", "s"));
        let Some(Object::EndpointSlice(slice)) = source.objects.get(&key) else {
            return Vec::new();
        };
        let hints = slice.endpoints.iter().map(|it| it.hints.zone);
        hints.collect()
    };
    let (here, elsewhere) = (Hint::Here, Hint::Elsewhere);
    source
        .until("served without the zone", |it| {
            it.synced && zones(it) == [elsewhere, elsewhere]
        })
        .await;
    let spec = json!({"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24", "fd00:3::/64"]});
    // A cloud gives a new node its zone after the first pods of its network have begun.
    api.node("n1", Some((json!({}), spec.clone())));
    source
        .until("the ranges of pods", |it| it.pod_ranges.len() == 2)
        .await;
    api.node(
        "n1",
        Some((json!({"topology.kubernetes.io/zone": "b"}), spec)),
    );
    source
        .until("the zone counts", |it| zones(it) == [elsewhere, here])
        .await;
    assert_eq!(source.removed, [], "no slice was gone meanwhile");
    let ranges = ["10.244.3.0/24", "fd00:3::/64"].map(|it| it.parse().unwrap());
    assert_eq!(source.pod_ranges, ranges);
}

/// `services.claim: all`. The Service of the API server has endpoints without pods and no selector.
#[tokio::test]
async fn with_all_each_service_is_claimed_that_names_no_other_proxy() {
    let api = Api::start().await;
    let named = |name: &str, proxy: &str| {
        let mut it = claimed(service(name));
        it["metadata"]["labels"][CLAIM] = proxy.into();
        it
    };
    let mut headless = service("headless");
    headless["spec"]["clusterIP"] = "None".into();
    for it in [&service("app"), &named("mine", "edge"), &headless] {
        api.apply(it);
    }
    // A namespace without a Service of ours is waited for by nobody.
    api.apply(&within("foreign", named("app", "cilium")));
    api.apply(&within("foreign", slice("s", "app", &[ready(9, "q")])));
    api.apply(&within("default", service("kubernetes")));
    let mut server = slice("kubernetes", "kubernetes", &[ready(1, "none")]);
    server["endpoints"][0]["targetRef"].take();
    api.apply(&within("default", server));
    for name in ["app", "mine"] {
        api.apply(&slice(name, name, &[ready(7, "p")]));
    }
    let reader = Reader {
        claim: Claim {
            all: true,
            proxy_name: "edge".into(),
        },
        ..Reader::default()
    };
    let uri = format!("http://{}", api.address).parse().unwrap();
    let config = kube::Config::new(uri);
    let mut source = Source::connect(config, &[], Kubernetes::default(), reader);
    source.until("the first table", |it| it.synced).await;
    let services = |source: &Source| -> Vec<String> {
        let all = source.objects.values().filter_map(|it| match it {
            Object::Service(it) if it.claimed => Some(it.name.to_string()),
            _ => None,
        });
        all.collect()
    };
    let first = ["default/kubernetes", "web/app", "web/mine"];
    assert_eq!(services(&source), first);
    let slices = source.objects.values().filter(|it| match it {
        Object::EndpointSlice(it) => it.name.namespace != "foreign",
        _ => false,
    });
    assert_eq!(slices.count(), 3);
    let selectors: BTreeSet<_> = api
        .asked()
        .into_iter()
        .filter(|it| it.verb != Verb::Get)
        .map(|it| (it.kind, it.namespace, it.selector))
        .collect();
    let not_headless = || Some("!service.kubernetes.io/headless".to_owned());
    let expected = [
        (Kind::Services, None, not_headless()),
        (Kind::Slices, None, not_headless()),
        (Kind::Pods, Some("default".to_owned()), None),
        (Kind::Pods, Some("web".to_owned()), None),
    ];
    assert_eq!(selectors, BTreeSet::from(expected));

    // One goes to another proxy, and one comes from it.
    api.apply(&named("app", "cilium"));
    api.apply(&within("foreign", service("app")));
    let then = ["default/kubernetes", "foreign/app", "web/mine"];
    source
        .until("the claims have changed", |it| services(it) == then)
        .await;
    let is_let_go = |it: &Source| {
        let key = ("Service".to_owned(), ObjectName::new("web", "app"));
        matches!(it.objects.get(&key), Some(Object::Service(it)) if !it.claimed)
    };
    source.until("its clients go on", is_let_go).await;
    // What is never ours is asked for by nobody.
    let asked = api.count(Kind::Services, Verb::Get);
    for _ in 0..3 {
        api.echo(Kind::Services, "web", "headless");
    }
    api.apply(&within("foreign", named("app", "cilium")));
    source.until("let go", |it| services(it).len() == 2).await;
    assert_eq!(api.count(Kind::Services, Verb::Get), asked + 1);
}

#[tokio::test]
async fn a_list_is_streamed_where_the_api_server_can() {
    let api = shop(2).await;
    api.stream();
    app(&api, "other");
    let mut source = Source::start(&api, &["web/shop"], PodWatch::All);
    source
        .until("the first table", |it| it.synced && it.count("Pod") == 3)
        .await;
    assert_eq!(
        (source.count("Service"), source.count("EndpointSlice")),
        (2, 2)
    );
    api.delete(Kind::Pods, "web", "p1");
    source.until("a change", |it| it.count("Pod") == 2).await;
    let streamed = |it: &super::api::Asked| it.query.contains("sendInitialEvents=true");
    assert!(api.asked().iter().all(streamed), "{:?}", api.asked());
    assert_eq!(api.asked().len(), 7, "a stream is list and watch in one");
}

#[tokio::test]
async fn a_server_that_does_not_know_of_streamed_lists_is_asked_for_plain_ones() {
    let api = shop(2).await;
    api.ignore_streams();
    let settings = Kubernetes {
        silence: Duration::from_millis(300),
        ..Kubernetes::default()
    };
    let uri = format!("http://{}", api.address).parse().unwrap();
    let config = kube::Config::new(uri);
    let mut source = Source::connect(config, &["web/shop"], settings, Reader::default());
    source
        .until("the first table", |it| it.synced && it.count("Pod") == 2)
        .await;
}

/// On a shared connection, the silence of one watch does not show in the connection.
#[tokio::test]
async fn a_watch_that_falls_silent_beside_others_is_resumed() {
    let api = Api::start_tls().await;
    ["a", "stays"].iter().for_each(|it| app(&api, it));
    let settings = Kubernetes {
        silence: SILENCE,
        ..Kubernetes::default()
    };
    let mut source = Source::start_tls(&api, settings);
    source
        .until("the first table", |it| it.synced && it.count("Pod") == 2)
        .await;
    eventually("all is watched", async || api.watches() == 5).await;
    api.order(Kind::Pods, Order::Silence);
    api.delete(Kind::Pods, "a", "p-a");
    let limit = Instant::now() + Duration::from_secs(60);
    while source.count("Pod") == 2 {
        assert!(Instant::now() < limit, "the deletion is never seen");
        for kind in [Kind::Services, Kind::Slices] {
            api.bookmark(kind);
        }
        source.turn(&api).await;
        tokio::time::sleep(SILENCE / 10).await;
    }
    assert_eq!(api.connections(), 1);
}

#[tokio::test]
async fn a_service_without_a_selector_brings_its_own_slices() {
    let api = Api::start().await;
    let mut bare = claimed(service("bare"));
    bare["spec"]["selector"] = serde_json::Value::Null;
    api.apply(&bare);
    api.apply(&slice("made-by-hand", "bare", &[ready(7, "p")]));
    api.unlabel("web", "made-by-hand");
    let mut source = Source::start(&api, &[], PodWatch::All);
    source
        .until("the first table", |it| {
            it.synced && it.count("EndpointSlice") == 1
        })
        .await;
    source
        .until("no more", |it| it.count("EndpointSlice") == 1)
        .await;
}

/// Slices that a person or another controller made have no label of the claim.
#[tokio::test]
async fn slices_without_the_label_of_the_claim_are_served_as_long_as_the_service_is() {
    let api = Api::start().await;
    for namespace in ["web", "other", "later"] {
        app(&api, namespace);
        let by_hand = within(namespace, slice("made-by-hand", "app", &[ready(7, "p")]));
        api.apply(&by_hand);
        api.unlabel(namespace, "made-by-hand");
    }
    // A Service of the same name that is not ours, until later.
    api.apply(&within("later", service("app")));
    let mut source = Source::start(&api, &[], PodWatch::None);
    let by_hand = |it: &Source, namespace: &str| {
        let name = ObjectName::new(namespace, "made-by-hand");
        it.objects.contains_key(&("EndpointSlice".to_owned(), name))
    };
    source.until("the first table", |it| it.synced).await;
    app(&api, "stays");
    source.turn(&api).await;
    assert!(by_hand(&source, "web") && by_hand(&source, "other"));
    assert!(!by_hand(&source, "later"), "of a Service that is not ours");
    api.apply(&within("later", claimed(service("app"))));
    source
        .until("claimed later", |it| by_hand(it, "later"))
        .await;
    // It gets the label, loses it again, and changes while it has none.
    api.echo(Kind::Slices, "web", "made-by-hand");
    api.unlabel("web", "made-by-hand");
    let two = within(
        "web",
        slice("made-by-hand", "app", &[ready(7, "p"), ready(8, "q")]),
    );
    api.apply(&two);
    api.unlabel("web", "made-by-hand");
    source
        .until("a change", |it| {
            let name = ObjectName::new("web", "made-by-hand");
            let slice = it.objects.get(&("EndpointSlice".to_owned(), name));
            matches!(slice, Some(Object::EndpointSlice(it)) if it.endpoints.len() == 2)
        })
        .await;
    // Its clients stay connected after the claim.
    source.removed.clear();
    api.apply(&within("web", service("app")));
    source
        .until("the end of the claim", |it| {
            let name = ObjectName::new("web", "app");
            let service = it.objects.get(&("Service".to_owned(), name));
            matches!(service, Some(Object::Service(it)) if !it.claimed)
        })
        .await;
    source.turn(&api).await;
    assert!(by_hand(&source, "web"));
    assert_eq!(source.removed, [], "no slice was lost in between");
    api.delete(Kind::Slices, "other", "made-by-hand");
    source.until("gone", |it| !by_hand(it, "other")).await;
}

#[tokio::test]
async fn the_end_of_a_claim_is_told_from_the_end_of_a_service() {
    let api = Api::start().await;
    app(&api, "web");
    app(&api, "gone");
    let mut source = Source::start(&api, &[], PodWatch::All);
    source
        .until("the first table", |it| {
            it.synced && it.count("EndpointSlice") == 2
        })
        .await;
    let claim = |source: &Source, namespace: &str| {
        let key = ("Service".to_owned(), ObjectName::new(namespace, "app"));
        match source.objects.get(&key) {
            Some(Object::Service(service)) => Some(service.claimed),
            _ => None,
        }
    };
    api.apply(&within("web", service("app")));
    api.delete(Kind::Services, "gone", "app");
    source
        .until("both are known", |it| {
            claim(it, "web") == Some(false) && claim(it, "gone").is_none()
        })
        .await;
    source
        .until("its slices stay", |it| it.count("EndpointSlice") >= 1)
        .await;
    api.apply(&within("web", slice("t", "app", &[ready(8, "p8")])));
    source
        .until("a later one comes", |it| {
            it.objects
                .contains_key(&("EndpointSlice".to_owned(), ObjectName::new("web", "t")))
        })
        .await;
    // Its last client has left.
    source.report(&[]);
    app(&api, "another");
    source
        .until("one report changes nothing", |it| it.count("Service") == 2)
        .await;
    source.report(&[]);
    source
        .until("it is forgotten", |it| claim(it, "web").is_none())
        .await;
}

#[tokio::test]
async fn only_the_pods_of_this_node_are_watched_if_that_is_configured() {
    for pods in [PodWatch::Node("n1".to_owned()), PodWatch::None] {
        let api = shop(3).await;
        for (name, node) in [("p1", "n1"), ("p2", "n2")] {
            let mut pod = pod(name);
            pod["spec"]["nodeName"] = node.into();
            api.apply(&pod);
        }
        let mut source = Source::start(&api, &["web/shop"], pods.clone());
        source.until("the first table", |it| it.synced).await;
        let expected = usize::from(pods != PodWatch::None);
        assert_eq!(
            (source.count("Pod"), source.count("EndpointSlice")),
            (expected, 1),
            "{pods:?}"
        );
    }
}
