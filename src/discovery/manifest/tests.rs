use super::*;
use crate::config::settings::{Addresses, Discovery};
use crate::contract::name::ObjectName;

fn yaml(text: &str) -> Vec<Object> {
    parse(text, Format::Yaml, None).unwrap()
}

fn one_service(text: &str) -> ServiceObject {
    match yaml(text).remove(0) {
        Object::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata:
  name: app
  namespace: web
  labels: {service.kubernetes.io/service-proxy-name: ebbtide}
  annotations: {ebbtide.dev/hold-timeout: 3s, other: x}
spec:
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080, appProtocol: http}
  - {name: dns, port: 53, protocol: UDP}
  - {name: s1, port: 36412, protocol: SCTP}
";

const SLICE: &str = "
addressType: IPv4
apiVersion: discovery.k8s.io/v1
endpoints:
- addresses: [10.0.0.1, 10.0.0.2]
  targetRef: {kind: Pod, name: app-1, uid: u-1}
- addresses: [10.0.0.3]
  conditions: {ready: false, serving: true, terminating: true}
  targetRef: {kind: Node, name: n-1}
kind: EndpointSlice
metadata:
  name: app-x
  creationTimestamp: 1970-01-01T00:01:00Z
  generation: 4
  labels: {kubernetes.io/service-name: app}
ports:
- {name: http, port: 8080}
- {name: any}
- {name: dns, port: 53, protocol: UDP}
";

#[test]
fn a_service_gives_what_routing_needs_and_names_what_is_not_served() {
    let service = one_service(SERVICE);
    assert_eq!(service.name, ObjectName::new("web", "app"));
    assert!(service.claimed && !service.external_name && !service.ipv6_first);
    let port = ServicePortObject {
        name: Some("http".into()),
        port: 80,
        node_port: Some(30080),
        target_port: Some(8080),
        app_protocol: Some("http".into()),
        transport: Transport::Tcp,
    };
    let dns = ServicePortObject {
        name: Some("dns".into()),
        port: 53,
        node_port: None,
        target_port: None,
        app_protocol: None,
        transport: Transport::Udp,
    };
    assert_eq!(service.ports, [port, dns]);
    assert_eq!(
        service.annotations.into_iter().collect::<Vec<_>>(),
        [("ebbtide.dev/hold-timeout".into(), "3s".into())]
    );
    assert_eq!(service.unserved, ["spec.ports[2].protocol: SCTP"]);
}

#[test]
fn session_affinity_has_the_api_servers_default_and_bounds() {
    let affinity = |spec: &str| one_service(&format!("{SERVICE}{spec}")).traffic.affinity;
    let with = |seconds: &str| {
        format!(
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {{clientIP: {{{seconds}}}}}\n"
        )
    };
    assert_eq!(affinity(""), None);
    assert_eq!(affinity("  sessionAffinity: None\n"), None);
    let default = Some(Duration::from_secs(10_800));
    assert_eq!(affinity("  sessionAffinity: ClientIP\n"), default);
    assert_eq!(affinity(&with("")), default);
    assert_eq!(
        affinity(&with("timeoutSeconds: 15")),
        Some(Duration::from_secs(15))
    );
    let error = |spec: &str| {
        let text = format!("{SERVICE}{spec}");
        parse(&text, Format::Yaml, None).unwrap_err().to_string()
    };
    for seconds in ["0", "-1", "86401"] {
        let error = error(&with(&format!("timeoutSeconds: {seconds}")));
        assert!(error.contains("clientIP.timeoutSeconds"), "{error}");
    }
    assert!(error("  sessionAffinity: Cookie\n").contains("spec.sessionAffinity"));
}

fn config(has_addresses: bool) -> Config {
    let mut config = Config::new(Discovery::Static { to: Vec::new() });
    config.addresses = has_addresses.then(|| Addresses {
        keeps_source: true,
        nodes: Vec::new(),
        port: 15001,
        socket: "net.sock".into(),
    });
    config
}

fn by(node: Node) -> Reader {
    Reader {
        node,
        ..Reader::default()
    }
}

#[test]
fn every_field_that_a_claim_takes_from_kube_proxy_is_named() {
    let spec = "  trafficDistribution: PreferClose
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  clusterIP: fd00::1
  externalIPs: [192.0.2.1, 192.0.2.2]
  loadBalancerSourceRanges: [10.0.0.0/8]
  healthCheckNodePort: 32000
status: {loadBalancer: {ingress: [{ip: 192.0.2.9}, {ip: 192.0.2.8, ipMode: Proxy}]}}
";
    let service = one_service(&format!("{SERVICE}{spec}"));
    assert!(
        service.ipv6_first,
        "without ipFamilies, the cluster IP decides"
    );
    assert_eq!(service.unserved, ["spec.ports[2].protocol: SCTP"]);
    assert!(service.traffic.prefers_near);
    let addresses = |service: &ServiceObject| -> Vec<String> {
        let all = service.addresses.iter();
        all.map(|it| format!("{}: {}", it.kind.field(), it.ip))
            .collect()
    };
    assert_eq!(
        addresses(&service),
        [
            "spec.clusterIP: fd00::1",
            "spec.externalIPs: 192.0.2.1",
            "spec.externalIPs: 192.0.2.2",
            "status.loadBalancer.ingress: 192.0.2.9",
        ]
    );
    assert_eq!(service.lost(&config(true)).count(), service.unserved.len());
    assert_eq!(
        service.lost(&config(false)).count(),
        service.unserved.len() + 5
    );
    assert_eq!(service.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
    let dual = "  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1, 'fd00::1']\n";
    assert_eq!(
        addresses(&one_service(&format!("{SERVICE}{dual}"))),
        ["spec.clusterIP: 10.96.0.1", "spec.clusterIP: fd00::1"]
    );
    let traffic = &service.traffic;
    assert!(traffic.external_local && traffic.internal_local);
    assert_eq!(traffic.health_check, Some(32_000));
    let quiet = "  sessionAffinity: None\n  clusterIP: None\n  externalTrafficPolicy: Cluster\n";
    let service = one_service(&format!("{SERVICE}{quiet}"));
    assert_eq!(service.unserved.len(), 1);
    assert_eq!(service.addresses, []);
    assert!(service.headless && !one_service(&format!("{SERVICE}{dual}")).headless);
    let unclaimed = format!("{SERVICE}{spec}").replace("ebbtide}", "other}");
    assert_eq!(one_service(&unclaimed).lost(&config(false)).count(), 0);
    let for_no_proxy = SERVICE.replace("ebbtide}", "ebbtide, service.kubernetes.io/headless: ''}");
    assert!(!one_service(&for_no_proxy).claimed);
}

#[test]
fn the_first_of_ip_families_decides() {
    assert!(
        one_service(&format!(
            "{SERVICE}  ipFamilies: [IPv6, IPv4]\n  clusterIP: 10.0.0.1\n"
        ))
        .ipv6_first
    );
    assert!(
        !one_service(&format!(
            "{SERVICE}  ipFamilies: [IPv4]\n  clusterIP: fd00::1\n"
        ))
        .ipv6_first
    );
}

#[test]
fn a_slice_has_its_nil_rules_applied() {
    let endpoint = |address: &str, pod: Option<(&str, &str)>, ready, terminating| SliceEndpoint {
        address: address.parse().unwrap(),
        pod: pod.map(|(name, uid)| {
            Arc::new(PodRef {
                name: name.into(),
                uid: uid.into(),
            })
        }),
        ready,
        serving: true,
        terminating,
        local: false,
        hints: Default::default(),
    };
    let expected = SliceObject {
        name: ObjectName::new("default", "app-x"),
        service: Some("app".into()),
        ipv6: false,
        fqdn: false,
        created: 60,
        generation: 4,
        ports: vec![("http".into(), 8080)],
        endpoints: vec![
            endpoint("10.0.0.1", Some(("app-1", "u-1")), true, false),
            endpoint("10.0.0.3", None, false, true),
        ],
        udp_ports: vec![("dns".into(), 53)],
    };
    assert_eq!(yaml(SLICE), [Object::EndpointSlice(expected)]);
}

#[test]
fn an_fqdn_slice_is_kept_without_endpoints() {
    let text = SLICE
        .replace("IPv4", "FQDN")
        .replace("10.0.0.3", "app.example.com");
    let Object::EndpointSlice(slice) = yaml(&text).remove(0) else {
        panic!()
    };
    assert!(slice.fqdn && slice.endpoints.is_empty());
}

#[test]
fn the_time_left_of_a_deletion_is_known_only_in_a_list() {
    let text = "
apiVersion: v1
kind: Pod
metadata:
  name: p
  labels: {pod-template-hash: abc}
  deletionTimestamp: 1970-01-01T00:01:00Z
  deletionGracePeriodSeconds: 30
";
    let listed = |at| match parse(text, Format::Yaml, at).unwrap().remove(0) {
        Object::Pod(pod) => pod,
        other => panic!("{other:?}"),
    };
    let s = Duration::from_secs;
    let later = listed(None);
    assert_eq!(
        later.deletion,
        Some(Deletion {
            grace: Some(s(30)),
            remaining: None,
            age: None
        })
    );
    assert_eq!(
        (
            later.uid.as_str(),
            later.template_hash.as_deref(),
            later.spec_grace
        ),
        ("", Some("abc"), Some(s(30)))
    );
    let remaining = |at| {
        listed(Some(SystemTime::UNIX_EPOCH + s(at)))
            .deletion
            .and_then(|d| d.remaining)
    };
    assert_eq!(remaining(48), Some(s(12)));
    assert_eq!(remaining(99), Some(s(0)));
}

#[test]
fn documents_and_lists_are_read_and_other_kinds_are_skipped() {
    let indented = SLICE.trim().replace('\n', "\n  ");
    let service = SERVICE.trim().replace('\n', "\n  ");
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {indented}\n- kind: ConfigMap\n  data: {{a: b}}\n- {service}\n"
    );
    let text = format!(
        "# a comment\n---\n{SERVICE}--- # next\n{SLICE}...\n---\nkind: Deployment\nspec: 5\n---\n{list}"
    );
    assert_eq!(
        yaml(&text)
            .iter()
            .map(Object::kind)
            .map(|k| k.to_string())
            .collect::<Vec<_>>(),
        ["Service", "EndpointSlice", "EndpointSlice", "Service"]
    );
    let bare = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n- {}\n",
        indented
            .replace("  kind: EndpointSlice\n", "")
            .replace("  apiVersion: discovery.k8s.io/v1\n", "")
    );
    assert_eq!(
        yaml(&bare),
        yaml(SLICE),
        "items of a typed list need neither apiVersion nor kind"
    );
    assert_eq!(yaml("# nothing\n---\n"), []);
    assert_eq!(
        yaml(&format!("\u{feff}{}", SLICE.replace('\n', "\r\n"))),
        yaml(SLICE)
    );
}

