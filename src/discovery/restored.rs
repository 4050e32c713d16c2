//! The saved table in force: until the lists of the API server are whole, it stands for them.
//!
//! Invariant: nothing of it outlives a list that shows what there is.

use std::time::Duration;

use crate::config::settings;
use crate::discovery::object::{Change, Kind, Object};
use crate::discovery::saved::{self, Keeper, Saved};
use crate::discovery::watches::Watches;

impl Watches {
    /// Puts the saved table in force, where no list has shown what there is.
    pub(super) fn take_saved(&mut self, saved: Saved, changes: &mut Vec<Change>) {
        let allowed = &self.settings.namespaces;
        for object in saved.objects {
            let (kind, name) = (object.kind(), object.name().clone());
            if !(allowed.is_empty() || allowed.contains(&name.namespace))
                || self.held.is_shown(kind, &name)
                || self.is_confirmed(kind, &name.namespace)
            {
                continue;
            }
            if let Object::Service(service) = &object
                && service.claimed
            {
                self.claimed.insert(name.clone());
                self.ever_claimed = true;
                self.is_stale = true;
            }
            self.held.show_saved(kind, &name);
            changes.push(Change::Apply(object));
        }
        if self.held.has_saved() {
            let age = saved.at.elapsed().unwrap_or_default();
            tracing::warn!(
                age_s = age.as_secs(),
                "the saved table is in force until the API server's lists are whole"
            );
            self.saved_at = Some(saved.at);
        }
    }

    /// Drops what the saved table has and the lists do not.
    pub(super) fn retire_saved(&mut self, changes: &mut Vec<Change>) {
        if self.saved_at.is_none() || self.is_stale {
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        for kind in Kind::all() {
            for name in held.end_saved(kind, |name| self.is_confirmed(kind, &name.namespace)) {
                changes.push(match kind {
                    // Nothing watches its pods.
                    Kind::Pod if !self.namespaces.contains_key(&name.namespace) => {
                        let namespace = name.namespace;
                        Change::Forget { namespace }
                    }
                    _ => Change::Remove(kind, name),
                });
            }
        }
        self.held = held;
        if !self.held.has_saved() {
            tracing::info!("the API server has confirmed or replaced the saved table");
            self.saved_at = None;
        }
    }

    /// Whether the lists show all objects of this kind in a namespace.
    pub(super) fn is_confirmed(&self, kind: Kind, namespace: &str) -> bool {
        let listed = |of: Kind| {
            let mut watches = self
                .states
                .iter()
                .filter(|(key, _)| key.kind == of && key.covers(namespace));
            watches.all(|(_, state)| state.listed)
        };
        // Which slices and pods are watched follows from the Services.
        !self.states.is_empty()
            && listed(Kind::Service)
            && listed(kind)
            && (kind != Kind::EndpointSlice || !self.kept_back.contains_key(namespace))
    }
}

/// The saved table of this process, and the file that is kept up to date.
pub(super) struct SavedTable {
    pub(super) saved: Option<Saved>,
    pub(super) keeper: Option<Keeper>,
}

impl SavedTable {
    pub(super) fn open(settings: &settings::Kubernetes, server: String) -> Self {
        let Some(path) = &settings.snapshot else {
            return Self {
                saved: None,
                keeper: None,
            };
        };
        let saved = saved::read(path, &server).unwrap_or_else(|why| {
            tracing::warn!(path = %path.display(), why, "the saved table is not used");
            None
        });
        let keeper = Keeper::start(path.clone(), server, settings.save_every);
        let keeper = keeper.inspect_err(|error| tracing::warn!(%error, "cannot save the table"));
        Self {
            saved,
            keeper: keeper.ok(),
        }
    }

    /// Whether there is a table that was in order a short time ago. An older one may name addresses
    /// that other pods have got since, so the API server is asked first.
    pub(super) fn read_recently(&self) -> bool {
        let age = self
            .saved
            .as_ref()
            .map(|saved| saved.at.elapsed().unwrap_or_default());
        age.is_some_and(|age| age < RECENT)
    }

    pub(super) fn take(&mut self) -> Option<Saved> {
        self.saved.take()
    }

    pub(super) fn note(&mut self, changes: &[Change], watches: &Watches) {
        if let Some(keeper) = &self.keeper {
            keeper.note(changes);
            if watches.synced {
                let standing = &watches.standing;
                let in_order = watches.problems.is_empty()
                    && standing.missing.is_empty()
                    && standing.saved_at.is_none();
                keeper.sent(in_order, standing.saved_at);
            }
        }
    }
}

/// A saved table that was in order so long ago is used before the API server is asked.
const RECENT: Duration = Duration::from_secs(600);
