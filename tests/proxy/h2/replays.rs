//! Requests that their endpoint has not begun are sent again, whatever their method, and run once: what
//! GOAWAY and REFUSED_STREAM say (RFC 9113 sections 6.8 and 8.7), and what was never written. A request
//! that may have run is sent again only if it may run twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::proxy::h2::app::Version::{self, H1, H2};
use crate::proxy::h2::app::{App, Client, data, request, rig, whole, with};
use crate::proxy::h2::raw::{ENHANCE_YOUR_CALM, INTERNAL_ERROR, NO_ERROR, REFUSED_STREAM, Raw};
use crate::proxy::scripted::Scripted;
use crate::support::folder::{Ep, Folder};
use crate::support::frames::{DATA, HEADERS};
use crate::support::rig::{Rig, one_listener};
use crate::support::wait::{eventually, soon};

/// An endpoint of HTTP/2 by hand. `first` has the first connection that carries something; each later
/// one answers all its requests. Counted are the requests that were answered.
async fn after<F, Fut>(settings: &'static [(u16, u32)], first: F) -> (Scripted, Arc<AtomicUsize>)
where
    F: Fn(Raw, Arc<AtomicUsize>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (answered, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = answered.clone();
    let scripted = Scripted::start(move |stream: TcpStream, _| {
        let (first, count, begun) = (first.clone(), count.clone(), begun.clone());
        async move {
            let Some(raw) = Raw::accept(stream, settings).await else {
                return;
            };
            match begun.fetch_add(1, Ordering::SeqCst) {
                0 => first(raw, count).await,
                _ => serve(raw, &count).await,
            }
        }
    })
    .await;
    (scripted, answered)
}

/// Answers every request, until the connection ends.
async fn serve(raw: Raw, count: &AtomicUsize) {
    serve_but(raw, count, 0).await;
}

/// The same, but for what still comes of one stream.
async fn serve_but(mut raw: Raw, count: &AtomicUsize, ended: u32) {
    while let Some(frame) = raw.next().await {
        if frame.ends_stream() && frame.stream != ended {
            count.fetch_add(1, Ordering::SeqCst);
            raw.answer(frame.stream).await;
        }
    }
}

/// A proxy of one worker, so that all requests meet on one connection.
async fn before(endpoints: &[&Scripted]) -> Rig {
    let named = endpoints.iter().enumerate();
    let eps: Vec<Ep> = named
        .map(|(at, it)| Ep::new(&format!("e{at}"), it.address))
        .collect();
    let text = one_listener("h2c", "").replace("workers: 2", "workers: 1");
    let rig = Rig::run(Folder::new(), &text).await;
    rig.endpoints(&eps);
    rig.usable(eps.len()).await;
    rig
}

/// The status of the answer to a POST, and its reason.
async fn post(version: Version, rig: &Rig, body: &'static [u8]) -> (u16, String) {
    let mut client = Client::connect(version, rig.web()).await;
    let answer = client.ask(request("POST", "/"), data(body)).await.unwrap();
    let seen = (answer.status(), answer.field("x-ebbtide-reason").to_owned());
    whole(answer.pieces).await;
    seen
}

fn call() -> Request<()> {
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    with(request("POST", "/a.B/C"), &fields)
}

fn fine() -> (u16, String) {
    (200, String::new())
}

#[tokio::test]
async fn a_stream_above_the_last_of_goaway_is_sent_again() {
    for reason in [NO_ERROR, ENHANCE_YOUR_CALM, INTERNAL_ERROR] {
        for client in [H1, H2] {
            let (endpoint, answered) = after(&[], move |mut raw, count| async move {
                let first = raw.request().await;
                let second = raw.request().await;
                assert!(first < second);
                raw.go_away(first, reason).await;
                count.fetch_add(1, Ordering::SeqCst);
                raw.answer(first).await;
                while raw.next().await.is_some() {}
            })
            .await;
            let rig = before(&[&endpoint]).await;
            let (one, two) = tokio::join!(post(client, &rig, b"one"), post(client, &rig, b"two"));
            assert_eq!((one, two), (fine(), fine()), "{client:?} {reason}");
            assert_eq!(answered.load(Ordering::SeqCst), 2, "each has run once");
        }
    }
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_with_its_body() {
    static BODY: [u8; 60_000] = [b'x'; 60_000];
    for client in [H1, H2] {
        let (endpoint, answered) = after(&[], |mut raw, count| async move {
            let stream = raw.request().await;
            raw.until("a part of the body", |it| it.kind == DATA).await;
            raw.reset(stream, REFUSED_STREAM).await;
            serve_but(raw, &count, stream).await;
        })
        .await;
        let rig = before(&[&endpoint]).await;
        assert_eq!(post(client, &rig, &BODY).await, fine(), "{client:?}");
        assert_eq!(answered.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_every_stream_is_not_asked_for_ever() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let refusing = Scripted::start(move |stream: TcpStream, _| {
        let count = count.clone();
        async move {
            let Some(mut raw) = Raw::accept(stream, &[]).await else {
                return;
            };
            while let Some(frame) = raw.next().await {
                if frame.kind == HEADERS {
                    count.fetch_add(1, Ordering::SeqCst);
                    raw.reset(frame.stream, REFUSED_STREAM).await;
                }
            }
        }
    })
    .await;
    let rig = before(&[&refusing]).await;
    let (status, reason) = post(H2, &rig, b"x").await;
    assert_eq!((status, &*reason), (502, "upstream_lost"));
    let asked_alone = asked.load(Ordering::SeqCst);
    assert!((2..10).contains(&asked_alone), "{asked_alone}");

    // Another endpoint takes what this one refuses.
    let (other, answered) = after(&[], |raw, count| async move { serve(raw, &count).await }).await;
    rig.endpoints(&[
        Ep::new("e0", refusing.address),
        Ep::new("e1", other.address),
    ]);
    rig.usable(2).await;
    for _ in 0..20 {
        assert_eq!(post(H2, &rig, b"x").await, fine());
    }
    assert_eq!(answered.load(Ordering::SeqCst), 20);
}

/// The endpoint has had the request, and its connection ends.
#[tokio::test]
async fn what_may_have_run_is_sent_again_only_if_it_may_run_twice() {
    let losing = || {
        after(&[], |mut raw, _| async move {
            raw.request().await;
        })
    };
    for client in [H1, H2] {
        let (endpoint, answered) = losing().await;
        let rig_ = before(&[&endpoint]).await;
        let mut get = Client::connect(client, rig_.web()).await;
        assert_eq!(get.get("/").await, (200, "ok".into()), "{client:?}");
        assert_eq!(answered.load(Ordering::SeqCst), 1);

        let (endpoint, answered) = losing().await;
        let rig_ = before(&[&endpoint]).await;
        let lost = (502, "upstream_lost".to_owned());
        assert_eq!(post(client, &rig_, b"x").await, lost, "{client:?}");
        assert_eq!(answered.load(Ordering::SeqCst), 0);
    }
    let (endpoint, answered) = losing().await;
    let rig = before(&[&endpoint]).await;
    let mut client = Client::connect(H2, rig.web()).await;
    let answer = client.ask(call(), data("x")).await.unwrap();
    let seen = (
        answer.status(),
        answer.field("grpc-status"),
        answer.field("grpc-message"),
    );
    assert_eq!(seen, (200, "14", "upstream_lost"));
    assert_eq!(whole(answer.pieces).await, Default::default());
    assert_eq!(answered.load(Ordering::SeqCst), 0);
}

/// A connection that the endpoint has ended between two requests.
#[tokio::test]
async fn a_connection_that_has_ended_costs_nothing() {
    let answered = Arc::new(AtomicUsize::new(0));
    let count = answered.clone();
    let endpoint = Scripted::start(move |stream: TcpStream, _| {
        let count = count.clone();
        async move {
            let Some(mut raw) = Raw::accept(stream, &[]).await else {
                return;
            };
            loop {
                let Some(frame) = raw.next().await else {
                    return;
                };
                if frame.ends_stream() {
                    count.fetch_add(1, Ordering::SeqCst);
                    // One request a connection, without GOAWAY.
                    raw.answer(frame.stream).await;
                    raw.stream.shutdown().await.unwrap();
                }
            }
        }
    })
    .await;
    for client in [H1, H2] {
        let rig = before(&[&endpoint]).await;
        answered.store(0, Ordering::SeqCst);
        for _ in 0..50 {
            assert_eq!(post(client, &rig, b"x").await, fine(), "{client:?}");
        }
        assert_eq!(answered.load(Ordering::SeqCst), 50);
    }
}

/// An endpoint that takes a connection and ends it before it has said a word has not begun anything.
#[tokio::test]
async fn a_new_connection_that_ends_without_a_word_costs_nothing() {
    for resets in [false, true] {
        let silent = Scripted::start(move |stream: TcpStream, _| async move {
            if resets {
                stream.set_zero_linger().unwrap();
            }
            // A join check has sent nothing.
            let _ = stream.peek(&mut [0]).await;
        })
        .await;
        let (other, answered) =
            after(&[], |raw, count| async move { serve(raw, &count).await }).await;
        let rig = before(&[&silent, &other]).await;
        for number in 1..=20 {
            assert_eq!(post(H2, &rig, b"x").await, fine(), "{resets} {number}");
            assert_eq!(answered.load(Ordering::SeqCst), number);
        }
    }
}

/// An endpoint that never answers the proxy's first word still gets its requests.
#[tokio::test]
async fn an_endpoint_that_answers_no_ping_is_served() {
    let (endpoint, answered) = after(&[], |mut raw, count| async move {
        raw.pongs = false;
        serve(raw, &count).await;
    })
    .await;
    let rig = before(&[&endpoint]).await;
    assert_eq!(post(H2, &rig, b"x").await, fine());
    assert_eq!(answered.load(Ordering::SeqCst), 1);
}

/// More requests at once than an endpoint takes on one connection. What is beyond its limit is not
/// refused to a client.
#[tokio::test]
async fn a_burst_beyond_the_endpoints_limit_is_served_whole() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(5);
    let app = App::start_with(H2, builder, |call| async move {
        whole(call.body).await;
        call.reply.say("ok");
    })
    .await;
    let rig = rig("http", Some("grpc"), &[app.ep("a")], "").await;
    let Client::H2(send, _connection) = Client::connect(H2, rig.web()).await else {
        unreachable!()
    };
    let mut asked = JoinSet::new();
    for _ in 0..100 {
        let mut client = Client::H2(send.clone(), tokio::spawn(std::future::pending()));
        asked.spawn(async move {
            let answer = client.ask(request("POST", "/"), data("x")).await.unwrap();
            answer.status()
        });
    }
    let statuses = soon("all answers", asked.join_all()).await;
    assert_eq!(statuses, vec![200; 100]);
    assert_eq!(app.calls(), 100);
}

/// An endpoint that ends each connection after a while, by GOAWAY, and goes on living.
#[tokio::test]
async fn connections_of_a_limited_age_cost_nothing() {
    let app = App::start(H2, |call| async move {
        whole(call.body).await;
        call.reply.say("ok");
    })
    .await;
    let rig = rig("http", Some("grpc"), &[app.ep("a")], "").await;
    let mut asked = JoinSet::new();
    for _ in 0..8 {
        let mut client = Client::connect(H2, rig.web()).await;
        asked.spawn(async move {
            for _ in 0..100 {
                let answer = client.ask(request("POST", "/"), data("x")).await.unwrap();
                assert_eq!(answer.status(), 200, "{}", answer.field("x-ebbtide-reason"));
                assert!(!whole(answer.pieces).await.cut);
            }
            assert!(client.is_open());
        });
    }
    let ends = async {
        loop {
            app.end_connections();
            tokio::task::yield_now().await;
            let before = app.calls();
            eventually("more requests", async || {
                app.calls() > before + 7 || app.calls() == 800
            })
            .await;
        }
    };
    tokio::select! {
        () = ends => {}
        all = soon("all answers", async { while let Some(it) = asked.join_next().await { it.unwrap() } }) => all,
    }
    assert_eq!(app.calls(), 800, "each has run once");
}

/// Requests wait for an endpoint. A stream that its client resets meanwhile waits no more, and its
/// neighbours do.
#[tokio::test]
async fn streams_are_held_one_by_one() {
    let rig = rig("http", None, &[], "").await;
    let held = async |count: usize| {
        eventually("held streams", async || {
            rig.metric("ebbtide_held{", "") == count as f64
        })
        .await;
    };
    let mut raw = Raw::connect(rig.web()).await;
    for stream in [1, 3, 5] {
        raw.headers(stream, &crate::support::frames::get("/"), true)
            .await;
    }
    held(3).await;
    raw.reset(3, 8).await;
    held(2).await;
    let app = App::start(H1, |call| async move { call.reply.say("ok") }).await;
    rig.endpoints(&[app.ep("a")]);
    let mut answered = Vec::new();
    while answered.len() < 2 {
        let frame = raw.until("an answer", |it| it.kind == HEADERS).await;
        answered.push(frame.stream);
    }
    answered.sort_unstable();
    assert_eq!((answered, app.calls()), (vec![1, 5], 2));
}
