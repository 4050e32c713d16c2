//! TLS that is passed on by the name that its client asks for.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::proxy::tls::hello;
use crate::support::folder::{Ep, Folder};
use crate::support::manifests::service;
use crate::support::rig::Rig;
use crate::support::serve::serve;
use crate::support::wait::soon;

/// An endpoint that answers what it gets, once nothing more comes, with its name and what that was.
async fn endpoint(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serve(listener, move |mut stream, _| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        let _ = stream
            .write_all(&[name.as_bytes(), b" ", &all].concat())
            .await;
    });
    address
}

/// A listener whose own Service is `web/shop`; `*.b.example` and `b.example` belong to `web/other`.
async fn rig(more: &str) -> Rig {
    let folder = Folder::new();
    folder.service(&[]);
    folder.endpoints(&[Ep::new("e", endpoint("shop").await)]);
    folder.write("other.json", &service("other", json!({})));
    let other = Ep::new("o", endpoint("other").await);
    folder.write("other-slice.json", &other.slice_of("other", ""));
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\n\
         listeners: [{{name: web, address: '127.0.0.1:0', service: web/shop, port: 80,\n\
           sni: [{{hosts: [b.example, '*.B.example'], service: web/other, port: 80}}]}}]\n\
         admin: {{address: '127.0.0.1:0'}}\nworkers: 1\n{more}\n"
    );
    let rig = Rig::run(folder, &text).await;
    let ready = async || {
        let ports = rig.running().admin.snapshot.load().ports;
        ports.values().filter(|port| port.usable.len() == 1).count() == 2
    };
    crate::support::wait::eventually("both Services", ready).await;
    rig
}

/// What comes back for these pieces, each sent by itself, and then an end.
async fn ask(to: SocketAddr, pieces: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for (place, piece) in pieces.iter().enumerate() {
        if place > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stream.write_all(piece).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    let _ = soon("an end", stream.read_to_end(&mut all)).await;
    all
}

fn from(name: &str, bytes: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b" ", bytes].concat()
}

#[tokio::test]
async fn tls_goes_to_the_service_of_its_name_and_everything_else_to_the_listeners_own() {
    let rig = rig("").await;
    for (name, service) in [
        ("b.example", "other"),
        ("B.EXAMPLE", "other"),
        ("x.b.example", "other"),
        ("y.x.b.example", "shop"),
        ("a.example", "shop"),
        ("127.0.0.1", "shop"),
    ] {
        let hello = hello(name);
        assert_eq!(
            ask(rig.web(), &[&hello]).await,
            from(service, &hello),
            "{name}"
        );
    }
    for text in [
        &b"hello"[..],
        b"\x80\x2e\x01\x03\x01",
        b"\x17\x03\x03\x00\x01x",
    ] {
        assert_eq!(
            ask(rig.web(), &[text]).await,
            from("shop", text),
            "{text:?}"
        );
    }
}

#[tokio::test]
async fn a_name_is_found_however_its_bytes_come() {
    let rig = rig("").await;
    let hello = hello("b.example");
    let expected = from("other", &hello);
    for at in (1..hello.len())
        .step_by(7)
        .chain([1, 2, 3, 4, 5, 6, 9, hello.len() - 1])
    {
        let (one, two) = hello.split_at(at);
        assert_eq!(ask(rig.web(), &[one, two]).await, expected, "split at {at}");
    }
    // A record for each few bytes of the message (RFC 8446 section 5.1).
    for each in [1, 2, 50] {
        let records = hello[5..].chunks(each).map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&hello[..3], &length, part].concat()
        });
        let records: Vec<u8> = records.flatten().collect();
        assert_eq!(
            ask(rig.web(), &[&records]).await,
            from("other", &records),
            "{each}"
        );
    }
    // What follows at once belongs to the same Service.
    let more = [&hello[..], &[b'x'; 100_000]].concat();
    assert_eq!(ask(rig.web(), &[&more]).await, from("other", &more));
}

#[tokio::test]
async fn a_hello_that_breaks_or_never_ends_reaches_nobody() {
    let rig = rig("timeouts: {head: 300ms}").await;
    let hello = hello("b.example");
    let mut broken = hello.clone();
    broken[5] = 2;
    for (what, bytes) in [("half", &hello[..50]), ("not a hello", &broken)] {
        assert_eq!(ask(rig.web(), &[bytes]).await, b"", "{what}");
    }
    // A message of 16 MiB, as its length says.
    let mut long = hello.clone();
    long[6] = 0xff;
    assert_eq!(
        ask(rig.web(), &[&long, &[b'x'; 100_000]]).await,
        b"",
        "long"
    );
    let mut silent = TcpStream::connect(rig.web()).await.unwrap();
    silent.write_all(&hello[..50]).await.unwrap();
    let end = soon("an end", silent.read(&mut [0; 1])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}
