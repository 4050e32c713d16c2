//! Which listeners are wanted: a pure function of the configuration and the claimed Services'
//! nodePorts.
//!
//! The control loop asks for one Service at a time, and `ebbtide check` prints all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::config::settings::{Config, ListenerConfig};
use crate::contract::name::PortKey;
use crate::contract::policy::{PortRef, Protocol, Scope, Traffic};
use crate::contract::snapshot::Port;

/// Where a listener comes from. A configured listener comes first where two want one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The configuration names it.
    Configured,
    /// It is the nodePort of a claimed Service.
    NodePort,
}

/// A listener that is wanted. The two origins share no names: a configured listener may be named
/// like a derived one.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedListener {
    /// Where it comes from.
    pub origin: Origin,
    /// What to bind, and what it serves.
    pub config: ListenerConfig,
    /// The name of the listener that has this address already: this one is not bound.
    /// `SO_REUSEPORT` would let both bind, and would split the clients between two Services.
    pub taken_by: Option<String>,
}

/// A port on each node that a claimed Service asks for.
#[derive(Debug, Clone)]
pub struct NodePort {
    /// The Service port that it leads to.
    pub port: PortKey,
    /// Its number.
    pub number: u16,
    /// Whether it is the Service's `healthCheckNodePort`, which leads to no endpoint.
    pub health_check: bool,
}

/// The listeners that are wanted: the configured ones in their order, then the nodePorts by name.
/// `node_ports` are those of the claimed Services. `has_ipv6`: this machine can
/// bind `::`.
pub fn wanted(
    config: &Config,
    node_ports: impl IntoIterator<Item = NodePort>,
    has_ipv6: bool,
) -> Vec<WantedListener> {
    let mut derived = derived(config, node_ports, has_ipv6);
    derived.sort_by(|a, b| a.name.cmp(&b.name));
    let configured = config.listeners.iter().cloned();
    let all = configured.map(|config| (Origin::Configured, config));
    let all = all.chain(derived.into_iter().map(|config| (Origin::NodePort, config)));
    let mut owners: HashMap<SocketAddr, String> = HashMap::new();
    all.map(|(origin, config)| {
        // Port 0 asks for any free port, so several listeners may name it.
        let is_fixed = config.address.port() != 0;
        let taken_by = owners.get(&config.address).filter(|_| is_fixed).cloned();
        owners
            .entry(config.address)
            .or_insert_with(|| config.name.clone());
        WantedListener {
            origin,
            config,
            taken_by,
        }
    })
    .collect()
}

/// The listeners of one Service: those in `configured`, which name it, and its nodePorts if it is
/// claimed.
pub(super) fn of_service<'a>(
    config: &Config,
    configured: impl Iterator<Item = &'a ListenerConfig>,
    ports: &[Arc<Port>],
    has_ipv6: bool,
) -> impl Iterator<Item = (Origin, ListenerConfig)> {
    let claimed = ports.iter().filter(|port| port.claimed);
    let asks = claimed.flat_map(|port| node_ports(&port.key, port.node_port, &port.traffic));
    // Each port of a Service knows the Service's port for health checks.
    let mut checked = false;
    let node_ports = asks.filter(|ask| !ask.health_check || !std::mem::replace(&mut checked, true));
    let derived = derived(config, node_ports, has_ipv6).into_iter();
    let configured = configured.cloned();
    configured
        .map(|it| (Origin::Configured, it))
        .chain(derived.map(|it| (Origin::NodePort, it)))
}

/// The ports on each node that a Service port asks for.
pub fn node_ports(
    port: &PortKey,
    node_port: Option<u16>,
    traffic: &Traffic,
) -> impl Iterator<Item = NodePort> + use<> {
    let ask = |number, health_check| NodePort {
        port: port.clone(),
        number,
        health_check,
    };
    let served = node_port.map(|number| ask(number, false));
    let check = traffic.health_check.map(|number| ask(number, true));
    served.into_iter().chain(check)
}

fn derived(
    config: &Config,
    node_ports: impl IntoIterator<Item = NodePort>,
    has_ipv6: bool,
) -> Vec<ListenerConfig> {
    let mut derived = Vec::new();
    for node_port in node_ports {
        for address in &config.node_port_addresses {
            // `::` is a default. Nothing is wrong on a machine without IPv6.
            if *address != IpAddr::V6(Ipv6Addr::UNSPECIFIED) || has_ipv6 {
                derived.push(of_node_port(&node_port, *address));
            }
        }
    }
    derived
}

