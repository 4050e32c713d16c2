//! What is bound to a connection stays on it (contract 1.13): an application that authenticates the
//! connection sees one client on it, and no other client is ever answered as that one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ebbtide::command::demo::client::{Client, Response};
use ebbtide::contract::reason::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::proxy::ask::get;
use crate::proxy::play::Open;
use crate::proxy::scripted::Scripted;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An application that logs connections on in two legs, as NTLM does: `SCHEME 1` is answered by a
/// challenge, and `SCHEME 3 NAME` on the same connection logs it on as NAME. From then on, each
/// request on the connection is answered by `NAME@ENDPOINT/CONNECTION`, whatever credentials it has.
struct Domain {
    scripted: Scripted,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Connections that have carried a request and have not ended.
    open: AtomicUsize,
    requests: AtomicUsize,
    drop: CancellationToken,
}

impl Domain {
    /// `offer` has the field lines of a 401 for a client that is not logged on.
    async fn start(name: &'static str, offer: &'static str) -> Self {
        let state = Arc::new(State::default());
        let of_script = state.clone();
        let scripted = Scripted::start(move |stream, number| {
            let (state, offer) = (of_script.clone(), offer.to_owned());
            async move {
                let place = format!("{name}/{number}");
                tokio::select! {
                    () = connection(stream, &place, &offer, &state) => {}
                    () = state.drop.cancelled() => {}
                }
            }
        })
        .await;
        Self { scripted, state }
    }

    fn address(&self) -> SocketAddr {
        self.scripted.address
    }

    fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }
}

async fn connection(mut stream: TcpStream, place: &str, offer: &str, state: &State) {
    let (mut challenged, mut user, mut open) = (false, None, None);
    let mut unread = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            if !matches!(stream.read_buf(&mut unread).await, Ok(1..)) {
                return;
            }
        };
        let rest = unread.split_off(end);
        let head = String::from_utf8(std::mem::replace(&mut unread, rest)).unwrap();
        open.get_or_insert_with(|| Open::count(&state.open));
        state.requests.fetch_add(1, Ordering::SeqCst);
        if head.contains(" /die ") && user.is_some() {
            return;
        }
        let leg = head.lines().find_map(|line| {
            let (field, value) = line.split_once(": ")?;
            let words = value.split(' ').skip(1).collect::<Vec<_>>();
            let field = field.to_ascii_lowercase();
            field.ends_with("authorization").then_some(words)
        });
        let more = match leg.as_deref() {
            Some(["1"]) => {
                challenged = true;
                "WWW-Authenticate: NTLM 2\r\n"
            }
            Some(["3", name]) if challenged => {
                user = Some((*name).to_owned());
                ""
            }
            _ => offer,
        };
        let (line, more, body) = match &user {
            Some(name) => ("200 OK", "", format!("{name}@{place}")),
            None => ("401 Unauthorized", more, format!("nobody@{place}")),
        };
        let length = body.len();
        let answer = format!("HTTP/1.1 {line}\r\n{more}Content-Length: {length}\r\n\r\n{body}");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

const NTLM: &str = "WWW-Authenticate: NTLM\r\n";

async fn ask(client: &mut Client, headers: &str) -> Response {
    soon("a response", client.exchange("GET", "/", headers, b""))
        .await
        .unwrap()
}

/// Both legs of a login. Returns the connection to the endpoint that it was made on.
async fn log_on(client: &mut Client, field: &str, scheme: &str, name: &str) -> String {
    let first = ask(client, &format!("{field}: {scheme} 1\r\n")).await;
    assert_eq!(
        first.header("www-authenticate"),
        Some("NTLM 2"),
        "{first:?}"
    );
    let second = ask(client, &format!("{field}: {scheme} 3 {name}\r\n")).await;
    let text = second.text().into_owned();
    assert_eq!(
        second.status, 200,
        "the legs of {name}'s login were parted: {text}"
    );
    let (user, place) = text.split_once('@').unwrap();
    assert_eq!(user, name);
    place.to_owned()
}

async fn rig_of(domains: &[&Domain], more: &str) -> Rig {
    let rig = Rig::start(more).await;
    let endpoints: Vec<Ep> = ["a", "b", "c"]
        .into_iter()
        .zip(domains)
        .map(|(name, domain)| Ep::new(name, domain.address()))
        .collect();
    rig.endpoints(&endpoints);
    rig.usable(domains.len()).await;
    rig
}

