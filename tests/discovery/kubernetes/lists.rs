//! The first lists (contract 1.10, 2.3, 2.5 and 2.7): what makes the proxy ready and what does not,
//! what it requests from the API server, and which objects it passes over. Half a list never takes
//! effect. Watches are tested in `breaks.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::api::{Api, Fault, Kind, Order, Verb};
use super::rig::{Rig, Times, WEB, claimed, deleting, pod, ready, service, shop, slice, within};
use crate::support::manifests::endpoint;
use crate::support::wait::eventually;

#[tokio::test]
async fn an_empty_list_makes_it_ready_and_not_before() {
    let api = Api::start().await;
    api.fault(Kind::Services, Verb::List, Fault::Wait);
    let rig = Rig::launch(&api, "", "");
    eventually("requested", async || {
        api.count(Kind::Services, Verb::List) == 1
    })
    .await;
    let (code, line) = rig.readyz().await;
    assert_eq!(
        (
            code,
            line.contains("no complete table of endpoints from kubernetes yet")
        ),
        (503, true),
        "{line}"
    );
    api.lift(Kind::Services, Verb::List);
    rig.clean().await;
    assert_eq!(
        api.count(Kind::Pods, Verb::List) + api.count(Kind::Slices, Verb::List),
        0,
        "no namespace is in use"
    );
}

#[tokio::test]
async fn it_is_ready_only_when_services_slices_and_pods_are_whole() {
    for kind in [Kind::Services, Kind::Slices, Kind::Pods] {
        let api = shop(3).await;
        api.fault(kind, Verb::List, Fault::Wait);
        let rig = Rig::launch(&api, "", WEB);
        for other in [Kind::Services, Kind::Slices, Kind::Pods] {
            // A watch is requested only after its list has taken effect.
            let verb = if other == kind {
                Verb::List
            } else {
                Verb::Watch
            };
            if (kind, other) == (Kind::Slices, Kind::Pods) {
                assert_eq!(api.count(other, verb), 0, "pods wait for the slices");
                continue;
            }
            eventually("requested", async || api.count(other, verb) > 0).await;
        }
        assert_eq!(rig.readyz().await.0, 503, "{kind:?}");
        if kind == Kind::Pods {
            rig.barrier(&[]).await;
            assert!(
                rig.port("shop").unwrap().all.is_empty(),
                "the first slices wait for the first pods"
            );
        }
        api.lift(kind, Verb::List);
        eventually("synced", async || rig.running().admin.health.state().synced).await;
        assert_eq!(
            rig.usable("shop"),
            [1, 2, 3],
            "{kind:?}: the listed endpoints are in force when the proxy is ready"
        );
        rig.clean().await;
    }
}

#[tokio::test]
async fn a_slow_list_of_pods_holds_up_the_start_for_a_bounded_time() {
    let api = shop(3).await;
    api.fault(Kind::Pods, Verb::List, Fault::Wait);
    let times = Times {
        pods_patience: Duration::from_millis(200),
        ..Times::default()
    };
    let rig = Rig::with_times(&api, "", WEB, times);
    rig.ready().await;
    assert_eq!(
        rig.usable("shop"),
        [1, 2, 3],
        "its slices are in force without its pods"
    );
    api.lift(Kind::Pods, Verb::List);
    // They are known now: a drain begins with the deletion of its pod again.
    api.apply(&deleting(pod("p1"), &api, 30, 30));
    rig.shop(&[2, 3]).await;
    rig.clean().await;
}

/// Pods are many: listed beside the slices, they would slow those down. So they wait, but not for ever.
#[tokio::test]
async fn pods_are_listed_after_the_slices_or_when_these_take_long() {
    let api = shop(3).await;
    api.fault(Kind::Slices, Verb::List, Fault::Wait);
    let times = Times {
        pods_patience: Duration::from_millis(200),
        ..Times::default()
    };
    let rig = Rig::with_times(&api, "", WEB, times);
    eventually("listed", async || api.count(Kind::Pods, Verb::Watch) > 0).await;
    assert_eq!(rig.readyz().await.0, 503);
    api.lift(Kind::Slices, Verb::List);
    rig.clean().await;
    assert_eq!(rig.usable("shop"), [1, 2, 3]);
}

