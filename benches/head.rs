//! The cost of parsing and rewriting the two heads of a keep-alive exchange.
#![allow(clippy::unwrap_used)] // A bench that cannot parse its own input should stop.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

use divan::{Bencher, black_box};
use ebbtide::wire::head::{Forwarding, parse_request, parse_response};
use ebbtide::wire::message::{Limits, Method, Version};

const LIMITS: Limits = Limits {
    head_size: 16 << 10,
    headers: 100,
};

const REQUEST: &[u8] = b"GET /api/v1/orders/4711?expand=items HTTP/1.1\r\n\
    Host: shop.example.org\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Referer: https://shop.example.org/orders\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\
    Cache-Control: no-cache\r\n\
    X-Request-Id: 8c0a3cde-5a8f-4f0e-9d5b-1f2a3b4c5d6e\r\n\r\n";

/// A head of 1 KiB. Most of it is in two long fields, as with real applications.
fn response() -> Vec<u8> {
    let mut head = b"HTTP/1.1 200 OK\r\nDate: Mon, 03 Feb 2025 10:00:00 GMT\r\nServer: app/1.0\r\n\
        Content-Type: application/json; charset=utf-8\r\nContent-Length: 5120\r\nVary: Accept-Encoding\r\n\
        Cache-Control: private, max-age=0, must-revalidate\r\nETag: \"33a64df551425fcc55e4d42a148795d9f25f89d4\"\r\n\
        Strict-Transport-Security: max-age=31536000; includeSubDomains\r\nX-Content-Type-Options: nosniff\r\n\
        Set-Cookie: session="
        .to_vec();
    head.resize(740, b'x');
    head.extend_from_slice(
        b"; Path=/; HttpOnly\r\nContent-Security-Policy: default-src 'self'; img-src ",
    );
    head.resize(1020, b'y');
    head.extend_from_slice(b"\r\n\r\n");
    head
}

fn main() {
    divan::main();
}

#[divan::bench]
fn request_of_ten_headers(bencher: Bencher) {
    let forwarding = Forwarding {
        peer: "192.0.2.7".parse().unwrap(),
        local: "198.51.100.1:80".parse().unwrap(),
        trusted: false,
        https: false,
        allow_connect: false,
    };
    let mut out = Vec::with_capacity(4096);
    bencher.bench_local(|| {
        out.clear();
        parse_request(black_box(REQUEST), &LIMITS, &forwarding, &mut out)
            .unwrap()
            .unwrap()
    });
}

#[divan::bench]
fn response_of_1_kib(bencher: Bencher) {
    let head = response();
    let mut out = Vec::with_capacity(4096);
    bencher.bench_local(|| {
        out.clear();
        parse_response(
            black_box(&head),
            &LIMITS,
            Method::Get,
            Version::H11,
            false,
            &mut out,
        )
        .unwrap()
        .unwrap()
    });
}
