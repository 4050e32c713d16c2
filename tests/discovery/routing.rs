//! The routing table, driven by hand through `support::table`. First come tests of the effect of
//! one event each. Then a property test shows what holds after any sequence of events (contract 1.1
//! to 1.9). Here nothing listens and nothing connects: sockets are tested in `tests/proxy`.

use std::collections::BTreeSet;
use std::sync::Arc;

use ebbtide::config::settings::{Config, Discovery};
use ebbtide::contract::endpoint::{Endpoint, Lease};
use ebbtide::contract::endpoint_list::EndpointList;
use ebbtide::contract::name::PodRef;
use ebbtide::contract::policy::{Scope, Traffic};
use ebbtide::contract::snapshot::Port;
use ebbtide::discovery::object::{Change, Hint, Hints, Kind, ServiceObject, SliceEndpoint};
use ebbtide::routing::table::HAND_BACK;
use ebbtide::routing::world::objects::{Touched, World};
use proptest::prelude::*;

use crate::support::table::*;

#[test]
fn an_endpoint_is_published_once_it_was_connected_to() {
    let mut rig = Rig::new(World::default());
    rig.change([
        apply(service("app")),
        apply(slice("s", "app", &[ready(1, None)])),
    ]);
    assert_eq!(rig.usable(), []);
    assert!(rig.endpoint(1).enter().is_none());
    rig.connect_all();
    assert_eq!(rig.usable(), [(1, 1)]);
    assert!(rig.endpoint(1).enter().is_some());
}

#[test]
fn the_join_check_can_be_switched_off() {
    let mut rig = Rig::new(World::default());
    let mut unchecked = service("app");
    unchecked
        .annotations
        .insert("ebbtide.dev/join-check".into(), "off".into());
    rig.change([
        apply(unchecked),
        apply(slice("s", "app", &[ready(1, None)])),
    ]);
    assert_eq!(rig.usable(), [(1, 1)]);
    assert!(rig.joining.is_empty());
}

#[test]
fn a_terminating_endpoint_is_drained_once_and_forgotten_with_its_last_lease() {
    let (one, two) = (ready(1, Some("a")), ready(2, Some("b")));
    let mut rig = Rig::with(&[one.clone(), two.clone()]);
    let leaver = rig.endpoint(1);
    let lease = leaver.enter().unwrap();
    rig.serve(&[terminating(one), two.clone()]);
    assert_eq!(rig.usable(), [(2, 2)]);
    assert!(leaver.enter().is_none() && leaver.is_draining());
    assert!(
        rig.notices.try_recv().is_err(),
        "drained was reported while a lease was held"
    );
    drop(lease);
    rig.take_notices();
    assert_eq!(rig.drained, BTreeSet::from([leaver.id]));
    assert_eq!(show(&rig.port().all), [(2, 2)]);
    rig.serve(&[two]);
    rig.take_notices();
    assert_eq!(rig.drained.len(), 1);
}

/// Kubernetes shows a terminating endpoint until its pod has ended, and writes the slice many times
/// meanwhile.
#[test]
fn a_drained_endpoint_that_is_still_listed_is_not_drained_again() {
    let (one, two) = (ready(1, Some("a")), ready(2, Some("b")));
    for pod_known in [false, true] {
        let mut rig = Rig::with(&[one.clone(), two.clone()]);
        if pod_known {
            rig.change([apply(pod("a", false))]);
        }
        rig.serve(&[terminating(one.clone()), two.clone()]);
        for last in 3..6 {
            rig.take_notices();
            rig.serve(&[terminating(one.clone()), two.clone(), ready(last, None)]);
        }
        rig.take_notices();
        let of_one = rig
            .drains
            .records()
            .iter()
            .filter(|r| last_byte(r.address) == 1)
            .count();
        assert_eq!(of_one, 1);
        assert!(
            rig.known
                .values()
                .filter(|e| last_byte(e.address) == 1)
                .count()
                == 1
        );
    }
}

#[test]
fn a_drained_endpoint_that_still_serves_is_the_last_resort_of_a_service_without_any_other() {
    let (one, two) = (ready(1, Some("a")), ready(2, Some("b")));
    let mut rig = Rig::with(&[one.clone(), two.clone()]);
    rig.serve(&[terminating(one.clone()), two.clone()]);
    rig.take_notices();
    let deadline = rig.endpoint_known(1).drain_deadline().unwrap();
    rig.pass(SECOND);
    rig.serve(&[terminating(one.clone()), not_ready(two.clone())]);
    assert_eq!(rig.usable(), []);
    assert_eq!(rig.last_resort(), [(1, 3)], "as another generation");
    assert_eq!(
        rig.endpoint(1).drain_deadline(),
        Some(deadline),
        "no later than its first deadline"
    );
    rig.pass(SECOND * DRAIN_TIMEOUT as u32);
    rig.serve(&[terminating(one.clone()), not_ready(two)]);
    assert_eq!(rig.last_resort(), []);
    rig.take_notices();
    rig.serve(&[terminating(one)]);
    assert_eq!(rig.last_resort(), [], "its deadline has passed");
    assert_eq!(rig.known.len(), 3);
}

