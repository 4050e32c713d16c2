use std::cell::RefCell;

use serde_json::{Value, json};

use super::*;
use crate::config::settings;
use crate::contract::authorities::FoundAuthorities;
use crate::discovery::document::Format;
use crate::discovery::gateway::GatewayKind;
use crate::discovery::manifest::parse;
use crate::discovery::object::Object;
use crate::routing::gateway::facts::{Known, Objects};
use crate::routing::gateway::grants::Grants;
use crate::routing::gateway::plan::Plan;

const GROUP: &str = "gateway.networking.k8s.io/v1";

fn object(kind: &str, name: &str, created: u8, spec: Value) -> Value {
    let metadata = json!({"name": name, "namespace": "web",
        "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z")});
    json!({"apiVersion": GROUP, "kind": kind, "metadata": metadata, "spec": spec})
}

/// A Gateway for all kinds of routes.
fn edge() -> Vec<Value> {
    let listener = |name: &str, port: u16, protocol: &str, mode: &str| {
        let tls = json!({"mode": mode, "certificateRefs": [{"name": "good"}]});
        json!({"name": name, "port": port, "protocol": protocol, "hostname": format!("{name}.example"), "tls": tls})
    };
    let listeners = json!([
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {"name": "tcp", "port": 81, "protocol": "TCP"},
        listener("ends", 443, "TLS", "Terminate"),
        listener("passes", 443, "TLS", "Passthrough"),
    ]);
    let gateway = json!({"gatewayClassName": "ours", "listeners": listeners});
    let class = json!({"controllerName": "ebbtide.dev/gateway"});
    vec![
        object("GatewayClass", "ours", 0, class),
        object("Gateway", "edge", 0, gateway),
    ]
}

fn route(kind: &str, ports: &[u16]) -> Value {
    let rules = ports.iter().map(|port| {
        let to = json!([{"name": "shop", "port": port}]);
        json!({"backendRefs": to})
    });
    let rules: Vec<Value> = rules.collect();
    let spec = json!({"parentRefs": [{"name": "edge"}], "rules": rules});
    object(kind, &kind.to_lowercase(), 0, spec)
}

/// A policy for a port of Service `web/shop`, or for all of them.
fn policy(name: &str, created: u8, port: Option<&str>, hostname: &str) -> Value {
    let mut target = json!({"group": "", "kind": "Service", "name": "shop"});
    if let Some(port) = port {
        target["sectionName"] = json!(port);
    }
    let authorities = json!([{"group": "", "kind": "ConfigMap", "name": "good"}]);
    let validation = json!({"hostname": hostname, "caCertificateRefs": authorities});
    let spec = json!({"targetRefs": [target], "validation": validation});
    object("BackendTLSPolicy", name, created, spec)
}

fn pem() -> Arc<str> {
    let made = rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap();
    made.cert.pem().into()
}

/// What is known beside the objects. Ports 80 and 81 of the Service are `first` and `second`.
struct Beside {
    is_service_read: bool,
    pem: Option<Arc<str>>,
    /// The objects with authorities that were asked for.
    asked: RefCell<BTreeSet<String>>,
}

impl Beside {
    fn all() -> Self {
        Self {
            is_service_read: true,
            pem: Some(pem()),
            asked: RefCell::default(),
        }
    }

    fn plan(&self, all: &[Value]) -> Plan {
        let mut objects = Objects::new();
        for object in all {
            for object in parse(&object.to_string(), Format::Json, None).unwrap() {
                if let Object::Gateway(object) = object {
                    objects.insert((object.kind, object.name.clone()), object);
                }
            }
        }
        let authorities = |holder: &Holder| -> Option<FoundAuthorities> {
            self.asked.borrow_mut().insert(holder.to_string());
            let pem = self.pem.clone()?;
            Some(match &*holder.name.name {
                "good" => Ok(pem),
                _ => Err("it is gone".to_owned()),
            })
        };
        Plan::of(&Facts {
            settings: &settings::Gateway {
                controller: "ebbtide.dev/gateway".to_owned(),
                addresses: vec!["192.0.2.0/29".parse().unwrap()],
            },
            node: &[],
            objects: &objects,
            grants: Grants::of(objects.values().map(|it| &**it)),
            service: &|_, _, _| match self.is_service_read {
                true => Known::Is(()),
                false => Known::Unknown,
            },
            port_name: &|_, port| {
                let name = if port == 80 { "first" } else { "second" };
                self.is_service_read.then(|| name.to_owned())
            },
            secret: &|_| Known::Is(()),
            authorities: &authorities,
            now: "now".to_owned(),
        })
    }
}

