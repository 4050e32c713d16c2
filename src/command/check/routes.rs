//! What `check` says of Ingress objects: the rules in the order in which they count, and what of them
//! cannot be served.

use crate::command::check::served::{Services, port_of};
use crate::config::settings::Config;
use crate::contract::policy::Transport;
use crate::discovery::object::{BackendRef, IngressObject};
use crate::routing::routes::Routes;
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

/// What of the Ingress objects of our class cannot be served.
pub(super) fn warnings(config: &Config, world: &World, services: &Services) -> Vec<String> {
    let Some(ingress) = &config.ingress else {
        return Vec::new();
    };
    let ours = world.ingresses();
    let ours = ours.filter(|it| it.class.as_ref() == Some(&ingress.class));
    ours.flat_map(|it| of_one(it, services)).collect()
}

fn of_one(ingress: &IngressObject, services: &Services) -> Vec<String> {
    let name = &ingress.name;
    let unserved = ingress.unserved.iter();
    let unserved = unserved.map(|field| format!("Ingress {name}: {field} is not served"));
    let backends = ingress.rules.iter().map(|(_, to)| to);
    let backends = backends.chain(&ingress.default).filter_map(|to| {
        let (service, port) = (&to.service, &to.port);
        match services.get(service) {
            None => Some(format!("Ingress {name}: there is no Service {service}")),
            Some(found) if port_of(found, port, Transport::Tcp).is_none() => {
                Some(format!("Ingress {name}: {service} has no port {port}"))
            }
            Some(_) => None,
        }
    });
    let mut warnings: Vec<String> = unserved.chain(backends).collect();
    warnings.dedup();
    warnings
}
