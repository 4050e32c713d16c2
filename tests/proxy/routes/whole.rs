//! Whole connections and UDP sessions that routes lead: by nothing, or by the name that TLS asks for.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use ebbtide::contract::filters::Filters;
use ebbtide::contract::listener::{Action, FoundBy};
use ebbtide::contract::policy::{Protocol, Transport};
use ebbtide::contract::route::Rule;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Table, action, open, rig, serve, serve_over, to};
use crate::proxy::tls::{hello, trusting};
use crate::support::rig::Rig;
use crate::support::serve::serve as accept;
use crate::support::wait::soon;

/// An endpoint that says its name, and then what it gets.
async fn echo(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    accept(listener, move |mut stream, _| async move {
        let _ = stream.write_all(name.as_bytes()).await;
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    address
}

/// Shares of Services, which serve this protocol.
fn shares(all: &[(u32, &str)], protocol: Option<Protocol>) -> Arc<Action> {
    let targets = all
        .iter()
        .map(|(weight, name)| (*weight, Some(to(name, protocol))));
    action(Filters::default(), targets.collect())
}

fn default(action: Arc<Action>) -> Table {
    let mut table = Table::default();
    table.default = Some(action);
    table
}

/// A new connection, and the name that its endpoint says.
async fn first(to: SocketAddr) -> (TcpStream, char) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let first = soon("a name", stream.read_u8()).await.unwrap();
    (stream, char::from(first))
}

/// Whether a new connection is reset. A clean end would look like success.
async fn is_reset(to: SocketAddr) -> bool {
    let asked = async { TcpStream::connect(to).await?.read(&mut [0]).await };
    let end = soon("a reset", asked).await;
    end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn connections_are_shared_and_a_change_of_routes_costs_none_of_them() {
    let rig = rig("").await;
    serve(&rig, "a", &[echo("a").await]).await;
    serve(&rig, "b", &[echo("b").await]).await;
    let both = default(shares(&[(3, "a"), (1, "b")], None));
    let (door, routes) = open(&rig, FoundBy::Connection, Protocol::Tcp, both).await;
    let (mut kept, mut counts) = (Vec::new(), HashMap::<char, usize>::new());
    for _ in 0..40 {
        let (stream, name) = first(door).await;
        *counts.entry(name).or_default() += 1;
        kept.push(stream);
    }
    assert!(counts[&'b'].abs_diff(10) <= 2, "{counts:?}");
    routes.store(default(shares(&[(1, "b")], None)).into());
    assert_eq!(first(door).await.1, 'b');
    routes.store(Table::default().into());
    assert!(is_reset(door).await);
    let nowhere = action(Filters::default(), vec![(1, None)]);
    routes.store(default(nowhere).into());
    assert!(is_reset(door).await);
    for stream in &mut kept {
        stream.write_u8(7).await.unwrap();
        assert_eq!(soon("an echo", stream.read_u8()).await.unwrap(), 7);
    }
}

/// A request of HTTP is no request here: its connection is passed on as it is.
#[tokio::test]
async fn what_a_connection_carries_does_not_matter() {
    let rig = rig("").await;
    serve(&rig, "a", &[echo("a").await]).await;
    let table = default(shares(&[(1, "a")], Some(Protocol::Http)));
    let (door, _) = open(&rig, FoundBy::Connection, Protocol::Tcp, table).await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (mut stream, name) = first(door).await;
    assert_eq!(name, 'a');
    stream.write_all(request).await.unwrap();
    let mut echoed = [0; 27];
    soon("an echo", stream.read_exact(&mut echoed))
        .await
        .unwrap();
    assert_eq!(&echoed[..], &request[..27]);
}

/// What comes back for these bytes and then an end.
async fn ask(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    let _ = soon("an end", stream.read_to_end(&mut all)).await;
    all
}

async fn names(rig: &Rig) -> Table {
    for name in ["a", "b", "c"] {
        serve(rig, name, &[echo(name).await]).await;
    }
    let mut table = Table::default();
    table.deep = true;
    for (host, name) in [("a.example", "a"), ("*.example", "b")] {
        let (host, path) = (Some(host.to_owned()), "/".to_owned());
        let rule = Rule {
            host,
            path,
            ..Rule::default()
        };
        table.add(&rule, shares(&[(1, name)], None));
    }
    table
}

#[tokio::test]
async fn tls_is_passed_on_by_its_name_and_an_unknown_name_is_reset() {
    let rig = rig("").await;
    let table = names(&rig).await;
    let (door, routes) = open(&rig, FoundBy::Name, Protocol::Tcp, table.clone()).await;
    for (name, service) in [
        ("a.example", "a"),
        ("A.Example", "a"),
        ("b.example", "b"),
        ("x.y.example", "b"),
    ] {
        let hello = hello(name);
        let expected = [service.as_bytes(), &hello].concat();
        assert_eq!(ask(door, &hello).await, expected, "{name}");
    }
    for unknown in [&hello("a.test")[..], &hello("127.0.0.1"), b"no TLS"] {
        assert_eq!(ask(door, unknown).await, b"");
    }
    // As a client of TLS sees it: no alert, which could be an endpoint's.
    let asked = crate::proxy::tls::connect(door, "a.test", &Arc::new(trusting())).await;
    assert_eq!(
        asked.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    // A rule for every host serves those who ask for no name, too.
    let mut with_any = table;
    let any = Rule {
        path: "/".to_owned(),
        ..Rule::default()
    };
    with_any.add(&any, shares(&[(1, "c")], None));
    routes.store(with_any.into());
    for name in ["a.test", "127.0.0.1"] {
        let hello = hello(name);
        assert_eq!(
            ask(door, &hello).await,
            [&b"c"[..], &hello].concat(),
            "{name}"
        );
    }
}

/// An endpoint that answers each datagram with its name.
async fn answering(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(name.as_bytes(), from).await;
        }
    });
    address
}

