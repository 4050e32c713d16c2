//! The configuration file and the command line, from outside: fixtures, the shipped examples, and
//! the binary itself. A refusal is one line with exit code 2 that names the file, the field and
//! what is expected.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use ebbtide::config::settings::{Config, Discovery, Ingress, ListenerConfig, Passthrough, Publish};
use ebbtide::config::tls::{ClientCertificates, Pair, Tls};
use ebbtide::contract::name::ObjectName;
use ebbtide::contract::policy::{NonIdempotent, PortRef, Protocol};
use serde_json::Value;

use crate::support::binary::BINARY;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(ROOT).join("tests/fixtures/config").join(kind);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|end| end == "yaml" || end == "json")
    });
    files.sort();
    files
}

fn valid(name: &str) -> Config {
    Config::load(
        &Path::new(ROOT)
            .join("tests/fixtures/config/valid")
            .join(name),
    )
    .unwrap()
}

fn ebbtide(arguments: &[&str]) -> Output {
    Command::new(BINARY)
        .args(arguments)
        .current_dir(ROOT)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Each `name.yaml` has a `name.err` beside it, which holds the whole line. `UPDATE=1` writes the
/// `.err` files again. Review their diff.
#[test]
fn each_invalid_fixture_is_refused_with_its_line() {
    let files = fixtures("invalid");
    assert!(files.len() > 50, "found {}", files.len());
    let mut wrong = String::new();
    for file in files {
        let error = Config::load(&file)
            .expect_err(&file.display().to_string())
            .to_string();
        let folder = file.parent().unwrap().display().to_string();
        let said = error.replace(&format!("{folder}/"), "");
        let expected_at = file.with_extension("err");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&expected_at, format!("{said}\n")).unwrap();
        }
        let expected = std::fs::read_to_string(&expected_at).unwrap_or_default();
        if format!("{said}\n") != expected {
            wrong += &format!("\n  actual: {said}\n expected: {expected}");
        }
        assert!(said.contains("expected") && !said.contains('\n'), "{said}");
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A file that was cut while it was written is refused like any other: without a panic, in one
/// line.
#[test]
fn every_truncated_file_is_refused_in_one_line() {
    let whole = std::fs::read_to_string(
        Path::new(ROOT).join("tests/fixtures/config/valid/everything.yaml"),
    )
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    // As deep as the fixtures are.
    let folder = folder.path().join("config/valid");
    std::fs::create_dir_all(folder.join("manifests")).unwrap();
    std::fs::copy(
        Path::new(ROOT).join("tests/fixtures/api-server.pem"),
        folder.join("../../api-server.pem"),
    )
    .unwrap();
    let file = folder.join("cut.yaml");
    let mut refused = 0;
    for end in (0..whole.len()).step_by(3) {
        std::fs::write(&file, &whole[..end]).unwrap();
        if let Err(error) = Config::load(&file) {
            refused += 1;
            let line = error.to_string();
            assert!(
                line.contains(", expected ") && !line.contains('\n'),
                "{line}"
            );
        }
    }
    assert!(refused > 150, "{refused} of {}", whole.len());
}

#[test]
fn each_valid_fixture_loads() {
    let files = fixtures("valid");
    assert!(files.len() >= 5, "found {}", files.len());
    for file in files {
        let config = Config::load(&file).unwrap();
        match &config.discovery {
            Discovery::Kubernetes(kubernetes) => assert_eq!(kubernetes.namespaces, ["web", "shop"]),
            Discovery::Files { path } => {
                assert_eq!(
                    *path,
                    file.parent().unwrap().join("manifests"),
                    "relative to the folder of the file"
                );
            }
            Discovery::Static { .. } => panic!("{config:?}"),
        }
    }
}

#[test]
fn absent_fields_have_the_documented_defaults() {
    let config = valid("defaults.yaml");
    assert_eq!(config, Config::new(config.discovery.clone()));
    assert_eq!(config.admin, "127.0.0.1:9901".parse().unwrap());
    assert_eq!(
        config.workers,
        std::thread::available_parallelism().unwrap()
    );
    assert!(
        config.listeners.is_empty() && config.node_port_addresses.is_empty() && !config.access_log
    );
}

#[test]
fn every_field_is_taken_over() {
    let mut config = valid("everything.yaml");
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let seconds = Duration::from_secs;
    let ranges = ["10.244.0.0/16", "fd00:244::/48"].map(|it| it.parse().unwrap());
    assert_eq!(config.inside.pods, ranges);
    assert_eq!(config.inside.nodes, [ip("192.0.2.1")]);
    assert!(config.claim.all && config.claim.proxy_name == "edge-1");
    assert_eq!(config.node_port_addresses, [ip("::1"), ip("127.0.0.1")]);
    let gate = config.gate.as_ref().unwrap();
    assert_eq!(
        (gate.addresses.clone(), gate.port),
        (vec![ip("192.0.2.1")], 9903)
    );
    assert_eq!(gate.peers, ["192.0.2.2:9903".parse().unwrap()]);
    assert!(gate.key.as_ref().unwrap().ends_with("api-server.pem"));
    let addresses = config.addresses.as_ref().unwrap();
    assert_eq!(addresses.nodes, [ip("192.0.2.1")]);
    assert_eq!((addresses.port, addresses.keeps_source), (15002, false));
    assert!(addresses.socket.ends_with("net.sock"));
    let listener =
        |name: &str, address: &str, service: &str, port: PortRef, protocol, proxy_protocol| {
            ListenerConfig {
                name: name.into(),
                address: address.parse().unwrap(),
                service: ObjectName::new("web", service),
                port,
                protocol: Some(protocol),
                proxy_protocol,
                allow_connect: proxy_protocol,
                sni: Vec::new(),
                source_ranges: Vec::new(),
                scope: None,
                health_check: false,
                routes: None,
                tls: None,
            }
        };
    let expected = [
        listener(
            "web",
            "[::1]:8443",
            "nginx-svc",
            PortRef::Number(443),
            Protocol::Tcp,
            true,
        ),
        listener(
            "any",
            "127.0.0.1:0",
            "api",
            PortRef::Name("grpc-web".into()),
            Protocol::Http,
            false,
        ),
        listener(
            "web-udp",
            "[::1]:8443",
            "nginx-svc",
            PortRef::Number(443),
            Protocol::Udp,
            false,
        ),
        listener(
            "any-too",
            "127.0.0.1:0",
            "api",
            PortRef::Number(80),
            Protocol::Auto,
            false,
        ),
    ];
    let pem = || {
        let folder = Path::new(ROOT).join("tests/fixtures/config/valid");
        folder.join("../../api-server.pem")
    };
    let mut expected = expected;
    expected[0].sni = vec![Passthrough {
        hosts: vec!["a.example".into(), "*.b.example".into()],
        service: ObjectName::new("web", "other"),
        port: PortRef::Number(443),
    }];
    expected[1].tls = Some(Tls {
        certificates: vec![Pair {
            certificate: pem(),
            key: pem(),
        }],
        secrets: vec![ObjectName::new("web", "shop.tls")],
        only_tls13: true,
        clients: ClientCertificates::Optional(pem()),
    });
    let secrets = config.named_secrets();
    let routes = config.listeners.split_off(expected.len());
    assert_eq!(config.listeners, expected);
    let routes = routes
        .iter()
        .map(|it| (it.address.to_string(), it.routes.is_some()));
    let all = ["[::1]:8081", "[::1]:0"].map(|address| (address.to_owned(), true));
    assert_eq!(routes.collect::<Vec<_>>(), all);
    let secret = ObjectName::new("web", "shop-tls");
    assert!(secrets.contains(&secret));
    let mut ingress = Ingress::of("edge");
    ingress.controller = "edge.example/ingress".to_owned();
    ingress.nginx_keys = true;
    ingress.server = Some("edge".to_owned());
    ingress.publish = Publish::Addresses(["192.0.2.1", "lb.example"].map(str::to_owned).into());
    assert_eq!(config.ingress, Some(ingress));
    assert_eq!(config.admin, "0.0.0.0:9999".parse().unwrap());
    assert_eq!(config.workers.get(), 3);
    let timeouts = config.timeouts;
    assert_eq!(timeouts.connect, Duration::from_millis(250));
    assert_eq!(timeouts.head, seconds(2));
    assert_eq!(timeouts.request, Some(seconds(90)));
    assert_eq!(timeouts.client_idle, seconds(3600));
    assert_eq!(timeouts.upstream_idle, seconds(5));
    assert_eq!(timeouts.hold, Duration::ZERO);
    assert_eq!(timeouts.drain, seconds(45));
    assert_eq!(timeouts.lame_duck, seconds(10));
    assert_eq!(timeouts.shutdown, seconds(60));
    assert_eq!(timeouts.udp_idle, seconds(5));
    let limits = config.limits;
    assert_eq!(
        (limits.connections, limits.head_size, limits.headers),
        (10, 8 << 10, 50)
    );
    assert_eq!((limits.replay_body, limits.held), (1 << 20, 0));
    assert_eq!(limits.udp_sessions, 7);
    let retry = config.retry;
    assert_eq!(
        (retry.attempts, retry.budget_percent, retry.budget_floor),
        (1, 0, 0)
    );
    assert_eq!(retry.non_idempotent, NonIdempotent::IdempotencyKey);
    assert_eq!(
        config.trusted_proxies,
        ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]
    );
    assert!(config.access_log);
}