/// A kind belongs to a group: Knative and Config Connector have a `Service` of their own.
#[test]
fn a_kind_of_another_api_group_is_skipped_wherever_it_stands() {
    for (group, kind) in [
        ("serving.knative.dev/v1", "Service"),
        ("run.cnrm.cloud.google.com/v1beta1", "Service"),
        ("metrics.k8s.io/v1beta1", "Pod"),
        ("v1", "EndpointSlice"),
        ("discovery.k8s.io/v1", "Pod"),
        ("discovery.k8s.io/v1beta1", "EndpointSlice"),
        ("v2", "Service"),
    ] {
        let other = format!("{{apiVersion: {group}, kind: {kind}, metadata: 5, spec: [x]}}");
        let service = SERVICE.trim().replace('\n', "\n  ");
        let bare = other.replace(&format!("apiVersion: {group}, kind: {kind}, "), "");
        for text in [
            format!("---\n{other}\n---\n{SERVICE}"),
            format!("apiVersion: v1\nkind: List\nitems:\n- {other}\n- {service}\n"),
            format!(
                "apiVersion: {group}\nkind: {kind}List\nitems:\n- {bare}\n- {other}\n---\n{SERVICE}"
            ),
        ] {
            assert_eq!(yaml(&text), yaml(SERVICE), "{text}");
        }
    }
}

