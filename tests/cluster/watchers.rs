//! Watches an API server as many nodes do, in one process: for `make apiserver-scale`.
//!
//! `watchers KIND COUNT NAMESPACE` prints `ready` when each watcher knows all objects, and ends when
//! its standard input ends. KIND is `now` (this crate's own source), `node` and `none` (the same with
//! other values of `discovery.kubernetes.pods`), or `before` (the watches of commit 7ed7776: all
//! Services, and the slices and pods of the namespace, listed in pages by consistent reads).

use std::time::Duration;

use ebbtide::cluster::api::{connect, locate};
use ebbtide::config::settings::{Kubernetes, PodWatch};
use ebbtide::discovery::kubernetes::{self, Wanted};
use ebbtide::discovery::source::{InUse, Message};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::{mpsc, watch};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, count, namespace] = &arguments[..] else {
        anyhow::bail!("usage: watchers before|now|node|none COUNT NAMESPACE");
    };
    let (ready, mut all_ready) = mpsc::unbounded_channel();
    let count: usize = count.parse()?;
    for number in 0..count {
        let settings = Kubernetes {
            pods: match kind.as_str() {
                "node" => PodWatch::Node(format!("watcher-{number}")),
                "none" => PodWatch::None,
                _ => PodWatch::All,
            },
            ..Kubernetes::default()
        };
        let config = locate(&settings).await?;
        let server = config.cluster_url.to_string();
        let connected = connect(config)?;
        let ready = ready.clone();
        if kind == "before" {
            let (client, namespace) = (connected.0, namespace.clone());
            tokio::spawn(before(client, namespace, ready));
        } else {
            let (out, messages) = mpsc::channel(64);
            let (in_use, used) = watch::channel(InUse::default());
            let wanted = Wanted {
                settings,
                reader: Default::default(),
                knows_pod_ranges: false,
                in_use: used,
            };
            tokio::spawn(kubernetes::run(connected, server, wanted, out, |_| ()));
            tokio::spawn(read(messages, ready, in_use));
        }
    }
    for _ in 0..count {
        all_ready.recv().await;
    }
    println!("ready");
    let end = std::thread::spawn(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    while !end.is_finished() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Reads what a source sends. `_in_use` must live as long as the source.
async fn read(
    mut messages: mpsc::Receiver<Message>,
    ready: mpsc::UnboundedSender<()>,
    _in_use: watch::Sender<InUse>,
) {
    while let Some(message) = messages.recv().await {
        if matches!(message, Message::Synced) {
            let _ = ready.send(());
        }
    }
}

/// The watches of one node, as they were.
async fn before(client: Client, namespace: String, ready: mpsc::UnboundedSender<()>) {
    let config = watcher::Config::default;
    let services = watcher(Api::<Service>::all(client.clone()), config()).map(listed);
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), &namespace);
    let slices = watcher(slices, config()).map(listed);
    let pods = Api::<PartialObjectMeta<Pod>>::namespaced(client, &namespace);
    let pods = watcher(pods, config()).map(listed);
    let mut all = futures::stream::select_all([services.boxed(), slices.boxed(), pods.boxed()]);
    let mut lists = 0;
    while let Some(is_whole) = all.next().await {
        lists += usize::from(is_whole);
        if is_whole && lists == 3 {
            let _ = ready.send(());
        }
    }
}

fn listed<K>(event: watcher::Result<Event<K>>) -> bool {
    matches!(event, Ok(Event::InitDone))
}
