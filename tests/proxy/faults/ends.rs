//! The second table: how a connection ends whose endpoint dies in the middle of what it sends. Each
//! row is one kind of connection and one manner of death. A seed decides how much there is, how
//! slowly the client reads, whether bytes of the client still wait for the endpoint, and what the
//! source of truth reports meanwhile.
//!
//! The promise: nothing that the source reports costs a living connection anything, every byte that
//! came from the endpoint arrives, and the end after it is what it was.

use std::io::ErrorKind;
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use super::seeds;
use crate::proxy::parting::{decode, deliver, die, slowly};
use crate::proxy::tcp::{Station, known, send_until_blocked, to_end};
use crate::support::folder::Ep;
use crate::support::manifests::service;
use crate::support::rig::Rig;
use crate::support::wait::eventually;

macro_rules! rows {
    ($($row:ident: $kind:ident, $by_reset:literal;)*) => {
        $(#[tokio::test]
        async fn $row() {
            row(stringify!($row), Kind::$kind, $by_reset).await;
        })*
    };
}

rows! {
    tcp_fin: Tcp, false;
    tcp_reset: Tcp, true;
    tunnel_fin: Tunnel, false;
    tunnel_reset: Tunnel, true;
    until_close_fin: UntilClose, false;
    until_close_reset: UntilClose, true;
    counted_fin: Counted, false;
    counted_reset: Counted, true;
    chunked_fin: Chunked, false;
    chunked_reset: Chunked, true;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Tunnel,
    /// A response to a client of HTTP/1.0, which ends with its connection.
    UntilClose,
    Counted,
    Chunked,
}

/// What the source reports while the connection is in use.
#[derive(Debug, Clone, Copy)]
pub(super) enum Report {
    Nothing,
    NotReady,
    Terminating,
    /// The Service is deleted and created again, with another UID.
    ServiceRecreated,
    /// Another pod has the endpoint's address.
    AddressReused,
    /// A stream of changes of another endpoint.
    Busy,
}

impl Report {
    pub(super) fn any(rng: &mut Rng) -> Self {
        [
            Self::Nothing,
            Self::NotReady,
            Self::Terminating,
            Self::ServiceRecreated,
            Self::AddressReused,
            Self::Busy,
        ][rng.usize(..6)]
    }
}

async fn row(name: &str, kind: Kind, by_reset: bool) {
    let lanes = (0..super::LANES).map(|lane| async move {
        let mut count = 0;
        let mut station = Station::start().await;
        let protocol = if kind == Kind::Tcp { "tcp" } else { "http" };
        let rig = Rig::with_protocol(protocol, "").await;
        for seed in seeds().filter(|seed| seed % super::LANES == lane) {
            let row = format!("EBBTIDE_SEED={seed} cargo test --test proxy faults::ends::{name}");
            play(&rig, &mut station, kind, by_reset, seed, &row).await;
            count += 1;
        }
        count
    });
    let counts: Vec<u64> = futures::future::join_all(lanes).await;
    let seeds: u64 = counts.iter().sum();
    assert!(seeds > 0);
    println!("FIGURE faults ends {name}: {seeds} seeds, every byte and the right end");
}

async fn play(
    rig: &Rig,
    station: &mut Station,
    kind: Kind,
    by_reset: bool,
    seed: u64,
    again: &str,
) {
    let mut rng = Rng::with_seed(seed);
    let name = format!("s{seed}");
    let ep = begin(rig, station, &name).await;
    let socket = TcpSocket::new_v4().unwrap();
    let slow = rng.bool();
    if slow {
        socket.set_recv_buffer_size(4 << 10).unwrap();
    }
    let mut client = socket.connect(rig.web()).await.unwrap();
    // Only a connection that dies by a reset: unread bytes would turn a FIN into one.
    let blocked = by_reset && rng.bool();
    client
        .write_all(request(kind, blocked).as_bytes())
        .await
        .unwrap();
    let (mut endpoint, _) = station.next().await;
    if blocked {
        send_until_blocked(&mut client).await;
    }
    let length = [1, 5_000, 120_000, 700_000][rng.usize(..4)];
    let bytes: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
    let (first, second) = bytes.split_at(rng.usize(..length));
    let report = Report::any(&mut rng);
    let wait = Duration::from_millis([0, 1, 30][rng.usize(..3)]);
    let serve = async {
        let head = answer(kind, length);
        deliver(&mut endpoint, &[head.as_bytes(), first].concat()).await;
        tell(rig, &ep, &name, report).await;
        tokio::time::sleep(wait).await;
        deliver(&mut endpoint, second).await;
        if by_reset {
            die(endpoint, true);
        } else {
            endpoint.shutdown().await.unwrap();
            // Unread bytes would turn the FIN into a reset.
            to_end(&mut endpoint).await;
        }
    };
    let read = async {
        let read = match slow {
            true => slowly(&mut client).await,
            false => to_end(&mut client).await,
        };
        drop(client);
        read
    };
    let ((got, end), ()) = tokio::join!(read, serve);
    let got = match kind {
        Kind::Tcp => got,
        _ => body_of(&got, again),
    };
    let (got, whole) = match kind {
        Kind::Chunked => decode(&got),
        _ => (got, false),
    };
    assert!(
        got == bytes && !whole,
        "{again}: {} of {length} bytes, {report:?}, slow {slow}, blocked {blocked}",
        got.len()
    );
    let framed = matches!(kind, Kind::Counted | Kind::Chunked);
    let expected = (by_reset && !framed).then_some(ErrorKind::ConnectionReset);
    assert_eq!(
        end, expected,
        "{again}: {report:?}, slow {slow}, blocked {blocked}"
    );
    end_of(rig, &ep, &name).await;
}

