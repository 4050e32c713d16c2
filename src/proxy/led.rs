//! The way of a whole connection, or of a UDP session, to its Service port, where routes serve it.
//!
//! Invariants: a connection keeps the Service that it was led to, whatever becomes of the routes: a change of
//! them costs it nothing. A new one is led by the newest. No byte is changed or kept back.
//!
//! Leaves out the requests of HTTP, each of which has a way of its own: see [`crate::proxy::http::route`].

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::contract::listener::{Action, FoundBy, ListenerSpec, Routes, Serves, Target};
use crate::contract::reason::CloseReason;
use crate::proxy::client::Client;
use crate::proxy::sni::{self, Hello};
use crate::proxy::worker::Worker;

/// Leads a connection to the listener that serves it, and returns its action.
///
/// # Errors
/// No route is for it, or its route leads nowhere. The client sees a reset.
pub(super) async fn lead(
    worker: &Rc<Worker>,
    client: &mut Client,
    table: &Routes,
    by: FoundBy,
) -> Result<Arc<Action>, CloseReason> {
    let name = match by {
        FoundBy::Name => match sni::hello(worker, client).await? {
            Hello::Named(name) => Some(name),
            Hello::Nameless => Some(String::new()),
            Hello::Other => {
                client.stream.reset_on_close();
                return Err(CloseReason::BadHandshake);
            }
        },
        FoundBy::Connection | FoundBy::Request => None,
    };
    let action = {
        let table = table.load();
        match &name {
            Some(name) => table.find(name, "/").cloned(),
            None => table.default.clone(),
        }
    };
    if action.is_none()
        && let Some(name) = &name
    {
        return Err(sni::refuse_name(worker, client, name));
    }
    let target = action
        .as_deref()
        .and_then(|it| target(it, client.peer.ip()));
    let Some(since) = target.map(|target| {
        client.listener = target.listener.clone();
        target.since
    }) else {
        // A clean close would look like success.
        client.stream.reset_on_close();
        return Err(CloseReason::NoEndpoint);
    };
    worker.until_known(&client.listener, since).await;
    action.ok_or(CloseReason::NoEndpoint)
}

/// The listener that serves a new UDP session of this client at a door. `None`: no route leads anywhere.
pub(super) fn of_session(door: &Arc<ListenerSpec>, client: IpAddr) -> Option<Arc<ListenerSpec>> {
    let Serves::Routes { table, .. } = &door.serves else {
        return Some(door.clone());
    };
    let table = table.load();
    let target = target(table.default.as_ref()?, client)?;
    Some(target.listener.clone())
}

/// The backend of an action whose turn it is, if this client may have it.
fn target(action: &Action, client: IpAddr) -> Option<&Target> {
    let filters = action.filters.as_deref();
    if !filters.is_none_or(|it| it.admits(client.to_canonical())) {
        return None;
    }
    action.backends.all[action.backends.choose()?].1.as_ref()
}
