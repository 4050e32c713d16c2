//! What would be served: the listeners as they would be bound, the endpoints behind them, and both
//! as rows of tables. Nothing here judges; that is done in `warnings`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::config::settings::Config;
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol, Transport};
use crate::control::wanted::{Claimed, Origin, WantedListener, wanted};
use crate::net::socket;
use crate::routing::routes::Routes;
use crate::routing::world::merged::{MergedEndpoint, MergedPort, MergedService};

/// All Services of a source, by name.
pub(super) type Services = BTreeMap<ObjectName, MergedService>;

/// A listener as it would be bound: a configured one, or a nodePort on one address.
pub(super) struct Bound<'a> {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) service: ObjectName,
    /// The name of the listener that has this address already: this one would not be bound.
    pub(super) taken_by: Option<String>,
    pub(super) transport: Transport,
    /// Each request finds its Service by the rules.
    routes: bool,
    /// The port in words, if the Service does not have it.
    wanted: String,
    port: Option<&'a MergedPort>,
    protocol: String,
}

/// All listeners: the configured ones in their order, then those of claimed Services.
pub(super) fn listeners<'a>(config: &Config, services: &'a Services) -> Vec<Bound<'a>> {
    let claimed = services.values().filter(|service| service.object.claimed);
    let claimed = claimed.flat_map(|MergedService { object, ports, .. }| {
        ports.iter().map(|port| Claimed {
            key: object.name.port_over(port.port.transport, port.port.port),
            node_port: port.port.node_port,
            addresses: &object.addresses,
            source_ranges: &object.source_ranges,
            health_check: object.traffic.health_check,
        })
    });
    let wanted = wanted(config, claimed, socket::has_ipv6());
    wanted
        .into_iter()
        .map(|it| Bound::new(it, services))
        .collect()
}

/// The Services that would be served: those that are claimed, or have a listener or a route. `led`: those
/// to which the routes of Gateways lead.
pub(super) fn served<'a>(
    config: &Config,
    services: &'a Services,
    bound: &[Bound],
    routes: &Routes<'_>,
    led: &BTreeSet<ObjectName>,
) -> Vec<&'a MergedService> {
    let routed = routes.backends().into_iter().map(|(it, _)| &it.service);
    let listened = bound.iter().map(|listener| &listener.service);
    let by_name = config.listeners.iter().flat_map(|it| &it.sni);
    let by_name = by_name.map(|it| &it.service);
    let listened: BTreeSet<&ObjectName> =
        listened.chain(routed).chain(by_name).chain(led).collect();
    services
        .values()
        .filter(|s| s.object.claimed || listened.contains(&s.object.name))
        .collect()
}

/// The table of listeners, its heading first.
pub(super) fn listener_rows(bound: &[Bound]) -> Vec<Vec<String>> {
    let heading = [
        "LISTENER",
        "ADDRESS",
        "SERVICE",
        "PORT",
        "PROTOCOL",
        "ENDPOINTS",
    ];
    let heading = heading.map(str::to_owned).to_vec();
    std::iter::once(heading)
        .chain(bound.iter().map(Bound::row))
        .collect()
}

/// The table of endpoints, its heading first.
pub(super) fn endpoint_rows(served: &[&MergedService]) -> Vec<Vec<String>> {
    let heading = ["SERVICE", "PORT", "PROTOCOL", "ENDPOINT", "POD", "STATE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for service in served {
        for port in &service.ports {
            rows.extend(rows_of_port(service, port));
        }
    }
    rows
}

impl<'a> Bound<'a> {
    fn new(listener: WantedListener, services: &'a Services) -> Self {
        let WantedListener {
            origin,
            config,
            taken_by,
        } = listener;
        let service = services.get(&config.service);
        let port = service.and_then(|service| port_of(service, &config.port, config.transport()));
        let own = service
            .zip(port)
            .map(|(service, port)| protocol(service, port));
        let target = port.and_then(|port| port.port.target_port);
        let chosen = config.protocol.map(|protocol| protocol.at_target(target));
        Self {
            transport: config.transport(),
            name: match origin {
                Origin::Configured => config.name,
                Origin::NodePort if config.health_check => "(health check)".to_owned(),
                Origin::NodePort => "(nodePort)".to_owned(),
                Origin::Address(_) => "(address)".to_owned(),
            },
            address: config.address,
            taken_by,
            routes: config.routes.is_some(),
            service: config.service,
            wanted: config.port.to_string(),
            port,
            protocol: chosen.or(own).map_or("-", Protocol::as_str).to_owned(),
        }
    }

    fn row(&self) -> Vec<String> {
        if self.routes {
            let cells = [&self.name, &self.address.to_string()];
            let cells = cells.map(String::to_owned).into_iter();
            let rest = ["(by rule)", "-", &self.protocol, "-"].map(str::to_owned);
            return cells.chain(rest).collect();
        }
        let endpoints = match self.port {
            None => "none".to_owned(),
            Some(port) => {
                let ready = port.endpoints.iter().filter(|e| is_ready(e)).count();
                format!("{ready} of {} ready", port.endpoints.len())
            }
        };
        vec![
            self.name.clone(),
            self.address.to_string(),
            self.service.to_string(),
            self.port.map_or_else(|| self.wanted.clone(), port_name),
            self.protocol.clone(),
            endpoints,
        ]
    }
}

fn rows_of_port(service: &MergedService, port: &MergedPort) -> Vec<Vec<String>> {
    let row = |endpoint: String, pod: String, state: &str| {
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
        return vec![row("none".to_owned(), "-".to_owned(), "-")];
    }
    let rows = port.endpoints.iter().map(|endpoint| {
        let pod = endpoint
            .pod
            .as_ref()
            .map_or_else(|| "-".to_owned(), |pod| pod.name.clone());
        row(endpoint.address.to_string(), pod, state(endpoint))
    });
    rows.collect()
}

/// Whether new requests may go to this endpoint.
pub(super) fn is_ready(endpoint: &MergedEndpoint) -> bool {
    state(endpoint) == READY
}

fn state(endpoint: &MergedEndpoint) -> &'static str {
    let conditions = endpoint.conditions;
    match (conditions.terminating, conditions.serving, conditions.ready) {
        (true, true, _) => "terminating, serving",
        (true, false, _) => "terminating",
        (false, _, true) => READY,
        (false, _, false) => "not ready",
    }
}

const READY: &str = "ready";

fn protocol(service: &MergedService, port: &MergedPort) -> Protocol {
    let MergedPort { port, .. } = port;
    Protocol::of_service(
        &service.object.annotations,
        port.app_protocol.as_deref(),
        port.target_port,
        port.transport,
    )
    .0
}

/// The port of a Service that a listener names by number or name.
pub(super) fn port_of<'a>(
    service: &'a MergedService,
    wanted: &PortRef,
    transport: Transport,
) -> Option<&'a MergedPort> {
    let mut ports = service.ports.iter();
    ports.find(|port| match wanted {
        _ if port.port.transport != transport => false,
        PortRef::Number(number) => port.port.port == *number,
        PortRef::Name(name) => port.port.name.as_ref() == Some(name),
    })
}

/// A port for people: `http (80)`, or the number of a port without a name; `dns (53/udp)` over UDP.
pub(super) fn port_name(port: &MergedPort) -> String {
    let number = match port.port.transport {
        Transport::Tcp => port.port.port.to_string(),
        Transport::Udp => format!("{}/udp", port.port.port),
    };
    match &port.port.name {
        Some(name) => format!("{name} ({number})"),
        None => number,
    }
}
