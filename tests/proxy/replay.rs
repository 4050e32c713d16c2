//! What is lost with an endpoint (contract 1.6 and 3): a request is replayed where section 3 allows
//! it, and never sent twice where it does not. A response that has begun is cut so that the client
//! sees it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebbtide::command::demo::client::{Client, Failure, Response};
use ebbtide::command::demo::fleet::{Fleet, Options};
use ebbtide::command::demo::proxy::{Proxy, config};
use rustix::process::Signal;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::ask::{get, looks_whole, raw};
use crate::proxy::play::{Act, OK, Play};
use crate::proxy::scripted::Scripted;
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// One replica that follows a script, and a proxy before it.
async fn one(play: &Play, more: &str) -> Rig {
    let rig = Rig::start(more).await;
    rig.endpoints(&[Ep::new("a", play.address())]);
    rig.usable(1).await;
    rig
}

/// Sends one request on a connection of its own.
async fn ask(rig: &Rig, method: &str, headers: &str, body: &[u8]) -> Result<Response, Failure> {
    let mut client = Client::connect(rig.web()).await?;
    soon("a response", client.exchange(method, "/", headers, body)).await
}

fn reason(response: &Response) -> (u16, &str) {
    (
        response.status,
        response.header("x-ebbtide-reason").unwrap_or("-"),
    )
}

/// An endpoint that does `first` for the first request and answers every later one.
async fn first_then_ok(first: Act) -> Play {
    Play::start(move |turn| {
        if turn.number == 0 {
            first.clone()
        } else {
            Act::Say(OK.into())
        }
    })
    .await
}

/// Real processes that are killed with a long request in flight. The replay may be lost in the same
/// way, once more.
#[tokio::test]
async fn idempotent_requests_outlive_their_endpoint_and_others_run_once() {
    let options = Options {
        replicas: 2,
        signal: Signal::KILL,
        ..Options::new(BINARY)
    };
    let mut fleet = Fleet::start(options).await.unwrap();
    let proxy = Proxy::start(
        BINARY.as_ref(),
        fleet.folder(),
        &config(&fleet.manifests(), ""),
        &["web"],
    )
    .await
    .unwrap();
    let web = proxy.web().unwrap();
    let mut requests = tokio::task::JoinSet::new();
    let methods = ["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH"];
    for method in methods {
        requests.spawn(async move {
            let body: &[u8] = if method.starts_with('P') {
                b"some body"
            } else {
                b""
            };
            let mut client = Client::connect(web).await.unwrap();
            let first = client
                .exchange(method, &format!("/count/{method}?ms=3000"), "", body)
                .await
                .unwrap();
            // The same socket goes on serving, whatever happened to the request.
            let next = client.exchange("GET", "/", "", b"").await.unwrap();
            (method, first, next.status)
        });
    }
    eventually("all requests arrived", async || {
        methods
            .iter()
            .all(|m| fleet.requests(m).is_ok_and(|n| n == 1))
    })
    .await;
    for old in fleet.ids() {
        fleet.replace(old, "v2").await.unwrap();
    }
    let mut answered = 0;
    while let Some(ended) = soon("all responses", requests.join_next()).await {
        let (method, first, next) = ended.unwrap();
        let ran = fleet.requests(method).unwrap();
        match method {
            "POST" | "PATCH" => {
                assert_eq!(reason(&first), (502, "upstream_lost"), "{method}");
                assert_eq!(ran, 1, "{method} must not run twice");
            }
            _ => {
                assert_eq!(first.status, 200, "{method} {first:?}");
                assert!((2..=3).contains(&ran), "{method} ran {ran} times");
            }
        }
        assert_eq!(next, 200, "{method}");
        answered += 1;
    }
    assert_eq!(answered, methods.len());
}

