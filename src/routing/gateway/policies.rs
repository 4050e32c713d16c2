//! BackendTLSPolicies: how TLS is spoken with the endpoints to which routes lead, and what is said of each
//! policy.
//!
//! Invariants: where a policy counts, no endpoint is spoken to in the clear; what is wrong with the policy
//! refuses them all. Only objects of policies that a route of ours needs are looked at.
//!
//! Source: <https://gateway-api.sigs.k8s.io/geps/gep-1897/>.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::{backend, value};
use crate::contract::authorities::{Holder, HolderKind};
use crate::contract::backend::Backend;
use crate::contract::name::ObjectName;
use crate::contract::subject_name::SubjectName;
use crate::discovery::gateway::{GatewayObject, Spec};
use crate::discovery::policy_spec::{AlternativeName, AuthorityRef, PolicySpec, Validation};
use crate::routing::gateway::conditions::Says;
use crate::routing::gateway::facts::Facts;

/// All policies, the oldest first.
#[derive(Debug, Default)]
pub struct Policies<'a> {
    all: Vec<Policy<'a>>,
    /// Those of each Service, by their places: the name of a port, or nothing for all ports.
    of: BTreeMap<ObjectName, Vec<(Option<&'a str>, usize)>>,
    /// The ports of Services that Gateways reach: the port's name, if it is known, and the Gateway's place.
    reached: BTreeMap<ObjectName, BTreeSet<(Option<String>, usize)>>,
}

#[derive(Debug)]
struct Policy<'a> {
    object: &'a GatewayObject,
    spec: &'a PolicySpec,
    judged: OnceCell<Judged>,
}

/// What a policy comes to.
#[derive(Debug)]
struct Judged {
    backend: Arc<Backend>,
    /// `None`: what it names has not been read yet.
    says: Option<(Says, Says)>,
}

/// What is to be said of a policy.
#[derive(Debug)]
pub struct Said<'a> {
    /// The policy.
    pub object: &'a GatewayObject,
    /// For each Gateway that reaches it, by its place: whether it counts there, and whether all that it
    /// names can be used.
    pub ancestors: Vec<(usize, Says, Says)>,
}

impl<'a> Policies<'a> {
    /// Those among all objects.
    pub fn of(facts: &Facts<'a>) -> Self {
        let objects = facts.objects.values().filter_map(|it| match &it.spec {
            Spec::Policy(spec) => Some((&**it, spec)),
            _ => None,
        });
        let mut sorted: Vec<(&GatewayObject, &PolicySpec)> = objects.collect();
        sorted.sort_by_key(|(object, _)| (object.created, &object.name));
        let mut made = Self::default();
        for (place, (object, spec)) in sorted.into_iter().enumerate() {
            for (service, port) in targets(object, spec) {
                made.of.entry(service).or_default().push((port, place));
            }
            made.all.push(Policy {
                object,
                spec,
                judged: OnceCell::new(),
            });
        }
        made
    }

    /// How TLS is spoken with the endpoints of a Service port. `None`: as the Service says.
    pub fn backend(
        &self,
        service: &ObjectName,
        port: u16,
        facts: &Facts<'_>,
    ) -> Option<Arc<Backend>> {
        let of_service = self.of.get(service)?;
        let mut counts = of_service.iter().find(|(port, _)| port.is_none());
        if of_service.iter().any(|(port, _)| port.is_some()) {
            let Some(name) = (facts.port_name)(service, port) else {
                // One of them may count.
                return Some(waiting());
            };
            let mut narrow = of_service.iter();
            counts = narrow.find(|(port, _)| *port == Some(&name)).or(counts);
        }
        let (_, place) = counts?;
        Some(self.all[*place].judged(facts).backend.clone())
    }

    /// Notes that a Gateway, by its place, reaches a Service port by a route for which policies count.
    pub fn reach(&mut self, service: &ObjectName, port: u16, gateway: usize, facts: &Facts<'_>) {
        if self.of.contains_key(service) {
            let name = (facts.port_name)(service, port);
            let of_service = self.reached.entry(service.clone()).or_default();
            of_service.insert((name, gateway));
        }
    }

    /// What is to be said of each policy. One of which that is not known yet is left out.
    pub fn said(&self, facts: &Facts<'_>) -> Vec<Said<'a>> {
        let all = self.all.iter().enumerate();
        let said = all.filter_map(|(place, policy)| {
            let mut ancestors = Vec::new();
            for (gateway, conflict) in self.reaching(place, policy) {
                let (accepted, resolved) = policy.judged(facts).says.clone()?;
                let accepted = match conflict {
                    Some(what) => Err(("Conflicted", what)),
                    None => accepted,
                };
                ancestors.push((gateway, accepted, resolved));
            }
            let object = policy.object;
            Some(Said { object, ancestors })
        });
        said.collect()
    }

    /// The Gateways that reach a target of a policy, and what takes precedence over the policy there.
    fn reaching(&self, place: usize, policy: &Policy<'_>) -> BTreeMap<usize, Option<String>> {
        let mut gateways: BTreeMap<usize, Option<String>> = BTreeMap::new();
        for (service, port) in targets(policy.object, policy.spec) {
            let mut same = self.of.get(&service).into_iter().flatten();
            let first = same.find(|(it, _)| *it == port);
            let winner = first.filter(|(_, first)| *first != place);
            let conflict = winner.map(|(_, winner)| {
                let winner = &self.all[*winner].object.name;
                format!("for Service {service}, the older BackendTLSPolicy {winner} counts")
            });
            for (name, gateway) in self.reached.get(&service).into_iter().flatten() {
                if port.is_none_or(|it| name.as_deref() == Some(it)) {
                    let known = gateways.entry(*gateway).or_default();
                    *known = known.take().or_else(|| conflict.clone());
                }
            }
        }
        gateways
    }
}

impl Policy<'_> {
    fn judged(&self, facts: &Facts<'_>) -> &Judged {
        self.judged
            .get_or_init(|| judge(&self.object.name, &self.spec.validation, facts))
    }
}

