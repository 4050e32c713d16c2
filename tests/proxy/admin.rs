//! The admin server over real sockets, with an invented table: every path, methods and access,
//! readiness, `ebbtide status`, and the page in a real browser where one is installed. No request
//! changes the proxy. The table's own numbers are tested where they arise.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use ebbtide::admin::listener::{self, AdminListener};
use ebbtide::admin::report::Admin;
use ebbtide::admin::server;
use ebbtide::command::status::status;
use ebbtide::contract::endpoint::{Conditions, Endpoint, EndpointId, Lease, Notice};
use ebbtide::contract::endpoint_list::EndpointList;
use ebbtide::contract::name::{ObjectName, PodRef, PortKey};
use ebbtide::contract::policy::{NonIdempotent, Policy, Protocol};
use ebbtide::contract::reason::Trigger;
use ebbtide::contract::snapshot::{Place, Port, Presence};
use ebbtide::discovery::source::Problem;
use ebbtide::observe::health::{Health, ListenerState};
use ebbtide::observe::metrics::Metrics;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::proxy::ask::raw;
use crate::support::wait::{eventually, soon};

/// An admin server with an invented table behind it.
pub(super) struct Fixture {
    pub(super) admin: Admin,
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
    /// The leases that stand for exchanges in flight.
    leases: Vec<Lease>,
    pub(super) notices: (
        mpsc::UnboundedSender<Notice>,
        mpsc::UnboundedReceiver<Notice>,
    ),
    made: u64,
}

impl Fixture {
    pub(super) async fn start() -> Self {
        Self::started_at(Instant::now()).await
    }

    pub(super) async fn started_at(started: Instant) -> Self {
        let admin = Admin {
            snapshot: Arc::default(),
            drains: Arc::default(),
            metrics: Metrics::new().unwrap(),
            health: Arc::new(Health::new("files")),
            history: Arc::default(),
            gate: Default::default(),
            started,
        };
        let bound = listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = bound.address;
        let stop = CancellationToken::new();
        let (health, metrics) = (admin.health.clone(), admin.metrics.clone());
        let server = tokio::spawn(server::serve(
            AdminListener::new(bound, health, metrics, CancellationToken::new()).unwrap(),
            admin.clone(),
            || (),
            stop.clone(),
        ));
        Self {
            admin,
            address,
            stop,
            server,
            leases: Vec::new(),
            notices: mpsc::unbounded_channel(),
            made: 0,
        }
    }

    pub(super) fn synced(&self) {
        self.admin
            .health
            .update(|state| (state.synced, state.ports_tried) = (true, true));
    }

    /// A ready endpoint with this many exchanges in flight and idle connections.
    fn endpoint(&mut self, pod: Option<&str>, in_flight: usize, idle: u32) -> Arc<Endpoint> {
        self.made += 1;
        let octets = [10, 0, (self.made >> 8) as u8, self.made as u8];
        let pod = pod.map(|name| {
            Arc::new(PodRef {
                name: name.into(),
                uid: format!("uid-{}", self.made),
            })
        });
        let endpoint = Endpoint::new(
            EndpointId(self.made),
            SocketAddr::from((octets, 8080)),
            pod,
            None,
            self.notices.0.clone(),
        );
        endpoint.set_conditions(Conditions {
            ready: true,
            serving: true,
            terminating: false,
        });
        endpoint.set_out(false);
        endpoint.tally.idle.store(idle, Ordering::Relaxed);
        self.leases
            .extend((0..in_flight).map(|_| endpoint.enter().unwrap()));
        endpoint
    }

    pub(super) fn drain(
        &self,
        endpoint: &Arc<Endpoint>,
        key: &PortKey,
        trigger: Trigger,
        left: Duration,
    ) {
        endpoint.set_conditions(Conditions {
            ready: false,
            serving: true,
            terminating: true,
        });
        endpoint.shorten_deadline(Instant::now().checked_add(left).unwrap());
        let metrics = self.admin.metrics.service(key);
        self.admin.drains.begin(
            endpoint.clone(),
            key.clone(),
            trigger,
            Instant::now(),
            metrics,
        );
        endpoint.begin_drain();
    }

