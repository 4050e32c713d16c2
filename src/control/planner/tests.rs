use super::*;
use crate::contract::policy::Transport;
use crate::discovery::document::Format;
use crate::discovery::manifest::parse;
use crate::discovery::object::Object;

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: c}
spec: {controllerName: ebbtide.dev/gateway}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: web}
spec: {gatewayClassName: c, listeners: [{name: http, port: 80, protocol: HTTP}]}
";

fn route(name: &str, service: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: web}}
spec: {{parentRefs: [{{name: g}}], hostnames: [{name}.example], \
         rules: [{{backendRefs: [{{name: {service}, port: 80}}]}}]}}
"
    )
}

fn news(text: &str) -> News {
    let objects = parse(text, Format::Yaml, None).unwrap().into_iter();
    let objects = objects.filter_map(|object| match object {
        Object::Gateway(object) => Some(((object.kind, object.name.clone()), Some(object))),
        _ => None,
    });
    News {
        objects: objects.collect(),
        ..News::default()
    }
}

fn planner() -> Planner {
    Planner {
        settings: settings::Gateway {
            controller: "ebbtide.dev/gateway".to_owned(),
            addresses: Vec::new(),
        },
        node: Vec::new(),
        has_pool: false,
        writes: false,
        objects: Objects::new(),
        known: News::default(),
        targets: Targets::of_gateways(),
        plans: Vec::new(),
    }
}

/// The listener behind a host, as a worker finds it.
fn target(made: &Made, host: &str) -> Option<Target> {
    let action = made.plan.tables[0].1.find(host, "/")?;
    action.backends.all[action.backends.choose()?].1.clone()
}

#[test]
fn a_plan_is_told_once_and_names_what_it_has_not_been_told() {
    let [shop, cart] = ["shop", "cart"].map(|it| ObjectName::new("web", it));
    let mut planner = planner();
    let first = planner.plan(news(&format!("{GATEWAY}---\n{}", route("r", "shop"))));
    assert_eq!(first.differ, vec![shop.clone()]);
    // It may be there: its clients wait.
    let before = target(&first, "r.example").unwrap();
    assert!(first.plan.faults.is_empty());

    let missing = News {
        services: [(shop.clone(), Some(None))].into(),
        ..News::default()
    };
    let second = planner.plan(missing);
    assert!(second.differ.is_empty());
    assert_eq!(second.gone, vec![shop.clone()]);
    assert!(target(&second, "r.example").is_none());
    assert_eq!(second.plan.faults.len(), 1, "{:?}", second.plan.faults);

    let there = Some(Some(vec![(80, Transport::Tcp, "http".to_owned())]));
    let told = News {
        services: [(shop.clone(), there.clone())].into(),
        ..News::default()
    };
    let third = planner.plan(told);
    let known = target(&third, "r.example").unwrap();
    assert_ne!(known.listener.id, before.listener.id);
    // Another route changes nothing of this one, although nothing of it is told again.
    let other = planner.plan(news(&route("s", "cart")));
    assert_eq!(other.differ, vec![cart]);
    let same = target(&other, "r.example").unwrap();
    assert!(Arc::ptr_eq(&known.listener, &same.listener));

    // What no route names is forgotten, here as there.
    let gone = News {
        objects: [((GatewayKind::HttpRoute, ObjectName::new("web", "r")), None)].into(),
        ..News::default()
    };
    let fifth = planner.plan(gone);
    assert_eq!(
        (&fifth.differ, &fifth.gone),
        (&vec![shop.clone()], &vec![shop])
    );
    assert!(planner.known.services.is_empty());
}

#[test]
fn a_plan_is_freed_when_nobody_reads_it_and_not_before() {
    let mut planner = planner();
    let first = planner.plan(news(&format!("{GATEWAY}---\n{}", route("r", "shop"))));
    let (sender, news) = channel();
    sender.send(News::default()).unwrap();
    let read = first.plan.tables[0].1.clone();
    planner.plan(News::default());
    let third = planner.plan(News::default());
    // The second is read by nobody. A worker still reads a table of the first.
    drop(first);
    assert!(planner.next(&news).is_some());
    assert_eq!(planner.plans.len(), 2);
    drop(read);
    drop(sender);
    assert!(planner.next(&news).is_none());
    assert_eq!(planner.plans.len(), 1);
    assert!(Arc::ptr_eq(&planner.plans[0], &third.plan));
}