/// For each rule or default, by the Gateway's port: the route, the Service port, and how TLS is spoken.
fn spoken(plan: &Plan) -> Vec<String> {
    let mut all = Vec::new();
    for door in plan.doors.values() {
        let rules = door.rules.iter().map(|(_, planned)| planned);
        for planned in rules.chain(&door.default) {
            for it in planned.backends.iter().filter_map(|(_, it)| it.as_ref()) {
                let how = match it.backend.as_deref() {
                    None => "clear".to_owned(),
                    Some(it) if it.waits => "waits".to_owned(),
                    Some(it) => match it.session([127, 0, 0, 1].into(), false) {
                        Ok(_) => format!("{it:?}")
                            .split("policy\\n")
                            .nth(1)
                            .unwrap()
                            .split("\\n")
                            .next()
                            .unwrap()
                            .to_owned(),
                        Err(why) => why,
                    },
                };
                let kind = planned.route.split(' ').next().unwrap();
                all.push(format!("{kind}:{} {how}", it.to.port));
            }
        }
    }
    all
}

/// What the only Gateway says of a policy: the reasons of its conditions.
fn said(plan: &Plan, name: &str) -> Option<String> {
    let key = (GatewayKind::BackendTlsPolicy, ObjectName::new("web", name));
    let conditions = plan.statuses.get(&key)?["ancestors"][0]["conditions"].clone();
    let reasons = conditions.as_array()?.iter();
    let reasons = reasons.map(|it| it["reason"].as_str().unwrap().to_owned());
    Some(reasons.collect::<Vec<_>>().join(" "))
}

#[test]
fn the_policy_of_a_port_counts_before_that_of_the_service_and_the_older_before_the_younger() {
    let mut all = edge();
    all.extend([
        route("HTTPRoute", &[80, 81]),
        policy("a", 2, None, "young.example"),
        policy("b", 1, None, "old.example"),
        policy("c", 1, None, "same.example"),
        policy("d", 9, Some("second"), "second.example"),
        policy("e", 9, Some("second"), "also.example"),
        policy("f", 0, Some("third"), "third.example"),
    ]);
    let plan = Beside::all().plan(&all);
    assert_eq!(
        spoken(&plan),
        ["HTTPRoute:80 old.example", "HTTPRoute:81 second.example"]
    );
    let fine = Some("Accepted ResolvedRefs".to_owned());
    let conflicted = Some("Conflicted ResolvedRefs".to_owned());
    let expected = [&conflicted, &fine, &conflicted, &fine, &conflicted, &None];
    for (name, expected) in ["a", "b", "c", "d", "e", "f"].iter().zip(expected) {
        assert_eq!(said(&plan, name), *expected, "{name}");
    }
}

#[test]
fn policies_count_where_http_is_spoken_or_tls_ends_here() {
    let mut all = edge();
    let mut ends = route("TLSRoute", &[80]);
    ends["spec"]["parentRefs"] = json!([{"name": "edge", "sectionName": "ends"}]);
    let mut passes = route("TLSRoute", &[80]);
    passes["metadata"]["name"] = json!("passes");
    passes["spec"]["parentRefs"] = json!([{"name": "edge", "sectionName": "passes"}]);
    all.extend([
        route("HTTPRoute", &[80]),
        route("GRPCRoute", &[80]),
        route("TCPRoute", &[80]),
        ends,
        passes,
        policy("p", 1, None, "shop.example"),
    ]);
    let plan = Beside::all().plan(&all);
    assert_eq!(
        spoken(&plan),
        [
            "GRPCRoute:80 shop.example",
            "HTTPRoute:80 shop.example",
            "TCPRoute:80 clear",
            "TLSRoute:80 clear",
            "TLSRoute:80 shop.example",
        ]
    );
    // What is only passed on meets no policy.
    let all: Vec<Value> = all
        .into_iter()
        .filter(|it| {
            !matches!(
                it["kind"].as_str(),
                Some("HTTPRoute" | "GRPCRoute" | "TLSRoute")
            )
        })
        .collect();
    assert_eq!(said(&Beside::all().plan(&all), "p"), None);
}

