//! What a claim takes over, checked: the nodePorts and the addresses of claimed Services.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::config::checked::{at, cidr, items};
use crate::config::fault::Fault;
use crate::config::raw;
use crate::config::settings::{Addresses, Claim};
use crate::config::value;
use crate::contract::inside::Inside;

impl raw::Services {
    /// Which Services are claimed.
    pub(super) fn check_claim(&self) -> Result<Claim, Fault> {
        let all = match self.claim.as_deref() {
            None | Some("labelled") => false,
            Some("all") => true,
            Some(other) => {
                let what = format!("{other:?} is not known, expected labelled or all");
                return Err(Fault::new("services.claim", what));
            }
        };
        let default = Claim::default().proxy_name;
        let proxy_name = self.proxy_name.clone().unwrap_or(default);
        if !is_label_value(&proxy_name) {
            let what =
                format!("{proxy_name:?} is no value of a label, expected one such as ebbtide");
            return Err(Fault::new("services.proxyName", what));
        }
        Ok(Claim { all, proxy_name })
    }

    pub(super) fn check(
        self,
        folder: &Path,
        admin: SocketAddr,
    ) -> Result<(Option<Addresses>, Inside), Fault> {
        let is_on = at("services.addresses", value::off_or("on", self.addresses))?;
        let pods = items(
            "services.podCIDRs",
            self.pod_cidrs.unwrap_or_default(),
            cidr,
        )?;
        let from = match &self.node_addresses {
            Some(_) => "services.nodeAddresses",
            None => "services.addresses",
        };
        let texts = self.node_addresses.unwrap_or_else(|| {
            let text = std::env::var("NODE_IPS").unwrap_or_default();
            let texts = text.split(',').map(str::trim).filter(|it| !it.is_empty());
            texts.map(str::to_owned).collect()
        });
        let mut families = HashSet::new();
        let nodes = items(from, texts, |text| {
            let address: IpAddr = text.parse().map_err(|_| {
                format!("{text:?} is not an IP address, expected one of this node's own")
            })?;
            if address.is_unspecified() || address.is_loopback() {
                return Err(format!(
                    "{text} reaches no other host, expected one of this node's own"
                ));
            }
            match families.insert(address.is_ipv4()) {
                true => Ok(address),
                false => Err(format!(
                    "{text} is the second of its family, expected one of each"
                )),
            }
        })?;
        let inside = Inside {
            nodes: nodes.clone(),
            pods,
            node_pods: Vec::new(),
        };
        if !is_on {
            return Ok((None, inside));
        }
        let port = self.port.unwrap_or(SHARED_PORT);
        if port == 0 || port == admin.port() {
            let what = format!(
                "{port} is 0 or the port of admin.address, expected another one from 1 to 65535"
            );
            return Err(Fault::new("services.port", what));
        }
        let socket = self.socket.as_deref().unwrap_or(NET_SOCKET);
        let socket = folder.join(socket).components().collect();
        let keeps_source = match self.source.as_deref().map(value::keeps_source) {
            Some(Err(what)) => return Err(Fault::new("services.source", what)),
            Some(Ok(keeps)) => keeps,
            None => true,
        };
        let addresses = Addresses {
            nodes,
            keeps_source,
            port,
            socket,
        };
        Ok((Some(addresses), inside))
    }
}

impl raw::NodePorts {
    pub(super) fn check(self) -> Result<Vec<IpAddr>, Fault> {
        bound("nodePorts.addresses", self.addresses)
    }
}

/// The addresses on which something is bound; all if none are named. `me` is the path of the field.
pub(super) fn bound(me: &str, texts: Option<Vec<String>>) -> Result<Vec<IpAddr>, Fault> {
    let Some(texts) = texts else {
        return Ok(vec![
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv6Addr::UNSPECIFIED.into(),
        ]);
    };
    if texts.is_empty() {
        let what = "empty, expected IP addresses such as 0.0.0.0 and '::'";
        return Err(Fault::new(me, what));
    }
    let mut seen = HashSet::new();
    items(me, texts, |text| {
        let address: IpAddr = text.parse().map_err(|_| {
            format!("{text:?} is not an IP address, expected one such as 0.0.0.0 or '::'")
        })?;
        if seen.insert(address) {
            Ok(address)
        } else {
            Err(format!("{text:?} is given twice, expected it once"))
        }
    })
}

/// A value of a label
/// (<https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>)
/// that is not empty.
fn is_label_value(text: &str) -> bool {
    let is_end = |byte: Option<u8>| byte.is_some_and(|it| it.is_ascii_alphanumeric());
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.len() <= 63
        && is_end(text.bytes().next())
        && is_end(text.bytes().last())
        && text.bytes().all(is_inner)
}

/// The port to which clients of Services' addresses are led.
const SHARED_PORT: u16 = 15001;
/// Where `ebbtide net` listens.
const NET_SOCKET: &str = "/run/ebbtide/net.sock";
