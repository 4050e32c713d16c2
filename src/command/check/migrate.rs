//! `check --migrate nginx`: what would differ for each Ingress that ingress-nginx serves today.

use std::fmt::Write;

use crate::config::settings::{Config, Ingress};
use crate::contract::name::ObjectName;
use crate::discovery::object::IngressObject;
use crate::routing::classes::Classes;
use crate::routing::nginx::keys::Keys;
use crate::routing::unserved::unserved;
use crate::routing::world::objects::World;
use crate::text::one_line;

/// The configuration as it would be after the move: the objects of ingress-nginx are ours, and their
/// annotations count.
pub(super) fn moved(config: &mut Config) {
    let before = config.ingress.take();
    config.ingress = Some(Ingress {
        class: "nginx".to_owned(),
        controller: "k8s.io/ingress-nginx".to_owned(),
        nginx_keys: true,
        ..before.unwrap_or_else(|| Ingress::of("nginx"))
    });
}

/// What would differ, for each object and for all.
pub(super) fn report(
    classes: &Classes,
    world: &World,
    lacks: impl Fn(&ObjectName) -> Option<String>,
) -> String {
    let ours: Vec<&IngressObject> = world.ingresses().filter(|it| classes.have(it)).collect();
    let mut text = format!("\nfrom ingress-nginx: {} Ingress objects\n", ours.len());
    for ingress in ours {
        let mut all = unserved(ingress, true, |name| world.service(name), &lacks);
        all.extend(Keys::of(&ingress.nginx).differs);
        if all.is_empty() {
            all.push("nothing differs but what does for all".to_owned());
        }
        let _ = writeln!(text, "{}", ingress.name);
        for what in all {
            let _ = writeln!(text, "  {}", one_line(&what));
        }
    }
    text.push_str("for all of them\n");
    for what in FOR_ALL {
        let _ = writeln!(text, "  {what}");
    }
    text
}

const FOR_ALL: &[&str] = &[
    "the ConfigMap of ingress-nginx is not read: what it sets for all objects counts no more",
    "a path of type ImplementationSpecific ends where an element does: /a is for /a/b and not for /ab",
    "without proxy-body-size a request body has no bound; nginx's is 1m",
    "Strict-Transport-Security, X-Real-IP, X-Request-ID and X-Scheme are not added",
    "which hosts stand beside a Secret does not matter: certificates are chosen by the names in them",
    "a certificate that is missing refuses clients of TLS; nginx shows one of its own",
];
