//! Watches that break in every way (contract 1.10 and 2.7): silent, cut, ended, expired by 410,
//! with garbage, or with the whole API server away. The last table stays in force, nothing that
//! happened meanwhile is lost, and a new list takes effect as a whole or not at all.

use std::time::Duration;

use super::api::{Api, Fault, KINDS, Kind, Order, Verb};
use super::rig::{Rig, Times, WEB, deleting, pod, ready, service, shop, slice, terminating};
use crate::support::wait::eventually;

async fn watched(api: &Api) {
    eventually("all is watched", async || {
        KINDS.iter().all(|kind| api.open(*kind) == 1)
    })
    .await;
}

/// A shop of three endpoints, with enough other objects for lists of many pages. All are watched.
async fn long_shop() -> (Api, Rig) {
    let api = shop(3).await;
    for n in 0..600 {
        api.apply(&slice(&format!("t{n}"), "shop", &[]));
        api.apply(&pod(&format!("more-{n}")));
    }
    let rig = Rig::start(&api).await;
    rig.shop(&[1, 2, 3]).await;
    watched(&api).await;
    (api, rig)
}

#[tokio::test]
async fn a_relist_takes_effect_at_its_end_and_the_table_stays_until_then() {
    for kind in [Kind::Slices, Kind::Pods] {
        let (api, rig) = long_shop().await;
        let more = api.count(kind, Verb::More);
        api.fault(kind, Verb::More, Fault::Wait);
        api.forget(kind);
        // The watch did not miss these silently: it received 410.
        eventually("listed again", async || api.count(kind, Verb::More) > more).await;
        // The first page has arrived. It does not name p1 to p3, because lists are sorted: it holds
        // t0 to t499, and Pods likewise.
        rig.barrier(&[]).await;
        assert_eq!(rig.usable("shop"), [1, 2, 3], "{kind:?}");
        assert!(rig.drains().is_empty(), "{kind:?}");
        let (_, line) = rig.readyz().await;
        assert_eq!(line, "ready", "{kind:?}: a relist is no problem");
        api.lift(kind, Verb::More);
        rig.settled().await;
        assert_eq!(
            (rig.usable("shop"), rig.drained()),
            (vec![1, 2, 3], vec![]),
            "{kind:?}"
        );
        assert_eq!(
            (rig.errors("gone"), api.count(kind, Verb::List)),
            (1, 2),
            "{kind:?}"
        );
    }
}

#[tokio::test]
async fn what_vanished_in_the_gap_is_drained_when_the_list_is_whole() {
    let (api, rig) = long_shop().await;
    // No watch ever reports this deletion.
    api.hold(Kind::Pods);
    api.delete(Kind::Pods, "web", "p2");
    api.fault(Kind::Pods, Verb::More, Fault::Wait);
    api.forget_by_status(Kind::Pods);
    api.release(Kind::Pods);
    eventually("half is listed", async || {
        api.count(Kind::Pods, Verb::More) > 0
    })
    .await;
    rig.barrier(&[]).await;
    assert_eq!((rig.usable("shop"), rig.drained()), (vec![1, 2, 3], vec![]));
    api.lift(Kind::Pods, Verb::More);
    rig.shop(&[1, 3]).await;
    assert_eq!(rig.drained(), [2]);
    rig.clean().await;
}

#[tokio::test]
async fn half_a_list_changes_nothing() {
    let (api, rig) = long_shop().await;
    api.delete(Kind::Slices, "web", "t0");
    let errors = rig.errors("list");
    api.fault(Kind::Slices, Verb::More, Fault::Half);
    api.forget(Kind::Slices);
    eventually("cut twice", async || rig.errors("list") >= errors + 2).await;
    rig.barrier(&[]).await;
    assert_eq!((rig.usable("shop"), rig.drained()), (vec![1, 2, 3], vec![]));
    let (code, line) = rig.readyz().await;
    assert!(
        code == 200 && line.contains("the last good table is in force"),
        "{line}"
    );
    // Objects that were in the half lists and are gone since must not come back.
    api.delete(Kind::Slices, "web", "s");
    api.apply(&slice("r", "shop", &[ready(1, "p1"), ready(3, "p3")]));
    api.lift(Kind::Slices, Verb::More);
    rig.shop(&[1, 3]).await;
    rig.clean().await;
    assert!(rig.drains().is_empty(), "its pod lives");
}

