//! The command: reads a configuration and its source once, and makes the report.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::time::{Instant, SystemTime};

use crate::command::check::seen::Seen;
use crate::command::check::served::{self, Services};
use crate::command::check::{certificates, cluster, gateways, migrate, routes, warnings};
use crate::config::settings::{Config, Discovery};
use crate::contract::name::ObjectName;
use crate::contract::policy::Transport;
use crate::discovery::files;
use crate::discovery::manifest::Reader;
use crate::discovery::object::Change;
use crate::discovery::secret::Contents;
use crate::discovery::secrets::MISSING;
use crate::discovery::source::Problem;
use crate::routing::classes::Classes;
use crate::routing::routes::Routes;
use crate::routing::world::objects::{Touched, World};
use crate::text::{Columns, one_line, table};

/// What `check` reports about a configuration that could be read.
#[derive(Debug)]
pub struct Report {
    /// Tables and warnings, for people.
    pub text: String,
    /// What is broken. The exit code is 0 if this is empty.
    pub problems: Vec<Problem>,
}

/// Reads a configuration, and the manifests or the API server that it names. The Services in `claim`
/// count as claimed. `from_nginx`: reports what would differ for the Ingress objects of ingress-nginx.
///
/// # Errors
/// [`crate::config::fault::Error`] and [`crate::config::fault::Refused`].
pub fn check(file: &Path, claim: &[ObjectName], from_nginx: bool) -> anyhow::Result<Report> {
    let mut config = Config::load(file)?;
    if from_nginx {
        migrate::moved(&mut config);
    }
    let (mut seen, mut world) = match &config.discovery {
        Discovery::Files { path } => {
            let read = files::read_folder(path, &Reader::of(&config));
            let mut heading = format!("manifests  {}\n", path.display());
            if read.pod_templates > 0 {
                let _ = writeln!(
                    heading,
                    "not read   pod templates, here in {} of the manifests: their preStop hooks, grace periods \
                     and probes",
                    read.pod_templates
                );
            }
            let seen = Seen {
                heading,
                objects: read.objects,
                contents: read.contents,
                problems: read.problems,
                warnings: read.passed_over,
            };
            (seen, World::default())
        }
        Discovery::Kubernetes(wanted) => (
            cluster::read(&config, wanted, claim)?,
            World::for_api_server(),
        ),
        Discovery::Static { .. } => (Seen::default(), World::default()),
    };
    if !matches!(config.discovery, Discovery::Kubernetes(_)) {
        seen.claim(claim);
    }
    if !seen.heading.is_empty() {
        certificates::look(&config, &mut seen, SystemTime::now());
    }
    let Seen {
        heading,
        objects,
        mut warnings,
        problems,
        contents,
    } = seen;
    if heading.is_empty() {
        return Ok(Report {
            text: heading,
            problems,
        });
    }
    let (now, mut touched) = (Instant::now(), Touched::default());
    for object in objects {
        world.apply(Change::Apply(object), now, &mut touched);
    }
    let Contents {
        certificates,
        authorities,
    } = contents;
    for (holder, found) in &authorities {
        world.take_authorities(holder, Some(found.clone()), &mut touched);
    }
    // Those of an API server are read one by one, by name, as far as listeners name them.
    let of_folder = matches!(config.discovery, Discovery::Files { .. });
    let lacks = |name: &ObjectName| match certificates.get(name) {
        Some(found) => found.as_ref().err().cloned(),
        None => of_folder.then(|| MISSING.to_owned()),
    };
    let services = world
        .service_names()
        .filter_map(|name| world.merge(name))
        .map(|s| (s.object.name.clone(), s))
        .collect();
    let (mut routes, mut moved) = (Routes::default(), String::new());
    if let Some(ingress) = &config.ingress {
        let classes = Classes::of(ingress, world.classes());
        match from_nginx {
            true => moved = migrate::report(&classes, &world, lacks),
            false => warnings.extend(routes::warnings(&classes, ingress, &world, lacks)),
        }
        if of_folder && !from_nginx {
            warnings.extend(routes::of_other_classes(&classes, &ingress.class, &world));
        }
        routes = Routes::of(ingress, &classes, world.ingresses());
    }
    let gateways = gateways::look(&config, &world, &lacks, &authorities);
    warnings.extend(gateways.warnings);
    let described = describe(
        &config,
        &services,
        &routes,
        &gateways.services,
        &|name, transport| world.slice_ports(name, transport),
        heading,
        warnings,
    );
    Ok(Report {
        text: described + &gateways.rules + &moved,
        problems,
    })
}

