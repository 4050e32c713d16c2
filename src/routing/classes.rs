//! Which Ingress objects are ours: a pure function of the configuration and the IngressClasses.
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/ingress/#ingress-class>.

use std::collections::BTreeSet;

use crate::config::settings::Ingress;
use crate::discovery::object::{ClassObject, IngressObject};

/// The classes of Ingress objects that are ours. The default has none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Classes {
    names: BTreeSet<String>,
    /// Whether one of them is that of Ingress objects without a class.
    has_default: bool,
}

impl Classes {
    /// The configured class, whether or not there is an IngressClass of this name, and those of our
    /// controller.
    pub fn of<'a>(config: &Ingress, all: impl Iterator<Item = &'a ClassObject>) -> Self {
        let names = BTreeSet::from([config.class.clone()]);
        let mut classes = Self {
            names,
            has_default: false,
        };
        for it in all {
            if it.controller == config.controller {
                classes.names.insert(it.name.name.clone());
            }
            classes.has_default |= it.is_default && classes.names.contains(&it.name.name);
        }
        classes
    }

    /// Whether an Ingress is of one of them.
    pub fn have(&self, ingress: &IngressObject) -> bool {
        match &ingress.class {
            Some(class) => self.names.contains(class),
            None => self.has_default,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::name::ObjectName;
    use crate::routing::routes::tests::ingress;

    #[test]
    fn a_class_is_ours_by_its_name_or_its_controller() {
        let class = |name: &str, controller: &str, is_default| ClassObject {
            name: ObjectName::new("", name),
            controller: controller.to_owned(),
            is_default,
        };
        let config = Ingress::of("edge");
        let ours = |all: &[ClassObject]| {
            let classes = Classes::of(&config, all.iter());
            let named = |class| classes.have(&ingress("a", 0, class));
            [
                named(Some("edge")),
                named(Some("inner")),
                named(Some("nginx")),
                named(None),
            ]
        };
        let (own, other) = ("ebbtide.dev/ingress", "k8s.io/ingress-nginx");
        assert_eq!(ours(&[]), [true, false, false, false]);
        let inner = class("inner", own, false);
        let nginx = class("nginx", other, true);
        assert_eq!(ours(&[inner, nginx]), [true, true, false, false]);
        let inner = class("inner", own, true);
        assert_eq!(ours(&[inner]), [true, true, false, true]);
        // The name alone is enough, as for a class that another controller had.
        assert_eq!(
            ours(&[class("edge", other, true)]),
            [true, false, false, true]
        );
    }
}
