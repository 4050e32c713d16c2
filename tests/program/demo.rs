//! The tools of the demo (sample application, load generator, fleet, late balancer), tested before
//! anything is measured with them, and then the demo itself. Other tests rely on these tools, so a
//! miscount here would hide a fault there. The demo's figures are not checked, except for what must
//! always be true.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebbtide::command::demo::client::{Client, Failure};
use ebbtide::command::demo::fleet::{Fleet, Options, Tell};
use ebbtide::command::demo::late::Late;
use ebbtide::command::demo::load::{Load, Report};
use ebbtide::command::demo::proxy::Proxy;
use ebbtide::command::demo::show::{self, Settings, show};
use ebbtide::command::demo::timeline::Second;
use ebbtide::command::demo::{child, manifests};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;
use tokio_util::sync::CancellationToken;

use crate::support::binary::BINARY;
use crate::support::wait::{eventually, soon};

// ---- the sample application

#[tokio::test]
async fn the_sample_application_answers_as_its_routes_say() {
    let (_app, address) = sample_app(&["--version", "v7"]).await;
    let mut client = Client::connect(address).await.unwrap();
    let mut ask = async |method: &str, path: &str, body: &[u8]| {
        let response = client.exchange(method, path, "", body).await.unwrap();
        assert!(response.keep_alive, "{method} {path}");
        response
    };

    assert!(ask("GET", "/", b"").await.text().starts_with("v7 "));
    assert_eq!(ask("PUT", "/slow?ms=1", b"ignored").await.text(), "v7");
    assert_eq!(ask("POST", "/echo", b"hello").await.text(), "hello");
    assert_eq!(ask("DELETE", "/status/418", b"").await.status, 418);
    assert_eq!(ask("POST", "/count/a", b"x").await.text(), "1\n");
    assert_eq!(ask("GET", "/count/a?ms=1", b"").await.text(), "2\n");
    assert_eq!(ask("HEAD", "/count/b", b"").await.text(), "");
    assert_eq!(ask("GET", "/counts", b"").await.text(), r#"{"a":2,"b":1}"#);

    let counted = ask("GET", "/bytes?n=50000", b"").await;
    assert_eq!(counted.header("content-length"), Some("50000"));
    let chunked = ask("GET", "/bytes?n=50000&chunked=1&pause=1", b"").await;
    assert_eq!(chunked.header("transfer-encoding"), Some("chunked"));
    assert_eq!(counted.body.len(), 50_000);
    assert!(
        counted.body == chunked.body,
        "a pause or chunks change no byte"
    );
}

#[tokio::test]
async fn the_sample_application_dies_at_sigterm_in_the_middle_of_a_request_and_its_count_survives()
{
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requests");
    let (mut app, address) = sample_app(&["--count-file", file.to_str().unwrap()]).await;
    let mut client = Client::connect(address).await.unwrap();
    let asking = tokio::spawn(async move {
        client
            .exchange("POST", "/count/once?ms=60000", "", b"x")
            .await
    });
    eventually("the count", async || {
        std::fs::read_to_string(&file).is_ok_and(|text| text == "once POST\n")
    })
    .await;

    child::signal(&app, Signal::TERM);
    let status = soon("its end", app.wait()).await.unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(15),
        "no handler, no grace: {status}"
    );
    assert!(matches!(
        soon("the failure", asking).await.unwrap(),
        Err(Failure::Closed | Failure::Reset)
    ));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "once POST\n");
}

#[tokio::test]
async fn in_tcp_mode_it_greets_echoes_and_answers_a_fin_with_a_fin() {
    let (_app, address) = sample_app(&["--tcp", "--greet", "220 hi\n"]).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = String::new();
    soon("the end", stream.read_to_string(&mut all))
        .await
        .unwrap();
    assert_eq!(all, "220 hi\nping");
}

#[tokio::test]
async fn no_process_outlives_a_demo_that_is_killed() {
    let (mut demo, applications, _folder) = running_demo().await;
    demo.kill().await.unwrap();
    eventually("the applications are gone", async || {
        applications.iter().all(|&pid| !is_running(pid))
    })
    .await;
}

