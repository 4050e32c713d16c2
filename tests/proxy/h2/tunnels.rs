//! CONNECT and extended CONNECT (RFC 8441): a WebSocket of HTTP/2 becomes an upgrade of HTTP/1.1, and
//! then bytes pass in both directions.

use std::sync::{Arc, Mutex};

use h2::ext::Protocol;
use http::{Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::proxy::h2::app::Version::{H1, H2};
use crate::proxy::h2::app::{App, Call, Client, Piece, Pieces, data, rig, whole};
use crate::proxy::scripted::Scripted;
use crate::proxy::tcp::leases;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An endpoint that records each head, gives this answer, and then echoes every byte. Behind the
/// client's end, it says `bye` and ends.
async fn echo(answer: &'static str) -> (Scripted, Arc<Mutex<Vec<String>>>) {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let list = heads.clone();
    let scripted = Scripted::start(move |mut stream: TcpStream, _| {
        let list = list.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                    return;
                }
            }
            list.lock().unwrap().push(String::from_utf8(head).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.contains("Content-Length") {
                return;
            }
            let mut some = [0; 16 << 10];
            while let Ok(n @ 1..) = stream.read(&mut some).await {
                if stream.write_all(&some[..n]).await.is_err() {
                    return;
                }
            }
            let _ = stream.write_all(b"bye").await;
        }
    })
    .await;
    (scripted, heads)
}

async fn before(scripted: &Scripted) -> Rig {
    before_with(scripted, "http").await
}

async fn before_with(scripted: &Scripted, protocol: &str) -> Rig {
    rig(protocol, None, &[Ep::new("a", scripted.address)], "").await
}

const GRANTED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Accept: abc\r\nSec-WebSocket-Protocol: chat\r\n\r\n";

fn websocket() -> Request<()> {
    let request = Request::builder().method(Method::CONNECT);
    let request = request
        .uri("http://shop/chat")
        .extension(Protocol::from_static("websocket"));
    let request = request.header("sec-websocket-version", "13");
    request
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap()
}

/// Opens a tunnel. Returns its status and its two directions.
async fn open(client: &mut Client) -> (http::response::Parts, mpsc::Sender<Piece>, Pieces) {
    let (send, pieces) = mpsc::channel(1);
    let answer = client.ask(websocket(), Some(pieces)).await.unwrap();
    (answer.parts, send, answer.pieces)
}

/// Reads this much.
async fn read(pieces: &mut Pieces, length: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < length {
        match soon("bytes of the tunnel", pieces.recv()).await {
            Some(Piece::Data(data)) => got.extend_from_slice(&data),
            other => panic!("{other:?} after {} bytes", got.len()),
        }
    }
    got
}

#[tokio::test]
async fn a_websocket_of_http2_is_an_upgrade_of_http1() {
    let (scripted, heads) = echo(GRANTED).await;
    let rig = before(&scripted).await;
    let mut client = Client::connect(H2, rig.web()).await;
    let (head, send, mut pieces) = open(&mut client).await;
    assert_eq!(head.status, 200);
    let names: Vec<&str> = head.headers.keys().map(|it| it.as_str()).collect();
    assert_eq!(names, ["sec-websocket-protocol"]);
    assert_eq!(
        heads.lock().unwrap()[0],
        "GET /chat HTTP/1.1\r\nhost: shop\r\nsec-websocket-version: 13\r\nsec-websocket-protocol: chat\r\n\
         upgrade: websocket\r\nsec-websocket-key: ZWJidGlkZS1lYmJ0aWRlIQ==\r\n\
         X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: shop\r\n\
         Connection: upgrade\r\n\r\n"
    );
    for length in [1, 5, 100_000] {
        let sent: Vec<u8> = (0..length).map(|at: u32| (at % 251) as u8).collect();
        send.send(Piece::Data(sent.clone().into())).await.unwrap();
        assert!(read(&mut pieces, sent.len()).await == sent, "{length}");
    }
    // The client ends its direction, and still gets what the endpoint has to say.
    drop(send);
    let rest = whole(pieces).await;
    assert_eq!((&*rest.data, rest.cut), (&b"bye"[..], false));
    assert!(client.is_open());
}