#[test]
fn short_forms_of_fields_are_accepted() {
    let off = valid("off-as-false.yaml");
    assert!(!off.access_log && !off.listeners[0].proxy_protocol && !off.listeners[0].allow_connect);
    let ports = valid("node-ports-default.yaml");
    assert_eq!(
        ports
            .node_port_addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["0.0.0.0", "::"]
    );
    assert_eq!(ports.timeouts.request, Some(Duration::from_secs(10)));
    let json = valid("json.json");
    assert_eq!(
        (
            json.limits.head_size,
            json.limits.replay_body,
            json.access_log
        ),
        (4096, 0, true)
    );
}

/// `config/ebbtide.yaml` shows each default with its real value.
#[test]
fn the_reference_states_the_defaults() {
    let reference = Config::load(&Path::new(ROOT).join("config/ebbtide.yaml")).unwrap();
    let default = Config::new(reference.discovery.clone());
    assert_eq!(reference.timeouts, default.timeouts);
    assert_eq!(reference.limits, default.limits);
    assert_eq!(reference.retry, default.retry);
    assert_eq!(reference.admin, default.admin);
    assert_eq!(reference.trusted_proxies, default.trusted_proxies);
    assert_eq!(reference.access_log, default.access_log);
    assert_eq!(reference.listeners.len(), 1);
    assert_eq!(reference.node_port_addresses.len(), 2);
}

