//! A claimed Service by all of its addresses, through the kernel's table, `ebbtide net` and the proxy,
//! for clients on the node and in a pod.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::UdpSocket;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ebbtide::net::netlink;
use rustix::process::Signal;
use serde_json::json;

use super::namespace::is_inside;
use super::node::{
    ALL, App, BALANCER, CLUSTER, CLUSTER_V6, Client, EXTERNAL, NODE, Node, POD, SHARED, echo, get,
    held, in_pod, is_refused, rule, shop, start_proxy, try_get,
};
use super::process::{Net, until};
use crate::support::manifests::{endpoint, service, slice};

#[test]
fn every_address_is_served_for_the_node_and_for_pods_and_a_rollout_costs_nothing() {
    if !is_inside(
        "addresses::served::every_address_is_served_for_the_node_and_for_pods_and_a_rollout_costs_nothing",
    ) {
        return;
    }
    let (a, b) = (App::start("a"), App::start("b"));
    let node = Node::start(&[a.ep()], "timeouts: {drain: 10s}");
    for at in ALL {
        assert!(get(at).unwrap().starts_with("a "), "{at}");
        let seen = in_pod(|| get(at)).unwrap();
        let client = if at == CLUSTER_V6 { "fd00:244::2" } else { POD };
        assert_eq!(seen, format!("a {client} shop"), "{at}");
    }
    assert_eq!(get("127.0.0.1:30080").unwrap(), "a 127.0.0.1 shop");

    // A rollout from `a` to `b` under clients that keep their connections.
    let mut clients: Vec<Client> = ALL.iter().map(|at| Client::connect(at).unwrap()).collect();
    clients.push(in_pod(|| Client::connect(CLUSTER)).unwrap());
    clients
        .iter_mut()
        .for_each(|client| drop(client.get().unwrap()));
    a.slow.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let in_flight: Vec<_> = clients
            .iter_mut()
            .map(|client| scope.spawn(|| client.get().unwrap()))
            .collect();
        node.folder.endpoints(&[a.ep().clone(), b.ep()]);
        until("b", || {
            try_get(CLUSTER_V6).is_ok_and(|it| it.starts_with("b "))
        });
        let mut leaves = a.ep();
        (leaves.ready, leaves.serving, leaves.terminating) = (false, true, true);
        node.folder.endpoints(&[leaves, b.ep()]);
        until("only b", || {
            (0..20).all(|_| try_get(EXTERNAL).is_ok_and(|it| it.starts_with("b ")))
        });
        a.slow.store(false, Ordering::SeqCst);
        for answer in in_flight {
            let answer = answer.join().unwrap();
            assert!(
                answer.starts_with("a ") || answer.starts_with("b "),
                "{answer}"
            );
        }
    });
    for client in &mut clients {
        assert!(client.get().unwrap().starts_with("b "));
    }

    // Source ranges hold for the balancer's address.
    let mut narrow = shop();
    narrow["spec"]["loadBalancerSourceRanges"] = json!(["10.244.0.0/24", "fd00::/8"]);
    node.folder.write("service.json", &narrow);
    until("a refusal", || get(BALANCER).is_err());
    assert!(in_pod(|| get(BALANCER)).is_ok() && get(EXTERNAL).is_ok() && get(CLUSTER).is_ok());
    assert!(clients[3].get().is_ok(), "an open connection stays");

    // The shared port itself serves nobody.
    assert!(get(SHARED).is_err());

    // An address that goes, goes; its open connections stay.
    let mut fewer = shop();
    fewer["spec"]["externalIPs"] = json!([]);
    node.folder.write("service.json", &fewer);
    until("one address less", || rule(EXTERNAL).is_none());
    assert!(clients[2].get().is_ok());
    assert!(get(CLUSTER).is_ok());
    std::fs::remove_file(node.folder.manifests().join("service.json")).unwrap();
    until("no rule", || netlink::list().unwrap().0.is_empty());
}

