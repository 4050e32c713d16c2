//! Which address each Gateway gets.
//!
//! Invariant: a Gateway keeps the address that its status names, while that is one of the pool and of no
//! older Gateway. So all nodes agree, whichever of them saw it first.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::discovery::gateway::{GatewayObject, GatewaySpec};
use crate::routing::gateway::conditions::Says;

/// The address of a Gateway, or why it has none.
#[derive(Debug, Clone)]
pub struct Given {
    /// Where its clients come in.
    pub address: Option<IpAddr>,
    /// Whether what it asks for can be understood.
    pub accepted: Says,
    /// Whether it has what it asks for.
    pub programmed: Says,
}

/// Gives each of these Gateways an address of the pool, the first one first.
pub fn give<'a>(
    gateways: impl Iterator<Item = (&'a GatewayObject, &'a GatewaySpec)> + Clone,
    pool: &[IpNet],
) -> Vec<Given> {
    let mut taken = BTreeSet::new();
    // Addresses in use are kept first. Otherwise a new Gateway could take one of them.
    let kept: Vec<Option<IpAddr>> = gateways
        .clone()
        .map(|(object, spec)| {
            let has = asked(spec).next().or_else(|| has(object))?;
            (is_in(pool, has) && taken.insert(has)).then_some(has)
        })
        .collect();
    let mut free = pool.iter().flat_map(IpNet::hosts);
    gateways
        .zip(kept)
        .map(|((_, spec), kept)| {
            let unknown = spec.addresses.iter().find(|it| !is_ip(it));
            let accepted = match unknown {
                None => Ok(()),
                Some(it) => Err((
                    "UnsupportedAddress",
                    format!(
                        "type {} is not supported, only IPAddress is",
                        it.kind.as_deref().unwrap_or_default()
                    ),
                )),
            };
            let unusable = asked(spec).find(|it| kept != Some(*it));
            let address = match (kept, unusable) {
                (_, Some(_)) => None,
                (Some(kept), None) => Some(kept),
                (None, None) => free.by_ref().find(|it| taken.insert(*it)),
            };
            let programmed = match (address, unusable) {
                (_, Some(it)) => Err((
                    "AddressNotUsable",
                    format!("{it} is not in gateway.addresses, or another Gateway has it"),
                )),
                (None, _) => Err((
                    "AddressNotAssigned",
                    "gateway.addresses has no free address left".to_owned(),
                )),
                (Some(_), None) => Ok(()),
            };
            Given {
                address: address.filter(|_| accepted.is_ok()),
                accepted,
                programmed,
            }
        })
        .collect()
}

fn is_ip(it: &crate::discovery::gateway::WantedAddress) -> bool {
    it.kind.as_deref().is_none_or(|kind| kind == "IPAddress")
}

/// The addresses that a Gateway names.
fn asked(spec: &GatewaySpec) -> impl Iterator<Item = IpAddr> {
    let values = spec.addresses.iter().filter(|it| is_ip(it));
    values.filter_map(|it| it.value.as_deref()?.parse().ok())
}

fn has(object: &GatewayObject) -> Option<IpAddr> {
    object.status["addresses"][0]["value"]
        .as_str()?
        .parse()
        .ok()
}

fn is_in(pool: &[IpNet], address: IpAddr) -> bool {
    pool.iter().any(|range| range.contains(&address))
}
