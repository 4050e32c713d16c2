//! The listeners of the file: each value is inside its bounds, and no two have one name or one
//! address.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;

use crate::config::fault::Fault;
use crate::config::settings::{Discovery, Kubernetes, ListenerConfig, Passthrough};
use crate::config::{raw, value};
use crate::contract::policy::{PortRef, Protocol, Transport};

/// Checks all listeners, and that no two are alike.
pub(super) fn listeners(
    found: Vec<raw::Listener>,
    folder: &Path,
    admin: SocketAddr,
    discovery: &Discovery,
) -> Result<Vec<ListenerConfig>, Fault> {
    let mut names = HashMap::new();
    let mut addresses = HashMap::from([((Transport::Tcp, admin), "admin".to_owned())]);
    let mut checked = Vec::with_capacity(found.len());
    for (index, listener) in found.into_iter().enumerate() {
        let me = format!("listeners[{index}]");
        let listener = listener.check(&me, folder)?;
        if let Some(other) = names.insert(listener.name.clone(), me.clone()) {
            let what = format!(
                "{:?} is also the name of {other}, expected a different name",
                listener.name
            );
            return Err(Fault::new(format!("{me}.name"), what));
        }
        if listener.address.port() != 0
            && let Some(other) =
                addresses.insert((listener.transport(), listener.address), me.clone())
        {
            let what = format!(
                "{} is also the address of {other}, expected a different address",
                listener.address
            );
            return Err(Fault::new(format!("{me}.address"), what));
        }
        if let Discovery::Kubernetes(Kubernetes { namespaces, .. }) = discovery
            && !namespaces.is_empty()
        {
            for (place, service) in listener.services().enumerate() {
                if !namespaces.contains(&service.namespace) {
                    let what = format!(
                        "namespace {} is not watched, expected one of discovery.kubernetes.namespaces ({})",
                        service.namespace,
                        namespaces.join(", ")
                    );
                    let me = match place.checked_sub(1) {
                        None => format!("{me}.service"),
                        Some(place) => format!("{me}.sni[{place}].service"),
                    };
                    return Err(Fault::new(me, what));
                }
            }
        }
        checked.push(listener);
    }
    Ok(checked)
}

impl raw::Listener {
    fn check(self, me: &str, folder: &Path) -> Result<ListenerConfig, Fault> {
        let at = |field: &str, what: String| Fault::new(format!("{me}.{field}"), what);
        if self.name.is_empty()
            || self.name.len() > 63
            || self
                .name
                .chars()
                .any(|c| c.is_control() || c.is_whitespace())
        {
            let what = format!(
                "{:?} is not a valid name, expected 1 to 63 bytes without spaces",
                self.name
            );
            return Err(at("name", what));
        }
        let proxy_protocol = value::off_or("required", self.proxy_protocol)
            .map_err(|what| at("proxyProtocol", what))?;
        if proxy_protocol && matches!(self.protocol, Some(raw::Protocol::Udp)) {
            let what = "a UDP client sends no PROXY header, expected off".to_owned();
            return Err(at("proxyProtocol", what));
        }
        let tls = self.tls.map(|tls| {
            let me = format!("{me}.tls");
            match self.protocol {
                Some(raw::Protocol::Udp) => {
                    let what = "a UDP client speaks no TLS, expected a listener without tls";
                    Err(Fault::new(me, what))
                }
                _ => tls.check(&me, folder),
            }
        });
        let sni = passthroughs(self.sni.unwrap_or_default(), me)?;
        if !sni.is_empty() {
            may_pass_on(self.protocol, tls.is_some()).map_err(|what| at("sni", what.to_owned()))?;
        }
        Ok(ListenerConfig {
            address: value::address(&self.address).map_err(|what| at("address", what))?,
            service: value::service(&self.service).map_err(|what| at("service", what))?,
            port: PortRef::read(&self.port.0).map_err(|what| at("port", what))?,
            protocol: self.protocol.map(|protocol| match protocol {
                raw::Protocol::Auto => Protocol::Auto,
                raw::Protocol::Http => Protocol::Http,
                raw::Protocol::H2c => Protocol::Http2,
                raw::Protocol::Tcp => Protocol::Tcp,
                raw::Protocol::Udp => Protocol::Udp,
            }),
            proxy_protocol,
            allow_connect: self.allow_connect.unwrap_or(false),
            source_ranges: Vec::new(),
            scope: None,
            health_check: false,
            routes: None,
            tls: tls.transpose()?,
            sni,
            name: self.name,
        })
    }
}

/// Checks where clients of TLS are passed on to.
fn passthroughs(found: Vec<raw::Passthrough>, me: &str) -> Result<Vec<Passthrough>, Fault> {
    let mut known = HashSet::new();
    let mut checked = Vec::with_capacity(found.len());
    for (index, raw) in found.into_iter().enumerate() {
        let at = |field: &str, what: String| Fault::new(format!("{me}.sni[{index}].{field}"), what);
        if raw.hosts.is_empty() {
            let what = "no name, expected one such as shop.example.com".to_owned();
            return Err(at("hosts", what));
        }
        for (place, host) in raw.hosts.iter().enumerate() {
            let field = format!("hosts[{place}]");
            if !value::host(host) {
                let what = format!(
                    "{host:?} is not a name, expected one such as shop.example.com or *.example.com"
                );
                return Err(at(&field, what));
            }
            if !known.insert(host.to_ascii_lowercase()) {
                let what = format!("{host:?} is given twice, expected it once in a listener");
                return Err(at(&field, what));
            }
        }
        checked.push(Passthrough {
            hosts: raw.hosts,
            service: value::service(&raw.service).map_err(|what| at("service", what))?,
            port: PortRef::read(&raw.port.0).map_err(|what| at("port", what))?,
        });
    }
    Ok(checked)
}

/// Whether a listener can pass on TLS by its names.
fn may_pass_on(protocol: Option<raw::Protocol>, ends_tls: bool) -> Result<(), &'static str> {
    match protocol {
        _ if ends_tls => Err("tls ends the clients' TLS here, expected either tls or sni"),
        None | Some(raw::Protocol::Tcp) => Ok(()),
        Some(_) => Err("clients of TLS are passed on as TCP, expected protocol: tcp"),
    }
}

impl PortRef {
    fn read(text: &str) -> Result<Self, String> {
        match text.parse::<u16>() {
            Ok(number) if number > 0 => Ok(Self::Number(number)),
            Err(_) if value::label(text) && text.bytes().any(|b| b.is_ascii_lowercase()) => {
                Ok(Self::Name(text.to_owned()))
            }
            _ => Err(format!(
                "{text:?} is not a port, expected a Service port's name or a number from 1 to 65535"
            )),
        }
    }
}
