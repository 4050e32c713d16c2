//! Many streams of one connection: none waits for another, in either direction, and each ends as its
//! own two sides end it.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::proxy::h2::app::Version::{self, H1, H2};
use crate::proxy::h2::app::{
    Answer, App, Call, Client, Piece, Pieces, data, request, rig, whole, with,
};
use crate::proxy::h2::raw::{Frame, NO_ERROR, Raw};
use crate::support::frames::{DATA, END_STREAM, RST_STREAM, get};
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// The versions of a client and of an endpoint. One of both has streams.
const PAIRS: [(Version, Version); 3] = [(H2, H2), (H2, H1), (H1, H2)];

/// What the endpoint does, by the request's path.
async fn shop(call: Call) {
    match call.path() {
        "/number" => call.reply.say(call.parts.uri.query().unwrap()),
        // Answers each piece by itself.
        "/talk" => call.reply.send(Response::new(()), Some(call.body)),
        // Ever more, as long as somebody takes it.
        "/big" => {
            let (send, pieces) = mpsc::channel(1);
            call.reply.send(Response::new(()), Some(pieces));
            let some = Bytes::from(vec![b'x'; 16 << 10]);
            while send.send(Piece::Data(some.clone())).await.is_ok() {}
        }
        // Takes nothing of the body, and answers never.
        "/deaf" => {
            let _kept = (call.body, call.reply);
            std::future::pending::<()>().await;
        }
        // Sends back what it was sent, in pieces of a byte, after a while.
        "/late" => {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            let all = whole(call.body).await.data;
            let (send, pieces) = mpsc::channel(1);
            call.reply.send(Response::new(()), Some(pieces));
            for byte in all {
                let _ = send.send(Piece::Data(vec![byte].into())).await;
            }
        }
        "/length" => {
            let length = whole(call.body).await.data.len();
            call.reply.say(&length.to_string());
        }
        "/early" => {
            let mut response = Response::new(());
            *response.status_mut() = http::StatusCode::FORBIDDEN;
            call.reply.send(response, data("no"));
        }
        path => unreachable!("{path}"),
    }
}

/// A proxy before one endpoint of this version.
async fn scene(endpoint: Version) -> (App, Rig) {
    let mut builder = h2::server::Builder::new();
    builder.initial_connection_window_size(16 << 20);
    builder.max_concurrent_streams(1_000);
    let app = App::start_with(endpoint, builder, shop).await;
    let says = (endpoint == H2).then_some("grpc");
    let rig = rig("http", says, &[app.ep("a")], "").await;
    (app, rig)
}

/// A client that takes 64 KiB of each stream before it reads, and any number of streams.
async fn client(version: Version, rig: &Rig) -> Client {
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(64 << 20);
    Client::connect_with(version, rig.web(), &builder).await
}

/// A second user of the same connection.
fn again(client: &Client) -> Client {
    match client {
        Client::H2(send, _) => Client::H2(send.clone(), tokio::spawn(std::future::pending())),
        Client::H1(_) => unreachable!(),
    }
}

async fn text(answer: Answer) -> String {
    String::from_utf8(whole(answer.pieces).await.data).unwrap()
}

#[tokio::test]
async fn each_of_250_requests_at_once_gets_its_own_answer() {
    for endpoint in [H1, H2] {
        let (app, rig) = scene(endpoint).await;
        let mut client = client(H2, &rig).await;
        // Then the client knows how many streams the proxy takes at once.
        client.get("/number?0").await;
        let mut asked = JoinSet::new();
        for number in 1..250 {
            let mut client = again(&client);
            asked.spawn(async move {
                let got = client.get(&format!("/number?{number}")).await;
                assert_eq!(got, (200, number.to_string()));
            });
        }
        while let Some(done) = soon("all answers", asked.join_next()).await {
            done.unwrap();
        }
        assert_eq!(app.calls(), 250, "{endpoint:?}");
        assert!(client.is_open());
    }
}

