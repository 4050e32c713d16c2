//! The signals that end an endpoint (contract 2.1 to 2.3). The first signal drains the endpoint,
//! whichever one it is. Later signals, in any order and number, do not drain it again and never
//! extend its deadline.

use std::time::{Duration, Instant};

use ebbtide::contract::reason::Trigger;

use super::api::{Fault, Kind, Verb};
use super::rig::{Rig, deleting, pod, ready, shop, slice, terminating};
use crate::support::wait::eventually;

#[tokio::test]
async fn a_deletion_timestamp_drains_before_the_slice_changes() {
    let api = shop(2).await;
    let rig = Rig::start(&api).await;
    rig.shop(&[1, 2]).await;
    eventually("all is watched", async || api.watches() == 4).await;
    let slices = api.asked().len();
    let before = Instant::now();
    api.apply(&deleting(pod("p1"), &api, 30, 30));
    rig.shop(&[2]).await;
    let after = Instant::now();
    assert_eq!(api.asked().len(), slices, "the proxy requested nothing");
    let [record] = &rig.drains()[..] else {
        panic!("{:?}", rig.drains())
    };
    assert_eq!(record.trigger, Trigger::PodDeleted);
    let grace = Duration::from_secs(33);
    let deadline = record.deadline.unwrap();
    assert!(
        before + grace <= deadline && deadline <= after + grace,
        "its grace period and 3 s, from the arrival of the event"
    );
}

#[tokio::test]
async fn terminating_in_the_slice_drains_before_the_pod_event() {
    let api = shop(2).await;
    let rig = Rig::start(&api).await;
    api.hold(Kind::Pods);
    api.apply(&deleting(pod("p1"), &api, 30, 30));
    api.apply(&slice("s", "shop", &[terminating(1, "p1"), ready(2, "p2")]));
    rig.shop(&[2]).await;
    assert_eq!(rig.drains()[0].trigger, Trigger::SliceTerminating);
    api.release(Kind::Pods);
    rig.settled().await;
    assert_eq!((rig.drained(), rig.usable("shop")), (vec![1], vec![2]));
}

#[tokio::test]
async fn repeated_signals_in_any_order_are_one_drain() {
    for pod_first in [true, false] {
        let api = shop(2).await;
        let rig = Rig::start(&api).await;
        let kinds = if pod_first {
            [Kind::Pods, Kind::Slices]
        } else {
            [Kind::Slices, Kind::Pods]
        };
        kinds.iter().for_each(|kind| api.hold(*kind));
        api.apply(&deleting(pod("p1"), &api, 30, 30));
        api.echo(Kind::Pods, "web", "p1");
        api.apply(&slice("s", "shop", &[terminating(1, "p1"), ready(2, "p2")]));
        api.echo(Kind::Slices, "web", "s");
        api.release(kinds[0]);
        rig.shop(&[2]).await;
        api.release(kinds[1]);
        rig.settled().await;
        // The usual sequel: the slice drops the endpoint, and the Pod object is deleted. Then an
        // old slice is repeated.
        api.apply(&slice("s", "shop", &[ready(2, "p2")]));
        api.delete(Kind::Pods, "web", "p1");
        api.apply(&slice("s", "shop", &[ready(1, "p1"), ready(2, "p2")]));
        rig.settled().await;
        assert_eq!(
            (rig.drained(), rig.usable("shop")),
            (vec![1], vec![2]),
            "pod first: {pod_first}"
        );
    }
}

#[tokio::test]
async fn a_pod_deleted_without_a_deletion_timestamp_drains() {
    let api = shop(2).await;
    let rig = Rig::start(&api).await;
    api.delete(Kind::Pods, "web", "p1");
    rig.shop(&[2]).await;
    let [record] = &rig.drains()[..] else {
        panic!("{:?}", rig.drains())
    };
    assert!(record.deadline.is_some(), "by the configured drain timeout");
    rig.settled().await;
    assert_eq!(rig.drained(), [1]);
}