#[test]
fn the_standalone_example_loads() {
    let config = Config::load(&Path::new(ROOT).join("config/standalone.yaml")).unwrap();
    assert_eq!(
        config.discovery,
        Discovery::Files {
            path: Path::new(ROOT).join("config/manifests")
        }
    );
    assert_eq!(
        config.listeners[0].service,
        ObjectName::new("web", "nginx-svc")
    );
    assert_eq!(config.listeners[0].protocol, None);
}

/// The sample manifests are Kubernetes objects by the definition of Kubernetes' own API, and they
/// refer to each other.
#[test]
fn the_sample_manifests_are_kubernetes_objects() {
    use k8s_openapi::api::core::v1::{Pod, Service};
    use k8s_openapi::api::discovery::v1::EndpointSlice;

    let read = |name: &str| {
        std::fs::read_to_string(Path::new(ROOT).join("config/manifests").join(name)).unwrap()
    };
    let service: Service = serde_saphyr::from_str(&read("service.yaml")).unwrap();
    let slice: EndpointSlice = serde_saphyr::from_str(&read("endpointslice.yaml")).unwrap();
    let pods: Vec<Pod> = serde_saphyr::from_multiple(&read("pods.yaml")).unwrap();

    let name = service.metadata.name.unwrap();
    assert_eq!(name, "nginx-svc");
    assert_eq!(service.metadata.namespace.as_deref(), Some("web"));
    assert_eq!(
        service.metadata.labels.unwrap()["service.kubernetes.io/service-proxy-name"],
        "ebbtide"
    );
    let port = &service.spec.unwrap().ports.unwrap()[0];
    assert_eq!(
        (port.name.as_deref(), port.node_port),
        (Some("http"), Some(31180))
    );
    assert_eq!(
        slice.metadata.labels.unwrap()["kubernetes.io/service-name"],
        name
    );
    assert_eq!(slice.ports.unwrap()[0].name, port.name);
    assert_eq!(pods.len(), 2);
    for (endpoint, pod) in slice.endpoints.into_iter().zip(pods) {
        assert!(
            endpoint.addresses[0]
                .parse::<std::net::IpAddr>()
                .unwrap()
                .is_loopback()
        );
        let target = endpoint.target_ref.unwrap();
        assert_eq!(
            (target.name, target.uid),
            (pod.metadata.name, pod.metadata.uid)
        );
    }
}

