//! What `check` says of the Gateway API's objects: where clients come in, the rules in the order in which
//! they count, and what of them is not served.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::settings::{Config, Discovery};
use crate::contract::authorities::{FoundAuthorities, Holder};
use crate::contract::name::ObjectName;
use crate::contract::route::Rule;
use crate::discovery::files::NOWHERE;
use crate::discovery::gateway::{GatewayKind, GatewayObject, Spec};
use crate::discovery::route_spec::RouteSpec;
use crate::routing::gateway::facts::{Facts, Known, known_port, port_name, ports_of};
use crate::routing::gateway::grants::Grants;
use crate::routing::gateway::plan::Plan;
use crate::routing::gateway::rules::Planned;
use crate::routing::gateway::statuses::faults;
use crate::routing::world::objects::World;
use crate::text::{Columns, table};

/// What the objects come to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Looked {
    /// A table of the rules, empty without Gateways.
    pub(super) rules: String,
    pub(super) warnings: Vec<String>,
    /// The Services that the rules lead to.
    pub(super) services: BTreeSet<ObjectName>,
}

/// Looks at the objects. `secret` says what is wrong with one. `authorities` are those that were found.
pub(super) fn look(
    config: &Config,
    world: &World,
    secret: &dyn Fn(&ObjectName) -> Option<String>,
    authorities: &BTreeMap<Holder, FoundAuthorities>,
) -> Looked {
    let Some(settings) = &config.gateway else {
        return Looked::default();
    };
    let of_folder = matches!(config.discovery, Discovery::Files { .. });
    let objects = world.gateways();
    let service = |name: &ObjectName, port: u16, is_udp: bool| {
        known_port(&ports_of(world, name), name, port, is_udp)
    };
    let plan = Plan::of(&Facts {
        settings,
        node: &[],
        objects,
        grants: Grants::of(objects.values().map(|it| &**it)),
        service: &service,
        secret: &|name| match secret(name) {
            Some(why) => Known::Missing(why),
            None if of_folder => Known::Is(()),
            None => Known::Unknown,
        },
        port_name: &|name, port| port_name(&ports_of(world, name), port),
        authorities: &|holder| {
            let found = authorities.get(holder).cloned();
            found.or_else(|| of_folder.then(|| Err(NOWHERE.to_owned())))
        },
        now: String::new(),
    });
    let warnings = plan.statuses.iter().flat_map(|((kind, name), status)| {
        let texts = faults(status).into_iter();
        texts.map(move |text| format!("{} {name}: {text}", kind.names().0))
    });
    let mut warnings: Vec<String> = warnings.collect();
    if of_folder {
        warnings.extend(left_out(&settings.controller, world));
        warnings.extend(plan.idle_policies.iter().map(|name| {
            format!("BackendTLSPolicy {name}: no route leads to a Service port that it names")
        }));
    } else if !objects
        .values()
        .any(|it| is_class_of(&settings.controller, it))
    {
        warnings.push(format!(
            "no GatewayClass has controllerName {}: no Gateway is served",
            settings.controller
        ));
    }
    let services = plan.backends().map(|it| it.to.service.clone());
    Looked {
        rules: rows(&plan),
        services: services.collect(),
        warnings,
    }
}

fn is_class_of(controller: &str, object: &GatewayObject) -> bool {
    matches!(&object.spec, Spec::Class(it) if it.controller_name == controller)
}