/// In a rollout, all old pods may be deleted before the slice with the new ones arrives.
#[test]
fn a_pod_that_has_drained_and_is_gone_does_not_return_and_each_drain_counts_once() {
    let pods = ["a", "b", "c"];
    let old = [1, 2, 3].map(|n| ready(n, Some(pods[usize::from(n) - 1])));
    let mut rig = Rig::with(&old);
    rig.change(pods.map(|it| apply(pod(it, false))));
    rig.change(["a", "b"].map(|it| apply(pod(it, true))));
    rig.take_notices();
    let reactions = rig.metrics.clone();
    assert_eq!(
        reactions.drain_reaction.get_sample_count(),
        2,
        "of one batch"
    );
    rig.change(["a", "b"].map(|it| Change::Remove(Kind::Pod, name(it))));
    rig.change([apply(pod("c", true))]);
    rig.connect_all();
    assert_eq!(rig.last_resort(), [(3, 3)]);
    rig.serve(&[ready(4, Some("d"))]);
    rig.take_notices();
    assert_eq!(rig.usable(), [(4, 4)]);
    assert_eq!(rig.drains.records().len(), 3, "one for each pod");
    assert_eq!(reactions.drain_reaction.get_sample_count(), 3);
}

#[test]
fn a_pod_that_returned_as_last_resort_has_a_second_receipt_only_if_it_got_something() {
    for got in [false, true] {
        let mut rig = Rig::with(&[ready(1, Some("a")), ready(2, Some("b"))]);
        rig.change(["a", "b"].map(|it| apply(pod(it, false))));
        rig.change([apply(pod("a", true))]);
        rig.take_notices();
        rig.change([apply(pod("b", true))]);
        rig.change([apply(slice(
            "s",
            "app",
            &[terminating(ready(1, Some("a"))), ready(3, Some("c"))],
        ))]);
        let back = rig.endpoint(1);
        assert_ne!(back.id.0, 1, "it has drained, and may still serve");
        if got {
            rig.probe(back.id, true);
            back.note_dispatch(1);
        }
        rig.connect_all();
        assert_eq!(rig.usable().len(), 1);
        rig.take_notices();
        let records = rig.drains.records();
        let receipts = records.iter().filter(|it| last_byte(it.address) == 1);
        let expected = if got { 2 } else { 1 };
        assert_eq!(receipts.count(), expected, "got: {got}");
        let reactions = rig.metrics.drain_reaction.get_sample_count();
        assert_eq!(reactions as usize, records.len());
    }
}

#[test]
fn the_workers_look_at_the_endpoints_that_left_and_at_no_others() {
    let all = [1, 2, 3].map(|n| ready(n, Some(["a", "b", "c"][usize::from(n) - 1])));
    let [one, two, three] = all.clone();
    let mut rig = Rig::with(&all);
    rig.change([apply(service("other")), apply(pod("a", false))]);
    let left = |rig: &mut Rig| {
        let mut ids: Vec<_> = rig.left.drain(..).map(|id| id.0).collect();
        ids.dedup();
        ids
    };
    assert_eq!(left(&mut rig), [0u64; 0]);
    rig.serve(&[one.clone(), not_ready(two.clone()), three.clone()]);
    assert_eq!(left(&mut rig), [2]);
    rig.serve(&[one.clone(), two.clone(), three.clone()]);
    assert_eq!(left(&mut rig), [0u64; 0], "an endpoint that returns");
    rig.serve(&[one, two, terminating(three)]);
    assert_eq!(left(&mut rig), [3]);
    rig.change([apply(pod("a", true))]);
    assert_eq!(left(&mut rig), [1], "a drain begins");
    rig.change([Change::Remove(Kind::Pod, name("a"))]);
    assert_eq!(left(&mut rig), [1], "its silent connections get less time");
    rig.change([apply(pod("a", true))]);
    assert_eq!(left(&mut rig), [0u64; 0], "nothing new");
}

/// The property test below found this: the drained endpoint came back only with the next event of
/// the source.
#[test]
fn a_drained_endpoint_that_still_serves_is_the_last_resort_when_the_only_other_is_ejected() {
    let mut rig = Rig::with(&[ready(1, Some("a")), ready(2, Some("b"))]);
    rig.serve(&[terminating(ready(1, Some("a"))), ready(2, Some("b"))]);
    assert_eq!((rig.usable(), rig.last_resort()), (vec![(2, 2)], vec![]));
    let lease = rig.endpoint(2).enter();
    rig.endpoint(2).eject();
    rig.take_notices();
    rig.connect_all();
    assert_eq!(rig.last_resort(), [(1, 3)]);
    drop(lease);
}

