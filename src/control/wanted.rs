//! Which listeners are wanted: a pure function of the configuration and the claimed Services' nodePorts.
//!
//! The control loop binds what it returns, and `ebbtide check` prints it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::settings::{Config, ListenerConfig};
use crate::contract::name::PortKey;
use crate::contract::policy::PortRef;

/// Where a listener comes from. A configured listener comes first where two want one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The configuration names it.
    Configured,
    /// It is the nodePort of a claimed Service.
    NodePort,
}

/// A listener's key. The two origins share no names: a configured listener may be named like a derived one.
pub type WantedKey = (Origin, String);

/// A listener that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedListener {
    /// What to bind, and what it serves.
    pub config: ListenerConfig,
    /// The name of the listener that has this address already: this one is not bound. `SO_REUSEPORT` would let both
    /// bind, and would split the clients between two Services.
    pub taken_by: Option<String>,
}

/// The listeners that are wanted. `node_ports` are the claimed Services' ports with their nodePort. `has_ipv6`: this
/// machine can bind `::`.
pub fn wanted(
    config: &Config,
    node_ports: impl IntoIterator<Item = (PortKey, u16)>,
    has_ipv6: bool,
) -> BTreeMap<WantedKey, WantedListener> {
    let mut listeners = BTreeMap::new();
    for listener in &config.listeners {
        let key = (Origin::Configured, listener.name.clone());
        listeners.insert(key, listener.clone());
    }
    for (port, node_port) in node_ports {
        for address in &config.node_port_addresses {
            // `::` is a default. Nothing is wrong on a machine without IPv6.
            if *address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !has_ipv6 {
                continue;
            }
            let listener = of_node_port(&port, node_port, *address);
            listeners.insert((Origin::NodePort, listener.name.clone()), listener);
        }
    }
    let mut owners: HashMap<SocketAddr, String> = HashMap::new();
    listeners
        .into_iter()
        .map(|(key, config)| {
            // Port 0 asks for any free port, so two listeners may name it.
            let taken_by = match config.address.port() {
                0 => None,
                _ => owners.get(&config.address).cloned(),
            };
            owners.entry(config.address).or_insert(config.name.clone());
            (key, WantedListener { config, taken_by })
        })
        .collect()
}

fn of_node_port(port: &PortKey, node_port: u16, address: IpAddr) -> ListenerConfig {
    ListenerConfig {
        name: format!("{port}@{address}"),
        address: SocketAddr::new(address, node_port),
        service: port.service.clone(),
        port: PortRef::Number(port.port),
        protocol: None,
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
        PortKey {
            service: ObjectName::new("web", name),
            port: 80,
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
            ..of_node_port(&key("configured"), 1, IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        }
    }

    #[test]
    fn a_node_port_is_wanted_on_each_address() {
        let all = wanted(&config(&["0.0.0.0", "::"]), [(key("shop"), 30_080)], true);
        let addresses: Vec<String> = all
            .values()
            .map(|it| it.config.address.to_string())
            .collect();
        assert_eq!(addresses, ["0.0.0.0:30080", "[::]:30080"]);
        assert!(all.values().all(|it| it.taken_by.is_none()));
    }

    #[test]
    fn without_ipv6_the_unspecified_address_is_left_out() {
        let config = config(&["0.0.0.0", "::", "::1"]);
        let all = wanted(&config, [(key("shop"), 30_080)], false);
        let addresses: Vec<String> = all
            .values()
            .map(|it| it.config.address.to_string())
            .collect();
        assert_eq!(addresses, ["0.0.0.0:30080", "[::1]:30080"]);
    }

    #[test]
    fn a_configured_listener_keeps_its_address_whatever_its_name_holds() {
        let mut config = config(&["0.0.0.0"]);
        // Named as the derived listener of web/shop:80 is.
        config.listeners = vec![configured("web/shop:80@0.0.0.0", "0.0.0.0:30080")];
        let all = wanted(&config, [(key("shop"), 30_080)], true);
        assert_eq!(all.len(), 2, "neither replaces the other");
        let taken: Vec<_> = all
            .into_iter()
            .map(|((origin, _), it)| (origin, it.taken_by))
            .collect();
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
            .values()
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
