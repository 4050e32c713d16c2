//! The drain contract itself, model-checked apart from the code. Every run of a small world is
//! explored. Each line of the contract is also weakened once, and the property that is named after
//! the line must detect that.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

mod checker;
mod contract;
mod lines;

use std::collections::BTreeSet;
use std::time::Instant;

use checker::explore;
use contract::{Bounds, Contract, Weaken};

/// Each signal arrives once. The old pod's node is cut off, so only the drain deadline ends the
/// pod's requests.
const LATE: Bounds = Bounds {
    name: "a deletion reported late, a node cut off",
    proxies: 1,
    requests: &[(0, true)],
    arrive_by: 4,
    copies: [1, 1, 1, 1, 0, 1],
    deleted: true,
    killed: false,
    new_by: 2,
    gap: false,
    places: 2,
};

/// The pod's deletion is reported twice, and the old "ready" once more, in any order.
const TWICE: Bounds = Bounds {
    name: "a deletion reported twice, a stale ready between",
    requests: &[(0, true)],
    copies: [2, 0, 1, 0, 1, 1],
    ..LATE
};

/// Narrow bounds, because the violation it must show lies many steps deep.
const TWICE_DELETED: Bounds = Bounds {
    copies: [2, 0, 1, 0, 0, 1],
    new_by: 1,
    ..LATE
};

const TWO_PROXIES: Bounds = Bounds {
    name: "two proxies, one deletion, SIGKILL",
    proxies: 2,
    requests: &[(1, false)],
    arrive_by: 0,
    copies: [1, 0, 0, 0, 0, 1],
    killed: true,
    new_by: 1,
    ..LATE
};

/// The only pod leaves before the next one comes: the last resort, the queue of held requests, and
/// its one place.
const NOTHING_USABLE: Bounds = Bounds {
    name: "nothing usable for a while, one place to wait",
    requests: &[(0, true), (0, true)],
    copies: [1, 0, 0, 0, 0, 1],
    killed: true,
    new_by: 6,
    places: 1,
    ..LATE
};

const SWITCHED: Bounds = Bounds {
    name: "a living pod leaves the slices and returns",
    requests: &[(0, true), (0, false)],
    copies: [0, 0, 0, 1, 2, 1],
    deleted: false,
    ..LATE
};

const GAP: Bounds = Bounds {
    name: "the source of truth goes away and comes back",
    gap: true,
    copies: [1, 0, 1, 0, 0, 1],
    new_by: 2,
    ..LATE
};

/// A quarter more than the widest exploration. Bounds that grow without notice would make the suite
/// slow.
const MOST_STATES: usize = 250_000;

