//! The commands that query an API server once, `drill` and `check`, against an API server within
//! this file.
//!
//! This server stores what it is given and reports every rollout as done. Behind its nodePorts are
//! sample applications on this machine. `tests/cluster` runs a drill against a real cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use ebbtide::command::demo::child;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::binary::BINARY;
use crate::support::wait::eventually;
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/web/deployments/ebbtide-drill";
const SERVICE: &str = "/api/v1/namespaces/web/services/ebbtide-drill";
const PLAIN: &str = "/api/v1/namespaces/web/services/ebbtide-drill-plain";

#[tokio::test]
async fn a_drill_removes_what_is_left_compares_rolls_judges_and_cleans_up() {
    let cluster = Cluster::start().await;
    cluster.put(PLAIN, object("Service", "ebbtide-drill-plain", true));
    let page = cluster.folder.path().join("report.html");
    let mut drill = cluster.drill(&["--for", "5s", "--report"]);
    let output = drill.arg(&page).output().await.unwrap();
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(
        page.contains("<h2>NodePort as it is</h2>") && page.contains("<h2>Ebbtide</h2>"),
        "{page}"
    );
    assert!(
        out.contains("NodePort as it is      2,500        0"),
        "{out}"
    );
    assert!(
        out.contains(
            "Ebbtide answered every request on the 8 connections first opened;\nbehind the NodePort"
        ),
        "{out}"
    );
    assert!(
        out.contains("pods of ebbtide:dev that exit"),
        "the default image when there is no DaemonSet: {out}"
    );
    let log = cluster.log();
    let made = |path: &str| {
        log.iter()
            .position(|line| line == &format!("POST {path}"))
            .unwrap_or_else(|| panic!("{log:?}"))
    };
    let gone = |path: &str| {
        log.iter()
            .rposition(|line| line == &format!("DELETE {path}"))
            .unwrap()
    };
    assert!(
        log.iter()
            .position(|line| line == &format!("DELETE {PLAIN}"))
            .unwrap()
            < made(DEPLOYMENT),
        "{log:?}"
    );
    assert!(
        made(DEPLOYMENT) < made(SERVICE) && made(SERVICE) < made(PLAIN),
        "{log:?}"
    );
    assert!(
        gone(PLAIN) < gone(SERVICE) && gone(SERVICE) < gone(DEPLOYMENT),
        "{log:?}"
    );
    assert!(
        log.iter().filter(|line| line.starts_with("PATCH")).count() >= 2,
        "an update in each phase: {log:?}"
    );
    assert_eq!(cluster.held(), [""; 0]);
}

#[tokio::test]
async fn a_drill_claims_and_drills_as_the_deployed_ebbtide_is_configured() {
    let cluster = Cluster::start().await;
    let set = json!({"metadata": {"name": "ebbtide"}, "spec": {"template": {"spec": {
        "containers": [{"name": "net", "image": "other"}, {"name": "ebbtide", "image": "ours:1"}],
        "volumes": [{"name": "table"}, {"name": "config", "configMap": {"name": "settings"}}],
    }}}});
    cluster.put(
        "/apis/apps/v1/namespaces/ebbtide-system/daemonsets/ebbtide",
        set,
    );
    let config = "services: {proxyName: mine, addresses: on}\n";
    let map = "/api/v1/namespaces/ebbtide-system/configmaps/settings";
    cluster.put(
        map,
        json!({"metadata": {"name": "settings"}, "data": {"ebbtide.yaml": config}}),
    );
    let run = async |more: &[&str]| {
        let arguments = [&["--for", "5s", "--without-comparison", "--keep"], more].concat();
        let output = cluster.drill(&arguments).output().await.unwrap();
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
        let label = &cluster.state().objects[SERVICE]["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"];
        (out, label.clone())
    };
    let (out, label) = run(&[]).await;
    assert_eq!(label, "mine");
    assert!(out.contains("pods of ours:1 that exit"), "{out}");
    assert!(
        out.contains("2/2  Ebbtide, by the cluster IP of the Service"),
        "{out}"
    );
    for row in ["     Ebbtide              ", "     Ebbtide, cluster IP  "] {
        let clean =
            |line: &str| line.starts_with(row) && line.split_whitespace().any(|it| it == "2,500");
        assert!(out.lines().any(clean), "{row}: {out}");
    }
    // A workstation, and the user's word.
    cluster.state().cluster_ip = "127.0.0.2";
    let (out, label) = run(&["--proxy-name", "theirs"]).await;
    assert_eq!(label, "theirs");
    assert!(
        out.contains("no response from 127.0.0.2:") && !out.contains("Ebbtide, cluster IP  "),
        "{out}"
    );
}