#[tokio::test]
async fn each_message_of_a_talk_is_answered_before_the_next_is_sent() {
    for (version, endpoint) in PAIRS {
        let (_app, rig) = scene(endpoint).await;
        let mut client = client(version, &rig).await;
        let (say, pieces) = mpsc::channel(1);
        // Some servers of HTTP/1 answer only when a body has begun.
        say.try_send(Piece::Data("0".into())).unwrap();
        let asked = client.ask(request("POST", "/talk"), Some(pieces)).await;
        let mut answer = asked.unwrap();
        for number in 0..100 {
            if number > 0 {
                say.send(Piece::Data(number.to_string().into()))
                    .await
                    .unwrap();
            }
            let got = soon("an echo", answer.pieces.recv()).await;
            let Some(Piece::Data(got)) = got else {
                panic!("{version:?} {endpoint:?} {number}: {got:?}");
            };
            assert_eq!(got, number.to_string(), "{version:?} {endpoint:?}");
        }
        drop(say);
        assert_eq!(text(answer).await, "", "{version:?} {endpoint:?}");
    }
}

/// 99 streams whose answers nobody reads have filled all that they may. The last one of a hundred is
/// served as if it were alone, and so is another client's.
#[tokio::test]
async fn streams_that_nobody_reads_stall_no_other() {
    for endpoint in [H1, H2] {
        let (_app, rig) = scene(endpoint).await;
        let mut first = client(H2, &rig).await;
        let mut unread = Vec::new();
        for _ in 0..99 {
            unread.push(first.ask(request("GET", "/big"), None).await.unwrap());
        }
        for mut client in [first, client(H2, &rig).await] {
            for number in 0..20 {
                let got = client.get(&format!("/number?{number}")).await;
                assert_eq!(got, (200, number.to_string()), "{endpoint:?}");
            }
            let sent = data(vec![b'x'; 1 << 20]);
            let got = client.ask(request("POST", "/length"), sent).await.unwrap();
            assert_eq!(text(got).await, "1048576", "{endpoint:?}");
        }
    }
}

/// 99 streams whose bodies the endpoint does not take have filled all that they may.
#[tokio::test]
async fn bodies_that_nobody_takes_stall_no_other() {
    for endpoint in [H1, H2] {
        let (app, rig) = scene(endpoint).await;
        let first = client(H2, &rig).await;
        let mut stalled = JoinSet::new();
        for _ in 0..99 {
            let mut client = again(&first);
            let body = data(vec![b'x'; 1 << 20]);
            stalled.spawn(async move {
                drop(client.ask(request("POST", "/deaf"), body).await);
            });
        }
        eventually("99 requests", async || app.calls() == 99).await;
        for mut client in [first, client(H2, &rig).await] {
            for _ in 0..5 {
                let sent = data(vec![b'x'; 1 << 20]);
                let got = client.ask(request("POST", "/length"), sent).await.unwrap();
                assert_eq!(text(got).await, "1048576", "{endpoint:?}");
            }
        }
        assert!(stalled.try_join_next().is_none(), "none of them has ended");
    }
}

/// Frames of one byte that wait for a slow reader end no connection: 20 streams with 3,000 each, in both
/// directions.
#[tokio::test]
async fn small_frames_may_wait() {
    const EACH: usize = 3_000;
    for (version, endpoint) in PAIRS {
        let (_app, rig) = scene(endpoint).await;
        let first = client(version, &rig).await;
        let mut asked = JoinSet::new();
        for _ in 0..20 {
            let mut client = match version {
                H1 => client(H1, &rig).await,
                H2 => again(&first),
            };
            asked.spawn(async move {
                let (send, pieces) = mpsc::channel(1);
                let sends = async {
                    for _ in 0..EACH {
                        send.send(Piece::Data("x".into())).await.unwrap();
                    }
                    drop(send);
                };
                let reads = async {
                    let answer = client.ask(request("POST", "/late"), Some(pieces)).await;
                    let answer = answer.unwrap();
                    // Long enough for all that the proxy lets come.
                    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                    text(answer).await.len()
                };
                tokio::join!(sends, reads).1
            });
        }
        while let Some(length) = soon("all answers", asked.join_next()).await {
            assert_eq!(length.unwrap(), EACH, "{version:?} {endpoint:?}");
        }
        assert!(first.is_open(), "{version:?} {endpoint:?}");
    }
}

