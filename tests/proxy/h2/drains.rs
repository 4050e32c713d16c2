//! Drains and rollouts: a client's connection outlives every endpoint, its streams go to different
//! ones, and a leaving endpoint ends its streams whole, or visibly at the drain deadline.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Response;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::proxy::h2::app::Version::{self, H1, H2};
use crate::proxy::h2::app::{
    Answer, App, Call, Client, Piece, data, field, request, rig, whole, with,
};
use crate::proxy::h2::raw::{GOAWAY, Raw};
use crate::proxy::scripted::Scripted;
use crate::support::folder::Ep;
use crate::support::frames::{CANCEL, DATA, HEADERS, RST_STREAM, get};
use crate::support::wait::{eventually, soon};

/// An endpoint that says its name, and echoes a talk piece by piece.
async fn named(version: Version, name: &'static str) -> App {
    App::start(version, move |call: Call| async move {
        if call.path() != "/talk" {
            whole(call.body).await;
            return call.reply.say(name);
        }
        let mut response = Response::new(());
        if let Some(kind) = call.parts.headers.get("content-type") {
            response.headers_mut().insert("content-type", kind.clone());
        }
        call.reply.send(response, Some(call.body));
    })
    .await
}

/// A talk with an endpoint: what is said, and what comes back.
struct Talk {
    say: mpsc::Sender<Piece>,
    answer: Answer,
}

impl Talk {
    async fn begin(client: &mut Client, kind: &str) -> Self {
        let (say, pieces) = mpsc::channel(1);
        let post = with(request("POST", "/talk"), &[("content-type", kind)]);
        let answer = client.ask(post, Some(pieces)).await.unwrap();
        let mut talk = Self { say, answer };
        talk.goes_on().await;
        talk
    }

    async fn goes_on(&mut self) {
        self.say.send(Piece::Data("hello".into())).await.unwrap();
        let got = soon("an echo", self.answer.pieces.recv()).await;
        assert!(
            matches!(&got, Some(Piece::Data(data)) if data == "hello"),
            "{got:?}"
        );
    }
}

#[tokio::test]
async fn the_streams_of_one_connection_go_to_different_endpoints() {
    for endpoint in [H1, H2] {
        let (a, b) = (named(endpoint, "a").await, named(endpoint, "b").await);
        let says = (endpoint == H2).then_some("grpc");
        let rig = rig("http", says, &[a.ep("a"), b.ep("b")], "").await;
        let mut client = Client::connect(H2, rig.web()).await;
        let mut seen = HashSet::new();
        for _ in 0..20 {
            seen.insert(client.get("/").await.1);
        }
        assert_eq!(seen.len(), 2, "{endpoint:?}");
    }
}

#[tokio::test]
async fn a_leaving_endpoint_gets_no_new_stream_and_ends_its_own_whole() {
    for (version, endpoint) in [(H2, H2), (H2, H1), (H1, H2)] {
        let (a, b) = (named(endpoint, "a").await, named(endpoint, "b").await);
        let says = (endpoint == H2).then_some("grpc");
        let rig = rig("http", says, &[a.ep("a")], "").await;
        let mut talker = Client::connect(version, rig.web()).await;
        let mut talk = Talk::begin(&mut talker, "text/plain").await;
        rig.endpoints(&[a.ep("a"), b.ep("b")]);
        rig.usable(2).await;
        rig.endpoints(&[a.ep("a").terminating(), b.ep("b")]);
        rig.usable(1).await;
        let mut client = Client::connect(version, rig.web()).await;
        for _ in 0..20 {
            assert_eq!(
                client.get("/").await,
                (200, "b".into()),
                "{version:?} {endpoint:?}"
            );
            talk.goes_on().await;
        }
        assert_eq!(
            rig.metric("ebbtide_drains_total", ""),
            0.0,
            "the drain waits for the talk"
        );
        let Talk { say, answer } = talk;
        drop(say);
        let rest = whole(answer.pieces).await;
        assert!(
            rest.data.is_empty() && !rest.cut,
            "{version:?} {endpoint:?}"
        );
        eventually("the receipt", async || {
            rig.receipts().iter().any(|it| it.finished == 1)
        })
        .await;
        // HTTP/1 has to end a connection whose answer began before its request had ended.
        assert!(version == H1 || talker.is_open(), "{endpoint:?}");
        assert!(client.is_open(), "{version:?} {endpoint:?}");
    }
}

/// The drain deadline: gRPC learns it by its own status, everybody else by RST_STREAM. The connection
/// stays, and other streams on it do not notice.
#[tokio::test]
async fn at_the_drain_deadline_streams_are_cut_visibly() {
    for endpoint in [H1, H2] {
        let (a, b) = (named(endpoint, "a").await, named(endpoint, "b").await);
        let says = (endpoint == H2).then_some("grpc");
        let rig = rig("http", says, &[a.ep("a")], "timeouts: {drain: 300ms}").await;
        let mut client = Client::connect(H2, rig.web()).await;
        let mut plain = Talk::begin(&mut client, "text/plain").await;
        let mut grpc = Talk::begin(&mut client, "application/grpc").await;
        rig.endpoints(&[b.ep("b")]);
        eventually("the other endpoint", async || {
            client.get("/").await.1 == "b"
        })
        .await;
        let mut stays = Talk::begin(&mut client, "text/plain").await;
        // What had come before stays delivered.
        (plain.answer.pieces, grpc.answer.pieces) = {
            let (plain, grpc) = (plain.answer.pieces, grpc.answer.pieces);
            let (cut, status) = tokio::join!(whole(plain), whole(grpc));
            assert!(cut.cut, "{endpoint:?}: RST_STREAM");
            assert!(!status.cut, "{endpoint:?}: trailers");
            assert_eq!(field(&status.trailers, "grpc-status"), "14", "{endpoint:?}");
            (mpsc::channel(1).1, mpsc::channel(1).1)
        };
        stays.goes_on().await;
        eventually("the receipt", async || {
            rig.receipts().iter().any(|it| it.forced == 2)
        })
        .await;
        assert!(client.is_open());
    }
}

