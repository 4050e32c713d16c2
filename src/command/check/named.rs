//! What `ebbtide check` reads one by one, as a running proxy does: the Secrets that listeners, Ingress
//! objects and Gateways name, and the Secrets and ConfigMaps that Services and policies name for the
//! authorities of their endpoints' certificates.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource};

use crate::cluster::api;
use crate::cluster::rights::{self, Right};
use crate::command::check::seen::Seen;
use crate::command::check::standards;
use crate::config::backend::holder;
use crate::config::settings::Config;
use crate::contract::authorities::HolderKind;
use crate::contract::name::ObjectName;
use crate::discovery::object::Object;
use crate::discovery::secret::{certificate, in_config_map, in_secret};
use crate::discovery::secrets::MISSING;
use crate::routing::classes::Classes;
use crate::routing::gateway::policies;

/// Reads what listeners and the objects that were seen name.
pub(super) async fn read(client: &Client, config: &Config, seen: &mut Seen) -> kube::Result<()> {
    let mut secrets = config.named_secrets();
    if let Some(ingress) = &config.ingress {
        let classes = Classes::of(ingress, seen.classes());
        let ours = seen.ingresses().filter(|it| classes.have(it));
        secrets.extend(ours.flat_map(|it| it.secrets.iter().cloned()));
    }
    if let Some(gateway) = &config.gateway {
        secrets.extend(standards::secrets(&gateway.controller, seen.gateways()));
    }
    let each = stream::iter(secrets).map(async |name| {
        let found = one::<Secret>(client, "secrets", &name).await?;
        let found = found.unwrap_or_else(|| Err(MISSING.to_owned()));
        Ok::<_, kube::Error>((name, found.and_then(|it| certificate(&it))))
    });
    let read: Vec<_> = each.buffer_unordered(AT_ONCE).try_collect().await?;
    seen.contents.certificates.extend(read);
    let mut named = BTreeSet::new();
    for object in &seen.objects {
        match object {
            Object::Service(it) => named.extend(holder(&it.annotations, &it.name.namespace)),
            Object::Gateway(it) => named.extend(policies::holders(it)),
            _ => {}
        }
    }
    for holder in named {
        let (kind, name) = (holder.kind, &holder.name);
        let found = match kind {
            HolderKind::Secret => {
                let found = one::<Secret>(client, "secrets", name).await?;
                found.map(|it| it.and_then(|it| in_secret(&it)))
            }
            HolderKind::ConfigMap => {
                let found = one::<ConfigMap>(client, "configmaps", name).await?;
                found.map(|it| it.and_then(|it| in_config_map(&it)))
            }
        };
        let found = found.unwrap_or_else(|| Err(format!("there is no such {kind:?}")));
        seen.contents.authorities.insert(holder, found);
    }
    Ok(())
}

/// How many Secrets are read at once. A cluster may have one for each Ingress.
const AT_ONCE: usize = 16;

/// An object, if it exists, or which right is missing to read it.
async fn one<K>(
    client: &Client,
    resource: &'static str,
    name: &ObjectName,
) -> kube::Result<Option<Result<K, String>>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug,
    K: serde::de::DeserializeOwned,
{
    let right = Right::new("list watch", resource, Some(&name.namespace)).of(&name.name);
    let missing = rights::missing(client, vec![right]).await?;
    if let Some(right) = missing.first() {
        let refused = format!("RBAC: may not {right}; grant it as deploy/README.md shows");
        return Ok(Some(Err(refused)));
    }
    let api: Api<K> = api::objects(client, Some(&name.namespace));
    let by_name = ListParams::default().fields(&format!("metadata.name={}", name.name));
    Ok(api.list(&by_name).await?.items.pop().map(Ok))
}
