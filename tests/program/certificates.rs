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