#[test]
fn the_last_resort_is_drained_when_something_usable_is_published() {
    let one = ready(1, Some("a"));
    let mut rig = Rig::with(std::slice::from_ref(&one));
    rig.serve(&[terminating(one.clone())]);
    assert_eq!((rig.usable(), rig.last_resort()), (vec![], vec![(1, 1)]));
    assert!(rig.endpoint(1).enter().is_some());
    rig.change([apply(slice(
        "s",
        "app",
        &[terminating(one), ready(2, Some("b"))],
    ))]);
    assert_eq!(
        rig.last_resort(),
        [(1, 1)],
        "the new endpoint has not been connected to"
    );
    rig.connect_all();
    assert_eq!((rig.usable(), rig.last_resort()), (vec![(2, 2)], vec![]));
    assert!(rig.endpoint(1).enter().is_none());
}

#[test]
fn an_endpoint_that_terminates_is_out_even_if_it_is_published_as_ready() {
    let (one, two) = (ready(1, Some("a")), ready(2, Some("b")));
    let mut rig = Rig::with(&[one.clone(), two.clone()]);
    let published = SliceEndpoint {
        terminating: true,
        ..one
    };
    rig.serve(&[published.clone(), two.clone()]);
    assert_eq!((rig.usable(), rig.last_resort()), (vec![(2, 2)], vec![]));
    assert!(rig.endpoint(1).is_draining());
    rig.serve(&[published, terminating(two)]);
    rig.connect_all();
    assert_eq!(rig.usable(), []);
    assert_eq!(rig.last_resort().len(), 2, "nothing else serves");
}

#[test]
fn an_endpoint_of_this_node_that_terminates_serves_until_another_one_here_is_usable() {
    let (one, two) = (here(ready(1, Some("a"))), ready(2, Some("b")));
    let mut rig = Rig::with(&[one.clone(), two.clone()]);
    assert!(rig.port().local.is_none(), "no policy asks for it");
    rig.change([apply(only_local("app"))]);
    assert_eq!(rig.here(), [vec![(1, 1)], vec![]]);
    rig.serve(&[terminating(one.clone()), two.clone()]);
    assert_eq!((rig.usable(), rig.last_resort()), (vec![(2, 2)], vec![]));
    assert_eq!(rig.here(), [vec![], vec![(1, 1)]]);
    assert!(rig.endpoint(1).enter().is_some());
    let three = here(ready(3, Some("c")));
    rig.serve(&[terminating(one), two, three]);
    assert_eq!(rig.here(), [vec![(3, 3)], vec![]]);
    assert!(rig.endpoint(1).is_draining());
}

#[test]
fn a_policy_that_becomes_local_brings_a_drained_endpoint_of_this_node_back() {
    let (one, two) = (here(ready(1, Some("a"))), ready(2, Some("b")));
    let mut rig = Rig::with(&[one.clone(), two.clone()]);
    rig.serve(&[terminating(one), two]);
    assert!(rig.endpoint(1).is_draining());
    rig.change([apply(only_local("app"))]);
    rig.connect_all();
    assert_eq!(rig.here(), [vec![], vec![(1, 3)]]);
    rig.change([apply(service("app"))]);
    assert!(rig.port().local.is_none());
    assert!(rig.endpoint(1).is_draining(), "another endpoint serves");
}

#[test]
fn without_the_nodes_name_a_local_policy_is_named_and_not_in_force() {
    let mut rig = Rig::with(&[here(ready(1, None)), ready(2, None)]);
    let nameless = Config::new(Discovery::Static { to: Vec::new() });
    rig.table.set_config(Arc::new(nameless));
    let mut touched = Touched::default();
    let change = apply(only_local("app"));
    rig.world.apply(change, rig.now, &mut touched);
    let chores = rig.table.apply(&rig.world, &touched, rig.now);
    assert!(chores.warnings[0].1.contains("NODE_NAME"));
    assert!(rig.port().local.is_none() && !rig.port().traffic.external_local);
    assert_eq!(rig.usable().len(), 2);
}

#[test]
fn the_last_resort_is_drained_when_it_stops_serving_or_its_time_is_over() {
    let one = ready(1, Some("a"));
    let mut stops = Rig::with(std::slice::from_ref(&one));
    stops.serve(&[terminating(one.clone())]);
    stops.serve(&[not_ready(SliceEndpoint {
        terminating: true,
        ..one.clone()
    })]);
    let mut ends = Rig::with(std::slice::from_ref(&one));
    ends.serve(&[terminating(one.clone())]);
    ends.pass(SECOND * DRAIN_TIMEOUT as u32);
    for mut rig in [stops, ends] {
        assert_eq!(rig.last_resort(), []);
        rig.take_notices();
        assert_eq!(rig.drained.len(), 1);
        assert!(rig.known.values().all(|e| e.enter().is_none()));
    }
}