/// Every field of the reference is in the schema, with the default that the reference states. Every
/// field of the schema is in the reference.
#[test]
fn the_schema_and_the_reference_name_the_same_fields() {
    let output = ebbtide(&["schema"]);
    assert!(output.status.success());
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    let reference = std::fs::read_to_string(Path::new(ROOT).join("config/ebbtide.yaml")).unwrap();
    // The two sources exclude each other, so the reference shows the second one as a comment.
    let reference = reference
        .replace("  # kubernetes:", "  kubernetes:")
        .replace("  # snapshot:", "  snapshot:")
        .replace("    # tls:", "    tls:")
        .replace("    # sni:", "    sni:")
        .replace("# ingress:", "ingress:")
        .replace("# gateway:", "gateway:")
        .replace("# gate:", "gate:")
        .replace("\n#   ", "\n  ")
        .replace("    #   ", "      ")
        .replace("  #   ", "    ");
    let options = serde_saphyr::options! { strict_booleans: true };
    let reference: Value = serde_saphyr::from_str_with_options(&reference, options).unwrap();
    let mut seen = 0;
    compare(&reference, &schema, &schema, "", &mut seen);
    assert!(seen > 40, "{seen} fields");
}

fn compare(value: &Value, schema: &Value, root: &Value, path: &str, seen: &mut usize) {
    let schema = resolve(schema, root);
    match value {
        Value::Object(fields) => {
            let known = schema["properties"]
                .as_object()
                .unwrap_or_else(|| panic!("{path}: no fields in {schema}"));
            assert_eq!(schema["additionalProperties"], false, "{path}");
            let names = |fields: &serde_json::Map<String, Value>| {
                fields.keys().cloned().collect::<BTreeSet<_>>()
            };
            assert_eq!(names(fields), names(known), "{path}");
            for (name, value) in fields {
                *seen += 1;
                let path = format!("{path}.{name}");
                if let Some(default) = known[name].get("default") {
                    assert!(
                        default == value || path.contains("listeners"),
                        "{path}: {default} or {value}"
                    );
                }
                compare(value, &known[name], root, &path, seen);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| compare(item, &schema["items"], root, path, seen)),
        _ => {}
    }
}

/// Follows `$ref`, and the `anyOf` that lets a field be null.
fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return root.pointer(reference.trim_start_matches('#')).unwrap();
    }
    match schema["anyOf"].as_array() {
        Some(any) => resolve(
            any.iter().find(|one| one.get("$ref").is_some()).unwrap(),
            root,
        ),
        None => schema,
    }
}

