//! What the status of Ingress objects is to say: where they are served.
//!
//! Invariant: of an object that is not ours, only what this installation wrote itself is taken away.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kube::core::ApiResource;
use serde_json::{Value, json};

use crate::cluster::status::{Statuses, Wanted};
use crate::contract::name::ObjectName;
use crate::discovery::object::IngressObject;
use crate::routing::classes::Classes;
use crate::routing::world::objects::World;

/// Tells the writer what statuses are to be.
pub struct Publisher {
    statuses: Statuses,
    /// Under which name this installation writes.
    manager: String,
    /// IP addresses and host names. `None`: not known yet, so nothing is written.
    addresses: Option<Vec<String>>,
    resource: ApiResource,
}

impl Publisher {
    /// A publisher that says nothing until it knows addresses.
    pub fn new(statuses: Statuses, manager: String) -> Self {
        Self {
            statuses,
            manager,
            addresses: None,
            resource: ApiResource::erase::<k8s_openapi::api::networking::v1::Ingress>(&()),
        }
    }

    /// Takes in what statuses are to say from now on. Returns whether that is new.
    pub fn take(&mut self, addresses: Vec<String>) -> bool {
        let addresses = Some(addresses);
        let is_new = self.addresses != addresses;
        self.addresses = addresses;
        is_new
    }

    /// Tells what the statuses of these objects are to be.
    pub(super) fn publish(&self, world: &World, classes: &Classes, names: &BTreeSet<ObjectName>) {
        let Some(addresses) = &self.addresses else {
            return;
        };
        for name in names {
            match world
                .ingress(name)
                .and_then(|it| self.wanted(it, classes, addresses))
            {
                Some(wanted) => self.statuses.want(wanted),
                None => self.statuses.forget(&self.resource, name),
            }
        }
    }

    fn wanted(
        &self,
        ingress: &IngressObject,
        classes: &Classes,
        addresses: &[String],
    ) -> Option<Wanted> {
        let published = &ingress.published;
        let wrote = published.managers.contains(&self.manager);
        let is_ours = classes.have(ingress) && !addresses.is_empty();
        if !is_ours && (!wrote || published.addresses.is_empty()) {
            return None;
        }
        let status = match is_ours {
            true => status(addresses),
            false => json!({"loadBalancer": {"ingress": null}}),
        };
        Some(Wanted {
            resource: self.resource.clone(),
            name: ingress.name.clone(),
            status,
            now: status_of(&published.addresses),
            version: None,
        })
    }
}

fn status_of(addresses: &[String]) -> Value {
    match addresses {
        [] => Value::Null,
        some => status(some),
    }
}

fn status(addresses: &[String]) -> Value {
    let entry = |it: &String| match it.parse::<IpAddr>() {
        Ok(_) => json!({"ip": it}),
        Err(_) => json!({"hostname": it}),
    };
    let entries: Vec<Value> = addresses.iter().map(entry).collect();
    json!({"loadBalancer": {"ingress": entries}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Ingress;
    use crate::discovery::object::Published;

    fn ingress(class: &str, addresses: &[&str], manager: &str) -> IngressObject {
        IngressObject {
            name: ObjectName::new("web", "a"),
            uid: None,
            class: Some(class.to_owned()),
            created: 0,
            rules: Vec::new(),
            default: None,
            secrets: Vec::new(),
            unserved: Vec::new(),
            tls_hosts: Vec::new(),
            nginx: Default::default(),
            published: Published {
                addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
                managers: vec![manager.to_owned()],
            },
        }
    }

    #[test]
    fn objects_of_ours_say_where_they_are_served_and_others_lose_only_what_was_written_here() {
        let publisher = Publisher::new(Statuses::default(), "us".to_owned());
        let classes = Classes::of(&Ingress::of("ebbtide"), [].into_iter());
        let wanted = |class, now: &[&str], manager, addresses: &[&str]| {
            let addresses: Vec<String> = addresses.iter().map(|it| (*it).to_owned()).collect();
            let wanted = publisher.wanted(&ingress(class, now, manager), &classes, &addresses);
            wanted.map(|it| (it.status["loadBalancer"]["ingress"].clone(), it.now))
        };
        let ours = json!([{"ip": "192.0.2.1"}, {"hostname": "lb.example"}]);
        let both = ["192.0.2.1", "lb.example"];
        let now = json!({"loadBalancer": {"ingress": ours}});
        assert_eq!(
            wanted("ebbtide", &[], "", &both),
            Some((ours.clone(), Value::Null))
        );
        assert_eq!(
            wanted("ebbtide", &both, "us", &both),
            Some((ours, now.clone()))
        );
        assert_eq!(
            wanted("nginx", &both, "us", &both),
            Some((Value::Null, now.clone()))
        );
        assert_eq!(wanted("nginx", &both, "other", &both), None);
        assert_eq!(wanted("nginx", &[], "us", &both), None);
        // Nothing is known to say any more.
        assert_eq!(
            wanted("ebbtide", &both, "us", &[]),
            Some((Value::Null, now))
        );
        assert_eq!(wanted("ebbtide", &[], "", &[]), None);
    }
}
