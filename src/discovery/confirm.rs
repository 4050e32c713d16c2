//! Whether a pod is deleted, asked of the API server: the gate may hear of a deletion before the watch
//! shows it.
//!
//! Invariant: a deletion is told to the control loop as the watch would tell it, before the answer. At
//! most `AT_ONCE` questions are asked at a time, and each is given up after a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::Api;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::cluster::api::{Clock, objects};
use crate::contract::name::ObjectName;
use crate::discovery::manifest;
use crate::discovery::object::{Change, Object};
use crate::discovery::source::Message;

/// A question: is this pod deleted?
pub struct Confirm {
    /// The pod.
    pub pod: ObjectName,
    /// Its UID.
    pub uid: String,
    /// Whether it leaves; dropped where the API server does not say.
    pub answer: oneshot::Sender<bool>,
}

/// Answers questions until their sender is gone. `is_watched`: a watch shows the pods of this node, and
/// will show their ends.
pub async fn run(
    (client, clock): (Client, Arc<Clock>),
    mut questions: mpsc::Receiver<Confirm>,
    is_watched: bool,
    out: mpsc::Sender<Message>,
) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(question) = questions.recv().await {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (client, clock, out) = (client.clone(), clock.clone(), out.clone());
        tokio::spawn(async move {
            let _place = place;
            let (pod, uid) = (&question.pod, &question.uid);
            let asked = ask((&client, &clock), pod, uid, is_watched, &out);
            if let Ok(Some(leaves)) = timeout(PATIENCE, asked).await {
                let _ = question.answer.send(leaves);
            }
        });
    }
}

async fn ask(
    (client, clock): (&Client, &Clock),
    pod: &ObjectName,
    uid: &str,
    is_watched: bool,
    out: &mpsc::Sender<Message>,
) -> Option<bool> {
    let api: Api<Pod> = objects(client, Some(&pod.namespace));
    let found = match api.get_metadata_opt(&pod.name).await {
        Ok(found) => found,
        Err(error) => {
            tracing::info!(%pod, %error, "gate: the API server does not say whether a pod is deleted");
            return None;
        }
    };
    let Some(found) = found.filter(|it| it.metadata.uid.as_deref() == Some(uid)) else {
        // It is gone, or another one has its name.
        return Some(true);
    };
    let Ok(object) = manifest::pod(&found.metadata, None, Some(clock.now())) else {
        return None;
    };
    if object.deletion.is_none() {
        return Some(false);
    }
    let mut changes = vec![Change::Apply(Object::Pod(object))];
    if !is_watched {
        // Nothing would show its end. What is known of its deletion stays.
        let namespace = pod.namespace.clone();
        changes.push(Change::Forget { namespace });
    }
    let received = Instant::now();
    out.send(Message::Changes { received, changes })
        .await
        .ok()?;
    Some(true)
}

/// Questions under way.
const AT_ONCE: usize = 16;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(1);