/// With three replicas, every login must find its own connection again, and a client that has not
/// logged on must never be answered as another.
#[tokio::test]
async fn nobody_is_answered_as_another_client_and_no_login_is_parted() {
    let (a, b, c) = (
        Domain::start("a", NTLM).await,
        Domain::start("b", NTLM).await,
        Domain::start("c", NTLM).await,
    );
    let rig = rig_of(&[&a, &b, &c], "").await;
    let mut logged_on = Vec::new();
    for (number, (field, scheme)) in [
        ("Authorization", "NTLM"),
        ("authorization", "negotiate"),
        ("Proxy-Authorization", "Negotiate"),
        ("Authorization", "Nego2"),
        ("Authorization", "Kerberos"),
        ("Authorization", "CredSSP"),
    ]
    .into_iter()
    .cycle()
    .take(18)
    .enumerate()
    {
        let mut client = Client::connect(rig.web()).await.unwrap();
        let name = format!("user{number}");
        let place = log_on(&mut client, field, scheme, &name).await;
        for _ in 0..3 {
            let mut stranger = Client::connect(rig.web()).await.unwrap();
            let answer = get(&mut stranger).await;
            assert_eq!(answer.status, 401, "answered as {}", answer.text());
        }
        assert_eq!(get(&mut client).await.text(), format!("{name}@{place}"));
        logged_on.push((client, name, place));
    }
    // Their connections are theirs for as long as they stay.
    for (client, name, place) in &mut logged_on {
        assert_eq!(get(client).await.text(), format!("{name}@{place}"));
    }
    // Nobody gets a connection after its client either.
    drop(logged_on);
    eventually("the endpoints see the clients' ends", async || {
        [&a, &b, &c]
            .iter()
            .map(|domain| domain.open())
            .sum::<usize>()
            == 0
    })
    .await;
}

/// Requests that are sent without waiting for the responses are legs like any others.
#[tokio::test]
async fn pipelined_legs_stay_on_one_connection() {
    let (a, b) = (
        Domain::start("a", NTLM).await,
        Domain::start("b", NTLM).await,
    );
    let rig = rig_of(&[&a, &b], "").await;
    let legs = [
        "Authorization: NTLM 1\r\n",
        "Authorization: NTLM 3 me\r\n",
        "",
    ];
    let request: String = legs
        .iter()
        .map(|leg| format!("GET / HTTP/1.1\r\nHost: x\r\n{leg}\r\n"))
        .collect();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(rig.web()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        while text.matches("me@").count() < 2 {
            let mut bytes = [0; 4096];
            let n = soon("two answers as me", stream.read(&mut bytes))
                .await
                .unwrap();
            text.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
            assert!(n > 0 && text.matches("nobody@").count() < 2, "{text}");
        }
    }
}

/// The offer alone binds, in whatever form it comes. Other schemes bind nothing.
#[tokio::test]
async fn an_offer_to_log_the_connection_on_makes_it_its_clients_own() {
    for (offer, binds) in [
        (NTLM, true),
        ("www-authenticate: negotiate\r\n", true),
        ("Proxy-Authenticate: NTLM\r\n", true),
        (
            "WWW-Authenticate: Basic realm=\"a, b\", ntlm ,Digest x=y\r\n",
            true,
        ),
        (
            "WWW-Authenticate: Basic realm=x\r\nWWW-Authenticate:Negotiate oRQwEg==\r\n",
            true,
        ),
        ("WWW-Authenticate: Basic realm=NTLM\r\n", false),
        (
            "WWW-Authenticate: Bearer, Digest realm=\"Negotiate\"\r\n",
            false,
        ),
        ("X-Authenticate: NTLM\r\n", false),
    ] {
        let domain = Domain::start("a", offer).await;
        let rig = rig_of(&[&domain], "").await;
        // Twelve clients on two workers: without a tie, some share a connection.
        let (mut clients, mut places) = (Vec::new(), BTreeSet::new());
        for _ in 0..12 {
            let mut client = Client::connect(rig.web()).await.unwrap();
            let place = get(&mut client).await.text().into_owned();
            places.insert(place.clone());
            clients.push((client, place));
        }
        assert_eq!(places.len() == clients.len(), binds, "{offer:?} {places:?}");
        if binds {
            for (client, place) in &mut clients {
                assert_eq!(get(client).await.text(), *place, "{offer:?}");
            }
        }
    }
}