#[test]
fn a_policy_with_a_fault_refuses_every_endpoint_and_says_why() {
    let with = |field: &str, value: Value| {
        let mut wrong = policy("p", 1, None, "shop.example");
        wrong["spec"]["validation"][field] = value;
        wrong
    };
    let authorities = |group: &str, kind: &str, name: &str| {
        let one = json!({"group": group, "kind": kind, "name": name});
        with("caCertificateRefs", json!([one]))
    };
    let mut system = with("caCertificateRefs", json!([]));
    system["spec"]["validation"]["wellKnownCACertificates"] = json!("System");
    for (policy, reasons, cause) in [
        (
            authorities("", "ConfigMap", "gone"),
            "NoValidCACertificate InvalidCACertificateRef",
            "ConfigMap web/gone: it is gone",
        ),
        (
            authorities("", "Secret", "gone"),
            "NoValidCACertificate InvalidCACertificateRef",
            "Secret web/gone: it is gone",
        ),
        (
            authorities("", "ConfigMap", "a,b"),
            "NoValidCACertificate InvalidCACertificateRef",
            "no object can have the name",
        ),
        (
            authorities("x.test", "ConfigMap", "good"),
            "NoValidCACertificate InvalidKind",
            "of group \"x.test\"",
        ),
        (
            authorities("", "Service", "good"),
            "NoValidCACertificate InvalidKind",
            "Service \"good\"",
        ),
        (
            system,
            "Invalid ResolvedRefs",
            "wellKnownCACertificates System is not supported",
        ),
        (
            with("wellKnownCACertificates", json!("System")),
            "Invalid ResolvedRefs",
            "is not supported",
        ),
        (
            with("caCertificateRefs", json!([])),
            "Invalid ResolvedRefs",
            "names no ConfigMap",
        ),
        (
            with("hostname", json!("*.example")),
            "Invalid ResolvedRefs",
            "hostname \"*.example\" is no name",
        ),
        (
            with("hostname", json!("192.0.2.1")),
            "Invalid ResolvedRefs",
            "is no name",
        ),
        (
            with("subjectAltNames", json!([{"type": "URI", "hostname": "x"}])),
            "Invalid ResolvedRefs",
            "one of type \"URI\"",
        ),
        (
            with("subjectAltNames", json!([{"type": "Email"}])),
            "Invalid ResolvedRefs",
            "one of type \"Email\"",
        ),
    ] {
        let mut all = edge();
        all.extend([route("HTTPRoute", &[80]), policy]);
        let plan = Beside::all().plan(&all);
        assert_eq!(said(&plan, "p").as_deref(), Some(reasons), "{cause}");
        let spoken = spoken(&plan);
        let begins = "HTTPRoute:80 BackendTLSPolicy web/p: ";
        assert!(
            spoken[0].starts_with(begins) && spoken[0].contains(cause),
            "{spoken:?}"
        );
    }
}

#[test]
fn one_of_several_authorities_is_enough_and_the_others_are_named() {
    let mut some = policy("p", 1, None, "shop.example");
    let one = |name: &str| json!({"group": "", "kind": "ConfigMap", "name": name});
    some["spec"]["validation"]["caCertificateRefs"] = json!([one("gone"), one("good")]);
    let mut all = edge();
    all.extend([route("HTTPRoute", &[80]), some]);
    let plan = Beside::all().plan(&all);
    assert_eq!(spoken(&plan), ["HTTPRoute:80 shop.example"]);
    let reasons = said(&plan, "p").unwrap();
    assert_eq!(reasons, "Accepted InvalidCACertificateRef");
}

#[test]
fn requests_wait_while_a_policy_is_not_known_and_nothing_is_said_of_it() {
    let mut all = edge();
    all.extend([
        route("HTTPRoute", &[80]),
        policy("p", 1, None, "shop.example"),
    ]);
    let mut beside = Beside::all();
    let pem = beside.pem.take();
    let plan = beside.plan(&all);
    assert_eq!(spoken(&plan), ["HTTPRoute:80 waits"]);
    assert_eq!(said(&plan, "p"), None);
    beside.pem = pem;
    beside.is_service_read = false;
    let spoken_now = spoken(&beside.plan(&all));
    assert_eq!(spoken_now, ["HTTPRoute:80 shop.example"]);
    all.push(policy("q", 1, Some("second"), "second.example"));
    assert_eq!(spoken(&beside.plan(&all)), ["HTTPRoute:80 waits"]);
    beside.is_service_read = true;
    let spoken_now = spoken(&beside.plan(&all));
    assert_eq!(spoken_now, ["HTTPRoute:80 shop.example"]);
}

#[test]
fn what_others_say_stays_and_what_no_gateway_reaches_is_taken_back() {
    let ancestor = |controller: &str, name: String| json!({"ancestorRef": {"name": name}, "controllerName": controller, "conditions": []});
    let others = |count: usize| (0..count).map(|i| ancestor("other", i.to_string()));
    let plan = |status: Value, has_route: bool| {
        let mut policy = policy("p", 1, None, "shop.example");
        policy["status"]["ancestors"] = status;
        let mut all = edge();
        all.push(policy);
        all.extend(has_route.then(|| route("HTTPRoute", &[80])));
        let beside = Beside::all();
        let plan = beside.plan(&all);
        let key = (GatewayKind::BackendTlsPolicy, ObjectName::new("web", "p"));
        let ancestors = plan.statuses.get(&key).map(|it| it["ancestors"].clone());
        (ancestors, beside.asked.into_inner().len())
    };
    let (said, asked) = plan(others(1).collect(), true);
    let said = said.unwrap();
    assert_eq!((&said[0], asked), (&ancestor("other", "0".to_owned()), 1));
    assert_eq!(said[1]["controllerName"], "ebbtide.dev/gateway");
    // The same again is not written.
    assert_eq!(plan(said.clone(), true).0, None);
    let (taken_back, asked) = plan(said, false);
    let left: Value = others(1).collect();
    assert_eq!((taken_back, asked), (Some(left.clone()), 0));
    assert_eq!(plan(left, false).0, None);
    assert_eq!(plan(others(16).collect(), true).0, None, "there is no room");
}