#[tokio::test]
async fn an_interrupted_demo_fails_and_leaves_nothing() {
    let (mut demo, applications, folder) = running_demo().await;
    child::signal(&demo, Signal::INT);
    assert_eq!(
        soon("the demo's end", demo.wait()).await.unwrap().code(),
        Some(1)
    );
    eventually("the applications are gone", async || {
        applications.iter().all(|&pid| !is_running(pid))
    })
    .await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// `ebbtide demo`, its three applications, and its folder for temporary files.
async fn running_demo() -> (Child, Vec<u32>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = child::ebbtide(BINARY.as_ref());
    command
        .args(["demo", "--for", "30s"])
        .env("TMPDIR", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let demo = command.spawn().unwrap();
    let mut applications = Vec::new();
    eventually("three applications", async || {
        applications = children_of(demo.id().unwrap());
        applications.len() >= 3
    })
    .await;
    (demo, applications, folder)
}

// ---- the load generator

#[tokio::test]
async fn the_load_counts_each_reset_and_each_socket_exactly() {
    let server = TestServer::start(Fault::ResetEachTenth).await;
    let report = load(Load {
        clients: 1,
        rate: 200.0,
        ..quick(server.address)
    })
    .await;
    assert_eq!(
        (report.sent, report.ok, report.failed),
        (200, 180, 20),
        "{report}"
    );
    assert_eq!(report.errors, BTreeMap::from([("reset".into(), 20)]));
    assert_eq!(report.losses.len(), 20);
    // The last loss belongs to the last request, so no socket had to replace it.
    assert_eq!(report.sockets, 20, "{report}");
    assert_eq!(server.accepted(), 20);
    assert_eq!(server.requests(), 200, "nothing was sent twice");
}

#[tokio::test]
async fn the_load_counts_one_more_socket_when_the_server_closes_and_fails_no_request() {
    let server = TestServer::start(Fault::ConnectionCloseEachTenth).await;
    let report = load(Load {
        clients: 1,
        rate: 200.0,
        ..quick(server.address)
    })
    .await;
    assert_eq!(
        (report.ok, report.failed, report.sockets),
        (200, 0, 20),
        "{report}"
    );

    let server = TestServer::start(Fault::None).await;
    let report = load(Load {
        keep_alive: false,
        ..quick(server.address)
    })
    .await;
    assert_eq!(
        (report.ok, report.failed, report.sockets),
        (200, 0, 200),
        "{report}"
    );

    let server = TestServer::start(Fault::None).await;
    let report = load(Load {
        by_body: true,
        ..quick(server.address)
    })
    .await;
    assert_eq!(
        (report.ok, report.failed, report.sockets),
        (200, 0, 8),
        "{report}"
    );
    assert_eq!(report.by_body, BTreeMap::from([("ok".into(), 200)]));
}

#[tokio::test]
async fn the_load_names_what_went_wrong() {
    for (fault, error) in [
        (Fault::CutEachTenth, "cut"),
        (Fault::CloseEachTenth, "closed"),
        (Fault::Status503EachTenth, "status 503"),
        (Fault::GarbageEachTenth, "malformed"),
        (Fault::SilenceEachTenth, "timeout"),
    ] {
        let server = TestServer::start(fault).await;
        // One client for each request, so that a client that waits delays no other.
        let report = load(Load {
            clients: 200,
            timeout: Duration::from_secs(1),
            ..quick(server.address)
        })
        .await;
        assert_eq!((report.sent, report.ok), (200, 180), "{error}: {report}");
        assert_eq!(
            report.errors,
            BTreeMap::from([(error.into(), 20)]),
            "{report}"
        );
    }
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let report = load(quick(closed)).await;
    assert_eq!((report.ok, report.sockets), (0, 0));
    assert_eq!(report.errors, BTreeMap::from([("refused".into(), 200)]));
    assert!(
        report.longest_stall >= quick(closed).duration,
        "no response at all: {report}"
    );
}

/// A stall of the server counts for all requests that were due meanwhile, not only for the one that
/// met it.
#[tokio::test]
async fn latency_counts_from_the_time_when_a_request_was_due() {
    let server = TestServer::start(Fault::StallOnce(Duration::from_millis(500))).await;
    let report = load(Load {
        clients: 1,
        ..quick(server.address)
    })
    .await;
    assert_eq!((report.ok, report.failed), (200, 0), "{report}");
    assert!(
        report.latency.p99 > Duration::from_millis(400),
        "half of the requests were late: {report}"
    );
    assert!(
        report.service.p50 < report.latency.max / 2,
        "most requests were answered immediately after they were sent: {report}"
    );
    assert!(
        report.longest_stall >= Duration::from_millis(480),
        "{report}"
    );
}

#[tokio::test]
async fn the_load_stops_on_request() {
    let server = TestServer::start(Fault::None).await;
    let stop = CancellationToken::new();
    let forever = Load {
        duration: Duration::from_secs(3600),
        ..quick(server.address)
    };
    let report = forever.run(&stop, |now| {
        if now.ok >= 20 {
            stop.cancel();
        }
    });
    let report = soon("the report", report).await;
    assert!(report.ok >= 20 && report.failed == 0, "{report}");
    assert_eq!(server.requests(), report.sent);
}

// ---- the fleet

#[tokio::test]
async fn the_fleets_manifests_are_what_kubernetes_would_write() {
    let mut options = Options::new(BINARY);
    options.slice_size = 2;
    let mut fleet = Fleet::start(options).await.unwrap();
    let Manifests {
        services,
        slices,
        pods,
    } = manifests(&fleet);
    assert_eq!(services.len(), 1);
    let labels = services[0].metadata.labels.as_ref().unwrap();
    assert_eq!(
        labels["service.kubernetes.io/service-proxy-name"],
        "ebbtide"
    );
    assert_eq!(
        slices
            .iter()
            .map(|slice| slice.endpoints.len())
            .collect::<Vec<_>>(),
        [2, 1]
    );
    assert_eq!(pods.len(), 3);
    for slice in &slices {
        assert_eq!(
            slice.metadata.labels.as_ref().unwrap()["kubernetes.io/service-name"],
            manifests::SERVICE
        );
        let port = u16::try_from(slice.ports.as_ref().unwrap()[0].port.unwrap()).unwrap();
        for endpoint in &slice.endpoints {
            let target = endpoint.target_ref.as_ref().unwrap();
            let pod = pods
                .iter()
                .find(|pod| pod.metadata.uid == target.uid)
                .unwrap();
            assert_eq!(pod.metadata.name, target.name);
            assert_eq!(
                pod.metadata.labels.as_ref().unwrap()["pod-template-hash"],
                "v1"
            );
            let address = SocketAddr::new(endpoint.addresses[0].parse().unwrap(), port);
            let mut client = Client::connect(address).await.unwrap();
            assert!(
                client
                    .exchange("GET", "/", "", b"")
                    .await
                    .unwrap()
                    .text()
                    .starts_with("v1 ")
            );
        }
    }

    // In the middle of a retirement both objects show it. After the retirement both objects are
    // gone.
    let old = fleet.ids()[0];
    let uid = fleet.pod(old).unwrap().uid.clone();
    fleet.options.signal_offset = 500..=500;
    let folder = fleet.manifests();
    let seen = async {
        eventually("the mark", async || {
            let Manifests { slices, pods, .. } = read_manifests(&folder);
            let pod = pods
                .iter()
                .find(|pod| pod.metadata.uid.as_ref() == Some(&uid))
                .unwrap();
            let mut endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
            let endpoint = endpoints
                .find(|e| e.target_ref.as_ref().unwrap().uid.as_ref() == Some(&uid))
                .unwrap();
            let conditions = endpoint.conditions.as_ref().unwrap();
            let terminating = conditions.terminating == Some(true);
            if terminating {
                assert_eq!(
                    (conditions.ready, conditions.serving),
                    (Some(false), Some(true))
                );
                assert!(
                    pod.metadata.deletion_timestamp.is_some(),
                    "the pod's deletion timestamp comes first"
                );
                assert_eq!(pod.metadata.deletion_grace_period_seconds, Some(30));
            }
            terminating
        })
        .await;
    };
    let leaving = [old];
    let (_, retired) = tokio::join!(seen, fleet.retire(&leaving));
    retired.unwrap();
    let Manifests { slices, pods, .. } = manifests(&fleet);
    assert_eq!(pods.len(), 2);
    assert!(
        pods.iter()
            .all(|pod| pod.metadata.uid.as_ref() != Some(&uid))
    );
    assert_eq!(
        slices
            .iter()
            .map(|slice| slice.endpoints.len())
            .collect::<Vec<_>>(),
        [2]
    );
}

#[tokio::test]
async fn a_rolling_update_replaces_every_process_and_nothing_is_left_at_the_end() {
    let mut options = Options::new(BINARY);
    options.signal = Signal::KILL;
    let mut fleet = Fleet::start(options).await.unwrap();
    let endpoints = fleet.endpoints();
    let before = endpoints.borrow().clone();
    fleet.roll("v2", Duration::ZERO).await.unwrap();
    assert_eq!((fleet.started, fleet.ended, fleet.pods().len()), (6, 3, 3));
    let after = endpoints.borrow().clone();
    assert!(
        after.len() == 3 && after.iter().all(|address| !before.contains(address)),
        "{before:?} {after:?}"
    );
    for address in before {
        assert!(
            matches!(Client::connect(address).await, Err(Failure::Refused)),
            "{address} still listens"
        );
    }
    for &address in &after {
        let mut client = Client::connect(address).await.unwrap();
        assert_eq!(
            client
                .exchange("GET", "/slow", "", b"")
                .await
                .unwrap()
                .text(),
            "v2"
        );
    }
    assert_eq!(fleet.requests("/slow").unwrap(), 3);

    let folder = fleet.folder().to_owned();
    drop(fleet);
    assert!(!folder.exists());
    for address in after {
        eventually("nothing listens", async || {
            std::net::TcpStream::connect(address).is_err()
        })
        .await;
    }
}

#[tokio::test]
async fn a_fleet_without_pod_manifests_and_one_that_is_ready_before_it_listens() {
    let mut options = Options::new(BINARY);
    options.tell = Tell::Removal;
    let mut fleet = Fleet::start(options).await.unwrap();
    fleet.options.listen_after = Some(Duration::from_secs(3600));
    let old = fleet.ids()[0];
    let new = fleet.replace(old, "v2").await.unwrap();
    let Manifests { slices, pods, .. } = manifests(&fleet);
    assert!(pods.is_empty());
    let endpoints: Vec<_> = slices.iter().flat_map(|slice| &slice.endpoints).collect();
    assert_eq!(endpoints.len(), 3);
    assert!(
        endpoints
            .iter()
            .all(|endpoint| endpoint.target_ref.is_none())
    );
    let early = fleet.pod(new).unwrap().address;
    assert!(fleet.endpoints().borrow().contains(&early));
    assert!(matches!(
        Client::connect(early).await,
        Err(Failure::Refused)
    ));

    fleet.update(new, |pod| pod.ready = false).unwrap();
    assert!(!fleet.endpoints().borrow().contains(&early));
    fleet.update(new, |pod| pod.listed = false).unwrap();
    assert_eq!(manifests(&fleet).slices[0].endpoints.len(), 2);
}

// ---- the late balancer

#[tokio::test]
async fn the_late_balancer_costs_requests_in_a_rolling_update() {
    let mut options = Options::new(BINARY);
    options.signal_offset = 0..=0;
    let mut fleet = Fleet::start(options).await.unwrap();
    let late = Late::start(fleet.endpoints(), Duration::from_secs(1)).unwrap();
    let stop = CancellationToken::new();
    let load = Load {
        duration: Duration::from_secs(3600),
        ..quick(late.address)
    };
    let (report, ()) = tokio::join!(load.run(&stop, |_| {}), async {
        fleet.roll("v2", Duration::from_millis(500)).await.unwrap();
        stop.cancel();
    });
    // Eight connections to three processes that all end: every connection ends.
    assert!(report.sockets > 8, "{report}");
    assert!(report.ok > 0 && report.failed > 0, "{report}");
}

#[tokio::test]
async fn the_late_balancer_learns_after_its_delay_and_takes_endpoints_in_turn() {
    let fleet = Fleet::start(Options::new(BINARY)).await.unwrap();
    let all = fleet.endpoints().borrow().clone();
    let (change, endpoints) = tokio::sync::watch::channel(all[..2].to_vec());
    let late = Late::start(endpoints, Duration::from_millis(300)).unwrap();
    let who = async || {
        let mut client = Client::connect(late.address).await?;
        client
            .exchange("GET", "/", "", b"")
            .await
            .map(|answer| answer.text().into_owned())
    };
    let (first, second, third) = (
        who().await.unwrap(),
        who().await.unwrap(),
        who().await.unwrap(),
    );
    assert_eq!(first, third);
    assert_ne!(first, second);

    let changed = std::time::Instant::now();
    change.send_replace(Vec::new());
    while let Ok(answer) = who().await {
        assert!(answer == first || answer == second);
        assert!(
            changed.elapsed() < Duration::from_secs(20),
            "it never learned of the change"
        );
    }
    assert!(
        changed.elapsed() >= Duration::from_millis(290),
        "it learned of the change too soon"
    );
    assert_eq!(who().await, Err(Failure::Reset), "no endpoint: a reset");
}

// ---- the whole demo

#[tokio::test]
async fn the_demo_shows_two_phases_and_judges_the_second() {
    let settings = Settings {
        binary: BINARY.into(),
        load: Duration::from_secs(3),
        stay: false,
        second: show::Second::Late(Duration::ZERO),
        stop: CancellationToken::new(),
    };
    let (late, second) = soon("the demo", show(&settings)).await.unwrap().unwrap();
    for row in [&late, &second] {
        assert_eq!(row.report.sent, 1_500, "{}", row.report);
        assert_eq!(row.replaced, 3);
        // A balancer of connections cannot keep them when the processes behind them end.
        assert!(row.report.sockets > 8, "{}", row.report);
        assert!(!row.is_clean());
        let timeline = &row.report.timeline;
        let each = |it: &Second| it.answered.iter().map(|(_, n)| n).sum::<u32>() + it.failed;
        let sum: u32 = timeline.seconds.iter().map(each).sum();
        assert_eq!(
            u64::from(sum),
            row.report.sent,
            "each request is in a second"
        );
        assert!(
            ["v1", "v2"]
                .iter()
                .all(|it| timeline.versions.contains(&(*it).to_owned()))
        );
    }
}

#[tokio::test]
async fn the_demo_writes_its_report_as_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let demo = async |path: &std::path::Path| {
        let mut command = tokio::process::Command::new(BINARY);
        command.args(["demo", "--for", "2s", "--report"]).arg(path);
        let ended = command.kill_on_drop(true).output();
        soon("the demo's end", ended).await.unwrap()
    };
    let refused = demo(&folder.path().join("none/report.html")).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--report") && said.contains("none/report.html"),
        "{said}"
    );
    let path = folder.path().join("report.html");
    let done = demo(&path).await;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        said.contains(&format!("report: {}", path.display())),
        "{said}"
    );
    let page = std::fs::read_to_string(&path).unwrap();
    for text in [
        "<h2>late balancer</h2>",
        "<h2>Ebbtide</h2>",
        "<span>v1</span>",
        "<span>v2</span>",
        "longest stall",
        "cores of",
    ] {
        assert!(page.contains(text), "{text} is not in\n{page}");
    }
}