    pub(super) fn publish(&self, ports: Vec<(PortKey, Vec<Arc<Endpoint>>)>) {
        let port = |(key, all): (PortKey, Vec<Arc<Endpoint>>)| {
            let port = Port {
                name: Some("http".into()),
                node_port: (key.port == 80).then_some(30_080),
                protocol: Protocol::Auto,
                policy: Policy {
                    hold_timeout: Duration::from_secs(10),
                    drain_timeout: Duration::from_secs(30),
                    attempts: 3,
                    non_idempotent: NonIdempotent::Never,
                    join_check: true,
                    keeps_source: false,
                    retries_unavailable: false,
                    backend: None,
                },
                claimed: true,
                handing_back: false,
                target_port: None,
                hold: Arc::default(),
                addresses: Arc::default(),
                presence: Presence::Now,
                source_ranges: Arc::default(),
                usable: EndpointList::default(),
                last_resort: EndpointList::default(),
                all: all.into_iter().collect(),
                metrics: self.admin.metrics.service(&key),
                key: key.clone(),
                affinity: None,
                traffic: Default::default(),
                local: None,
                near: None,
            };
            (Arc::new(key.service), vec![Place::new(Arc::new(port))])
        };
        for (service, places) in ports.into_iter().map(port) {
            self.admin.snapshot.set_places(&service, places);
        }
    }

    /// One Service with an endpoint in every state, one Service without endpoints, one running
    /// drain, two receipts, and two listeners.
    fn fill(&mut self) {
        self.synced();
        let (shop, mail) = (
            key("web", "shop", 80),
            key("mail", "<script>alert(1)</script>", 25),
        );
        let [ready, draining] = [
            ("shop-7d9c5b6f4-2xkqp", 3, 5),
            ("shop-5f6b7c8d9-9mzrt", 2, 0),
        ]
        .map(|(pod, in_flight, idle)| self.endpoint(Some(pod), in_flight, idle));
        self.drain(
            &draining,
            &shop,
            Trigger::PodDeleted,
            Duration::from_secs(27),
        );
        draining.tally.finished.store(14, Ordering::Relaxed);
        let serving = self.endpoint(Some("shop-5f6b7c8d9-k2vvn"), 1, 1);
        serving.set_conditions(Conditions {
            ready: false,
            serving: true,
            terminating: true,
        });
        let joining = self.endpoint(Some("shop-7d9c5b6f4-p8w4c"), 0, 0);
        joining.set_out(true);
        let not_ready = self.endpoint(Some("shop-<b>tt6hd</b>"), 0, 0);
        not_ready.set_conditions(Conditions::default());
        not_ready.set_out(true);
        let ejected = self.endpoint(None, 0, 0);
        ejected.eject();
        for (forced, trigger) in [(0, Trigger::SliceTerminating), (1, Trigger::Removed)] {
            let gone = self.endpoint(Some("shop-5f6b7c8d9-xxxxx"), 0, 0);
            self.drain(&gone, &shop, trigger, Duration::from_secs(30));
            gone.tally.finished.store(31, Ordering::Relaxed);
            gone.tally.replayed.store(2, Ordering::Relaxed);
            gone.tally.forced.store(forced, Ordering::Relaxed);
            gone.tally.idle_closed.store(4, Ordering::Relaxed);
            self.admin.drains.end(gone.id, None).unwrap();
        }
        self.publish(vec![
            (
                shop,
                vec![ready, draining, serving, joining, not_ready, ejected],
            ),
            (mail, vec![]),
        ]);
        for listener in [
            listener(
                "web",
                "127.0.0.1:8080",
                ("web", "shop", "http"),
                Protocol::Http,
                None,
            ),
            listener(
                "mail",
                "0.0.0.0:25",
                ("mail", "mail", "25"),
                Protocol::Tcp,
                Some("permission denied"),
            ),
        ] {
            show(&self.admin.health, listener);
        }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        // There is no control loop here.
        self.admin.health.beat();
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ))
        .await
    }

    pub(super) async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/json")),
            "{path}"
        );
        serde_json::from_str(&answer.body).unwrap()
    }

    async fn ask(&self, request: &str) -> Answer {
        let (text, clean) = raw(self.address, request.as_bytes()).await;
        assert!(clean, "{text}");
        Answer::parse(&text)
    }
}

pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect(text);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

pub(super) fn key(namespace: &str, name: &str, port: u16) -> PortKey {
    ObjectName::new(namespace, name).port(port)
}

fn listener(
    name: &str,
    address: &str,
    to: (&str, &str, &str),
    protocol: Protocol,
    error: Option<&str>,
) -> ListenerState {
    ListenerState {
        name: name.into(),
        address: address.parse().unwrap(),
        service: ObjectName::new(to.0, to.1),
        port: to.2.into(),
        protocol,
        error: error.map(str::to_owned),
        refuses: false,
    }
}

fn show(health: &Health, listener: ListenerState) {
    health.show_listener(false, listener.name.as_str().into(), Some(listener));
}

fn problem(subject: &str) -> Problem {
    Problem {
        subject: subject.into(),
        error: "line 3: expected a mapping".into(),
        since: SystemTime::now(),
    }
}

#[tokio::test]
async fn status_shows_listeners_services_and_endpoints() {
    let mut fixture = Fixture::start().await;
    fixture.fill();
    let asked = jiff::Timestamp::now();
    let mut status = fixture.json("/api/v1/status").await;

    let deadlines: Vec<Value> = status["services"][1]["endpoints"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .map(|endpoint| endpoint["drainDeadline"].take())
        .collect();
    assert_eq!(deadlines.iter().filter(|d| d.is_null()).count(), 5);
    let deadline: jiff::Timestamp = deadlines[1].as_str().unwrap().parse().unwrap();
    let left = deadline.duration_since(asked).as_secs_f64();
    assert!((0.0..=27.1).contains(&left), "{left} s of 27");

    assert!(status["uptimeSeconds"].is_u64());
    status["uptimeSeconds"] = json!(0);
    let endpoint = |n: u8, pod: Value, bits: [bool; 3], in_flight: u64, idle: u64, state: &str| {
        json!({"address": format!("10.0.0.{n}:8080"), "pod": pod, "ready": bits[0], "serving": bits[1],
               "terminating": bits[2], "inFlight": in_flight, "idle": idle, "drainDeadline": null, "state": state})
    };
    let (up, ending) = ([true, true, false], [false, true, true]);
    let expected = json!({
        "version": ebbtide::VERSION, "uptimeSeconds": 0, "ready": true, "shuttingDown": false, "obstacle": null,
        "discovery": {"source": "files", "synced": true, "ageSeconds": 0, "problems": [],
            "savedAt": null, "missingNamespaces": [], "absentNamespaces": []},
        "listeners": [
            {"name": "mail", "address": "0.0.0.0:25", "service": "mail/mail", "port": "25", "protocol": "tcp",
             "error": "permission denied", "refuses": false},
            {"name": "web", "address": "127.0.0.1:8080", "service": "web/shop", "port": "http", "protocol": "http", "error": null,
             "refuses": false},
        ],
        "services": [
            {"namespace": "mail", "name": "<script>alert(1)</script>", "port": 25, "endpoints": [], "portName": "http",
             "nodePort": null, "protocol": "auto"},
            {"namespace": "web", "name": "shop", "port": 80, "portName": "http", "nodePort": 30_080, "protocol": "auto",
             "endpoints": [
                endpoint(1, "shop-7d9c5b6f4-2xkqp".into(), up, 3, 5, "ready"),
                endpoint(2, "shop-5f6b7c8d9-9mzrt".into(), ending, 2, 0, "draining"),
                endpoint(3, "shop-5f6b7c8d9-k2vvn".into(), ending, 1, 1, "serving"),
                endpoint(4, "shop-7d9c5b6f4-p8w4c".into(), up, 0, 0, "joining"),
                endpoint(5, "shop-<b>tt6hd</b>".into(), [false; 3], 0, 0, "notReady"),
                endpoint(6, Value::Null, up, 0, 0, "notAnswering"),
            ]},
        ],
    });
    assert_eq!(status, expected, "{status:#}");
}

#[tokio::test]
async fn drains_shows_the_running_and_the_finished() {
    let mut fixture = Fixture::start().await;
    assert_eq!(
        fixture.json("/api/v1/drains").await,
        json!({"running": [], "finished": [], "rollouts": [], "gate": []})
    );
    fixture.fill();
    let mut drains = fixture.json("/api/v1/drains").await;
    for drain in ["running", "finished"]
        .iter()
        .flat_map(|list| drains[list].as_array().unwrap().clone())
    {
        for field in ["startedAt", "endedAt", "drainDeadline"] {
            if !drain[field].is_null() {
                let _: jiff::Timestamp = drain[field].as_str().unwrap().parse().expect("RFC 3339");
            }
        }
        assert!(drain["startedAt"].is_string() && drain["drainDeadline"].is_string());
        assert_eq!(drain["endedAt"].is_null(), drain["outcome"].is_null());
    }
    for list in ["running", "finished"] {
        for drain in drains[list].as_array_mut().unwrap() {
            for field in ["startedAt", "endedAt", "drainDeadline"] {
                drain.as_object_mut().unwrap().remove(field).expect(field);
            }
        }
    }
    let finished = |address: &str, trigger: &str, outcome: &str, forced: u32| {
        json!({"service": "web/shop:80", "address": address, "pod": "shop-5f6b7c8d9-xxxxx", "trigger": trigger,
               "outcome": outcome, "finished": 31, "replayed": 2, "forced": forced, "idleClosed": 4, "inFlight": 0})
    };
    let expected = json!({
        "running": [{"service": "web/shop:80", "address": "10.0.0.2:8080", "pod": "shop-5f6b7c8d9-9mzrt",
                     "trigger": "podDeleted", "outcome": null, "finished": 14, "replayed": 0, "forced": 0,
                     "idleClosed": 0, "inFlight": 2}],
        "finished": [finished("10.0.0.8:8080", "removed", "forced", 1),
                     finished("10.0.0.7:8080", "sliceTerminating", "drained", 0)],
        "rollouts": [],
        "gate": [],
    });
    assert_eq!(drains, expected, "{drains:#}");
}

#[tokio::test]
async fn readiness_from_start_to_shutdown() {
    let fixture = Fixture::start().await;
    let health = &fixture.admin.health;
    let readyz = async || {
        let answer = fixture.get("/readyz").await;
        assert!(
            answer.body.ends_with('\n') && answer.body.lines().count() == 1,
            "one line: {:?}",
            answer.body
        );
        (answer.status, answer.body)
    };
    assert_eq!(
        fixture.get("/livez").await.status,
        200,
        "alive before it is ready"
    );
    assert_eq!(readyz().await.0, 503);
    health.update(|state| state.synced = true);
    assert_eq!(
        readyz().await,
        (503, "not ready; listeners are being bound\n".into())
    );
    health.update(|state| state.ports_tried = true);
    assert_eq!(readyz().await, (200, "ready\n".into()));

    health.report(vec![problem("manifests/shop.yaml")]);
    let (status, line) = readyz().await;
    assert_eq!(status, 200, "a broken source does not end readiness");
    assert!(
        line.contains("manifests/shop.yaml") && line.contains("not in order for 0s"),
        "{line}"
    );
    let unbound = listener(
        "web",
        "0.0.0.0:80",
        ("web", "shop", "80"),
        Protocol::Tcp,
        Some("address in use"),
    );
    show(health, unbound);
    let (status, line) = readyz().await;
    assert_eq!(status, 200);
    assert!(line.contains("web 0.0.0.0:80: address in use"), "{line}");
    health.report(Vec::new());
    health.show_listener(false, "web".into(), None);
    assert_eq!(readyz().await, (200, "ready\n".into()));

    health.update(|state| state.shutting_down = true);
    assert_eq!(readyz().await, (503, "not ready; shutting down\n".into()));
    assert_eq!(
        fixture.get("/livez").await.status,
        200,
        "alive while it shuts down"
    );
}

#[tokio::test]
async fn metrics_are_current_when_read_and_promtool_finds_no_fault() {
    let mut fixture = Fixture::start().await;
    fixture.fill();
    fixture
        .admin
        .metrics
        .discovery_errors
        .with_label_values(&["parse"])
        .inc();
    let shop = fixture.admin.metrics.service(&key("web", "shop", 80));
    shop.connections_http.inc();
    let answer = fixture.get("/metrics").await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("text/plain; version=0.0.4"))
    );
    for (state, count) in [
        ("ready", 1),
        ("serving", 1),
        ("notReady", 3),
        ("draining", 1),
    ] {
        let line = format!(
            "ebbtide_endpoints{{namespace=\"web\",port=\"80\",service=\"shop\",state=\"{state}\"}} {count}\n"
        );
        assert!(
            answer.body.contains(&line),
            "{line} missing in\n{}",
            answer.body
        );
    }
    assert!(
        answer.body.contains("ebbtide_discovery_age_seconds 0\n"),
        "{}",
        answer.body
    );
    fixture.admin.health.report(vec![problem("a.yaml")]);
    let hour_ago = Instant::now()
        .checked_sub(Duration::from_secs(3600))
        .unwrap();
    fixture
        .admin
        .health
        .update(|state| state.current_at = hour_ago);
    // The page is rendered at most once a second.
    eventually("the age of the table", async || {
        let page = fixture.get("/metrics").await.body;
        let mut lines = page.lines();
        let age = lines.find_map(|l| l.strip_prefix("ebbtide_discovery_age_seconds "));
        (3600..7200).contains(&age.unwrap().parse::<u64>().unwrap())
    })
    .await;

    let promtool = tokio::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut promtool) = promtool else {
        println!(
            "SKIPPED: metrics_are_current_when_read_and_promtool_finds_no_fault: promtool is not installed (Debian package prometheus)"
        );
        return;
    };
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(answer.body.as_bytes())
        .await
        .unwrap();
    let said = soon("promtool's output", promtool.wait_with_output())
        .await
        .unwrap();
    let said_text =
        String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
    assert!(
        said.status.success() && said_text.trim().is_empty(),
        "{said_text}"
    );
}