/// The endpoint answers before it has the body, and takes no more of it.
#[tokio::test]
async fn an_early_answer_arrives_while_the_body_is_still_sent() {
    for (version, endpoint) in PAIRS {
        let (_app, rig) = scene(endpoint).await;
        let mut client = client(version, &rig).await;
        let (send, pieces) = mpsc::channel(1);
        let sends = tokio::spawn(async move {
            let some = Bytes::from(vec![b'x'; 16 << 10]);
            while send.send(Piece::Data(some.clone())).await.is_ok() {}
        });
        let answer = client.ask(request("POST", "/early"), Some(pieces)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{version:?} {endpoint:?}: {error}"));
        assert_eq!(answer.status(), 403, "{version:?} {endpoint:?}");
        assert_eq!(text(answer).await, "no", "{version:?} {endpoint:?}");
        drop(client);
        soon("the end of the upload", sends).await.unwrap();
    }
}

#[tokio::test]
async fn the_end_of_a_request_may_come_after_its_answer() {
    for (endpoint, declared) in [(H1, b"2"), (H1, b"0"), (H2, b"2")] {
        let (_app, rig) = scene(endpoint).await;
        let mut client = Raw::connect(rig.web()).await;
        let mut fields = get("/length");
        fields[0] = (b":method", b"POST");
        fields.push((b"content-length", declared));
        client.headers(1, &fields, false).await;
        if declared == b"2" {
            client.send(DATA, 0, 1, b"ab").await;
        }
        if endpoint == H1 {
            let ends = client.until("an answer", Frame::ends_stream).await;
            assert_eq!(ends.stream, 1);
        }
        for stream in [3, 5, 7, 9] {
            if stream == 7 {
                client.send(DATA, END_STREAM, 1, b"").await;
            }
            client.headers(stream, &get("/number?1"), true).await;
            let of_it = |it: &Frame| {
                assert_ne!(it.kind, RST_STREAM, "{endpoint:?} {declared:?}: {it:?}");
                it.ends_stream() && it.stream == stream
            };
            client.until("another answer", of_it).await;
        }
    }
}

/// A body of which little is left is read behind its answer: some clients take a reset before they have
/// sent the end for a failure. A longer one is not.
#[tokio::test]
async fn the_rest_of_a_short_body_may_come_after_an_early_answer() {
    for endpoint in [H1, H2] {
        let (_app, rig) = scene(endpoint).await;
        let mut client = Raw::connect(rig.web()).await;
        let early = |length: &'static [u8]| {
            let mut fields = get("/early");
            fields[0] = (b":method", b"POST");
            fields.push((b"content-length", length));
            fields
        };
        client.headers(1, &early(b"4"), false).await;
        let ends = |it: &Frame| {
            assert_ne!(it.kind, RST_STREAM, "{endpoint:?}: {it:?}");
            it.ends_stream()
        };
        assert_eq!(client.until("an answer", ends).await.stream, 1);
        for (stream, flags) in [(3, 0), (5, END_STREAM), (7, 0)] {
            if stream < 7 {
                client.send(DATA, flags, 1, b"ab").await;
            }
            client.headers(stream, &get("/number?1"), true).await;
            assert_eq!(client.until("another", ends).await.stream, stream);
        }
        client.headers(9, &early(b"1000000"), false).await;
        let reset = |it: &Frame| it.kind == RST_STREAM;
        let reset = client.until("a reset", reset).await;
        assert_eq!(
            (reset.stream, reset.number(0)),
            (9, NO_ERROR),
            "{endpoint:?}"
        );
    }
}

