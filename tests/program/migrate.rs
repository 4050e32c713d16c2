//! `ebbtide check --migrate nginx`: what would differ for each Ingress of ingress-nginx.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::binary::BINARY;

fn ingress(name: &str, class: &str, path: &str, annotations: &[(&str, &str)]) -> Value {
    let backend = json!({"service": {"name": "shop", "port": {"number": 80}}});
    let paths = json!([{"path": path, "pathType": "ImplementationSpecific", "backend": backend}]);
    let annotations = annotations.iter().map(|(key, value)| {
        let key = format!("nginx.ingress.kubernetes.io/{key}");
        (key, json!(value))
    });
    let annotations: serde_json::Map<String, Value> = annotations.collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"namespace": "web", "name": name, "annotations": annotations},
        "spec": {"ingressClassName": class, "rules": [{"http": {"paths": paths}}]},
    })
}

#[test]
fn what_would_differ_is_shown_for_each_ingress_of_ingress_nginx() {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let items = json!([
        {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "web", "name": "shop"},
            "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "inner"},
            "spec": {"controller": "k8s.io/ingress-nginx"}},
        ingress("good", "nginx", "/", &[("ssl-redirect", "true")]),
        ingress("guarded", "inner", "/", &[("auth-url", "http://auth"), ("proxy-read-timeout", "300")]),
        ingress("other", "traefik", "/", &[]),
        ingress("regex", "nginx", "/[a-z]+", &[("use-regex", "true"), ("server-snippet", "x")]),
    ]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    std::fs::write(manifests.join("all.json"), list.to_string()).unwrap();
    let config = folder.path().join("ebbtide.yaml");
    std::fs::write(&config, "discovery: {files: {path: manifests}}\n").unwrap();
    let check = |more: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(["check", "--config"]).arg(&config).args(more);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = check(&["--migrate", "nginx"]);
    let report = &text[text.find("from ingress-nginx").unwrap()..];
    let report = &report[..report.find("for all of them").unwrap()];
    insta::assert_snapshot!(report, @r"
    from ingress-nginx: 3 Ingress objects
    web/good
      nothing differs but what does for all
    web/guarded
      nginx.ingress.kubernetes.io/auth-url is not served, and it protects: every request of this Ingress is answered with 403
      nginx.ingress.kubernetes.io/proxy-read-timeout: there is no bound between two pieces of an answer or a request
    web/regex
      nginx.ingress.kubernetes.io/server-snippet is not served
      path /[a-z]+: neither PREFIX(/|$)(.*) with rewrite-target: /$2 nor PREFIX/(.*) with /$1, so its rule is not served
    ");
    assert!(!check(&[]).contains("nginx"));
}