#[tokio::test]
async fn only_get_and_head_and_only_these_paths() {
    let fixture = Fixture::start().await;
    fixture.synced();
    let paths = [
        "/",
        "/livez",
        "/readyz",
        "/metrics",
        "/api/v1/status",
        "/api/v1/drains",
        "/api/v1/history",
    ];
    for path in paths {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
            );
            let answer = fixture.ask(&request).await;
            assert_eq!(
                (answer.status, answer.header("allow")),
                (405, Some("GET, HEAD")),
                "{method} {path}"
            );
        }
        let get = fixture.get(path).await;
        let head = fixture
            .ask(&format!(
                "HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert_eq!((get.status, head.status), (200, 200), "{path}");
        assert!(!get.body.is_empty() && head.body.is_empty(), "{path}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(get.header(name), Some(value), "{path}");
        }
    }
    assert_eq!(fixture.get("/api/v1/nothing").await.status, 404);
    assert_eq!(
        fixture
            .ask("POST /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .status,
        405
    );
    let long = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "a".repeat(40_000)
    );
    assert_eq!(fixture.ask_lenient(&long).await, Some(431));
    let override_ = "GET /livez HTTP/1.1\r\nHost: evil\r\nX-HTTP-Method-Override: POST\r\nX-Original-URL: /metrics\r\n\
                     Connection: close, upgrade\r\nUpgrade: h2c\r\n\r\n";
    assert_eq!(
        fixture.ask(override_).await.body,
        "ok\n",
        "no header changes the method or the path"
    );
}

