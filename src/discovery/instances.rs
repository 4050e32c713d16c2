//! The instances of Ebbtide: the ready endpoints of their headless Service.
//!
//! Invariant: while the slices cannot be read, what was known of them stays. This watch holds up
//! nothing else.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::Api;
use kube::runtime::utils::StreamBackoff;
use tokio::sync::watch;

use crate::cluster::api::{Pauses, objects};
use crate::contract::name::ObjectName;
use crate::discovery::scope::Selector;
use crate::discovery::watching::{Shown, Streaming, endless};

/// Watches the slices of the Service until nobody reads `out`.
pub async fn run(
    client: Client,
    silence: Duration,
    service: ObjectName,
    out: watch::Sender<BTreeSet<IpAddr>>,
) {
    let api: Api<EndpointSlice> = objects(&client, Some(&service.namespace));
    let selector = Selector {
        labels: Some(format!("kubernetes.io/service-name={}", service.name)),
        ..Selector::default()
    };
    let events = endless(api, selector, Arc::<Streaming>::default(), silence);
    let mut events = std::pin::pin!(StreamBackoff::new(events, Pauses::default()));
    let (mut slices, mut failed) = (Shown::default(), false);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = out.closed() => return,
        };
        match event {
            Some(Ok(event)) => {
                if !slices.take(event, ready) {
                    continue;
                }
            }
            Some(Err(error)) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(%service, %error, "gate.service: the other instances cannot be read");
                }
                continue;
            }
            None => return,
        }
        failed = false;
        let all: BTreeSet<IpAddr> = slices.values().flatten().copied().collect();
        out.send_if_modified(|before| {
            let is_new = *before != all;
            *before = all;
            is_new
        });
    }
}

/// The addresses of the slice's ready endpoints.
fn ready(slice: &EndpointSlice) -> Vec<IpAddr> {
    let is_ready = |ready: Option<bool>| ready.unwrap_or(true);
    let endpoints = slice.endpoints.iter().filter(|it| {
        let conditions = it.conditions.as_ref();
        is_ready(conditions.and_then(|it| it.ready))
    });
    endpoints
        .filter_map(|it| it.addresses.first()?.parse().ok())
        .collect()
}
