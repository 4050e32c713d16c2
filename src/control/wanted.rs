//! Which listeners are wanted: a pure function of the configuration and the claimed Services'
//! nodePorts.
//!
//! The control loop asks for one Service at a time, and `ebbtide check` prints all.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::settings::{Config, ListenerConfig};
use crate::contract::address::{AddressKind, ServiceAddress};
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::{PortRef, Protocol, Scope, Transport};
use crate::contract::snapshot::Port;

/// Where a listener comes from. A configured listener comes first where two want one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The configuration names it.
    Configured,
    /// It is the nodePort of a claimed Service.
    NodePort,
    /// It is another address of a claimed Service, of this kind.
    Address(AddressKind),
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

/// Listeners of Gateways, by what they belong to.
pub type Doors = BTreeMap<ObjectName, Vec<(Origin, ListenerConfig)>>;

/// A port of a claimed Service, with all that makes listeners of it.
pub struct Claimed<'a> {
    /// The Service and the port's number.
    pub key: PortKey,
    /// See [`Port::node_port`].
    pub node_port: Option<u16>,
    /// See [`Port::addresses`].
    pub addresses: &'a [ServiceAddress],
    /// See [`Port::source_ranges`].
    pub source_ranges: &'a [IpNet],
    /// The Service's `healthCheckNodePort`. It leads to no endpoint, and there is one for all ports.
    pub health_check: Option<u16>,
}

