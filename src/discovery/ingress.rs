//! Reads a networking.k8s.io/v1 Ingress
//! (<https://kubernetes.io/docs/concepts/services-networking/ingress/>).
//!
//! Invariant: what is not served is named, and takes nothing from the rest of the object.

use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressSpec};

use crate::config::value;
use crate::contract::name::ObjectName;
use crate::contract::policy::PortRef;
use crate::contract::route::Rule;
use crate::discovery::invalid::{Invalid, object_name, port_number};
use crate::discovery::object::{BackendRef, IngressObject};

/// Reads an Ingress.
///
/// # Errors
/// The API server would refuse a field.
pub fn ingress(ingress: &Ingress) -> Result<IngressObject, Invalid> {
    let (name, metadata) = (object_name(&ingress.metadata)?, &ingress.metadata);
    let default = IngressSpec::default();
    let spec = ingress.spec.as_ref().unwrap_or(&default);
    let annotation = || {
        let all = metadata.annotations.as_ref()?;
        all.get("kubernetes.io/ingress.class")
    };
    let (mut rules, mut unserved) = (Vec::new(), Vec::new());
    let mut backend = |found: &IngressBackend, me: String| {
        let read = backend(found, &name, &me)?;
        if read.is_none() {
            unserved.push(format!("{me}.resource"));
        }
        Ok(read)
    };
    for (i, rule) in spec.rules.iter().flatten().enumerate() {
        let me = format!("spec.rules[{i}]");
        let host = rule.host.as_deref().filter(|host| !host.is_empty());
        if let Some(host) = host.filter(|host| !value::host(host)) {
            return Err(Invalid {
                field: format!("{me}.host"),
                message: format!("expected a name such as shop.example.com, found {host:?}"),
            });
        }
        let paths = rule.http.iter().flat_map(|http| &http.paths);
        for (j, found) in paths.enumerate() {
            let me = format!("{me}.http.paths[{j}]");
            let (path, exact) = path(found.path.as_deref(), &found.path_type, &me)?;
            let rule = Rule {
                host: host.map(str::to_ascii_lowercase),
                path,
                exact,
            };
            let served = backend(&found.backend, format!("{me}.backend"))?;
            rules.extend(served.map(|served| (rule, served)));
        }
    }
    let default = spec.default_backend.as_ref();
    let default = default.map(|found| backend(found, "spec.defaultBackend".to_owned()));
    let default = default.transpose()?.flatten();
    let secrets = spec.tls.iter().flatten();
    let secrets = secrets.filter_map(|tls| tls.secret_name.as_deref());
    let secrets = secrets.filter(|it| !it.is_empty());
    Ok(IngressObject {
        class: spec
            .ingress_class_name
            .as_ref()
            .or_else(annotation)
            .cloned(),
        created: metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        rules,
        default,
        secrets: secrets
            .map(|it| ObjectName::new(&*name.namespace, it))
            .collect(),
        unserved,
        name,
    })
}

/// Reads a path, and whether it is for itself alone. What `ImplementationSpecific` means is ours to
/// say: the same as `Prefix`.
fn path(path: Option<&str>, kind: &str, me: &str) -> Result<(String, bool), Invalid> {
    let exact = match kind {
        "Exact" => true,
        "Prefix" | "ImplementationSpecific" => false,
        other => {
            return Err(Invalid {
                field: format!("{me}.pathType"),
                message: format!(
                    "expected Exact, Prefix or ImplementationSpecific, found {other:?}"
                ),
            });
        }
    };
    match path {
        None | Some("") => Ok(("/".to_owned(), false)),
        Some(path) if path.starts_with('/') => Ok((path.to_owned(), exact)),
        Some(path) => Err(Invalid {
            field: format!("{me}.path"),
            message: format!("expected a path that begins with /, found {path:?}"),
        }),
    }
}

/// Reads what serves a rule. `None`: it is no Service.
fn backend(
    found: &IngressBackend,
    of: &ObjectName,
    me: &str,
) -> Result<Option<BackendRef>, Invalid> {
    let Some(service) = &found.service else {
        return Ok(None);
    };
    let at = |what: &str| format!("{me}.service.{what}");
    let port = service.port.as_ref();
    let number = port.and_then(|port| port.number).filter(|it| *it != 0);
    let name = port.and_then(|port| port.name.as_deref());
    let port = match (number, name.filter(|it| !it.is_empty())) {
        (Some(number), None) => PortRef::Number(port_number(number, || at("port.number"))?),
        (None, Some(name)) => PortRef::Name(name.to_owned()),
        _ => {
            return Err(Invalid {
                field: at("port"),
                message: "expected either a name or a number".to_owned(),
            });
        }
    };
    if !value::label(&service.name) {
        return Err(Invalid {
            field: at("name"),
            message: format!("expected the name of a Service, found {:?}", service.name),
        });
    }
    Ok(Some(BackendRef {
        service: ObjectName::new(&*of.namespace, &*service.name),
        port,
    }))
}