impl Fixture {
    /// The status of a response whose connection may be reset while the request is still being
    /// sent.
    async fn ask_lenient(&self, request: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let _ = stream.write_all(request.as_bytes()).await;
        let mut start = [0; 12];
        soon("a response", stream.read_exact(&mut start))
            .await
            .ok()?;
        std::str::from_utf8(&start)
            .ok()?
            .strip_prefix("HTTP/1.1 ")?
            .parse()
            .ok()
    }
}

#[tokio::test]
async fn clients_that_never_finish_a_head_keep_no_other_client_out() {
    let fixture = Fixture::start().await;
    let (calm, mut slow) = (Fixture::start().await, Vec::new());
    let slow_to = async |address| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nX-Slow")
            .await
            .unwrap();
        stream
    };
    let mut timed_out = slow_to(calm.address).await;
    assert_eq!(calm.get("/livez").await.status, 200);
    for _ in 0..200 {
        slow.push(slow_to(fixture.address).await);
    }
    assert_eq!(fixture.get("/livez").await.status, 200);
    // The oldest client was closed to make room, not because its time was over. The youngest client
    // keeps its place.
    let (mut byte, mut other) = ([0; 1], [0; 1]);
    tokio::select! {
        biased;
        _ = timed_out.read(&mut other) => panic!("the earlier client, on a server that is not full, ran out of time first"),
        gone = soon("its end", slow[0].read(&mut byte)) => assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}"),
    }
    let last = slow.last_mut().unwrap();
    last.write_all(b": 1\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    soon("a response", last.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn the_admin_server_ends_on_request_although_clients_stay() {
    let fixture = Fixture::start().await;
    let mut slow = TcpStream::connect(fixture.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    assert_eq!(fixture.get("/livez").await.status, 200);
    fixture.stop.cancel();
    soon("its end", fixture.server).await.unwrap();
    assert!(
        TcpStream::connect(fixture.address).await.is_err(),
        "nothing listens any more"
    );
}

#[tokio::test]
async fn the_page_is_self_contained_and_loads_nothing_else() {
    let fixture = Fixture::start().await;
    let (one, two) = (fixture.get("/").await, fixture.get("/").await);
    assert_eq!(one.header("content-type"), Some("text/html; charset=utf-8"));
    for outside in [
        "http://",
        "https://",
        "src=\"/",
        "url(",
        "@import",
        "innerHTML",
        "insertAdjacentHTML",
        "eval(",
    ] {
        assert!(!one.body.contains(outside), "{outside}");
    }
    let policy = one.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"),
        "{policy}"
    );
    let nonce = policy
        .split("script-src 'nonce-")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap();
    assert_eq!(nonce.len(), 32);
    assert_eq!(
        one.body.matches(&format!("nonce=\"{nonce}\"")).count(),
        2,
        "style and script"
    );
    assert_eq!(
        one.body.matches("<script").count() + one.body.matches("<style").count(),
        2
    );
    assert!(!one.body.contains("{{"), "nothing left to fill in");
    assert!(one.body.len() <= 60_000, "{} bytes", one.body.len());
    assert_ne!(
        one.header("content-security-policy"),
        two.header("content-security-policy")
    );
}

