//! What `ebbtide check` says of Ingress objects and routes in a folder: nobody has looked at them before, as
//! an API server would have.

use std::process::Command;

use crate::support::binary::BINARY;

/// Both outputs of a check of these manifests, with an Ingress class and the Gateway API.
fn check(manifests: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    std::fs::write(folder.path().join("manifests/all.yaml"), manifests).unwrap();
    let config = "discovery: {files: {path: manifests}}
gateway: {}
ingress: {addresses: [127.0.0.1], httpPort: 0, httpsPort: 0}
listeners:
  - {name: web, address: '127.0.0.1:0', service: web/own, port: 80, sni: [{hosts: [a.example], service: web/named, port: 80}]}
";
    std::fs::write(folder.path().join("ebbtide.yaml"), config).unwrap();
    let mut command = Command::new(BINARY);
    command.args(["check", "--config"]);
    let output = command.arg(folder.path().join("ebbtide.yaml")).output();
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn service(name: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: web}}, spec: {{ports: [{{port: 80}}]}}}}\n"
    )
}

/// An object of the Gateway API in this version.
fn object(version: &str, kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: web}}\nspec: {spec}\n"
    )
}

fn class(version: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: GatewayClass\nmetadata: {{name: ours}}\nspec: {{controllerName: ebbtide.dev/gateway}}\n"
    )
}

fn edge(listeners: &str) -> String {
    let spec = format!("{{gatewayClassName: ours, listeners: [{listeners}]}}");
    object("v1", "Gateway", "edge", &spec)
}

const HTTP: &str = "{name: http, port: 8080, protocol: HTTP}";
const TO_SHOP: &str = "backendRefs: [{name: shop, port: 80}]";

#[test]
fn services_of_listeners_names_and_routes_are_among_those_that_are_served() {
    let route = format!(
        "{{parentRefs: [{{name: edge}}], rules: [{{{TO_SHOP}, matches: [{{method: PUT, headers: [{{name: X-A, value: b}}], queryParams: [{{name: q, value: c}}]}}]}}]}}"
    );
    let manifests = class("v1")
        + &edge(HTTP)
        + &object("v1", "HTTPRoute", "shop", &route)
        + &["own", "named", "shop", "idle"].map(service).concat();
    let page = check(&manifests);
    for name in ["own", "named", "shop"] {
        let warning = format!("warning: web/{name}: port 80 has no ready endpoint");
        assert!(page.contains(&warning), "{warning}\n{page}");
    }
    assert!(!page.contains("warning: web/idle"), "{page}");
    assert!(page.contains("or a route: web/idle\n"), "{page}");
    assert!(page.contains("  / (PUT, x-a: b, ?q=c)  "), "{page}");
}

#[test]
fn what_leads_nobody_on_is_named() {
    let route = |name: &str, spec: &str| object("v1", "HTTPRoute", name, spec);
    let to_edge = |name: &str, rule: &str| {
        let spec = format!("{{parentRefs: [{{name: edge}}], rules: [{{{rule}}}]}}");
        route(name, &spec)
    };
    let manifests = [
        class("v1"),
        edge(&format!(
            "{HTTP}, {{name: https, port: 8443, protocol: HTTPS, tls: {{certificateRefs: [{{name: none}}]}}}}"
        )),
        object("v1", "Gateway", "other", "{gatewayClassName: theirs, listeners: []}"),
        route("loose", &format!("{{rules: [{{{TO_SHOP}}}]}}")),
        route("lost", &format!("{{parentRefs: [{{name: gone}}], rules: [{{{TO_SHOP}}}]}}")),
        route(
            "host",
            &format!("{{parentRefs: [{{name: edge}}], hostnames: ['a.example:80'], rules: [{{{TO_SHOP}}}]}}"),
        ),
        to_edge("typo", "backendRef: [{name: shop, port: 80}]"),
        to_edge("status", "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 399}}]"),
        to_edge("method", &format!("{TO_SHOP}, matches: [{{method: get}}]")),
        to_edge("filter", &format!("{TO_SHOP}, filters: [{{type: URLRewrite}}]")),
        "---\n{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: other, namespace: web}, spec: {ingressClassName: ebtide}}\n".to_owned(),
        "---\n{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: plain, namespace: web}, spec: {ingressClassName: ebbtide, tls: [{secretName: none}]}}\n".to_owned(),
        service("shop"),
    ];
    let page = check(&manifests.concat());
    for expected in [
        "Gateway web/edge: listener https: InvalidCertificateRef: Secret web/none: there is no such Secret",
        "Gateway web/other: there is no GatewayClass theirs with controllerName ebbtide.dev/gateway",
        "HTTPRoute web/loose: without parentRefs, no Gateway leads to it",
        "HTTPRoute web/lost: there is no Gateway web/gone",
        "HTTPRoute web/host: UnsupportedValue: hostname \"a.example:80\" is no name such as shop.example or *.example",
        "HTTPRoute web/typo: spec.rules[0] has no backendRefs, so its requests get 500",
        "HTTPRoute web/status: UnsupportedValue: a redirect of status 399 is not supported",
        "HTTPRoute web/method: UnsupportedValue: the method get is not supported",
        "HTTPRoute web/filter: UnsupportedValue: without its own field, a filter of type URLRewrite is not supported",
        "Ingress web/other is not served: its class is ebtide, and ingress.class is ebbtide",
        "Ingress web/plain: Secret web/none: there is no such Secret",
    ] {
        let warning = format!("warning: {expected}\n");
        assert!(page.contains(&warning), "{warning}{page}");
    }
    let none = "warning: no Gateway is of a GatewayClass with controllerName ebbtide.dev/gateway: no route is served\n";
    assert!(!page.contains(none), "{page}");
    assert!(check(&service("own")).contains(none));
}

#[test]
fn older_versions_are_read_or_refused() {
    let route = format!("{{parentRefs: [{{name: edge}}], rules: [{{{TO_SHOP}}}]}}");
    let edge = edge(HTTP).replace("/v1", "/v1beta1");
    let manifests = class("v1beta1")
        + &edge
        + &object("v1beta1", "HTTPRoute", "shop", &route)
        + &service("shop");
    let page = check(&manifests);
    assert!(
        page.contains("HTTPRoute web/shop  web/shop:80 (1)"),
        "{page}"
    );
    let old = "{apiVersion: networking.k8s.io/v1beta1, kind: Ingress, metadata: {name: a, namespace: web}}";
    let refused = "expected networking.k8s.io/v1 for kind Ingress, found networking.k8s.io/v1beta1";
    assert!(check(old).contains(refused));
    let form = "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a, namespace: web}, \
                spec: {ingressClassName: ebbtide, defaultBackend: {serviceName: shop, servicePort: 80}}}";
    let refused = "spec.defaultBackend: expected service.name and service.port";
    assert!(check(form).contains(refused), "{}", check(form));
}