/// RFC 9110 section 9.2.2, and conditions that the lost attempt may have changed (contract 3.3).
#[tokio::test]
async fn what_may_be_repeated_is_decided_by_method_condition_and_policy() {
    let rows: &[(&str, &str, &str, bool)] = &[
        ("GET", "", "never", true),
        ("OPTIONS", "", "never", true),
        ("TRACE", "", "never", true),
        ("GET", "If-None-Match: \"a\"\r\n", "never", true),
        ("PUT", "", "never", true),
        (
            "PUT",
            "If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT\r\n",
            "never",
            true,
        ),
        ("PUT", "If-Match: \"a\"\r\n", "never", false),
        ("PUT", "If-None-Match: *\r\n", "never", false),
        (
            "DELETE",
            "If-Unmodified-Since: Sat, 29 Oct 1994 19:43:31 GMT\r\n",
            "never",
            false,
        ),
        ("PUT", "If-Match: \"a\"\r\n", "always", true),
        ("POST", "", "never", false),
        ("POST", "Idempotency-Key: 1\r\n", "never", false),
        ("POST", "", "idempotencyKey", false),
        ("POST", "Idempotency-Key: 1\r\n", "idempotencyKey", true),
        ("PATCH", "", "always", true),
        ("BREW", "", "never", false),
    ];
    for (method, headers, policy, replayed) in rows {
        let play = first_then_ok(Act::Close).await;
        let rig = one(&play, "").await;
        rig.service(&[("ebbtide.dev/retry-non-idempotent", policy)]);
        eventually("the policy", async || {
            rig.running()
                .admin
                .snapshot
                .load()
                .ports
                .values()
                .any(|p| format!("{:?}", p.policy.non_idempotent).eq_ignore_ascii_case(policy))
        })
        .await;
        let answer = ask(&rig, method, headers, b"").await.unwrap();
        let row = format!("{method} {headers:?} {policy}");
        if *replayed {
            assert_eq!((answer.status, play.requests().len()), (200, 2), "{row}");
        } else {
            assert_eq!(
                (reason(&answer), play.requests().len()),
                ((502, "upstream_lost"), 1),
                "{row}"
            );
        }
    }
}

#[tokio::test]
async fn a_body_is_replayed_up_to_the_buffers_size() {
    for (length, replayed) in [
        (1, true),
        (64 << 10, true),
        ((64 << 10) + 1, false),
        (1 << 20, false),
    ] {
        let play = first_then_ok(Act::Close).await;
        let rig = one(&play, "").await;
        let body: Vec<u8> = (0..length).map(|i| b'a' + (i % 23) as u8).collect();
        let answer = ask(&rig, "PUT", "", &body).await.unwrap();
        let seen = play.requests();
        if replayed {
            assert_eq!((answer.status, seen.len()), (200, 2), "{length}");
            assert!(
                seen[0].ends_with(&body) && seen[0] == seen[1],
                "{length}: the replay differs"
            );
        } else {
            assert_eq!(
                (reason(&answer), seen.len()),
                ((502, "upstream_lost"), 1),
                "{length}"
            );
        }
    }
}

#[tokio::test]
async fn a_chunked_body_is_replayed_byte_for_byte() {
    let play = first_then_ok(Act::Close).await;
    let rig = one(&play, "").await;
    let request =
        b"PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                    5;name=value\r\nhello\r\n0006\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n";
    let (text, clean) = raw(rig.web(), request).await;
    assert!(clean && text.starts_with("HTTP/1.1 200 "), "{text}");
    let seen = play.requests();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0], seen[1]);
    let seen = String::from_utf8_lossy(&seen[0]).into_owned();
    assert!(
        seen.ends_with("\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"),
        "{seen}"
    );
}

/// The endpoint closes while the client is still sending. What has arrived so far is sent again,
/// and the rest follows.
#[tokio::test]
async fn a_body_that_is_still_coming_is_replayed_and_continued() {
    let play = Play::start(|turn| {
        if turn.number == 0 {
            Act::CloseAfterHead
        } else {
            Act::Say(OK.into())
        }
    })
    .await;
    let rig = one(&play, "").await;
    let mut stream = TcpStream::connect(rig.web()).await.unwrap();
    stream
        .write_all(
            b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nConnection: close\r\n\r\nfirst",
        )
        .await
        .unwrap();
    eventually("the loss and the second connect", async || {
        play.heads() == 2
    })
    .await;
    stream.write_all(b"+rest").await.unwrap();
    let mut text = String::new();
    soon("a response", stream.read_to_string(&mut text))
        .await
        .unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert!(
        play.requests()
            .last()
            .unwrap()
            .ends_with(b"\r\n\r\nfirst+rest")
    );
}

