//! The Secrets that listeners and Services name, and the ConfigMaps that Services name, watched at the
//! API server one by one, so that the right to read them can be given by name.
//!
//! Invariant: an object that cannot be read, or is gone, is reported and takes nothing away: what to
//! keep is decided by the receiver. These watches hold up nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Api;
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::api::{Pauses, objects};
use crate::contract::authorities::{Holder, HolderKind};
use crate::contract::name::ObjectName;
use crate::discovery::scope::Selector;
use crate::discovery::secret::{certificate, in_config_map, in_secret};
use crate::discovery::source::{InUse, Message};
use crate::discovery::watching::{Streaming, endless};
use crate::text::chain;

/// Watches the objects that are in use, until `out` is closed.
pub async fn run(
    client: Client,
    silence: Duration,
    mut in_use: watch::Receiver<InUse>,
    out: mpsc::Sender<Message>,
) {
    let (mut of_secrets, mut of_holders) = (BTreeMap::new(), BTreeMap::new());
    loop {
        let (secrets, holders) = {
            let in_use = in_use.borrow_and_update();
            (in_use.secrets.clone(), in_use.holders.clone())
        };
        of_secrets.retain(|name, _| secrets.contains(name));
        for name in secrets {
            let one = One::new(&client, silence, &name, &out);
            let begin = || AbortOnDropHandle::new(tokio::spawn(one.certificate()));
            of_secrets.entry(name).or_insert_with(begin);
        }
        let gone = of_holders.extract_if(.., |holder, _| !holders.contains(holder));
        for (holder, watch) in gone.collect::<Vec<_>>() {
            drop::<AbortOnDropHandle<()>>(watch);
            let found = None;
            if out
                .send(Message::Authorities { holder, found })
                .await
                .is_err()
            {
                return;
            }
        }
        for holder in holders {
            let one = One::new(&client, silence, &holder.name, &out);
            let begin = || AbortOnDropHandle::new(tokio::spawn(one.authorities(holder.kind)));
            of_holders.entry(holder.clone()).or_insert_with(begin);
        }
        tokio::select! {
            () = out.closed() => return,
            changed = in_use.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// The watch of one object.
struct One {
    client: Client,
    silence: Duration,
    name: ObjectName,
    out: mpsc::Sender<Message>,
}

impl One {
    fn new(
        client: &Client,
        silence: Duration,
        name: &ObjectName,
        out: &mpsc::Sender<Message>,
    ) -> Self {
        Self {
            client: client.clone(),
            silence,
            name: name.clone(),
            out: out.clone(),
        }
    }

    async fn certificate(self) {
        let secret = self.name.clone();
        self.watch::<Secret>("Secret", |found| Message::Certificate {
            secret: secret.clone(),
            found: found.and_then(|it| certificate(&it)),
        })
        .await;
    }

    async fn authorities(self, kind: HolderKind) {
        let name = self.name.clone();
        let message = |found| Message::Authorities {
            holder: Holder {
                kind,
                name: name.clone(),
            },
            found: Some(found),
        };
        match kind {
            HolderKind::Secret => {
                let told = |found: Result<Secret, _>| message(found.and_then(|it| in_secret(&it)));
                self.watch("Secret", told).await
            }
            HolderKind::ConfigMap => {
                let told =
                    |found: Result<ConfigMap, _>| message(found.and_then(|it| in_config_map(&it)));
                self.watch("ConfigMap", told).await
            }
        }
    }

    /// Sends what `message` makes of the object, or of why it cannot be read, now and at each change.
    async fn watch<K>(self, kind: &str, message: impl Fn(Result<K, String>) -> Message)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let api: Api<K> = objects(&self.client, Some(&self.name.namespace));
        let selector = Selector {
            fields: Some(format!("metadata.name={}", self.name.name)),
            ..Selector::default()
        };
        let events = endless(api, selector, Arc::<Streaming>::default(), self.silence);
        let mut events = std::pin::pin!(StreamBackoff::new(events, Pauses::default()));
        let (mut listed, mut exists) = (false, false);
        let missing = || Err(format!("there is no such {kind}"));
        while let Some(event) = events.next().await {
            let told = match event {
                Ok(Event::Init) => {
                    exists = false;
                    continue;
                }
                Ok(Event::InitApply(object) | Event::Apply(object)) => {
                    exists = true;
                    message(Ok(object))
                }
                Ok(Event::InitDone) => {
                    listed = true;
                    if exists {
                        continue;
                    }
                    message(missing())
                }
                Ok(Event::Delete(_)) => message(missing()),
                // What is known stays known, and the watch goes on from there without a word.
                Err(_) if listed => continue,
                Err(error) => message(Err(cure(kind, &self.name, error))),
            };
            if self.out.send(told).await.is_err() {
                return;
            }
        }
    }
}

fn cure(kind: &str, name: &ObjectName, error: watcher::Error) -> String {
    let error = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
        other => return other.to_string(),
    };
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "it may not be read; grant get, list and watch for the {kind} {} in namespace {}, as \
             deploy/README.md shows",
            name.name, name.namespace
        ),
        // Such an error may hold what it could not read.
        kube::Error::SerdeError(_) => "the API server's answer cannot be read".to_owned(),
        other => chain(&other),
    }
}

/// What is said of a Secret that does not exist (any more).
pub const MISSING: &str = "there is no such Secret";