#[tokio::test]
async fn a_lost_socket_is_a_failure_and_is_cleaned_up_after() {
    let mut cluster = Cluster::start().await;
    let drill = cluster
        .drill(&["--for", "5s", "--without-comparison"])
        .spawn()
        .unwrap();
    cluster.logged("PATCH").await;
    let address = cluster.apps[0].1;
    cluster.apps.remove(0).0.kill().await.unwrap();
    cluster.apps.insert(0, sample_app(address).await);
    let output = drill.wait_with_output().await.unwrap();
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{out}\n{err}");
    assert!(
        out.contains("its 8 clients used") && !out.contains("NodePort as it is"),
        "{out}"
    );
    assert_eq!(cluster.held(), [""; 0]);
}

#[tokio::test]
async fn a_load_without_a_replaced_pod_is_no_success() {
    let cluster = Cluster::start().await;
    cluster.state().stuck = true;
    let output = cluster
        .drill(&["--for", "5s", "--without-comparison"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{:?}", texts(&output));
    assert!(
        texts(&output)
            .1
            .contains("ebbtide: no pod was replaced while the load ran"),
        "{:?}",
        texts(&output)
    );
    assert_eq!(cluster.held(), [""; 0]);
}

#[tokio::test]
async fn an_interrupted_drill_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        // While objects are created, and under load.
        for moment in ["POST", "PATCH"] {
            let cluster = Cluster::start().await;
            let drill = cluster.drill(&["--for", "60s"]).spawn().unwrap();
            cluster.logged(moment).await;
            child::signal(&drill, signal);
            let output = drill.wait_with_output().await.unwrap();
            assert_eq!(output.status.code(), Some(1), "{:?}", texts(&output));
            assert!(
                texts(&output).1.contains("ebbtide drill: interrupted"),
                "{:?}",
                texts(&output)
            );
            assert_eq!(cluster.held(), [""; 0], "{signal:?} at {moment}");
        }
    }
}

