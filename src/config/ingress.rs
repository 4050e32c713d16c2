//! Which Ingress objects are served, where their status says that they are, and their listeners: without
//! TLS and with it, on each address.

use std::net::{IpAddr, SocketAddr};

use crate::config::claimed::bound;
use crate::config::fault::Fault;
use crate::config::settings::{Ingress, ListenerConfig, Publish};
use crate::config::tls::{ClientCertificates, Tls};
use crate::config::{raw, value};
use crate::contract::listener::FoundBy;
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol};

impl raw::Ingress {
    /// Which objects are served, and where.
    /// `nodes` are this node's own addresses.
    pub(super) fn check(self, nodes: &[IpAddr]) -> Result<(Ingress, Vec<ListenerConfig>), Fault> {
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
        let publish = publish(
            self.publish,
            self.publish_service.as_deref(),
            &addresses,
            nodes,
        )?;
        let default = Ingress::of(&class);
        let controller = self.controller.unwrap_or(default.controller);
        if !controller.contains('/') {
            let what = format!(
                "{controller:?} is not the name of a controller, expected one such as ebbtide.dev/ingress"
            );
            return Err(Fault::new("ingress.controller", what));
        }
        let nginx_keys = value::off_or("nginx", self.keys);
        let nginx_keys = nginx_keys.map_err(|what| Fault::new("ingress.keys", what))?;
        let is_text =
            |text: &String| !text.is_empty() && text.bytes().all(|it| it.is_ascii_graphic());
        if let Some(bad) = self.server.as_ref().filter(|it| !is_text(it)) {
            let what = format!("{bad:?} is not the name of a server, expected one such as ebbtide");
            return Err(Fault::new("ingress.server", what));
        }
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
            port: PortRef::Name(name.to_owned()),
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
        let ingress = Ingress {
            class,
            controller,
            nginx_keys,
            publish,
            server: self.server,
        };
        Ok((ingress, listeners.collect()))
    }
}

/// What the status of the objects says. A listener on every address says nothing of where clients find
/// it: then it is the node's own addresses.
fn publish(
    wanted: Option<Vec<String>>,
    service: Option<&str>,
    addresses: &[IpAddr],
    nodes: &[IpAddr],
) -> Result<Publish, Fault> {
    if let Some(service) = service {
        if wanted.is_some() {
            let what = "publish is set, too, expected one of the two";
            return Err(Fault::new("ingress.publishService", what));
        }
        let service = value::service(service);
        return service
            .map(Publish::Service)
            .map_err(|what| Fault::new("ingress.publishService", what));
    }
    let Some(wanted) = wanted else {
        let has_own = !addresses.iter().any(IpAddr::is_unspecified);
        let own = if has_own { addresses } else { nodes };
        let own = own.iter().map(IpAddr::to_string);
        return Ok(Publish::Addresses(own.collect()));
    };
    for (i, text) in wanted.iter().enumerate() {
        let ip = text.parse::<IpAddr>().ok();
        let is_good = match ip {
            Some(ip) => !ip.is_unspecified() && !ip.is_multicast(),
            None => value::subdomain(text),
        };
        if !is_good {
            let what = format!(
                "{text:?} leads no client here, expected an IP address or a name such as lb.example.com"
            );
            return Err(Fault::new(format!("ingress.publish[{i}]"), what));
        }
    }
    Ok(Publish::Addresses(wanted))
}
