//! Shares, preferences and refusals of a pick.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::config::settings::{Config, Discovery};
use crate::contract::affinity::Affinity;
use crate::contract::name::ObjectName;
use crate::contract::policy::{Policy, Protocol, Scope};
use crate::contract::snapshot::{Local, Presence};
use crate::observe::metrics::Metrics;

/// An open endpoint. `n` is its id and the last byte of its address, `hash` its template hash.
fn endpoint(n: u8, hash: Option<&str>, let_in: Instant) -> Arc<Endpoint> {
    let address = ([10, 0, 0, n], 80).into();
    let notices = mpsc::unbounded_channel().0;
    let endpoint = Endpoint::new(
        EndpointId(n.into()),
        address,
        None,
        hash.map(Arc::from),
        notices,
    );
    endpoint.set_out(false);
    endpoint.note_let_in(let_in);
    endpoint
}

fn port(usable: Vec<Arc<Endpoint>>, last_resort: Vec<Arc<Endpoint>>) -> Port {
    let key = ObjectName::new("web", "shop").port(80);
    Port {
        metrics: Metrics::new().unwrap().service(&key),
        key,
        name: None,
        node_port: None,
        protocol: Protocol::Auto,
        policy: Policy::for_service(
            &Config::new(Discovery::Static { to: Vec::new() }),
            &BTreeMap::new(),
            None,
        )
        .0,
        usable: usable.into_iter().collect(),
        last_resort: last_resort.into_iter().collect(),
        all: EndpointList::default(),
        claimed: false,
        handing_back: false,
        target_port: None,
        hold: Arc::default(),
        addresses: Arc::default(),
        presence: Presence::Now,
        source_ranges: Arc::default(),
        affinity: None,
        traffic: Default::default(),
        local: None,
        near: None,
    }
}

/// A port with `count` endpoints that are no longer new, and the time.
fn aged(count: u8) -> (Port, Instant) {
    let born = Instant::now();
    (
        port(
            (1..=count).map(|n| endpoint(n, None, born)).collect(),
            Vec::new(),
        ),
        born + 2 * WARM_UP,
    )
}

const CLIENT: Origin = Origin {
    client: IpAddr::V4(Ipv4Addr::LOCALHOST),
    scope: None,
};
const WARM_UP: Duration = Duration::from_secs(5);

fn picked(lease: &Lease) -> usize {
    lease.endpoint().id.0 as usize
}

fn pick_id(port: &Port, avoid: &Avoid<'_>) -> Option<u64> {
    pick(port, Cost::Http, CLIENT, avoid, Instant::now()).map(|lease| lease.endpoint().id.0)
}