/// kube-proxy's short cut: pods and the node itself are not outside, whatever address they connect to.
#[test]
fn pods_and_the_node_go_by_no_external_policy() {
    if !is_inside("addresses::served::pods_and_the_node_go_by_no_external_policy") {
        return;
    }
    const EXTERNAL_V6: &str = "[2001:db8:9::9]:80";
    let (far, near) = (App::start("far"), App::start("near"));
    let node = Node::start(&[], "timeouts: {hold: 1s}");
    let mut local = shop();
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    local["spec"]["externalIPs"] = json!(["203.0.113.9", "2001:db8:9::9"]);
    node.folder.write("service.json", &local);
    let put = |app: &App, at: &str| {
        let mut slice = app.ep().slice_of("shop", "");
        slice["endpoints"][0]["nodeName"] = at.into();
        node.folder.write(&format!("{}.json", app.name), &slice);
    };
    put(&far, "elsewhere");
    let is_by = |at: &str, app: &str| get(at).is_ok_and(|it| it.starts_with(app));
    let external = [EXTERNAL, BALANCER, "192.0.2.1:30080"];
    until("the node is served", || {
        external.iter().all(|at| is_by(at, "far")) && is_by("127.0.0.1:30080", "far")
    });
    in_pod(|| assert!(external.iter().all(|at| is_by(at, "far"))));
    // This pod's address of the other family is in no range: it is outside.
    assert!(
        in_pod(|| get(EXTERNAL_V6)).is_err(),
        "nothing for it is here"
    );
    assert!(is_by(EXTERNAL_V6, "far"), "the node's own address");

    put(&near, NODE);
    until("an endpoint here", || in_pod(|| is_by(EXTERNAL_V6, "near")));
    assert!(in_pod(|| (0..20).all(|_| is_by(EXTERNAL_V6, "near"))));
    for at in external {
        let names = || (0..40).map(|_| get(at).unwrap()[..4].to_owned());
        let all = ["far ", "near"].map(str::to_owned).into();
        assert_eq!(in_pod(|| names().collect::<BTreeSet<_>>()), all, "{at}");
    }
}

#[test]
fn a_gap_is_held_and_absence_is_refused() {
    if !is_inside("addresses::served::a_gap_is_held_and_absence_is_refused") {
        return;
    }
    let a = App::start("a");
    let node = Node::start(&[], "timeouts: {hold: 6s, drain: 1s}");
    let node_port = "127.0.0.1:30080";
    let all = || ALL.into_iter().chain([node_port]);
    // It never had an endpoint.
    until("refusal", || all().all(is_refused));
    assert!(in_pod(|| ALL.into_iter().all(is_refused)));
    node.folder.endpoints(&[a.ep()]);
    until("service", || all().all(|at| get(at).is_ok()));

    // A gap: who comes now is held, and served as soon as an endpoint is there.
    let mut client = in_pod(|| Client::connect(CLUSTER)).unwrap();
    client.get().unwrap();
    node.folder.endpoints(&[]);
    until("the gap", || try_get(EXTERNAL).is_err());
    std::thread::scope(|scope| {
        let old = scope.spawn(|| client.get());
        let new = scope.spawn(|| get(CLUSTER_V6));
        let port = scope.spawn(|| get(node_port));
        until("three held", || held() >= 3.0);
        node.folder.endpoints(&[a.ep()]);
        for waits in [old, new, port] {
            assert!(waits.join().unwrap().unwrap().starts_with("a "));
        }
    });

    // Longer than the hold time: refused, by every way, and served again with the first endpoint.
    node.folder.endpoints(&[]);
    until("refusal", || all().all(is_refused));
    assert!(in_pod(|| is_refused(CLUSTER)));
    node.folder.endpoints(&[a.ep()]);
    until("service", || all().all(|at| get(at).is_ok()));

    // A Service of its own that never has one does not disturb the other.
    let mut other = service("other", json!({}));
    other["metadata"]["labels"] = shop()["metadata"]["labels"].clone();
    other["spec"]["clusterIP"] = json!("10.96.0.8");
    node.folder.write("other.json", &other);
    until("refusal", || is_refused("10.96.0.8:80"));
    assert!(get(CLUSTER).is_ok());
}