/// Nothing of the response has reached the client, so the request may be replayed.
#[tokio::test]
async fn a_response_that_was_withheld_is_replayed() {
    let head = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nX-From: lost\r\nContent-Length: {length}\r\n\r\n").into_bytes()
    };
    let mut part = head(16 << 10);
    part.extend([b'x'; 5_000]);
    let cases: Vec<(&str, Act)> = vec![
        (
            "half a head",
            Act::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()),
        ),
        (
            "half a head, reset",
            Act::SayAndReset(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()),
        ),
        ("a counted head alone", Act::SayAndClose(head(5))),
        (
            "a counted head alone, of the largest that is withheld",
            Act::SayAndClose(head(16 << 10)),
        ),
        (
            "a third of the largest body that is withheld",
            Act::SayAndClose(part),
        ),
    ];
    for (name, act) in cases {
        let play = first_then_ok(act).await;
        let rig = one(&play, "").await;
        let answer = ask(&rig, "GET", "", b"").await.unwrap();
        assert_eq!(
            (answer.status, answer.text().as_ref(), play.requests().len()),
            (200, "ok", 2),
            "{name}"
        );
        assert_eq!(answer.header("x-from"), None, "{name}");
    }
}

/// Contract 1.6: a truncated body never ends cleanly, and no second response follows a begun one.
#[tokio::test]
async fn a_response_that_has_begun_is_cut_visibly() {
    let counted = |length: usize| {
        let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        bytes.extend([b'x'; 100]);
        bytes
    };
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_vec();
    let mut in_chunk = chunked.clone();
    in_chunk.extend(b"20\r\nhalf");
    let mut at_trailers = chunked.clone();
    at_trailers.extend(b"0\r\nX-Sum: ");
    let cases: Vec<(&str, Act)> = vec![
        (
            "counted, one more than is withheld",
            Act::SayAndClose(counted((16 << 10) + 1)),
        ),
        ("counted and long", Act::SayAndClose(counted(10 << 20))),
        (
            "counted and long, reset",
            Act::SayAndReset(counted(10 << 20)),
        ),
        (
            "chunked, between two chunks",
            Act::SayAndClose(chunked.clone()),
        ),
        ("chunked, in a chunk", Act::SayAndClose(in_chunk)),
        ("chunked, in the trailers", Act::SayAndClose(at_trailers)),
        ("chunked, reset", Act::SayAndReset(chunked)),
        (
            "close-delimited, reset",
            Act::SayAndReset(b"HTTP/1.1 200 OK\r\n\r\npart".to_vec()),
        ),
        ("no longer withheld", Act::SayWaitAndClose(counted(1_000))),
    ];
    for (name, act) in cases {
        let play = first_then_ok(act).await;
        let rig = one(&play, "").await;
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let (text, clean) = raw(rig.web(), request).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{name}: {text}");
        assert!(clean, "{name}: the framing tells, so no reset is needed");
        assert!(!looks_whole(&text), "{name}: {text:?} looks whole");
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{name}: {text}");
        assert_eq!(play.requests().len(), 1, "{name}");
    }
}

#[tokio::test]
async fn an_interim_response_does_not_end_the_chance_of_a_replay_and_is_forwarded_once() {
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
    let play = Play::start(move |turn| {
        if turn.number < 2 {
            Act::SayAndClose(interim.clone())
        } else {
            Act::Say([interim.as_slice(), OK.as_bytes()].concat())
        }
    })
    .await;
    let rig = one(&play, "").await;
    let request =
        b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
    let (text, clean) = raw(rig.web(), request).await;
    assert!(clean, "{text}");
    assert_eq!(text.matches("100 Continue").count(), 1, "{text}");
    assert_eq!(text.matches("HTTP/1.1 200 ").count(), 1, "{text}");
    assert_eq!(play.requests().len(), 3);
}

/// The server closes its idle connections as the next request arrives. With one replica, one
/// attempt and no budget, no request is lost.
#[tokio::test]
async fn a_stale_connection_is_no_attempt_and_its_endpoint_may_serve_again() {
    let play = Play::start(|turn| {
        if turn.on_connection == 0 {
            Act::Say(OK.into())
        } else {
            Act::Close
        }
    })
    .await;
    let rig = one(
        &play,
        "retry: {attempts: 1, budgetPercent: 0, budgetFloor: 0}",
    )
    .await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    for number in 0..50 {
        let answer = get(&mut client).await;
        assert_eq!(
            (answer.status, answer.text().as_ref()),
            (200, "ok"),
            "request {number}"
        );
    }
    // Each request after the first met a stale connection.
    assert_eq!(play.requests().len(), 99);
    eventually("their count", async || {
        rig.metric("ebbtide_retries_total", "reason=\"stale\"") == 49.0
    })
    .await;
    assert_eq!(
        rig.metric("ebbtide_retries_total", "reason=\"replay\""),
        0.0
    );
}