/// Every endpoint that this pick may return.
fn candidates(port: &Port, avoid: &Avoid<'_>) -> Vec<u64> {
    let mut all: Vec<_> = (0..300).filter_map(|_| pick_id(port, avoid)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Runs `picks` picks, `in_flight` at a time, which end in their order. Returns how many each
/// endpoint got.
fn shares(port: &Port, cost: Cost, now: Instant, in_flight: usize, picks: usize) -> [usize; 16] {
    let mut running = VecDeque::new();
    let mut shares = [0; 16];
    for _ in 0..picks {
        if running.len() == in_flight {
            running.pop_front();
        }
        let lease = pick(port, cost, CLIENT, &Avoid::default(), now).unwrap();
        shares[picked(&lease)] += 1;
        running.push_back(lease);
    }
    shares
}

#[test]
fn four_and_two_share_two_to_one() {
    fastrand::seed(1);
    for (cost, in_flight) in [
        (Cost::Http, 1),
        (Cost::Http, 8),
        (Cost::Http, 100),
        (Cost::Tcp, 8),
        (Cost::Tcp, 1_000),
    ] {
        let (port, now) = aged(6);
        for (i, endpoint) in port.usable.iter().enumerate() {
            endpoint
                .latency()
                .record(Duration::from_micros(1_000 + 300 * i as u64), millis(now));
        }
        let shares = shares(&port, cost, now, in_flight, 10_000);
        let two: usize = shares[5..7].iter().sum();
        assert!(
            (3_167..=3_500).contains(&two),
            "{cost:?}, {in_flight} at a time: {shares:?}"
        );
    }
}

/// The load of a new endpoint says nothing yet, neither for it nor against it.
#[test]
fn two_new_endpoints_among_six_get_their_third() {
    fastrand::seed(4);
    for in_flight in [1, 4, 8, 100] {
        let (port, now) = aged(6);
        port.usable.iter().skip(4).for_each(|e| e.note_let_in(now));
        let shares = shares(&port, Cost::Http, now, in_flight, 10_000);
        let two: usize = shares[5..7].iter().sum();
        assert!(
            (3_167..=3_500).contains(&two),
            "{in_flight} at a time: {shares:?}"
        );
    }
}

#[test]
fn an_endpoint_that_joins_gets_its_share_and_no_more() {
    fastrand::seed(2);
    let first = Instant::now() + WARM_UP;
    // Also in a rolling update, in which the other endpoints have just joined too.
    for (cost, held, age) in [
        (Cost::Http, true, 2 * WARM_UP),
        (Cost::Http, false, 2 * WARM_UP),
        (Cost::Http, false, WARM_UP / 5),
        (Cost::Tcp, true, 2 * WARM_UP),
        (Cost::Tcp, true, WARM_UP / 5),
        (Cost::Tcp, false, WARM_UP / 5),
    ] {
        let now = first + age;
        let three = port(
            (1..=3).map(|n| endpoint(n, None, first)).collect(),
            Vec::new(),
        );
        let mut running: VecDeque<_> = (0..200)
            .map(|_| pick(&three, cost, CLIENT, &Avoid::default(), now).unwrap())
            .collect();
        three
            .usable
            .iter()
            .for_each(|e| e.latency().record(Duration::from_millis(50), millis(now)));
        let all = three
            .usable
            .iter()
            .cloned()
            .chain([endpoint(4, None, now)])
            .collect();
        let four = port(all, Vec::new());
        let mut got = 0;
        for _ in 0..1_000 {
            let lease = pick(&four, cost, CLIENT, &Avoid::default(), now).unwrap();
            got += usize::from(picked(&lease) == 4);
            running.push_back(lease);
            if !held {
                running.pop_front();
            }
        }
        assert!(
            (150..=300).contains(&got),
            "{cost:?}, {age:?}: {got} of 1,000 where 250 are fair"
        );
    }
}

/// A pod is listed long before it is ready, and a pod that returns is as idle as a new one.
#[test]
fn an_endpoint_is_new_from_when_it_was_let_in() {
    let later = Instant::now() + 4 * WARM_UP;
    let [one, two] = [1, 2].map(|n| endpoint(n, None, later - 3 * WARM_UP));
    assert!(!one.is_newer_than(&two, millis(later)) && !two.is_newer_than(&one, millis(later)));
    two.note_let_in(later);
    assert!(two.is_newer_than(&one, millis(later)) && !one.is_newer_than(&two, millis(later)));
    assert!(!two.is_newer_than(&one, millis(later + WARM_UP)));
    // A return to rotation and the end of an ejection both note the present time, which is long
    // before `later`. So at `later` the endpoint is no longer new.
    for leave_and_return in [
        |e: &Arc<Endpoint>| [true, false].iter().for_each(|out| e.set_out(*out)),
        |e: &Arc<Endpoint>| {
            [Endpoint::eject, |e: &Arc<Endpoint>| e.readmit()]
                .iter()
                .for_each(|f| f(e))
        },
    ] {
        two.note_let_in(later);
        two.set_out(false);
        assert!(two.is_newer_than(&one, millis(later)), "it was never out");
        leave_and_return(&two);
        assert!(!two.is_newer_than(&one, millis(later)));
    }
}

/// Runs 20,000 requests of `clients` clients, each with one request at a time. Endpoints answer in
/// 1 ms, the last `slow` of them in `takes` ms. Returns how many responses after the warm-up came
/// from slow endpoints, how many there were, and the time.
fn closed_loop(
    port: &Port,
    start: Instant,
    clients: u32,
    slow: usize,
    takes: u64,
) -> (usize, usize, Instant) {
    let mut running = BTreeMap::new();
    let (mut now, mut of_slow, mut all) = (start, 0, 0);
    for n in 0..20_000u32 {
        if n >= clients {
            let ((ends, _), (began, lease)): (_, (Instant, Lease)) = running.pop_first().unwrap();
            now = ends;
            lease.endpoint().latency().record(now - began, millis(now));
        }
        let lease = pick(port, Cost::Http, CLIENT, &Avoid::default(), now).unwrap();
        let is_slow = picked(&lease) > port.usable.len() - slow;
        if now - start > Duration::from_millis(2 * takes) {
            all += 1;
            of_slow += usize::from(is_slow);
        }
        running.insert(
            (
                now + Duration::from_millis(if is_slow { takes } else { 1 }),
                n,
            ),
            (now, lease),
        );
    }
    (of_slow, all, now)
}

#[test]
fn a_slow_one_among_eleven_gets_next_to_nothing() {
    fastrand::seed(3);
    let (port, start) = aged(11);
    let (slow, all, now) = closed_loop(&port, start, 16, 1, 200);
    assert!(all > 5_000, "{all} after the warm-up");
    assert!(slow * 100 < all, "{slow} of {all} went to the slow one");
    // Later its average has faded, and it gets requests again.
    let later = now + Duration::from_secs(60);
    let again = (0..200).filter(|_| {
        picked(&pick(&port, Cost::Http, CLIENT, &Avoid::default(), later).unwrap()) == 11
    });
    assert!(again.count() > 0);
}

/// Two random endpoints are both slow in one pick of 190. Each such pick keeps a client for as long
/// as a hundred others.
#[test]
fn two_slow_ones_among_twenty_do_not_end_up_with_most_clients() {
    fastrand::seed(6);
    let (port, start) = aged(20);
    let (slow, all, _) = closed_loop(&port, start, 64, 2, 100);
    assert!(all > 5_000, "{all} after the warm-up");
    assert!(slow * 800 < all, "{slow} of {all} went to the slow ones");
}

/// One pause of a garbage collector must not cost an endpoint its share for longer than a moment.
#[test]
fn one_bad_answer_is_forgiven() {
    fastrand::seed(5);
    let (port, start) = aged(6);
    let usual = Duration::from_micros(300);
    port.usable
        .iter()
        .for_each(|e| e.latency().record(usual, millis(start)));
    port.usable[5]
        .latency()
        .record(Duration::from_millis(100), millis(start));
    let mut got = 0;
    for n in 0..10_000 {
        let now = start + usual * n / 8;
        let lease = pick(&port, Cost::Http, CLIENT, &Avoid::default(), now).unwrap();
        lease.endpoint().latency().record(usual, millis(now));
        got += usize::from(n > 5_000 && picked(&lease) == 6);
    }
    assert!(got > 700, "{got} of 5,000 where 833 are fair");
}

#[test]
fn the_less_loaded_of_two() {
    for cost in [Cost::Http, Cost::Tcp] {
        let (port, now) = aged(2);
        let _lease = port.usable[0].enter().unwrap();
        for _ in 0..50 {
            assert_eq!(
                picked(&pick(&port, cost, CLIENT, &Avoid::default(), now).unwrap()),
                2
            );
        }
    }
}

/// Latency counts for HTTP only: a long TCP connection is not a slow one.
#[test]
fn a_slow_answer_weighs_for_http_only() {
    let (port, now) = aged(2);
    port.usable[0]
        .latency()
        .record(Duration::from_millis(200), millis(now));
    port.usable[1]
        .latency()
        .record(Duration::from_millis(1), millis(now));
    let shares = |cost| shares(&port, cost, now, 1, 200);
    assert!(shares(Cost::Http)[1] < 10);
    assert!(shares(Cost::Tcp)[1] > 50);
}

#[test]
fn ejected_out_and_draining_ones_are_passed_over() {
    let (port, _) = aged(5);
    port.usable[0].eject();
    port.usable[1].set_out(true);
    port.usable[2].begin_drain();
    assert_eq!(candidates(&port, &Avoid::default()), [4, 5]);
    port.usable[3].eject();
    assert_eq!(candidates(&port, &Avoid::default()), [5]);
    assert!(has_usable(&port, None));
    port.usable[4].eject();
    assert!(candidates(&port, &Avoid::default()).is_empty());
    assert!(!has_usable(&port, None));
    port.usable[0].readmit();
    assert_eq!(candidates(&port, &Avoid::default()), [1]);
    assert!(has_usable(&port, None));
}

#[test]
fn the_one_fit_endpoint_among_many_is_found() {
    let (port, _) = aged(200);
    port.usable
        .iter()
        .filter(|e| e.id.0 != 77)
        .for_each(|e| e.set_out(true));
    assert_eq!(candidates(&port, &Avoid::default()), [77]);
}

#[test]
fn the_last_resort_serves_only_where_nothing_else_does() {
    let born = Instant::now();
    let [one, two, three] = [1, 2, 3].map(|n| endpoint(n, None, born));
    let port = port(vec![one.clone(), two.clone()], vec![three.clone()]);
    let tried = [one.id, two.id];
    assert_eq!(candidates(&port, &Avoid::default()), [1, 2]);
    assert_eq!(
        candidates(
            &port,
            &Avoid {
                tried: &tried,
                siblings_of: Some(&one)
            }
        ),
        [1, 2]
    );
    one.eject();
    two.set_out(true);
    assert_eq!(candidates(&port, &Avoid::default()), [3]);
    three.set_out(true);
    assert!(candidates(&port, &Avoid::default()).is_empty());
}

#[test]
fn tried_ones_are_used_again_only_where_no_other_is_usable() {
    let (port, _) = aged(4);
    let tried = [1, 2, 3].map(EndpointId);
    let avoid = Avoid {
        tried: &tried,
        siblings_of: None,
    };
    assert_eq!(candidates(&port, &avoid), [4]);
    port.usable[3].eject();
    port.usable[0].set_out(true);
    assert_eq!(candidates(&port, &avoid), [2, 3]);
}

#[test]
fn a_replay_prefers_another_generation_the_least_loaded_of_it() {
    let born = Instant::now();
    let generation = |n| if n <= 3 { "old" } else { "new" };
    let all: Vec<_> = (1..=5)
        .map(|n| endpoint(n, Some(generation(n)), born))
        .collect();
    let port = port(all.clone(), Vec::new());
    let tried = [all[0].id];
    let avoid = Avoid {
        tried: &tried,
        siblings_of: Some(&all[0]),
    };
    assert_eq!(candidates(&port, &avoid), [4, 5]);
    let _lease = all[3].enter();
    assert_eq!(candidates(&port, &avoid), [5]);
    all[3].set_out(true);
    all[4].eject();
    assert_eq!(
        candidates(&port, &avoid),
        [2, 3],
        "a sibling is better than none"
    );
}

/// Of a large Service only some endpoints are looked at.
#[test]
fn a_replay_finds_another_generation_in_a_large_service() {
    let born = Instant::now();
    let generation = |n| if n % 2 == 0 { "old" } else { "new" };
    let all: Vec<_> = (1..=200)
        .map(|n| endpoint(n, Some(generation(n)), born))
        .collect();
    let port = port(all.clone(), Vec::new());
    let avoid = Avoid {
        tried: &[],
        siblings_of: Some(&all[1]),
    };
    let found = candidates(&port, &avoid);
    assert!(found.iter().all(|id| id % 2 == 1), "{found:?}");
    assert!(found.len() > 50, "all replays go to a few: {found:?}");
    // Where the other generation is out, a sibling is better than none.
    all.iter().step_by(2).for_each(|e| e.set_out(true));
    assert!(candidates(&port, &avoid).iter().all(|id| id % 2 == 0));
}

/// Contract 1.8: silence may be load, so it ejects no more than half, and never the last one.
#[test]
fn silence_ejects_no_more_than_half_of_a_service() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)] {
        let (port, _) = aged(count);
        let silent = port.usable.iter().filter(|e| {
            let may = may_eject_silent(&port, None);
            may.then(|| e.eject()).is_some()
        });
        assert_eq!(silent.count(), most, "of {count}");
    }
}

