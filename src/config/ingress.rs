//! The listeners of Ingress objects: without TLS and with it, on each address.

use std::net::{IpAddr, SocketAddr};

use crate::config::claimed::bound;
use crate::config::fault::Fault;
use crate::config::settings::{Ingress, ListenerConfig};
use crate::config::tls::{ClientCertificates, Tls};
use crate::config::{raw, value};
use crate::contract::listener::FoundBy;
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol};

impl raw::Ingress {
    /// Which objects are served, and where.
    pub(super) fn check(self) -> Result<(Ingress, Vec<ListenerConfig>), Fault> {
        let class = self.class.unwrap_or_else(|| "ebbtide".to_owned());
        if !value::subdomain(&class) {
            let what =
                format!("{class:?} is not the name of a class, expected one such as ebbtide");
            return Err(Fault::new("ingress.class", what));
        }
        let addresses = bound("ingress.addresses", self.addresses)?;
        let secret = self.default_secret.as_deref().map(value::secret);
        let secret = secret.transpose();
        let secret = secret.map_err(|what| Fault::new("ingress.defaultSecret", what))?;
        let tls = Tls {
            certificates: Vec::new(),
            secrets: secret.into_iter().collect(),
            only_tls13: false,
            clients: ClientCertificates::None,
        };
        let (http, https) = (self.http_port.unwrap_or(80), self.https_port.unwrap_or(443));
        if http == https && http != 0 {
            let what = format!("{https} is also httpPort, expected a different port");
            return Err(Fault::new("ingress.httpsPort", what));
        }
        let at = |ip: IpAddr, name: &str, port: u16, tls: Option<&Tls>| ListenerConfig {
            name: format!("ingress-{name}@{ip}"),
            address: SocketAddr::new(ip, port),
            service: ObjectName::new("", "ingress"),
            port: PortRef::Number(0),
            protocol: Some(Protocol::Http),
            proxy_protocol: false,
            allow_connect: false,
            tls: tls.cloned(),
            sni: Vec::new(),
            source_ranges: Vec::new(),
            scope: None,
            health_check: false,
            routes: Some(FoundBy::Request),
        };
        let listeners = addresses.into_iter().flat_map(|ip| {
            [
                at(ip, "http", http, None),
                at(ip, "https", https, Some(&tls)),
            ]
        });
        Ok((Ingress { class }, listeners.collect()))
    }
}