#[tokio::test]
async fn a_missing_permission_is_named_with_its_cure_and_needs_no_restart() {
    let api = shop(1).await;
    api.fault(Kind::Pods, Verb::List, Fault::Status(403));
    let rig = Rig::launch(&api, "", WEB);
    eventually("reported", async || {
        rig.readyz().await.1.contains("forbidden")
    })
    .await;
    let (code, line) = rig.readyz().await;
    for part in [
        "not ready",
        "Pods in namespace web",
        "pods is forbidden",
        "grant list and watch",
        "rbac.yaml",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(code, 503);
    assert!(rig.errors("list") > 0);
    api.lift(Kind::Pods, Verb::List);
    rig.clean().await;
    assert_eq!(rig.usable("shop"), [1]);
}

#[tokio::test]
async fn every_failed_list_is_reported_and_tried_again() {
    for fault in [
        Fault::Status(401),
        Fault::Status(429),
        Fault::Status(500),
        Fault::Status(503),
        Fault::Drop,
        Fault::Half,
    ] {
        let api = shop(1).await;
        api.fault(Kind::Slices, Verb::List, fault);
        let rig = Rig::launch(&api, "", WEB);
        eventually(&format!("{fault:?} reported"), async || {
            rig.readyz()
                .await
                .1
                .contains("EndpointSlices in namespace web")
        })
        .await;
        let (code, line) = rig.readyz().await;
        assert_eq!(code, 503, "{fault:?}: {line}");
        if fault == Fault::Status(401) {
            assert!(
                line.contains("credentials of discovery.kubernetes are not accepted"),
                "{line}"
            );
        }
        api.lift(Kind::Slices, Verb::List);
        rig.clean().await;
        assert_eq!(rig.usable("shop"), [1]);
    }
}

#[tokio::test]
async fn ten_thousand_endpoints_take_few_requests() {
    let api = Api::start().await;
    api.apply(&service("shop"));
    for s in 0..100 {
        let endpoints = (0..100).map(|n| {
            endpoint(
                &format!("10.1.{s}.{n}"),
                Some(&format!("p-{s}-{n}")),
                [true, true, false],
            )
        });
        let endpoints: Vec<Value> = endpoints.collect();
        (0..100).for_each(|n| api.apply(&pod(&format!("p-{s}-{n}"))));
        api.apply(&slice(&format!("s-{s}"), "shop", &endpoints));
    }
    let rig = Rig::start(&api).await;
    assert_eq!(rig.port("shop").unwrap().usable.len(), 10_000);
    eventually("all watched", async || {
        [Kind::Services, Kind::Slices, Kind::Pods]
            .iter()
            .all(|kind| api.open(*kind) == 1)
    })
    .await;
    // Four watches, each with a list, which the API server sends whole from its cache, and an offer
    // to stream it.
    assert!(api.asked().len() <= 12, "{}", api.asked().len());
}

#[tokio::test]
async fn pods_and_slices_are_watched_only_where_a_served_service_is() {
    let api = shop(1).await;
    for namespace in ["other", "later", "reloaded"] {
        api.apply(&within(namespace, service("app")));
        api.apply(&within(namespace, slice("s", "app", &[ready(7, "p")])));
        api.apply(&within(namespace, pod("p")));
    }
    let rig = Rig::start(&api).await;
    rig.barrier(&[]).await;
    let namespaces = |kind| {
        let asked = api.asked().into_iter().filter(|asked| asked.kind == kind);
        asked
            .map(|asked| asked.namespace.unwrap_or("*".into()))
            .collect::<BTreeSet<_>>()
    };
    let of = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>()
    };
    // Slices of the named Service, and from the barrier's claim on those of claimed Services.
    let slices = of(&["*", "web"]);
    assert_eq!(namespaces(Kind::Services), of(&["*", "web"]));
    eventually("all is requested", async || {
        (namespaces(Kind::Pods), namespaces(Kind::Slices)) == (of(&["web"]), slices.clone())
    })
    .await;

    api.apply(&within("later", claimed(service("app"))));
    eventually("a Service is claimed", async || {
        rig.port("later/app")
            .is_some_and(|port| port.usable.len() == 1)
    })
    .await;
    assert_eq!(
        (namespaces(Kind::Pods), namespaces(Kind::Slices)),
        (of(&["later", "web"]), slices)
    );

    rig.reload(
        "",
        &format!("{WEB}\n").replace(
            "}]",
            "}, {name: b, address: '127.0.0.1:0', service: reloaded/app, port: 80}]",
        ),
    );
    eventually("a listener is added", async || {
        rig.port("reloaded/app")
            .is_some_and(|port| port.usable.len() == 1)
    })
    .await;
    assert_eq!(namespaces(Kind::Pods), of(&["later", "reloaded", "web"]));
    assert!(rig.port("other/app").is_none());
    rig.clean().await;
}