/// The listeners that are wanted: the configured ones in their order, then the nodePorts and the other
/// addresses of claimed Services by name. `has_ipv6`: this machine can bind `::`.
pub fn wanted<'a>(
    config: &Config,
    claimed: impl Iterator<Item = Claimed<'a>>,
    has_ipv6: bool,
) -> Vec<WantedListener> {
    let mut derived: Vec<_> = derived(config, claimed, has_ipv6).collect();
    derived.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    let configured = config.listeners.iter().cloned();
    let all = configured.map(|config| (Origin::Configured, config));
    let mut owners: HashMap<(Transport, SocketAddr), String> = HashMap::new();
    all.chain(derived)
        .map(|(origin, config)| {
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

/// The listeners of one Service: its own, which the configuration or a Gateway names, and if it is claimed, its
/// nodePorts, and its addresses where they are served.
pub(super) fn of_service<'a>(
    config: &'a Config,
    own: impl Iterator<Item = (Origin, &'a ListenerConfig)>,
    ports: &'a [Arc<Port>],
    has_ipv6: bool,
) -> impl Iterator<Item = (Origin, ListenerConfig)> {
    let claimed = ports.iter().filter(|port| port.claimed);
    let claimed = claimed.map(|port| Claimed {
        key: port.key.clone(),
        node_port: port.node_port,
        addresses: &port.addresses,
        source_ranges: &port.source_ranges,
        health_check: port.traffic.health_check,
    });
    own.map(|(origin, it)| (origin, it.clone()))
        .chain(derived(config, claimed, has_ipv6))
}

fn derived<'a>(
    config: &Config,
    claimed: impl Iterator<Item = Claimed<'a>>,
    has_ipv6: bool,
) -> impl Iterator<Item = (Origin, ListenerConfig)> {
    claimed.flat_map(move |port| {
        let nodes = config.node_port_addresses.iter();
        // `::` is a default. Nothing is wrong on a machine without IPv6.
        let nodes = nodes.filter(|it| **it != IpAddr::V6(Ipv6Addr::UNSPECIFIED) || has_ipv6);
        let node_ports = port.node_port.into_iter().flat_map(|node_port| {
            let key = &port.key;
            let at = move |ip: &IpAddr| of_address(key, SocketAddr::new(*ip, node_port));
            nodes.clone().map(at).map(|it| (Origin::NodePort, it))
        });
        let checks = port.health_check.into_iter().flat_map(|number| {
            let key = &port.key;
            let at = move |ip: &IpAddr| of_health_check(key, SocketAddr::new(*ip, number));
            nodes.clone().map(at).map(|it| (Origin::NodePort, it))
        });
        let addresses = port.addresses.iter().filter(|_| config.addresses.is_some());
        let addresses = addresses.map(|it| {
            let mut config = of_address(&port.key, SocketAddr::new(it.ip, port.key.port));
            if it.kind == AddressKind::Cluster {
                config.scope = Some(Scope::Internal);
            }
            // As kube-proxy: the other addresses are open to all.
            if it.kind == AddressKind::LoadBalancer {
                config.source_ranges = port.source_ranges.to_vec();
            }
            (Origin::Address(it.kind), config)
        });
        node_ports
            .chain(checks)
            .chain(addresses)
            .collect::<Vec<_>>()
    })
}

fn of_address(port: &PortKey, address: SocketAddr) -> ListenerConfig {
    ListenerConfig {
        name: format!("{port}@{}", address.ip()),
        address,
        service: port.service.clone(),
        port: PortRef::Number(port.port),
        protocol: match port.transport {
            Transport::Tcp => None,
            Transport::Udp => Some(Protocol::Udp),
        },
        proxy_protocol: false,
        allow_connect: false,
        sni: Vec::new(),
        source_ranges: Vec::new(),
        scope: Some(Scope::External),
        health_check: false,
        routes: None,
        tls: None,
    }
}

fn of_health_check(port: &PortKey, address: SocketAddr) -> ListenerConfig {
    ListenerConfig {
        name: format!("{}/healthz@{}", port.service, address.ip()),
        protocol: Some(Protocol::Http),
        health_check: true,
        ..of_address(port, address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Discovery;

    fn key(name: &str) -> PortKey {
        ObjectName::new("web", name).port(80)
    }

    /// Ports with the nodePort 30080.
    fn claimed(keys: &[PortKey]) -> impl Iterator<Item = Claimed<'_>> {
        keys.iter().map(|key| Claimed {
            key: key.clone(),
            node_port: Some(30_080),
            addresses: &[],
            source_ranges: &[],
            health_check: None,
        })
    }

    #[test]
    fn only_a_balancers_address_has_source_ranges_and_only_a_cluster_ip_is_internal() {
        let mut config = config(&[]);
        let all = [
            ("10.96.0.1", AddressKind::Cluster),
            ("203.0.113.1", AddressKind::External),
            ("203.0.113.2", AddressKind::LoadBalancer),
        ];
        let addresses = all.map(|(ip, kind)| ServiceAddress {
            ip: ip.parse().unwrap(),
            kind,
        });
        let source_ranges = ["10.0.0.0/8".parse().unwrap()];
        let port = || Claimed {
            key: key("shop"),
            node_port: None,
            addresses: &addresses,
            source_ranges: &source_ranges,
            health_check: Some(32_000),
        };
        assert!(
            wanted(&config, std::iter::once(port()), true).is_empty(),
            "they are off"
        );
        config.addresses = Some(crate::config::settings::Addresses {
            nodes: Vec::new(),
            keeps_source: true,
            port: 15001,
            socket: "net.sock".into(),
        });
        let found = wanted(&config, std::iter::once(port()), true);
        let found: Vec<_> = found
            .iter()
            .map(|it| {
                let narrow = !it.config.source_ranges.is_empty();
                (it.config.address.to_string(), it.config.scope, narrow)
            })
            .collect();
        let expected = [
            ("10.96.0.1:80", Some(Scope::Internal), false),
            ("203.0.113.1:80", Some(Scope::External), false),
            ("203.0.113.2:80", Some(Scope::External), true),
        ];
        assert_eq!(
            found,
            expected.map(|(at, scope, narrow)| (at.to_owned(), scope, narrow))
        );
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
            ..of_address(&key("configured"), "[::]:1".parse().unwrap())
        }
    }

    #[test]
    fn a_node_port_is_wanted_on_each_address() {
        let all = wanted(&config(&["0.0.0.0", "::"]), claimed(&[key("shop")]), true);
        let addresses: Vec<String> = all.iter().map(|it| it.config.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0:30080", "[::]:30080"]);
        assert!(all.iter().all(|it| it.taken_by.is_none()));
    }

    #[test]
    fn a_health_check_is_wanted_on_the_nodes_addresses_and_leads_to_no_port() {
        let ports = [key("shop")];
        let claimed = claimed(&ports).map(|port| Claimed {
            health_check: Some(32_000),
            ..port
        });
        let all = wanted(&config(&["127.0.0.1"]), claimed, true);
        let all = all
            .into_iter()
            .map(|it| (it.config.address.port(), it.config.health_check));
        assert_eq!(all.collect::<Vec<_>>(), [(32_000, true), (30_080, false)]);
    }

    #[test]
    fn a_number_of_tcp_and_udp_is_wanted_twice_and_neither_takes_it_from_the_other() {
        let udp = ObjectName::new("web", "shop").port_over(Transport::Udp, 80);
        let ports = [key("shop"), udp];
        let all = wanted(&config(&["0.0.0.0"]), claimed(&ports), true);
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
        let all = wanted(&config, claimed(&[key("shop")]), false);
        let addresses: Vec<String> = all.iter().map(|it| it.config.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0:30080", "[::1]:30080"]);
    }

    #[test]
    fn a_configured_listener_keeps_its_address_whatever_its_name_holds() {
        let mut config = config(&["0.0.0.0"]);
        // Named as the derived listener of web/shop:80 is.
        config.listeners = vec![configured("web/shop:80@0.0.0.0", "0.0.0.0:30080")];
        let all = wanted(&config, claimed(&[key("shop")]), true);
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
        let all = wanted(&config, claimed(&[key("y"), key("x")]), true);
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
