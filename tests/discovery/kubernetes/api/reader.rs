//! One open watch: the events and the orders that it gets.

use std::collections::BTreeSet;

use axum::body::Bytes;
use serde_json::json;
use tokio::sync::watch;

use super::objects::{key_of, selects, shown};
use super::{Api, Kind, Order, What, is_second};

/// One open watch.
pub(super) struct Reader {
    pub(super) api: Api,
    pub(super) kind: Kind,
    pub(super) namespace: Option<String>,
    pub(super) selector: Option<String>,
    /// The objects that the selector selected so far, by namespace and name.
    pub(super) shown: BTreeSet<(String, String)>,
    pub(super) orders_from: usize,
    pub(super) from: u64,
    pub(super) next: usize,
    pub(super) moved: watch::Receiver<u64>,
    pub(super) over: bool,
}

enum Next {
    Send(Result<Bytes, std::io::Error>),
    Wait,
    Never,
    End,
}

impl Reader {
    pub(super) async fn read(mut self) -> Option<(Result<Bytes, std::io::Error>, Self)> {
        loop {
            match self.look() {
                Next::Send(bytes) => return Some((bytes, self)),
                Next::Wait => _ = self.moved.changed().await,
                Next::Never => std::future::pending().await,
                Next::End => return None,
            }
        }
    }

    /// All that is ready, as one piece.
    fn look(&mut self) -> Next {
        if std::mem::take(&mut self.over) {
            return Next::Send(Err(std::io::Error::other("as ordered")));
        }
        self.moved.mark_unchanged();
        let api = self.api.clone();
        let state = api.lock();
        if state.held.contains(&self.kind) {
            return Next::Wait;
        }
        let mut text = String::new();
        while let Some(entry) = state.log.get(self.next) {
            let number = self.next;
            let order = match &entry.what {
                _ if entry.kind != self.kind => None,
                What::Event(of, object) => {
                    let here = self.namespace.is_none() || self.namespace == entry.namespace;
                    let (_, at, name) = key_of(self.kind, object);
                    let selects = |selector: &String| selects(selector, object);
                    let selected = *of != "DELETED" && self.selector.as_ref().is_none_or(selects);
                    let before = match selected {
                        true => !self.shown.insert((at, name)),
                        false => self.shown.remove(&(at, name)),
                    };
                    // An object that a selector no longer selects is deleted for the watch.
                    let of = match (&self.selector, selected, before) {
                        (None, ..) => Some(*of),
                        (Some(_), true, false) => Some("ADDED"),
                        (Some(_), true, true) => Some("MODIFIED"),
                        (Some(_), false, true) => Some("DELETED"),
                        (Some(_), false, false) => None,
                    };
                    if let Some(of) = of.filter(|_| here && entry.version > self.from) {
                        let event = json!({"type": of, "object": shown(self.kind, object, false)});
                        text += &format!("{event}\n");
                    }
                    None
                }
                What::Order(_) if number < self.orders_from => None,
                What::Order(Order::Raw(raw)) => {
                    text += raw;
                    None
                }
                What::Order(order) => Some(order),
            };
            if order.is_some() && !text.is_empty() {
                break;
            }
            self.next += 1;
            match order {
                Some(Order::Silence) => return Next::Never,
                Some(Order::End) => return Next::End,
                Some(_) => {
                    self.over = true;
                    return Next::Send(Ok(Bytes::from_static(b"{\"type\":\"MODI")));
                }
                None => {}
            }
        }
        if text.is_empty() {
            Next::Wait
        } else {
            Next::Send(Ok(text.into()))
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.api.lock();
        state.watches -= 1;
        if let Some(open) = state.open.get_mut(&self.kind) {
            *open -= usize::from(!is_second(self.kind, self.selector.as_deref()));
        }
        drop(state);
        self.api.shared.notify();
    }
}
