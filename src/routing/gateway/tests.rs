use super::facts::*;
use super::plan::*;
use crate::config::settings;
use crate::contract::name::ObjectName;
use crate::discovery::document::Format;
use crate::discovery::gateway::GatewayKind;
use crate::discovery::manifest::parse;
use crate::discovery::object::Object;
use crate::routing::gateway::grants::Grants;

const CLASS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: ours, generation: 3}
spec: {controllerName: ebbtide.dev/gateway}
---
";

fn gateway(name: &str, listeners: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: web, generation: 2}}
spec:
  gatewayClassName: ours
  listeners: [{listeners}]
---
"
    )
}

fn route(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: web, generation: 5}}
spec: {spec}
---
"
    )
}

/// The plan of manifests. Services `web/*` have port 80 over TCP, and Secrets `*/good` are fine.
fn plan(text: &str) -> Plan {
    plan_with(text, &["192.0.2.0/29"])
}

fn plan_with(text: &str, pool: &[&str]) -> Plan {
    let mut objects = Objects::new();
    for object in parse(text, Format::Yaml, None).unwrap() {
        if let Object::Gateway(object) = object {
            objects.insert((object.kind, object.name.clone()), object);
        }
    }
    let settings = settings::Gateway {
        controller: "ebbtide.dev/gateway".to_owned(),
        addresses: pool.iter().map(|it| it.parse().unwrap()).collect(),
    };
    let service = |name: &ObjectName, port: u16, is_udp: bool| match name.name.as_str() {
        "none" => Known::Missing("there is none".to_owned()),
        _ if port == 80 && !is_udp => Known::Is(()),
        _ => Known::Missing("no such port".to_owned()),
    };
    let secret = |name: &ObjectName| match name.name.as_str() {
        "good" => Known::Is(()),
        _ => Known::Missing("it does not exist".to_owned()),
    };
    Plan::of(&Facts {
        settings: &settings,
        node: &["198.51.100.1".parse().unwrap()],
        objects: &objects,
        grants: Grants::of(objects.values().map(|it| &**it)),
        service: &service,
        port_name: &|_, port| (port == 80).then(|| "http".to_owned()),
        secret: &secret,
        authorities: &|_| None,
        now: "now".to_owned(),
    })
}

/// Type, status and reason of each condition.
fn conditions(of: &serde_json::Value) -> String {
    let text = |it: &serde_json::Value, key: &str| it[key].as_str().unwrap().to_owned();
    let all = of.as_array().unwrap().iter().map(|it| {
        let sign = if text(it, "status") == "True" {
            "+"
        } else {
            "-"
        };
        format!("{sign}{}:{}", text(it, "type"), text(it, "reason"))
    });
    all.collect::<Vec<_>>().join(" ")
}

fn status<'a>(plan: &'a Plan, kind: GatewayKind, name: &str) -> &'a serde_json::Value {
    &plan.statuses[&(kind, ObjectName::new("web", name))]
}

fn listener(plan: &Plan, gateway: &str) -> String {
    let found = &status(plan, GatewayKind::Gateway, gateway)["listeners"][0];
    format!(
        "{} {}",
        found["attachedRoutes"],
        conditions(&found["conditions"])
    )
}

fn parent(plan: &Plan, kind: GatewayKind, name: &str) -> String {
    conditions(&status(plan, kind, name)["parents"][0]["conditions"])
}

fn paths(plan: &Plan) -> Vec<String> {
    let doors = plan.doors.values();
    let rules = doors.flat_map(|door| &door.rules);
    let shown = rules.map(|(rule, planned)| {
        let host = rule.host.as_deref().unwrap_or("any");
        let backends = planned.backends.iter().map(|(weight, to)| {
            let to = to.as_ref().map_or("nobody", |it| &it.to.service.name);
            format!("{weight}x{to}")
        });
        let backends: Vec<_> = backends.collect();
        format!("{host}{} {}", rule.path, backends.join(","))
    });
    shown.collect()
}

