//! What a drain leaves for people: one line in the log of a real process, a rollout receipt, and
//! the drain's place on the status page. The counts must be those of the exchanges that were in
//! flight. The drain itself is tested in `drain.rs`.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ebbtide::command::demo::client::{Client, Failure, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::proxy::scripted::Scripted;
use crate::support::folder::Ep;
use crate::support::process::Process;
use crate::support::wait::{eventually, soon};

/// An endpoint that answers `/quick` immediately, `/gate` when the gate opens, and everything else
/// never.
async fn app(gate: Arc<Semaphore>, arrived: Arc<AtomicUsize>) -> Scripted {
    Scripted::start(move |mut stream: TcpStream, _| {
        let (gate, arrived) = (gate.clone(), arrived.clone());
        async move {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buf).await {
                arrived.fetch_add(1, Ordering::SeqCst);
                let request = String::from_utf8_lossy(&buf[..n]);
                if request.starts_with("GET /gate") {
                    let _ = gate.acquire().await;
                } else if !request.starts_with("GET /quick") {
                    std::future::pending::<()>().await;
                }
                if stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    })
    .await
}

/// Two endpoints, one of which drains with three exchanges in flight: one that the gate ends, one
/// that may be replayed, and one that may not.
struct Scene {
    process: Process,
    leaver: Scripted,
    other: Scripted,
    gate: Arc<Semaphore>,
    in_flight: Vec<tokio::task::JoinHandle<Result<Response, Failure>>>,
}

async fn draining(drain: &str) -> Scene {
    let (gate, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let leaver = app(gate.clone(), arrived.clone()).await;
    let other = Scripted::start(|mut stream: TcpStream, _| async move {
        let mut buf = [0; 4096];
        while let Ok(1..) = stream.read(&mut buf).await {
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
                .await
                .is_err()
            {
                return;
            }
        }
    })
    .await;
    let ep = Ep::new("leaver", leaver.address).of_pod();
    let process = Process::start(
        "http",
        std::slice::from_ref(&ep),
        &format!("timeouts: {{drain: {drain}}}"),
    )
    .await;
    let web = process.web();
    let mut in_flight = Vec::new();
    for (method, path) in [("GET", "/gate"), ("GET", "/never"), ("POST", "/never")] {
        in_flight.push(tokio::spawn(async move {
            soon(
                "a response",
                Client::connect(web)
                    .await
                    .unwrap()
                    .exchange(method, path, "", b""),
            )
            .await
        }));
    }
    eventually("three requests", async || {
        arrived.load(Ordering::SeqCst) == 3
    })
    .await;
    // Leaves an idle connection to the endpoint behind.
    soon(
        "a response",
        Client::connect(web)
            .await
            .unwrap()
            .exchange("GET", "/quick", "", b""),
    )
    .await
    .unwrap();
    process
        .folder
        .endpoints(&[ep.clone(), Ep::new("other", other.address)]);
    process.ready(2).await;
    process
        .folder
        .endpoints(&[ep.terminating(), Ep::new("other", other.address)]);
    eventually("a drain", async || {
        !process.json("/api/v1/drains").await["running"]
            .as_array()
            .unwrap()
            .is_empty()
    })
    .await;
    Scene {
        process,
        leaver,
        other,
        gate,
        in_flight,
    }
}

#[tokio::test]
async fn a_drain_ends_in_one_log_line_with_all_its_counts() {
    let scene = draining("1s").await;
    scene.gate.add_permits(1);
    let mut answers = Vec::new();
    for exchange in scene.in_flight {
        answers.push(exchange.await.unwrap().unwrap());
    }
    let seen: Vec<_> = answers
        .iter()
        .map(|answer| (answer.status, answer.header("x-ebbtide-reason")))
        .collect();
    assert_eq!(
        seen,
        [(200, None), (200, None), (502, Some("drain_deadline"))]
    );
    assert_eq!(answers[1].text(), "other");
    let lines = scene.process.lines("endpoint ").await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    for (field, value) in [
        ("level", serde_json::json!("INFO")),
        ("message", "endpoint forced".into()),
        ("service", "web/shop:80".into()),
        ("address", scene.leaver.address.to_string().into()),
        ("pod", "leaver".into()),
        ("trigger", "sliceTerminating".into()),
        ("outcome", "forced".into()),
        ("finished", 1.into()),
        ("replayed", 1.into()),
        ("forced", 1.into()),
        ("idle_closed", 1.into()),
    ] {
        assert_eq!(line[field], value, "{field} of {line}");
    }
    assert!(
        line["took_ms"].as_u64().is_some_and(|ms| ms >= 500),
        "{line}"
    );
    assert!(line["timestamp"].is_string());

    // After a quiet period the rollout has its receipt: what its clients experienced, including the
    // 502.
    eventually("a receipt", async || {
        !scene.process.json("/api/v1/drains").await["rollouts"][0].is_null()
    })
    .await;
    let mut receipt = scene.process.json("/api/v1/drains").await["rollouts"][0].clone();
    for at in ["startedAt", "endedAt"] {
        assert!(
            receipt
                .as_object_mut()
                .unwrap()
                .remove(at)
                .is_some_and(|at| at.is_string()),
            "{receipt}"
        );
    }
    let expected = serde_json::json!({
        "service": "web/shop", "podsGone": 1, "podsCome": 1, "requests": 3, "failures": 1, "replayed": 1, "held": 0,
        "forced": 1, "connectionsKept": 0, "connectionsLost": 0,
        "sessionsKept": 0, "sessionsMoved": 0, "datagramsRefused": 0, "datagramsLost": 0,
    });
    assert_eq!(receipt, expected, "{receipt:#}");
    let lines = scene.process.lines("rollout over").await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (&lines[0]["failures"], &lines[0]["service"]),
        (&1.into(), &"web/shop".into())
    );
}

/// A real browser at a real proxy. If `EBBTIDE_SHOTS` names a folder, the test also writes a
/// picture there.
#[tokio::test]
async fn a_browser_shows_a_running_drain() {
    let scene = draining("10m").await;
    let url = format!("http://{}/", scene.process.proxy.admin);
    let mut looks = vec!["--dump-dom".to_owned()];
    if let Ok(folder) = std::env::var("EBBTIDE_SHOTS") {
        looks.insert(0, format!("--screenshot={folder}/drain.png"));
    }
    let mut dom = String::new();
    for look in looks {
        let profile = tempfile::tempdir().unwrap();
        let quiet = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
                     --disable-component-update --disable-sync --virtual-time-budget=3000 --window-size=1280,1000";
        let browser = tokio::process::Command::new("chromium")
            .args(quiet.split_whitespace())
            .args([
                &format!("--user-data-dir={}", profile.path().display()),
                &look,
                &url,
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let Ok(browser) = browser else {
            return println!("SKIPPED: a_browser_shows_a_running_drain: chromium is not installed");
        };
        dom = String::from_utf8(
            soon("the browser", browser.wait_with_output())
                .await
                .unwrap()
                .stdout,
        )
        .unwrap();
    }
    for text in [
        ">draining",
        ">leaver<",
        &scene.leaver.address.to_string(),
        &scene.other.address.to_string(),
    ] {
        assert!(dom.contains(text), "{text} is not in\n{dom}");
    }
    scene.in_flight.iter().for_each(|exchange| exchange.abort());
}
