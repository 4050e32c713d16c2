//! The reports that need more than one request and one response.

use tokio::sync::Semaphore;

use super::*;
use crate::proxy::tcp::{Station, leases};

/// A POST whose body comes with its head.
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok";

/// A proxy before `origin`, and a client of it.
async fn visit(origin: &Origin) -> (Rig, Wire) {
    let rig = scene(origin, "").await;
    let client = Wire::connect(&rig).await;
    (rig, client)
}

/// A proxy for protocol `tcp`.
async fn tcp(endpoint: &Scripted) -> Rig {
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[Ep::new("a", endpoint.address)]);
    rig.usable(1).await;
    rig
}

pub(super) async fn a_chunk_over_2_gb() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc0000000\r\nbegin";
    let origin = Origin::start(move |mut wire, _| async move {
        wire.head().await;
        wire.send(head).await;
        // Until the client has it and leaves.
        while wire.fill().await {}
    })
    .await;
    let (_rig, mut client) = visit(&origin).await;
    client.send(GET).await;
    let got = client.take(head.len()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got), head);
}

const EXPECT: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

pub(super) async fn a_refusal_instead_of_100_continue() {
    let refusal = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno";
    let origin = Origin::start(move |mut wire, _| async move {
        wire.head().await;
        wire.send(refusal).await;
    })
    .await;
    let (_rig, mut client) = visit(&origin).await;
    client.send(EXPECT).await;
    let (got, end) = client.rest().await;
    assert!(
        got.starts_with("HTTP/1.1 401 ") && got.ends_with("\r\n\r\nno"),
        "{got}"
    );
    assert_eq!(end, End::Fin);
}

pub(super) async fn a_client_waits_for_100_continue() {
    let origin = Origin::start(|mut wire, _| async move {
        let head = wire.head().await.unwrap();
        assert!(head.contains("\r\nExpect: 100-continue\r\n"), "{head}");
        wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(wire.take(4).await.unwrap(), b"body");
        wire.send(OK).await;
        while let Some(_next) = wire.message().await {
            wire.send(OK).await;
        }
    })
    .await;
    let (_rig, mut client) = visit(&origin).await;
    client.send(EXPECT).await;
    let interim = client.head().await;
    assert_eq!(interim.as_deref(), Some("HTTP/1.1 100 Continue\r\n\r\n"));
    client.send("body").await;
    assert_eq!(client.message().await.as_deref(), Some(OK));
    client.assert_alive("the body").await;
}

pub(super) async fn a_health_check_by_proxy_v2_local() {
    let origin = Origin::ok().await;
    let listener = "protocol: http, proxyProtocol: required";
    let rig = scene_with(&origin, listener, "trustedProxies: [127.0.0.1/32]").await;
    let mut client = Wire::connect(&rig).await;
    // LOCAL, but with addresses, as AWS sends it: they must be skipped and not believed.
    let addresses = [192, 0, 2, 9, 192, 0, 2, 8, 3, 232, 0, 80];
    let header = [
        b"\r\n\r\n\0\r\nQUIT\n",
        &[0x20, 0x11, 0, 12][..],
        &addresses,
    ]
    .concat();
    client.send([&header, GET.as_bytes()].concat()).await;
    assert_eq!(client.message().await.as_deref(), Some(OK));
    assert_eq!(
        field(&origin.seen()[0], "X-Forwarded-For"),
        Some("127.0.0.1")
    );
}

pub(super) async fn an_http_client_half_closes() {
    let origin = Origin::start(|mut wire, _| async move {
        wire.message().await;
        // The client's end has arrived.
        assert!(!wire.fill().await && wire.end == Some(End::Fin));
        wire.send(OK).await;
    })
    .await;
    let (_rig, mut client) = visit(&origin).await;
    client
        .send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    client.half_close().await;
    let (got, end) = client.rest().await;
    assert!(
        got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\nok"),
        "{got}"
    );
    assert_eq!(end, End::Fin);
}