#[test]
fn without_generations_a_replay_prefers_the_latest_to_join() {
    let (port, _) = aged(4);
    let lost = port.usable[1].clone();
    let tried = [lost.id];
    let avoid = Avoid {
        tried: &tried,
        siblings_of: Some(&lost),
    };
    assert_eq!(candidates(&port, &avoid), [4]);
    let _lease = port.usable[3].enter();
    assert_eq!(candidates(&port, &avoid), [3]);
    port.usable[2].eject();
    port.usable[3].eject();
    assert_eq!(candidates(&port, &avoid), [1]);
}

fn with_affinity(count: u8) -> (Port, Instant) {
    let (port, now) = aged(count);
    let affinity = Some(Affinity::new(Duration::from_secs(10)));
    (Port { affinity, ..port }, now)
}

fn origin(n: u8) -> Origin {
    Origin {
        client: Ipv4Addr::new(127, 0, 1, n).into(),
        scope: None,
    }
}

#[test]
fn a_client_stays_at_its_endpoint_and_clients_are_spread() {
    let (port, now) = with_affinity(10);
    let one = |n| picked(&pick(&port, Cost::Http, origin(n), &Avoid::default(), now).unwrap());
    let first: Vec<_> = (0..50).map(one).collect();
    for _ in 0..20 {
        assert_eq!((0..50).map(one).collect::<Vec<_>>(), first);
    }
    let used: HashSet<_> = first.iter().collect();
    assert!(used.len() > 5, "{first:?}");
}

