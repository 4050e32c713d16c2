//! Says what of Ingress objects is not served: each instance in its log, the elected one by Events.
//!
//! Invariant: what is missing for a moment only, while objects are read, is not reported. Each fault
//! is reported once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::cluster::event::{Event, Reason, Subject};
use crate::cluster::events::Events;
use crate::contract::name::ObjectName;
use crate::discovery::secret::Found;
use crate::routing::classes::Classes;
use crate::routing::unserved::unserved;
use crate::routing::world::objects::World;

/// What is not served.
#[derive(Default)]
pub struct Unserved {
    /// By object and text, with the object's UID, and whether there is an Event.
    known: BTreeMap<(ObjectName, String), (Option<String>, bool)>,
    /// Secrets without a certificate, and why.
    lacking: BTreeMap<ObjectName, String>,
    /// When objects are looked at, or Events posted.
    next_look: Option<Instant>,
    /// Whether objects have changed since the last look.
    is_stale: bool,
}

impl Unserved {
    /// Notes that something has changed that decides what is served.
    pub(super) fn touch(&mut self, now: Instant) {
        self.is_stale = true;
        self.next_look.get_or_insert(now + LOOK);
    }

    /// Notes what is known of a Secret.
    pub(super) fn secret(&mut self, secret: &ObjectName, found: &Found, now: Instant) {
        match found {
            Ok(_) => _ = self.lacking.remove(secret),
            Err(error) => _ = self.lacking.insert(secret.clone(), error.clone()),
        }
        self.touch(now);
    }

    /// When there is something to do.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// Looks at all objects if something has changed, and posts Events if this instance is elected.
    pub(super) fn look(
        &mut self,
        world: &World,
        (classes, nginx): (&Classes, bool),
        events: &Events,
        is_elected: bool,
        now: Instant,
    ) {
        if std::mem::take(&mut self.is_stale) {
            self.judge(world, classes, nginx);
        }
        let mut waits = false;
        for ((ingress, note), (uid, posted)) in &mut self.known {
            if *posted || !is_elected {
                waits |= !*posted;
                continue;
            }
            *posted = true;
            events.post(Event {
                subject: Subject::Ingress(ingress.clone(), uid.clone()),
                reason: Reason::NotServed,
                about: None,
                note: note.clone(),
            });
        }
        self.next_look = waits.then(|| now + LOOK);
    }

    fn judge(&mut self, world: &World, classes: &Classes, nginx: bool) {
        let (mut before, mut named) = (std::mem::take(&mut self.known), BTreeSet::new());
        for ingress in world.ingresses().filter(|it| classes.have(it)) {
            named.extend(&ingress.secrets);
            let lacks = |secret: &ObjectName| self.lacking.get(secret).cloned();
            for what in unserved(ingress, nginx, |name| world.service(name), lacks) {
                let key = (ingress.name.clone(), what);
                let is_same = |(uid, _): &(Option<String>, bool)| *uid == ingress.uid;
                let posted = match before.remove(&key).filter(is_same) {
                    Some((_, posted)) => posted,
                    None => {
                        tracing::warn!("Ingress {}: {}", key.0, key.1);
                        false
                    }
                };
                self.known.insert(key, (ingress.uid.clone(), posted));
            }
        }
        self.lacking.retain(|secret, _| named.contains(secret));
    }
}

/// How long the objects may take to be read that an Ingress names, and the time between two looks
/// whether this instance is elected.
const LOOK: Duration = Duration::from_secs(5);