#[tokio::test]
async fn the_status_command_prints_what_the_server_reports() {
    let mut fixture = Fixture::start().await;
    fixture.fill();
    let ask = async |url: String| {
        let asked = tokio::task::spawn_blocking(move || status(&url, false));
        soon("a response", asked)
            .await
            .unwrap()
            .map_err(|error| format!("{error:#}"))
    };
    ask(format!("http://{}", fixture.address)).await.unwrap();
    ask(fixture.address.to_string()).await.unwrap();
    let wrong = ask(format!("http://{}/prefix", fixture.address))
        .await
        .unwrap_err();
    assert!(
        wrong.contains("/prefix/api/v1/status returned 404") && wrong.contains("--admin"),
        "{wrong}"
    );
    fixture.stop.cancel();
    soon("its end", fixture.server).await.unwrap();
    let away = ask(format!("http://{}", fixture.address))
        .await
        .unwrap_err();
    assert!(
        away.contains(&fixture.address.to_string()) && away.contains("is ebbtide running"),
        "{away}"
    );
}

/// Debian's chromium, with options that keep it from contacting its servers. `None` where it is not
/// installed.
fn chromium(profile: &std::path::Path, args: &[&str]) -> Option<tokio::process::Child> {
    let quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
                 --disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=3000";
    tokio::process::Command::new("chromium")
        .args(quiet.split_whitespace())
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()
}