fn of_node_port(wanted: &NodePort, address: IpAddr) -> ListenerConfig {
    let NodePort {
        port,
        number,
        health_check,
    } = wanted;
    ListenerConfig {
        name: match health_check {
            true => format!("{}/healthz@{address}", port.service),
            false => format!("{port}@{address}"),
        },
        address: SocketAddr::new(address, *number),
        service: port.service.clone(),
        port: PortRef::Number(port.port),
        protocol: health_check.then_some(Protocol::Http),
        proxy_protocol: false,
        allow_connect: false,
        scope: Some(Scope::External),
        health_check: *health_check,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Discovery;
    use crate::contract::name::ObjectName;

    fn key(name: &str) -> PortKey {
        PortKey {
            service: ObjectName::new("web", name),
            port: 80,
        }
    }

    fn at(name: &str, number: u16) -> NodePort {
        NodePort {
            port: key(name),
            number,
            health_check: false,
        }
    }

    fn config(addresses: &[&str]) -> Config {
        let mut config = Config::new(Discovery::Static { to: Vec::new() });
        config.node_port_addresses = addresses.iter().map(|it| it.parse().unwrap()).collect();
        config
    }

    fn configured(name: &str, address: &str) -> ListenerConfig {
        ListenerConfig {
            address: address.parse().unwrap(),
            name: name.to_owned(),
            ..of_node_port(&at("configured", 1), IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        }
    }

    #[test]
    fn a_node_port_is_wanted_on_each_address() {
        let all = wanted(&config(&["0.0.0.0", "::"]), [at("shop", 30_080)], true);
        let addresses: Vec<String> = all.iter().map(|it| it.config.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0:30080", "[::]:30080"]);
        assert!(all.iter().all(|it| it.taken_by.is_none()));
    }

    #[test]
    fn a_health_check_is_wanted_once_for_each_service_and_leads_to_no_port() {
        let traffic = Traffic {
            health_check: Some(32_000),
            ..Traffic::default()
        };
        let asks: Vec<_> = node_ports(&key("shop"), Some(30_080), &traffic).collect();
        let all = wanted(&config(&["127.0.0.1"]), asks, true);
        let all = all
            .into_iter()
            .map(|it| (it.config.address.port(), it.config.health_check));
        assert_eq!(all.collect::<Vec<_>>(), [(32_000, true), (30_080, false)]);
        assert_eq!(
            node_ports(&key("shop"), None, &Traffic::default()).count(),
            0
        );
    }

    #[test]
    fn without_ipv6_the_unspecified_address_is_left_out() {
        let config = config(&["0.0.0.0", "::", "::1"]);
        let all = wanted(&config, [at("shop", 30_080)], false);
        let addresses: Vec<String> = all.iter().map(|it| it.config.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0:30080", "[::1]:30080"]);
    }

    #[test]
    fn a_configured_listener_keeps_its_address_whatever_its_name_holds() {
        let mut config = config(&["0.0.0.0"]);
        // Named as the derived listener of web/shop:80 is.
        config.listeners = vec![configured("web/shop:80@0.0.0.0", "0.0.0.0:30080")];
        let all = wanted(&config, [at("shop", 30_080)], true);
        assert_eq!(all.len(), 2, "neither replaces the other");
        let taken: Vec<_> = all.into_iter().map(|it| (it.origin, it.taken_by)).collect();
        assert_eq!(
            taken,
            [
                (Origin::Configured, None),
                (Origin::NodePort, Some("web/shop:80@0.0.0.0".to_owned()))
            ]
        );
    }

    #[test]
    fn the_first_by_name_has_a_node_port_that_two_services_claim_and_port_0_is_never_taken() {
        let mut config = config(&["0.0.0.0"]);
        let any = "127.0.0.1:0";
        config.listeners = vec![configured("a", any), configured("b", any)];
        let all = wanted(&config, [at("y", 30_080), at("x", 30_080)], true);
        let taken: Vec<_> = all
            .iter()
            .filter_map(|it| Some((&it.config.name, it.taken_by.as_ref()?)))
            .collect();
        assert_eq!(
            taken,
            [(
                &"web/y:80@0.0.0.0".to_owned(),
                &"web/x:80@0.0.0.0".to_owned()
            )]
        );
    }
}
