//! What the rules of all Ingress objects come to: a pure function of the objects.
//!
//! Invariant: the rules of the oldest Ingress come first, and of two that are equally old those of the
//! first by name. So a new object takes no requests from an older one.

use std::collections::{BTreeSet, HashSet};

use crate::contract::name::ObjectName;
use crate::contract::route::Rule;
use crate::discovery::object::{BackendRef, IngressObject};
use crate::routing::classes::Classes;

/// The rules of all Ingress objects that are ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Routes<'a> {
    /// In the order in which they count.
    pub rules: Vec<(&'a Rule, &'a BackendRef)>,
    /// What gets the requests that no rule is for.
    pub default: Option<&'a BackendRef>,
    /// The Secrets with certificates, in the order in which they count.
    pub secrets: Vec<&'a ObjectName>,
}

impl<'a> Routes<'a> {
    /// The rules of the objects of these classes.
    pub fn of(classes: &Classes, all: impl Iterator<Item = &'a IngressObject>) -> Self {
        let mut ours: Vec<_> = all.filter(|it| classes.have(it)).collect();
        ours.sort_by_key(|it| (it.created, &it.name));
        let (mut routes, mut seen) = (Self::default(), HashSet::new());
        for ingress in ours {
            let rules = ingress.rules.iter();
            routes.rules.extend(rules.map(|(rule, to)| (rule, to)));
            routes.default = routes.default.or(ingress.default.as_ref());
            let new = ingress.secrets.iter().filter(|it| seen.insert(*it));
            routes.secrets.extend(new);
        }
        routes
    }

    /// Every Service port that serves a rule.
    pub fn backends(&self) -> BTreeSet<&'a BackendRef> {
        let rules = self.rules.iter().map(|(_, to)| *to);
        rules.chain(self.default).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::settings::Ingress;
    use crate::contract::policy::PortRef;

    pub(in crate::routing) fn ingress(
        name: &str,
        created: i64,
        class: Option<&str>,
    ) -> IngressObject {
        let rule = Rule {
            host: None,
            path: format!("/{name}"),
            ..Rule::default()
        };
        let to = BackendRef {
            service: ObjectName::new("web", name),
            port: PortRef::Number(80),
        };
        IngressObject {
            name: ObjectName::new("web", name),
            class: class.map(str::to_owned),
            created,
            rules: vec![(rule, to.clone())],
            default: Some(to),
            secrets: vec![ObjectName::new("web", name), ObjectName::new("web", "all")],
            unserved: Vec::new(),
            uid: None,
            published: Default::default(),
        }
    }

    #[test]
    fn the_oldest_comes_first_and_other_classes_do_not_count() {
        let all = [
            ingress("c", 2, Some("ebbtide")),
            ingress("b", 1, Some("ebbtide")),
            ingress("a", 2, Some("ebbtide")),
            ingress("other", 0, Some("nginx")),
            ingress("none", 0, None),
        ];
        let classes = |name| Classes::of(&Ingress::of(name), [].into_iter());
        let routes = Routes::of(&classes("ebbtide"), all.iter());
        let paths: Vec<_> = routes.rules.iter().map(|(rule, _)| &*rule.path).collect();
        assert_eq!(paths, ["/b", "/a", "/c"]);
        assert_eq!(routes.default.unwrap().service.name, "b");
        let secrets: Vec<_> = routes.secrets.iter().map(|it| &*it.name).collect();
        assert_eq!(secrets, ["b", "all", "a", "c"]);
        assert_eq!(routes.backends().len(), 3);
        assert_eq!(Routes::of(&classes("x"), all.iter()), Routes::default());
    }
}