#[tokio::test]
async fn a_proxy_that_does_not_start_reports_why() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(
        BINARY.as_ref(),
        folder.path(),
        "discovery: nonsense",
        &["web"],
    );
    let started = soon("its end", proxy).await;
    let error = started.err().unwrap().to_string();
    assert!(
        error.contains("ended before it listened; its last log lines:\n"),
        "{error}"
    );
    assert!(
        error.lines().count() > 1,
        "its own output is missing: {error}"
    );
}

// ---- tools of these tests

fn quick(target: SocketAddr) -> Load {
    Load {
        rate: 400.0,
        timeout: Duration::from_secs(10),
        ..Load::new(target, "/slow", Duration::from_millis(500))
    }
}

/// Sends 200 requests, whatever the rate is.
async fn load(load: Load) -> Report {
    let duration = Duration::from_secs_f64(200.0 / load.rate);
    soon(
        "the report",
        Load { duration, ..load }.run(&CancellationToken::new(), |_| {}),
    )
    .await
}

async fn sample_app(arguments: &[&str]) -> (Child, SocketAddr) {
    let mut app = child::sample_app(BINARY.as_ref())
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(app.stdout.take().unwrap()).lines();
    let line = soon("its address", lines.next_line())
        .await
        .unwrap()
        .unwrap();
    (
        app,
        line.strip_prefix("listening ").unwrap().parse().unwrap(),
    )
}