#[test]
fn a_client_leaves_an_endpoint_that_cannot_serve_and_stays_at_the_next_one() {
    let reasons: [fn(&Arc<Endpoint>); 3] = [
        |endpoint| endpoint.begin_drain(),
        |endpoint| endpoint.eject(),
        |endpoint| endpoint.set_out(true),
    ];
    for leave in reasons {
        let (port, now) = with_affinity(10);
        let one = || picked(&pick(&port, Cost::Tcp, origin(1), &Avoid::default(), now).unwrap());
        let first = one();
        leave(
            port.usable
                .iter()
                .find(|e| e.id.0 as usize == first)
                .unwrap(),
        );
        let next = one();
        assert_ne!(next, first);
        assert!((0..50).all(|_| one() == next));
    }
}

#[test]
fn a_replay_moves_its_client_to_another_endpoint_for_good() {
    let (port, now) = with_affinity(10);
    let avoid = Avoid::default();
    let lost = pick(&port, Cost::Http, origin(1), &avoid, now).unwrap();
    let lost = lost.endpoint().clone();
    let tried = [lost.id];
    let replay = Avoid {
        tried: &tried,
        siblings_of: Some(&lost),
    };
    let next = picked(&pick(&port, Cost::Http, origin(1), &replay, now).unwrap());
    assert_ne!(next as u64, lost.id.0);
    for avoid in [&avoid, &replay].repeat(20) {
        let lease = pick(&port, Cost::Http, origin(1), avoid, now).unwrap();
        assert_eq!(picked(&lease), next);
    }
}