pub(super) async fn a_tcp_client_half_closes() {
    let mut station = Station::start().await;
    let rig = tcp(&station.scripted).await;
    let mut client = Wire::connect(&rig).await;
    client.send("question").await;
    client.half_close().await;
    let (endpoint, first) = station.next().await;
    let mut endpoint = Wire::new(endpoint);
    let (rest, end) = endpoint.rest().await;
    assert_eq!(
        (first, rest.as_str(), end),
        (b"question".to_vec(), "", End::Fin)
    );
    endpoint.send("answer").await;
    drop(endpoint);
    assert_eq!(client.rest().await, ("answer".to_owned(), End::Fin));
}

pub(super) async fn a_101_in_lower_case() {
    let origin = Origin::start(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 101 switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
            .await;
        let bytes = wire.take(4).await.unwrap();
        wire.send(bytes).await;
    })
    .await;
    let (_rig, mut client) = visit(&origin).await;
    client
        .send("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\n\r\n")
        .await;
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client.send("ping").await;
    assert_eq!(client.rest().await, ("ping".to_owned(), End::Fin));
}

pub(super) async fn a_tunnel_with_a_length() {
    let origin = Origin::start(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await;
        let bytes = wire.take(4).await.unwrap();
        wire.send(bytes).await;
    })
    .await;
    let rig = scene_with(&origin, "protocol: http, allowConnect: true", "").await;
    let mut client = Wire::connect(&rig).await;
    client
        .send("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
        .await;
    assert_eq!(
        client.head().await.as_deref(),
        Some("HTTP/1.1 200 OK\r\n\r\n")
    );
    client.send("ping").await;
    assert_eq!(client.rest().await, ("ping".to_owned(), End::Fin));
}

/// An endpoint that answers once on each connection, and then ends it without saying so.
async fn answers_once() -> Origin {
    Origin::start(|mut wire, _| async move {
        wire.message().await;
        wire.send(OK).await;
    })
    .await
}

pub(super) async fn a_server_closes_idle_connections() {
    let origin = answers_once().await;
    let (_rig, mut client) = visit(&origin).await;
    for _ in 0..50 {
        client.assert_served(GET).await;
    }
    assert_eq!(origin.seen().len(), 50, "each request ran once");
}

pub(super) async fn a_post_after_a_server_closed_its_connection() {
    let origin = answers_once().await;
    let (rig, mut client) = visit(&origin).await;
    for _ in 0..20 {
        client.assert_served(GET).await;
        // The end of the endpoint's connection has arrived before the next request comes.
        eventually("no open connection to the endpoint", async || {
            rig.metric("ebbtide_upstream_connections", "state=\"idle\"") == 0.0
        })
        .await;
        client.assert_served(POST).await;
    }
    assert_eq!(origin.seen().len(), 40, "each request ran once");
}

/// An endpoint that sends a head, a chunk for each permit of `next`, and the end when that closes.
async fn in_steps(head: &'static str, chunk: &'static str, next: &Arc<Semaphore>) -> Origin {
    let next = next.clone();
    Origin::start(move |mut wire, _| {
        let next = next.clone();
        async move {
            wire.message().await;
            wire.send(head).await;
            while let Ok(permit) = next.acquire().await {
                permit.forget();
                wire.send(chunk).await;
            }
            wire.send("0\r\n\r\n").await;
            wire.message().await;
        }
    })
    .await
}

pub(super) async fn a_response_in_slow_chunks() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let next = Arc::new(Semaphore::new(0));
    let origin = in_steps(head, "5\r\nhello\r\n", &next).await;
    let (_rig, mut client) = visit(&origin).await;
    client.send(POST).await;
    assert_eq!(client.head().await.as_deref(), Some(head));
    for _ in 0..5 {
        // The next chunk is sent only when this one has arrived.
        next.add_permits(1);
        assert_eq!(client.take(10).await.unwrap(), b"5\r\nhello\r\n");
    }
    next.close();
    assert_eq!(client.take(5).await.unwrap(), b"0\r\n\r\n");
}

const EVENTS: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const EVENT: &str = "a\r\ndata: 1\n\n\n\r\n";

