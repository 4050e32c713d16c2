//! Where the clients inside the cluster come from: this node, and pods.
//!
//! For kube-proxy, too, such a client that connects to an external address of a Service is not outside:
//! it goes by no policy that is Local. Leaves out what cannot be seen in an address: a pod whose address
//! somebody on the way has replaced by another one (masquerading) comes from outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::contract::policy::Scope;

/// The addresses of clients inside the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inside {
    /// This node's own, beside loopback.
    pub nodes: Vec<IpAddr>,
    /// The ranges of pods, as the configuration gives them.
    pub pods: Vec<IpNet>,
    /// The ranges of this node's pods, as its Node object gives them. Used if `pods` is empty.
    pub node_pods: Vec<IpNet>,
}

impl Inside {
    /// Which traffic policy counts for this client of a listener with this scope.
    pub fn scope(&self, of: Option<Scope>, client: IpAddr) -> Option<Scope> {
        match of {
            Some(Scope::External) if self.has(client) => Some(Scope::Inside),
            of => of,
        }
    }

    fn has(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        let pods = match self.pods.is_empty() {
            true => &self.node_pods,
            false => &self.pods,
        };
        LOOPBACK.contains(&client)
            || self.nodes.contains(&client)
            || pods.iter().any(|range| range.contains(&client))
    }
}

/// The address of a client on the node that wants loopback and chooses no other address of it.
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_the_node_are_inside_whatever_the_form_of_their_address() {
        let inside = Inside {
            nodes: vec!["192.0.2.1".parse().unwrap()],
            pods: vec!["10.244.1.0/24".parse().unwrap()],
            node_pods: vec!["10.244.2.0/24".parse().unwrap()],
        };
        let scope = |of, client: &str| inside.scope(of, client.parse().unwrap());
        let external = Some(Scope::External);
        for client in [
            "192.0.2.1",
            "10.244.1.7",
            "::ffff:10.244.1.7",
            "127.0.0.1",
            "::1",
        ] {
            assert_eq!(scope(external, client), Some(Scope::Inside), "{client}");
            assert_eq!(scope(Some(Scope::Internal), client), Some(Scope::Internal));
            assert_eq!(scope(None, client), None, "a configured listener");
        }
        for client in ["192.0.2.2", "10.244.2.7", "2001:db8::1"] {
            assert_eq!(scope(external, client), external, "{client}");
        }
        let by_source = Inside {
            pods: Vec::new(),
            ..inside.clone()
        };
        let of_node = by_source.scope(external, "10.244.2.7".parse().unwrap());
        assert_eq!(of_node, Some(Scope::Inside), "the configuration is silent");
    }
}
