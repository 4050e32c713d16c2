//! An endpoint that vanishes without a FIN or a reset (contract 2.4): it runs in a network
//! namespace of its own, and its packets are lost.
//!
//! The namespace has no name, so it ends with the process in it. That process dies with this one,
//! whatever happens.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ebbtide::command::demo::client::Client;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;

use crate::proxy::scripted::Scripted;
use crate::proxy::tcp::{known, send_until_blocked, to_end};
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// A sample application that seems to be on another node.
struct Island {
    process: Child,
    device: String,
    address: SocketAddr,
}

static ISLANDS: AtomicU32 = AtomicU32::new(0);

impl Island {
    /// `Err` says what this machine does not allow.
    async fn start(more: &[&str]) -> Result<Self, String> {
        // 198.18.0.0/15 is for tests of network devices (RFC 2544).
        let number = ISLANDS.fetch_add(1, Ordering::SeqCst) + std::process::id() % 4000 * 4;
        let [a, b] = [(number >> 6) as u8, (number << 2) as u8];
        let (ours, theirs) = (
            format!("198.18.{a}.{}", b | 1),
            format!("198.18.{a}.{}", b | 2),
        );
        let device = format!("ebb{number}");
        let mut command = tokio::process::Command::new("unshare");
        command.arg("--net").arg(BINARY);
        command
            .args([
                "sample-app",
                "--parent",
                &std::process::id().to_string(),
                "--listen",
                "0.0.0.0:8080",
            ])
            .args(more);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut process = command
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let pid = process.id().unwrap().to_string();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        match soon("the application", lines.next_line()).await {
            Ok(Some(line)) if line.starts_with("listening") => {}
            other => return Err(format!("unshare --net is not allowed here ({other:?})")),
        }
        let inside = ["nsenter", "--net", "--target", &pid];
        // This keeps a closed socket from holding the namespace for minutes. Where it is not
        // allowed, the namespace stays that long.
        let orphans = ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_orphan_retries"];
        let _ = run(&[&inside[..], &orphans].concat());
        run(&[
            "ip", "link", "add", &device, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ])?;
        let address = format!("{theirs}:8080").parse().unwrap();
        let island = Self {
            process,
            device: device.clone(),
            address,
        };
        run(&["ip", "addr", "add", &format!("{ours}/30"), "dev", &device])?;
        run(&["ip", "link", "set", &device, "up"])?;
        run(&[
            &inside[..],
            &["ip", "addr", "add", &format!("{theirs}/30"), "dev", "eth0"],
        ]
        .concat())?;
        run(&[&inside[..], &["ip", "link", "set", "eth0", "up"]].concat())?;
        eventually("the island's application", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await;
        Ok(island)
    }

    /// From now on all packets to the endpoint are lost. The link stays, but its other end no
    /// longer has the address.
    fn vanish(&self) {
        let pid = self.process.id().unwrap().to_string();
        run(&[
            "nsenter", "--net", "--target", &pid, "ip", "addr", "flush", "dev", "eth0",
        ])
        .unwrap();
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        let _ = run(&["ip", "link", "del", &self.device]);
    }
}

fn run(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .map_err(|error| format!("{}: {error}", words[0]))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// The island for `test`, or `None` after a line that says why there is none.
async fn island(test: &str, more: &[&str]) -> Option<Island> {
    match Island::start(more).await {
        Ok(island) => Some(island),
        Err(why) => {
            println!("SKIPPED: {test}: {why}");
            None
        }
    }
}

/// An endpoint that answers 200 with `b`.
async fn answering() -> Scripted {
    Scripted::start(|mut stream: TcpStream, _| async move {
        while let Ok(1..) = stream.read(&mut [0; 4096]).await {
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb")
                .await
                .is_err()
            {
                return;
            }
        }
    })
    .await
}

/// A GET is in flight on an endpoint that vanishes. Returns how long another endpoint then took to
/// answer it. `test` is the name of the test.
async fn answered_after(test: &str, pod_deleted: bool) -> Option<Duration> {
    let island = island(test, &[]).await?;
    let b = answering().await;
    let rig = Rig::start("").await;
    rig.pod("lost", "1", None);
    rig.pod("b", "2", None);
    rig.endpoints(&[Ep::new("lost", island.address).of_pod()]);
    rig.usable(1).await;
    let web = rig.web();
    let asked = tokio::spawn(async move {
        let mut client = Client::connect(web).await.unwrap();
        let answer = soon(
            "a response",
            client.exchange("GET", "/slow?ms=600000", "", b""),
        )
        .await
        .unwrap();
        (answer, Instant::now())
    });
    let lost = known(&rig, island.address).unwrap();
    eventually("in flight", async || lost.leases() == 1).await;
    rig.endpoints(&[
        Ep::new("lost", island.address).of_pod(),
        Ep::new("b", b.address).of_pod(),
    ]);
    rig.usable(2).await;
    island.vanish();
    let vanished = Instant::now();
    if pod_deleted {
        // As when a node is removed: the object is gone, and no grace period was ever reported.
        rig.remove("pod-lost.json");
        rig.endpoints(&[Ep::new("b", b.address).of_pod()]);
    }
    let (answer, at) = asked.await.unwrap();
    assert_eq!(
        (answer.status, answer.text().into_owned()),
        (200, "b".into())
    );
    Some(at - vanished)
}

#[tokio::test]
async fn a_request_on_an_endpoint_that_vanished_is_replayed_and_sooner_if_its_pod_is_deleted() {
    let test =
        "a_request_on_an_endpoint_that_vanished_is_replayed_and_sooner_if_its_pod_is_deleted";
    let (known, unknown) = tokio::join!(answered_after(test, true), answered_after(test, false));
    if let (Some(known), Some(unknown)) = (known, unknown) {
        println!("vanished: answered after {unknown:?}, and with its Pod deleted after {known:?}");
        assert!(
            known < unknown,
            "{known:?} with the Pod deleted, {unknown:?} without"
        );
        assert!(known < Duration::from_secs(8), "{known:?}");
    }
}

#[tokio::test]
async fn a_tcp_connection_to_an_endpoint_that_vanished_ends_by_a_reset() {
    for talking in [false, true] {
        let test = "a_tcp_connection_to_an_endpoint_that_vanished_ends_by_a_reset";
        let Some(island) = island(test, &["--tcp"]).await else {
            return;
        };
        let rig = Rig::with_protocol("tcp", "").await;
        rig.pod("lost", "1", None);
        rig.endpoints(&[Ep::new("lost", island.address).of_pod()]);
        rig.usable(1).await;
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        soon("the echo", client.read_exact(&mut [0; 5]))
            .await
            .unwrap();
        island.vanish();
        let vanished = Instant::now();
        rig.remove("pod-lost.json");
        rig.endpoints(&[]);
        if talking {
            client.write_all(b"anybody there?").await.unwrap();
        }
        assert_eq!(
            to_end(&mut client).await,
            (Vec::new(), Some(ErrorKind::ConnectionReset))
        );
        println!(
            "vanished with its Pod (talking: {talking}): reset after {:?}",
            vanished.elapsed()
        );
        eventually("the receipt", async || {
            rig.receipts().iter().all(|r| r.ended.is_some())
        })
        .await;
    }
}

/// Connects through the proxy to the island, whose application echoes, and waits for an echo.
async fn echoing(rig: &Rig) -> TcpStream {
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    soon("the echo", client.read_exact(&mut [0; 5]))
        .await
        .unwrap();
    client
}

async fn echo_island(test: &str) -> Option<(Island, Rig)> {
    let island = island(test, &["--tcp"]).await?;
    let rig = Rig::with_protocol("tcp", "timeouts: {upstreamSilence: 1s}").await;
    rig.pod("lost", "1", None);
    rig.endpoints(&[Ep::new("lost", island.address).of_pod()]);
    rig.usable(1).await;
    Some((island, rig))
}

/// How many connections to this address are established (`/proc/net/tcp`).
fn established(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else {
        return 0;
    };
    let ip = u32::from_ne_bytes(address.ip().octets());
    let mark = format!("{ip:08X}:{:04X} 01 ", address.port());
    let all = std::fs::read_to_string("/proc/net/tcp").unwrap();
    all.lines().filter(|line| line.contains(&mark)).count()
}

/// What the endpoint had sent is delivered first.
#[tokio::test]
async fn an_endpoint_that_vanishes_behind_its_closed_window_is_given_up() {
    let test = "an_endpoint_that_vanishes_behind_its_closed_window_is_given_up";
    let Some((island, rig)) = echo_island(test).await else {
        return;
    };
    let mut client = echoing(&rig).await;
    // The echo is not read, so the island closes its window.
    send_until_blocked(&mut client).await;
    island.vanish();
    let (got, end) = to_end(&mut client).await;
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    assert!(!got.is_empty() && got.iter().all(|byte| *byte == b'x'));
}

/// A full accept queue ignores what comes on a connection that the client takes for established. So
/// an endpoint that has acknowledged nothing yet gets more time.
#[tokio::test]
async fn an_endpoint_that_has_acknowledged_no_byte_yet_gets_more_time() {
    let test = "an_endpoint_that_has_acknowledged_no_byte_yet_gets_more_time";
    let Some((island, rig)) = echo_island(test).await else {
        return;
    };
    let mut known = echoing(&rig).await;
    let mut fresh = TcpStream::connect(rig.web()).await.unwrap();
    eventually("both connected", async || established(island.address) == 2).await;
    island.vanish();
    known.write_all(b"anybody there?").await.unwrap();
    fresh.write_all(b"anybody there?").await.unwrap();
    let reset = (Vec::new(), Some(ErrorKind::ConnectionReset));
    assert_eq!(to_end(&mut known).await, reset);
    let early = fresh.try_read(&mut [0]);
    assert_eq!(early.unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(to_end(&mut fresh).await, reset);
}
