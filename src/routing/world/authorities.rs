//! The authorities of endpoints' certificates that Services take from Secrets and ConfigMaps of their
//! namespace.
//!
//! Invariant: an object that is broken or gone leaves its last good authorities in force, and is named.
//! Without any, every endpoint is refused: none goes unverified.

use std::collections::BTreeSet;

use crate::config::backend::{self, BACKEND_TLS};
use crate::contract::authorities::{FoundAuthorities, Holder};
use crate::contract::name::ObjectName;
use crate::discovery::files::NOWHERE;
use crate::discovery::object::ServiceObject;
use crate::routing::world::objects::{Known, Touched, World};

impl World {
    /// Takes in what is known of the authorities in an object, and notes the Services that name it.
    /// `None`: nobody looks at it any more.
    pub fn take_authorities(
        &mut self,
        holder: &Holder,
        found: Option<FoundAuthorities>,
        touched: &mut Touched,
    ) {
        let names_it = |it: &ServiceObject| holder_of(it).as_ref() == Some(holder);
        let services = self.services.values().filter(|it| names_it(it));
        touched.services.extend(services.map(|it| it.name.clone()));
        let Some(found) = found else {
            self.authorities.remove(holder);
            return;
        };
        let known = self.authorities.entry(holder.clone()).or_default();
        match found {
            Ok(good) => (known.good, known.bad) = (Some(good), None),
            Err(bad) => known.bad = Some(bad),
        }
    }

    /// The object that a Service names for the authorities of its endpoints' certificates.
    pub fn holder_of(&self, service: &ObjectName) -> Option<Holder> {
        holder_of(self.services.get(service)?)
    }

    /// Those that all Services name.
    pub fn holders(&self) -> BTreeSet<Holder> {
        self.services
            .values()
            .filter_map(|it| holder_of(it))
            .collect()
    }

    /// What is known of the authorities that a Service names, and a warning if that is not well.
    pub(super) fn authorities_of(
        &self,
        service: &ServiceObject,
    ) -> (Option<FoundAuthorities>, Option<String>) {
        let Some(holder) = holder_of(service) else {
            return (None, None);
        };
        let (good, bad) = match self.authorities.get(&holder) {
            Some(Known { good, bad }) => (good.clone(), bad.as_deref()),
            // The API server tells of each. A folder shows all that it has at once.
            None if self.api_server => return (None, None),
            None => (None, Some(NOWHERE)),
        };
        let until = match good {
            Some(_) => "its last good authorities stay in force",
            None => "until it gives authorities, the endpoints are refused",
        };
        let warning = bad.map(|bad| format!("{BACKEND_TLS}: {holder}: {bad}; {until}"));
        let why = || format!("{holder}: {}", bad.unwrap_or_default());
        (Some(good.ok_or_else(why)), warning)
    }
}

fn holder_of(service: &ServiceObject) -> Option<Holder> {
    backend::holder(&service.annotations, &service.name.namespace)
}