#[tokio::test]
async fn a_410_in_a_stream_or_as_a_status_is_followed_by_a_new_list() {
    for by_status in [false, true] {
        for kind in KINDS {
            let api = shop(2).await;
            let rig = Rig::start(&api).await;
            rig.shop(&[1, 2]).await;
            watched(&api).await;
            match by_status {
                true => api.forget_by_status(kind),
                false => api.forget(kind),
            }
            eventually("listed again", async || api.count(kind, Verb::List) == 2).await;
            eventually("and watched", async || api.open(kind) == 1).await;
            api.apply(&deleting(pod("p1"), &api, 30, 30));
            rig.shop(&[2]).await;
            rig.settled().await;
            // The listener's Service has a watch of its own.
            let watches = if kind == Kind::Services { 2 } else { 1 };
            assert_eq!(
                rig.errors("gone"),
                watches,
                "{kind:?}, by status: {by_status}"
            );
            rig.clean().await;
        }
    }
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_given_up_and_resumed_and_nothing_is_lost() {
    let api = shop(2).await;
    let silence = Duration::from_secs(1);
    let times = Times {
        silence,
        ..Times::default()
    };
    let rig = Rig::with_times(&api, "", WEB, times);
    rig.shop(&[1, 2]).await;
    eventually("watched", async || api.open(Kind::Pods) == 1).await;
    api.order(Kind::Pods, Order::Silence);
    api.apply(&deleting(pod("p1"), &api, 30, 30));
    rig.shop(&[2]).await;
    assert!(api.count(Kind::Pods, Verb::Watch) >= 2);
    assert_eq!(
        api.count(Kind::Pods, Verb::List),
        1,
        "the watch resumes from where it was"
    );
    assert!(rig.errors("watch") >= 1);
    // Idle watches time out meanwhile, because there is nothing to report. Each is opened again.
    rig.clean().await;
}

#[tokio::test]
async fn a_bookmark_counts_as_activity_and_the_watch_resumes_from_it() {
    let api = shop(1).await;
    let rig = Rig::start(&api).await;
    watched(&api).await;
    rig.settled().await;
    api.bookmark(Kind::Pods);
    api.order(Kind::Pods, Order::End);
    eventually("resumed", async || api.count(Kind::Pods, Verb::Watch) == 2).await;
    let asked = api.asked();
    let last = asked
        .iter()
        .rfind(|asked| asked.kind == Kind::Pods)
        .unwrap();
    let listed = asked
        .iter()
        .rfind(|asked| asked.kind == Kind::Slices)
        .unwrap();
    assert!(last.query.contains("allowWatchBookmarks=true"), "{last:?}");
    assert!(
        last.query != listed.query,
        "it no longer starts from the list's version"
    );
    rig.clean().await;
}

#[tokio::test]
async fn a_cut_or_ended_watch_is_resumed_from_where_it_was() {
    for kind in KINDS {
        for order in [Order::Cut, Order::End] {
            let api = shop(2).await;
            let rig = Rig::start(&api).await;
            watched(&api).await;
            let watches = api.count(kind, Verb::Watch);
            api.fault(kind, Verb::Watch, Fault::Wait);
            api.order(kind, order);
            eventually("resumed", async || api.count(kind, Verb::Watch) > watches).await;
            match kind {
                Kind::Services => api.apply(&service("another")),
                Kind::Slices => {
                    api.apply(&slice("s", "shop", &[terminating(1, "p1"), ready(2, "p2")]))
                }
                Kind::Pods => api.apply(&deleting(pod("p1"), &api, 30, 30)),
                _ => unreachable!(),
            }
            api.lift(kind, Verb::Watch);
            if kind != Kind::Services {
                rig.shop(&[2]).await;
            }
            rig.settled().await;
            rig.clean().await;
            assert_eq!(api.count(kind, Verb::List), 1);
        }
    }
}

#[tokio::test]
async fn bytes_that_are_no_event_lose_no_event_around_them() {
    // The third stands for a Pod's deletion that cannot be read.
    let unreadable = r#"{"type":"MODIFIED","object":{"metadata":{"name":7}}}"#;
    for garbage in ["\u{0}\u{7f}garbage", "<html>502</html>", unreadable] {
        let api = shop(3).await;
        let rig = Rig::start(&api).await;
        watched(&api).await;
        // The garbage replaces an event: the object has changed, and no watch ever reports it.
        api.hold(Kind::Pods);
        api.apply(&deleting(pod("p1"), &api, 30, 30));
        api.replace_by_garbage(Kind::Pods, garbage);
        api.release(Kind::Pods);
        rig.shop(&[2, 3]).await;
        api.apply(&deleting(pod("p2"), &api, 30, 30));
        rig.shop(&[3]).await;
        assert!(rig.errors("watch") >= 1);
        rig.clean().await;
        assert_eq!(rig.drained(), [1, 2]);
    }
}

/// Waits until the proxy reports that the API server is away. Its table must not change.
async fn away(api: &Api, rig: &Rig) {
    eventually("reported", async || {
        rig.readyz().await.1.contains("is not in order for")
    })
    .await;
    // The listener's Service has a watch of its own.
    eventually("for all kinds", async || {
        rig.running().admin.health.state().problems.len() == KINDS.len() + 1
    })
    .await;
    let (code, line) = rig.readyz().await;
    assert_eq!(code, 200, "{line}");
    assert!(
        line.starts_with("ready; source kubernetes is not in order for "),
        "{line}"
    );
    assert!(line.contains("the last good table is in force"), "{line}");
    assert_eq!(rig.usable("shop"), [1, 2, 3]);
    assert!(rig.errors("watch") > 0);
    assert_eq!(KINDS.map(|kind| api.count(kind, Verb::List)), [1, 1, 1]);
}

#[tokio::test]
async fn an_unreachable_api_server_leaves_the_table_in_force_and_changes_arrive_when_it_returns() {
    let api = shop(3).await;
    let rig = Rig::start(&api).await;
    watched(&api).await;
    api.unplug();
    away(&api, &rig).await;
    api.delete(Kind::Pods, "web", "p1");
    api.apply(&slice(
        "s",
        "shop",
        &[terminating(2, "p2"), ready(3, "p3"), ready(4, "p4")],
    ));
    api.apply(&pod("p4"));
    api.plug();
    rig.shop(&[3, 4]).await;
    rig.clean().await;
    assert_eq!(rig.drained(), [1, 2]);
    // The server goes away once more, and has forgotten all versions when it comes back.
    api.unplug();
    eventually("reported", async || {
        rig.readyz().await.1.contains("is not in order for")
    })
    .await;
    api.delete(Kind::Pods, "web", "p3");
    KINDS.iter().for_each(|kind| api.forget(*kind));
    api.plug();
    rig.shop(&[4]).await;
    rig.clean().await;
    assert_eq!(rig.drained(), [1, 2, 3]);
}

#[tokio::test]
async fn an_api_server_that_returns_unchanged_is_in_order_again() {
    let api = shop(3).await;
    let rig = Rig::start(&api).await;
    watched(&api).await;
    api.unplug();
    away(&api, &rig).await;
    api.plug();
    rig.clean().await;
    assert_eq!(
        KINDS.map(|kind| api.count(kind, Verb::List)),
        [1, 1, 1],
        "nothing was listed again"
    );
    assert!(rig.drains().is_empty());
}

#[tokio::test]
async fn a_gateway_error_counts_as_an_unreachable_api_server() {
    for code in [403, 429, 500, 503, 504] {
        let api = shop(3).await;
        let rig = Rig::start(&api).await;
        watched(&api).await;
        for kind in KINDS {
            api.fault(kind, Verb::Watch, Fault::Status(code));
            api.order(kind, Order::Cut);
        }
        away(&api, &rig).await;
        KINDS.iter().for_each(|kind| api.lift(*kind, Verb::Watch));
        rig.clean().await;
    }
}

#[tokio::test]
async fn watches_that_end_immediately_are_requested_less_and_less_often() {
    let api = shop(2).await;
    let rig = Rig::start(&api).await;
    watched(&api).await;
    api.fault(Kind::Pods, Verb::Watch, Fault::Half);
    api.order(Kind::Pods, Order::End);
    eventually("some tries", async || {
        api.count(Kind::Pods, Verb::Watch) >= 7
    })
    .await;
    let asked = api.asked();
    let at: Vec<_> = asked
        .iter()
        .filter(|it| (it.kind, it.verb) == (Kind::Pods, Verb::Watch))
        .map(|it| it.at)
        .collect();
    assert!(
        (at[6] - at[5]).as_millis() > 700,
        "{:?}",
        at.windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect::<Vec<_>>()
    );
    api.apply(&deleting(pod("p1"), &api, 30, 30));
    api.lift(Kind::Pods, Verb::Watch);
    rig.shop(&[2]).await;
    rig.clean().await;
}