/// A missing or malformed apiVersion is an error, as it is for kubectl, if the kind is one that
/// routing needs.
#[test]
fn without_an_api_version_a_kind_decides_nothing() {
    for (text, line, field) in [
        ("kind: Service\nmetadata: {name: a}\n", 1, "apiVersion"),
        (
            "apiVersion: v1\nkind: List\nitems:\n- kind: Pod\n",
            1,
            "items[0].apiVersion",
        ),
        ("apiVersion: 1\nkind: Pod\n", 1, "apiVersion"),
    ] {
        let error = parse(text, Format::Yaml, None).unwrap_err();
        assert_eq!((error.line, error.field.as_str()), (line, field), "{error}");
        assert!(error.message.starts_with("expected "), "{error}");
    }
}

#[test]
fn json_is_read_as_well() {
    let one = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "uid": "u"}}"#;
    let list = r#"{"items": [{"metadata": {"name": "b"}}, {"metadata": {"name": "c"}}], "kind": "PodList", "apiVersion": "v1"}"#;
    let objects = parse(&format!("{one}\n{list}\n"), Format::Json, None).unwrap();
    assert_eq!(
        objects
            .iter()
            .map(|o| o.name().name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    assert_eq!(
        parse(one, Format::Json, None),
        parse(one, Format::Yaml, None)
    );
    assert_eq!(parse("", Format::Json, None), Ok(vec![]));
}

#[test]
fn errors_name_line_and_field() {
    let second = format!("---\n{SERVICE}---{SLICE}");
    let cases = [
        (
            SERVICE.replace("port: 80,", "port: x,"),
            "line 11, spec.ports[0].port: invalid type: string \"x\", expected i32",
        ),
        (
            SERVICE.replace("port: 80,", "port: 70000,"),
            "line 11, spec.ports[0].port: expected a port from 1 to 65535, found 70000",
        ),
        (
            second.replace("10.0.0.3", "10.0.0"),
            "line 21, endpoints[1].addresses[0]: expected an IPv4 address, found \"10.0.0\"",
        ),
        (
            SLICE.replace("10.0.0.3", "fd00::1"),
            "line 7, endpoints[1].addresses[0]: expected an IPv4 address, as addressType says, found fd00::1",
        ),
        (
            SLICE.replace("IPv4", "ipv4"),
            "line 2, addressType: expected IPv4, IPv6 or FQDN, found \"ipv4\"",
        ),
        (
            SLICE.replace("[10.0.0.3]", "[]"),
            "line 7, endpoints[1].addresses: missing or empty",
        ),
        (
            SLICE.replace("name: app-x", "x: y"),
            "line 1, metadata.name: missing",
        ),
        (
            SLICE.replace("true", "maybe"),
            "line 8, endpoints[1].conditions.serving: invalid type: string \"maybe\", expected a boolean",
        ),
        (
            "a: b\n".into(),
            "line 1, kind: missing; a manifest names its apiVersion and kind",
        ),
        (
            "kind: Pod\nmetadata: [a\n".into(),
            "line 2, metadata: unclosed bracket",
        ),
        (
            SLICE.replace("app-x", "\"a\\u009b\""),
            "line 12, metadata: a control character in its name",
        ),
        // A key that contains dots.
        (
            SLICE.replace("service-name: app", "service-name: [x]"),
            "line 15, metadata.labels.kubernetes.io/service-name: invalid type: sequence, expected a string",
        ),
        // Unescaped, this key would be a separate line of the log.
        (
            SERVICE.replace("other: x", "\"a\\r\\nlevel=ERROR \\ered\": [x]"),
            "line 8, metadata.annotations.a  level=ERROR  red: invalid type: sequence, expected a string",
        ),
    ];
    for (text, expected) in cases {
        let error = parse(&text, Format::Yaml, None).unwrap_err().to_string();
        assert!(
            error.starts_with(expected),
            "{error}\n  instead of\n{expected}"
        );
        assert!(!error.contains(char::is_control), "{error:?}");
    }
    let json = "{\"kind\": \"Foo\"}\n{\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\"metadata\": {\"name\": \"a\"},\n\"spec\": {\"ports\": [\n{\"port\": 0}]}}";
    let error = |text: &str| parse(text, Format::Json, None).unwrap_err().to_string();
    assert_eq!(
        error(json),
        "line 5, spec.ports[0].port: expected a port from 1 to 65535, found 0"
    );
    assert_eq!(
        error(&json.replace(" 0}", " {}}")),
        "line 5, spec.ports[0].port: invalid type: map, expected i32"
    );
    assert!(error("{\"kind\": \"Service\",\n").starts_with("line 2: EOF"));
}

/// A label that names a proxy decides. Without one, `all` claims what kube-proxy would serve.
#[test]
fn the_label_decides_and_all_claims_what_nobody_else_is_named_for() {
    let read = |claim: &Claim, labels: &str, spec: &str| {
        let text = format!("metadata: {{name: app, labels: {{{labels}}}}}\nspec: {{{spec}}}\n");
        let document = format!("apiVersion: v1\nkind: Service\n{text}");
        let document = documents(&document, Format::Yaml).unwrap().remove(0);
        let reader = Reader {
            claim: claim.clone(),
            ..Reader::default()
        };
        match &parse_document(document, Format::Yaml, None, &reader)
            .unwrap()
            .objects[..]
        {
            [Object::Service(service)] => service.claimed,
            other => panic!("{other:?}"),
        }
    };
    let claim = |all, name: &str| Claim {
        all,
        proxy_name: name.to_owned(),
    };
    let plain = "clusterIP: 10.96.0.7";
    let proxy = |name: &str| format!("service.kubernetes.io/service-proxy-name: {name}");
    let headless = "service.kubernetes.io/headless: ''";
    for (labels, spec, labelled, all) in [
        ("", plain, false, true),
        (&*proxy("edge"), plain, true, true),
        (&proxy("ebbtide"), plain, false, false),
        (&proxy("cilium"), plain, false, false),
        (headless, plain, false, false),
        ("", "clusterIP: None", false, false),
        (
            "",
            "type: ExternalName, externalName: example.org",
            false,
            false,
        ),
        ("", "type: NodePort", false, true),
    ] {
        let found = [false, true].map(|all| read(&claim(all, "edge"), labels, spec));
        assert_eq!(found, [labelled, all], "{labels} {spec}");
    }
}

#[test]
fn an_endpoint_is_local_if_it_is_on_this_node() {
    let text = SLICE.replace(
        "- addresses: [10.0.0.3]",
        "  nodeName: n-1\n- addresses: [10.0.0.3]",
    );
    let local = |name: Option<&str>| {
        let reader = by(Node {
            name: name.map(str::to_owned),
            zone: None,
        });
        let mut objects = Vec::new();
        for document in documents(&text, Format::Yaml).unwrap() {
            objects.extend(
                parse_document(document, Format::Yaml, None, &reader)
                    .unwrap()
                    .objects,
            );
        }
        let Object::EndpointSlice(slice) = objects.remove(0) else {
            panic!("{objects:?}");
        };
        slice.endpoints.iter().map(|e| e.local).collect::<Vec<_>>()
    };
    assert_eq!(local(Some("n-1")), [true, false]);
    assert_eq!(local(Some("n-2")), [false, false]);
    assert_eq!(local(None), [false, false], "no name is no node");
}

#[test]
fn a_hint_counts_for_the_nodes_and_zones_that_it_names() {
    let hints = "  hints: {forNodes: [{name: n-1}], forZones: [{name: a}, {name: b}]}\n";
    let text = SLICE.replace(
        "- addresses: [10.0.0.3]",
        &format!("{hints}- addresses: [10.0.0.3]"),
    );
    let read = |name: Option<&str>, zone: Option<&str>| {
        let node = Node {
            name: name.map(str::to_owned),
            zone: zone.map(str::to_owned),
        };
        let document = documents(&text, Format::Yaml).unwrap().remove(0);
        let mut objects = parse_document(document, Format::Yaml, None, &by(node))
            .unwrap()
            .objects;
        let Object::EndpointSlice(slice) = objects.remove(0) else {
            panic!("{objects:?}");
        };
        assert_eq!(slice.endpoints[1].hints, Hints::default(), "it has none");
        let Hints { node, zone } = slice.endpoints[0].hints;
        (node, zone)
    };
    let (here, elsewhere) = (Hint::Here, Hint::Elsewhere);
    assert_eq!(read(Some("n-1"), Some("b")), (here, here));
    assert_eq!(read(Some("n-2"), Some("c")), (elsewhere, elsewhere));
    assert_eq!(read(None, None), (elsewhere, elsewhere));
}

/// Slices of a Service with `publishNotReadyAddresses` say so.
#[test]
fn what_is_published_as_ready_serves() {
    let text = SLICE.replace("ready: false, serving: true", "ready: true, serving: false");
    let Object::EndpointSlice(slice) = yaml(&text).remove(0) else {
        panic!("{text}");
    };
    let found = &slice.endpoints[1];
    assert!(found.ready && found.serving && found.terminating);
}
