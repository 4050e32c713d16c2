//! `ebbtide check`: what a configuration and its manifests, or its cluster, would serve, as tables, and what is doubtful
//! about it.
//!
//! A broken configuration or manifest, or a cluster that cannot be used, is an error; anything that would run, but perhaps
//! not as meant, is a warning. What only a running proxy knows (a port that cannot be bound, an endpoint that does not
//! answer) is not looked at.

mod cluster;
mod seen;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use crate::command::check::seen::Seen;
use crate::config::settings::{Config, Discovery};
use crate::contract::name::ObjectName;
use crate::contract::policy::{Policy, PortRef, Protocol};
use crate::discovery::files;
use crate::discovery::object::Change;
use crate::discovery::source::Problem;
use crate::routing::world::merged::{MergedPort, MergedService};
use crate::routing::world::objects::{Touched, World};
use crate::text::one_line;

/// What `check` has to say of a configuration that is in order.
#[derive(Debug)]
pub struct Report {
    /// Tables and warnings, for people.
    pub text: String,
    /// What is broken; none: exit 0.
    pub problems: Vec<Problem>,
}

/// Reads a configuration, and the manifests or the API server that it names.
///
/// # Errors
/// [`crate::config::fault::Error`] and [`crate::config::fault::Refused`].
pub fn check(file: &Path) -> anyhow::Result<Report> {
    let config = Config::load(file)?;
    let (seen, mut world) = match &config.discovery {
        Discovery::Files { path } => {
            let (objects, problems) = files::read_folder(path);
            let heading = format!("manifests  {}\n", path.display());
            (
                Seen {
                    heading,
                    objects,
                    problems,
                    warnings: Vec::new(),
                },
                World::default(),
            )
        }
        Discovery::Kubernetes(wanted) => (cluster::look(&config, wanted)?, World::for_api_server()),
        Discovery::Static { .. } => (Seen::default(), World::default()),
    };
    let Seen {
        heading,
        objects,
        warnings,
        problems,
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
    let services = world
        .service_names()
        .filter_map(|name| world.merge(name))
        .map(|s| (s.object.name.clone(), s))
        .collect();
    Ok(Report {
        text: describe(&config, &services, heading, warnings),
        problems,
    })
}

/// A listener as it would be bound: an explicit one, or a nodePort on one address.
struct Bound<'a> {
    name: String,
    address: SocketAddr,
    service: &'a ObjectName,
    wanted: &'a PortRef,
    port: Option<&'a MergedPort>,
    protocol: String,
}

fn describe(
    config: &Config,
    services: &BTreeMap<ObjectName, MergedService>,
    heading: String,
    mut warnings: Vec<String>,
) -> String {
    let node_ports: Vec<(&MergedService, &MergedPort, PortRef)> = services
        .values()
        .filter(|service| service.object.claimed)
        .flat_map(|service| {
            service
                .ports
                .iter()
                .map(move |port| (service, port, PortRef::Number(port.port.port)))
        })
        .collect();
    let mut bound = explicit(config, services, &mut warnings);
    bound.extend(derived(config, &node_ports));
    warn_of_addresses(config, &bound, &mut warnings);

    let listened: BTreeSet<&ObjectName> = bound.iter().map(|listener| listener.service).collect();
    let served: Vec<&MergedService> = services
        .values()
        .filter(|s| s.object.claimed || listened.contains(&s.object.name))
        .collect();
    for service in &served {
        warn_of_service(
            config,
            service,
            listened.contains(&service.object.name),
            &mut warnings,
        );
    }

    let mut text = heading;
    let _ = writeln!(text, "admin      http://{}", config.admin);
    let _ = writeln!(text, "workers    {}\n", config.workers);
    text += &table(
        &[
            "LISTENER",
            "ADDRESS",
            "SERVICE",
            "PORT",
            "PROTOCOL",
            "ENDPOINTS",
        ],
        bound.iter().map(Bound::row),
    );
    text.push('\n');
    let endpoints = served.iter().flat_map(|service| {
        service
            .ports
            .iter()
            .flat_map(|port| endpoint_rows(service, port))
    });
    text += &table(
        &["SERVICE", "PORT", "PROTOCOL", "ENDPOINT", "POD", "STATE"],
        endpoints,
    );
    let rest = services.len() - served.len();
    if rest > 0 {
        let _ = writeln!(
            text,
            "\nnot served, having no claim and no listener: {rest} more"
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

fn explicit<'a>(
    config: &'a Config,
    services: &'a BTreeMap<ObjectName, MergedService>,
    warnings: &mut Vec<String>,
) -> Vec<Bound<'a>> {
    let mut bound = Vec::new();
    for listener in &config.listeners {
        let service = services.get(&listener.service);
        let port = service.and_then(|service| {
            service
                .ports
                .iter()
                .find(|port| is_wanted(port, &listener.port))
        });
        let (name, wanted) = (&listener.name, &listener.port);
        match service {
            None => {
                let in_cluster = matches!(config.discovery, Discovery::Kubernetes(_));
                let nobody = if in_cluster {
                    "the cluster has no"
                } else {
                    "no manifest has the"
                };
                warnings.push(format!(
                    "listener {name}: {nobody} Service {}",
                    listener.service
                ));
            }
            Some(service) if port.is_none() => {
                let ports: Vec<String> = service.ports.iter().map(port_name).collect();
                let ports = if ports.is_empty() {
                    "none".to_owned()
                } else {
                    ports.join(", ")
                };
                let service = &listener.service;
                warnings.push(format!(
                    "listener {name}: {service} has no TCP port {wanted}, it has {ports}"
                ));
            }
            Some(_) => {}
        }
        let own = service
            .zip(port)
            .map(|(service, port)| protocol(service, port));
        let chosen = listener
            .protocol
            .map(|protocol| protocol.at_target(port.and_then(|p| p.port.target_port)));
        bound.push(Bound {
            name: name.clone(),
            address: listener.address,
            service: &listener.service,
            wanted,
            port,
            protocol: chosen.or(own).map_or("-", Protocol::as_str).to_owned(),
        });
    }
    bound
}

fn derived<'a>(
    config: &Config,
    claimed: &'a [(&'a MergedService, &'a MergedPort, PortRef)],
) -> Vec<Bound<'a>> {
    let mut bound = Vec::new();
    for (service, port, wanted) in claimed {
        let Some(node_port) = port.port.node_port else {
            continue;
        };
        for address in &config.node_port_addresses {
            bound.push(Bound {
                name: "(nodePort)".to_owned(),
                address: SocketAddr::new(*address, node_port),
                service: &service.object.name,
                wanted,
                port: Some(port),
                protocol: protocol(service, port).as_str().to_owned(),
            });
        }
    }
    bound
}