struct Manifests {
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
    pods: Vec<Pod>,
}

fn manifests(fleet: &Fleet) -> Manifests {
    read_manifests(&fleet.manifests())
}

fn read_manifests(folder: &std::path::Path) -> Manifests {
    let mut all = Manifests {
        services: Vec::new(),
        slices: Vec::new(),
        pods: Vec::new(),
    };
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        match value["kind"].as_str().unwrap() {
            "Service" => all.services.push(serde_json::from_value(value).unwrap()),
            "EndpointSlice" => all.slices.push(serde_json::from_value(value).unwrap()),
            "Pod" => all.pods.push(serde_json::from_value(value).unwrap()),
            kind => panic!("{} holds a {kind}", file.display()),
        }
    }
    all
}

/// A server that answers every request with `ok`, except for every tenth of all requests.
struct TestServer {
    address: SocketAddr,
    accepted: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
}

#[derive(Clone, Copy)]
enum Fault {
    None,
    ResetEachTenth,
    ConnectionCloseEachTenth,
    CutEachTenth,
    CloseEachTenth,
    Status503EachTenth,
    GarbageEachTenth,
    SilenceEachTenth,
    /// One stall, at the tenth request.
    StallOnce(Duration),
}

impl TestServer {
    async fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let server = Self {
            address,
            accepted: accepted.clone(),
            requests: requests.clone(),
        };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(answer(stream, requests.clone(), fault));
            }
        });
        server
    }

    fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn answer(
    mut stream: TcpStream,
    requests: Arc<AtomicU64>,
    fault: Fault,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while stream.read_buf(&mut head).await? > 0 {
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        head.clear();
        let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
        let fault = if number.is_multiple_of(10) {
            fault
        } else {
            Fault::None
        };
        let (answer, last): (&[u8], bool) = match fault {
            Fault::ResetEachTenth => {
                stream.set_zero_linger()?;
                (b"", true)
            }
            Fault::ConnectionCloseEachTenth => (
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
                true,
            ),
            Fault::CutEachTenth => (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
                true,
            ),
            Fault::CloseEachTenth => (b"", true),
            Fault::Status503EachTenth => (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", false),
            Fault::GarbageEachTenth => (b"\0\r\n\r\n", true),
            Fault::SilenceEachTenth => {
                std::future::pending::<()>().await;
                (b"", true)
            }
            Fault::StallOnce(time) if number == 10 => {
                tokio::time::sleep(time).await;
                (OK, false)
            }
            Fault::None | Fault::StallOnce(_) => (OK, false),
        };
        stream.write_all(answer).await?;
        if last {
            return Ok(());
        }
    }
    Ok(())
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn children_of(parent: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .unwrap_or_default();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Whether the process runs. A zombie does not run.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}