/// As kube-proxy: each usable endpoint needs a hint, and one must be for this node, or for its zone.
#[test]
fn hints_choose_the_endpoints_of_this_node_or_else_of_its_zone() {
    use Hint::{Elsewhere, Here, None as No};
    let three = |hints: [(Hint, Hint); 3]| {
        let mut last = 0;
        hints.map(|(node, zone)| {
            last += 1;
            hinted(
                ready(last, Some(["a", "b", "c"][usize::from(last) - 1])),
                node,
                zone,
            )
        })
    };
    let mut rig = Rig::with(&three([(No, No); 3]));
    for (hints, expected) in [
        ([(No, No), (No, No), (No, No)], &[][..]),
        ([(Here, No), (Elsewhere, No), (Elsewhere, No)], &[1]),
        ([(Here, No), (Elsewhere, No), (No, No)], &[]),
        ([(Here, Elsewhere), (Elsewhere, Here), (No, Here)], &[2, 3]),
        (
            [(Elsewhere, Here), (Elsewhere, Elsewhere), (Elsewhere, Here)],
            &[1, 3],
        ),
        ([(No, Here), (No, Elsewhere), (No, No)], &[]),
        ([(No, Elsewhere), (No, Elsewhere), (No, Elsewhere)], &[]),
        ([(No, Here), (No, Here), (No, Here)], &[]),
        ([(Here, Here), (Here, Here), (Elsewhere, Here)], &[1, 2]),
    ] {
        rig.serve(&three(hints));
        assert_eq!(near(&rig), expected, "{hints:?}");
        assert_eq!(rig.usable().len(), 3);
    }
}

#[test]
fn hints_of_endpoints_out_of_rotation_do_not_count() {
    use Hint::{Elsewhere, Here, None as No};
    let one = hinted(ready(1, Some("a")), No, Here);
    let two = hinted(ready(2, Some("b")), No, Elsewhere);
    let three = ready(3, Some("c"));
    let mut rig = Rig::with(&[one.clone(), two.clone(), not_ready(three.clone())]);
    assert_eq!(near(&rig), [1]);
    rig.serve(&[one.clone(), two.clone(), three.clone()]);
    assert_eq!(near(&rig), NOBODY, "one has no hint");
    rig.serve(&[one.clone(), two.clone(), terminating(three)]);
    assert_eq!(near(&rig), [1]);
    rig.serve(&[terminating(one.clone()), two.clone()]);
    assert_eq!(near(&rig), NOBODY, "none is for here");
    assert_eq!(rig.usable(), [(2, 2)]);
    rig.serve(&[terminating(one), terminating(two)]);
    assert_eq!(near(&rig), NOBODY);
    assert_eq!(rig.last_resort().len(), 2, "hints mean nothing to them");
}

#[test]
fn a_selector_switched_and_switched_back_returns_the_same_endpoint() {
    let one = ready(1, Some("a"));
    let mut rig = Rig::with(std::slice::from_ref(&one));
    rig.change([apply(pod("a", false))]);
    let endpoint = rig.endpoint(1);
    let lease = endpoint.enter().unwrap();
    rig.serve(&[]);
    assert_eq!(rig.usable(), []);
    assert!(endpoint.enter().is_none() && !endpoint.is_draining());
    assert_eq!(endpoint.drain_deadline(), None);
    rig.serve(&[one]);
    assert_eq!(rig.usable(), [(1, 1)]);
    assert!(Arc::ptr_eq(&endpoint, &rig.endpoint(1)));
    drop(lease);
    rig.take_notices();
    assert!(rig.drained.is_empty());
}

/// `hostile::faults` found this: the pod was born and deleted while the Pod watch was broken, and
/// the slices dropped it without showing it as terminating. The table kept the endpoint for ever,
/// and the requests in flight on it had no deadline.
#[test]
fn an_endpoint_whose_pod_is_never_reported_is_drained_when_it_is_forgotten() {
    for terminating_once in [false, true] {
        let mut rig = Rig::new(World::for_api_server());
        rig.change([apply(service("app"))]);
        rig.serve(&[ready(1, Some("a"))]);
        let endpoint = rig.endpoint(1);
        let lease = endpoint.enter();
        if terminating_once {
            rig.serve(&[terminating(ready(1, Some("a"))), ready(2, Some("b"))]);
        }
        rig.serve(&[ready(2, Some("b"))]);
        rig.pass(SECOND * 599);
        let touched = rig.world.sweep(rig.now);
        assert!(touched.pods.is_empty());
        assert_eq!(
            (endpoint.is_draining(), endpoint.drain_deadline()),
            (terminating_once, None),
            "its pod may live"
        );
        rig.pass(SECOND);
        let touched = rig.world.sweep(rig.now);
        rig.apply(&touched);
        assert!(endpoint.is_draining());
        assert_eq!(
            endpoint.drain_deadline(),
            Some(rig.now + SECOND * DRAIN_TIMEOUT as u32)
        );
        rig.pass(SECOND * DRAIN_TIMEOUT as u32);
        assert!(endpoint.force().is_cancelled());
        drop(lease);
        rig.take_notices();
        assert_eq!(rig.drained, BTreeSet::from([endpoint.id]));
        assert_eq!(show(&rig.port().all), [(2, 2)]);
    }
}

