//! Answers that come late, or that a route asks another endpoint for.

use std::time::{Duration, Instant};

use ebbtide::contract::filters::{Filters, Retry};
use http::Response;

use super::{filtered, http, rig, serve, table};
use crate::proxy::h2::app::Version::{H1, H2};
use crate::proxy::h2::app::{App, Call, Client, data, request, whole};

const MOMENT: Duration = Duration::from_millis(100);

/// An endpoint that never answers.
async fn silent() -> App {
    App::start(H1, |call: Call| async move {
        std::future::pending::<()>().await;
        drop(call);
    })
    .await
}

async fn well() -> App {
    App::start(H1, |call: Call| async move { call.reply.say("well") }).await
}

/// An endpoint that answers with this status.
async fn ill(status: u16) -> App {
    App::start(H1, move |call: Call| async move {
        let mut response = Response::new(());
        *response.status_mut() = status.try_into().unwrap();
        whole(call.body).await;
        call.reply.send(response, data(format!("ill {status}")));
    })
    .await
}

fn retry(codes: &[u16], attempts: Option<u32>) -> Filters {
    Filters {
        retry: Some(Retry {
            codes: codes.to_vec(),
            attempts,
            backoff: None,
        }),
        ..Filters::default()
    }
}

/// The status, and the body or the reason.
async fn ask(client: &mut Client, method: &str, path: &str, body: &str) -> (u16, String) {
    let body = (!body.is_empty()).then(|| data(body.to_owned())).flatten();
    let answer = client.ask(request(method, path), body).await.unwrap();
    let (status, reason) = (answer.status(), answer.field("x-ebbtide-reason").to_owned());
    let body = String::from_utf8(whole(answer.pieces).await.data).unwrap();
    (status, if reason.is_empty() { body } else { reason })
}

#[tokio::test]
async fn a_route_bounds_its_requests_or_frees_them_of_a_bound() {
    let rig = rig("timeouts: {request: 200ms}").await;
    let (silent, slow) = (
        silent().await,
        App::start(H1, |call: Call| async move {
            tokio::time::sleep(5 * MOMENT).await;
            call.reply.say("slow");
        })
        .await,
    );
    serve(&rig, "silent", &[silent.address]).await;
    serve(&rig, "slow", &[slow.address]).await;
    let within = |timeout| Filters {
        request_timeout: Some(timeout),
        ..Filters::default()
    };
    let door = http(
        &rig,
        table(vec![
            ("/short", filtered(within(MOMENT), "silent")),
            ("/own", filtered(Filters::default(), "silent")),
            ("/free", filtered(within(Duration::ZERO), "slow")),
        ]),
    )
    .await;
    for version in [H1, H2] {
        let mut client = Client::connect(version, door).await;
        let late = (504, "request_timeout".to_owned());
        let begun = Instant::now();
        assert_eq!(ask(&mut client, "GET", "/short", "").await, late);
        assert!(begun.elapsed() >= MOMENT);
        assert_eq!(ask(&mut client, "GET", "/own", "").await, late);
        assert_eq!(ask(&mut client, "GET", "/free", "").await.1, "slow");
    }
}

#[tokio::test]
async fn an_attempt_that_is_late_goes_elsewhere_if_the_request_may_run_twice() {
    let rig = rig("").await;
    let (silent, well) = (silent().await, well().await);
    serve(&rig, "both", &[silent.address, well.address]).await;
    serve(&rig, "silent", &[silent.address]).await;
    let late = |attempts: Option<u32>| Filters {
        attempt_timeout: Some(MOMENT),
        ..retry(&[], attempts)
    };
    let door = http(
        &rig,
        table(vec![
            ("/both", filtered(late(None), "both")),
            ("/silent", filtered(late(Some(0)), "silent")),
        ]),
    )
    .await;
    let mut client = Client::connect(H1, door).await;
    for _ in 0..10 {
        assert_eq!(
            ask(&mut client, "GET", "/both", "").await,
            (200, "well".to_owned())
        );
    }
    assert!(silent.calls() > 0, "nothing was late");
    let over = (504, "attempt_timeout".to_owned());
    let before = silent.calls();
    assert_eq!(ask(&mut client, "GET", "/silent", "").await, over);
    assert_eq!(ask(&mut client, "POST", "/silent", "x").await, over);
    assert_eq!(silent.calls() - before, 2);
    // One that may run only once is never sent twice.
    let (mut served, mut lost) = (0, 0);
    let before = silent.calls() + well.calls();
    for _ in 0..20 {
        match ask(&mut client, "POST", "/both", "x").await {
            (200, _) => served += 1,
            other => {
                assert_eq!(other, over);
                lost += 1;
            }
        }
    }
    assert_eq!(silent.calls() + well.calls() - before, 20);
    assert!(served > 0 && lost > 0, "{served} {lost}");
}

