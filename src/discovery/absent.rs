//! Configured namespaces that do not exist.
//!
//! A list of a namespace that does not exist is empty and in order, so a misspelt name would show
//! nowhere. Each configured namespace is asked for by its name at the start, and again as long as it
//! does not exist. A process without the right to ask (`get` on namespaces) knows of none.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;

use crate::cluster::api::Pauses;

/// The configured namespaces that do not exist, as far as they were asked for.
pub(super) struct Absent {
    client: Client,
    asked: FuturesUnordered<BoxFuture<'static, (String, bool)>>,
    names: BTreeSet<String>,
}

impl Absent {
    pub(super) fn new(client: Client, configured: &[String]) -> Self {
        let asked = FuturesUnordered::new();
        for name in configured {
            asked.push(exists(client.clone(), name.clone(), Duration::ZERO).boxed());
        }
        let names = BTreeSet::new();
        Self {
            client,
            asked,
            names,
        }
    }

    /// Waits for an answer that changes [`Self::names`]. Cancellation-safe.
    pub(super) async fn changed(&mut self) {
        loop {
            let Some((name, exists_now)) = self.asked.next().await else {
                return std::future::pending().await;
            };
            let changed = match exists_now {
                true => self.names.remove(&name),
                false => {
                    let again = exists(self.client.clone(), name.clone(), AGAIN);
                    self.asked.push(again.boxed());
                    self.names.insert(name)
                }
            };
            if changed {
                return;
            }
        }
    }

    pub(super) fn names(&self) -> &BTreeSet<String> {
        &self.names
    }
}

/// Whether a namespace exists, asked after a pause. Tries until there is an answer. A refusal counts
/// as yes.
async fn exists(client: Client, name: String, pause: Duration) -> (String, bool) {
    tokio::time::sleep(pause).await;
    let api: Api<Namespace> = Api::all(client);
    let mut pauses = Pauses::default();
    loop {
        match api.get_metadata(&name).await {
            Ok(_) => return (name, true),
            Err(kube::Error::Api(status)) if status.code == 404 => return (name, false),
            Err(kube::Error::Api(status)) if status.code == 403 => return (name, true),
            Err(_) => tokio::time::sleep(pauses.next().unwrap_or_default()).await,
        }
    }
}

/// The pause before an absent namespace is asked for again.
const AGAIN: Duration = Duration::from_secs(30);