#[test]
fn a_pod_deleted_while_no_slice_names_it_is_drained() {
    let mut rig = Rig::with(&[ready(1, Some("a"))]);
    rig.change([apply(pod("a", false))]);
    rig.serve(&[]);
    let endpoint = rig.endpoint(1);
    rig.change([apply(pod("a", true))]);
    assert!(endpoint.is_draining());
    assert_eq!(
        endpoint.drain_deadline(),
        Some(rig.now + GRACE + 3 * SECOND)
    );
}

#[test]
fn removal_where_no_pod_is_known_is_a_drain_with_the_services_timeout() {
    let mut rig = Rig::with(&[ready(1, None)]);
    let endpoint = rig.endpoint(1);
    let lease = endpoint.enter();
    rig.serve(&[]);
    assert!(endpoint.is_draining());
    assert!(
        !endpoint.conditions().ready && !endpoint.conditions().serving,
        "shown as if it were listed"
    );
    assert_eq!(
        endpoint.drain_deadline(),
        Some(rig.now + SECOND * DRAIN_TIMEOUT as u32)
    );
    rig.serve(&[ready(1, None)]);
    assert_eq!(
        rig.usable(),
        [(1, 2)],
        "an address that returns is another endpoint"
    );
    assert!(endpoint.enter().is_none());
    drop(lease);
}

#[test]
fn not_ready_is_out_and_reversible() {
    let one = ready(1, Some("a"));
    let mut rig = Rig::with(std::slice::from_ref(&one));
    let endpoint = rig.endpoint(1);
    rig.serve(&[not_ready(one.clone())]);
    assert_eq!((rig.usable(), rig.last_resort()), (vec![], vec![]));
    assert!(endpoint.enter().is_none() && !endpoint.is_draining());
    rig.serve(&[one]);
    assert!(endpoint.enter().is_some());
    assert_eq!(rig.usable(), [(1, 1)]);
}

#[test]
fn another_service_under_the_old_name_gets_its_own_endpoints() {
    let of = |uid: &str| ServiceObject {
        uid: Some(uid.into()),
        ..service("app")
    };
    // Deleted and made again, or replaced within one event.
    for deleted_first in [true, false] {
        let mut rig = Rig::new(World::default());
        rig.change([apply(of("first"))]);
        rig.serve(&[ready(1, Some("a")), ready(2, Some("b")), ready(3, None)]);
        rig.change([apply(pod("a", false))]);
        let [old, unknown, unnamed] = [1, 2, 3].map(|last| rig.endpoint(last));
        let lease = old.enter().unwrap();
        if deleted_first {
            rig.change([Change::Remove(Kind::Service, name("app"))]);
            assert!(rig.port_of("app").is_none());
            assert!(!old.is_draining(), "its pod lives");
            assert_eq!(old.drain_deadline(), None);
        }
        rig.change([apply(of("second"))]);
        assert!(old.is_draining() && old.enter().is_none());
        assert_eq!(old.drain_deadline(), None, "its pod lives");
        for gone in [unknown, unnamed] {
            assert!(gone.is_draining() && gone.drain_deadline().is_some());
        }
        rig.connect_all();
        let usable: Vec<_> = rig.usable().into_iter().map(|(last, _)| last).collect();
        assert_eq!(usable, [1, 2, 3]);
        assert_ne!(rig.endpoint(1).id, old.id);
        rig.take_notices();
        assert_eq!(rig.port().all.len(), 4, "the old one has a lease");
        // No other event gives it a deadline, only the end of its pod.
        rig.serve(&[ready(1, Some("a")), ready(4, None)]);
        assert_eq!(old.drain_deadline(), None);
        rig.serve(&[ready(4, None)]);
        assert_eq!(old.drain_deadline(), None);
        rig.change([apply(pod("a", true))]);
        assert!(old.drain_deadline().is_some());
        drop(lease);
        rig.take_notices();
        assert!(rig.drained.contains(&old.id));
    }
}

/// The pods' fates differ at the moment at which the Service is replaced.
#[test]
fn the_endpoints_of_a_replaced_service_have_their_pods_deadlines() {
    let of = |uid: &str| ServiceObject {
        uid: Some(uid.into()),
        ..service("app")
    };
    let mut rig = Rig::new(World::default());
    rig.change([apply(of("first")), apply(pod("a", true))]);
    rig.serve(&[ready(1, Some("a"))]);
    let old = rig.endpoint(1);
    let lease = old.enter();
    let deadline = old.drain_deadline();
    assert!(deadline.is_some());
    rig.change([apply(of("second"))]);
    assert!(old.is_draining());
    assert_eq!(old.drain_deadline(), deadline, "the pod's own grace period");
    drop(lease);
}