/// Reports the Service, a pod and its endpoint at the station, and waits until it is in rotation.
pub(super) async fn begin(rig: &Rig, station: &Station, name: &str) -> Ep {
    write_service(rig, name);
    rig.pod(name, "1", None);
    let ep = station.ep(name).of_pod();
    rig.endpoints(std::slice::from_ref(&ep));
    // The endpoint before it, at the same address, may serve as the last resort until this one has
    // joined. Its deadline is not this row's.
    eventually("the endpoint", async || {
        let snapshot = rig.running().admin.snapshot.load();
        let mut ports = snapshot.ports.values();
        ports.any(|port| {
            port.usable.iter().any(|it| {
                let pod = it.pod.as_deref().map(|pod| &*pod.name);
                pod == Some(&*ep.name) && it.leases() == 0
            })
        })
    })
    .await;
    ep
}

/// Takes the pod and its endpoint away, and waits until nothing of them is left.
pub(super) async fn end_of(rig: &Rig, ep: &Ep, name: &str) {
    rig.endpoints(&[]);
    rig.remove(&format!("pod-{name}.json"));
    eventually("the lease returned", async || {
        known(rig, ep.address).is_none_or(|it| it.leases() == 0)
    })
    .await;
    rig.usable(0).await;
}

/// What comes after the head.
pub(super) fn body_of(message: &[u8], again: &str) -> Vec<u8> {
    let head = message.windows(4).position(|it| it == b"\r\n\r\n");
    message[head.unwrap_or_else(|| panic!("{again}: no head")) + 4..].to_vec()
}

fn request(kind: Kind, blocked: bool) -> String {
    let body = match blocked {
        true => "Content-Length: 1000000000\r\n",
        false => "",
    };
    let method = if blocked { "POST" } else { "GET" };
    match kind {
        Kind::Tcp => "!".into(),
        Kind::Tunnel => {
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n".into()
        }
        Kind::UntilClose => format!("{method} / HTTP/1.0\r\nHost: a\r\n{body}\r\n"),
        Kind::Counted | Kind::Chunked => format!("{method} / HTTP/1.1\r\nHost: a\r\n{body}\r\n"),
    }
}

/// The head of an answer that will not be whole. Of a chunked one, one long chunk begins.
fn answer(kind: Kind, length: usize) -> String {
    let fields = match kind {
        Kind::Tcp => return String::new(),
        Kind::Tunnel => {
            return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
                .into();
        }
        Kind::UntilClose => "Connection: close\r\n\r\n".into(),
        Kind::Counted => format!("Content-Length: {}\r\n\r\n", length + 20_000),
        Kind::Chunked => format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", length + 1),
    };
    format!("HTTP/1.1 200 OK\r\n{fields}")
}

fn write_service(rig: &Rig, uid: &str) {
    let mut object = service("shop", json!({}));
    object["metadata"]["uid"] = json!(uid);
    rig.write("service.json", &object);
}

/// Reports it, and waits until the proxy has taken it in, where that can be seen.
pub(super) async fn tell(rig: &Rig, ep: &Ep, name: &str, report: Report) {
    let endpoint = known(rig, ep.address).unwrap();
    match report {
        Report::Nothing => {}
        Report::NotReady => {
            rig.endpoints(&[ep.clone().not_ready()]);
            eventually("out of rotation", async || !endpoint.is_open()).await;
        }
        Report::Terminating => {
            rig.endpoints(&[ep.clone().terminating()]);
            rig.pod(name, "1", Some(60));
            // The only endpoint goes on as the last resort.
            let told = async || endpoint.is_draining() || endpoint.conditions().terminating;
            eventually("the signal", told).await;
        }
        Report::ServiceRecreated => {
            rig.remove("service.json");
            write_service(rig, &format!("{name}-again"));
        }
        Report::AddressReused => {
            rig.pod(name, "1", Some(60));
            let other = format!("{name}-other");
            rig.pod(&other, "1", None);
            rig.endpoints(&[Ep::new(&other, ep.address).of_pod()]);
            let told = async || endpoint.is_draining() || endpoint.conditions().terminating;
            eventually("the signal", told).await;
            rig.remove(&format!("pod-{other}.json"));
        }
        Report::Busy => {
            let mut other = Ep::new(&format!("{name}-other"), "127.0.0.1:1".parse().unwrap());
            for round in 0..20 {
                other.ready = round % 2 == 0;
                rig.endpoints(&[ep.clone(), other.clone()]);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}