/// A client that is logged on goes on with its endpoint until the drain deadline. Until then the
/// endpoint is not drained. The client's own connection stays.
#[tokio::test]
async fn a_login_lasts_until_the_drain_deadline_and_the_drain_waits_for_it() {
    let (a, b) = (
        Domain::start("a", NTLM).await,
        Domain::start("b", NTLM).await,
    );
    let rig = Rig::start("").await;
    rig.pod("a", "v1", None);
    rig.endpoints(&[Ep::new("a", a.address()).of_pod()]);
    rig.usable(1).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    let place = log_on(&mut client, "Authorization", "NTLM", "me").await;
    let mut other = Client::connect(rig.web()).await.unwrap();
    let others = log_on(&mut other, "Authorization", "NTLM", "other").await;
    assert_ne!(place, others);

    rig.pod("a", "v1", Some(3600));
    rig.endpoints(&[Ep::new("b", b.address())]);
    eventually("the drain", async || {
        rig.running().is_settled() && rig.receipts().len() == 1
    })
    .await;
    let mut third = Client::connect(rig.web()).await.unwrap();
    assert!(get(&mut third).await.text().starts_with("nobody@b/"));
    for _ in 0..3 {
        assert_eq!(get(&mut client).await.text(), format!("me@{place}"));
    }
    let receipt = &rig.receipts()[0];
    assert_eq!((receipt.in_flight, receipt.ended.is_none()), (2, true));

    drop(other);
    eventually("one less", async || rig.receipts()[0].in_flight == 1).await;
    assert_eq!(get(&mut client).await.text(), format!("me@{place}"));
    rig.pod("a", "v1", Some(0));
    eventually("the deadline", async || rig.receipts()[0].ended.is_some()).await;
    let receipt = &rig.receipts()[0];
    assert_eq!(receipt.ended.unwrap().1, Outcome::Forced);
    assert_eq!((receipt.forced, receipt.finished), (1, 4));
    eventually("the endpoint sees the end", async || a.open() == 0).await;
    assert!(get(&mut client).await.text().starts_with("nobody@b/"));
}

/// A client that was only offered a login loses nothing with its connection: its next request goes
/// to another endpoint, and it holds up no drain.
#[tokio::test]
async fn an_offer_holds_up_no_drain() {
    let (a, b) = (
        Domain::start("a", NTLM).await,
        Domain::start("b", NTLM).await,
    );
    let rig = rig_of(&[&a], "timeouts: {drain: 1h}").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(rig.web()).await.unwrap();
        assert!(get(&mut client).await.text().starts_with("nobody@a/"));
        clients.push(client);
    }
    rig.endpoints(&[Ep::new("b", b.address())]);
    eventually("drained", async || {
        rig.receipts().iter().any(|it| it.ended.is_some())
    })
    .await;
    assert_eq!(rig.receipts()[0].ended.unwrap().1, Outcome::Drained);
    eventually("the connections are closed", async || a.open() == 0).await;
    for client in &mut clients {
        assert!(get(client).await.text().starts_with("nobody@b/"));
    }
}

/// The endpoint ends the connection, between two requests or with one in flight: the login is over,
/// and the client logs on again on the same connection of its own.
#[tokio::test]
async fn a_lost_connection_ends_the_login_and_costs_the_client_no_connection() {
    let domain = Domain::start("a", NTLM).await;
    let rig = rig_of(&[&domain], "").await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    for (method, status, ran) in [("GET", 401, 2), ("POST", 502, 1)] {
        log_on(&mut client, "Authorization", "NTLM", "me").await;
        let before = domain.requests();
        let lost = client.exchange(method, "/die", "", b"");
        let lost = soon("an answer", lost).await.unwrap();
        assert_eq!(lost.status, status, "{method} {}", lost.text());
        assert_eq!(domain.requests() - before, ran, "{method}");
        assert_eq!(get(&mut client).await.status, 401, "{method}");
    }
    log_on(&mut client, "Authorization", "NTLM", "me").await;
    domain.state.drop.cancel();
    eventually("no lease is left", async || {
        let snapshot = rig.running().admin.snapshot.load();
        let endpoints = snapshot
            .ports
            .values()
            .flat_map(|port| port.usable.iter().cloned());
        endpoints.map(|endpoint| endpoint.leases()).sum::<u64>() == 0
    })
    .await;
}