#[test]
fn a_client_of_the_last_resort_moves_when_an_endpoint_is_usable() {
    let born = Instant::now();
    let resorts = (1..=3).map(|n| endpoint(n, None, born)).collect();
    let before = Port {
        affinity: Some(Affinity::new(Duration::from_secs(10))),
        ..port(Vec::new(), resorts)
    };
    let one =
        |port: &Port| picked(&pick(port, Cost::Http, origin(1), &Avoid::default(), born).unwrap());
    let first = one(&before);
    assert!((0..20).all(|_| one(&before) == first));
    let mut after = before;
    after.usable.push(endpoint(4, None, born));
    assert_eq!(one(&after), 4);
}

/// Endpoints 1 to 3, of which 1 is on this node, with `externalTrafficPolicy: Local`.
fn one_here() -> (Port, Instant) {
    let (mut port, now) = aged(3);
    let here = &port.usable[0];
    port.local = Some(Box::new(Local {
        usable: [here.clone()].into_iter().collect(),
        last_resort: EndpointList::default(),
        presence: Presence::Now,
    }));
    port.traffic.external_local = true;
    (port, now)
}

fn picks(port: &Port, scope: Option<Scope>, now: Instant) -> HashSet<usize> {
    let from = Origin { scope, ..CLIENT };
    let avoid = Avoid::default();
    let all = (0..100).filter_map(|_| pick(port, Cost::Http, from, &avoid, now));
    all.map(|lease| picked(&lease)).collect()
}

