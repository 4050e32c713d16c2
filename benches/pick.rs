//! The cost of choosing an endpoint, including its lease and the return of the lease. The target is
//! less than 100 ns, whatever the number of endpoints is.
#![allow(clippy::unwrap_used)] // A bench that cannot build its scene should stop.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

#[path = "scene/mod.rs"]
mod scene;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use ebbtide::contract::clock::millis;
use ebbtide::proxy::balancer::{self, Avoid, Cost, Origin};
use scene::Scene;

const CLIENT: Origin = Origin {
    client: IpAddr::V4(Ipv4Addr::LOCALHOST),
    scope: None,
};
const COUNTS: [usize; 4] = [3, 10, 1_000, 10_000];

fn main() {
    divan::main();
}

#[divan::bench(args = COUNTS)]
fn http(bencher: Bencher, endpoints: usize) {
    let scene = Scene::of(endpoints);
    let port = scene.port();
    let now = Instant::now();
    for (i, endpoint) in port.usable.iter().enumerate() {
        endpoint
            .latency()
            .record(Duration::from_micros(900 + i as u64 % 200), millis(now));
    }
    bencher.bench_local(|| {
        drop(balancer::pick(black_box(&port), Cost::Http, CLIENT, &Avoid::default(), now).unwrap())
    });
}

#[divan::bench(args = COUNTS)]
fn tcp(bencher: Bencher, endpoints: usize) {
    let scene = Scene::of(endpoints);
    let port = scene.port();
    let now = Instant::now();
    bencher.bench_local(|| {
        drop(balancer::pick(black_box(&port), Cost::Tcp, CLIENT, &Avoid::default(), now).unwrap())
    });
}

/// The worst moment of a rollout: every second endpoint is ejected.
#[divan::bench(args = COUNTS)]
fn half_ejected(bencher: Bencher, endpoints: usize) {
    let scene = Scene::of(endpoints);
    let port = scene.port();
    let now = Instant::now();
    port.usable.iter().step_by(2).for_each(|e| e.eject());
    bencher.bench_local(|| {
        drop(balancer::pick(black_box(&port), Cost::Http, CLIENT, &Avoid::default(), now).unwrap())
    });
}

/// A replay after a loss. No endpoint is of another generation than the lost one, so the search for
/// one is in vain.
#[divan::bench(args = COUNTS)]
fn replay(bencher: Bencher, endpoints: usize) {
    let scene = Scene::of(endpoints);
    let port = scene.port();
    let now = Instant::now();
    let lost = port.usable[0].clone();
    let tried = [lost.id];
    let avoid = Avoid {
        tried: &tried,
        siblings_of: Some(&lost),
    };
    bencher.bench_local(|| {
        drop(balancer::pick(black_box(&port), Cost::Http, CLIENT, &avoid, now).unwrap())
    });
}

/// Nine of ten endpoints are ejected, so most picks have to search.
#[divan::bench(args = COUNTS)]
fn most_ejected(bencher: Bencher, endpoints: usize) {
    let scene = Scene::of(endpoints);
    let port = scene.port();
    let now = Instant::now();
    let ejected = port.usable.iter().enumerate().filter(|(i, _)| i % 10 > 0);
    ejected.for_each(|(_, e)| e.eject());
    bencher.bench_local(|| {
        drop(balancer::pick(black_box(&port), Cost::Http, CLIENT, &Avoid::default(), now).unwrap())
    });
}
