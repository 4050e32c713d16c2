//! The way of one request to its Service port, by its host and path.
//!
//! Invariant: a client's next request asks the rules again. What belongs to the client at one Service
//! (`bound.rs`) never serves a request for another.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::contract::action::{Routes, Target};
use crate::proxy::client::Client;
use crate::proxy::http::bound::Bound;
use crate::proxy::worker::Worker;

/// Finds the listener that serves a request with this canonical head. If no rule is for it, the client
/// stays at its door, which leads to no Service. A target whose Service is not known yet is returned: see
/// [`until_known`].
pub(super) fn route(
    worker: &Worker,
    client: &mut Client,
    bound: &mut Option<Box<Bound>>,
    head: &[u8],
    table: &Routes,
) -> Option<Target> {
    let table = table.load();
    let found = asked(head).and_then(|(host, target)| table.find(host, target));
    let found = found.and_then(|it| it.backends.all.first()?.1.as_ref());
    let listener = found.map_or(&client.door, |it| &it.listener);
    if listener.id != client.listener.id {
        *bound = None;
        client.listener = listener.clone();
    }
    let is_new = |it: &&Target| it.since.elapsed() < FIRST_LOOK;
    found
        .filter(is_new)
        .filter(|_| worker.port(&client.listener).is_none())
        .cloned()
}

/// Waits while the Service of a target that was named a moment ago may still be read.
pub(super) async fn until_known(worker: &Rc<Worker>, client: &Client, target: &Target) {
    let until = target.since + FIRST_LOOK;
    while Instant::now() < until {
        let (port, changed) = worker.watched_port(&client.listener);
        if port.is_some() {
            return;
        }
        let _ = tokio::time::timeout_at(until.into(), changed).await;
    }
}

/// The host and the target of a canonical request head.
fn asked(head: &[u8]) -> Option<(&str, &str)> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let target = lines.next()?.split(|byte| *byte == b' ').nth(1)?;
    let host = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(HOST.len())?;
        name.eq_ignore_ascii_case(HOST).then_some(value)
    });
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some((text(host?)?.trim(), text(target)?))
}

const HOST: &[u8] = b"host:";
/// How long a Service that was just named may take to be read.
const FIRST_LOOK: Duration = Duration::from_secs(2);
