//! The time from an event to the published snapshot, and the drain of up to ten thousand endpoints.
#![allow(clippy::unwrap_used)] // A bench that cannot build its scene should stop.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

#[path = "scene/mod.rs"]
mod scene;

use divan::Bencher;
use ebbtide::contract::endpoint::Notice;
use ebbtide::contract::name::ObjectName;
use ebbtide::discovery::object::{Change, Kind};
use scene::Scene;

const COUNTS: [usize; 3] = [100, 1_000, 10_000];

fn main() {
    divan::main();
}

/// From the event to the published snapshot: one endpoint of one slice becomes ready or not ready.
#[divan::bench(args = COUNTS)]
fn one_slice_change(bencher: Bencher, endpoints: usize) {
    let mut scene = Scene::of(endpoints);
    let mut out = false;
    bencher.bench_local(|| {
        out = !out;
        scene.apply(vec![scene::slice(0, scene::SLICE, out)]);
    });
}

/// The merge of all slices of a Service.
#[divan::bench(args = COUNTS)]
fn merge_of_all_slices(bencher: Bencher, endpoints: usize) {
    let scene = Scene::of(endpoints);
    let name = ObjectName::new("web", "shop");
    bencher.bench_local(|| scene.world.merge(&name));
}

/// Only the change of each endpoint's lease word.
#[divan::bench(args = COUNTS)]
fn begin_drain(bencher: Bencher, endpoints: usize) {
    bencher
        .with_inputs(|| Scene::of(endpoints))
        .bench_local_values(|scene| {
            scene.port().usable.iter().for_each(|e| e.begin_drain());
            scene
        });
}

/// All endpoints leave in one event. They are published away and drained; the table still holds
/// them.
#[divan::bench(args = COUNTS, sample_count = 10)]
fn all_leave(bencher: Bencher, endpoints: usize) {
    bencher
        .with_inputs(|| Scene::of(endpoints))
        .bench_local_values(|mut scene| {
            leave(&mut scene);
            scene
        });
}

/// The same, until the table has removed them.
#[divan::bench(args = COUNTS, sample_count = 10)]
fn all_leave_and_are_forgotten(bencher: Bencher, endpoints: usize) {
    bencher
        .with_inputs(|| Scene::of(endpoints))
        .bench_local_values(|mut scene| {
            leave(&mut scene);
            let mut drained = Vec::new();
            while let Ok(notice) = scene.notices.try_recv() {
                if let Notice::Drained(endpoint) = notice {
                    drained.push(endpoint);
                }
            }
            scene.table.drained(&drained);
            assert_eq!(drained.len(), endpoints);
            scene
        });
}

fn leave(scene: &mut Scene) {
    scene.apply(vec![Change::Replace {
        kind: Kind::EndpointSlice,
        namespace: None,
        objects: Vec::new(),
    }]);
}
