//! Which watch shows which objects.
//!
//! Two watches may show one object, and a saved table shows what was known before. Invariant: an
//! object is removed only when nothing shows it any more.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::name::ObjectName;
use crate::discovery::object::Kind;
use crate::discovery::scope::Key;

/// For each watch, the names of the objects that it shows.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<Shower, BTreeSet<ObjectName>>);

/// What shows an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Shower {
    Watch(Key),
    /// The saved table.
    Saved(Kind),
}

impl Shower {
    fn kind(&self) -> Kind {
        match self {
            Self::Watch(key) => key.kind,
            Self::Saved(kind) => *kind,
        }
    }
}

impl Held {
    /// Notes that a watch shows an object.
    pub(super) fn show(&mut self, key: &Key, name: &ObjectName) {
        let names = self.0.entry(Shower::Watch(key.clone())).or_default();
        if !names.contains(name) {
            names.insert(name.clone());
        }
    }

    /// Notes that the saved table shows an object.
    pub(super) fn show_saved(&mut self, kind: Kind, name: &ObjectName) {
        let names = self.0.entry(Shower::Saved(kind)).or_default();
        names.insert(name.clone());
    }

    /// Whether a watch shows no object.
    pub(super) fn is_empty(&self, key: &Key) -> bool {
        let names = self.0.get(&Shower::Watch(key.clone()));
        names.is_none_or(BTreeSet::is_empty)
    }

    /// Notes that a watch no longer shows an object. Returns whether nothing shows it now.
    pub(super) fn hide(&mut self, key: &Key, name: &ObjectName) -> bool {
        let names = self.0.get_mut(&Shower::Watch(key.clone()));
        let shown = names.is_some_and(|names| names.remove(name));
        shown && !self.is_shown(key.kind, name)
    }

    /// Notes which objects a watch shows after a list. Returns those that it showed before and that
    /// nothing shows now.
    pub(super) fn replace(&mut self, key: &Key, names: BTreeSet<ObjectName>) -> Vec<ObjectName> {
        let before = self.0.insert(Shower::Watch(key.clone()), names);
        self.unshown(key.kind, before.unwrap_or_default())
    }

    /// Notes that a watch has ended. Returns the objects that nothing shows now.
    pub(super) fn end(&mut self, key: &Key) -> Vec<ObjectName> {
        let before = self.0.remove(&Shower::Watch(key.clone()));
        self.unshown(key.kind, before.unwrap_or_default())
    }

    /// Forgets the saved objects of a kind for which `is_over` is true. Returns those that nothing
    /// shows now.
    pub(super) fn end_saved(
        &mut self,
        kind: Kind,
        is_over: impl Fn(&ObjectName) -> bool,
    ) -> Vec<ObjectName> {
        let Some(names) = self.0.get_mut(&Shower::Saved(kind)) else {
            return Vec::new();
        };
        let over: BTreeSet<ObjectName> = names.extract_if(.., |name| is_over(name)).collect();
        self.0
            .retain(|shower, names| !matches!(shower, Shower::Saved(_)) || !names.is_empty());
        self.unshown(kind, over)
    }

    /// Whether the saved table still shows an object.
    pub(super) fn has_saved(&self) -> bool {
        self.0
            .keys()
            .any(|shower| matches!(shower, Shower::Saved(_)))
    }

    /// Whether anything shows an object.
    pub(super) fn is_shown(&self, kind: Kind, name: &ObjectName) -> bool {
        let mut showers = self.0.iter().filter(|(shower, _)| shower.kind() == kind);
        showers.any(|(_, names)| names.contains(name))
    }

    fn unshown(&self, kind: Kind, names: BTreeSet<ObjectName>) -> Vec<ObjectName> {
        let gone = names.into_iter().filter(|name| !self.is_shown(kind, name));
        gone.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::scope::Of;

    fn key(of: Of) -> Key {
        Key {
            kind: Kind::EndpointSlice,
            namespace: None,
            of,
        }
    }

    #[test]
    fn an_object_is_gone_when_nothing_shows_it() {
        let (mut held, name) = (Held::default(), ObjectName::new("web", "s"));
        held.show(&key(Of::Claimed), &name);
        held.show(&key(Of::Apart), &name);
        held.show_saved(Kind::EndpointSlice, &name);
        assert!(!held.hide(&key(Of::Claimed), &name));
        assert_eq!(held.replace(&key(Of::Apart), BTreeSet::new()), []);
        assert_eq!(held.end_saved(Kind::Pod, |_| true), []);
        assert_eq!(
            held.end_saved(Kind::EndpointSlice, |_| true),
            std::slice::from_ref(&name)
        );
        assert!(!held.has_saved());
        assert!(!held.hide(&key(Of::Claimed), &name), "it is gone already");
        held.show(&key(Of::Apart), &name);
        assert_eq!(held.end(&key(Of::Apart)), [name]);
    }
}