fn describe<'a>(
    config: &Config,
    services: &Services,
    routes: &Routes<'_>,
    led: &BTreeSet<ObjectName>,
    slice_ports: &dyn Fn(&ObjectName, Transport) -> BTreeSet<&'a str>,
    heading: String,
    mut warnings: Vec<String>,
) -> String {
    let bound = served::listeners(config, services);
    let served = served::served(config, services, &bound, routes, led);
    warnings.extend(config.warnings());
    warnings.extend(warnings::of_listeners(config, services));
    warnings.extend(warnings::of_addresses(config, &bound));
    let listened: BTreeSet<_> = bound.iter().map(|listener| &listener.service).collect();
    let rules = routes::rows(routes);
    for service in &served {
        let listened = listened.contains(&service.object.name);
        warnings.extend(warnings::of_service(config, service, listened));
        let names = |transport| slice_ports(&service.object.name, transport);
        warnings.extend(warnings::of_port_names(service, names));
    }

    let mut text = heading;
    let _ = writeln!(text, "admin      http://{}", config.admin);
    let _ = writeln!(text, "workers    {}\n", config.workers);
    text += &table(&served::listener_rows(&bound), Columns::Words);
    if !rules.is_empty() {
        text.push('\n');
        text += &table(&rules, Columns::Words);
    }
    text.push('\n');
    text += &table(&served::endpoint_rows(&served), Columns::Words);
    let names: BTreeSet<&ObjectName> = served.iter().map(|it| &it.object.name).collect();
    let rest = services.keys().filter(|name| !names.contains(name));
    let rest: Vec<String> = rest.map(ToString::to_string).collect();
    if !rest.is_empty() {
        let more = match rest.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let _ = writeln!(
            text,
            "\nnot served, neither claimed nor named by a listener or a route: {}{more}",
            one_line(&rest[..rest.len().min(NAMED)].join(", "))
        );
    }
    if !warnings.is_empty() {
        text.push('\n');
    }
    for warning in warnings {
        let _ = writeln!(text, "warning: {}", one_line(&warning));
    }
    text
}