#[test]
fn refusals_are_one_line_and_exit_code_2() {
    let cases: [(&[&str], &str); 8] = [
        (
            &["run", "--config", "no-such-file.yaml"],
            "ebbtide: no-such-file.yaml: cannot be read (No such file or directory), expected a configuration file\n",
        ),
        (
            &[
                "check",
                "--config",
                "tests/fixtures/config/invalid/workers-zero.yaml",
            ],
            "ebbtide: tests/fixtures/config/invalid/workers-zero.yaml:2: workers: 0 is out of range, expected 1 to 1024\n",
        ),
        (
            &[
                "run",
                "--config",
                "tests/fixtures/config/invalid/workers-zero.yaml",
            ],
            "ebbtide: tests/fixtures/config/invalid/workers-zero.yaml:2: workers: 0 is out of range, expected 1 to 1024\n",
        ),
        (
            &["proxy", "--listen", "127.0.0.1:9901", "--to", "127.0.0.1:1"],
            "ebbtide: proxy: --listen: 127.0.0.1:9901 is also the address of --admin, expected another address\n",
        ),
        (
            &[
                "proxy",
                "--listen",
                "127.0.0.1:0",
                "--to",
                "127.0.0.1:1,127.0.0.1:1",
            ],
            "ebbtide: proxy: --to: 127.0.0.1:1 is given twice, expected it once\n",
        ),
        (
            &[
                "proxy",
                "--listen",
                "127.0.0.1:8",
                "--to",
                "127.0.0.1:1,127.0.0.1:8",
            ],
            "ebbtide: proxy: --to: 127.0.0.1:8 is where this proxy listens (--listen 127.0.0.1:8), expected an endpoint's address\n",
        ),
        (
            &["proxy", "--listen", "0.0.0.0:8", "--to", "127.3.2.1:8"],
            "ebbtide: proxy: --to: 127.3.2.1:8 is where this proxy listens (--listen 0.0.0.0:8), expected an endpoint's address\n",
        ),
        (
            &["proxy", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:9901"],
            "ebbtide: proxy: --to: 127.0.0.1:9901 is where this proxy listens (--admin 127.0.0.1:9901), expected an endpoint's address\n",
        ),
    ];
    for (arguments, expected) in cases {
        let output = ebbtide(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stderr), expected);
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn bad_arguments_are_exit_code_2() {
    for arguments in [
        &["proxy", "--listen", "localhost", "--to", "127.0.0.1:1"][..],
        &["proxy", "--listen", "127.0.0.1:0"],
        &[
            "proxy",
            "--listen",
            "127.0.0.1:0",
            "--to",
            "127.0.0.1:1",
            "--protocol",
            "udp",
        ],
        &["demo", "--for", "20"],
        &["demo", "--for", "0s"],
        &["wash"],
        &[],
    ] {
        assert_eq!(ebbtide(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_and_version() {
    let version = ebbtide(&["--version"]);
    assert!(version.status.success());
    assert_eq!(
        text(&version.stdout),
        format!("ebbtide {}\n", ebbtide::VERSION)
    );
    assert!(
        ebbtide::VERSION.starts_with(concat!(env!("CARGO_PKG_VERSION"), " (")),
        "{}",
        ebbtide::VERSION
    );
    let help = ebbtide(&["--help"]);
    assert!(help.status.success());
    for command in [
        "run", "proxy", "check", "demo", "drill", "status", "receipt", "schema",
    ] {
        assert!(
            text(&help.stdout).contains(&format!("\n  {command} ")),
            "{command}"
        );
        assert!(ebbtide(&[command, "--help"]).status.success(), "{command}");
    }
    assert!(!text(&help.stdout).contains("sample-app"));
    assert!(text(&help.stdout).contains("Completions for bash"));
    for command in ["run", "proxy"] {
        let help = ebbtide(&[command, "--help"]);
        assert!(text(&help.stdout).contains("EBBTIDE_LOG"), "{command}");
    }
}

/// A reader that closes the pipe is no failure.
#[test]
fn a_closed_pipe_is_quiet() {
    let mut child = Command::new(BINARY)
        .arg("schema")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn check_passes_the_examples() {
    for file in ["config/standalone.yaml", "config/ebbtide.yaml"] {
        let output = ebbtide(&["check", "--config", file]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(
            text(&output.stdout).contains("127.0.0.1:8080"),
            "{}",
            text(&output.stdout)
        );
    }
}

/// The output for the two sample files together.
#[test]
fn check_shows_what_the_sample_manifests_serve() {
    let output = ebbtide(&["check", "--config", "config/standalone.yaml"]);
    let expected = "\
LISTENER  ADDRESS         SERVICE        PORT       PROTOCOL  ENDPOINTS
web       127.0.0.1:8080  web/nginx-svc  http (80)  http      2 of 2 ready

SERVICE        PORT       PROTOCOL  ENDPOINT        POD      STATE
web/nginx-svc  http (80)  http      127.0.0.1:8081  nginx-1  ready
web/nginx-svc  http (80)  http      127.0.0.2:8081  nginx-2  ready
";
    let (_, tables) = text(&output.stdout).split_once("\n\n").unwrap();
    assert_eq!(tables, expected);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

/// Runs `check` with these listeners, manifests and further lines. Returns its warnings.
fn check_warns(config: &str, manifests: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    std::fs::write(folder.path().join("manifests/app.yaml"), manifests).unwrap();
    let file = folder.path().join("ebbtide.yaml");
    let config = format!("discovery: {{files: {{path: manifests}}}}\n{config}");
    std::fs::write(&file, config).unwrap();
    let output = ebbtide(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let warnings = text(&output.stdout).lines();
    let warnings = warnings.filter_map(|line| line.strip_prefix("warning: "));
    warnings.map(str::to_owned).collect()
}

/// A Service port with this field, and a slice with these ports.
fn named_ports(service: &str, slice: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: app, namespace: web}}\n\
         spec: {{ports: [{{{service}port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: app-1, namespace: web, labels: {{kubernetes.io/service-name: app}}}}\n\
         ports: [{slice}]\nendpoints: [{{addresses: [127.0.0.1]}}]\n"
    )
}

#[test]
fn check_names_the_ports_of_slices_that_do_not_fit_the_service() {
    let config =
        "listeners: [{name: web, address: '127.0.0.1:8080', service: web/app, port: 80}]\n";
    let none = "web/app: port PORT has no ready endpoint".to_owned();
    for (service, slice, port, expected) in [
        (
            "name: http, ",
            "{name: web, port: 1}, {name: admin, port: 2}",
            "http (80)",
            "web/app: no slice has a port named \"http\", the slices have \"admin\", \"web\"; \
             give the port of the Service and of its slices the same name",
        ),
        (
            "",
            "{name: web, port: 1}",
            "80",
            "web/app: no slice has a port without a name, the slices have \"web\"; \
             give the port of the Service and of its slices the same name",
        ),
        (
            "name: http, ",
            "{port: 1}",
            "http (80)",
            "web/app: no slice has a port named \"http\", the slices have a port without a name; \
             give the port of the Service and of its slices the same name",
        ),
    ] {
        let warnings = check_warns(config, &named_ports(service, slice));
        assert_eq!(warnings, [none.replace("PORT", port), expected.to_owned()]);
    }
    for (service, slice) in [
        (
            "name: http, ",
            "{name: other, port: 2}, {name: http, port: 1}",
        ),
        ("", "{port: 1}"),
    ] {
        let warnings = check_warns(config, &named_ports(service, slice));
        assert_eq!(warnings, Vec::<String>::new());
    }
}

/// What nothing reads is named with its file, its object and the cure.
#[test]
fn check_names_manifests_that_are_passed_over() {
    let config = "listeners: [{name: web, address: 127.0.0.1:8080, service: web/app, port: 80}]\n";
    let good = named_ports("", "{port: 80}");
    let passed_over = |manifests: &str| {
        let mut warnings = check_warns(config, manifests);
        warnings.retain(|it| it.contains("app.yaml: "));
        warnings
    };
    assert_eq!(passed_over(&good), [""; 0]);
    for (from, to, expected) in [
        (
            "io/v1",
            "io/v1beta1",
            "EndpointSlice web/app-1: apiVersion discovery.k8s.io/v1beta1 is not read; write it as discovery.k8s.io/v1",
        ),
        (
            "discovery.k8s.io/v1",
            "v1",
            "EndpointSlice web/app-1: apiVersion v1 is not read; write it as discovery.k8s.io/v1",
        ),
        (
            "EndpointSlice",
            "EndpointSlces",
            "EndpointSlces web/app-1: there is no kind EndpointSlces, did you mean EndpointSlice?",
        ),
        (
            "kubernetes.io/service-name",
            "service-name",
            "EndpointSlice web/app-1: no Service gets its endpoints; give it the label kubernetes.io/service-name with the name of its Service",
        ),
        (
            "name: app, namespace: web}",
            "name: app2, namespace: web}",
            "EndpointSlice web/app-1: no manifest has the Service web/app that its label kubernetes.io/service-name names; did you mean app2?",
        ),
    ] {
        let found = passed_over(&good.replace(from, to));
        assert!(
            matches!(&found[..], [it] if it.ends_with(expected)),
            "{from}: {found:?}"
        );
    }
}

/// A folder may have a whole application in it.
#[test]
fn check_says_that_it_reads_no_pod_templates() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    let file = folder.path().join("ebbtide.yaml");
    std::fs::write(&file, "discovery: {files: {path: manifests}}").unwrap();
    let shown = |manifests: &str| {
        std::fs::write(folder.path().join("manifests/app.yaml"), manifests).unwrap();
        let output = ebbtide(&["check", "--config", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    let service = named_ports("", "{port: 80}");
    assert!(!shown(&service).contains("pod templates"));
    let deployment = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: app}\n\
                      spec: {template: {spec: {containers: []}}}\n";
    let shown = shown(&(service + deployment));
    assert!(
        shown.contains("not read   pod templates, here in 1 of the manifests"),
        "{shown}"
    );
}

#[test]
fn check_compares_the_names_of_ports_over_one_transport() {
    // As the cluster's DNS has them.
    let both = named_ports(
        "name: dns, protocol: UDP, ",
        "{name: dns, port: 1, protocol: UDP}, {name: dns-tcp, port: 1}",
    );
    let listener = "listeners: [{name: dns, address: '127.0.0.1:8053', service: web/app, port: dns, protocol: udp}]\n";
    assert_eq!(check_warns(listener, &both), Vec::<String>::new());
    let warnings = check_warns(
        listener,
        &both.replace(
            "{name: dns, port: 1, protocol: UDP}",
            "{name: x, port: 1, protocol: UDP}",
        ),
    );
    assert!(
        warnings
            .iter()
            .any(|it| it.contains("no slice has a port named \"dns\", the slices have \"x\";")),
        "{warnings:?}"
    );
}

#[test]
fn check_warns_of_a_proxy_header_that_no_peer_may_send() {
    let listener = "{name: lb, address: '127.0.0.1:8080', service: web/app, port: 80, proxyProtocol: required}";
    let manifests = named_ports("", "{port: 1}");
    let config = format!("listeners: [{listener}]\n");
    assert_eq!(
        check_warns(&config, &manifests),
        [
            "listener lb: proxyProtocol: required refuses every client, because trustedProxies is empty; \
             add the load balancer's addresses to trustedProxies"
        ]
    );
    let trusted = format!("{config}trustedProxies: [10.0.0.0/8]\n");
    assert_eq!(check_warns(&trusted, &manifests), Vec::<String>::new());
}

/// A suggestion that is refused in its turn helps nobody.
#[test]
fn a_refused_duration_comes_with_examples_that_are_accepted() {
    for (command, expected) in [
        ("demo", "such as 10s or 5m"),
        ("drill", "such as 10s or 5m"),
    ] {
        let output = ebbtide(&[command, "--for", "1"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            text(&output.stderr).contains(expected) && !text(&output.stderr).contains("250ms"),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn check_refuses_a_broken_manifest_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    std::fs::write(
        folder.path().join("manifests/broken.yaml"),
        "kind: [Service\n",
    )
    .unwrap();
    let file = folder.path().join("ebbtide.yaml");
    std::fs::write(&file, "discovery: {files: {path: manifests}}\n").unwrap();
    let output = ebbtide(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).starts_with("error: ") && text(&output.stderr).contains("broken.yaml")
    );
    assert!(
        text(&output.stdout).contains("warning: no listener"),
        "{}",
        text(&output.stdout)
    );
}
