//! How far the first table is, and what is wrong with the watches.
//!
//! Invariant: the first table waits for a namespace only for a bounded time, and is not sent while
//! nothing can be served. A namespace that it lacks is named until its lists are whole.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::discovery::object::Kind;
use crate::discovery::scope::Key;
use crate::discovery::source::{Message, Problem, Standing};
use crate::discovery::watches::{State, Watches};

impl Watches {
    /// When to look again although nothing arrives.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let waiting = self
            .kept_back
            .keys()
            .filter_map(|it| self.namespaces.get(it));
        let waiting = waiting.map(|it| it.since + self.settings.pods_patience);
        let start = Some(self.started + self.settings.patience)
            .filter(|at| !self.synced && *at > Instant::now());
        let begins = Some(self.begins).filter(|_| self.is_stale);
        let pods = Some(self.pods_begin()).filter(|_| self.pods_wait);
        let leaving = self.leaving.values().chain(self.uninstalled.values());
        let leaving = leaving.copied();
        let first = [start, begins, pods].into_iter().flatten();
        waiting.chain(first).chain(leaving).min()
    }

    /// What has changed since the last report.
    pub(super) fn report(&mut self, now: Instant) -> Vec<Message> {
        let mut messages = Vec::new();
        let missing = self.missing();
        let is_whole = missing.is_empty() && self.is_listed();
        let waited = now >= self.started + self.settings.patience;
        let is_useful = self.known().any(|it| !missing.contains(it));
        let has_table = is_whole || waited && is_useful || self.saved_at.is_some();
        let begins = !self.synced && has_table;
        if begins || self.synced {
            let missing = match begins {
                // The saved table knows all that was served.
                true if self.saved_at.is_some() => BTreeSet::new(),
                true => missing,
                // A namespace that is in use since then serves at once: its clients are held.
                false => self
                    .standing
                    .missing
                    .intersection(&missing)
                    .cloned()
                    .collect(),
            };
            let saved_at = self.saved_at;
            let absent = self.absent.clone();
            let standing = Standing {
                missing,
                absent,
                saved_at,
            };
            if standing != self.standing {
                for namespace in standing.missing.difference(&self.standing.missing) {
                    tracing::warn!(namespace, "cannot be listed; its Services are not served");
                }
                for namespace in self.standing.missing.difference(&standing.missing) {
                    tracing::info!(namespace, "is listed; its Services are served");
                }
                for namespace in standing.absent.difference(&self.standing.absent) {
                    tracing::warn!(
                        namespace,
                        "does not exist; create it, or correct discovery.kubernetes.namespaces"
                    );
                }
                for namespace in self.standing.absent.difference(&standing.absent) {
                    tracing::info!(namespace, "exists now");
                }
                self.standing = standing.clone();
                messages.push(Message::Standing(standing));
            }
        }
        if begins {
            self.synced = true;
            messages.push(Message::Synced);
        }
        let problems: Vec<Problem> = self
            .states
            .values()
            .filter_map(|state| state.failing.clone())
            .collect();
        if problems != self.problems {
            self.problems.clone_from(&problems);
            messages.push(Message::Problems(problems));
        }
        messages
    }

    /// Whether the first table has waited long enough, and nothing can be served without the saved
    /// one.
    pub(super) fn needs_saved(&self) -> bool {
        !self.synced
            && self.saved_at.is_none()
            && Instant::now() >= self.started + self.settings.patience
            && !(self.is_listed() && self.missing().is_empty())
    }

    /// Whether every watch is listed, and no slice waits for pods. Pods are needed only by slices
    /// that wait for them.
    pub(super) fn is_listed(&self) -> bool {
        // A slice may belong to no Service of ours.
        let mut waiting = self.kept_back.keys();
        let is_known = |(key, state): (&Key, &State)| state.listed || key.kind == Kind::Pod;
        self.states.iter().all(is_known)
            && !waiting.any(|namespace| self.namespaces.contains_key(namespace))
    }

    /// The namespaces that may be served, as far as they are known.
    pub(super) fn known(&self) -> impl Iterator<Item = &String> {
        self.namespaces.keys().chain(&self.settings.namespaces)
    }

    /// The namespaces that cannot be served yet: their Services or slices are not listed, or the
    /// slices still wait for the pods.
    pub(super) fn missing(&self) -> BTreeSet<String> {
        let unlisted: Vec<&Key> = self
            .states
            .iter()
            .filter(|(key, state)| {
                !state.listed && matches!(key.kind, Kind::Service | Kind::EndpointSlice)
            })
            .map(|(key, _)| key)
            .collect();
        let is_missing = |namespace: &&String| {
            unlisted.iter().any(|key| key.covers(namespace))
                || self.kept_back.contains_key(*namespace)
        };
        self.known().filter(is_missing).cloned().collect()
    }
}