pub(super) async fn the_head_of_an_event_stream() {
    let origin = in_steps(EVENTS, EVENT, &Arc::new(Semaphore::new(0))).await;
    let (_rig, mut client) = visit(&origin).await;
    client.send(GET).await;
    let head = client.head().await.unwrap();
    assert!(head.contains("text/event-stream"), "{head}");
}

pub(super) async fn events_one_by_one() {
    let next = Arc::new(Semaphore::new(0));
    let origin = in_steps(EVENTS, EVENT, &next).await;
    let (_rig, mut client) = visit(&origin).await;
    client.send(GET).await;
    client.head().await.unwrap();
    for _ in 0..5 {
        next.add_permits(1);
        // The next event is sent only when this one has arrived.
        assert_eq!(client.take(EVENT.len()).await.unwrap(), EVENT.as_bytes());
    }
}

pub(super) async fn uploads_on_one_connection() {
    let begun = Arc::new(Semaphore::new(0));
    let begins = begun.clone();
    let origin = Origin::start(move |mut wire, _| {
        let begins = begins.clone();
        async move {
            loop {
                while !wire.buffer.ends_with(b"ok\r\n") {
                    if !wire.fill().await {
                        return;
                    }
                }
                begins.add_permits(1);
                wire.message().await;
                wire.send(OK).await;
            }
        }
    })
    .await;
    let (_rig, mut client) = visit(&origin).await;
    for _ in 0..10 {
        client
            .send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
            .await;
        // The end comes alone.
        begun.acquire().await.unwrap().forget();
        client.assert_served("0\r\n\r\n").await;
    }
    let ends = |request: &String| request.matches("0\r\n\r\n").count();
    assert!(origin.seen().iter().all(|request| ends(request) == 1));
    assert_eq!((origin.seen().len(), origin.used()), (10, 1));
}

pub(super) async fn a_413_before_the_body_was_read() {
    let refusal =
        "HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large";
    let origin = Origin::start(move |mut wire, _| async move {
        wire.head().await;
        wire.send(refusal).await;
        // As servers do that do not want a reset.
        wire.half_close().await;
        while wire.fill().await {
            wire.buffer.clear();
        }
    })
    .await;
    let (_rig, mut client) = visit(&origin).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n")
        .await;
    client.send(vec![b'x'; 8_000_000]).await;
    let (got, _) = client.rest().await;
    assert!(
        got.starts_with("HTTP/1.1 413 ") && got.ends_with("\r\n\r\ntoo large"),
        "{got}"
    );
}

pub(super) async fn a_post_whose_server_is_lost() {
    let origin = Origin::start(|mut wire, _| async move {
        wire.message().await;
        wire.stream.set_zero_linger().unwrap();
    })
    .await;
    let (_rig, mut client) = visit(&origin).await;
    client.send(POST).await;
    let got = client.message().await.unwrap();
    assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
    assert_eq!(origin.seen().len(), 1, "it ran once");
}

pub(super) async fn a_post_to_a_pod_that_is_gone() {
    let (gone, origin) = (Origin::ok().await, Origin::ok().await);
    let rig = scene(&gone, "").await;
    rig.endpoints(&[
        Ep::new("a", gone.scripted.address),
        Ep::new("b", origin.scripted.address),
    ]);
    rig.usable(2).await;
    drop(gone);
    // No manifest has changed yet.
    for _ in 0..20 {
        let mut client = Wire::connect(&rig).await;
        client.assert_served(POST).await;
    }
    assert_eq!(origin.seen().len(), 20, "each request ran once");
}

pub(super) async fn a_keep_alive_client_in_a_rollout() {
    let (old, new) = (Origin::ok().await, Origin::ok().await);
    let rig = scene(&old, "").await;
    let mut client = Wire::connect(&rig).await;
    client.assert_served(GET).await;
    rig.endpoints(&[
        Ep::new("a", old.scripted.address).terminating(),
        Ep::new("b", new.scripted.address),
    ]);
    // Each request is answered, before and after the change.
    while new.seen().len() < 20 {
        client.assert_served(GET).await;
    }
    assert_eq!(leases(&rig, old.scripted.address), 0);
}
