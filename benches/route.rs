//! The cost of finding what serves a request. The target is less than 300 ns at 10,000 rules.
#![allow(clippy::unwrap_used)] // A bench that cannot build its scene should stop.

use divan::{Bencher, black_box};
use ebbtide::contract::route::{Asked, RouteTable, Rule, Wants};

const COUNTS: [usize; 3] = [10, 1_000, 10_000];
/// The field lines of a browser's request, as they go to an endpoint.
const FIELDS: &str = "Host: shop.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\n\
    Cookie: session=5f1c2d7e9b3a4c6d8e0f; theme=dark\r\nReferer: https://shop.example.com/\r\n\
    X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n";

fn main() {
    divan::main();
}

fn table(rules: impl Iterator<Item = Rule>) -> RouteTable<usize> {
    let mut table = RouteTable::default();
    for (place, rule) in rules.enumerate() {
        table.add(&rule, place);
    }
    table.deep = true;
    table
}

fn rule(host: Option<&str>, path: &str) -> Rule {
    Rule {
        host: host.map(str::to_owned),
        path: path.to_owned(),
        ..Rule::default()
    }
}

/// A host for each rule.
#[divan::bench(args = COUNTS)]
fn hosts(bencher: Bencher, count: usize) {
    let table = table((0..count).map(|it| rule(Some(&format!("shop-{it}.example.com")), "/")));
    let host = format!("shop-{}.example.com", count / 2);
    bencher.bench_local(|| {
        let found = table.find(black_box(&host), black_box("/api/v1/items/17?page=2"));
        *found.unwrap()
    });
}

/// A wildcard for each rule. The host has two labels more.
#[divan::bench(args = COUNTS)]
fn wildcards(bencher: Bencher, count: usize) {
    let table = table((0..count).map(|it| rule(Some(&format!("*.shop-{it}.example.com")), "/")));
    let host = format!("a.b.shop-{}.example.com", count / 2);
    bencher.bench_local(|| {
        let found = table.find(black_box(&host), black_box("/api/v1/items/17?page=2"));
        *found.unwrap()
    });
}

/// All rules have one host, and paths of three elements.
#[divan::bench(args = COUNTS)]
fn paths(bencher: Bencher, count: usize) {
    let path = |it: usize| format!("/team-{}/app-{it}/v1", it % 100);
    let table = table((0..count).map(|it| rule(Some("example.com"), &path(it))));
    let path = path(count / 2) + "/items/17?page=2";
    bencher.bench_local(|| {
        *table
            .find(black_box("example.com"), black_box(&path))
            .unwrap()
    });
}

/// All rules have one host and one path. Each wants a method, a field and a parameter, and the value of
/// the field is its own.
#[divan::bench(args = COUNTS)]
fn wants(bencher: Bencher, count: usize) {
    let table = table((0..count).map(|it| Rule {
        wants: Wants {
            method: Some("GET".to_owned()),
            fields: vec![("x-tenant".to_owned(), format!("tenant-{it}"))],
            query: vec![("page".to_owned(), "2".to_owned())],
            last: None,
        },
        ..rule(Some("shop.example.com"), "/api")
    }));
    let fields = format!("{FIELDS}X-Tenant: tenant-{}\r\n", count / 2);
    let asked = Asked {
        host: "shop.example.com",
        target: "/api/v1/items/17?page=2",
        method: "GET",
        fields: fields.as_bytes(),
    };
    bencher.bench_local(|| *table.search(black_box(&asked)).unwrap());
}

/// A path for each rule, three elements long, with a canary beside it that wants a field which the
/// request does not have.
#[divan::bench(args = COUNTS)]
fn canaries(bencher: Bencher, count: usize) {
    let path = |it: usize| format!("/team-{}/app-{it}/v1", it % 100);
    let pair = |it: usize| {
        let plain = rule(Some("shop.example.com"), &path(it));
        let mut canary = plain.clone();
        canary.wants.fields = vec![("x-canary".to_owned(), "always".to_owned())];
        [canary, plain]
    };
    let table = table((0..count / 2).flat_map(pair));
    let target = path(count / 4) + "/items/17?page=2";
    let asked = Asked {
        host: "shop.example.com",
        target: &target,
        method: "GET",
        fields: FIELDS.as_bytes(),
    };
    bencher.bench_local(|| *table.search(black_box(&asked)).unwrap());
}

/// No rule is for the request, and its host and path are as long as a head may be.
#[divan::bench(args = COUNTS)]
fn none(bencher: Bencher, count: usize) {
    let rules = (0..count).map(|it| rule(None, &format!("/team-{}/app-{it}/v1", it % 100)));
    let table = table(rules);
    let (host, path) = ("a.".repeat(4 << 10), "/".repeat(8 << 10));
    bencher.bench_local(|| {
        assert!(table.find(black_box(&host), black_box(&path)).is_none());
    });
}