#[test]
fn a_route_leads_the_clients_of_a_gateway_on() {
    let text = CLASS.to_owned()
        + &gateway("edge", "{name: http, port: 80, protocol: HTTP, hostname: '*.example'}")
        + &route(
            "HTTPRoute",
            "shop",
            "{parentRefs: [{name: edge}], hostnames: [shop.example, other.test], rules: [
              {matches: [{path: {type: Exact, value: /a}}, {method: POST}],
               backendRefs: [{name: a, port: 80, weight: 90}, {name: none, port: 80, weight: 10}]}]}",
        );
    let plan = plan(&text);
    let ((owner, port, _), door) = plan.doors.first_key_value().unwrap();
    assert_eq!(
        (owner.to_string().as_str(), *port),
        ("web/gateway/edge", 80)
    );
    assert_eq!(door.addresses[0].to_string(), "192.0.2.1");
    assert_eq!(
        paths(&plan),
        [
            "shop.example/a 90xa,10xnobody",
            "shop.example/ 90xa,10xnobody"
        ]
    );
    assert_eq!(door.rules[1].0.wants.method.as_deref(), Some("POST"));
    let edge = status(&plan, GatewayKind::Gateway, "edge");
    assert_eq!(
        conditions(&edge["conditions"]),
        "+Accepted:Accepted +Programmed:Programmed"
    );
    assert_eq!(edge["addresses"][0]["value"], "192.0.2.1");
    assert_eq!(
        listener(&plan, "edge"),
        "1 +Accepted:Accepted +Programmed:Programmed +ResolvedRefs:ResolvedRefs"
    );
    assert_eq!(
        parent(&plan, GatewayKind::HttpRoute, "shop"),
        "+Accepted:Accepted -ResolvedRefs:BackendNotFound"
    );
    let class = &plan.statuses[&(GatewayKind::GatewayClass, ObjectName::new("", "ours"))];
    assert_eq!(conditions(&class["conditions"]), "+Accepted:Accepted");
}

#[test]
fn why_a_route_does_not_lead_on_is_said() {
    let edge = CLASS.to_owned()
        + &gateway(
            "edge",
            "{name: http, port: 80, protocol: HTTP, hostname: a.example}",
        );
    let to = "backendRefs: [{name: a, port: 80}]";
    for (kind, spec, expected) in [
        (
            "HTTPRoute",
            format!("{{parentRefs: [{{name: edge, sectionName: x}}], rules: [{{{to}}}]}}"),
            "-Accepted:NoMatchingParent +ResolvedRefs:ResolvedRefs",
        ),
        (
            "HTTPRoute",
            format!("{{parentRefs: [{{name: edge, port: 81}}], rules: [{{{to}}}]}}"),
            "-Accepted:NoMatchingParent +ResolvedRefs:ResolvedRefs",
        ),
        (
            "HTTPRoute",
            format!("{{parentRefs: [{{name: edge}}], hostnames: [b.example], rules: [{{{to}}}]}}"),
            "-Accepted:NoMatchingListenerHostname +ResolvedRefs:ResolvedRefs",
        ),
        (
            "TCPRoute",
            format!("{{parentRefs: [{{name: edge}}], rules: [{{{to}}}]}}"),
            "-Accepted:NotAllowedByListeners +ResolvedRefs:ResolvedRefs",
        ),
        (
            "HTTPRoute",
            format!("{{parentRefs: [{{name: edge}}], rules: [{{{to}, filters: [{{type: ExtensionRef}}]}}]}}"),
            "-Accepted:UnsupportedValue +ResolvedRefs:ResolvedRefs",
        ),
        (
            "HTTPRoute",
            "{parentRefs: [{name: edge}], rules: [{filters: [{type: RequestRedirect, requestRedirect: {hostname: x}}, {type: URLRewrite, urlRewrite: {hostname: z.example}}]}]}".to_owned(),
            "-Accepted:IncompatibleFilters +ResolvedRefs:ResolvedRefs",
        ),
        (
            "HTTPRoute",
            "{parentRefs: [{name: edge}], rules: [{backendRefs: [{kind: Bucket, group: x, name: a}]}]}".to_owned(),
            "+Accepted:Accepted -ResolvedRefs:InvalidKind",
        ),
        (
            "HTTPRoute",
            "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: a, namespace: other, port: 80}]}]}".to_owned(),
            "+Accepted:Accepted -ResolvedRefs:RefNotPermitted",
        ),
    ] {
        let plan = plan(&(edge.clone() + &route(kind, "shop", &spec)));
        let kind = GatewayKind::of("gateway.networking.k8s.io/v1", kind).unwrap();
        assert_eq!(parent(&plan, kind, "shop"), expected, "{spec}");
    }
}