/// The endpoint learns of the deadline by RST_STREAM on its own connection.
#[tokio::test]
async fn at_the_drain_deadline_the_endpoint_gets_rst_stream() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let endpoint = Scripted::start(move |stream, _| {
        let tell = tell.clone();
        async move {
            let Some(mut raw) = Raw::accept(stream, &[]).await else {
                return;
            };
            let stream = raw.request().await;
            raw.headers(stream, &[(b":status", b"200")], false).await;
            raw.send(DATA, 0, stream, b"begun").await;
            let ended = raw.until("RST_STREAM", |it| it.kind == RST_STREAM).await;
            tell.send((ended.stream == stream, ended.number(0)))
                .unwrap();
            while raw.next().await.is_some() {}
            tell.send((true, 0)).unwrap();
        }
    })
    .await;
    let rig = rig(
        "h2c",
        None,
        &[Ep::new("a", endpoint.address)],
        "timeouts: {drain: 200ms}",
    )
    .await;
    let mut client = Client::connect(H2, rig.web()).await;
    let mut answer = client.ask(request("GET", "/"), None).await.unwrap();
    assert!(soon("a byte", answer.pieces.recv()).await.is_some());
    rig.endpoints(&[]);
    let ended = soon("RST_STREAM", told.recv()).await.unwrap();
    assert_eq!(ended, (true, CANCEL));
    soon("the end of the connection", told.recv())
        .await
        .unwrap();
    assert!(whole(answer.pieces).await.cut);
}

/// A hundred rollouts below one connection, with requests on it throughout.
#[tokio::test]
async fn a_connection_survives_a_hundred_rollouts_without_goaway() {
    for endpoint in [H1, H2] {
        let apps = [named(endpoint, "even").await, named(endpoint, "odd").await];
        let says = (endpoint == H2).then_some("grpc");
        let rig = rig("http", says, &[apps[0].ep("0")], "").await;
        let mut raw = Raw::connect(rig.web()).await;
        let Client::H2(send, _connection) = Client::connect(H2, rig.web()).await else {
            unreachable!()
        };
        let done = Arc::new(AtomicBool::new(false));
        let mut asked = JoinSet::new();
        for _ in 0..4 {
            let (done, send) = (done.clone(), send.clone());
            asked.spawn(async move {
                let mut client = Client::H2(send, tokio::spawn(std::future::pending()));
                let mut count = 0;
                while !done.load(Ordering::SeqCst) {
                    let answer = client.ask(request("POST", "/"), data("x")).await.unwrap();
                    assert_eq!(answer.status(), 200, "{}", answer.field("x-ebbtide-reason"));
                    assert!(!whole(answer.pieces).await.cut);
                    count += 1;
                }
                count
            });
        }
        for round in 1..=100 {
            // A new name is a new pod.
            let next = apps[round % 2].ep(&format!("{round}"));
            let address = next.address;
            rig.endpoints(&[next]);
            eventually("the rollout", async || {
                let snapshot = rig.running().admin.snapshot.load();
                let port = snapshot.ports.values().next().unwrap().clone();
                port.usable.len() == 1 && port.usable.iter().all(|it| it.address == address)
            })
            .await;
            let stream = 2 * round as u32 - 1;
            raw.headers(stream, &get("/"), true).await;
            let frame = raw
                .until("an answer", |it| {
                    matches!(it.kind, HEADERS | GOAWAY | RST_STREAM)
                })
                .await;
            assert_eq!(
                (frame.kind, frame.stream),
                (HEADERS, stream),
                "{endpoint:?} {round}"
            );
        }
        done.store(true, Ordering::SeqCst);
        let counts: Vec<usize> = soon("the last answers", asked.join_all()).await;
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }
}

/// An idle connection to an endpoint that leaves is closed at once.
#[tokio::test]
async fn the_connection_to_a_leaving_endpoint_ends_with_its_last_stream() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let endpoint = Scripted::start(move |stream, _| {
        let tell = tell.clone();
        async move {
            let Some(mut raw) = Raw::accept(stream, &[]).await else {
                return;
            };
            let stream = raw.request().await;
            raw.answer(stream).await;
            while raw.next().await.is_some() {}
            tell.send(()).unwrap();
        }
    })
    .await;
    let rig = rig("h2c", None, &[Ep::new("a", endpoint.address)], "").await;
    let mut client = Client::connect(H2, rig.web()).await;
    assert_eq!(client.get("/").await.0, 200);
    rig.endpoints(&[]);
    soon("the end of the connection", told.recv())
        .await
        .unwrap();
}