#[tokio::test]
async fn a_408_is_a_stale_connection_only_where_it_is_reused() {
    let timeout = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let play = Play::start(move |turn| match (turn.number, turn.on_connection) {
        (0, _) => Act::SayAndClose(timeout.into()),
        (_, 0) => Act::Say(OK.into()),
        _ => Act::SayAndClose(timeout.into()),
    })
    .await;
    let rig = one(&play, "").await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(get(&mut client).await.status);
    }
    assert_eq!(
        statuses,
        [408, 200, 200, 200],
        "the first one is a response"
    );
    assert_eq!(play.requests().len(), 6);
}

/// An endpoint that reads every request, answers none, and does not leave: the policy's `attempts`
/// bound the tries.
#[tokio::test]
async fn attempts_are_bounded() {
    for attempts in [1, 2, 3, 5] {
        let play = Play::start(|_| Act::Close).await;
        let rig = one(&play, &format!("retry: {{attempts: {attempts}}}")).await;
        let answer = ask(&rig, "GET", "", b"").await.unwrap();
        assert_eq!(reason(&answer), (502, "upstream_lost"));
        assert_eq!(play.requests().len(), attempts, "attempts");
    }
}

/// A server that ends at its first request, with its listener: nobody is told, and connects are
/// refused from then on.
async fn mortal() -> (SocketAddr, Arc<Mutex<Option<Scripted>>>) {
    let life = Arc::new(Mutex::new(None));
    let of_script: Arc<Mutex<Option<Scripted>>> = life.clone();
    let scripted = Scripted::start(move |mut stream, _| {
        let life = of_script.clone();
        async move {
            if matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {
                drop(life.lock().unwrap().take());
            }
        }
    })
    .await;
    let address = scripted.address;
    *life.lock().unwrap() = Some(scripted);
    (address, life)
}

/// A request that kills its server must not walk through a Service. The budget, which is spent,
/// plays no part in that.
#[tokio::test]
async fn a_request_that_kills_its_server_reaches_no_more_endpoints_than_attempts() {
    for attempts in [1, 3] {
        let more = format!("retry: {{attempts: {attempts}, budgetPercent: 0, budgetFloor: 0}}");
        let rig = Rig::start(&more).await;
        let (mut servers, mut endpoints) = (Vec::new(), Vec::new());
        for number in 0..20 {
            let (address, life) = mortal().await;
            endpoints.push(Ep::new(&format!("e{number}"), address));
            servers.push(life);
        }
        rig.endpoints(&endpoints);
        rig.usable(20).await;
        let answer = ask(&rig, "GET", "", b"").await.unwrap();
        assert_eq!(reason(&answer), (502, "upstream_lost"));
        let dead = servers.iter().filter(|life| life.lock().unwrap().is_none());
        assert_eq!(dead.count(), attempts);
    }
}

/// A last resort that answers no request explains one loss, not every loss. It must not be tried
/// for ever because it will leave.
#[tokio::test]
async fn a_leaving_endpoint_that_answers_nobody_is_not_tried_for_ever() {
    let play = Play::start(|_| Act::Close).await;
    let rig = one(&play, "retry: {attempts: 3}").await;
    rig.endpoints(&[Ep::new("a", play.address()).terminating()]);
    eventually("a last resort", async || {
        rig.running()
            .admin
            .snapshot
            .load()
            .ports
            .values()
            .any(|p| p.last_resort.len() == 1)
    })
    .await;
    let answer = ask(&rig, "GET", "", b"").await.unwrap();
    assert_eq!(reason(&answer), (502, "upstream_lost"));
    assert_eq!(
        play.requests().len(),
        4,
        "one loss is explained, three attempts are not"
    );
}

