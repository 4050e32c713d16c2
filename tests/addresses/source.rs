//! Which address an endpoint sees: the client's own, wherever both run, and the node's where it cannot
//! be the client's.

use ebbtide::net::netlink::Family;
use ebbtide::net::{source_route, source_table};
use rustix::process::Signal;
use serde_json::json;

use super::namespace::is_inside;
use super::node::{CLUSTER, CLUSTER_V6, Client, Node, get, inside_of, rule, shop, start_proxy};
use super::process::{Net, until};
use super::seen::{
    App, BRIDGED, DNS, FAR, HOST, NEIGHBOUR, Pod, ROUTED, ask, dns, make_pods, nft, until_only,
};
use crate::support::folder::Folder;
use crate::support::manifests::service;

/// What a client in this pod gets by this address. A first answer may come from the endpoint before.
fn seen(pod: Pod, at: &str) -> String {
    inside_of(pod.name, || get(at)).unwrap()
}

#[test]
fn an_endpoint_sees_its_client_wherever_both_run() {
    if !is_inside("addresses::source::an_endpoint_sees_its_client_wherever_both_run") {
        return;
    }
    let node = Node::start(&[], "timeouts: {drain: 1s}");
    make_pods();
    for (is_ipv6, at) in [(false, CLUSTER), (true, CLUSTER_V6)] {
        for place in [ROUTED, BRIDGED, NEIGHBOUR, FAR, HOST] {
            let app = App::start(place, is_ipv6);
            node.folder.endpoints(&[app.ep()]);
            until_only(&app, || get(at));
            for client in [ROUTED, BRIDGED, NEIGHBOUR] {
                let own = if is_ipv6 { client.v6 } else { client.v4 };
                if client.name != place.name {
                    let expected = format!("{} {own}", app.name);
                    assert_eq!(seen(client, at), expected, "{client:?} {place:?}");
                }
            }
            // The node, and a client that is the endpoint, get their answers by the node's address.
            assert!(get(at).unwrap().starts_with(&app.name));
            if [ROUTED, BRIDGED, NEIGHBOUR]
                .map(|it| it.name)
                .contains(&place.name)
            {
                let answer = seen(place, at);
                let own = if is_ipv6 { place.v6 } else { place.v4 };
                assert!(
                    answer.starts_with(&app.name) && !answer.ends_with(own),
                    "{answer}"
                );
            }
        }
    }
}

#[test]
fn a_policy_that_lets_one_client_in_holds_behind_a_service_and_costs_the_others_nothing() {
    if !is_inside(
        "addresses::source::a_policy_that_lets_one_client_in_holds_behind_a_service_and_costs_the_others_nothing",
    ) {
        return;
    }
    let node = Node::start(&[], "timeouts: {drain: 1s, hold: 1s, connect: 300ms}");
    make_pods();
    let app = App::start(FAR, false);
    node.folder.endpoints(&[app.ep()]);
    until_only(&app, || get(CLUSTER));
    // What an engine of NetworkPolicies writes at a pod that BRIDGED alone may reach.
    let rules = |verdict: &str| {
        format!(
            "add table ip policy\nflush table ip policy\nadd chain ip policy in {{ type filter hook input priority 0; }}\n\
             add rule ip policy in ip saddr 172.16.0.1 accept\n\
             add rule ip policy in ip saddr {} accept\nadd rule ip policy in tcp dport 8080 {verdict}\n",
            BRIDGED.v4
        )
    };
    for verdict in ["drop", "reject with tcp reset"] {
        nft(Some(FAR), &rules(verdict));
        let refused = || inside_of(NEIGHBOUR.name, || get(CLUSTER)).is_err();
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| (0..3).all(|_| refused()));
            // The one that may come is served all the while, and the node, too.
            while !refused.is_finished() {
                assert_eq!(seen(BRIDGED, CLUSTER), format!("other4 {}", BRIDGED.v4));
                assert!(get(CLUSTER).is_ok());
            }
            assert!(refused.join().unwrap(), "{verdict}");
        });
        assert!(refused(), "{verdict}");
    }
}

#[test]
fn connections_of_one_client_are_kept_for_that_client_and_a_service_may_ask_for_shared_ones() {
    if !is_inside(
        "addresses::source::connections_of_one_client_are_kept_for_that_client_and_a_service_may_ask_for_shared_ones",
    ) {
        return;
    }
    let node = Node::start(&[], "timeouts: {drain: 1s}\nworkers: 1");
    make_pods();
    let app = App::start(NEIGHBOUR, false);
    node.folder.endpoints(&[app.ep()]);
    until_only(&app, || get(CLUSTER));
    let clients = [ROUTED, BRIDGED];
    let rounds = || {
        app.connections.lock().unwrap().clear();
        for _ in 0..10 {
            for client in clients {
                let answer = seen(client, CLUSTER);
                assert!(answer.starts_with("neighbour4 "), "{answer}");
            }
        }
        app.connections.lock().unwrap().clone()
    };
    let used = rounds();
    for client in clients {
        let own = used.iter().filter(|it| it.0.to_string() == client.v4);
        assert_eq!(own.count(), 1, "{client:?} {used:?}");
    }
    assert_eq!(used.len(), 2, "{used:?}");

    let mut shared = shop();
    shared["metadata"]["annotations"] = json!({"ebbtide.dev/source": "node"});
    node.folder.write("service.json", &shared);
    let by_node = || seen(ROUTED, CLUSTER) == "neighbour4 10.244.1.1";
    until("the annotation", by_node);
    let used = rounds();
    assert_eq!(used.len(), 1, "{used:?}");
}

