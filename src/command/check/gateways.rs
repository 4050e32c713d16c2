//! What `check` says of the Gateway API's objects: where clients come in, the rules in the order in which
//! they count, and what of them is not served.

use crate::config::settings::Config;
use crate::contract::name::ObjectName;
use crate::routing::gateway::facts::{Facts, Known, known_port, ports_of};
use crate::routing::gateway::grants::Grants;
use crate::routing::gateway::plan::Plan;
use crate::routing::gateway::rules::Planned;
use crate::routing::gateway::statuses::faults;
use crate::routing::world::objects::World;
use crate::text::{Columns, table};

/// A table of the rules, empty without Gateways, and warnings. Secrets are not looked at.
pub(super) fn look(config: &Config, world: &World) -> (String, Vec<String>) {
    let Some(settings) = &config.gateway else {
        return Default::default();
    };
    let service = |name: &ObjectName, port: u16, is_udp: bool| {
        known_port(&ports_of(world, name), name, port, is_udp)
    };
    let plan = Plan::of(&Facts {
        settings,
        node: &[],
        objects: world.gateways(),
        grants: Grants::of(world.gateways().values().map(|it| &**it)),
        service: &service,
        secret: &|_| Known::Unknown,
        now: String::new(),
    });
    let warnings = plan.statuses.iter().flat_map(|((kind, name), status)| {
        let texts = faults(status).into_iter();
        texts.map(move |text| format!("{} {name}: {text}", kind.names().0))
    });
    (rows(&plan), warnings.collect())
}

fn rows(plan: &Plan) -> String {
    let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["ADDRESS", "HOST", "PATH", "ROUTE", "SERVICES"])];
    for ((_, port, _), door) in &plan.doors {
        let addresses = door.addresses.iter().map(|it| format!("{it}:{port}"));
        let at = addresses.collect::<Vec<_>>().join(",");
        let mut add = |host: &str, path: &str, planned: &Planned| {
            rows.push(row([&at, host, path, &planned.route, &shares(planned)]));
        };
        for (rule, planned) in &door.rules {
            let exact = if rule.exact { " exactly" } else { "" };
            let path = format!("{}{exact}", rule.path);
            add(rule.host.as_deref().unwrap_or("*"), &path, planned);
        }
        if let Some(planned) = &door.default {
            add("*", "-", planned);
        }
    }
    match rows.len() {
        1 => String::new(),
        _ => format!("\n{}", table(&rows, Columns::Words)),
    }
}

fn shares(planned: &Planned) -> String {
    if planned.backends.is_empty() {
        return "-".to_owned();
    }
    let each = planned.backends.iter().map(|(weight, to)| match to {
        Some(to) => format!("{}:{} ({weight})", to.to.service, to.to.port),
        None => format!("nobody ({weight})"),
    });
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config::settings::{Discovery, Gateway};
    use crate::discovery::document::Format;
    use crate::discovery::manifest::parse;
    use crate::discovery::object::Change;
    use crate::routing::world::objects::Touched;

    #[test]
    fn rules_are_shown_and_what_is_not_served_is_a_warning() {
        let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: ours}
spec: {controllerName: ebbtide.dev/gateway}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: web}
spec: {gatewayClassName: ours, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: web}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: shop, port: 80}]}]}
";
        let (mut world, mut touched) = (World::default(), Touched::default());
        for object in parse(text, Format::Yaml, None).unwrap() {
            world.apply(Change::Apply(object), Instant::now(), &mut touched);
        }
        let mut config = Config::new(Discovery::Static { to: Vec::new() });
        assert_eq!(look(&config, &world), Default::default());
        config.gateway = Some(Gateway {
            controller: "ebbtide.dev/gateway".to_owned(),
            addresses: vec!["192.0.2.1/32".parse().unwrap()],
        });
        let (rules, warnings) = look(&config, &world);
        let row = "192.0.2.1:80  *     /     HTTPRoute web/shop  nobody (1)";
        assert!(rules.contains(row), "{rules}");
        let missing = "HTTPRoute web/shop: BackendNotFound: there is no Service web/shop";
        assert_eq!(warnings, [missing]);
    }
}