impl Bound<'_> {
    fn row(&self) -> Vec<String> {
        let endpoints = match self.port {
            None => "none".to_owned(),
            Some(port) => {
                let ready = port.endpoints.iter().filter(|e| state(e) == READY).count();
                format!("{ready} of {} ready", port.endpoints.len())
            }
        };
        vec![
            self.name.clone(),
            self.address.to_string(),
            self.service.to_string(),
            self.port.map_or_else(|| self.wanted.to_string(), port_name),
            self.protocol.clone(),
            endpoints,
        ]
    }
}

fn endpoint_rows(service: &MergedService, port: &MergedPort) -> Vec<Vec<String>> {
    let own = |endpoint: String, pod: String, state: &str| {
        let protocol = protocol(service, port).as_str().to_owned();
        vec![
            service.object.name.to_string(),
            port_name(port),
            protocol,
            endpoint,
            pod,
            state.to_owned(),
        ]
    };
    if port.endpoints.is_empty() {
        return vec![own("none".to_owned(), "-".to_owned(), "-")];
    }
    let rows = port.endpoints.iter().map(|endpoint| {
        let pod = endpoint
            .pod
            .as_ref()
            .map_or_else(|| "-".to_owned(), |pod| pod.name.clone());
        own(endpoint.address.to_string(), pod, state(endpoint))
    });
    rows.collect()
}

const READY: &str = "ready";

fn state(endpoint: &crate::routing::world::merged::MergedEndpoint) -> &'static str {
    let conditions = endpoint.conditions;
    match (conditions.terminating, conditions.serving, conditions.ready) {
        (true, true, _) => "terminating, serving",
        (true, false, _) => "terminating",
        (false, _, true) => READY,
        (false, _, false) => "not ready",
    }
}

fn warn_of_addresses(config: &Config, bound: &[Bound], warnings: &mut Vec<String>) {
    if bound.is_empty() {
        warnings
            .push("no listener: nothing would be served; add listeners, or nodePorts and a claimed Service".to_owned());
    }
    let mut seen = BTreeMap::from([(config.admin, "the admin pages".to_owned())]);
    for listener in bound.iter().filter(|listener| listener.address.port() != 0) {
        let Bound {
            name,
            address,
            service,
            ..
        } = listener;
        let me = format!("listener {name} of {service}");
        if let Some(other) = seen.insert(*address, me.clone()) {
            warnings.push(format!(
                "{me}: {address} is taken by {other}; only one of the two would be bound"
            ));
        }
    }
}

