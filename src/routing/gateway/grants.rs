//! Who may refer to objects of other namespaces.
//!
//! Source: <https://gateway-api.sigs.k8s.io/api-types/referencegrant/>.

use std::collections::BTreeMap;

use crate::contract::name::ObjectName;
use crate::discovery::gateway::{GatewayKind, GatewayObject, GrantSpec, Spec};

/// All grants, by their namespace.
#[derive(Debug, Default)]
pub struct Grants<'a>(BTreeMap<&'a str, Vec<&'a GrantSpec>>);

impl<'a> Grants<'a> {
    /// Those among these objects.
    pub fn of(objects: impl Iterator<Item = &'a GatewayObject>) -> Self {
        let mut grants = Self::default();
        for object in objects {
            if let Spec::Grant(grant) = &object.spec {
                grants
                    .0
                    .entry(&object.name.namespace)
                    .or_default()
                    .push(grant);
            }
        }
        grants
    }

    /// Whether an object of this kind, in this namespace, may refer to a core object.
    pub fn permit(&self, from: GatewayKind, namespace: &str, kind: &str, to: &ObjectName) -> bool {
        if namespace == to.namespace {
            return true;
        }
        let grants = self.0.get(to.namespace.as_str()).into_iter().flatten();
        let mut fit = grants.filter(|grant| {
            let mut from_all = grant.from.iter();
            let mut to_all = grant.to.iter();
            from_all.any(|it| {
                it.group == GROUP && it.kind == from.names().0 && it.namespace == namespace
            }) && to_all.any(|it| {
                let is_named = it.name.as_ref().is_none_or(|name| *name == to.name);
                it.group.is_empty() && it.kind == kind && is_named
            })
        });
        fit.next().is_some()
    }
}

/// The group of the Gateway API.
pub const GROUP: &str = "gateway.networking.k8s.io";