/// An endpoint that counts the bodies which were cut.
async fn counting_cuts(endpoint: Version, cuts: Arc<Semaphore>) -> App {
    App::start(endpoint, move |mut call: Call| {
        let cuts = cuts.clone();
        async move {
            if call.path() == "/quick" {
                return call.reply.say("ok");
            }
            while let Some(piece) = call.body.recv().await {
                if matches!(piece, Piece::Cut) {
                    cuts.add_permits(1);
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_stream_that_its_client_resets_ends_at_the_endpoint_and_no_other_does() {
    for endpoint in [H1, H2] {
        let cuts = Arc::new(Semaphore::new(0));
        let app = counting_cuts(endpoint, cuts.clone()).await;
        let says = (endpoint == H2).then_some("grpc");
        let rig = rig("http", says, &[app.ep("a")], "").await;
        let mut client = client(H2, &rig).await;
        for number in 1..=20 {
            let (send, pieces): (_, Pieces) = mpsc::channel(1);
            send.try_send(Piece::Data("x".into())).unwrap();
            let mut other = again(&client);
            let post = with(request("POST", "/hang"), &[("te", "trailers")]);
            let asked = tokio::spawn(async move { other.ask(post, Some(pieces)).await.err() });
            eventually("the request", async || app.calls() == 2 * number - 1).await;
            send.send(Piece::Cut).await.unwrap();
            let error = soon("the end of the stream", asked).await.unwrap();
            assert!(error.is_some(), "{endpoint:?}");
            drop(soon("a cut", cuts.acquire()).await.map(|it| it.forget()));
            assert_eq!(client.get("/quick").await.0, 200, "{endpoint:?}");
        }
        assert!(client.is_open());
    }
}

/// A call of gRPC that only its client ends is reset each time. That is no attack.
#[tokio::test]
async fn answers_that_their_client_ends_do_not_end_its_connection() {
    let (_app, rig) = scene(H2).await;
    let mut client = client(H2, &rig).await;
    for number in 0..400 {
        let (send, pieces) = mpsc::channel(1);
        send.try_send(Piece::Data("x".into())).unwrap();
        let answer = client.ask(request("POST", "/talk"), Some(pieces)).await;
        let mut answer = answer.unwrap_or_else(|error| panic!("{number}: {error}"));
        assert!(soon("an echo", answer.pieces.recv()).await.is_some());
        send.send(Piece::Cut).await.unwrap();
    }
    assert!(client.is_open());
}

/// A client that leaves with all its streams: each ends at the endpoint.
#[tokio::test]
async fn a_client_that_leaves_ends_all_its_streams() {
    for endpoint in [H1, H2] {
        let cuts = Arc::new(Semaphore::new(0));
        let app = counting_cuts(endpoint, cuts.clone()).await;
        let says = (endpoint == H2).then_some("grpc");
        let rig = rig("http", says, &[app.ep("a")], "").await;
        let client = client(H2, &rig).await;
        let mut bodies = Vec::new();
        let mut asked = JoinSet::new();
        for _ in 0..50 {
            let (send, pieces): (_, Pieces) = mpsc::channel(1);
            send.try_send(Piece::Data("x".into())).unwrap();
            bodies.push(send);
            let mut client = again(&client);
            asked.spawn(async move {
                client
                    .ask(request("POST", "/hang"), Some(pieces))
                    .await
                    .err()
            });
        }
        eventually("50 requests", async || app.calls() == 50).await;
        let Client::H2(_, connection) = client else {
            unreachable!()
        };
        connection.abort();
        drop(soon("50 cuts", cuts.acquire_many(50)).await.unwrap());
    }
}
