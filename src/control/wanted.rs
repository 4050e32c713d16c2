//! Which listeners are wanted: a pure function of the configuration and the claimed Services'
//! nodePorts.
//!
//! The control loop asks for one Service at a time, and `ebbtide check` prints all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::config::settings::{Config, ListenerConfig};
use crate::contract::name::PortKey;
use crate::contract::policy::{PortRef, Protocol, Transport};
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

/// The listeners that are wanted: the configured ones in their order, then the nodePorts by name.
/// `node_ports` are the claimed Services' ports with their nodePort. `has_ipv6`: this machine can
/// bind `::`.
pub fn wanted(
    config: &Config,
    node_ports: impl IntoIterator<Item = (PortKey, u16)>,
    has_ipv6: bool,
) -> Vec<WantedListener> {
    let mut derived = derived(config, node_ports, has_ipv6);
    derived.sort_by(|a, b| a.name.cmp(&b.name));
    let configured = config.listeners.iter().cloned();
    let all = configured.map(|config| (Origin::Configured, config));
    let all = all.chain(derived.into_iter().map(|config| (Origin::NodePort, config)));
    let mut owners: HashMap<(Transport, SocketAddr), String> = HashMap::new();
    all.map(|(origin, config)| {
        // Port 0 asks for any free port, so several listeners may name it.
        let is_fixed = config.address.port() != 0;
        let place = (config.transport(), config.address);
        let taken_by = owners.get(&place).filter(|_| is_fixed).cloned();
        owners.entry(place).or_insert_with(|| config.name.clone());
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
    let node_ports = claimed.filter_map(|port| Some((port.key.clone(), port.node_port?)));
    let derived = derived(config, node_ports, has_ipv6).into_iter();
    let configured = configured.cloned();
    configured
        .map(|it| (Origin::Configured, it))
        .chain(derived.map(|it| (Origin::NodePort, it)))
}

fn derived(
    config: &Config,
    node_ports: impl IntoIterator<Item = (PortKey, u16)>,
    has_ipv6: bool,
) -> Vec<ListenerConfig> {
    let mut derived = Vec::new();
    for (port, node_port) in node_ports {
        for address in &config.node_port_addresses {
            // `::` is a default. Nothing is wrong on a machine without IPv6.
            if *address != IpAddr::V6(Ipv6Addr::UNSPECIFIED) || has_ipv6 {
                derived.push(of_node_port(&port, node_port, *address));
            }
        }
    }
    derived
}

fn of_node_port(port: &PortKey, node_port: u16, address: IpAddr) -> ListenerConfig {
    ListenerConfig {
        name: format!("{port}@{address}"),
        address: SocketAddr::new(address, node_port),
        service: port.service.clone(),
        port: PortRef::Number(port.port),
        protocol: match port.transport {
            Transport::Tcp => None,
            Transport::Udp => Some(Protocol::Udp),
        },
        proxy_protocol: false,
        allow_connect: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Discovery;
    use crate::contract::name::ObjectName;

    fn key(name: &str) -> PortKey {
        ObjectName::new("web", name).port(80)
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
            ..of_node_port(&key("configured"), 1, IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        }
    }

    #[test]
    fn a_node_port_is_wanted_on_each_address() {
        let all = wanted(&config(&["0.0.0.0", "::"]), [(key("shop"), 30_080)], true);
        let addresses: Vec<String> = all.iter().map(|it| it.config.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0:30080", "[::]:30080"]);
        assert!(all.iter().all(|it| it.taken_by.is_none()));
    }

    #[test]
    fn a_number_of_tcp_and_udp_is_wanted_twice_and_neither_takes_it_from_the_other() {
        let udp = ObjectName::new("web", "shop").port_over(Transport::Udp, 80);
        let ports = [(key("shop"), 30_080), (udp, 30_080)];
        let all = wanted(&config(&["0.0.0.0"]), ports, true);
        let shown: Vec<_> = all
            .iter()
            .map(|it| {
                (
                    it.config.name.as_str(),
                    it.config.transport(),
                    it.taken_by.as_ref(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("web/shop:80/udp@0.0.0.0", Transport::Udp, None),
                ("web/shop:80@0.0.0.0", Transport::Tcp, None),
            ]
        );
    }

    #[test]
    fn without_ipv6_the_unspecified_address_is_left_out() {
        let config = config(&["0.0.0.0", "::", "::1"]);
        let all = wanted(&config, [(key("shop"), 30_080)], false);
        let addresses: Vec<String> = all.iter().map(|it| it.config.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0:30080", "[::1]:30080"]);
    }

    #[test]
    fn a_configured_listener_keeps_its_address_whatever_its_name_holds() {
        let mut config = config(&["0.0.0.0"]);
        // Named as the derived listener of web/shop:80 is.
        config.listeners = vec![configured("web/shop:80@0.0.0.0", "0.0.0.0:30080")];
        let all = wanted(&config, [(key("shop"), 30_080)], true);
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
        let all = wanted(&config, [(key("y"), 30_080), (key("x"), 30_080)], true);
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