/// Losses that no leaving endpoint explains. The budget allows a fifth of the requests and a floor
/// for each worker, and refills by a tenth a second, which is why the bound has slack. Attempts
/// alone would allow 1,000.
#[tokio::test]
async fn a_broken_application_gets_few_extra_requests() {
    for (percent, floor, most) in [(0, 0, 100), (20, 10, 2 * (100 + 20 + 2 * 10))] {
        let play = Play::start(|_| Act::Close).await;
        let rig = one(
            &play,
            &format!("retry: {{attempts: 10, budgetPercent: {percent}, budgetFloor: {floor}}}"),
        )
        .await;
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let web = rig.web();
            clients.spawn(async move {
                let mut client = Client::connect(web).await.unwrap();
                get(&mut client).await.status
            });
        }
        while let Some(status) = clients.join_next().await {
            assert_eq!(status.unwrap(), 502);
        }
        let seen = play.requests().len();
        assert!(
            seen <= most,
            "{seen} requests for 100, at {percent} % and {floor}"
        );
        assert!(
            percent == 0 || seen >= 110,
            "{seen}: the budget was not used"
        );
    }
}

/// What explains the loss, and whether that comes before or after it.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    DrainsBefore,
    DrainsAfter,
    NotReadyAfter,
    RemovedAfter,
    RefusesAfter,
}

#[tokio::test]
async fn a_loss_that_a_leaving_endpoint_explains_is_free() {
    for how in [
        Leaves::DrainsBefore,
        Leaves::DrainsAfter,
        Leaves::NotReadyAfter,
        Leaves::RemovedAfter,
        Leaves::RefusesAfter,
    ] {
        let (mut a, b) = (
            Play::start(|_| Act::Hang).await,
            Play::start(|_| Act::Say(OK.into())).await,
        );
        let rig = one(&a, "retry: {attempts: 1, budgetPercent: 0, budgetFloor: 0}").await;
        let (ep_a, ep_b) = (Ep::new("a", a.address()), Ep::new("b", b.address()));
        let web = rig.web();
        let client = tokio::spawn(async move {
            let mut client = Client::connect(web).await.unwrap();
            client.exchange("GET", "/", "", b"").await
        });
        eventually("in flight", async || a.requests().len() == 1).await;
        rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
        rig.usable(2).await;
        let leave = || match how {
            Leaves::DrainsBefore | Leaves::DrainsAfter => {
                rig.endpoints(&[ep_a.clone().terminating(), ep_b.clone()])
            }
            Leaves::NotReadyAfter => rig.endpoints(&[ep_a.clone().not_ready(), ep_b.clone()]),
            Leaves::RemovedAfter => rig.endpoints(std::slice::from_ref(&ep_b)),
            Leaves::RefusesAfter => {}
        };
        match how {
            Leaves::DrainsBefore => {
                leave();
                rig.usable(1).await;
                a.drop_connections();
            }
            Leaves::RefusesAfter => {
                a.drop_connections();
                // The process ends a moment after its connections.
                tokio::time::sleep(Duration::from_millis(100)).await;
                a.stop_listening();
            }
            _ => {
                a.drop_connections();
                tokio::time::sleep(Duration::from_millis(100)).await;
                leave();
            }
        }
        let answer = soon("a response", client).await.unwrap().unwrap();
        // What discovery does not report as leaving may have died of this very request.
        let free = !matches!(how, Leaves::NotReadyAfter | Leaves::RefusesAfter);
        assert_eq!(
            (answer.status, b.requests().len(), a.requests().len()),
            if free { (200, 1, 1) } else { (502, 0, 1) },
            "{how:?}"
        );
        if matches!(
            how,
            Leaves::DrainsBefore | Leaves::DrainsAfter | Leaves::RemovedAfter
        ) {
            let receipt = || rig.receipts().into_iter().find(|r| r.ended.is_some());
            eventually("the receipt", async || receipt().is_some()).await;
            assert_eq!(receipt().unwrap().replayed, 1, "{how:?}");
        }
    }
}

