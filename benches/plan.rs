//! The cost of a plan: the result of all objects of the Gateway API. A plan follows a change, at most one
//! each 100 ms, and plans take at most a tenth of the time.
#![allow(clippy::unwrap_used)] // A bench that cannot build its scene should stop.

use divan::Bencher;
use ebbtide::config::settings;
use ebbtide::discovery::document::Format;
use ebbtide::discovery::manifest::parse;
use ebbtide::discovery::object::Object;
use ebbtide::routing::gateway::facts::{Facts, Known, Objects};
use ebbtide::routing::gateway::grants::Grants;
use ebbtide::routing::gateway::plan::Plan;

fn main() {
    divan::main();
}

/// A Gateway, and this many HTTPRoutes with a host, two rules and a Service of their own.
fn objects(count: usize) -> Objects {
    let group = "apiVersion: gateway.networking.k8s.io/v1";
    let mut text = format!(
        "{group}\nkind: GatewayClass\nmetadata: {{name: c}}\nspec: {{controllerName: ebbtide.dev/gateway}}\n---\n\
         {group}\nkind: Gateway\nmetadata: {{name: g, namespace: web}}\nspec: {{gatewayClassName: c, \
         listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n"
    );
    for i in 0..count {
        text += &format!(
            "---\n{group}\nkind: HTTPRoute\nmetadata: {{name: r{i}, namespace: web}}\nspec:\n  \
             parentRefs: [{{name: g}}]\n  hostnames: [h{i}.example]\n  rules:\n  \
             - {{matches: [{{path: {{type: PathPrefix, value: /api}}}}], backendRefs: [{{name: s{i}, port: 80}}]}}\n  \
             - {{backendRefs: [{{name: s{i}, port: 80}}]}}\n"
        );
    }
    let objects = parse(&text, Format::Yaml, None).unwrap().into_iter();
    let objects = objects.filter_map(|object| match object {
        Object::Gateway(object) => Some(((object.kind, object.name.clone()), object)),
        _ => None,
    });
    objects.collect()
}

#[divan::bench(args = [10, 1_000, 5_000])]
fn plan(bencher: Bencher, count: usize) {
    let objects = objects(count);
    let settings = settings::Gateway {
        controller: "ebbtide.dev/gateway".to_owned(),
        addresses: vec!["192.0.2.0/24".parse().unwrap()],
    };
    bencher.bench_local(|| {
        Plan::of(&Facts {
            settings: &settings,
            node: &[],
            objects: &objects,
            grants: Grants::of(objects.values().map(|it| &**it)),
            service: &|_, _, _| Known::Is(()),
            port_name: &|_, _| None,
            secret: &|_| Known::Is(()),
            authorities: &|_| None,
            now: "now".to_owned(),
        })
        .doors
        .len()
    });
}
