//! Shadows: how clients get theirs, who may use them, and what is left when processes end or somebody
//! flushes the tables.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ebbtide::net::netlink::Family;
use ebbtide::net::socket::bind_source;
use ebbtide::net::{source as shadows, source_route, source_table};
use rustix::process::Signal;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::namespace::is_inside;
use super::node::{
    CLUSTER, Client, EXTERNAL, Node, get, inside_of, make_network, rule, shop, start_proxy,
};
use super::process::{Net, until};
use super::seen::{
    App, BRIDGED, BY_NODE, FAR, NEIGHBOUR, Pod, ROUTED, make_pods, nft, seen, until_only,
};
use crate::support::folder::Folder;
use crate::support::manifests::service;

#[test]
fn shadows_outlive_flushes_and_both_processes_and_go_with_them() {
    if !is_inside("addresses::shadows::shadows_outlive_flushes_and_both_processes_and_go_with_them")
    {
        return;
    }
    let mut node = Node::start(&[], "timeouts: {drain: 1s}");
    make_pods();
    let app = App::start(NEIGHBOUR, false);
    node.folder.endpoints(&[app.ep()]);
    until_only(&app, || get(CLUSTER));
    let own = |pod: Pod| seen(pod, CLUSTER) == format!("neighbour4 {}", pod.v4);
    until("its own address", || own(BRIDGED));
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
    until("its own address", || own(BRIDGED));

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
        until("their own addresses", || own(BRIDGED) && own(ROUTED));
    }
    assert!(first.iter().all(|it| pairs().contains(it)), "{:?}", pairs());
    let first = pairs();
    assert_eq!(first.len(), 2, "{first:?}");
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    net.kill();

    // `ebbtide net` crashes: a client that has a shadow keeps it.
    until("one proxy", || get(CLUSTER).is_ok());
    node.net.take().unwrap().kill();
    until("its own address", || own(BRIDGED));
    node.net = Some(Net::start(&node.folder.path().join("net.sock")));
    let mut fewer = shop();
    fewer["spec"]["externalIPs"] = json!([]);
    node.folder.write("service.json", &fewer);
    until("the next one", || rule(EXTERNAL).is_none());
    until("their own addresses", || own(BRIDGED) && own(ROUTED));
    assert!(first.iter().all(|it| pairs().contains(it)), "{:?}", pairs());

    // Both end.
    node.net.as_ref().unwrap().signal(Signal::TERM);
    node.signal(Signal::TERM);
    let mut net = node.net.take().unwrap();
    until("the end of ebbtide net", || net.ended());
    assert_eq!(source_table::list(Family::V4).unwrap(), None);
    assert!(!source_route::exists(Family::V4).unwrap());
}

#[test]
fn a_shadow_is_for_the_users_that_may_use_it_and_nobody_comes_in_by_it() {
    if !is_inside(
        "addresses::shadows::a_shadow_is_for_the_users_that_may_use_it_and_nobody_comes_in_by_it",
    ) {
        return;
    }
    make_network();
    make_pods();
    for (is_ipv6, family, shadow) in [
        (false, Family::V4, "198.18.0.2"),
        (true, Family::V6, "fdeb:b71d:e6a5::2"),
    ] {
        let app = App::start(FAR, is_ipv6);
        let own = if is_ipv6 { ROUTED.v6 } else { ROUTED.v4 };
        let pair = (shadow.parse().unwrap(), own.parse().unwrap());
        until("the way", || get(&app.address.to_string()).is_ok());
        source_route::add(family).unwrap();
        source_table::replace(family, &[pair], &[4711]).unwrap();
        assert_eq!(source_table::list(family).unwrap(), Some(vec![pair]));
        let seen = || {
            let socket = Socket::new(Domain::for_address(app.address), Type::STREAM, None).unwrap();
            bind_source(&socket, pair.0).unwrap();
            socket.connect_timeout(&app.address.into(), Duration::from_millis(300))?;
            Client(socket.into()).get()
        };
        assert!(seen().is_err(), "another user");
        source_table::add(family, &[], &[0]).unwrap();
        assert_eq!(seen().unwrap(), format!("{} {own}", app.name));
        // Another client's element is no element.
        let other = (pair.0, app.address.ip());
        let error = source_table::add(family, &[other], &[]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);

        // A program of the node listens everywhere. What a pod sends to a shadow does not reach it.
        let (any, node) = match is_ipv6 {
            true => ("[::]:9999", "fd00:244::1"),
            false => ("0.0.0.0:9999", "10.244.0.1"),
        };
        let daemon = UdpSocket::bind(any).unwrap();
        for to in [pair.0, node.parse().unwrap()] {
            inside_of(ROUTED.name, || {
                let client = UdpSocket::bind(SocketAddr::new(own.parse().unwrap(), 0)).unwrap();
                client
                    .send_to(to.to_string().as_bytes(), (to, 9999))
                    .unwrap();
            });
        }
        let mut first = [0; 64];
        let read = daemon.recv(&mut first).unwrap();
        assert_eq!(String::from_utf8_lossy(&first[..read]), node);
    }
    source_table::remove().unwrap();
    source_route::remove().unwrap();
    source_route::remove().unwrap();
    for family in Family::ALL {
        assert_eq!(source_table::list(family).unwrap(), None);
        assert!(!source_route::exists(family).unwrap());
    }
}