#[test]
fn with_a_local_policy_an_endpoint_of_another_node_is_absent() {
    if !is_inside("addresses::served::with_a_local_policy_an_endpoint_of_another_node_is_absent") {
        return;
    }
    const BALANCER_V6: &str = "[2001:db8:9::9]:80";
    let (here, there) = (App::start("here"), App::start("there"));
    let node = Node::start(&[], "timeouts: {hold: 1s, drain: 1s}");
    let policies = |internal: &str, external: &str| {
        let mut shop = shop();
        shop["spec"]["internalTrafficPolicy"] = json!(internal);
        shop["spec"]["externalTrafficPolicy"] = json!(external);
        shop["status"]["loadBalancer"]["ingress"] = json!([{"ip": "2001:db8:9::9"}]);
        node.folder.write("service.json", &shop);
    };
    let put = |name: &str, app: &App, node_name: &str| {
        let mut entry = endpoint("127.0.0.1", None, [true, true, false]);
        entry["nodeName"] = json!(node_name);
        let entry = slice(name, "shop", ("", app.address.port()), &[entry]);
        node.folder.write(&format!("{name}.json"), &entry);
    };
    let answers = |at: &str, name: &str| get(at).is_ok_and(|it| it.starts_with(name));
    put("there", &there, "n2");
    policies("Local", "Cluster");
    until("only its clients are refused", || {
        is_refused(CLUSTER) && is_refused(CLUSTER_V6) && answers(EXTERNAL, "there")
    });
    policies("Cluster", "Local");
    // The pod's IPv6 address is of no range in podCIDRs: it is a client outside. The node is inside.
    let outside = |then: &(dyn Fn() -> bool + Sync)| in_pod(then);
    let is_reset = || {
        let error = get(BALANCER_V6).err();
        error.is_some_and(|it| it.kind() == std::io::ErrorKind::ConnectionReset)
    };
    until("only its clients are refused", || {
        answers(CLUSTER, "there") && answers(BALANCER_V6, "there") && outside(&is_reset)
    });
    policies("Local", "Local");
    put("here", &here, NODE);
    until("the one here", || {
        answers(CLUSTER, "here") && outside(&|| answers(BALANCER_V6, "here"))
    });
    std::fs::remove_file(node.folder.manifests().join("here.json")).unwrap();
    until("refusal", || is_refused(CLUSTER) && outside(&is_reset));
    policies("Cluster", "Cluster");
    until("the one there", || {
        answers(CLUSTER, "there") && outside(&|| answers(BALANCER_V6, "there"))
    });
}

#[test]
fn each_process_may_end_and_come_again() {
    if !is_inside("addresses::served::each_process_may_end_and_come_again") {
        return;
    }
    let a = App::start("a");
    let mut node = Node::start(&[a.ep()], "timeouts: {drain: 1s}");
    let rules = || netlink::list().unwrap().0;
    let before = rules();
    let mut client = in_pod(|| Client::connect(CLUSTER)).unwrap();
    client.get().unwrap();

    // `ebbtide net` crashes: nobody notices.
    node.net.take().unwrap().kill();
    client.get().unwrap();
    assert!(in_pod(|| get(CLUSTER)).is_ok());
    let mut fewer = shop();
    fewer["spec"]["externalIPs"] = json!([]);
    node.folder.write("service.json", &fewer);
    node.net = Some(Net::start(&node.folder.path().join("net.sock")));
    until("what it missed", || {
        rule(EXTERNAL).is_none() && rules().len() == before.len() - 1
    });

    // Somebody flushes all tables.
    netlink::remove().unwrap();
    client.get().unwrap();
    until("the rules", || rules().len() == before.len() - 1);
    assert!(in_pod(|| get(CLUSTER)).is_ok());

    // The proxy crashes: connections are refused until it is back.
    node.signal(Signal::KILL);
    node.proxy.wait().unwrap();
    assert!(is_refused(CLUSTER) && in_pod(|| is_refused(CLUSTER_V6)));
    assert_eq!(rules().len(), before.len() - 1);
    node.proxy = start_proxy(node.folder.path(), "timeouts: {drain: 1s}");
    until("service", || in_pod(|| get(CLUSTER)).is_ok());

    // Both are told to end, as a deleted pod's containers are: clients finish, nothing is left.
    let mut client = in_pod(|| Client::connect(CLUSTER)).unwrap();
    client.get().unwrap();
    let before = a.seen.load(Ordering::SeqCst);
    a.slow.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let last = scope.spawn(|| client.get());
        until("the request", || a.seen.load(Ordering::SeqCst) > before);
        node.net.as_ref().unwrap().signal(Signal::TERM);
        node.signal(Signal::TERM);
        until("no rule", || rules().is_empty());
        a.slow.store(false, Ordering::SeqCst);
        assert!(last.join().unwrap().unwrap().starts_with("a "));
    });
    let end = client.0.read(&mut [0]).unwrap();
    assert_eq!(end, 0, "the connection ends by a FIN");
    until("the proxy's end", || {
        node.proxy.try_wait().unwrap().is_some()
    });
    let mut net = node.net.take().unwrap();
    until("the end of ebbtide net", || net.ended());
    assert_eq!(netlink::list().unwrap().1, [], "a table is left");
}

