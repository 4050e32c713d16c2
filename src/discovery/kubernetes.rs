//! The API server as the source of truth (contract 1.10, 2.1, 2.3 and 2.7).
//!
//! Which watches there are is decided in `scope.rs`, and which of them shows an object in `held.rs`.
//! Here they are started, ended, and turned into messages.
//!
//! Invariant: a list takes effect as a whole. The objects of a list are kept back until the list is
//! complete. Then they replace the objects of the list before it. The first slices of a namespace
//! wait for its first pods, so that a pod that already terminates is not taken for one that stays.
//! A namespace that cannot be listed holds up only itself: after `pods_patience` its slices are used
//! without its pods, and after `patience` without its slices its Services are not served (`standing.rs`).
//! A watch that fails leaves its last state in force, and is a problem until the API server
//! answers it again. It is resumed from its position, or after a 410 from a new list.
//!
//! Nothing is merged here, and no resource version is read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::OptionFuture;
use futures::stream::{FuturesUnordered, SelectAll};
use hyper::Uri;
use kube::Client;
use tokio::sync::{mpsc, watch};

use crate::cluster::api::Clock;
use crate::cluster::node::Looks;
use crate::config::settings;
use crate::discovery::absent::Absent;
use crate::discovery::held::Held;
use crate::discovery::manifest::Reader;
use crate::discovery::restored::SavedTable;
use crate::discovery::scope::AllPods;
use crate::discovery::source::{InUse, Message, Standing};
use crate::discovery::watches::Watches;

/// What to watch.
pub struct Wanted {
    /// The configuration of the source.
    pub settings: settings::Kubernetes,
    /// This node, and which Services are claimed.
    pub reader: Reader,
    /// Whether the configuration has the ranges of pods.
    pub knows_pod_ranges: bool,
    /// What the table uses. Each new value is a report of the table as it is then.
    pub in_use: watch::Receiver<InUse>,
}

/// Sends the objects that exist, then [`Message::Synced`], then every change, until `out` is
/// closed.
///
/// The first argument is what [`crate::cluster::api::connect`] returns, the second the address of
/// the API server. `errors` counts by kind: `list`, `watch`, `gone`, `object`. Cancellation-safe: a
/// new call begins with a list.
pub async fn run(
    (client, clock, mut answered): (Client, Arc<Clock>, mpsc::UnboundedReceiver<String>),
    server: String,
    wanted: Wanted,
    out: mpsc::Sender<Message>,
    errors: impl Fn(&'static str),
) {
    let Wanted {
        settings,
        reader,
        knows_pod_ranges,
        mut in_use,
    } = wanted;
    let now = Instant::now();
    let mut absent = Absent::new(client.clone(), &settings.namespaces);
    let node = reader.node.clone();
    let has_zone = node.zone.is_some();
    let asks = !has_zone || !knows_pod_ranges;
    let name = node.name.filter(|_| asks);
    let mut looks = name.map(|name| Looks::at(client.clone(), name));
    let mut table = SavedTable::open(&settings, server.clone());
    // Nodes that serve already come to the API server one after the other. One that serves nothing
    // does not wait.
    let jitter = table
        .read_recently()
        .then(|| JITTER.mul_f64(fastrand::f64()));
    let mut watches = Watches {
        client,
        clock,
        started: now,
        settings,
        reader,
        server: ip_of(&server),
        streaming: Arc::default(),
        streams: SelectAll::new().ready_chunks(CHUNK),
        asked: FuturesUnordered::new(),
        doubtful: BTreeSet::new(),
        sought: BTreeSet::new(),
        states: BTreeMap::new(),
        number: 0,
        held: Held::default(),
        claimed: BTreeSet::new(),
        ever_claimed: false,
        let_go: BTreeMap::new(),
        in_use: in_use.borrow_and_update().clone(),
        namespaces: BTreeMap::new(),
        kept_back: BTreeMap::new(),
        leaving: BTreeMap::new(),
        all_pods: AllPods::Unneeded,
        uninstalled: BTreeMap::new(),
        is_stale: true,
        pods_wait: false,
        problems: Vec::new(),
        synced: false,
        saved_at: None,
        begins: now,
        absent: BTreeSet::new(),
        standing: Standing::default(),
    };
    let (mut changes, mut received) = (Vec::new(), now);
    if jitter.is_some()
        && let Some(saved) = table.take()
    {
        watches.take_saved(saved, &mut changes);
    }
    watches.begins = now + jitter.unwrap_or_default();
    loop {
        watches.adjust(&mut changes);
        watches.release_late(Instant::now(), &mut changes);
        watches.remove_left(Instant::now(), &mut changes);
        watches.ask_for_uninstalled(Instant::now());
        watches.retire_saved(&mut changes);
        if watches.needs_saved()
            && let Some(saved) = table.take()
        {
            watches.take_saved(saved, &mut changes);
            continue;
        }
        table.note(&changes, &watches);
        if !changes.is_empty() {
            let changes = std::mem::take(&mut changes);
            if out
                .send(Message::Changes { received, changes })
                .await
                .is_err()
            {
                return;
            }
        }
        for message in watches.report(Instant::now()) {
            if out.send(message).await.is_err() {
                return;
            }
        }
        let alarm = watches.next_look();
        tokio::select! {
            biased;
            () = out.closed() => return,
            Ok(()) = in_use.changed() => {
                let in_use = in_use.borrow_and_update().clone();
                received = Instant::now();
                watches.take_use(in_use, &mut changes);
            }
            Some((name, found)) = watches.asked.next() => {
                received = Instant::now();
                watches.take_found(&name, found, &mut changes);
            }
            Some(found) = OptionFuture::from(looks.as_mut().map(Looks::next)) => {
                if let Some(zone) = found.zone().filter(|_| !has_zone) {
                    watches.take_zone(zone);
                }
                if out.send(Message::PodRanges(found.pod_ranges())).await.is_err() {
                    return;
                }
            }
            () = absent.changed() => watches.absent.clone_from(absent.names()),
            Some(name) = answered.recv() => watches.answered(&name),
            // Without a watch, the streams would count as ended for ever.
            Some(events) = watches.streams.next(), if watches.have_begun() => {
                received = Instant::now();
                for event in events {
                    watches.take(event, &mut changes, &errors);
                }
            }
            () = tokio::time::sleep_until(alarm.unwrap_or(now).into()), if alarm.is_some() => {
                received = Instant::now();
            }
        }
    }
}

/// The address in the URL of a server, if that has no name.
fn ip_of(server: &str) -> Option<IpAddr> {
    let uri: Uri = server.parse().ok()?;
    uri.host()?.trim_matches(['[', ']']).parse().ok()
}

/// Within this time, nodes that have a saved table begin to ask the API server.
const JITTER: Duration = Duration::from_secs(2);
/// The largest number of events in one batch.
const CHUNK: usize = 256;

#[cfg(test)]
mod tests {
    use super::ip_of;

    #[test]
    fn the_servers_address_is_known_if_its_url_has_one() {
        let ip = |text: &str| Some(text.parse().unwrap());
        assert_eq!(ip_of("https://10.96.0.1/"), ip("10.96.0.1"));
        assert_eq!(ip_of("https://[fd00:96::1]:6443/"), ip("fd00:96::1"));
        assert_eq!(ip_of("https://api.example.org:6443/"), None);
    }
}
