//! Shares of the requests of a route.

use std::collections::HashMap;

use ebbtide::contract::filters::Filters;
use ebbtide::contract::listener::FoundBy;
use ebbtide::contract::policy::Protocol;

use super::{action, http, open, rig, serve, table, to};
use crate::proxy::h2::app::{App, Call, Client, Version};

async fn named(name: &'static str) -> App {
    App::start(Version::H1, move |call: Call| async move {
        call.reply.say(name)
    })
    .await
}

/// While endpoints come and go, and the routes are put in force again and again.
#[tokio::test]
async fn weights_are_kept_while_endpoints_and_routes_change() {
    let rig = rig("").await;
    let (a, b) = (named("a").await, named("b").await);
    let mut others = vec![named("a").await, named("b").await];
    serve(&rig, "a", &[a.address, others[0].address]).await;
    serve(&rig, "b", &[b.address]).await;
    let (a_target, b_target) = (to("a", None), to("b", None));
    let routes = || {
        let shares = vec![(90, Some(a_target.clone())), (10, Some(b_target.clone()))];
        table(vec![("/", action(Filters::default(), shares))])
    };
    let (door, in_force) = open(&rig, FoundBy::Request, Protocol::Http, routes()).await;
    let mut client = Client::connect(Version::H1, door).await;
    let mut counts = HashMap::<String, usize>::new();
    for request in 0..10_000 {
        match request {
            2_500 => serve(&rig, "b", &[b.address, others[1].address]).await,
            5_000 => {
                rig.remove("a-1.json");
                serve(&rig, "a", &[a.address]).await;
                others.remove(0);
            }
            _ => {}
        }
        if request % 50 == 0 {
            in_force.store(routes().into());
        }
        let (status, name) = client.get("/").await;
        assert_eq!(status, 200, "request {request}");
        *counts.entry(name).or_default() += 1;
    }
    assert!(counts["b"].abs_diff(1_000) <= 100, "{counts:?}");
    assert_eq!(counts["a"] + counts["b"], 10_000);
    assert!(client.is_open());
}

#[tokio::test]
async fn a_share_that_leads_nowhere_is_answered_with_500_and_the_others_are_served() {
    let rig = rig("").await;
    let a = named("a").await;
    serve(&rig, "a", &[a.address]).await;
    let none = Filters::default;
    let door = http(
        &rig,
        table(vec![
            (
                "/half",
                action(none(), vec![(1, Some(to("a", None))), (1, None)]),
            ),
            ("/none", action(none(), vec![])),
            ("/zero", action(none(), vec![(0, Some(to("a", None)))])),
            (
                "/one",
                action(none(), vec![(0, None), (3, Some(to("a", None)))]),
            ),
        ]),
    )
    .await;
    let mut client = Client::connect(Version::H1, door).await;
    let mut ask = async |path: &str| {
        let asked = crate::proxy::h2::app::request("GET", path);
        let answer = client.ask(asked, None).await.unwrap();
        (answer.status(), answer.field("x-ebbtide-reason").to_owned())
    };
    let no_backend = (500, "no_backend".to_owned());
    let mut served = 0;
    for _ in 0..100 {
        match ask("/half").await {
            (200, _) => served += 1,
            other => assert_eq!(other, no_backend),
        }
    }
    assert!((48..=52).contains(&served), "{served}");
    assert_eq!(ask("/none").await, no_backend);
    assert_eq!(ask("/zero").await, no_backend);
    for _ in 0..10 {
        assert_eq!(ask("/one").await.0, 200);
    }
    assert_eq!(ask("/").await, (404, "no_route".to_owned()));
    // None of it has cost the client its connection.
    assert!(client.is_open());
}
