//! `ebbtide check` of a cluster: it reads what a running proxy would read, each object once.

use ebbtide::command::check::run::{Report, check};
use serde_json::{Value, json};

use super::api::objects::GATEWAYS;
use super::api::{Api, Kind, Verb};
use super::rig::{kubeconfig, shop};

/// The report of a check with this configuration beside the source.
async fn report(api: &Api, config: &str) -> Report {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kubeconfig"), kubeconfig(api)).unwrap();
    let file = folder.path().join("ebbtide.yaml");
    let text = format!("discovery: {{kubernetes: {{kubeconfig: kubeconfig}}}}\n{config}\n");
    std::fs::write(&file, text).unwrap();
    let checked = tokio::task::spawn_blocking(move || check(&file, &[], false).unwrap());
    checked.await.unwrap()
}

fn warnings(report: &Report) -> Vec<&str> {
    let lines = report.text.lines();
    lines
        .filter_map(|line| line.strip_prefix("warning: "))
        .filter(|line| !line.starts_with("limits.connections"))
        .collect()
}

fn object(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    let mut metadata = json!({"name": name, "uid": name, "generation": 1});
    if !kind.ends_with("Class") {
        metadata["namespace"] = json!("web");
    }
    json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
}

#[tokio::test]
async fn gateways_of_a_cluster_are_shown_with_what_is_not_served() {
    let (api, config) = (shop(1).await, "gateway: {addresses: [127.67.0.0/29]}");
    let without = report(&api, config).await;
    let absent =
        "the API server has no Namespace, ReferenceGrant, GRPCRoute, TLSRoute, TCPRoute, UDPRoute";
    let all = warnings(&without);
    assert!(all.iter().any(|it| it.starts_with(absent)), "{all:?}");
    let none = "no GatewayClass has controllerName ebbtide.dev/gateway: no Gateway is served";
    assert!(all.contains(&none), "{all:?}");

    let class = json!({"controllerName": "ebbtide.dev/gateway"});
    api.apply(&object(GATEWAYS, "GatewayClass", "ours", class));
    let listeners = json!([
        {"name": "http", "port": 8080, "protocol": "HTTP"},
        {"name": "https", "port": 8443, "protocol": "HTTPS",
         "tls": {"certificateRefs": [{"name": "gone"}, {"name": "kept"}]}},
    ]);
    let spec = json!({"gatewayClassName": "ours", "listeners": listeners});
    api.apply(&object(GATEWAYS, "Gateway", "edge", spec));
    let rules =
        json!([{"backendRefs": [{"name": "shop", "port": 80}, {"name": "late", "port": 80}]}]);
    let spec = json!({"parentRefs": [{"name": "edge"}], "rules": rules});
    api.apply(&object(GATEWAYS, "HTTPRoute", "shop", spec));
    api.deny("watch", "secrets", "kept");
    api.deny("patch", "httproutes", "");
    let report = report(&api, config).await;
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let row = "127.67.0.1:8080  *     /     HTTPRoute web/shop  web/shop:80 (1), nobody (1)";
    assert!(report.text.contains(row), "{}", report.text);
    let all = warnings(&report);
    for wanted in [
        "RBAC: may not patch httproutes/status.gateway.networking.k8s.io cluster-wide: its objects then do not",
        "Gateway web/edge: listener https: InvalidCertificateRef: Secret web/kept: RBAC: may not watch secrets named kept in namespace web",
        "HTTPRoute web/shop: BackendNotFound: there is no Service web/late",
    ] {
        assert!(
            all.iter().any(|it| it.starts_with(wanted)),
            "{wanted}: {all:#?}"
        );
    }
    // Its endpoints are read, though no Service is claimed.
    assert!(report.text.contains("web/shop"), "{}", report.text);
    assert_eq!(
        api.count(Kind::HttpRoutes, Verb::List),
        2,
        "once for each check"
    );
}

#[tokio::test]
async fn secrets_of_ingresses_are_read_by_their_names() {
    let api = shop(1).await;
    let spec = json!({
        "ingressClassName": "ebbtide",
        "tls": [{"hosts": ["a.example"], "secretName": "gone"}],
        "defaultBackend": {"service": {"name": "shop", "port": {"number": 80}}},
    });
    api.apply(&object(
        "networking.k8s.io/v1",
        "Ingress",
        "shop",
        spec.clone(),
    ));
    let config = "ingress: {addresses: [127.0.0.1], httpPort: 8080, httpsPort: 8443}";
    let missing = "Ingress web/shop: Secret web/gone: there is no such Secret";
    let report = report(&api, config).await;
    let all = warnings(&report);
    assert!(all.iter().any(|it| it.contains(missing)), "{all:#?}");
}