#[tokio::test]
async fn a_browser_shows_the_page_and_treats_names_as_text() {
    let mut fixture = Fixture::start().await;
    fixture.fill();
    let profile = tempfile::tempdir().unwrap();
    let url = format!("http://{}/", fixture.address);
    let Some(browser) = chromium(profile.path(), &["--dump-dom", &url]) else {
        println!(
            "SKIPPED: a_browser_shows_the_page_and_treats_names_as_text: chromium is not installed"
        );
        return;
    };
    let shown = soon("chromium's end", browser.wait_with_output())
        .await
        .unwrap();
    let dom = String::from_utf8(shown.stdout).unwrap();
    for text in [
        "mail/&lt;script&gt;alert(1)&lt;/script&gt;",
        ">shop-7d9c5b6f4-2xkqp<",
        ">shop-&lt;b&gt;tt6hd&lt;/b&gt;<",
        ">not answering<",
        ">joining<",
        ">draining · ",
        ">files: in order<",
        ">forced in ",
        ">permission denied<",
    ] {
        assert!(dom.contains(text), "{text} is not in\n{dom}");
    }
    assert!(
        !dom.contains("<script>alert"),
        "a Service's name became a script"
    );
}

#[tokio::test]
async fn a_browser_shows_when_the_proxy_is_unreachable() {
    let fixture = Fixture::start().await;
    // A server before the admin server. It serves the page and refuses all other requests.
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", front.local_addr().unwrap());
    let page = fixture.get("/").await;
    let page = format!("{}\r\n\r\n{}", page.head, page.body);
    let front = tokio::spawn(async move {
        loop {
            let (mut client, _) = front.accept().await.unwrap();
            let mut start = [0; 6];
            if client.read_exact(&mut start).await.is_ok() && &start == b"GET / " {
                let _ = client.write_all(page.as_bytes()).await;
            }
        }
    });
    let profile = tempfile::tempdir().unwrap();
    let Some(browser) = chromium(profile.path(), &["--dump-dom", &url]) else {
        println!(
            "SKIPPED: a_browser_shows_when_the_proxy_is_unreachable: chromium is not installed"
        );
        return;
    };
    let shown = soon("chromium's end", browser.wait_with_output())
        .await
        .unwrap();
    let dom = String::from_utf8(shown.stdout).unwrap();
    for text in [
        "class=\"banner bad\">Not reachable since ",
        ">not reachable<",
    ] {
        assert!(dom.contains(text), "{text} is not in\n{dom}");
    }
    front.abort();
}

/// Pictures of the page, to look at. `make pictures` runs this.
#[tokio::test]
#[ignore = "makes pictures to look at and asserts nothing: `make pictures`"]
async fn pictures() {
    let folder = std::path::PathBuf::from(
        std::env::var("EBBTIDE_SHOTS").expect("EBBTIDE_SHOTS names a folder"),
    );
    std::fs::create_dir_all(&folder).unwrap();
    let empty = Fixture::start().await;
    empty.synced();
    let mut full = Fixture::start().await;
    full.fill();
    full.admin
        .health
        .report(vec![problem("manifests/shop.yaml")]);
    let mut large = Fixture::start().await;
    large.synced();
    let shop = key("web", "shop", 80);
    let many: Vec<_> = (0..200)
        .map(|n| large.endpoint(Some(&format!("shop-7d9c5b6f4-{n:05}")), n % 7, 3))
        .collect();
    for endpoint in many.iter().step_by(9) {
        large.drain(
            endpoint,
            &shop,
            Trigger::PodDeleted,
            Duration::from_secs(30),
        );
        if endpoint.leases() == 0 {
            large.admin.drains.end(endpoint.id, None).unwrap();
        }
    }
    large.publish(vec![(shop, many)]);
    for (name, fixture) in [("empty", &empty), ("full", &full), ("large", &large)] {
        // Chromium's setting: 0 is dark, 1 is light.
        for (look, size, scheme) in [
            ("wide", "1280,1400", 1),
            ("narrow", "390,2000", 1),
            ("dark", "1280,1400", 0),
        ] {
            let profile = tempfile::tempdir().unwrap();
            let picture = format!("--screenshot={}/{name}-{look}.png", folder.display());
            let (size, url) = (
                format!("--window-size={size}"),
                format!("http://{}/", fixture.address),
            );
            let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
            let mut browser =
                chromium(profile.path(), &[&picture, &size, &scheme, &url]).expect("chromium");
            soon("chromium's end", browser.wait()).await.unwrap();
        }
    }
}