#[tokio::test]
async fn a_tunnel_that_its_client_resets_ends_at_the_endpoint() {
    let (scripted, _) = echo(GRANTED).await;
    let rig = before(&scripted).await;
    let mut client = Client::connect(H2, rig.web()).await;
    for _ in 0..5 {
        let (_, send, mut pieces) = open(&mut client).await;
        send.send(Piece::Data("x".into())).await.unwrap();
        read(&mut pieces, 1).await;
        send.send(Piece::Cut).await.unwrap();
        eventually("the end of the lease", async || {
            leases(&rig, scripted.address) == 0
        })
        .await;
    }
    assert!(client.is_open());
}

/// A refusal is an answer like any other.
#[tokio::test]
async fn a_refused_websocket_has_the_endpoints_status() {
    let (scripted, _) = echo("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let rig = before(&scripted).await;
    let mut client = Client::connect(H2, rig.web()).await;
    let (head, _send, pieces) = open(&mut client).await;
    assert_eq!(
        (head.status.as_u16(), whole(pieces).await.data),
        (403, b"no".to_vec())
    );
    assert!(client.is_open());
}

/// To a client of HTTP/2, any 2xx means that the tunnel stands. So an endpoint that answers the request
/// and ignores the upgrade has not granted it.
#[tokio::test]
async fn an_answer_that_ignores_the_upgrade_is_no_tunnel() {
    let (scripted, _) = echo("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let rig = before(&scripted).await;
    let mut client = Client::connect(H2, rig.web()).await;
    let (head, _send, _pieces) = open(&mut client).await;
    assert_eq!(head.status, 502);
    assert_eq!(head.headers["x-ebbtide-reason"], "upgrade_ignored");
    assert!(client.is_open());
}

/// An endpoint of HTTP/2 that grants an extended CONNECT to `/chat`, says what it gets, and at the client's
/// end `bye`. To anything else it says its method. Each head is recorded.
async fn of_http2(knows: bool) -> (App, Arc<Mutex<Vec<http::request::Parts>>>) {
    let heads: Arc<Mutex<Vec<http::request::Parts>>> = Arc::default();
    let list = heads.clone();
    let mut builder = h2::server::Builder::new();
    if knows {
        builder.enable_connect_protocol();
    }
    let app = App::start_with(H2, builder, move |mut call: Call| {
        let list = list.clone();
        async move {
            list.lock().unwrap().push(call.parts.clone());
            if call.parts.method != Method::CONNECT {
                return call.reply.say(call.parts.method.as_str());
            }
            if call.path() != "/chat" {
                let mut refusal = http::Response::new(());
                *refusal.status_mut() = http::StatusCode::FORBIDDEN;
                return call.reply.send(refusal, data("no"));
            }
            let (send, pieces) = mpsc::channel(16);
            let mut granted = http::Response::new(());
            let chat = "chat".parse().unwrap();
            granted.headers_mut().insert("sec-websocket-protocol", chat);
            call.reply.send(granted, Some(pieces));
            while let Some(Piece::Data(data)) = call.body.recv().await {
                send.send(Piece::Data(data)).await.unwrap();
            }
            send.send(Piece::Data("bye".into())).await.unwrap();
        }
    })
    .await;
    (app, heads)
}

/// The example of RFC 6455 section 1.2.
const ASKED: &str = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[tokio::test]
async fn a_websocket_of_http1_is_an_extended_connect_of_http2() {
    let (app, heads) = of_http2(true).await;
    let rig = rig("auto", Some("kubernetes.io/h2c"), &[app.ep("a")], "").await;
    let mut stream = TcpStream::connect(rig.web()).await.unwrap();
    stream.write_all(ASKED.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("a head", stream.read_u8()).await.unwrap());
    }
    assert_eq!(
        String::from_utf8(head).unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-protocol: chat\r\n\
         sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nupgrade: websocket\r\n\
         Connection: upgrade\r\n\r\n"
    );
    let parts = heads.lock().unwrap()[0].clone();
    let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str);
    assert_eq!(protocol, Some("websocket"));
    assert_eq!(parts.uri, "http://shop/chat");
    assert_eq!(parts.headers["sec-websocket-version"], "13");
    for gone in [
        "sec-websocket-key",
        "connection",
        "upgrade",
        "content-length",
    ] {
        assert!(!parts.headers.contains_key(gone), "{gone}");
    }
    for length in [1, 5, 100_000] {
        let sent: Vec<u8> = (0..length).map(|at: u32| (at % 251) as u8).collect();
        let mut got = vec![0; sent.len()];
        let (mut read, mut write) = stream.split();
        let (read, written) = tokio::join!(
            soon("an echo", read.read_exact(&mut got)),
            write.write_all(&sent)
        );
        read.unwrap();
        written.unwrap();
        assert!(got == sent, "{length}");
    }
    // The client ends its direction, and still gets what the endpoint has to say.
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("an end", stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"bye");
    eventually("the end of the lease", async || {
        leases(&rig, app.address) == 0
    })
    .await;
}

