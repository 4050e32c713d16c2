//! The merge of slices: a whole Service, and the cost of one changed slice.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use divan::Bencher;
use ebbtide::contract::name::{ObjectName, PodRef};
use ebbtide::contract::policy::Transport;
use ebbtide::discovery::object::{
    Change, Object, PodObject, ServiceObject, ServicePortObject, SliceEndpoint, SliceObject,
};
use ebbtide::routing::world::objects::{Touched, World};

fn main() {
    divan::main();
}

/// The target is at most 2 ms for 10,000 endpoints.
#[divan::bench(args = [100, 1_000, 10_000])]
fn merge(bencher: Bencher<'_, '_>, endpoints: u32) {
    let world = world(endpoints);
    bencher.bench_local(|| world.merge(&ObjectName::new("web", "app")));
}

#[divan::bench(args = [100, 1_000, 10_000])]
fn change_one_slice(bencher: Bencher<'_, '_>, endpoints: u32) {
    let mut world = world(endpoints);
    let versions = [slice(0, true), slice(0, false)];
    let mut turn = versions.iter().cycle();
    bencher
        .with_inputs(|| turn.next().cloned())
        .bench_local_values(|slice| apply(&mut world, slice.into_iter()));
}

#[divan::bench(args = [10_000])]
fn change_one_slice_and_merge(bencher: Bencher<'_, '_>, endpoints: u32) {
    let mut world = world(endpoints);
    let versions = [slice(0, true), slice(0, false)];
    let mut turn = versions.iter().cycle();
    bencher
        .with_inputs(|| turn.next().cloned())
        .bench_local_values(|slice| {
            apply(&mut world, slice.into_iter());
            world.merge(&ObjectName::new("web", "app"))
        });
}

#[divan::bench(args = [10_000])]
fn one_pod_deleted(bencher: Bencher<'_, '_>, endpoints: u32) {
    let mut world = world(endpoints);
    let mut pods = (0..endpoints)
        .map(pod)
        .map(|pod| {
            Object::Pod(PodObject {
                template_hash: None,
                ..pod
            })
        })
        .cycle();
    bencher
        .with_inputs(|| pods.next())
        .bench_local_values(|pod| apply(&mut world, pod.into_iter()));
}

/// A world with one Service, its endpoints in slices of 100, and their pods.
fn world(endpoints: u32) -> World {
    let mut world = World::default();
    apply(&mut world, (0..endpoints).map(pod).map(Object::Pod));
    apply(&mut world, (0..endpoints / 100).map(|n| slice(n, true)));
    apply(&mut world, std::iter::once(Object::Service(service())));
    world
}

fn apply(world: &mut World, objects: impl Iterator<Item = Object>) -> Touched {
    let (now, mut touched) = (Instant::now(), Touched::default());
    for object in objects {
        world.apply(Change::Apply(object), now, &mut touched);
    }
    touched
}

fn service() -> ServiceObject {
    let port = ServicePortObject {
        name: Some("http".into()),
        port: 80,
        node_port: Some(30080),
        target_port: Some(8080),
        app_protocol: None,
        transport: Transport::Tcp,
    };
    ServiceObject {
        name: ObjectName::new("web", "app"),
        uid: Some("6d0a1c9e".into()),
        claimed: true,
        external_name: false,
        headless: false,
        ports: vec![port],
        ipv6_first: false,
        annotations: BTreeMap::new(),
        unserved: Vec::new(),
        addresses: Vec::new(),
        source_ranges: Vec::new(),
        traffic: Default::default(),
    }
}

fn slice(n: u32, ready: bool) -> Object {
    let endpoint = |n: u32| SliceEndpoint {
        // The addresses are scattered, as in a cluster.
        address: IpAddr::V4(Ipv4Addr::from(
            0x0a00_0000 | n.wrapping_mul(2_654_435_761) >> 8,
        )),
        pod: Some(Arc::new(PodRef {
            name: pod(n).name.name,
            uid: pod(n).uid,
        })),
        ready: ready || !n.is_multiple_of(100),
        serving: true,
        terminating: false,
        local: false,
        hints: Default::default(),
    };
    Object::EndpointSlice(SliceObject {
        name: ObjectName::new("web", format!("app-{n:05}")),
        service: Some("app".into()),
        ipv6: false,
        fqdn: false,
        created: i64::from(n),
        generation: 1,
        ports: vec![("http".into(), 8080)],
        udp_ports: Vec::new(),
        endpoints: (n * 100..n * 100 + 100).map(endpoint).collect(),
    })
}

fn pod(n: u32) -> PodObject {
    PodObject {
        name: ObjectName::new("web", format!("app-7d4b9c5f6-{n:05}")),
        uid: format!("{n:08x}-6d0a-4c9e-8f11-2b7e0c5d9a31"),
        template_hash: Some("7d4b9c5f6".into()),
        deletion: None,
        spec_grace: None,
    }
}
