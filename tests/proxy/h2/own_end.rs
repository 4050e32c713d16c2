//! The end of a connection by the proxy itself: its own shutdown costs no stream, and a client that
//! stalls or idles does not stay for ever.

use http::Response;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::proxy::h2::app::Version::H2;
use crate::proxy::h2::app::{App, Call, Client, Piece, request, rig, whole};
use crate::proxy::h2::raw::{GOAWAY, NO_ERROR, Raw};
use crate::support::frames::{DATA, HEADERS, PREFACE, block, frame, get};
use crate::support::wait::{eventually, soon};

async fn ok(call: Call) {
    match call.path() {
        "/talk" => call.reply.send(Response::new(()), Some(call.body)),
        _ => call.reply.say("ok"),
    }
}

/// RFC 9113 section 6.8: the client first learns that the connection will end, and only then which of
/// its streams is the last. Streams that it begins in between are served.
#[tokio::test]
async fn a_shutdown_says_goaway_twice_and_serves_what_was_begun() {
    let app = App::start(H2, ok).await;
    let rig = rig("h2c", None, &[app.ep("a")], "timeouts: {shutdown: 60s}").await;
    let mut raw = Raw::connect(rig.web()).await;
    let fields: Vec<_> = [(&b":method"[..], &b"POST"[..])]
        .into_iter()
        .chain(get("/talk").split_off(1))
        .collect();
    raw.headers(1, &fields, false).await;
    raw.send(DATA, 0, 1, b"one").await;
    raw.until("an echo", |it| it.kind == DATA && it.payload == b"one")
        .await;
    rig.running().shutdown();
    raw.until("GOAWAY", |it| it.kind == GOAWAY).await;
    // The client has not seen it yet.
    raw.headers(3, &get("/"), true).await;
    raw.until("an answer", |it| it.kind == DATA && it.stream == 3)
        .await;
    raw.send(DATA, 0, 1, b"two").await;
    raw.until("an echo", |it| it.kind == DATA && it.payload == b"two")
        .await;
    raw.send(DATA, 1, 1, b"").await;
    while raw.next().await.is_some() {}
    assert_eq!(raw.goaways, [(i32::MAX as u32, NO_ERROR), (3, NO_ERROR)]);
}

/// At the end of the grace, what is left is cut visibly.
#[tokio::test]
async fn the_end_of_the_grace_cuts_streams_visibly() {
    let app = App::start(H2, ok).await;
    let rig = rig(
        "h2c",
        None,
        &[app.ep("a")],
        "timeouts: {shutdown: 1s, lameDuck: 0s}",
    )
    .await;
    let mut client = Client::connect(H2, rig.web()).await;
    let (say, pieces) = mpsc::channel(1);
    say.try_send(Piece::Data("x".into())).unwrap();
    let mut answer = client
        .ask(request("POST", "/talk"), Some(pieces))
        .await
        .unwrap();
    assert!(soon("an echo", answer.pieces.recv()).await.is_some());
    rig.running().shutdown();
    assert!(whole(answer.pieces).await.cut);
    eventually("the end of the connection", async || !client.is_open()).await;
}

#[tokio::test]
async fn an_idle_connection_ends_by_goaway_and_one_with_a_stream_does_not() {
    let app = App::start(H2, ok).await;
    let rig = rig("h2c", None, &[app.ep("a")], "timeouts: {clientIdle: 500ms}").await;
    let mut busy = Client::connect(H2, rig.web()).await;
    let (say, pieces) = mpsc::channel(1);
    say.try_send(Piece::Data("x".into())).unwrap();
    let mut talk = busy
        .ask(request("POST", "/talk"), Some(pieces))
        .await
        .unwrap();
    assert!(soon("an echo", talk.pieces.recv()).await.is_some());
    let mut idle = Raw::connect(rig.web()).await;
    idle.headers(1, &get("/"), true).await;
    while idle.next().await.is_some() {}
    assert_eq!(idle.goaways.last(), Some(&(1, NO_ERROR)));
    // The other one has been silent for longer, and is open.
    say.send(Piece::Data("y".into())).await.unwrap();
    assert!(matches!(
        soon("an echo", talk.pieces.recv()).await,
        Some(Piece::Data(_))
    ));
}

/// A connection that stops in the middle of its beginning, or of a field block, ends.
#[tokio::test]
async fn a_connection_that_stalls_ends() {
    let app = App::start(H2, ok).await;
    let stalled = frame(HEADERS, 0, 1, &block(&get("/")));
    for listener in ["h2c", "auto"] {
        let more = "timeouts: {head: 300ms, clientIdle: 300ms}";
        let rig = rig(listener, None, &[app.ep("a")], more).await;
        let settings = frame(4, 0, 0, b"");
        let beginnings: [&[u8]; 4] = [
            &PREFACE[..10],
            PREFACE,
            &[PREFACE, &settings[..5]].concat(),
            &[PREFACE, &settings, &stalled].concat(),
        ];
        for beginning in beginnings {
            let mut stream = TcpStream::connect(rig.web()).await.unwrap();
            stream.write_all(beginning).await.unwrap();
            let mut rest = Vec::new();
            let _ = soon(
                "the end",
                tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest),
            )
            .await;
        }
    }
    assert_eq!(app.calls(), 0);
}