#[test]
fn a_pod_in_both_families_counts_once_by_the_services_first() {
    let mut rig = Rig::with(&[ready(1, Some("a"))]);
    let six = SliceEndpoint {
        address: "2001:db8::9".parse().unwrap(),
        ..ready(0, Some("a"))
    };
    rig.change([apply(slice("s6", "app", &[six]))]);
    rig.connect_all();
    assert_eq!(rig.usable(), [(1, 1)]);
    rig.change([apply(ServiceObject {
        ipv6_first: true,
        ..service("app")
    })]);
    rig.connect_all();
    assert_eq!(rig.usable(), [(9, 2)]);
}

#[test]
fn an_address_that_passes_to_another_pod_is_another_endpoint() {
    let mut rig = Rig::with(&[ready(1, Some("a"))]);
    let old = rig.endpoint(1);
    let lease = old.enter();
    rig.serve(&[ready(1, Some("b"))]);
    assert_eq!(rig.usable(), [(1, 2)]);
    assert!(old.enter().is_none());
    assert_ne!(rig.endpoint(1).id, old.id);
    assert_eq!(rig.port().usable[0].pod.as_ref().unwrap().name, "b");
    drop(lease);
}

/// Without a UID, only its termination shows that an address now belongs to another pod.
#[test]
fn an_address_that_terminated_comes_back_as_another_generation() {
    let unnamed = SliceEndpoint {
        pod: Some(Arc::new(PodRef {
            name: "a".into(),
            uid: String::new(),
        })),
        ..ready(1, None)
    };
    for one in [ready(1, None), unnamed] {
        // As the last resort it has not begun to drain. It drains when the address is ready again.
        let mut rig = Rig::with(std::slice::from_ref(&one));
        let old = rig.endpoint(1);
        rig.serve(&[terminating(one.clone())]);
        assert_eq!(rig.last_resort(), [(1, 1)]);
        rig.serve(std::slice::from_ref(&one));
        assert_eq!(
            (rig.usable(), rig.last_resort()),
            (vec![(1, 2)], vec![]),
            "{one:?}"
        );
        assert!(old.is_draining());
        rig.take_notices();
        assert_eq!(rig.drained, BTreeSet::from([old.id]));
    }
}

/// A Service's rollout is not over while none of its pods serves. It is over when the Service is
/// removed.
#[test]
fn new_pods_are_counted_unless_none_serves_and_are_zero_without_the_service() {
    let mut rig = Rig::with(&[ready(1, Some("a")), ready(2, Some("b"))]);
    let come = |rig: &Rig| rig.snapshot.pods_come(&name("app"), 0);
    assert_eq!(come(&rig), Some(2));
    rig.serve(&[]);
    rig.change([apply(pod("a", true)), apply(pod("b", true))]);
    assert_eq!(come(&rig), None);
    rig.change([Change::Remove(Kind::Service, name("app"))]);
    assert_eq!(come(&rig), Some(0));
}

#[test]
fn a_service_that_is_neither_claimed_nor_named_is_not_routed() {
    let mut rig = Rig::with(&[ready(1, None)]);
    let unclaimed = ServiceObject {
        claimed: false,
        ..service("other")
    };
    rig.change([apply(unclaimed)]);
    assert!(rig.port_of("other").is_none());
}

#[test]
fn an_unclaimed_service_is_handed_back_after_kube_proxys_time_and_its_last_client() {
    let mut rig = Rig::with(&[ready(1, None)]);
    let metrics = rig.port_of("app").unwrap().metrics.clone();
    let clients = &metrics.connections_active;
    clients.inc();
    rig.change([apply(ServiceObject {
        claimed: false,
        ..service("app")
    })]);
    let port = rig.port_of("app").unwrap();
    assert!(
        port.claimed && port.handing_back,
        "it still listens, and asks clients to connect again"
    );
    assert_eq!(rig.usable(), [(1, 1)]);
    assert_eq!(rig.table.next_hand_back(), Some(rig.now + HAND_BACK));

    rig.now += HAND_BACK;
    rig.table.hand_back(&rig.world, rig.now);
    let port = rig.port_of("app").unwrap();
    assert!(
        !port.claimed && port.handing_back,
        "it no longer listens, and serves connected clients"
    );
    assert_eq!(
        (rig.usable(), rig.table.next_hand_back()),
        (vec![(1, 1)], None)
    );

    clients.dec();
    rig.table.hand_back(&rig.world, rig.now);
    assert!(rig.port_of("app").is_none());
    rig.take_notices();
    assert!(rig.table.is_empty());
}

#[test]
fn a_claim_that_comes_back_ends_the_handing_back() {
    let mut rig = Rig::with(&[ready(1, None)]);
    rig.change([apply(ServiceObject {
        claimed: false,
        ..service("app")
    })]);
    rig.change([apply(service("app"))]);
    let port = rig.port_of("app").unwrap();
    assert!(port.claimed && !port.handing_back);
    assert_eq!(rig.table.next_hand_back(), None);
    assert_eq!(rig.usable(), [(1, 1)]);
}