/// Contract 3.6: in a rollout, the pods of the lost pod's generation leave next.
#[tokio::test]
async fn a_replay_goes_to_another_generation() {
    let old = [
        Play::start(|_| Act::Close).await,
        Play::start(|_| Act::Close).await,
        Play::start(|_| Act::Close).await,
    ];
    let new = Play::start(|_| Act::Say(OK.into())).await;
    let rig = Rig::start("retry: {attempts: 2, budgetFloor: 1000}").await;
    let mut endpoints = Vec::new();
    for (number, play) in old.iter().enumerate() {
        let name = format!("old-{number}");
        rig.pod(&name, "old", None);
        endpoints.push(Ep::new(&name, play.address()).of_pod());
    }
    rig.pod("new", "new", None);
    endpoints.push(Ep::new("new", new.address()).of_pod());
    rig.endpoints(&endpoints);
    rig.usable(4).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    for _ in 0..60 {
        let answer = get(&mut client).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(new.requests().len(), 60);
    let lost: usize = old.iter().map(|play| play.requests().len()).sum();
    assert!((1..=60).contains(&lost), "{lost} losses of 60 requests");
}

#[tokio::test]
async fn the_request_timeout_bounds_all_attempts_together() {
    // Silence, and a loss whose explanation takes longer than this request has.
    for act in [Act::Hang, Act::Close] {
        let play = Play::start(move |_| act.clone()).await;
        let rig = one(&play, "timeouts: {request: 400ms}\nretry: {attempts: 1}").await;
        let answer = ask(&rig, "GET", "", b"").await.unwrap();
        assert_eq!(reason(&answer), (504, "request_timeout"));
        eventually("no upstream connection left", async || play.open() == 0).await;
        assert_eq!(play.requests().len(), 1);
        // One connect for the join check, one for the request, and one each 50 ms to see whether
        // the endpoint leaves. If the wait lasted a whole second, there would be 20 of those.
        assert!(
            play.accepted() <= 2 + 400 / 50 + 1,
            "{} connects",
            play.accepted()
        );
    }
}

/// The request timeout also bounds a hold.
#[tokio::test]
async fn the_request_timeout_ends_a_hold() {
    let rig = Rig::start("timeouts: {request: 300ms, hold: 20s}").await;
    let answer = ask(&rig, "GET", "", b"").await.unwrap();
    assert_eq!(reason(&answer), (504, "request_timeout"));
}

/// Contract 1.4: the pod's grace is over and its process still hangs. What may be replayed is
/// replayed, and the rest is cut.
#[tokio::test]
async fn at_the_drain_deadline_a_get_is_replayed_and_a_post_answered() {
    let (a, b) = (
        Play::start(|_| Act::Hang).await,
        Play::start(|_| Act::Say(OK.into())).await,
    );
    let rig = Rig::start("retry: {attempts: 1, budgetPercent: 0, budgetFloor: 0}").await;
    rig.pod("a", "old", None);
    rig.pod("b", "new", None);
    let (ep_a, ep_b) = (
        Ep::new("a", a.address()).of_pod(),
        Ep::new("b", b.address()).of_pod(),
    );
    rig.endpoints(std::slice::from_ref(&ep_a));
    rig.usable(1).await;
    let mut requests = tokio::task::JoinSet::new();
    for method in ["GET", "PUT", "POST"] {
        let web = rig.web();
        requests.spawn(async move {
            let mut client = Client::connect(web).await.unwrap();
            let body: &[u8] = if method == "GET" { b"" } else { b"body" };
            (
                method,
                client.exchange(method, "/", "", body).await.unwrap(),
            )
        });
    }
    eventually("in flight", async || a.requests().len() == 3).await;
    rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
    rig.usable(2).await;
    let begin = std::time::Instant::now();
    rig.pod("a", "old", Some(0));
    // The Pod object is removed immediately, as after the death of its node. That does not shorten
    // the deadline.
    rig.usable(1).await;
    rig.remove("pod-a.json");
    while let Some(ended) = soon("all responses", requests.join_next()).await {
        let (method, answer) = ended.unwrap();
        assert!(
            begin.elapsed() >= Duration::from_millis(2_900),
            "{method} after {:?}",
            begin.elapsed()
        );
        match method {
            "POST" => assert_eq!(reason(&answer), (502, "drain_deadline")),
            _ => assert_eq!(
                (answer.status, answer.text().as_ref()),
                (200, "ok"),
                "{method}"
            ),
        }
    }
    assert_eq!((a.requests().len(), b.requests().len()), (3, 2));
    eventually("the receipt", async || {
        rig.receipts().iter().any(|r| r.ended.is_some())
    })
    .await;
    let record = rig.receipts().remove(0);
    assert_eq!(
        (record.replayed, record.forced, record.finished),
        (2, 1, 0),
        "{record:?}"
    );
    assert_eq!(
        record.ended.unwrap().1,
        ebbtide::contract::reason::Outcome::Forced
    );
    assert_eq!(
        rig.metric("ebbtide_drains_total", "outcome=\"forced\""),
        1.0
    );
    eventually("no upstream connection left", async || a.open() == 0).await;
}

/// At the deadline, a response that has begun is cut visibly.
#[tokio::test]
async fn at_the_drain_deadline_a_begun_response_is_cut_visibly() {
    let a = Play::start(|_| {
        Act::SayAndHang(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\npart".to_vec())
    })
    .await;
    let rig = Rig::start("").await;
    rig.service(&[("ebbtide.dev/drain-timeout", "300ms")]);
    rig.endpoints(&[Ep::new("a", a.address())]);
    rig.usable(1).await;
    let mut stream = TcpStream::connect(rig.web()).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut text = vec![0; 12];
    soon("the head", stream.read_exact(&mut text))
        .await
        .unwrap();
    rig.endpoints(&[]);
    soon("the cut", stream.read_to_end(&mut text))
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(text.ends_with("part") && !looks_whole(&text), "{text}");
    eventually("the receipt", async || {
        rig.receipts().iter().any(|r| r.ended.is_some())
    })
    .await;
    assert_eq!(rig.receipts()[0].forced, 1);
}

/// Nothing is replayed for a client that has gone, and the connection to the endpoint is closed.
#[tokio::test]
async fn a_client_that_resets_ends_its_exchange() {
    for (name, bytes) in [
        ("waiting", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (
            "sending",
            "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
        ),
    ] {
        let (a, b) = (
            Play::start(|_| Act::Hang).await,
            Play::start(|_| Act::Hang).await,
        );
        let rig = Rig::start("").await;
        rig.endpoints(&[Ep::new("a", a.address()), Ep::new("b", b.address())]);
        rig.usable(2).await;
        let mut stream = TcpStream::connect(rig.web()).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        eventually("in flight", async || a.heads() + b.heads() == 1).await;
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(stream);
        eventually(name, async || a.open() + b.open() == 0).await;
        assert_eq!(
            a.heads() + b.heads(),
            1,
            "{name}: sent again for a client that has gone"
        );
        assert_eq!(rig.metric("ebbtide_retries_total", ""), 0.0, "{name}");
        eventually("no lease left", async || {
            rig.running()
                .admin
                .snapshot
                .load()
                .ports
                .values()
                .all(|p| p.all.iter().all(|e| e.leases() == 0))
        })
        .await;
    }
}

/// The endpoint is lost a moment after its client.
#[tokio::test]
async fn nothing_is_replayed_for_a_client_that_has_gone() {
    let (a, b) = (
        Play::start(|_| Act::Hang).await,
        Play::start(|_| Act::Say(OK.into())).await,
    );
    let rig = one(&a, "").await;
    let mut stream = TcpStream::connect(rig.web()).await.unwrap();
    // A second request stands behind the first, so the proxy no longer reads from the client to
    // notice its end.
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    eventually("in flight", async || a.requests().len() == 1).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    rig.endpoints(&[Ep::new("a", a.address()), Ep::new("b", b.address())]);
    rig.usable(2).await;
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
    a.drop_connections();
    eventually("no lease left", async || {
        rig.running()
            .admin
            .snapshot
            .load()
            .ports
            .values()
            .all(|p| p.all.iter().all(|e| e.leases() == 0))
    })
    .await;
    assert_eq!((a.requests().len(), b.requests().len()), (1, 0));
}

/// A body that does not fit the replay buffer cannot be sent again. It goes to a connection that is
/// unlikely to be stale.
#[tokio::test]
async fn a_long_body_does_not_meet_a_connection_that_has_long_been_idle() {
    let play = Play::start(|turn| {
        if turn.on_connection == 0 {
            Act::Say(OK.into())
        } else {
            Act::Close
        }
    })
    .await;
    let rig = one(&play, "").await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    assert_eq!(get(&mut client).await.status, 200);
    // Longer than a connection counts as recently used.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let body = vec![b'x'; (64 << 10) + 1];
    let answer = soon("a response", client.exchange("PUT", "/", "", &body))
        .await
        .unwrap();
    assert_eq!(
        (answer.status, play.requests().len()),
        (200, 2),
        "{answer:?}"
    );
}