/// The Services that are not served and named. A cluster may have thousands.
const NAMED: usize = 5;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::config::settings::ListenerConfig;
    use crate::contract::endpoint::Conditions;
    use crate::contract::name::PodRef;
    use crate::contract::policy::PortRef;
    use crate::discovery::object::{ServiceObject, ServicePortObject};
    use crate::routing::world::merged::{Fate, MergedEndpoint, MergedPort, MergedService};

    fn config() -> Config {
        let mut config = Config::new(Discovery::Files {
            path: "manifests".into(),
        });
        config.workers = std::num::NonZeroUsize::MIN;
        config
    }

    fn listener(name: &str, address: &str, service: &str, port: PortRef) -> ListenerConfig {
        ListenerConfig {
            name: name.into(),
            address: address.parse().unwrap(),
            service: ObjectName::new("web", service),
            port,
            protocol: None,
            proxy_protocol: false,
            allow_connect: false,
            sni: Vec::new(),
            source_ranges: Vec::new(),
            scope: None,
            health_check: false,
            routes: None,
            tls: None,
        }
    }

    fn service(name: &str, claimed: bool, ports: Vec<MergedPort>) -> MergedService {
        let object = ServiceObject {
            name: ObjectName::new("web", name),
            uid: None,
            claimed,
            external_name: false,
            headless: false,
            ports: ports.iter().map(|port| port.port.clone()).collect(),
            ipv6_first: false,
            annotations: BTreeMap::new(),
            unserved: Vec::new(),
            addresses: Vec::new(),
            source_ranges: Vec::new(),
            traffic: Default::default(),
        };
        MergedService {
            object,
            authorities: None,
            ports,
            warnings: Vec::new(),
        }
    }

    fn port(node_port: Option<u16>, endpoints: &[(&str, bool, bool, bool)]) -> MergedPort {
        let endpoint =
            |(address, ready, serving, terminating): &(&str, bool, bool, bool)| MergedEndpoint {
                address: address.parse().unwrap(),
                pod: Some(Arc::new(PodRef {
                    name: "nginx-1".into(),
                    uid: String::new(),
                })),
                template_hash: None,
                conditions: Conditions {
                    ready: *ready,
                    serving: *serving,
                    terminating: *terminating,
                },
                hints: Default::default(),
                fate: Fate::NoPod,
                local: false,
            };
        MergedPort {
            ambiguous: false,
            port: ServicePortObject {
                name: Some("http".into()),
                port: 80,
                node_port,
                target_port: None,
                app_protocol: Some("http".into()),
                transport: Transport::Tcp,
            },
            endpoints: endpoints.iter().map(endpoint).collect(),
        }
    }

    fn described(config: &Config, services: Vec<MergedService>) -> String {
        let services = services
            .into_iter()
            .map(|service| (service.object.name.clone(), service))
            .collect();
        describe(
            config,
            &services,
            &Routes::default(),
            &BTreeSet::new(),
            &|_, _| BTreeSet::new(),
            "manifests  manifests\n".into(),
            Vec::new(),
        )
    }

    #[test]
    fn listeners_and_endpoints_are_shown_as_tables() {
        let mut config = config();
        config.listeners = vec![listener(
            "web",
            "127.0.0.1:8080",
            "nginx",
            PortRef::Name("http".into()),
        )];
        config.node_port_addresses = vec!["0.0.0.0".parse().unwrap()];
        let endpoints = [
            ("127.0.0.1:8081", true, true, false),
            ("127.0.0.2:8081", false, true, true),
            ("127.0.0.3:8081", false, false, false),
        ];
        let services = vec![
            service("nginx", true, vec![port(Some(31180), &endpoints)]),
            service("other", false, vec![port(None, &[])]),
        ];
        insta::assert_snapshot!(described(&config, services), @r"
        manifests  manifests
        admin      http://127.0.0.1:9901
        workers    1

        LISTENER    ADDRESS         SERVICE    PORT       PROTOCOL  ENDPOINTS
        web         127.0.0.1:8080  web/nginx  http (80)  http      1 of 3 ready
        (nodePort)  0.0.0.0:31180   web/nginx  http (80)  http      1 of 3 ready

        SERVICE    PORT       PROTOCOL  ENDPOINT        POD      STATE
        web/nginx  http (80)  http      127.0.0.1:8081  nginx-1  ready
        web/nginx  http (80)  http      127.0.0.2:8081  nginx-1  terminating, serving
        web/nginx  http (80)  http      127.0.0.3:8081  nginx-1  not ready

        not served, neither claimed nor named by a listener or a route: web/other
        ");
    }

    #[test]
    fn a_service_of_another_name_or_namespace_is_shown() {
        let mut config = config();
        config.listeners = vec![
            listener("a", "127.0.0.1:1", "shpo-1", PortRef::Number(80)),
            listener("b", "127.0.0.1:2", "cart", PortRef::Number(80)),
        ];
        let mut cart = service("cart", false, Vec::new());
        cart.object.name.namespace = "default".into();
        let shops = (1..8).map(|n| service(&format!("shop-{n}"), false, Vec::new()));
        let text = described(&config, shops.chain([cart]).collect());
        for expected in [
            "web/shpo-1, did you mean web/shop-1?\n",
            "web/cart, the one of this name is in namespace default; correct the listener",
            "a route: default/cart, web/shop-1, web/shop-2, web/shop-3, web/shop-4 and 3 more\n",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn what_may_not_be_meant_is_a_warning() {
        let mut config = config();
        config.listeners = vec![
            listener("gone", "127.0.0.1:8080", "no-such", PortRef::Number(80)),
            listener(
                "port",
                "127.0.0.1:8081",
                "nginx",
                PortRef::Name("metrics".into()),
            ),
            listener("taken", "127.0.0.1:31180", "nginx", PortRef::Number(80)),
            listener("admin", "127.0.0.1:9901", "nginx", PortRef::Number(80)),
        ];
        let mut nginx = service("nginx", true, vec![port(Some(31180), &[])]);
        nginx.object.unserved = vec!["spec.ports[1].protocol: SCTP".into()];
        nginx.object.annotations =
            BTreeMap::from([("ebbtide.dev/hold-timeout".into(), "soon".into())]);
        nginx.warnings = vec!["slice a: FQDN addresses are refused".into()];
        let unlistened = service(
            "unlistened",
            true,
            vec![port(None, &[("127.0.0.1:1", true, true, false)])],
        );
        let mut elsewhere = service("elsewhere", true, Vec::new());
        elsewhere.object.external_name = true;
        config.node_port_addresses = vec!["127.0.0.1".parse().unwrap()];
        let mut headless = service("headless", true, Vec::new());
        headless.object.headless = true;
        headless.object.traffic.external_local = true;
        let text = described(&config, vec![nginx, unlistened, elsewhere, headless]);
        let warnings: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("warning: "))
            .collect();
        insta::assert_snapshot!(warnings.join("\n"), @r#"
        warning: listener gone: no manifest has the Service web/no-such
        warning: listener port: web/nginx has no TCP port metrics, it has http (80)
        warning: listener admin of web/nginx: 127.0.0.1:9901 is taken by the admin pages, so this listener would not be bound
        warning: listener (nodePort) of web/nginx: 127.0.0.1:31180 is taken by listener taken, so this listener would not be bound
        warning: web/elsewhere: type ExternalName is refused, it has no endpoints
        warning: web/headless: claimed, but headless (clusterIP: None): its clients connect to its pods themselves, past Ebbtide; remove the label, and claim a second Service with the same selector and a cluster IP, or add a listener
        warning: web/headless: a traffic policy is Local, and the environment variable NODE_NAME does not name this node; until it does, endpoints of all nodes are used
        warning: web/nginx: spec.ports[1].protocol: SCTP is not served, and the claim keeps kube-proxy from serving it; if it is in use, claim a second Service with the same selector instead
        warning: web/nginx: slice a: FQDN addresses are refused
        warning: web/nginx: ebbtide.dev/hold-timeout: "soon" is not a duration, expected one from 0s to 10m such as 250ms, 10s or 5m
        warning: web/nginx: port http (80) has no ready endpoint
        warning: web/unlistened: claimed, but no listener serves it; add a listener, or make it type NodePort
        "#);
    }
}
