//! Which Gateways are served, and at which addresses.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::checked::items;
use crate::config::fault::Fault;
use crate::config::raw;
use crate::config::settings::Gateway;

impl raw::Gateway {
    pub(super) fn check(self) -> Result<Gateway, Fault> {
        let controller = self.controller_name;
        let controller = controller.unwrap_or_else(|| "ebbtide.dev/gateway".to_owned());
        let parts = controller.split_once('/');
        if !parts.is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty()) {
            let what = format!(
                "{controller:?} is not a domain and a path, expected one such as ebbtide.dev/gateway"
            );
            return Err(Fault::new("gateway.controllerName", what));
        }
        let addresses = items(
            "gateway.addresses",
            self.addresses.unwrap_or_default(),
            |text| {
                let range = text.parse().or_else(|_| text.parse().map(IpAddr::into));
                range.map_err(|_| {
                    format!(
                        "{text:?} is not an address or a range, expected one such as 203.0.113.0/28"
                    )
                })
            },
        )?;
        let unusable = addresses.iter().find(|range: &&IpNet| {
            range.addr().is_unspecified() || range.addr().is_multicast() || hosts(range) > POOL
        });
        match unusable {
            Some(range) => Err(Fault::new(
                "gateway.addresses",
                format!(
                    "{range} cannot be given to Gateways, expected at most {POOL} addresses of hosts"
                ),
            )),
            None => Ok(Gateway {
                controller,
                addresses,
            }),
        }
    }
}

/// How many addresses a range has.
fn hosts(range: &IpNet) -> u128 {
    let bits = range.max_prefix_len() - range.prefix_len();
    1u128.checked_shl(bits.into()).unwrap_or(u128::MAX)
}

/// A range of more addresses is a mistake.
const POOL: u128 = 1 << 16;
