//! The listeners of a Gateway: what can be served, and what is said of the rest.
//!
//! Source: <https://gateway-api.sigs.k8s.io/reference/spec/#listener>.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use crate::contract::name::ObjectName;
use crate::discovery::gateway::{GatewayKind, GatewayObject, Listener, Spec};
use crate::discovery::route_spec::ObjectRef;
use crate::routing::gateway::conditions::Says;
use crate::routing::gateway::facts::{Facts, Known};
use crate::routing::gateway::grants::{GROUP, Grants};

/// A listener, and what is found out about it.
#[derive(Debug)]
pub struct Found<'a> {
    /// What is asked for.
    pub spec: &'a Listener,
    /// The kinds of routes that may lead its clients on.
    pub kinds: Vec<GatewayKind>,
    /// The Secrets with its certificates.
    pub secrets: Vec<ObjectName>,
    /// Whether it can be served as such.
    pub accepted: Says,
    /// Whether all that it names is there.
    pub resolved: Says,
    /// Whether it has a certificate, if it needs one.
    pub has_certificate: Says,
    /// Whether another listener has its port.
    pub conflict: Says,
    /// How many routes lead its clients on.
    pub attached: usize,
}

impl<'a> Found<'a> {
    /// Looks at a listener of a Gateway.
    pub fn of(gateway: &GatewayObject, spec: &'a Listener, facts: &Facts<'_>) -> Self {
        let (fitting, accepted) = fitting(spec);
        let allowed = spec.allowed_routes.as_ref();
        let wanted = allowed.map_or(&[][..], |it| &it.kinds);
        let is_wanted = |kind: &&GatewayKind| {
            let named = |it: &crate::discovery::gateway::RouteKind| {
                it.kind == kind.names().0 && it.group.as_deref().is_none_or(|it| it == GROUP)
            };
            wanted.is_empty() || wanted.iter().any(named)
        };
        let kinds: Vec<_> = fitting.iter().filter(is_wanted).copied().collect();
        let mut resolved = Ok(());
        let foreign = wanted.iter().find(|it| {
            let is_known = |kind: &GatewayKind| kind.names().0 == it.kind;
            !fitting.iter().any(is_known) || it.group.as_deref().is_some_and(|it| it != GROUP)
        });
        if let Some(kind) = foreign.filter(|_| accepted.is_ok()) {
            let what = format!(
                "routes of kind {} cannot lead on what comes as {}",
                kind.kind, spec.protocol
            );
            resolved = Err(("InvalidRouteKinds", what));
        }
        let (mut secrets, mut has_certificate, mut some_good) = (Vec::new(), Ok(()), false);
        if accepted.is_ok() && ends_tls(spec) {
            let refs = spec
                .tls
                .as_ref()
                .map_or(&[][..], |tls| &tls.certificate_refs);
            for reference in refs {
                match certificate(gateway, reference, &facts.grants) {
                    Ok(name) => match (facts.secret)(&name) {
                        Known::Missing(why) => {
                            let what = format!("Secret {name}: {why}");
                            has_certificate = Err(("InvalidCertificateRef", what));
                            secrets.push(name);
                        }
                        Known::Unknown | Known::Is(()) => {
                            some_good = true;
                            secrets.push(name);
                        }
                    },
                    Err(why) => has_certificate = Err(why),
                }
            }
            if refs.is_empty() {
                let what = "tls.certificateRefs names no Secret".to_owned();
                has_certificate = Err(("InvalidCertificateRef", what));
            }
            if resolved.is_ok() {
                resolved = has_certificate.clone();
            }
            if some_good {
                has_certificate = Ok(());
            }
        }
        Self {
            spec,
            kinds,
            secrets,
            accepted,
            resolved,
            has_certificate,
            conflict: Ok(()),
            attached: 0,
        }
    }

    /// Whether the TLS of its clients ends here.
    pub fn ends_tls(&self) -> bool {
        ends_tls(self.spec)
    }

    /// Whether clients can come in.
    pub fn is_served(&self) -> bool {
        self.is_open() && self.has_certificate.is_ok()
    }

    /// Whether its port is open and its hosts are its own. So they are while no Secret that it may name can
    /// be used: the last certificate stays in force, and no other listener gets its clients.
    pub fn is_open(&self) -> bool {
        let named = !self.secrets.is_empty() || self.has_certificate.is_ok();
        self.accepted.is_ok() && self.conflict.is_ok() && named
    }

