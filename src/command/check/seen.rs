//! What `check` read from a source: its objects, its problems and warnings about both.

use std::time::SystemTime;

use crate::contract::name::ObjectName;
use crate::discovery::gateway::GatewayObject;
use crate::discovery::invalid::Invalid;
use crate::discovery::object::{ClassObject, IngressObject, Object};
use crate::discovery::secret::Contents;
use crate::discovery::source::Problem;

/// The contents of a source, read once.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The lines that name the source. Empty if the source could not be read at all; then there is
    /// nothing to show.
    pub(super) heading: String,
    pub(super) objects: Vec<Object>,
    /// The certificates that listeners name and the authorities that Services name, as far as they exist.
    pub(super) contents: Contents,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<Problem>,
}

impl Seen {
    /// Counts these Services as claimed. One that does not exist is a problem.
    pub(super) fn claim(&mut self, claim: &[ObjectName]) {
        for name in claim {
            let mut services = self.objects.iter_mut().filter_map(|object| match object {
                Object::Service(service) => Some(service),
                _ => None,
            });
            match services.find(|service| service.name == *name) {
                Some(service) => service.claimed = true,
                None => self.problem("--claim", format!("there is no Service {name}")),
            }
        }
    }

    pub(super) fn has_claims(&self) -> bool {
        let mut objects = self.objects.iter();
        objects.any(|object| matches!(object, Object::Service(service) if service.claimed))
    }

    /// Takes in what was read of a kind. What cannot be read is a warning.
    pub(super) fn take(
        &mut self,
        kind: &str,
        read: impl Iterator<Item = (String, Result<Object, Invalid>)>,
    ) {
        for (name, object) in read {
            match object {
                Ok(object) => self.objects.push(object),
                Err(error) => self
                    .warnings
                    .push(format!("{kind} {name}: {error}; it is skipped")),
            }
        }
    }

    pub(super) fn classes(&self) -> impl Iterator<Item = &ClassObject> {
        self.objects.iter().filter_map(|object| match object {
            Object::IngressClass(class) => Some(class),
            _ => None,
        })
    }

    pub(super) fn ingresses(&self) -> impl Iterator<Item = &IngressObject> {
        self.objects.iter().filter_map(|object| match object {
            Object::Ingress(it) => Some(&**it),
            _ => None,
        })
    }

    /// The objects of the Gateway API.
    pub(super) fn gateways(&self) -> impl Iterator<Item = &GatewayObject> + Clone {
        self.objects.iter().filter_map(|object| match object {
            Object::Gateway(it) => Some(&**it),
            _ => None,
        })
    }

    pub(super) fn problem(&mut self, subject: &str, error: String) {
        self.problems
            .push(Problem::new(subject, &error, SystemTime::now()));
    }
}