/// Gateways and routes of which nothing else speaks, though they lead nobody on. In a cluster they may be
/// another controller's.
fn left_out(controller: &str, world: &World) -> Vec<String> {
    let objects = world.gateways();
    let is_known = |kind, name: ObjectName| objects.contains_key(&(kind, name));
    let is_ours = |class: &str| {
        let class = objects.get(&(GatewayKind::GatewayClass, ObjectName::new("", class)));
        class.is_some_and(|it| is_class_of(controller, it))
    };
    let (mut warnings, mut gateways) = (Vec::new(), 0);
    for object in objects.values() {
        let name = format!("{} {}", object.kind.names().0, object.name);
        match &object.spec {
            Spec::Gateway(spec) if is_ours(&spec.gateway_class_name) => gateways += 1,
            Spec::Gateway(spec) => warnings.push(format!(
                "{name}: there is no GatewayClass {} with controllerName {controller}",
                spec.gateway_class_name
            )),
            Spec::Route(spec) if spec.parent_refs.is_empty() => {
                warnings.push(format!(
                    "{name}: without parentRefs, no Gateway leads to it"
                ));
            }
            Spec::Route(spec) => {
                for to in &spec.parent_refs {
                    let namespace = to.namespace.as_ref().unwrap_or(&object.name.namespace);
                    let gateway = ObjectName::new(&**namespace, &*to.name);
                    let is_gateway = to.kind.as_deref().is_none_or(|it| it == "Gateway");
                    if is_gateway && !is_known(GatewayKind::Gateway, gateway.clone()) {
                        warnings.push(format!("{name}: there is no Gateway {gateway}"));
                    }
                }
                warnings.extend(unserved_rules(object, spec).map(|it| format!("{name}: {it}")));
            }
            _ => {}
        }
    }
    if gateways == 0 {
        warnings.push(format!(
            "no Gateway is of a GatewayClass with controllerName {controller}: no route is served"
        ));
    }
    warnings
}

/// Rules that lead nowhere. Their author may have misspelt a field, which nobody reads.
fn unserved_rules(route: &GatewayObject, spec: &RouteSpec) -> impl Iterator<Item = String> {
    let answer = match route.kind {
        GatewayKind::HttpRoute | GatewayKind::GrpcRoute => "its requests get 500",
        _ => "its clients are reset",
    };
    let empty = spec.rules.iter().enumerate().filter(|(_, rule)| {
        let redirects = rule.filters.iter().any(|it| it.kind == "RequestRedirect");
        rule.backend_refs.is_empty() && !redirects
    });
    empty.map(move |(i, _)| format!("spec.rules[{i}] has no backendRefs, so {answer}"))
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
            let path = path(rule);
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

/// A rule's path, and what else its requests must have.
fn path(rule: &Rule) -> String {
    let mut text = rule.path.clone();
    if rule.exact {
        text += " exactly";
    }
    let wants = &rule.wants;
    let method = wants.method.iter().chain(&wants.last).cloned();
    let fields = wants
        .fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}"));
    let query = wants
        .query
        .iter()
        .map(|(name, value)| format!("?{name}={value}"));
    let all: Vec<String> = method.chain(fields).chain(query).collect();
    match all.is_empty() {
        true => text,
        false => format!("{text} ({})", all.join(", ")),
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
        let look =
            |config: &Config, world: &World| look(config, world, &|_| None, &BTreeMap::new());
        assert_eq!(look(&config, &world), Looked::default());
        config.gateway = Some(Gateway {
            controller: "ebbtide.dev/gateway".to_owned(),
            addresses: vec!["192.0.2.1/32".parse().unwrap()],
        });
        let Looked {
            rules, warnings, ..
        } = look(&config, &world);
        let row = "192.0.2.1:80  *     /     HTTPRoute web/shop  nobody (1)";
        assert!(rules.contains(row), "{rules}");
        let missing = "HTTPRoute web/shop: BackendNotFound: there is no Service web/shop";
        assert_eq!(warnings, [missing]);
        let policies = "
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: web}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: used, namespace: web}
spec:
  targetRefs: [{group: '', kind: Service, name: shop}]
  validation: {hostname: shop.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: idle, namespace: web}
spec: {targetRefs: [{group: '', kind: Service, name: x}], validation: {hostname: x.example}}
";
        for object in parse(policies, Format::Yaml, None).unwrap() {
            world.apply(Change::Apply(object), Instant::now(), &mut touched);
        }
        let path = std::path::PathBuf::from("manifests");
        config.discovery = Discovery::Files { path };
        let warnings = look(&config, &world).warnings;
        let why = "ConfigMap web/ca: no manifest has it with the key ca.crt";
        assert_eq!(
            warnings,
            [
                format!("BackendTLSPolicy web/used: NoValidCACertificate: {why}"),
                format!("BackendTLSPolicy web/used: InvalidCACertificateRef: {why}"),
                "BackendTLSPolicy web/idle: no route leads to a Service port that it names"
                    .to_owned(),
            ]
        );
    }
}