#[tokio::test]
async fn an_endpoint_gone_from_the_slices_is_out_and_reversible_while_its_pod_lives() {
    let api = shop(2).await;
    let rig = Rig::start(&api).await;
    let id = || {
        let port = rig.port("shop").unwrap();
        port.all
            .iter()
            .find(|endpoint| endpoint.address.to_string() == "10.0.0.1:8080")
            .unwrap()
            .clone()
    };
    let before = id();
    api.apply(&slice("s", "shop", &[ready(2, "p2")]));
    rig.shop(&[2]).await;
    assert!(!before.is_draining() && before.enter().is_none() && before.drain_deadline().is_none());
    api.apply(&slice("s", "shop", &[ready(1, "p1"), ready(2, "p2")]));
    rig.shop(&[1, 2]).await;
    assert_eq!(
        id().id,
        before.id,
        "the same endpoint, with its connections"
    );
    // The whole slice is removed, and then the pod.
    api.delete(Kind::Slices, "web", "s");
    rig.shop(&[]).await;
    assert!(rig.drains().is_empty());
    api.apply(&deleting(pod("p1"), &api, 30, 30));
    eventually("drained", async || rig.drained() == [1]).await;
}

#[tokio::test]
async fn a_slice_may_name_a_pod_before_the_pod_watch_does() {
    let api = shop(1).await;
    let rig = Rig::start(&api).await;
    api.hold(Kind::Pods);
    api.apply(&pod("p2"));
    api.apply(&slice("s", "shop", &[ready(1, "p1"), ready(2, "p2")]));
    rig.shop(&[1, 2]).await;
    api.apply(&deleting(pod("p2"), &api, 30, 30));
    api.release(Kind::Pods);
    rig.shop(&[1]).await;
    assert_eq!(rig.drained(), [2]);
}

/// How the proxy learns of a deletion.
#[derive(Debug, Clone, Copy, PartialEq)]
enum News {
    Live,
    /// By a watch that is resumed.
    Resumed,
    /// By a list.
    Listed,
}

#[tokio::test]
async fn a_deadline_counts_by_the_api_servers_clock_and_not_by_ours() {
    for ahead in [3600, 0, -3600] {
        for news in [News::Live, News::Resumed, News::Listed] {
            let api = shop(2).await;
            api.set_ahead(ahead);
            let rig = Rig::start(&api).await;
            if news != News::Live {
                // With or without a 410, no event of the pods arrives meanwhile.
                let verb = if news == News::Listed {
                    Verb::List
                } else {
                    Verb::Watch
                };
                eventually("watched", async || api.open(Kind::Pods) == 1).await;
                let (lists, watches) = (
                    api.count(Kind::Pods, Verb::List),
                    api.count(Kind::Pods, Verb::Watch),
                );
                api.fault(Kind::Pods, verb, Fault::Wait);
                match news {
                    News::Listed => api.forget(Kind::Pods),
                    _ => api.order(Kind::Pods, super::api::Order::Cut),
                }
                let asked = lists + watches;
                eventually("requested again", async || {
                    api.count(Kind::Pods, Verb::List) + api.count(Kind::Pods, Verb::Watch) > asked
                })
                .await;
            }
            let before = Instant::now();
            let (left, grace) = if news == News::Live {
                (600, 600)
            } else {
                (300, 600)
            };
            api.apply(&deleting(pod("p1"), &api, left, grace));
            api.lift(Kind::Pods, Verb::List);
            api.lift(Kind::Pods, Verb::Watch);
            rig.shop(&[2]).await;
            let [record] = &rig.drains()[..] else {
                panic!("{:?}", rig.drains())
            };
            let wanted = Duration::from_secs(left.unsigned_abs() + 3);
            let is = record.deadline.unwrap() - before;
            // To the second, plus the delay of a busy machine.
            let slack = Duration::from_secs(60);
            let fits = is + Duration::from_secs(2) >= wanted && is <= wanted + slack;
            assert!(
                fits,
                "{news:?}, its clock {ahead} s ahead: {is:?}, expected {wanted:?}"
            );
        }
    }
}