#[tokio::test]
async fn a_drill_cleans_up_after_its_reader_has_gone() {
    let cluster = Cluster::start().await;
    let mut drill = cluster
        .drill(&["--for", "5s", "--without-comparison"])
        .spawn()
        .unwrap();
    drop((drill.stdout.take(), drill.stderr.take()));
    assert_eq!(drill.wait().await.unwrap().code(), Some(0));
    assert_eq!(cluster.held(), [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_removed_is_named_with_its_cure() {
    let cluster = Cluster::start().await;
    cluster.state().undeletable = true;
    let output = cluster
        .drill(&["--for", "5s", "--without-comparison"])
        .output()
        .await
        .unwrap();
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains(
            "ebbtide drill: cannot remove Deployment web/ebbtide-drill: no deletion today\n"
        ),
        "{err}"
    );
    let cure = "to remove it by hand: kubectl --namespace web delete deployment,service --selector \
                app.kubernetes.io/managed-by=ebbtide-drill\n";
    assert!(err.contains(cure), "{err}");
    assert_eq!(cluster.held(), [SERVICE, DEPLOYMENT]);
}

#[tokio::test]
async fn kept_objects_stay_and_the_command_to_remove_them_is_printed() {
    let cluster = Cluster::start().await;
    let output = cluster
        .drill(&["--for", "5s", "--without-comparison", "--keep"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}", texts(&output));
    assert!(
        texts(&output)
            .0
            .contains("kept, because of --keep; to remove it: kubectl --namespace web delete")
    );
    assert_eq!(cluster.held(), [SERVICE, DEPLOYMENT]);
}

#[tokio::test]
async fn a_drill_refuses_what_it_cannot_do_before_it_creates_anything() {
    let cluster = Cluster::start().await;
    let refused = async |arguments: &[&str]| {
        let output = cluster.drill(arguments).output().await.unwrap();
        let (out, err) = texts(&output);
        assert_eq!((output.status.code(), out.as_str()), (Some(2), ""), "{err}");
        assert!(
            !cluster.log().iter().any(|line| line.starts_with("POST")),
            "{:?}",
            cluster.log()
        );
        assert_eq!(err.lines().count(), 1, "{err}");
        err
    };
    cluster.state().denied = vec!["create services".into(), "list nodes".into()];
    let expected = "ebbtide: drill: you may not create services in namespace web; list nodes cluster-wide: ask for this right; \
                    with --address the nodes are not needed\n";
    assert_eq!(refused(&[]).await, expected);
    cluster.state().denied = vec!["create services".into()];
    assert_eq!(
        refused(&[]).await,
        "ebbtide: drill: you may not create services in namespace web: ask for this right\n"
    );

    cluster.state().denied.clear();
    cluster.put(SERVICE, object("Service", "ebbtide-drill", false));
    let expected = "ebbtide: drill: namespace web has a Service ebbtide-drill that no drill made (it lacks the label \
                    app.kubernetes.io/managed-by=ebbtide-drill); choose another --namespace, or remove it: kubectl \
                    --namespace web delete service ebbtide-drill\n";
    assert_eq!(refused(&[]).await, expected);
    assert_eq!(
        cluster.held(),
        [SERVICE],
        "it is not the drill's, and still there"
    );
    cluster.state().objects.clear();

    assert_eq!(
        refused(&["--for", "4s"]).await,
        "ebbtide: drill: --for must be at least 5s, to have time for an update\n"
    );
    assert!(
        refused(&["--address", "nowhere"])
            .await
            .contains("--address: \"nowhere\" cannot be resolved, expected HOST:PORT")
    );
    cluster.state().no_namespace = true;
    assert_eq!(
        refused(&[]).await,
        "ebbtide: drill: namespaces \"web\" not found\n"
    );
    cluster.state().no_namespace = false;
    cluster.state().nodes = json!([]);
    assert!(refused(&[]).await.contains("no node is ready"));
}

#[tokio::test]
async fn bad_arguments_and_no_cluster_are_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["drill"][..],
        &["drill", "-n", "a/b"],
        &["drill", "-n", "-"],
        &["drill", "-n", "web", "--for", "1"],
    ] {
        let output = Command::new(BINARY).args(arguments).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let config = folder.path().join("ebbtide.yaml");
    std::fs::write(&config, "discovery: {kubernetes: {}}\n").unwrap();
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    for kubeconfig in [
        folder.path().join("none"),
        write_kubeconfig(&folder, closed),
    ] {
        for arguments in [
            &["drill", "-n", "web"][..],
            &["check", "-c", config.to_str().unwrap()],
        ] {
            let mut command = Command::new(BINARY);
            let output = command
                .args(arguments)
                .env("KUBECONFIG", &kubeconfig)
                .env("HOME", folder.path())
                .output();
            let output = output.await.unwrap();
            let (out, err) = texts(&output);
            assert_eq!(
                (output.status.code(), out.as_str(), err.lines().count()),
                (Some(2), "", 1),
                "{arguments:?}: {err}"
            );
        }
    }
}

#[tokio::test]
async fn check_reports_version_rights_and_claims_and_shows_what_would_serve() {
    let cluster = Cluster::start().await;
    let path = "/api/v1/namespaces/web/services/app";
    cluster.put(
        path,
        json!({
            "metadata": {
                "name": "app", "namespace": "web", "labels": {"service.kubernetes.io/service-proxy-name": "ebbtide"},
            },
            "spec": {"trafficDistribution": "PreferClose", "ports": [
                {"name": "http", "port": 80, "nodePort": 30080}, {"name": "voice", "port": 5060, "protocol": "SCTP"},
            ]},
        }),
    );
    cluster.put(
        "/apis/discovery.k8s.io/v1/namespaces/web/endpointslices/app-1",
        json!({
            "metadata": {"name": "app-1", "namespace": "web", "labels": {"kubernetes.io/service-name": "app"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "a", "uid": "1"}},
                {"addresses": ["10.0.0.2"], "targetRef": {"kind": "Pod", "name": "b", "uid": "2"}},
                {"addresses": ["127.0.0.5"]},
            ],
        }),
    );
    cluster.put(
        "/api/v1/namespaces/web/pods/a",
        json!({"metadata": {"name": "a", "namespace": "web", "uid": "1"}}),
    );
    cluster.put(
        "/api/v1/namespaces/web/pods/b",
        json!({"metadata": {
            "name": "b", "namespace": "web", "uid": "2",
            "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30,
        }}),
    );
    let (code, out, err) = cluster.check("nodePorts: {addresses: [0.0.0.0]}\n").await;
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(
        out.starts_with(&format!(
            "API server http://{}/ (v1.35.8), as admin\n",
            cluster.address
        )),
        "{out}"
    );
    let (_, tables) = out.split_once("\n\n").unwrap();
    let expected = "\
LISTENER    ADDRESS        SERVICE  PORT       PROTOCOL  ENDPOINTS
(nodePort)  0.0.0.0:30080  web/app  http (80)  auto      1 of 2 ready

SERVICE  PORT       PROTOCOL  ENDPOINT       POD  STATE
web/app  http (80)  auto      10.0.0.1:8080  a    ready
web/app  http (80)  auto      10.0.0.2:8080  b    terminating, serving

warning: web/app: spec.ports[1].protocol: SCTP is not served, and the claim keeps kube-proxy from serving it; if it is in \
use, claim a second Service with the same selector instead
warning: web/app: EndpointSlice web/app-1: loopback addresses are dropped: 127.0.0.5
";
    assert_eq!(tables, expected);

    // The API server's pods are no pods of Ebbtide, so its node is not served.
    let addresses = "services: {addresses: on, nodeAddresses: [192.0.2.1]}\n";
    let (_, out, _) = cluster.check(addresses).await;
    let expected =
        "warning: node n: its clients do not reach claimed Services: no pod of Ebbtide is there";
    assert!(out.contains(expected), "{out}");
    let event = json!({
        "metadata": {"name": "e", "namespace": "default"}, "reportingController": "ebbtide.dev/ebbtide",
        "note": "a firewall keeps pods away", "regarding": {"kind": "Node", "name": "n"},
    });
    cluster.put("/apis/events.k8s.io/v1/namespaces/default/events/e", event);
    let (_, out, _) = cluster.check(addresses).await;
    let expected = "warning: node n reported: a firewall keeps pods away";
    assert!(out.contains(expected), "{out}");

    cluster.state().denied = vec![
        "watch pods".into(),
        "list endpointslices".into(),
        "create events".into(),
        "get nodes".into(),
    ];
    cluster.state().minor = "25";
    let (code, out, err) = cluster
        .check("listeners: [{name: x, address: '127.0.0.1:1', service: none/y, port: 1}]\n")
        .await;
    assert_eq!(code, Some(2));
    let expected = "\
error: API server http://HERE/: version v1.25.8 is too old; upgrade it to 1.26, the first whose EndpointSlices always say \
which endpoints terminate, and whether they still serve
error: RBAC: may not list endpointslices.discovery.k8s.io cluster-wide: grant it as deploy/kustomize/base/rbac.yaml does
error: RBAC: may not watch pods cluster-wide: grant it as deploy/kustomize/base/rbac.yaml does
";
    assert_eq!(err.replace(&cluster.address.to_string(), "HERE"), expected);
    for warning in [
        "RBAC: may not create events.events.k8s.io cluster-wide: `kubectl get events` then does not show what",
        "RBAC: may not get nodes cluster-wide: zone hints of slices then count only with NODE_ZONE, and pods are known only by services.podCIDRs; grant it",
        "namespace none does not exist; create or correct it",
        "listener x: the cluster has no Service none/y",
        "web/app: claimed, but no listener serves it; add a listener, or nodePorts",
    ] {
        assert!(
            out.contains(&format!("\nwarning: {warning}")),
            "{out}\n  lacks\n{warning}"
        );
    }
}

// ---- the API server

struct Cluster {
    address: SocketAddr,
    /// What is behind the nodePorts, in the order in which the Services are created.
    apps: Vec<(Child, SocketAddr)>,
    folder: TempDir,
    state: Arc<Mutex<Api>>,
}

struct Api {
    objects: BTreeMap<String, Value>,
    /// The requests that change something, except dry runs and reviews.
    log: Vec<String>,
    node_ports: Vec<u16>,
    cluster_ip: &'static str,
    nodes: Value,
    /// Each entry is `verb resource`.
    denied: Vec<String>,
    minor: &'static str,
    no_namespace: bool,
    undeletable: bool,
    /// An update never rolls out.
    stuck: bool,
}

impl Cluster {
    async fn start() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let apps = vec![sample_app(any).await, sample_app(any).await];
        let ready = json!({"type": "Ready", "status": "True"});
        let address = json!({"type": "InternalIP", "address": "127.0.0.1"});
        let state = Arc::new(Mutex::new(Api {
            objects: BTreeMap::new(),
            log: Vec::new(),
            node_ports: apps.iter().map(|(_, address)| address.port()).collect(),
            cluster_ip: "127.0.0.1",
            nodes: json!([{"metadata": {"name": "n"}, "status": {"conditions": [ready], "addresses": [address]}}]),
            denied: Vec::new(),
            minor: "35",
            no_namespace: false,
            undeletable: false,
            stuck: false,
        }));
        let listener = tokio::net::TcpListener::bind(any).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            address,
            apps,
            folder: tempfile::tempdir().unwrap(),
            state,
        }
    }

    fn state(&self) -> MutexGuard<'_, Api> {
        self.state.lock().unwrap()
    }

    fn put(&self, path: &str, object: Value) {
        self.state().objects.insert(path.to_owned(), object);
    }

    fn held(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    async fn logged(&self, what: &str) {
        eventually(what, async || {
            self.log().iter().any(|line| line.starts_with(what))
        })
        .await;
    }

    fn drill(&self, arguments: &[&str]) -> Command {
        let mut command = child::ebbtide(BINARY.as_ref());
        command
            .args(["drill", "--namespace", "web"])
            .args(arguments);
        command.env("KUBECONFIG", write_kubeconfig(&self.folder, self.address));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn check(&self, more: &str) -> (Option<i32>, String, String) {
        let kubeconfig = write_kubeconfig(&self.folder, self.address);
        let config = self.folder.path().join("ebbtide.yaml");
        let text = format!(
            "discovery: {{kubernetes: {{kubeconfig: '{}'}}}}\n{more}",
            kubeconfig.display()
        );
        std::fs::write(&config, text).unwrap();
        let output = Command::new(BINARY)
            .args(["check", "--config"])
            .arg(&config)
            .output()
            .await
            .unwrap();
        let (out, err) = texts(&output);
        (output.status.code(), out, err)
    }
}

async fn answer(State(api): State<Arc<Mutex<Api>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let is_dry = parts
        .uri
        .query()
        .is_some_and(|query| query.contains("dryRun"));
    api.lock()
        .unwrap()
        .answer(&parts.method, parts.uri.path(), is_dry, body)
}

impl Api {
    fn answer(&mut self, method: &Method, path: &str, is_dry: bool, mut body: Value) -> Response {
        if path == "/version" {
            let git = format!("v1.{}.8", self.minor);
            let rest = json!({"major": "1", "minor": self.minor, "gitVersion": git, "buildDate": "", "compiler": "",
                "gitCommit": "", "gitTreeState": "", "goVersion": "", "platform": ""});
            return Json(rest).into_response();
        }
        if path.ends_with("/selfsubjectaccessreviews") {
            let of = |name: &str| {
                body["spec"]["resourceAttributes"][name]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            let allowed = !self
                .denied
                .contains(&format!("{} {}", of("verb"), of("resource")));
            body["status"] = json!({"allowed": allowed});
            return Json(body).into_response();
        }
        if path.ends_with("/selfsubjectreviews") {
            body["status"] = json!({"userInfo": {"username": "admin"}});
            return Json(body).into_response();
        }
        if path == "/api/v1/nodes" {
            return Json(json!({"metadata": {}, "items": self.nodes})).into_response();
        }
        let collection = path.rsplit('/').next().unwrap_or_default();
        let is_collection = [
            "services",
            "deployments",
            "pods",
            "endpointslices",
            "events",
        ]
        .contains(&collection);
        match *method {
            Method::GET if self.denied.contains(&format!("list {collection}")) => {
                status(403, "not to be listed")
            }
            Method::GET if is_collection => {
                let items: Vec<&Value> = self
                    .objects
                    .iter()
                    .filter(|(path, _)| path.contains(&format!("/{collection}/")))
                    .map(|it| it.1)
                    .collect();
                Json(json!({"metadata": {}, "items": items})).into_response()
            }
            Method::GET => {
                let Some(object) = self.objects.get(path).cloned() else {
                    return status(404, "not found");
                };
                if object["metadata"]["deletionTimestamp"].is_string() {
                    self.objects.remove(path);
                }
                Json(object).into_response()
            }
            Method::POST if self.no_namespace => status(404, "namespaces \"web\" not found"),
            Method::POST => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return status(409, "already exists");
                }
                body["metadata"]["uid"] = json!(path);
                if collection == "services" {
                    let port = self.node_ports[usize::from(path == PLAIN)];
                    body["spec"]["ports"][0]["nodePort"] = json!(port);
                    // As the cluster IP, so to say.
                    body["spec"]["ports"][0]["port"] = json!(port);
                    body["spec"]["clusterIP"] = json!(self.cluster_ip);
                } else {
                    body["status"] =
                        json!({"replicas": 3, "updatedReplicas": 3, "availableReplicas": 3});
                }
                if !is_dry {
                    self.log.push(format!("POST {path}"));
                    self.objects.insert(path, body.clone());
                }
                (StatusCode::CREATED, Json(body)).into_response()
            }
            Method::PATCH => {
                self.log.push(format!("PATCH {path}"));
                let at =
                    &body["spec"]["template"]["metadata"]["annotations"]["ebbtide.dev/drilled-at"];
                assert!(at.is_string(), "a change of the pod template: {body}");
                let Some(object) = self.objects.get_mut(path) else {
                    return status(404, "not found");
                };
                if self.stuck {
                    object["metadata"]["generation"] = json!(2);
                }
                Json(object.clone()).into_response()
            }
            Method::DELETE if self.undeletable => status(403, "no deletion today"),
            Method::DELETE => {
                self.log.push(format!("DELETE {path}"));
                assert_eq!(body["propagationPolicy"], "Foreground");
                let Some(object) = self.objects.get_mut(path) else {
                    return status(404, "not found");
                };
                assert_eq!(
                    body["preconditions"]["uid"], object["metadata"]["uid"],
                    "only the object that was read before"
                );
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                Json(object.clone()).into_response()
            }
            _ => status(405, "what?"),
        }
    }
}

fn status(code: u16, message: &str) -> Response {
    let reason = if code == 404 { "NotFound" } else { "Other" };
    let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": reason});
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}

fn object(kind: &str, name: &str, ours: bool) -> Value {
    let labels = if ours {
        json!({"app.kubernetes.io/managed-by": "ebbtide-drill"})
    } else {
        json!({})
    };
    json!({"kind": kind, "metadata": {"name": name, "namespace": "web", "uid": "left", "labels": labels}})
}

fn write_kubeconfig(folder: &TempDir, server: SocketAddr) -> PathBuf {
    let path = folder.path().join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{server}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&path, text.to_string()).unwrap();
    path
}

async fn sample_app(listen: SocketAddr) -> (Child, SocketAddr) {
    let mut command = child::sample_app(BINARY.as_ref());
    let mut app = command
        .args(["--listen", &listen.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(app.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    (
        app,
        line.strip_prefix("listening ").unwrap().parse().unwrap(),
    )
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
