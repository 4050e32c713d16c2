//! `kubectl ebbtide`: the program under the plugin's name reads the pages of a pod through the API server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::binary::BINARY;

/// An API server that answers these paths, and forbids everything else. Ends with the test.
fn api_server(answers: Vec<(&'static str, Value)>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let seen = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut lines = reader.by_ref().lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            let _: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
            let found = answers.iter().find(|(path, _)| target.starts_with(path));
            let (status, body) = match found {
                Some((_, body)) => ("200 OK", body.clone()),
                None => (
                    "403 Forbidden",
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                        "reason": "Forbidden", "message": "you may not do that"}),
                ),
            };
            seen.lock().unwrap().push(target);
            let body = body.to_string();
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            let _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    (format!("http://{address}"), asked)
}

/// Runs the plugin with a kubeconfig for this API server.
fn plugin(folder: &Path, server: &str, arguments: &[&str]) -> Output {
    let name = folder.join("kubectl-ebbtide");
    if !name.exists() {
        std::os::unix::fs::symlink(BINARY, &name).unwrap();
    }
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(folder.join("config"), config.to_string()).unwrap();
    Command::new(name)
        .args(arguments)
        .env("KUBECONFIG", folder.join("config"))
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .unwrap()
}

fn pod(name: &str, is_leaving: bool) -> Value {
    let mut metadata = json!({"namespace": "ebbtide-system", "name": name});
    if is_leaving {
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata})
}

fn pods() -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {},
        "items": [pod("ebbtide-a", true), pod("ebbtide-c", false), pod("ebbtide-b", false)]})
}

const RECEIPT: [&str; 4] = ["receipt", "web/shop", "-o", "json"];

#[test]
fn a_plugin_asks_a_pod_of_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let proxied = "/api/v1/namespaces/ebbtide-system/pods/ebbtide-b:9901/proxy/api/v1/drains";
    let drains = json!({"running": [], "finished": [], "rollouts": [], "gate": []});
    let status = json!({"version": "", "uptimeSeconds": 1, "listeners": [],
        "discovery": {"source": "kubernetes", "synced": true, "ageSeconds": 0},
        "services": [{"namespace": "web", "name": "shop", "port": 80, "endpoints": []}]});
    let (server, asked) = api_server(vec![
        ("/api/v1/pods?", pods()),
        (proxied, drains),
        (
            "/api/v1/namespaces/ebbtide-system/pods/ebbtide-b:9901/proxy/api/v1/status",
            status,
        ),
    ]);
    let output = plugin(folder.path(), &server, &RECEIPT);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, json!({"service": "web/shop", "rollouts": []}));
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(
        asked[0].contains("labelSelector=app.kubernetes.io%2Fname%3Debbtide"),
        "{asked:?}"
    );
    assert_eq!(asked[1], proxied);
    let unknown = plugin(folder.path(), &server, &["receipt", "web/shpo"]);
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(1), "{said}");
    assert!(
        said.contains("no Service web/shpo; did you mean web/shop?"),
        "{said}"
    );
}

#[test]
fn what_a_plugin_lacks_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _) = api_server(vec![("/api/v1/pods?", pods())]);
    let said = |output: Output| {
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let forbidden = said(plugin(folder.path(), &server, &RECEIPT));
    let right = "you may not do that (it needs get of pods/proxy in ebbtide-system)";
    assert!(forbidden.contains(right), "{forbidden}");
    let (server, _) = api_server(Vec::new());
    let forbidden = said(plugin(folder.path(), &server, &RECEIPT));
    assert!(
        forbidden.contains("list of pods in all namespaces"),
        "{forbidden}"
    );
    let (server, _) = api_server(vec![(
        "/api/v1/pods?",
        json!({"apiVersion": "meta.k8s.io/v1",
        "kind": "PartialObjectMetadataList", "metadata": {}, "items": []}),
    )]);
    let nobody = said(plugin(folder.path(), &server, &RECEIPT));
    assert!(
        nobody.contains("is Ebbtide deployed in this cluster?"),
        "{nobody}"
    );
}

/// The program's own name leads to the machine's own instance.
#[test]
fn the_name_decides_whom_the_program_asks_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let help = |program: &Path| {
        let output = Command::new(program)
            .args(["status", "--help"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let name = folder.path().join("kubectl-ebbtide");
    std::os::unix::fs::symlink(BINARY, &name).unwrap();
    assert!(help(&name).contains("[default: cluster]"));
    assert!(help(Path::new(BINARY)).contains("[default: http://127.0.0.1:9901]"));
}

/// A place that is none is a wrong argument. For `wait`, 1 would mean that a pod has not been let go of.
#[test]
fn a_place_that_is_none_is_refused() {
    for place in [
        "https://127.0.0.1:9901",
        "ftp://x",
        "http://127.0.0.1:9901?x",
        "",
        "pod/a",
        "pod/a/b:99999",
    ] {
        for command in [&["status"][..], &["wait", "--drained", "pod/a"]] {
            let output = Command::new(BINARY)
                .args(command)
                .args(["--admin", place])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{place:?}: {said}");
            assert!(
                said.contains("--admin: ") && said.contains("expected"),
                "{said}"
            );
        }
    }
}