#[test]
fn faults_are_what_does_not_hold() {
    let listeners = "{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: TCP}";
    let plan = plan(&(CLASS.to_owned() + &gateway("edge", listeners)));
    let faults = super::statuses::faults(status(&plan, GatewayKind::Gateway, "edge"));
    assert_eq!(
        faults,
        [
            "listener b: ProtocolConflict: port 80 is one of HTTP already",
            "listener b: Invalid: it is not served",
            "listener b: ProtocolConflict: port 80 is one of HTTP already",
        ]
    );
}

#[test]
fn a_grant_permits_another_namespace() {
    let text = CLASS.to_owned()
        + &gateway("edge", "{name: http, port: 80, protocol: HTTP}")
        + &route(
            "HTTPRoute",
            "shop",
            "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: a, namespace: other, port: 80}]}]}",
        );
    let grant = |to: &str| {
        format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {{name: g, namespace: other}}
spec:
  from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: web}}]
  to: [{to}]
---
"
        )
    };
    let resolved = |to| {
        parent(
            &plan(&(text.clone() + &grant(to))),
            GatewayKind::HttpRoute,
            "shop",
        )
    };
    for to in [
        "{group: '', kind: Service}",
        "{group: '', kind: Service, name: a}",
    ] {
        assert_eq!(
            resolved(to),
            "+Accepted:Accepted +ResolvedRefs:ResolvedRefs"
        );
    }
    for to in [
        "{group: '', kind: Secret}",
        "{group: '', kind: Service, name: b}",
    ] {
        assert_eq!(
            resolved(to),
            "+Accepted:Accepted -ResolvedRefs:RefNotPermitted"
        );
    }
}

#[test]
fn a_listener_that_cannot_be_served_is_named() {
    let tls = |refs: &str| format!("tls: {{certificateRefs: [{refs}]}}");
    for (spec, expected) in [
        (
            "protocol: WEIRD".to_owned(),
            "0 -Accepted:UnsupportedProtocol -Programmed:Invalid +ResolvedRefs:ResolvedRefs",
        ),
        (
            "protocol: TLS, tls: {mode: Terminate}".to_owned(),
            "0 +Accepted:Accepted -Programmed:Invalid -ResolvedRefs:InvalidCertificateRef",
        ),
        (
            "protocol: TLS, tls: {mode: Passthrough}".to_owned(),
            "0 +Accepted:Accepted +Programmed:Programmed +ResolvedRefs:ResolvedRefs",
        ),
        (
            "protocol: HTTPS, tls: {mode: Passthrough}".to_owned(),
            "0 -Accepted:UnsupportedValue -Programmed:Invalid +ResolvedRefs:ResolvedRefs",
        ),
        (
            "protocol: HTTP, allowedRoutes: {kinds: [{kind: TCPRoute}]}".to_owned(),
            "0 +Accepted:Accepted +Programmed:Programmed -ResolvedRefs:InvalidRouteKinds",
        ),
        (
            format!("protocol: HTTPS, {}", tls("{name: bad}")),
            "0 +Accepted:Accepted -Programmed:Invalid -ResolvedRefs:InvalidCertificateRef",
        ),
        (
            format!("protocol: HTTPS, {}", tls("{name: good, namespace: other}")),
            "0 +Accepted:Accepted -Programmed:Invalid -ResolvedRefs:RefNotPermitted",
        ),
        (
            format!("protocol: HTTPS, {}", tls("{name: bad}, {name: good}")),
            "0 +Accepted:Accepted +Programmed:Programmed -ResolvedRefs:InvalidCertificateRef",
        ),
    ] {
        let plan =
            plan(&(CLASS.to_owned() + &gateway("edge", &format!("{{name: l, port: 80, {spec}}}"))));
        assert_eq!(listener(&plan, "edge"), expected, "{spec}");
    }
}

#[test]
fn a_host_of_a_narrower_listener_is_not_one_of_a_wider() {
    let text = CLASS.to_owned()
        + &gateway(
            "edge",
            "{name: all, port: 80, protocol: HTTP},
             {name: wild, port: 80, protocol: HTTP, hostname: '*.example'},
             {name: one, port: 80, protocol: HTTP, hostname: a.example}",
        )
        + &route(
            "HTTPRoute",
            "wide",
            "{parentRefs: [{name: edge, sectionName: all}], hostnames: [a.example, b.example, c.test],
              rules: [{backendRefs: [{name: a, port: 80}]}]}",
        )
        + &route(
            "HTTPRoute",
            "wild",
            "{parentRefs: [{name: edge, sectionName: wild}], rules: [{backendRefs: [{name: b, port: 80}]}]}",
        );
    let plan = plan(&text);
    assert_eq!(paths(&plan), ["c.test/ 1xa", "*.example/ 1xb"]);
    let door = plan.doors.values().next().unwrap();
    let hosts: Vec<_> = door.hosts.iter().map(String::as_str).collect();
    assert_eq!(hosts, ["*.example", "a.example"]);
}