#[tokio::test]
async fn only_the_configured_namespaces_are_requested() {
    let api = shop(1).await;
    api.apply(&within("blue", claimed(service("app"))));
    api.apply(&within("blue", slice("s", "app", &[ready(7, "p")])));
    api.apply(&within("red", claimed(service("app"))));
    let rig = Rig::launch(&api, "namespaces: [web, blue]", WEB);
    rig.clean().await;
    rig.settled().await;
    assert_eq!(
        (rig.usable("shop"), rig.usable("blue/app")),
        (vec![1], vec![7])
    );
    assert!(rig.port("red/app").is_none());
    for asked in api.asked() {
        assert!(
            ["web", "blue"].contains(&asked.namespace.as_deref().unwrap_or("all")),
            "{asked:?}"
        );
    }
}

#[tokio::test]
async fn a_pod_that_terminates_before_the_start_gets_no_dispatch() {
    let api = shop(3).await;
    api.apply(&deleting(pod("p2"), &api, 20, 30));
    // The slices arrive long before the Pods.
    api.fault(Kind::Pods, Verb::List, Fault::Wait);
    let rig = Rig::launch(&api, "", WEB);
    eventually("the slices are there", async || {
        api.open(Kind::Slices) == 1 && api.count(Kind::Pods, Verb::List) == 1
    })
    .await;
    // Changes of slices must wait, too.
    api.apply(&slice("t", "shop", &[ready(9, "p9")]));
    api.delete(Kind::Slices, "web", "t");
    api.apply(&slice(
        "s",
        "shop",
        &[
            ready(1, "p1"),
            ready(2, "p2"),
            ready(3, "p3"),
            ready(4, "p4"),
        ],
    ));
    rig.barrier(&[]).await;
    assert!(rig.port("shop").unwrap().all.is_empty());
    api.lift(Kind::Pods, Verb::List);
    rig.ready().await;
    rig.settled().await;
    assert_eq!(rig.usable("shop"), [1, 3, 4]);
    // If any published table had held the pod, it would have been drained.
    assert_eq!(rig.drained(), [0u8; 0]);
}

#[tokio::test]
async fn objects_that_break_the_rules_are_passed_over_and_cost_the_others_nothing() {
    let api = shop(2).await;
    let bad = || {
        slice(
            "bad",
            "shop",
            &[endpoint("10.0.0.300", Some("p9"), [true, true, false])],
        )
    };
    let mut fqdn = slice(
        "fqdn",
        "shop",
        &[endpoint("shop.example", Some("p8"), [true, true, false])],
    );
    fqdn["addressType"] = "FQDN".into();
    let mut nameless = pod("p7");
    nameless["metadata"]["name"] = "".into();
    let mut empty = slice("empty", "shop", &[]);
    empty["endpoints"] = Value::Null;
    empty["ports"] = Value::Null;
    for object in [&bad(), &fqdn, &nameless, &empty] {
        api.apply(object);
    }
    let rig = Rig::start(&api).await;
    assert_eq!(rig.usable("shop"), [1, 2]);
    assert_eq!(rig.errors("object"), 2, "the address and the name");

    // The same through a watch. An object that can no longer be read keeps its last good state.
    let mut broken = slice(
        "s",
        "shop",
        &[endpoint("::1", Some("p1"), [true, true, false])],
    );
    broken["metadata"]["generation"] = 2.into();
    for object in [&broken, &bad(), &fqdn, &nameless, &empty] {
        api.apply(object);
    }
    rig.settled().await;
    assert_eq!((rig.usable("shop"), rig.errors("object")), (vec![1, 2], 5));
    api.apply(&slice("s", "shop", &[ready(1, "p1"), ready(3, "p3")]));
    rig.shop(&[1, 3]).await;
    rig.clean().await;
}

