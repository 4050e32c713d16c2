//! 10,000 Services with cluster IPs at one node: what they cost, and that no listener comes with them.

use std::time::Instant;

use ebbtide::net::netlink;
use serde_json::{Value, json};

use super::namespace::is_inside;
use super::node::{App, CLUSTER, Node, get, rule};
use super::process::until;
use crate::support::manifests::{endpoint, service, slice};
use crate::support::memory::own_bytes;

const SERVICES: usize = 10_000;

#[test]
fn ten_thousand_cluster_ips_are_served_by_the_sockets_of_one() {
    if !is_inside("addresses::size::ten_thousand_cluster_ips_are_served_by_the_sockets_of_one") {
        return;
    }
    let app = App::start("app");
    let node = Node::start(&[app.ep()], "");
    let pids = [node.proxy.id(), node.net.as_ref().unwrap().id()];
    let before = pids.map(|pid| (sockets(pid), own_bytes(pid)));
    let rules = || netlink::list().unwrap().0.len();
    let own = rules();

    let begun = Instant::now();
    for hundred in 0..SERVICES / 100 {
        let many = (0..100).flat_map(|n| objects(hundred * 100 + n, app.address.port()));
        let many: Vec<Value> = many.collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": many});
        node.folder.write(&format!("many-{hundred}.json"), &list);
    }
    until("all rules", || rules() == own + SERVICES);
    let took = begun.elapsed();
    let last = format!("{}:80", cluster_ip(SERVICES - 1));
    until("the last one", || {
        get(&last).is_ok_and(|it| it.starts_with("app "))
    });
    let after = pids.map(|pid| (sockets(pid), own_bytes(pid)));

    // One Service changes while the others are there.
    let begun = Instant::now();
    let list =
        json!({"apiVersion": "v1", "kind": "List", "items": objects(SERVICES, app.address.port())});
    node.folder.write("one-more.json", &list);
    let one_more = format!("{}:80", cluster_ip(SERVICES));
    until("the rule of one more", || {
        rule(&one_more).is_some_and(|to| to.port() == 15_001)
    });
    let each =
        |n: usize| (after[n].1.saturating_sub(before[n].1)) as f64 / SERVICES as f64 / 1024.0;
    println!(
        "FIGURE addresses: {SERVICES} Services written and served in {:.1} s; {:.1} KiB each in the proxy, {:.2} KiB in \
         ebbtide net; one more after {:.0} ms",
        took.as_secs_f64(),
        each(0),
        each(1),
        begun.elapsed().as_secs_f64() * 1e3
    );
    for ((now, _), (then, _)) in after.iter().zip(before) {
        assert!(*now <= then + 8, "{now} sockets, {then} before");
    }
    assert!(get(CLUSTER).is_ok());
}

fn cluster_ip(number: usize) -> String {
    format!("10.97.{}.{}", number / 250, number % 250 + 1)
}

fn objects(number: usize, port: u16) -> [Value; 2] {
    let name = format!("s-{number}");
    let mut it = service(&name, json!({}));
    it["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "ebbtide"});
    // 10,000 connections to one application would be measured, too.
    it["metadata"]["annotations"] = json!({"ebbtide.dev/join-check": "off"});
    it["spec"]["clusterIP"] = json!(cluster_ip(number));
    let ready = endpoint("127.0.0.1", None, [true, true, false]);
    [it, slice(&name, &name, ("", port), &[ready])]
}

fn sockets(pid: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    targets
        .filter(|it| it.to_string_lossy().starts_with("socket:"))
        .count()
}