#[test]
fn many_new_clients_come_at_once_and_each_is_seen_as_itself() {
    if !is_inside("addresses::shadows::many_new_clients_come_at_once_and_each_is_seen_as_itself") {
        return;
    }
    let node = Node::start(&[], "timeouts: {drain: 1s}");
    make_pods();
    let app = App::start(NEIGHBOUR, false);
    node.folder.endpoints(&[app.ep()]);
    until_only(&app, || get(CLUSTER));
    let lines = (10..74).map(|n| format!("addr add 10.244.0.{n}/24 dev eth0\n"));
    let batch = node.folder.path().join("batch");
    std::fs::write(&batch, lines.collect::<String>()).unwrap();
    super::namespace::ip(&["-n", ROUTED.name, "-batch", batch.to_str().unwrap()]);
    let request = |n: u8| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let own = SocketAddr::from(([10, 244, 0, n], 0));
        socket.bind(&own.into()).unwrap();
        let begun = Instant::now();
        let cluster: SocketAddr = CLUSTER.parse().unwrap();
        socket.connect(&cluster.into()).unwrap();
        let answer = Client(socket.into()).get().unwrap();
        // A busy machine may let the time for an answer pass. Nobody gets the name of another client.
        assert!([BY_NODE, &format!("neighbour4 {}", own.ip())].contains(&&*answer));
        (begun.elapsed(), answer != BY_NODE)
    };
    // One after the other, and then all others together.
    let mut times: Vec<[Duration; 2]> = inside_of(ROUTED.name, || {
        (10..42).map(|n| [request(n).0, request(n).0]).collect()
    });
    inside_of(ROUTED.name, || {
        std::thread::scope(|scope| {
            let all: Vec<_> = (42..74).map(|n| scope.spawn(move || request(n))).collect();
            all.into_iter().for_each(|it| _ = it.join().unwrap());
        });
    });
    for (i, which) in ["first", "second"].into_iter().enumerate() {
        times.sort_by_key(|it| it[i]);
        println!(
            "FIGURE addresses: the {which} request of a client took {:.2} ms",
            times[times.len() / 2][i].as_secs_f64() * 1e3
        );
    }
    until("all names", || {
        inside_of(ROUTED.name, || (10..74).all(|n| request(n).1))
    });

    // Beside a Service that asks for the node's address, as ratios. TCP connects to an endpoint for each
    // client connection.
    let (mut own, mut other) = (shop(), shop());
    own["metadata"]["annotations"] = json!({"ebbtide.dev/protocol": "tcp"});
    other["metadata"]["annotations"] =
        json!({"ebbtide.dev/source": "node", "ebbtide.dev/protocol": "tcp"});
    other["metadata"]["name"] = json!("other");
    other["spec"]["clusterIP"] = json!("10.96.0.8");
    for field in ["clusterIPs", "externalIPs"] {
        other["spec"][field] = json!([]);
    }
    (other["spec"]["ports"][0]["nodePort"], other["status"]) = (json!(null), json!({}));
    node.folder.write("service.json", &own);
    node.folder.write("other.json", &other);
    let mut slice = app.ep().slice_of("other", "");
    slice["metadata"]["name"] = json!("other");
    node.folder.write("other-slice.json", &slice);
    let by_node = "10.96.0.8:80";
    until("the other", || {
        inside_of(ROUTED.name, || get(by_node)).is_ok_and(|it| it == BY_NODE)
    });
    for which in ["new connections", "requests"] {
        let mut done = [0.0, 0.0];
        for _ in 0..10 {
            for (at, done) in [CLUSTER, by_node].into_iter().zip(&mut done) {
                inside_of(ROUTED.name, || {
                    let (begun, mut kept) = (Instant::now(), Client::connect(at).unwrap());
                    while begun.elapsed() < Duration::from_millis(200) {
                        match which {
                            "requests" => drop(kept.get().unwrap()),
                            _ => drop(get(at).unwrap()),
                        }
                        *done += 1.0;
                    }
                });
            }
        }
        let ratio = done[0] / done[1];
        println!(
            "FIGURE addresses: with the client's address x{ratio:.2} {which}, of {}",
            done[1]
        );
    }
}

#[test]
fn ten_thousand_clients_are_kept_and_listed() {
    if !is_inside("addresses::shadows::ten_thousand_clients_are_kept_and_listed") {
        return;
    }
    let pairs: Vec<_> = (0..10_000u32)
        .map(|n| {
            let address = std::net::Ipv4Addr::from_bits(0x0af4_0000 + n).into();
            let client = shadows::Client {
                address,
                side: shadows::Side::Inside,
            };
            (shadows::places(client).next().unwrap(), address)
        })
        .collect();
    let begun = Instant::now();
    source_table::replace(Family::V4, &pairs, &[0]).unwrap();
    let written = begun.elapsed();
    let begun = Instant::now();
    let mut found = source_table::list(Family::V4).unwrap().unwrap();
    let listed = begun.elapsed();
    found.sort_unstable();
    assert_eq!(found, pairs);
    let begun = Instant::now();
    let other = (
        "198.18.200.1".parse().unwrap(),
        "10.244.200.1".parse().unwrap(),
    );
    source_table::add(Family::V4, &[other], &[0]).unwrap();
    println!(
        "FIGURE addresses: 10,000 shadows took {:.1} ms, listing {:.1} ms, one more {:.2} ms",
        written.as_secs_f64() * 1e3,
        listed.as_secs_f64() * 1e3,
        begun.elapsed().as_secs_f64() * 1e3
    );
}