async fn datagram(client: &UdpSocket) -> String {
    client.send(b"?").await.unwrap();
    let mut buffer = [0; 64];
    let n = soon("an answer", client.recv(&mut buffer)).await.unwrap();
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

#[tokio::test]
async fn udp_sessions_are_shared_and_each_stays_where_it_is() {
    let rig = rig("").await;
    for name in ["a", "b"] {
        serve_over(&rig, Transport::Udp, name, &[answering(name).await]).await;
    }
    let udp = Some(Protocol::Udp);
    let both = default(shares(&[(3, "a"), (1, "b")], udp));
    let (door, routes) = open(&rig, FoundBy::Connection, Protocol::Udp, both).await;
    let (mut clients, mut counts) = (Vec::new(), HashMap::<String, usize>::new());
    for _ in 0..40 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(door).await.unwrap();
        let name = datagram(&client).await;
        *counts.entry(name.clone()).or_default() += 1;
        clients.push((client, name));
    }
    assert!(counts["b"].abs_diff(10) <= 2, "{counts:?}");
    routes.store(default(shares(&[(1, "b")], udp)).into());
    for (client, name) in &clients {
        assert_eq!(datagram(client).await, *name);
    }
    let new = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    new.connect(door).await.unwrap();
    assert_eq!(datagram(&new).await, "b");
    // Once its Service is gone, a session goes where the routes lead now.
    rig.remove("a.json");
    let of_a = clients.iter().find(|(_, name)| name == "a").unwrap();
    crate::support::wait::eventually("another Service", async || {
        of_a.0.send(b"?").await.unwrap();
        let mut buffer = [0; 64];
        let moment = std::time::Duration::from_millis(100);
        let got = tokio::time::timeout(moment, of_a.0.recv(&mut buffer)).await;
        matches!(got, Ok(Ok(1))) && buffer[0] == b'b'
    })
    .await;
}