/// The Services of a policy, each with the name of its port or with nothing for all ports.
fn targets<'a>(
    object: &'a GatewayObject,
    spec: &'a PolicySpec,
) -> impl Iterator<Item = (ObjectName, Option<&'a str>)> {
    let all = spec.target_refs.iter();
    let services = all.filter(|it| it.kind == "Service" && it.group.is_empty());
    services.map(|it| {
        let service = ObjectName::new(&*object.name.namespace, &*it.name);
        let port = it.section_name.as_deref().filter(|it| !it.is_empty());
        (service, port)
    })
}

fn judge(name: &ObjectName, it: &Validation, facts: &Facts<'_>) -> Judged {
    let (mut pem, mut resolved, mut is_known) = (String::new(), Ok(()), true);
    for reference in &it.ca_certificate_refs {
        match authorities(&name.namespace, reference, facts) {
            Some(Ok(found)) => {
                pem += &found;
                pem.push('\n');
            }
            Some(Err(why)) => resolved = resolved.and(Err(why)),
            None => is_known = false,
        }
    }
    let made = match &resolved {
        _ if !is_known => Ok(waiting()),
        Err((_, what)) if pem.is_empty() => Err(("NoValidCACertificate", what.clone())),
        _ => verifying(it, &pem).map_err(|what| ("Invalid", what)),
    };
    let (backend, accepted) = match made {
        Ok(backend) => (backend, Ok(())),
        Err((reason, what)) => {
            let why = format!("BackendTLSPolicy {name}: {reason}: {what}");
            let refusing = |text: &str| Backend::refusing(text, &why);
            (
                only(&format!("policy\n{why}"), refusing),
                Err((reason, what)),
            )
        }
    };
    Judged {
        backend,
        says: is_known.then_some((accepted, resolved)),
    }
}

/// How TLS is spoken with endpoints that are verified by these authorities (PEM), or what is invalid.
fn verifying(it: &Validation, pem: &str) -> Result<Arc<Backend>, String> {
    let well_known = it.well_known_ca_certificates.as_deref();
    match (well_known.unwrap_or_default(), it.ca_certificate_refs.len()) {
        ("", 0) => return Err("caCertificateRefs names no ConfigMap".to_owned()),
        ("", _) => {}
        (name, _) => {
            return Err(format!(
                "wellKnownCACertificates {name} is not supported, expected caCertificateRefs"
            ));
        }
    }
    let host = &it.hostname;
    if host.starts_with('*') || !value::host(host) {
        return Err(format!("hostname {host:?} is no name such as shop.example"));
    }
    let names = it.subject_alt_names.iter().map(alternative);
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let whole = format!("policy\n{host}\n{names:?}\n{pem}");
    backend::one_of(&whole, || match names.is_empty() {
        true => Backend::verified(&whole, pem, host),
        false => Backend::with_names(&whole, pem, host, names),
    })
}

fn alternative(it: &AlternativeName) -> Result<SubjectName, String> {
    match (it.kind.as_str(), &it.hostname, &it.uri) {
        ("Hostname", Some(name), _) if value::host(name) => Ok(SubjectName::Host(name.clone())),
        ("URI", _, Some(uri)) if !uri.is_empty() => Ok(SubjectName::Uri(uri.clone())),
        (kind, ..) => Err(format!(
            "subjectAltNames: one of type {kind:?} is not valid, expected Hostname with a hostname or URI with a uri"
        )),
    }
}

/// The authorities in an object, or why it has none. `None`: it has not been read yet.
fn authorities(
    namespace: &str,
    it: &AuthorityRef,
    facts: &Facts<'_>,
) -> Option<Result<Arc<str>, (&'static str, String)>> {
    let Some(kind) = holder_kind(it) else {
        let what = format!(
            "caCertificateRefs: {} {:?} of group {:?} is no ConfigMap and no Secret",
            it.kind, it.name, it.group
        );
        return Some(Err(("InvalidKind", what)));
    };
    let invalid = |what: String| ("InvalidCACertificateRef", what);
    let Some(holder) = Holder::of(kind, namespace, &it.name) else {
        let what = format!("no object can have the name {:?}", it.name);
        return Some(Err(invalid(what)));
    };
    let found = (facts.authorities)(&holder)?;
    Some(found.map_err(|why| invalid(format!("{holder}: {why}"))))
}

fn holder_kind(it: &AuthorityRef) -> Option<HolderKind> {
    match (it.group.as_str(), it.kind.as_str()) {
        ("", "ConfigMap") => Some(HolderKind::ConfigMap),
        ("", "Secret") => Some(HolderKind::Secret),
        _ => None,
    }
}

/// The objects with authorities that an object names, if it is a policy.
pub fn holders(object: &GatewayObject) -> impl Iterator<Item = Holder> {
    let references = match &object.spec {
        Spec::Policy(spec) => spec.validation.ca_certificate_refs.as_slice(),
        _ => &[],
    };
    references
        .iter()
        .filter_map(|it| Holder::of(holder_kind(it)?, &object.name.namespace, &it.name))
}

fn waiting() -> Arc<Backend> {
    only("policy", Backend::waiting)
}

fn only(text: &str, make: impl Fn(&str) -> Backend) -> Arc<Backend> {
    backend::one_of(text, || Ok(make(text))).unwrap_or_else(|_| Arc::new(make(text)))
}

#[cfg(test)]
mod tests;
