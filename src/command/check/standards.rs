//! What `ebbtide check` reads of the Gateway API from an API server, and the rights that this needs.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::api::{Api, DynamicObject, ListParams};
use kube::{Client, ResourceExt};

use crate::cluster::rights::Right;
use crate::command::check::seen::Seen;
use crate::contract::name::ObjectName;
use crate::discovery::gateway::{self, GatewayKind, GatewayObject, Spec};
use crate::discovery::object::Object;

/// What serving Gateways needs. `scopes`: the namespaces that are watched (`None`: all).
pub(super) fn rights(scopes: &[Option<&str>]) -> Vec<Right> {
    let mut wanted = Vec::new();
    for kind in GatewayKind::ALL {
        let resource = kind.resource();
        for scope in scopes_of(kind, scopes) {
            let right = |verbs, sub: &str| {
                let name = format!("{}{sub}.{}", resource.plural, resource.group);
                Right::new(verbs, name.trim_end_matches('.'), *scope)
            };
            wanted.push(right("list watch", ""));
            if !matches!(kind, GatewayKind::Namespace | GatewayKind::ReferenceGrant) {
                wanted.push(right("patch", "/status"));
            }
        }
    }
    wanted
}

/// Reads the objects of all kinds, except of those whose plural is in `refused`.
pub(super) async fn read(
    client: &Client,
    scopes: &[Option<&str>],
    refused: &BTreeSet<String>,
    seen: &mut Seen,
) -> kube::Result<()> {
    let mut absent = Vec::new();
    for kind in GatewayKind::ALL {
        let (name, plural) = kind.names();
        if refused.contains(plural) {
            continue;
        }
        let resource = kind.resource();
        for scope in scopes_of(kind, scopes) {
            let api: Api<DynamicObject> = match scope {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            let all = match api.list(&ListParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    absent.push(name);
                    break;
                }
                all => all?.items,
            };
            let read = |it: &DynamicObject| {
                let object = gateway::read(kind, &it.metadata, &it.data)?;
                Ok(Object::Gateway(Arc::new(object)))
            };
            seen.take(name, all.iter().map(|it| (it.name_any(), read(it))));
        }
    }
    if !absent.is_empty() {
        seen.warnings.push(format!(
            "the API server has no {} of gateway.networking.k8s.io/v1: none is served until the kind is installed \
             (https://gateway-api.sigs.k8s.io/guides/)",
            absent.join(", ")
        ));
    }
    Ok(())
}

/// The Secrets that the listeners of a controller's Gateways name.
pub(super) fn secrets<'a>(
    controller: &str,
    objects: impl Iterator<Item = &'a GatewayObject> + Clone,
) -> BTreeSet<ObjectName> {
    let classes = objects.clone().filter_map(|it| match &it.spec {
        Spec::Class(class) if class.controller_name == controller => Some(&*it.name.name),
        _ => None,
    });
    let classes: BTreeSet<_> = classes.collect();
    let mut secrets = BTreeSet::new();
    for object in objects {
        let Spec::Gateway(spec) = &object.spec else {
            continue;
        };
        if !classes.contains(&*spec.gateway_class_name) {
            continue;
        }
        let ends = spec.listeners.iter().filter_map(|it| it.tls.as_ref());
        for to in ends.flat_map(|it| &it.certificate_refs) {
            if to.kind.as_deref().is_none_or(|kind| kind == "Secret") {
                let namespace = to.namespace.as_ref().unwrap_or(&object.name.namespace);
                secrets.insert(ObjectName::new(&**namespace, &*to.name));
            }
        }
    }
    secrets
}

/// The namespaces of the Services that routes lead to.
pub(super) fn namespaces(object: &GatewayObject) -> impl Iterator<Item = &String> {
    let rules = match &object.spec {
        Spec::Route(spec) => &spec.rules[..],
        _ => &[],
    };
    let backends = rules.iter().flat_map(|rule| &rule.backend_refs);
    backends.map(|it| it.to.namespace.as_ref().unwrap_or(&object.name.namespace))
}

fn scopes_of<'a>(kind: GatewayKind, scopes: &'a [Option<&'a str>]) -> &'a [Option<&'a str>] {
    match kind.is_of_the_cluster() {
        true => &[None],
        false => scopes,
    }
}