#[test]
fn addresses_are_given_once_and_kept() {
    let listeners = "{name: http, port: 80, protocol: HTTP}";
    let with = |name: &str, more: &str| {
        gateway(name, listeners).replace("spec:", &format!("{more}\nspec:"))
    };
    let has = |address: &str| format!("status: {{addresses: [{{value: {address}}}]}}");
    let asks = |name: &str, kind: &str, address: &str| {
        let addresses = format!("addresses: [{{type: {kind}, value: {address}}}]");
        gateway(name, listeners).replace("  listeners", &format!("  {addresses}\n  listeners"))
    };
    let text = CLASS.to_owned()
        + &with("a", "")
        + &with("b", &has("192.0.2.1"))
        + &with("c", &has("203.0.113.7"))
        + &asks("d", "IPAddress", "192.0.2.3")
        + &asks("e", "IPAddress", "203.0.113.9")
        + &asks("f", "Hostname", "a.example");
    let plan = plan_with(&text, &["192.0.2.0/29"]);
    let shown = |name: &str| {
        let status = status(&plan, GatewayKind::Gateway, name);
        let address = status["addresses"][0]["value"].as_str().unwrap_or("none");
        format!("{address} {}", conditions(&status["conditions"]))
    };
    let fine = "+Accepted:Accepted +Programmed:Programmed";
    assert_eq!(shown("a"), format!("192.0.2.2 {fine}"));
    assert_eq!(shown("b"), format!("192.0.2.1 {fine}"));
    assert_eq!(shown("c"), format!("192.0.2.4 {fine}"));
    assert_eq!(shown("d"), format!("192.0.2.3 {fine}"));
    assert_eq!(
        shown("e"),
        "none +Accepted:Accepted -Programmed:AddressNotUsable"
    );
    assert_eq!(
        shown("f"),
        "none -Accepted:UnsupportedAddress -Programmed:Invalid"
    );
    let few = plan_with(
        &(CLASS.to_owned() + &with("a", "") + &with("b", "")),
        &["192.0.2.1/32"],
    );
    let b = status(&few, GatewayKind::Gateway, "b");
    assert_eq!(
        conditions(&b["conditions"]),
        "+Accepted:Accepted -Programmed:AddressNotAssigned"
    );
    let shared = plan_with(&(CLASS.to_owned() + &with("a", "") + &with("b", "")), &[]);
    assert_eq!(shared.doors.len(), 1, "they share a port");
    let a = status(&shared, GatewayKind::Gateway, "a");
    assert_eq!(a["addresses"][0]["value"], "198.51.100.1");
}

#[test]
fn what_is_said_already_is_not_written_again_and_parents_of_others_stay() {
    let text = CLASS.to_owned()
        + &gateway("edge", "{name: http, port: 80, protocol: HTTP}")
        + &route(
            "TCPRoute",
            "shop",
            "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: a, port: 80}]}]}",
        );
    let first = plan(&text);
    let theirs = serde_json::json!({"controllerName": "other", "parentRef": {"name": "x"}});
    let mut again = String::new();
    for document in text.split("---").filter(|it| !it.trim().is_empty()) {
        let kind = document
            .lines()
            .find_map(|line| line.strip_prefix("kind: "))
            .unwrap();
        let kind = GatewayKind::of("gateway.networking.k8s.io/v1", kind).unwrap();
        let (_, mut status) = first
            .statuses
            .iter()
            .find_map(|((it, name), status)| (*it == kind).then(|| (name, status.clone())))
            .unwrap();
        if let Some(parents) = status["parents"].as_array_mut() {
            parents.insert(0, theirs.clone());
        }
        again += &format!("{}\nstatus: {status}\n---\n", document.trim_end());
    }
    assert!(plan(&again).statuses.is_empty(), "nothing differs");
    let gone = plan(&again.replace("{name: edge}]", "{name: gone}]"));
    let status = status(&gone, GatewayKind::TcpRoute, "shop");
    assert_eq!(status["parents"], serde_json::json!([theirs]));
}