#[tokio::test]
async fn an_annotation_of_a_megabyte_is_accepted() {
    let api = shop(1).await;
    let large = |mut object: Value| {
        object["metadata"]["annotations"]["note"] = "x".repeat(1 << 20).into();
        object
    };
    for object in [
        large(service("shop")),
        large(pod("p1")),
        large(slice("t", "shop", &[ready(2, "p2")])),
    ] {
        api.apply(&object);
    }
    let rig = Rig::start(&api).await;
    assert_eq!(rig.usable("shop"), [1, 2]);
    api.apply(&large(slice("t", "shop", &[ready(3, "p3")])));
    rig.shop(&[1, 3]).await;
    api.apply(&large(deleting(pod("p1"), &api, 30, 30)));
    rig.shop(&[3]).await;
    rig.clean().await;
}

#[tokio::test]
async fn a_list_that_keeps_failing_is_requested_less_and_less_often() {
    let api = shop(1).await;
    api.fault(Kind::Services, Verb::List, Fault::Status(500));
    let rig = Rig::launch(&api, "", WEB);
    eventually("some tries", async || {
        api.count(Kind::Services, Verb::List) >= 6
    })
    .await;
    let asked = api.asked();
    let at: Vec<_> = asked
        .iter()
        .filter(|it| (it.kind, it.verb, &it.namespace) == (Kind::Services, Verb::List, &None))
        .map(|it| it.at)
        .collect();
    // The fifth pause is 1.6 s, less a jitter of up to a half.
    assert!(
        (at[5] - at[4]).as_millis() > 700,
        "{:?}",
        at.windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect::<Vec<_>>()
    );
    api.lift(Kind::Services, Verb::List);
    rig.clean().await;
}

#[tokio::test]
async fn a_list_that_never_completes_is_one_lasting_problem() {
    let api = shop(1).await;
    api.fault(Kind::Pods, Verb::List, Fault::Half);
    let rig = Rig::launch(&api, "", WEB);
    let since = || {
        rig.running()
            .admin
            .health
            .state()
            .problems
            .first()
            .map(|problem| problem.since)
    };
    eventually("a problem", async || since().is_some()).await;
    let (first, tries) = (since(), api.count(Kind::Pods, Verb::List));
    eventually("more tries", async || {
        api.count(Kind::Pods, Verb::List) >= tries + 3
    })
    .await;
    assert_eq!(since(), first, "a half list does not end the problem");
    api.lift(Kind::Pods, Verb::List);
    rig.clean().await;
    assert_eq!(rig.usable("shop"), [1]);
}

#[tokio::test]
async fn an_expired_continue_token_restarts_the_list() {
    let api = shop(1).await;
    (0..600).for_each(|n| api.apply(&pod(&format!("more-{n}"))));
    let rig = Rig::start(&api).await;
    eventually("watched", async || api.open(Kind::Pods) == 1).await;
    api.fault(Kind::Pods, Verb::More, Fault::Wait);
    api.forget(Kind::Pods);
    eventually("the second page is requested", async || {
        api.count(Kind::Pods, Verb::More) == 1
    })
    .await;
    api.forget_pages();
    api.lift(Kind::Pods, Verb::More);
    eventually("listed again", async || {
        api.count(Kind::Pods, Verb::List) == 3 && api.open(Kind::Pods) == 1
    })
    .await;
    rig.clean().await;
    assert_eq!((rig.usable("shop"), rig.errors("gone")), (vec![1], 2));
}

#[tokio::test]
async fn null_conditions_mean_what_the_api_says() {
    let api = shop(1).await;
    let mut bare = endpoint("10.0.0.5", Some("p5"), [true, true, false]);
    bare["conditions"] = json!({});
    let mut barer = bare.clone();
    barer["addresses"] = json!(["10.0.0.6"]);
    barer["conditions"] = Value::Null;
    api.apply(&slice("t", "shop", &[bare, barer]));
    let rig = Rig::start(&api).await;
    assert_eq!(rig.usable("shop"), [1, 5, 6]);
    api.order(Kind::Slices, Order::End);
    rig.settled().await;
    assert_eq!(rig.usable("shop"), [1, 5, 6]);
}
