//! The addresses of a Service's load balancer, as its status has them: what the status of Ingress
//! objects is to say, where the configuration names a Service for that.
//!
//! Invariant: while the Service cannot be read, what was known of it stays. This watch holds up
//! nothing else.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::Api;
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::Event;
use tokio::sync::mpsc;

use crate::cluster::api::{Pauses, objects};
use crate::contract::name::ObjectName;
use crate::discovery::scope::Selector;
use crate::discovery::source::Message;
use crate::discovery::watching::{Shown, Streaming, endless};

/// Watches the Service until `out` is closed. A Service that is missing has no address.
pub async fn run(
    client: Client,
    silence: Duration,
    service: ObjectName,
    out: mpsc::Sender<Message>,
) {
    let api: Api<Service> = objects(&client, Some(&service.namespace));
    let selector = Selector {
        fields: Some(format!("metadata.name={}", service.name)),
        ..Selector::default()
    };
    let events = endless(api, selector, Arc::<Streaming>::default(), silence);
    let mut events = std::pin::pin!(StreamBackoff::new(events, Pauses::default()));
    let (mut shown, mut failed) = (Shown::default(), false);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = out.closed() => return,
        };
        match event {
            Some(Ok(event)) => {
                let is_list = matches!(event, Event::InitDone);
                if !shown.take(event, addresses) {
                    continue;
                }
                if is_list && shown.values().next().is_none() {
                    tracing::warn!(%service, "ingress.publishService: there is no such Service");
                }
            }
            Some(Err(error)) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(%service, %error, "ingress.publishService cannot be read");
                }
                continue;
            }
            None => return,
        }
        failed = false;
        let addresses = shown.values().flatten().cloned().collect();
        if out.send(Message::Published(addresses)).await.is_err() {
            return;
        }
    }
}

fn addresses(service: &Service) -> Vec<String> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let all = balancer.and_then(|it| it.ingress.as_ref());
    let all = all.into_iter().flatten();
    all.filter_map(|it| it.ip.clone().or_else(|| it.hostname.clone()))
        .collect()
}