/// Every run within these bounds keeps every line.
fn keeps(bounds: Bounds) {
    let began = Instant::now();
    let explored = explore(
        &Contract {
            bounds,
            weaken: Weaken::Nothing,
            only: None,
        },
        MOST_STATES,
    );
    if let Some((name, way)) = explored.broken {
        panic!("{}: breaks \"{name}\" after {way:?}", bounds.name);
    }
    let (states, steps, depth) = (explored.states, explored.steps, explored.depth);
    println!(
        "FIGURE model {}: explored whole, {states} states, {steps} steps, the farthest {depth} steps away, {} properties, \
         0 violations ({:.1} s)",
        bounds.name,
        lines::LINES.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(
        states > 1_000,
        "{}: {states} states are too few for a world",
        bounds.name
    );
}

#[test]
fn a_deletion_reported_late() {
    keeps(LATE);
}

#[test]
fn every_signal_twice() {
    keeps(TWICE);
}

#[test]
fn two_proxies() {
    keeps(TWO_PROXIES);
}

#[test]
fn nothing_usable() {
    keeps(NOTHING_USABLE);
}

#[test]
fn a_connection_left_by_another() {
    keeps(NOTHING_POST);
}

#[test]
fn removal_and_return() {
    keeps(SWITCHED);
}

#[test]
fn a_gap() {
    keeps(GAP);
}

/// The property that is named after the weakened line must detect it in these bounds.
fn caught(weaken: Weaken, bounds: Bounds, property: &'static str) {
    let explored = explore(
        &Contract {
            bounds,
            weaken,
            only: Some(property),
        },
        4 * MOST_STATES,
    );
    let Some((name, way)) = explored.broken else {
        panic!(
            "{weaken:?}: not detected by \"{property}\" in any of {} states",
            explored.states
        )
    };
    assert_eq!(name, property);
    println!(
        "FIGURE model weakened {weaken:?}: \"{property}\" broken in {} steps: {way:?}",
        way.len()
    );
}

macro_rules! weakened {
    ($($test:ident: $weaken:ident, $bounds:ident, $property:literal;)*) => {
        $(
            #[test]
            fn $test() {
                caught(Weaken::$weaken, $bounds, $property);
            }
        )*

        /// A property that no weakened line breaks proves nothing.
        #[test]
        fn every_property_is_broken_by_a_weakened_line() {
            let broken = BTreeSet::from([$($property),*]);
            let all: BTreeSet<_> = lines::LINES.iter().map(|(name, _)| *name).collect();
            assert_eq!(all.difference(&broken).collect::<Vec<_>>(), Vec::<&&str>::new());
            assert_eq!(broken.difference(&all).collect::<Vec<_>>(), Vec::<&&str>::new());
        }
    };
}

weakened! {
    lease_after_drain: LeaseAfterDrain, LATE, "1.1: no lease once begin_drain has returned";
    reported_over_a_lease: ReportedOverALease, LATE, "1.1: drained is reported without a lease";
    reported_twice: ReportedTwice, LATE, "1.1: drained is reported once";
    only_the_drainer_reports: OnlyTheDrainerReports, TWICE_DELETED, "1.1: each drain is reported";
    drained_first: DrainedFirst, LATE, "1.2: published before it is drained";
    idle_kept: IdleKept, LATE, "1.3: idle connections are closed immediately, and none is kept later";
    check_in_unasked: CheckInUnasked, LATE, "1.3: idle connections are closed immediately, and none is kept later";
    cut_immediately: CutImmediately, LATE, "1.4: requests in flight run until the deadline";
    disappearance_cuts: DisappearanceCuts, LATE, "1.4: requests in flight run until the deadline";
    forced_first: ForcedFirst, GAP, "1.4: no dispatch to an endpoint that is being cut";
    deadline_extended: DeadlineExtended, TWICE_DELETED, "1.4: requests in flight end at the first deadline";
    deadline_ignored: DeadlineIgnored, LATE, "1.4: requests in flight end at the first deadline";
    client_closed: ClientClosed, LATE, "1.5: a client's connection outlives a drain";
    not_replayed: NotReplayed, NOTHING_POST, "1.6: a repeatable request is replayed";
    clean_end: CleanEnd, NOTHING_POST, "1.6: a truncated response never ends cleanly";
    ready_readmits: ReadyReadmits, TWICE, "1.7: termination is one-way";
    removal_drains: RemovalDrains, SWITCHED, "1.7: removal is not a drain";
    never_returns: NeverReturns, SWITCHED, "1.7: an endpoint that is listed again serves again";
    published_unproved: PublishedUnproved, LATE, "1.8: connected to once before the first dispatch";
    connect_costs: ConnectCosts, NOTHING_POST, "1.8: a failed connect costs the client nothing";
    not_ejected: NotEjected, NOTHING_POST, "1.8: a failed connect ejects";
    no_last_resort: NoLastResort, NOTHING_USABLE, "1.9: the last resort's drain is deferred";
    deferred_forever: DeferredForever, NOTHING_USABLE, "1.9: the last resort drains when another endpoint is usable";
    last_resort_passed_over: LastResortPassedOver, NOTHING_USABLE, "1.9: the last resort serves";
    not_ready_used: NotReadyUsed, SWITCHED, "1.9: no dispatch to an endpoint that is not ready";
    queue_unbounded: QueueUnbounded, NOTHING_USABLE, "1.9: the queue of held requests is bounded";
    no_hold: NoHold, NOTHING_USABLE, "1.9: a request is held before it is refused";
    held_dropped: HeldDropped, NOTHING_USABLE, "1.9: a held request is refused only after the hold time";
    held_forgotten: HeldForgotten, NOTHING_USABLE, "1.9: a held request goes to the first usable endpoint";
    held_forever: HeldForever, NOTHING_USABLE, "1.9: no request is held longer than the hold time";
    held_to_the_end: HeldForgotten, TWICE_DELETED, "every request ends";
    table_forgotten: TableForgotten, GAP, "1.10: without the source, the last table serves";
    post_replayed: PostReplayed, TWO_PROXIES, "3.3: a POST runs once";
    post_on_stale: PostOnStale, NOTHING_POST, "3.3: a POST goes out on an open connection";
    replayed_after_a_byte: ReplayedAfterAByte, NOTHING_POST, "3.4: nothing is replayed after a byte of the response was passed on";
}

/// Two requests at one proxy. The second finds the connection of the first, whose pod was killed.
const NOTHING_POST: Bounds = Bounds {
    name: "a GET, then a POST on its connection",
    requests: &[(0, true), (0, false)],
    ..NOTHING_USABLE
};
