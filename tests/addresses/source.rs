//! Which address an endpoint sees: the client's own, wherever both run, and the node's where it cannot
//! be the client's.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::namespace::is_inside;
use super::node::{
    CLUSTER, CLUSTER_V6, EXTERNAL, Node, get, inside_of, make_network, shop, sum_of,
};
use super::process::until;
use super::seen::{
    App, BRIDGED, BY_NODE, DNS, FAR, HOST, NEIGHBOUR, Pod, ROUTED, ask, dns, make_pods, nft, seen,
    until_only, until_seen,
};

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
                    let what = format!("{client:?} {place:?}");
                    until(&what, || seen(client, at) == expected);
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
    let node = Node::start(&[], "timeouts: {drain: 1s, hold: 0s, connect: 300ms}");
    make_pods();
    let app = App::start(FAR, false);
    node.folder.endpoints(&[app.ep()]);
    until_only(&app, || get(CLUSTER));
    until_seen(&app, &[BRIDGED, NEIGHBOUR]);
    // What an engine of NetworkPolicies writes at a pod that BRIDGED alone may reach.
    let rules = |verdict: &str| {
        format!(
            "add table ip pods\nflush table ip pods\nadd chain ip pods arrives {{ type filter hook input priority 0; }}\n\
             add rule ip pods arrives ip saddr 172.16.0.1 accept\n\
             add rule ip pods arrives ip saddr {} accept\nadd rule ip pods arrives tcp dport 8080 {verdict}\n",
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
    let node = Node::start(&[], "timeouts: {drain: 1s}");
    make_pods();
    let app = App::start(NEIGHBOUR, false);
    node.folder.endpoints(&[app.ep()]);
    until_only(&app, || get(CLUSTER));
    let clients = [ROUTED, BRIDGED];
    until_seen(&app, &clients);
    let rounds = || {
        app.connections.lock().unwrap().clear();
        for _ in 0..10 {
            for client in clients {
                let own = format!("neighbour4 {}", client.v4);
                assert!([own.as_str(), BY_NODE].contains(&&*seen(client, CLUSTER)));
            }
        }
        app.connections.lock().unwrap().clone()
    };
    // Each of the two workers has at most one connection of each client. It sees no other client.
    let used = rounds();
    for client in clients {
        let own = used.iter().filter(|it| it.0.to_string() == client.v4);
        assert!((1..=2).contains(&own.count()), "{client:?} {used:?}");
    }
    assert!(!used.iter().any(|it| BY_NODE.ends_with(&it.0.to_string())));

    let mut shared = shop();
    shared["metadata"]["annotations"] = json!({"ebbtide.dev/source": "node"});
    node.folder.write("service.json", &shared);
    until("the annotation", || seen(ROUTED, CLUSTER) == BY_NODE);
    let used = rounds();
    assert!((1..=2).contains(&used.len()), "{used:?}");
}

#[test]
fn a_client_that_fills_the_pool_does_not_keep_others_from_it() {
    if !is_inside("addresses::source::a_client_that_fills_the_pool_does_not_keep_others_from_it") {
        return;
    }
    // A worker keeps at most 256 connections to an endpoint.
    const MANY: usize = 560;
    let node = Node::start(&[], "timeouts: {drain: 1s}");
    make_pods();
    let app = App::start(NEIGHBOUR, false);
    node.folder.endpoints(&[app.ep()]);
    until_only(&app, || get(CLUSTER));
    let from = |pod: Pod| {
        let all = app.connections.lock().unwrap();
        let own = all.iter().filter(|it| it.0.to_string() == pod.v4);
        own.count()
    };
    app.slow.store(true, Ordering::SeqCst);
    inside_of(BRIDGED.name, || {
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..MANY).map(|_| scope.spawn(|| get(CLUSTER))).collect();
            until("all of them", || from(BRIDGED) == MANY);
            app.slow.store(false, Ordering::SeqCst);
            all.into_iter()
                .for_each(|it| drop(it.join().unwrap().unwrap()));
        });
    });
    until_seen(&app, &[ROUTED]);
    for _ in 0..10 {
        assert_eq!(seen(ROUTED, CLUSTER), format!("neighbour4 {}", ROUTED.v4));
    }
    assert!(
        (1..=2).contains(&from(ROUTED)),
        "{} connections",
        from(ROUTED)
    );
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
            let answer = || inside_of(client.name, || ask(DNS)).unwrap();
            let own = format!("{} {}", app.name, client.v4);
            until(&own, || answer() == own);
        }
        // Hairpin.
        if place.name == NEIGHBOUR.name {
            let answer = inside_of(place.name, || ask(DNS)).unwrap();
            assert!(answer.starts_with(&app.name), "{answer}");
        }
    }
}

#[test]
fn clients_from_outside_are_seen_where_their_policy_is_local_and_nobody_is_refused_without_shadows()
{
    if !is_inside(
        "addresses::source::clients_from_outside_are_seen_where_their_policy_is_local_and_nobody_is_refused_without_shadows",
    ) {
        return;
    }
    // Somebody uses a part of the range.
    let conflict = ["198.18.7.1/24", "dev", "lo"];
    super::namespace::ip(&[&["addr", "add"][..], &conflict].concat());
    make_network();
    make_pods();
    let node = Node::start_in(&[], "timeouts: {drain: 1s}");
    let app = App::start(NEIGHBOUR, false);
    let here = |service: serde_json::Value| {
        let mut slice = app.ep().slice_of("shop", "");
        slice["endpoints"][0]["nodeName"] = json!("here");
        node.folder.write("slice-here.json", &slice);
        node.folder.write("service.json", &service);
    };
    here(shop());
    until_only(&app, || get(CLUSTER));
    assert_eq!(seen(BRIDGED, CLUSTER), BY_NODE);
    until("the count", || sum_of("ebbtide_source_lost_total") > 0.0);
    super::namespace::ip(&[&["addr", "del"][..], &conflict].concat());
    // It is asked for again.
    let own = |pod: Pod, at: &str| seen(pod, at) == format!("neighbour4 {}", pod.v4);
    until("its own address", || own(BRIDGED, CLUSTER));

    // A client of another node: not by the cluster IP, whose endpoints may answer past this node.
    let outside = |at: &str| inside_of(FAR.name, || get(at)).unwrap();
    let node_port = "172.16.0.1:30080";
    for at in [CLUSTER, EXTERNAL, node_port] {
        assert_eq!(outside(at), BY_NODE, "{at}");
    }
    let mut local = shop();
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    here(local);
    for at in [EXTERNAL, node_port] {
        until(at, || outside(at) == "neighbour4 172.16.0.2");
        until(at, || own(BRIDGED, at));
    }
}
