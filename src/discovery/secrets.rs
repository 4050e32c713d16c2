//! The Secrets that listeners name, watched at the API server one by one, so that the right to read
//! them can be given by name.
//!
//! Invariant: a Secret that cannot be read, or is gone, is reported and takes nothing away: what to
//! keep is decided by the receiver. These watches hold up nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::{self, Event};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::api::{Pauses, objects};
use crate::contract::name::ObjectName;
use crate::discovery::scope::Selector;
use crate::discovery::secret::{Found, certificate};
use crate::discovery::source::{InUse, Message};
use crate::discovery::watching::{Streaming, endless};
use crate::text::chain;

/// Watches the Secrets that are in use, until `out` is closed.
pub async fn run(
    client: Client,
    silence: Duration,
    mut in_use: watch::Receiver<InUse>,
    out: mpsc::Sender<Message>,
) {
    let mut watches = BTreeMap::new();
    loop {
        let wanted = in_use.borrow_and_update().secrets.clone();
        watches.retain(|name, _| wanted.contains(name));
        for name in wanted {
            let watch = || watch_one(client.clone(), silence, name.clone(), out.clone());
            let begin = || AbortOnDropHandle::new(tokio::spawn(watch()));
            watches.entry(name.clone()).or_insert_with(begin);
        }
        tokio::select! {
            () = out.closed() => return,
            changed = in_use.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

async fn watch_one(
    client: Client,
    silence: Duration,
    name: ObjectName,
    out: mpsc::Sender<Message>,
) {
    let api: Api<Secret> = objects(&client, Some(&name.namespace));
    let selector = Selector {
        fields: Some(format!("metadata.name={}", name.name)),
        ..Selector::default()
    };
    let events = endless(api, selector, Arc::<Streaming>::default(), silence);
    let mut events = std::pin::pin!(StreamBackoff::new(events, Pauses::default()));
    let (mut listed, mut exists) = (false, false);
    while let Some(event) = events.next().await {
        let found: Found = match event {
            Ok(Event::Init) => {
                exists = false;
                continue;
            }
            Ok(Event::InitApply(secret) | Event::Apply(secret)) => {
                exists = true;
                certificate(&secret)
            }
            Ok(Event::InitDone) => {
                listed = true;
                if exists {
                    continue;
                }
                Err(MISSING.to_owned())
            }
            Ok(Event::Delete(_)) => Err(MISSING.to_owned()),
            // What is known stays known, and the watch goes on from there without a word.
            Err(_) if listed => continue,
            Err(error) => Err(cure(&name, error)),
        };
        let secret = name.clone();
        if out
            .send(Message::Certificate { secret, found })
            .await
            .is_err()
        {
            return;
        }
    }
}

fn cure(name: &ObjectName, error: watcher::Error) -> String {
    let error = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
        other => return other.to_string(),
    };
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "it may not be read; grant get, list and watch for the Secret {} in namespace {}, as \
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