#[tokio::test]
async fn a_websocket_of_http2_goes_to_an_endpoint_of_http2() {
    let (app, heads) = of_http2(true).await;
    let rig = rig("auto", Some("kubernetes.io/h2c"), &[app.ep("a")], "").await;
    let mut client = Client::connect(H2, rig.web()).await;
    let (head, send, mut pieces) = open(&mut client).await;
    let names: Vec<&str> = head.headers.keys().map(|it| it.as_str()).collect();
    assert_eq!(
        (head.status.as_u16(), names),
        (200, vec!["sec-websocket-protocol"])
    );
    send.send(Piece::Data("hello".into())).await.unwrap();
    assert_eq!(read(&mut pieces, 5).await, b"hello");
    drop(send);
    let rest = whole(pieces).await;
    assert_eq!((&*rest.data, rest.cut), (&b"bye"[..], false));
    assert_eq!(heads.lock().unwrap()[0].method, Method::CONNECT);
}

/// Where the endpoint refuses the WebSocket, or knows none, its client gets an ordinary answer.
#[tokio::test]
async fn a_websocket_that_an_endpoint_of_http2_does_not_grant_is_an_ordinary_exchange() {
    for (knows, path, expected) in [
        (true, "/other", (403, "no")),
        (false, "/chat", (200, "GET")),
    ] {
        let (app, _) = of_http2(knows).await;
        let rig = rig("auto", Some("kubernetes.io/h2c"), &[app.ep("a")], "").await;
        let mut client = Client::connect(H1, rig.web()).await;
        for _ in 0..2 {
            let fields = [
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ];
            let asked = crate::proxy::h2::app::request("GET", path);
            let asked = crate::proxy::h2::app::with(asked, &fields);
            let answer = client.ask(asked, None).await.unwrap();
            let status = answer.status();
            let body = whole(answer.pieces).await.data;
            assert_eq!((status, &*String::from_utf8(body).unwrap()), expected);
        }
        assert!(client.is_open());
    }
}

/// CONNECT is refused unless the listener allows it. Then it is a tunnel.
#[tokio::test]
async fn connect_is_a_tunnel_where_it_is_allowed() {
    let connect = || {
        let request = Request::builder().method(Method::CONNECT);
        request.uri("shop:443").body(()).unwrap()
    };
    let (scripted, heads) = echo("HTTP/1.1 200 OK\r\n\r\n").await;
    let refusing = before(&scripted).await;
    let mut client = Client::connect(H2, refusing.web()).await;
    let (_send, pieces) = mpsc::channel(1);
    let answer = client.ask(connect(), Some(pieces)).await.unwrap();
    let seen = (answer.status(), answer.field("x-ebbtide-reason"));
    assert_eq!(seen, (501, "connect_refused"));
    assert!(heads.lock().unwrap().is_empty());
    assert!(client.is_open());

    let allowing = before_with(&scripted, "http, allowConnect: true").await;
    let mut client = Client::connect(H2, allowing.web()).await;
    let (send, pieces) = mpsc::channel(1);
    let mut answer = client.ask(connect(), Some(pieces)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let head = heads.lock().unwrap()[0].clone();
    assert!(
        head.starts_with("CONNECT shop:443 HTTP/1.1\r\nhost: shop:443\r\n"),
        "{head}"
    );
    send.send(Piece::Data("hello".into())).await.unwrap();
    assert_eq!(read(&mut answer.pieces, 5).await, b"hello");
    drop(send);
    let rest = whole(answer.pieces).await;
    assert_eq!((&*rest.data, rest.cut), (&b"bye"[..], false));
}