/// Additions to the rig for these tests.
impl Rig {
    /// A rig with Service `app` and these endpoints in slice `s`, all connected to.
    fn with(endpoints: &[SliceEndpoint]) -> Self {
        let mut rig = Self::new(World::default());
        rig.change([apply(service("app"))]);
        rig.serve(endpoints);
        rig
    }

    fn serve(&mut self, endpoints: &[SliceEndpoint]) {
        self.change([apply(slice("s", "app", endpoints))]);
        self.connect_all();
    }

    fn connect_all(&mut self) {
        for id in self.joining.keys().copied().collect::<Vec<_>>() {
            self.probe(id, true);
        }
    }

    fn port(&self) -> Arc<Port> {
        self.port_of("app").unwrap()
    }

    /// The last byte of each usable endpoint's address, with its id.
    fn usable(&self) -> Vec<(u8, u64)> {
        show(&self.port().usable)
    }

    /// The usable endpoints and the last resort on this node.
    fn here(&self) -> [Vec<(u8, u64)>; 2] {
        let port = self.port();
        let local = port.local.as_ref().unwrap();
        [show(&local.usable), show(&local.last_resort)]
    }

    fn last_resort(&self) -> Vec<(u8, u64)> {
        show(&self.port().last_resort)
    }

    fn endpoint(&self, last: u8) -> Arc<Endpoint> {
        let port = self.port();
        let found = port
            .all
            .iter()
            .filter(|e| last_byte(e.address) == last)
            .max_by_key(|e| e.id);
        found.unwrap().clone()
    }

    fn known_at(&self, index: usize) -> Option<Arc<Endpoint>> {
        self.known
            .values()
            .nth(index % self.known.len().max(1))
            .cloned()
    }

    /// The latest endpoint at this address, even if the table has forgotten it.
    fn endpoint_known(&self, last: u8) -> Arc<Endpoint> {
        self.known
            .values()
            .rfind(|e| last_byte(e.address) == last)
            .unwrap()
            .clone()
    }
}

fn not_ready(endpoint: SliceEndpoint) -> SliceEndpoint {
    SliceEndpoint {
        ready: false,
        serving: false,
        ..endpoint
    }
}

fn terminating(endpoint: SliceEndpoint) -> SliceEndpoint {
    SliceEndpoint {
        ready: false,
        serving: true,
        terminating: true,
        ..endpoint
    }
}

/// A Service with `externalTrafficPolicy: Local`.
fn only_local(name: &str) -> ServiceObject {
    ServiceObject {
        traffic: Traffic {
            external_local: true,
            ..Traffic::default()
        },
        ..service(name)
    }
}

fn here(endpoint: SliceEndpoint) -> SliceEndpoint {
    SliceEndpoint {
        local: true,
        ..endpoint
    }
}

fn hinted(endpoint: SliceEndpoint, node: Hint, zone: Hint) -> SliceEndpoint {
    SliceEndpoint {
        hints: Hints { node, zone },
        ..endpoint
    }
}

const NOBODY: [u8; 0] = [];

/// Which of the usable endpoints of `app` clients get first; empty if no hint counts.
fn near(rig: &Rig) -> Vec<u8> {
    let port = rig.port();
    let near = port.near(Some(Scope::Internal)).into_iter();
    near.flat_map(show).map(|(last, _)| last).collect()
}

fn show(endpoints: &EndpointList) -> Vec<(u8, u64)> {
    let mut all: Vec<_> = endpoints
        .iter()
        .map(|e| (last_byte(e.address), e.id.0))
        .collect();
    all.sort_unstable();
    all
}

/// One event. Its numbers choose among what exists, modulo the count.
#[derive(Debug, Clone)]
enum Step {
    Slice {
        slice: u8,
        endpoints: Vec<(u8, Option<u8>, u8, u8)>,
    },
    RemoveSlice(u8),
    Pod {
        pod: u8,
        deleted: bool,
    },
    RemovePod(u8),
    Service {
        service: u8,
        uid: Option<bool>,
    },
    RemoveService(u8),
    Probe(usize),
    TryAgain(usize),
    Eject(usize),
    Take(usize),
    Drop(usize),
    Pass,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let endpoint = (
        1..5u8,
        proptest::option::weighted(0.8, 0..4u8),
        0..5u8,
        0..9u8,
    );
    let endpoints = proptest::collection::vec(endpoint, 0..4);
    let step = prop_oneof![
        6 => (0..3u8, endpoints).prop_map(|(slice, endpoints)| Step::Slice { slice, endpoints }),
        1 => (0..3u8).prop_map(Step::RemoveSlice),
        3 => (0..4u8, any::<bool>()).prop_map(|(pod, deleted)| Step::Pod { pod, deleted }),
        1 => (0..4u8).prop_map(Step::RemovePod),
        1 => (0..2u8, any::<Option<bool>>()).prop_map(|(service, uid)| Step::Service { service, uid }),
        1 => (0..2u8).prop_map(Step::RemoveService),
        6 => any::<usize>().prop_map(Step::Probe),
        2 => any::<usize>().prop_map(Step::TryAgain),
        1 => any::<usize>().prop_map(Step::Eject),
        4 => any::<usize>().prop_map(Step::Take),
        3 => any::<usize>().prop_map(Step::Drop),
        2 => Just(Step::Pass),
    ];
    proptest::collection::vec(step, 1..40)
}