#[test]
fn datagrams_come_from_their_client_too() {
    if !is_inside("addresses::source::datagrams_come_from_their_client_too") {
        return;
    }
    let node = Node::start(&[], "timeouts: {drain: 1s}");
    make_pods();
    node.folder.write("dns.json", &dns());
    let lead = |app: &App| {
        let mut slice: serde_json::Value = app.ep().slice_of("dns", "dns");
        slice["metadata"]["name"] = json!("dns");
        slice["ports"][0]["protocol"] = json!("UDP");
        node.folder.write("dns-slice.json", &slice);
    };
    for place in [NEIGHBOUR, FAR] {
        let app = App::start(place, false);
        lead(&app);
        let is_next = |it: String| it.starts_with(&app.name);
        until(&app.name, || ask(DNS).is_some_and(is_next));
        // The first datagram of a client waits for its shadow, and is not lost.
        for client in [ROUTED, BRIDGED] {
            let answer = inside_of(client.name, || ask(DNS));
            assert_eq!(answer, Some(format!("{} {}", app.name, client.v4)));
        }
        // Hairpin.
        if place.name == NEIGHBOUR.name {
            let answer = inside_of(place.name, || ask(DNS)).unwrap();
            assert!(answer.starts_with(&app.name), "{answer}");
        }
    }
}

#[test]
fn shadows_outlive_flushes_and_both_processes_and_go_with_them() {
    if !is_inside("addresses::source::shadows_outlive_flushes_and_both_processes_and_go_with_them")
    {
        return;
    }
    let mut node = Node::start(&[], "timeouts: {drain: 1s}");
    make_pods();
    let app = App::start(NEIGHBOUR, false);
    node.folder.endpoints(&[app.ep()]);
    until_only(&app, || get(CLUSTER));
    let own = |pod: Pod| seen(pod, CLUSTER) == format!("neighbour4 {}", pod.v4);
    assert!(own(BRIDGED));
    let pairs = || source_table::list(Family::V4).unwrap().unwrap_or_default();
    let first = pairs();
    assert_eq!(first.len(), 1, "{first:?}");
    let mut kept = inside_of(BRIDGED.name, || Client::connect(CLUSTER)).unwrap();
    kept.get().unwrap();

    // Somebody flushes everything, and takes the route away.
    nft(None, "flush ruleset\n");
    let range = ["198.18.0.0/15", "dev", "lo"];
    super::namespace::ip(&[&["route", "del", "local"][..], &range].concat());
    until("the table and the route", || {
        pairs() == first && source_route::exists(Family::V4).unwrap()
    });
    until("the rules", || {
        inside_of(BRIDGED.name, || get(CLUSTER)).is_ok()
    });
    kept.get().unwrap();
    assert!(own(BRIDGED));

    // A newer `ebbtide net` takes over, and both proxies serve: the same shadows, and a new one.
    let newer = Folder::new();
    for file in std::fs::read_dir(node.folder.manifests()).unwrap() {
        let (from, name) = file.map(|it| (it.path(), it.file_name())).unwrap();
        std::fs::copy(from, newer.manifests().join(name)).unwrap();
    }
    let mut other = service("other", json!({}));
    other["metadata"]["labels"] = shop()["metadata"]["labels"].clone();
    other["spec"]["clusterIP"] = json!("10.96.0.8");
    newer.write("other.json", &other);
    let net = Net::start(&newer.path().join("net.sock"));
    let mut proxy = start_proxy(newer.path(), "timeouts: {drain: 1s}");
    until("the newer one", || rule("10.96.0.8:80").is_some());
    for _ in 0..20 {
        assert!(own(BRIDGED) && own(ROUTED));
    }
    assert!(first.iter().all(|it| pairs().contains(it)), "{:?}", pairs());
    let first = pairs();
    assert_eq!(first.len(), 2, "{first:?}");
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    net.kill();

    // `ebbtide net` crashes: whoever has a shadow keeps it.
    until("one proxy", || get(CLUSTER).is_ok());
    node.net.take().unwrap().kill();
    assert!(own(BRIDGED));
    node.net = Some(Net::start(&node.folder.path().join("net.sock")));
    until("the shadows", || own(BRIDGED) && own(ROUTED));
    assert!(first.iter().all(|it| pairs().contains(it)), "{:?}", pairs());

    // Both end.
    node.net.as_ref().unwrap().signal(Signal::TERM);
    node.signal(Signal::TERM);
    let mut net = node.net.take().unwrap();
    until("the end of ebbtide net", || net.ended());
    assert_eq!(source_table::list(Family::V4).unwrap(), None);
    assert!(!source_route::exists(Family::V4).unwrap());
}