/// An answer whose end does not come in time is cut visibly.
#[tokio::test]
async fn an_attempt_that_is_late_in_the_middle_of_its_answer_is_cut() {
    let rig = rig("").await;
    let half = App::start(H1, |call: Call| async move {
        let (send, pieces) = tokio::sync::mpsc::channel(4);
        let piece = crate::proxy::h2::app::Piece::Data("half".into());
        send.send(piece).await.unwrap();
        call.reply.send(Response::new(()), Some(pieces));
        std::future::pending::<()>().await;
        drop(send);
    })
    .await;
    serve(&rig, "half", &[half.address]).await;
    let late = Filters {
        attempt_timeout: Some(MOMENT),
        ..Filters::default()
    };
    let door = http(&rig, table(vec![("/", filtered(late, "half"))])).await;
    for version in [H1, H2] {
        let mut client = Client::connect(version, door).await;
        let answer = client.ask(request("GET", "/"), None).await.unwrap();
        assert_eq!(answer.status(), 200);
        let whole = whole(answer.pieces).await;
        assert_eq!((&*whole.data, whole.cut), (&b"half"[..], true));
    }
}

#[tokio::test]
async fn another_endpoint_is_asked_for_an_answer_that_the_route_does_not_want() {
    let rig = rig("").await;
    let (ill, well) = (ill(500).await, well().await);
    serve(&rig, "a", &[ill.address, well.address]).await;
    let door = http(
        &rig,
        table(vec![
            ("/again", filtered(retry(&[500, 503], None), "a")),
            ("/other", filtered(retry(&[503], None), "a")),
        ]),
    )
    .await;
    for version in [H1, H2] {
        let mut client = Client::connect(version, door).await;
        let before = ill.calls();
        for _ in 0..20 {
            let answer = ask(&mut client, "POST", "/again", "body").await;
            assert_eq!(answer, (200, "well".to_owned()), "{version:?}");
        }
        assert!(ill.calls() > before, "it was never asked");
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(ask(&mut client, "GET", "/other", "").await.0);
        }
        assert!(statuses.contains(&500), "500 is not asked for again there");
    }
}

#[tokio::test]
async fn where_every_answer_is_unwanted_the_client_gets_the_last_one_as_it_is() {
    let rig = rig("").await;
    let (one, other) = (ill(502).await, ill(502).await);
    serve(&rig, "a", &[one.address, other.address]).await;
    let backoff = Filters {
        retry: Some(Retry {
            codes: vec![502],
            attempts: Some(2),
            backoff: Some(MOMENT),
        }),
        ..Filters::default()
    };
    let bounded = Filters {
        request_timeout: Some(MOMENT / 2),
        ..backoff.clone()
    };
    let door = http(
        &rig,
        table(vec![
            ("/four", filtered(retry(&[502], Some(3)), "a")),
            ("/policy", filtered(retry(&[502], None), "a")),
            ("/once", filtered(retry(&[502], Some(0)), "a")),
            ("/backoff", filtered(backoff, "a")),
            ("/bounded", filtered(bounded, "a")),
        ]),
    )
    .await;
    for version in [H1, H2] {
        let mut client = Client::connect(version, door).await;
        let mut calls = async |path: &str, expected: (u16, &str)| {
            let before = one.calls() + other.calls();
            let got = ask(&mut client, "POST", path, "body").await;
            assert_eq!((got.0, &*got.1), expected, "{version:?} {path}");
            one.calls() + other.calls() - before
        };
        let last = (502, "ill 502");
        assert_eq!(calls("/four", last).await, 4);
        // `retry.attempts` is 3.
        assert_eq!(calls("/policy", last).await, 3);
        assert_eq!(calls("/once", last).await, 1);
        let begun = Instant::now();
        assert_eq!(calls("/backoff", last).await, 3);
        assert!(begun.elapsed() >= 2 * MOMENT);
        assert_eq!(calls("/bounded", (504, "request_timeout")).await, 1);
    }
}

/// What is too long to be kept is sent once.
#[tokio::test]
async fn a_body_that_is_not_kept_gets_the_first_answer() {
    let rig = rig("limits: {replayBody: 1KiB}").await;
    let (one, other) = (ill(503).await, ill(503).await);
    serve(&rig, "a", &[one.address, other.address]).await;
    let door = http(
        &rig,
        table(vec![("/", filtered(retry(&[503], Some(5)), "a"))]),
    )
    .await;
    let mut client = Client::connect(H1, door).await;
    let body = "x".repeat(100 << 10);
    let got = ask(&mut client, "POST", "/", &body).await;
    assert_eq!(got, (503, "ill 503".to_owned()));
    assert_eq!(one.calls() + other.calls(), 1);
}