#[test]
fn datagrams_reach_a_service_by_its_cluster_ip_and_are_refused_without_an_endpoint() {
    if !is_inside(
        "addresses::served::datagrams_reach_a_service_by_its_cluster_ip_and_are_refused_without_an_endpoint",
    ) {
        return;
    }
    let a = App::start("a");
    let node = Node::start(&[a.ep()], "timeouts: {hold: 1s, drain: 1s}");
    // TCP and UDP of one number, as DNS has them.
    let mut dns = service("dns", json!({}));
    dns["metadata"]["labels"] = shop()["metadata"]["labels"].clone();
    dns["spec"]["clusterIP"] = json!("10.96.0.10");
    dns["spec"]["clusterIPs"] = json!(["10.96.0.10", "fd00:96::10"]);
    dns["spec"]["ports"] = json!([
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]);
    node.folder.write("dns.json", &dns);
    let lead = |file: &str, port: u16| {
        let mut slice = slice(
            file,
            "dns",
            ("dns", port),
            &[endpoint("127.0.0.1", None, [true, true, false])],
        );
        slice["ports"] = json!([
            {"name": "dns", "port": port, "protocol": "UDP"},
            {"name": "dns-tcp", "port": a.address.port(), "protocol": "TCP"},
        ]);
        node.folder.write(&format!("{file}.json"), &slice);
    };
    let udp = |at: &str| {
        let any = if at.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let client = UdpSocket::bind(any).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        client.connect(at).unwrap();
        client
    };
    let ask = |client: &UdpSocket| -> std::io::Result<String> {
        client.send(b"ask")?;
        let mut buf = [0; 64];
        let n = client.recv(&mut buf)?;
        Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
    };
    let refused = |at: &str| {
        let error = ask(&udp(at)).err();
        error.is_some_and(|it| it.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    let both = ["10.96.0.10:53", "[fd00:96::10]:53"];
    for at in both {
        until("a refusal", || refused(at) && in_pod(|| refused(at)));
    }

    // Clients that keep their port go where the rule leads now: the kernel must forget the flow.
    let faithful: Vec<UdpSocket> = both
        .into_iter()
        .flat_map(|at| [udp(at), in_pod(|| udp(at))])
        .collect();
    for client in &faithful {
        until("a refusal", || {
            ask(client).is_err_and(|it| it.kind() == std::io::ErrorKind::ConnectionRefused)
        });
    }
    lead("first", echo("127.0.0.1:0", "first"));
    for client in &faithful {
        let heard = |answer: &str| ask(client).is_ok_and(|it| it == answer);
        until("an answer by the port of before", || heard("first ask"));
    }
    for at in both {
        until("an answer", || {
            ask(&udp(at)).is_ok_and(|it| it == "first ask")
        });
        // A connected socket takes answers from the address that it asked only.
        assert_eq!(in_pod(|| ask(&udp(at))).unwrap(), "first ask");
        // Its rule may come in a message of its own.
        until("TCP of the same number", || {
            get(at).is_ok_and(|it| it.starts_with("a "))
        });
    }
    // The same client goes on at another endpoint.
    let client = in_pod(|| udp(both[0]));
    assert_eq!(ask(&client).unwrap(), "first ask");
    lead("second", echo("127.0.0.1:0", "second"));
    std::fs::remove_file(node.folder.manifests().join("first.json")).unwrap();
    until("the second", || {
        ask(&client).is_ok_and(|it| it == "second ask")
    });

    // Another process has another port, to which the flows of the first one do not lead.
    let mut node = node;
    node.signal(Signal::TERM);
    node.proxy.wait().unwrap();
    node.proxy = start_proxy(node.folder.path(), "timeouts: {hold: 1s, drain: 1s}");
    for client in &faithful {
        until("an answer of the next process", || {
            ask(client).is_ok_and(|it| it == "second ask")
        });
    }

    std::fs::remove_file(node.folder.manifests().join("second.json")).unwrap();
    for at in both {
        until("a refusal", || refused(at) && in_pod(|| refused(at)));
    }
    for client in &faithful {
        until("a refusal by the port of before", || {
            ask(client).is_err_and(|it| it.kind() == std::io::ErrorKind::ConnectionRefused)
        });
    }
    std::fs::remove_file(node.folder.manifests().join("dns.json")).unwrap();
    until("no rule of it", || {
        let rules = netlink::list().unwrap().0;
        rules.keys().all(|(_, at)| at.port() != 53)
    });
    assert!(get(CLUSTER).is_ok());
}
