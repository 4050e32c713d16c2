//! The third table: an endpoint takes nothing for a while, and goes on. Each row is one kind of
//! connection. A seed decides how much the client sends, how long the endpoint's window stays closed
//! (shorter or longer than `timeouts.upstreamSilence`), and what the source of truth reports
//! meanwhile.
//!
//! The promise: an endpoint that is alive is not cut. Every byte arrives, and so does its answer.

use std::time::Duration;

use fastrand::Rng;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::ends::{Report, begin, body_of, end_of, tell};
use super::seeds;
use crate::proxy::tcp::Station;
use crate::support::rig::Rig;
use crate::support::wait::soon;

#[tokio::test]
async fn tcp() {
    row("tcp", Kind::Tcp).await;
}

#[tokio::test]
async fn tunnel() {
    row("tunnel", Kind::Tunnel).await;
}

#[tokio::test]
async fn upload() {
    row("upload", Kind::Upload).await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Tunnel,
    /// A request with a counted body.
    Upload,
}

async fn row(name: &str, kind: Kind) {
    let lanes = (0..super::LANES).map(|lane| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&listener)
            .set_recv_buffer_size(8 << 10)
            .unwrap();
        let mut station = Station::on(listener);
        let protocol = if kind == Kind::Tcp { "tcp" } else { "http" };
        let rig = Rig::with_protocol(protocol, "timeouts: {upstreamSilence: 1s}").await;
        let mut closed = 0;
        for seed in seeds().filter(|seed| seed % super::LANES == lane) {
            let row = format!("EBBTIDE_SEED={seed} cargo test --test proxy faults::window::{name}");
            closed += u64::from(play(&rig, &mut station, kind, seed, &row).await);
        }
        closed
    });
    let closed: Vec<u64> = futures::future::join_all(lanes).await;
    let (closed, seeds) = (closed.iter().sum::<u64>(), seeds().count());
    assert!(closed > 0 || seeds < 20, "no window was ever closed");
    println!(
        "FIGURE faults window {name}: {seeds} seeds, {closed} closed for longer than the silence \
         that is allowed, every byte and every answer"
    );
}

/// Returns whether the window was closed for longer than an endpoint may be silent.
async fn play(rig: &Rig, station: &mut Station, kind: Kind, seed: u64, again: &str) -> bool {
    let mut rng = Rng::with_seed(seed);
    let name = format!("s{seed}");
    let ep = begin(rig, station, &name).await;
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    let length = [1, 30_000, 1 << 20, 24 << 20][rng.usize(..4)];
    client
        .write_all(request(kind, length).as_bytes())
        .await
        .unwrap();
    let (mut endpoint, first) = station.next().await;
    let mut begun = match kind {
        Kind::Tcp => first[1..].to_vec(),
        _ => body_of(&first, again),
    };
    if kind == Kind::Tunnel {
        endpoint.write_all(SWITCH).await.unwrap();
        let mut head = vec![0; SWITCH.len()];
        soon("the tunnel", client.read_exact(&mut head))
            .await
            .unwrap();
    }
    let pause = Duration::from_millis([0, 100, 1_500, 3_000][rng.usize(..4)]);
    let report = Report::any(&mut rng);
    let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..))
        .take(length.min(1 << 20))
        .collect();
    let (mut read, mut write) = client.split();
    let send = async {
        let mut left = length;
        while left > 0 {
            let some = &bytes[..left.min(bytes.len())];
            write.write_all(some).await.unwrap_or_else(|error| {
                panic!("{again}: {left} of {length} left, {report:?}, {pause:?}: {error}")
            });
            left -= some.len();
        }
    };
    let serve = async {
        tell(rig, &ep, &name, report).await;
        tokio::time::sleep(pause).await;
        let mut some = vec![0; 64 << 10];
        let (mut got, mut right) = (0, true);
        loop {
            right &= begun
                .iter()
                .zip(got..)
                .all(|(byte, at)| *byte == bytes[at % bytes.len()]);
            got += begun.len();
            if got >= length {
                break;
            }
            let n = endpoint.read(&mut some).await.unwrap_or(0);
            assert!(
                n > 0,
                "{again}: {got} of {length} came, {report:?}, {pause:?}"
            );
            begun.clear();
            begun.extend_from_slice(&some[..n]);
        }
        assert!(
            right && got == length,
            "{again}: {got} of {length} bytes, right: {right}"
        );
        endpoint.write_all(answer(kind)).await.unwrap();
    };
    let mut came = vec![0; answer(kind).len()];
    let all = async {
        tokio::join!(send, serve);
        read.read_exact(&mut came).await.unwrap();
    };
    soon("every byte and the answer", all).await;
    assert!(came.ends_with(b"ok"), "{again}: {report:?}");
    drop((client, endpoint));
    end_of(rig, &ep, &name).await;
    // What fits into the buffers on the way leaves no window closed.
    length > 20 << 20 && pause > Duration::from_secs(1)
}

const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";

fn request(kind: Kind, length: usize) -> String {
    match kind {
        Kind::Tcp => "!".into(),
        Kind::Tunnel => {
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n".into()
        }
        Kind::Upload => format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"),
    }
}

fn answer(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Tcp | Kind::Tunnel => b"ok",
        Kind::Upload => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    }
}
