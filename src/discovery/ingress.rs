//! Reads a networking.k8s.io/v1 Ingress, and an IngressClass
//! (<https://kubernetes.io/docs/concepts/services-networking/ingress/>).
//!
//! Invariant: what is not served is named, and takes nothing from the rest of the object.

use k8s_openapi::api::networking::v1::{
    Ingress, IngressBackend, IngressClass, IngressSpec, IngressTLS,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

use crate::config::value;
use crate::contract::name::ObjectName;
use crate::contract::policy::PortRef;
use crate::contract::route::Rule;
use crate::discovery::invalid::{Invalid, object_name, port_number};
use crate::discovery::object::{BackendRef, ClassObject, IngressObject, Published};

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
        if read.is_none() && found.resource.is_none() {
            return Err(Invalid {
                field: me,
                message: "expected service.name and service.port".to_owned(),
            });
        }
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
                ..Rule::default()
            };
            let served = backend(&found.backend, format!("{me}.backend"))?;
            rules.extend(served.map(|served| (rule, served)));
        }
    }
    let annotations = metadata.annotations.iter().flatten();
    let nginx = annotations.filter_map(|(key, value)| {
        let key = key.strip_prefix("nginx.ingress.kubernetes.io/")?;
        Some((key.to_owned(), value.clone()))
    });
    let default = spec.default_backend.as_ref();
    let default = default.map(|found| backend(found, "spec.defaultBackend".to_owned()));
    let default = default.transpose()?.flatten();
    let secrets = spec.tls.iter().flatten();
    let secrets = secrets.filter_map(|tls| tls.secret_name.as_deref());
    let secrets = secrets.filter(|it| !it.is_empty());
    Ok(IngressObject {
        uid: metadata.uid.clone(),
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
        tls_hosts: spec.tls.iter().flatten().flat_map(tls_hosts).collect(),
        nginx: nginx.collect(),
        unserved,
        published: published(ingress),
        name,
    })
}

fn tls_hosts(tls: &IngressTLS) -> Vec<String> {
    match tls.hosts.as_deref() {
        None | Some([]) => vec![String::new()],
        Some(hosts) => hosts.iter().map(|it| it.to_ascii_lowercase()).collect(),
    }
}

/// Reads an IngressClass.
///
/// # Errors
/// It has no name.
pub fn class(class: &IngressClass) -> Result<ClassObject, Invalid> {
    let name = class.metadata.name.as_deref().unwrap_or_default();
    if !value::subdomain(name) {
        return Err(Invalid {
            field: "metadata.name".to_owned(),
            message: format!("expected a name such as ebbtide, found {name:?}"),
        });
    }
    let annotations = class.metadata.annotations.as_ref();
    let is_default = annotations.and_then(|all| all.get(DEFAULT_CLASS));
    let controller = class.spec.as_ref().and_then(|it| it.controller.clone());
    Ok(ClassObject {
        name: ObjectName::new("", name),
        controller: controller.unwrap_or_default(),
        is_default: is_default.is_some_and(|it| it == "true"),
    })
}

/// What its status says, and who wrote that.
fn published(ingress: &Ingress) -> Published {
    let status = ingress.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let all = balancer.and_then(|it| it.ingress.as_ref());
    let all = all.into_iter().flatten();
    let wrote = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref();
        fields.is_some_and(|it| it.0.pointer(ADDRESSES).is_some())
    };
    let managers = ingress.metadata.managed_fields.iter().flatten();
    let managers = managers.filter(wrote).filter_map(|it| it.manager.clone());
    Published {
        addresses: all
            .filter_map(|it| it.ip.clone().or_else(|| it.hostname.clone()))
            .collect(),
        managers: managers.collect(),
    }
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

/// In `fieldsV1` of an entry of `managedFields`.
const ADDRESSES: &str = "/f:status/f:loadBalancer/f:ingress";
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(metadata: Value, spec: Value) -> Result<IngressObject, String> {
        let mut object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"namespace": "web", "name": "all"}, "spec": spec,
        });
        for (key, value) in metadata.as_object().unwrap() {
            object["metadata"][key] = value.clone();
        }
        let object: Ingress = serde_json::from_value(object).unwrap();
        ingress(&object).map_err(|error| error.to_string())
    }

    fn rules(host: &str, path: Value) -> Value {
        json!({"rules": [{"host": host, "http": {"paths": [path]}}]})
    }

    fn path(path: &str, kind: &str, service: Value) -> Value {
        json!({"path": path, "pathType": kind, "backend": {"service": service}})
    }

    #[test]
    fn rules_classes_and_secrets_are_read() {
        let named = json!({"name": "shop", "port": {"name": "http"}});
        let mut spec = rules("A.example", path("/a/", "Exact", named));
        let anywhere = json!({"pathType": "ImplementationSpecific", "backend": {"service": {
            "name": "rest", "port": {"number": 8080},
        }}});
        spec["rules"]
            .as_array_mut()
            .unwrap()
            .push(json!({"http": {"paths": [anywhere]}}));
        spec["tls"] = json!([{"secretName": "a-tls", "hosts": ["a.example"]}, {"hosts": ["b"]}]);
        let old = json!({"annotations": {"kubernetes.io/ingress.class": "old"},
            "creationTimestamp": "1970-01-01T00:01:00Z"});
        let read = |spec| read(old.clone(), spec).unwrap();
        let found = read(spec.clone());
        let backend = |name: &str, port| BackendRef {
            service: ObjectName::new("web", name),
            port,
        };
        let rule = |host: Option<&str>, path: &str, exact| Rule {
            host: host.map(str::to_owned),
            path: path.to_owned(),
            exact,
            ..Rule::default()
        };
        let expected = [
            (
                rule(Some("a.example"), "/a/", true),
                backend("shop", PortRef::Name("http".to_owned())),
            ),
            (
                rule(None, "/", false),
                backend("rest", PortRef::Number(8080)),
            ),
        ];
        assert_eq!(found.rules, expected);
        assert_eq!(found.secrets, [ObjectName::new("web", "a-tls")]);
        assert_eq!((found.class.as_deref(), found.created), (Some("old"), 60));
        spec["ingressClassName"] = json!("new");
        assert_eq!(read(spec).class.as_deref(), Some("new"));
    }

    #[test]
    fn what_the_api_server_would_refuse_is_named_with_its_field() {
        let shop = || json!({"name": "shop", "port": {"number": 80}});
        let at = "spec.rules[0].http.paths[0]";
        for (spec, error) in [
            (
                rules("a b", path("/", "Prefix", shop())),
                "spec.rules[0].host: expected a name such as shop.example.com, found \"a b\"".to_owned(),
            ),
            (
                rules("a", path("a", "Prefix", shop())),
                format!("{at}.path: expected a path that begins with /, found \"a\""),
            ),
            (
                rules("a", path("/", "Regex", shop())),
                format!("{at}.pathType: expected Exact, Prefix or ImplementationSpecific, found \"Regex\""),
            ),
            (
                rules("a", path("/", "Prefix", json!({"name": "shop"}))),
                format!("{at}.backend.service.port: expected either a name or a number"),
            ),
            (
                rules("a", path("/", "Prefix", json!({"name": "x/y", "port": {"number": 80}}))),
                format!("{at}.backend.service.name: expected the name of a Service, found \"x/y\""),
            ),
            (
                json!({"defaultBackend": {"service": {"name": "a", "port": {"number": 70_000}}}}),
                "spec.defaultBackend.service.port.number: expected a port from 1 to 65535, found 70000"
                    .to_owned(),
            ),
        ] {
            assert_eq!(read(json!({}), spec), Err(error));
        }
    }
}