    /// Another listener has its port, with another protocol.
    pub fn yield_port(&mut self, to: &str) {
        let what = format!("port {} is one of {to} already", self.spec.port);
        self.conflict = Err(("ProtocolConflict", what.clone()));
        self.accepted = Err(("ProtocolConflict", what));
    }

    /// Whether routes of this kind and namespace may lead its clients on.
    pub fn allows(
        &self,
        gateway: &GatewayObject,
        kind: GatewayKind,
        namespace: &str,
        facts: &Facts<'_>,
    ) -> bool {
        let namespaces = self.spec.allowed_routes.as_ref();
        let namespaces = namespaces.and_then(|it| it.namespaces.as_ref());
        let from = namespaces
            .and_then(|it| it.from.as_deref())
            .unwrap_or("Same");
        let selected = || {
            let selector = namespaces
                .and_then(|it| it.selector.clone())
                .unwrap_or_default();
            fits(selector, facts, namespace)
        };
        self.accepted.is_ok()
            && self.kinds.contains(&kind)
            && match from {
                "All" => true,
                "Same" => namespace == gateway.name.namespace,
                "Selector" => selected(),
                _ => false,
            }
    }
}

/// Of two listeners that cannot share a port, the second is told so.
pub fn note_conflicts(found: &mut [Found<'_>]) {
    let mut ports: BTreeMap<(bool, u16), String> = BTreeMap::new();
    for listener in found.iter_mut().filter(|it| it.accepted.is_ok()) {
        let is_udp = listener.spec.protocol == "UDP";
        let first = ports
            .entry((is_udp, listener.spec.port))
            .or_insert_with(|| listener.spec.protocol.clone());
        if *first != listener.spec.protocol {
            listener.yield_port(first);
        }
    }
}

/// The kinds of routes that fit a listener's protocol.
fn fitting(spec: &Listener) -> (&'static [GatewayKind], Says) {
    let unsupported = |mode: &str| {
        let what = format!(
            "tls.mode {mode} is not supported for protocol {}",
            spec.protocol
        );
        Err(("UnsupportedValue", what))
    };
    match (spec.protocol.as_str(), tls_mode(spec)) {
        ("HTTP", _) | ("HTTPS", "Terminate") => {
            (&[GatewayKind::HttpRoute, GatewayKind::GrpcRoute], Ok(()))
        }
        ("TLS", "Passthrough" | "Terminate") => (&[GatewayKind::TlsRoute], Ok(())),
        ("TCP", _) => (&[GatewayKind::TcpRoute], Ok(())),
        ("UDP", _) => (&[GatewayKind::UdpRoute], Ok(())),
        ("HTTPS" | "TLS", mode) => (&[], unsupported(mode)),
        (other, _) => {
            let what = format!("expected HTTP, HTTPS, TLS, TCP or UDP, found {other}");
            (&[], Err(("UnsupportedProtocol", what)))
        }
    }
}

fn ends_tls(spec: &Listener) -> bool {
    matches!(&*spec.protocol, "HTTPS" | "TLS") && tls_mode(spec) == "Terminate"
}

/// What becomes of TLS at a listener, with the API's default.
fn tls_mode(spec: &Listener) -> &str {
    let mode = spec.tls.as_ref().and_then(|tls| tls.mode.as_deref());
    mode.unwrap_or("Terminate")
}

/// The Secret that a listener names, if it may.
fn certificate(
    gateway: &GatewayObject,
    to: &ObjectRef,
    grants: &Grants<'_>,
) -> Result<ObjectName, (&'static str, String)> {
    let invalid = |what: String| ("InvalidCertificateRef", what);
    let kind = to.kind.as_deref().unwrap_or("Secret");
    if kind != "Secret" || to.group.as_deref().is_some_and(|it| !it.is_empty()) {
        return Err(invalid(format!("{kind} {} is no Secret", to.name)));
    }
    let own = &gateway.name.namespace;
    let name = ObjectName::new(to.namespace.as_ref().unwrap_or(own), &*to.name);
    if !grants.permit(GatewayKind::Gateway, own, "Secret", &name) {
        let what = format!(
            "no ReferenceGrant in {} permits it to use Secret {name}",
            name.namespace
        );
        return Err(("RefNotPermitted", what));
    }
    Ok(name)
}

fn fits(selector: LabelSelector, facts: &Facts<'_>, namespace: &str) -> bool {
    let key = (GatewayKind::Namespace, ObjectName::new("", namespace));
    let Ok(selector) = Selector::try_from(selector) else {
        return false;
    };
    match facts.objects.get(&key).map(|it| &it.spec) {
        Some(Spec::Namespace(labels)) => selector.matches(labels),
        _ => false,
    }
}