const SERVICES: [&str; 2] = ["app", "other"];
const SLICES: [&str; 3] = ["s0", "s1", "s2"];
/// The slices give the last pod no UID, so it is known by its name.
const PODS: [&str; 4] = ["a", "b", "c", "d"];

fn run(rig: &mut Rig, leases: &mut Vec<Lease>, step: &Step) {
    match step {
        Step::Slice {
            slice: n,
            endpoints,
        } => {
            let endpoints: Vec<_> = endpoints
                .iter()
                .map(|(address, pod, state, hints)| {
                    let mut endpoint = ready(*address, pod.map(|n| PODS[usize::from(n)]));
                    endpoint.local = *address % 2 == 1;
                    let hint = |n| [Hint::Here, Hint::Elsewhere, Hint::None][usize::from(n)];
                    endpoint.hints = Hints {
                        node: hint(hints / 3),
                        zone: hint(hints % 3),
                    };
                    if *pod == Some(3) {
                        endpoint.pod = Some(Arc::new(PodRef {
                            name: PODS[3].into(),
                            uid: String::new(),
                        }));
                    }
                    match state {
                        0 | 1 => endpoint,
                        2 => not_ready(endpoint),
                        3 => terminating(endpoint),
                        _ => not_ready(terminating(endpoint)),
                    }
                })
                .collect();
            let n = usize::from(*n);
            rig.change([apply(slice(SLICES[n], SERVICES[n / 2], &endpoints))]);
        }
        Step::RemoveSlice(n) => rig.change([Change::Remove(
            Kind::EndpointSlice,
            name(SLICES[usize::from(*n)]),
        )]),
        Step::Pod { pod: n, deleted } => rig.change([apply(pod(PODS[usize::from(*n)], *deleted))]),
        Step::RemovePod(n) => rig.change([Change::Remove(Kind::Pod, name(PODS[usize::from(*n)]))]),
        Step::Service { service: n, uid } => {
            let uid = uid.map(|second| if second { "second" } else { "first" }.to_owned());
            let external_local = uid.is_none();
            rig.change([apply(ServiceObject {
                uid,
                traffic: Traffic {
                    external_local,
                    ..Traffic::default()
                },
                ..service(SERVICES[usize::from(*n)])
            })]);
        }
        Step::RemoveService(n) => rig.change([Change::Remove(
            Kind::Service,
            name(SERVICES[usize::from(*n)]),
        )]),
        Step::Probe(n) => {
            if let Some(id) = rig
                .joining
                .keys()
                .nth(n % rig.joining.len().max(1))
                .copied()
            {
                rig.probe(id, n % 5 > 0);
            }
        }
        Step::TryAgain(n) => {
            if let Some(id) = rig
                .readmitting
                .keys()
                .nth(n % rig.readmitting.len().max(1))
                .copied()
            {
                rig.try_again(id, n % 3 > 0);
            }
        }
        // Only a holder of a lease connects, so only that can eject.
        Step::Eject(n) => {
            if let Some(endpoint) = rig.known_at(*n)
                && endpoint.leases() > 0
            {
                endpoint.eject();
            }
        }
        Step::Take(n) => {
            let lease = rig.known_at(*n).and_then(|e| e.enter());
            leases.extend(lease);
        }
        Step::Drop(n) => {
            if !leases.is_empty() {
                leases.swap_remove(n % leases.len());
            }
        }
        Step::Pass => rig.pass(2 * SECOND),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_events_keeps_the_contract(steps in steps(), api_server in any::<bool>()) {
        let mut rig = Rig::new(if api_server { World::for_api_server() } else { World::default() });
        let mut leases = Vec::new();
        rig.change([apply(service(SERVICES[0])), apply(only_local(SERVICES[1]))]);
        for step in &steps {
            run(&mut rig, &mut leases, step);
            rig.check();
        }
        // At the end everything is removed, and nothing of it may remain.
        for n in 0..PODS.len() as u8 {
            run(&mut rig, &mut leases, &Step::Pod { pod: n, deleted: true });
            run(&mut rig, &mut leases, &Step::RemovePod(n));
        }
        for n in 0..SLICES.len() as u8 {
            run(&mut rig, &mut leases, &Step::RemoveSlice(n));
            rig.check();
        }
        for n in 0..SERVICES.len() as u8 {
            run(&mut rig, &mut leases, &Step::RemoveService(n));
        }
        rig.check();
        leases.clear();
        rig.take_notices();
        prop_assert!(rig.table.is_empty(), "something of the removed objects remains");
        prop_assert_eq!(rig.drains.running(), 0);
        prop_assert!(rig.snapshot.load().ports.is_empty());
        prop_assert_eq!(rig.drained.len(), rig.known.len());
    }
}
