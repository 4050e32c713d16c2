//! The cost of finding what serves a request, by its host and path. The target is less than 300 ns at
//! 10,000 rules.
#![allow(clippy::unwrap_used)] // A bench that cannot build its scene should stop.

use divan::{Bencher, black_box};
use ebbtide::contract::route::{RouteTable, Rule};

const COUNTS: [usize; 3] = [10, 1_000, 10_000];

fn main() {
    divan::main();
}

fn table(rules: impl Iterator<Item = (Option<String>, String)>) -> RouteTable<usize> {
    let mut table = RouteTable::default();
    for (place, (host, path)) in rules.enumerate() {
        let exact = false;
        table.add(
            &Rule {
                host,
                path,
                exact,
                ..Rule::default()
            },
            place,
        );
    }
    table
}

/// A host for each rule.
#[divan::bench(args = COUNTS)]
fn hosts(bencher: Bencher, count: usize) {
    let rules = (0..count).map(|it| (Some(format!("shop-{it}.example.com")), "/".to_owned()));
    let table = table(rules);
    let host = format!("shop-{}.example.com", count / 2);
    bencher.bench_local(|| {
        let found = table.find(black_box(&host), black_box("/api/v1/items/17?page=2"));
        *found.unwrap()
    });
}

/// All rules have one host, and paths of three elements.
#[divan::bench(args = COUNTS)]
fn paths(bencher: Bencher, count: usize) {
    let rules = (0..count).map(|it| {
        let path = format!("/team-{}/app-{it}/v1", it % 100);
        (Some("example.com".to_owned()), path)
    });
    let table = table(rules);
    let path = format!(
        "/team-{}/app-{}/v1/items/17?page=2",
        count / 2 % 100,
        count / 2
    );
    bencher.bench_local(|| {
        *table
            .find(black_box("example.com"), black_box(&path))
            .unwrap()
    });
}

/// No rule is for the request, and its path is as long as a head may be.
#[divan::bench(args = COUNTS)]
fn none(bencher: Bencher, count: usize) {
    let rules = (0..count).map(|it| (None, format!("/team-{}/app-{it}/v1", it % 100)));
    let table = table(rules);
    let path = "/".repeat(16 << 10);
    bencher.bench_local(|| {
        assert!(
            table
                .find(black_box("example.com"), black_box(&path))
                .is_none()
        );
    });
}
