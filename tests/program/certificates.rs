//! What `ebbtide check` says of the certificates that listeners show.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::binary::BINARY;

/// A certificate that is valid from one year to another, and its key.
fn pair(from: i32, to: i32) -> (String, String) {
    let mut wanted = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    wanted.not_before = rcgen::date_time_ymd(from, 1, 1);
    wanted.not_after = rcgen::date_time_ymd(to, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    (wanted.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn secret(folder: &Path, name: &str, certificate: &str, key: &str) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"namespace": "web", "name": name},
        "stringData": {"tls.crt": certificate, "tls.key": key},
    });
    std::fs::write(folder.join(format!("{name}.json")), secret.to_string()).unwrap();
}

#[test]
fn what_is_missing_or_broken_is_a_problem_and_what_clients_refuse_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let (good, old, new) = (pair(2020, 2090), pair(2000, 2001), pair(2089, 2090));
    std::fs::write(folder.path().join("a.crt"), &old.0).unwrap();
    std::fs::write(folder.path().join("a.key"), &old.1).unwrap();
    secret(&manifests, "good", &good.0, &good.1);
    secret(&manifests, "early", &new.0, &new.1);
    secret(&manifests, "torn", &good.0, &old.1);
    let config = "discovery: {files: {path: manifests}}\nlisteners: [{name: web, address: '127.0.0.1:0', service: web/shop, port: 80, \
                  tls: {certificates: [{certificate: a.crt, key: a.key}], secrets: [web/good, web/early, web/torn, web/none]}}]\n";
    std::fs::write(folder.path().join("ebbtide.yaml"), config).unwrap();
    let output = Command::new(BINARY)
        .args(["check", "--config"])
        .arg(folder.path().join("ebbtide.yaml"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{out}{err}");
    for (expected, page) in [
        (
            "a.crt: the certificate expired at 2001-01-01T00:00:00Z",
            &out,
        ),
        (
            "Secret web/early: the certificate is valid from 2089-01-01T00:00:00Z on",
            &out,
        ),
        (
            "listener web: Secret web/torn: the private key does not belong to the certificate",
            &err,
        ),
        (
            "listener web: Secret web/none: there is no such Secret",
            &err,
        ),
    ] {
        assert!(page.contains(expected), "{expected}\n{out}{err}");
    }
    let swapped = config.replace(
        "certificate: a.crt, key: a.key",
        "certificate: a.key, key: a.crt",
    );
    std::fs::write(folder.path().join("ebbtide.yaml"), swapped).unwrap();
    let refused = Command::new(BINARY)
        .args(["check", "--config"])
        .arg(folder.path().join("ebbtide.yaml"))
        .output()
        .unwrap();
    let said = text(&refused.stderr);
    assert!(
        said.contains("a.key\" holds the private key, and ")
            && said.contains("a.crt\" the certificate;"),
        "{said}"
    );
    assert!(
        !out.contains("web/good") && !err.contains("web/good"),
        "{out}{err}"
    );
    assert!(!(out + &err).contains(&good.1[40..60]));
}

#[test]
fn authorities_that_services_name_and_that_are_missing_or_broken_are_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let write = |name: &str, object: &serde_json::Value| {
        std::fs::write(manifests.join(format!("{name}.json")), object.to_string()).unwrap();
    };
    let good = pair(2020, 2090).0;
    for (field, of, pem) in [
        ("caSecret", "broken", "no PEM"),
        ("caConfigMap", "good", &good),
    ] {
        let (kind, data) = match field {
            "caSecret" => ("Secret", "stringData"),
            _ => ("ConfigMap", "data"),
        };
        let metadata = json!({"namespace": "web", "name": of});
        write(
            &format!("{of}-ca"),
            &json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, data: {"ca.crt": pem}}),
        );
        for (name, of) in [(of.to_owned(), of), (format!("no-{of}"), "none")] {
            let backend = json!({"hostname": "shop.example", field: of}).to_string();
            let annotations = json!({"ebbtide.dev/backend-tls": backend});
            let labels = json!({"service.kubernetes.io/service-proxy-name": "ebbtide"});
            let metadata = json!({"namespace": "web", "name": name, "labels": labels,
                "annotations": annotations});
            let ports = json!([{"port": 80, "appProtocol": "https"}]);
            write(
                &format!("{name}-service"),
                &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
                    "spec": {"ports": ports}}),
            );
        }
    }
    let config = folder.path().join("ebbtide.yaml");
    std::fs::write(&config, "discovery: {files: {path: manifests}}\n").unwrap();
    let output = Command::new(BINARY)
        .args(["check", "--config"])
        .arg(config)
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let named = out
        .lines()
        .filter_map(|it| it.strip_prefix("warning: "))
        .filter(|it| it.contains("backend-tls"));
    let named: Vec<&str> = named.collect();
    let until = "until it gives authorities, the endpoints are refused";
    let of =
        |name: &str, what: &str| format!("web/{name}: ebbtide.dev/backend-tls: {what}; {until}");
    let nowhere = "no manifest has it with the key ca.crt";
    let expected = [
        of("no-broken", &format!("Secret web/none: {nowhere}")),
        of("no-good", &format!("ConfigMap web/none: {nowhere}")),
    ];
    assert!(
        named[0].starts_with("web/broken: ebbtide.dev/backend-tls: Secret web/broken: ca.crt: ")
    );
    assert!(named[0].ends_with(until), "{named:?}");
    assert_eq!(named[1..], expected, "{out}");
}