#[test]
fn a_local_policy_counts_for_its_own_clients_only() {
    let (mut port, now) = one_here();
    let external = Some(Scope::External);
    assert_eq!(picks(&port, external, now), HashSet::from([1]));
    for scope in [Some(Scope::Internal), None] {
        assert_eq!(picks(&port, scope, now), HashSet::from([1, 2, 3]));
    }
    port.affinity = Some(Affinity::new(Duration::from_secs(10)));
    assert_eq!(picks(&port, None, now).len(), 1);
    assert_eq!(
        picks(&port, external, now),
        HashSet::from([1]),
        "however it sticks"
    );
}

/// Endpoints 1 to 4, of which hints give 1 and 2 to this node.
fn two_near() -> (Port, Instant) {
    let (mut port, now) = aged(4);
    let near = [0, 1].map(|place| port.usable[place].clone());
    port.near = Some(Box::new(near.into_iter().collect()));
    (port, now)
}

#[test]
fn near_endpoints_get_the_clients_of_a_cluster_policy() {
    let (mut port, now) = two_near();
    for scope in [Some(Scope::External), Some(Scope::Internal)] {
        assert_eq!(picks(&port, scope, now), HashSet::from([1, 2]));
        assert_eq!(port.width(scope), 2);
    }
    let all = HashSet::from([1, 2, 3, 4]);
    assert_eq!(picks(&port, None, now), all, "a configured listener");
    port.local = Some(Box::new(Local {
        usable: [port.usable[3].clone()].into_iter().collect(),
        last_resort: EndpointList::default(),
        presence: Presence::Now,
    }));
    port.traffic.internal_local = true;
    assert_eq!(picks(&port, Some(Scope::Internal), now), HashSet::from([4]));
    port.affinity = Some(Affinity::new(Duration::from_secs(10)));
    let stays = picks(&port, Some(Scope::External), now);
    assert!(stays.len() == 1 && stays.is_subset(&HashSet::from([1, 2])));
}

#[test]
fn no_client_is_refused_for_a_hint() {
    let (port, now) = two_near();
    let scope = Some(Scope::Internal);
    let from = Origin { scope, ..CLIENT };
    let tried = [port.usable[0].id, port.usable[1].id];
    let avoid = Avoid {
        tried: &tried,
        siblings_of: None,
    };
    let lease = pick(&port, Cost::Tcp, from, &avoid, now).unwrap();
    assert!([3, 4].contains(&picked(&lease)), "the near ones were tried");
    port.usable[0].begin_drain();
    assert_eq!(picks(&port, scope, now), HashSet::from([2]));
    port.usable[1].eject();
    assert_eq!(picks(&port, scope, now), HashSet::from([3, 4]));
    assert!(has_usable(&port, scope));
}

#[test]
fn without_an_endpoint_here_nothing_of_another_node_is_picked() {
    let (mut port, now) = one_here();
    let external = Some(Scope::External);
    assert!(!may_eject_silent(&port, external), "the last one here");
    assert!(may_eject_silent(&port, None));
    port.usable[0].eject();
    assert_eq!(picks(&port, external, now), HashSet::new());
    assert!(!has_usable(&port, external) && has_usable(&port, None));
    let resort = endpoint(9, None, now);
    let local = port.local.as_mut().unwrap();
    local.last_resort.push(resort);
    assert_eq!(picks(&port, external, now), HashSet::from([9]));
    assert_eq!(picks(&port, None, now), HashSet::from([2, 3]));
}