fn warn_of_service(
    config: &Config,
    service: &MergedService,
    listened: bool,
    warnings: &mut Vec<String>,
) {
    let MergedService {
        object,
        ports,
        warnings: merging,
    } = service;
    let name = &object.name;
    if object.external_name {
        // The rest would only say the same again.
        warnings.push(format!(
            "{name}: type ExternalName is refused, it has no endpoints"
        ));
        return;
    }
    if object.claimed {
        warnings.extend(object.lost().map(|lost| format!("{name}: {lost}")));
        if !listened {
            let cure = if config.node_port_addresses.is_empty() {
                "nodePorts"
            } else {
                "make it type NodePort"
            };
            warnings.push(format!(
                "{name}: claimed, but nothing listens for it; add a listener, or {cure}"
            ));
        }
    }
    warnings.extend(merging.iter().map(|warning| format!("{name}: {warning}")));
    let annotations = &object.annotations;
    warnings.extend(
        Protocol::of_service(annotations, None, None)
            .1
            .map(|warning| format!("{name}: {warning}")),
    );
    warnings.extend(
        Policy::for_service(config, annotations)
            .1
            .iter()
            .map(|warning| format!("{name}: {warning}")),
    );
    for port in ports
        .iter()
        .filter(|port| !port.endpoints.iter().any(|e| state(e) == READY))
    {
        warnings.push(format!(
            "{name}: port {} has no ready endpoint",
            port_name(port)
        ));
    }
}

fn protocol(service: &MergedService, port: &MergedPort) -> Protocol {
    let MergedPort { port, .. } = port;
    Protocol::of_service(
        &service.object.annotations,
        port.app_protocol.as_deref(),
        port.target_port,
    )
    .0
}

fn is_wanted(port: &MergedPort, wanted: &PortRef) -> bool {
    match wanted {
        PortRef::Number(number) => port.port.port == *number,
        PortRef::Name(name) => port.port.name.as_ref() == Some(name),
    }
}

fn port_name(port: &MergedPort) -> String {
    match &port.port.name {
        Some(name) => format!("{name} ({})", port.port.port),
        None => port.port.port.to_string(),
    }
}

/// Columns as wide as their widest cell.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let header: Vec<String> = header.iter().map(|title| (*title).to_owned()).collect();
    let clean = |row: Vec<String>| row.iter().map(|cell| one_line(cell)).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows.map(clean)).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|c| c.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::settings::ListenerConfig;
    use crate::contract::endpoint::Conditions;
    use crate::contract::name::PodRef;
    use crate::discovery::object::{ServiceObject, ServicePortObject};
    use crate::routing::world::merged::{Fate, MergedEndpoint};

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
        }
    }

    fn service(name: &str, claimed: bool, ports: Vec<MergedPort>) -> MergedService {
        let object = ServiceObject {
            name: ObjectName::new("web", name),
            uid: None,
            claimed,
            external_name: false,
            ports: ports.iter().map(|port| port.port.clone()).collect(),
            ipv6_first: false,
            annotations: BTreeMap::new(),
            unserved: Vec::new(),
        };
        MergedService {
            object,
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
                fate: Fate::NoPod,
            };
        MergedPort {
            ambiguous: false,
            port: ServicePortObject {
                name: Some("http".into()),
                port: 80,
                node_port,
                target_port: None,
                app_protocol: Some("http".into()),
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
            "manifests  manifests\n".into(),
            Vec::new(),
        )
    }

    #[test]
    fn shows_what_would_serve() {
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

        not served, having no claim and no listener: 1 more
        ");
    }

    #[test]
    fn warns_of_what_may_not_be_meant() {
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
        ];
        let mut nginx = service("nginx", true, vec![port(Some(31180), &[])]);
        nginx.object.unserved = vec!["spec.sessionAffinity: ClientIP".into()];
        nginx.object.annotations =
            BTreeMap::from([("ebbtide.dev/hold-timeout".into(), "soon".into())]);
        nginx.warnings = vec!["slice a: FQDN addresses are refused".into()];
        let unheard = service(
            "unheard",
            true,
            vec![port(None, &[("127.0.0.1:1", true, true, false)])],
        );
        let mut elsewhere = service("elsewhere", true, Vec::new());
        elsewhere.object.external_name = true;
        config.node_port_addresses = vec!["127.0.0.1".parse().unwrap()];
        let text = described(&config, vec![nginx, unheard, elsewhere]);
        let warnings: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("warning: "))
            .collect();
        insta::assert_snapshot!(warnings.join("\n"), @r#"
        warning: listener gone: no manifest has the Service web/no-such
        warning: listener port: web/nginx has no TCP port metrics, it has http (80)
        warning: listener (nodePort) of web/nginx: 127.0.0.1:31180 is taken by listener taken of web/nginx; only one of the two would be bound
        warning: web/elsewhere: type ExternalName is refused, it has no endpoints
        warning: web/nginx: spec.sessionAffinity: ClientIP is not served, and its claim keeps kube-proxy from it too; where it is in use, claim a second Service with the same selector instead
        warning: web/nginx: slice a: FQDN addresses are refused
        warning: web/nginx: ebbtide.dev/hold-timeout: "soon" is no duration, expected one from 0s to 10m such as 250ms, 10s or 5m
        warning: web/nginx: port http (80) has no ready endpoint
        warning: web/unheard: claimed, but nothing listens for it; add a listener, or make it type NodePort
        "#);
    }
}
