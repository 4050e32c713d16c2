//! What `check` says of Ingress objects: the rules in the order in which they count, and what of them
//! cannot be served.

use crate::config::settings::Ingress;
use crate::contract::name::ObjectName;
use crate::discovery::object::IngressObject;
use crate::routing::classes::Classes;
use crate::routing::routes::{Route, Routes};
use crate::routing::unserved::unserved;
use crate::routing::world::objects::World;

/// The rules in force, with a heading; empty without rules. A rule has a row for each of its Services.
pub(super) fn rows(routes: &Routes<'_>) -> Vec<Vec<String>> {
    if routes.rules.is_empty() && routes.default.is_none() {
        return Vec::new();
    }
    let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["HOST", "PATH", "TYPE", "SERVICE", "PORT"])];
    let mut add = |host: &str, path: &str, kind: &str, route: &Route<'_>| {
        for (_, to) in route.backends.iter().filter(|(weight, _)| *weight > 0) {
            let (service, port) = (to.service.to_string(), to.port.to_string());
            rows.push(row([host, path, kind, &service, &port]));
        }
    };
    for route in &routes.rules {
        let kind = if route.rule.exact { "Exact" } else { "Prefix" };
        let host = route.rule.host.as_deref().unwrap_or("*");
        add(host, &route.rule.path, kind, route);
    }
    if let Some(default) = &routes.default {
        add("(default)", "-", "-", default);
    }
    rows
}

/// What of the Ingress objects that are ours cannot be served. `lacks` says what is wrong with a Secret.
pub(super) fn warnings(
    classes: &Classes,
    config: &Ingress,
    world: &World,
    lacks: impl Fn(&ObjectName) -> Option<String>,
) -> Vec<String> {
    let ours = world.ingresses().filter(|it| classes.have(it));
    let of_one = |it: &IngressObject| {
        let all = unserved(it, config.nginx_keys, |name| world.service(name), &lacks);
        let name = it.name.clone();
        all.into_iter()
            .map(move |what| format!("Ingress {name}: {what}"))
    };
    ours.flat_map(of_one).collect()
}

/// Ingress objects that are not ours. In a cluster they are another controller's, in a folder nobody's.
pub(super) fn of_other_classes(classes: &Classes, ours: &str, world: &World) -> Vec<String> {
    let others = world.ingresses().filter(|it| !classes.have(it));
    let warning = |it: &IngressObject| {
        let class = match &it.class {
            Some(class) => format!("its class is {class}"),
            None => "it has no class".to_owned(),
        };
        let name = &it.name;
        format!("Ingress {name} is not served: {class}, and ingress.class is {ours}")
    };
    others.map(warning).collect()
}
