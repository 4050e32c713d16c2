//! What `check` says of Ingress objects: the rules in the order in which they count, and what of them
//! cannot be served.

use crate::discovery::object::{BackendRef, IngressObject};
use crate::routing::classes::Classes;
use crate::routing::routes::Routes;
use crate::routing::unserved::unserved;
use crate::routing::world::objects::World;

/// The rules in force, with a heading; empty without rules.
pub(super) fn rows(routes: &Routes<'_>) -> Vec<Vec<String>> {
    if routes.rules.is_empty() && routes.default.is_none() {
        return Vec::new();
    }
    let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["HOST", "PATH", "TYPE", "SERVICE", "PORT"])];
    let of = |host: &str, path: &str, kind: &str, to: &BackendRef| {
        let (service, port) = (to.service.to_string(), to.port.to_string());
        row([host, path, kind, &service, &port])
    };
    for (rule, to) in &routes.rules {
        let kind = if rule.exact { "Exact" } else { "Prefix" };
        rows.push(of(
            rule.host.as_deref().unwrap_or("*"),
            &rule.path,
            kind,
            to,
        ));
    }
    rows.extend(routes.default.map(|to| of("(default)", "-", "-", to)));
    rows
}

/// What of the Ingress objects that are ours cannot be served. The Secrets are in another place of the
/// report.
pub(super) fn warnings(classes: &Classes, world: &World) -> Vec<String> {
    let ours = world.ingresses().filter(|it| classes.have(it));
    let of_one = |it: &IngressObject| {
        let all = unserved(it, |name| world.service(name), |_| None);
        let name = it.name.clone();
        all.into_iter()
            .map(move |what| format!("Ingress {name}: {what}"))
    };
    ours.flat_map(of_one).collect()
}
