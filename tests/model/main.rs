//! The drain contract itself, model-checked apart from the code: every run of a small world is explored, and each line of
//! the contract, weakened once, is caught by the property that is named after it.

mod checker;
mod contract;
mod lines;

use std::collections::BTreeSet;
use std::time::Instant;

use checker::explore;
use contract::{Bounds, Contract, Weaken};

/// Everything once; the old pod's node cut off: only the drain deadline ends it.
const LATE: Bounds = Bounds {
    name: "a deletion heard late, a node cut off",
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

/// The pod's deletion told twice, and the old "ready" once more, in any order.
const TWICE: Bounds = Bounds {
    name: "a deletion told twice, a stale ready between",
    requests: &[(0, true)],
    copies: [2, 0, 1, 0, 1, 1],
    ..LATE
};

/// Narrow, since what it shows lies deep.
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

/// The only pod goes before the next one comes: the last resort, the waiting room, and its one place.
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
    name: "the source of truth goes and comes back",
    gap: true,
    copies: [1, 0, 1, 0, 0, 1],
    new_by: 2,
    ..LATE
};

/// A quarter above the widest exploration: bounds that grow unseen would make the suite slow.
const MOST_STATES: usize = 250_000;

/// Every run in these bounds keeps every line.
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
        "{}: {states} states are no world",
        bounds.name
    );
}

#[test]
fn a_deletion_heard_late() {
    keeps(LATE);
}

#[test]
fn every_word_twice() {
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

/// The property that is named after the weakened line has to see it, in this world.
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
            "{weaken:?}: not seen by \"{property}\" in any of {} states",
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

        /// A property that no weakened line breaks might as well not be there.
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
    lease_after_drain: LeaseAfterDrain, LATE, "1: no lease once begin_drain has returned";
    reported_over_a_lease: ReportedOverALease, LATE, "1: drained is reported without a lease";
    reported_twice: ReportedTwice, LATE, "1: drained is reported once";
    only_the_drainer_reports: OnlyTheDrainerReports, TWICE_DELETED, "1: a drain comes to its report";
    drained_first: DrainedFirst, LATE, "2: published before it is drained";
    idle_kept: IdleKept, LATE, "3: idle connections are closed at once, and none is kept later";
    check_in_unasked: CheckInUnasked, LATE, "3: idle connections are closed at once, and none is kept later";
    cut_at_once: CutAtOnce, LATE, "4: what is in flight runs until its deadline";
    disappearance_cuts: DisappearanceCuts, LATE, "4: what is in flight runs until its deadline";
    forced_first: ForcedFirst, GAP, "4: nothing is dispatched to what is being cut";
    deadline_extended: DeadlineExtended, TWICE_DELETED, "4: and no longer, whatever comes later";
    deadline_ignored: DeadlineIgnored, LATE, "4: and no longer, whatever comes later";
    client_closed: ClientClosed, LATE, "5: a client's connection outlives a drain";
    not_replayed: NotReplayed, NOTHING_POST, "6: what may be repeated is replayed";
    clean_end: CleanEnd, NOTHING_POST, "6: a truncated answer never ends cleanly";
    ready_readmits: ReadyReadmits, TWICE, "7: termination is one-way";
    removal_drains: RemovalDrains, SWITCHED, "7: removal is not a drain";
    never_returns: NeverReturns, SWITCHED, "7: what is listed again serves again";
    published_unproved: PublishedUnproved, LATE, "8: connected to once before anything is dispatched";
    connect_costs: ConnectCosts, NOTHING_POST, "8: a failed connect costs the client nothing";
    not_ejected: NotEjected, NOTHING_POST, "8: a failed connect ejects";
    no_last_resort: NoLastResort, NOTHING_USABLE, "9: the last resort's drain is deferred";
    deferred_forever: DeferredForever, NOTHING_USABLE, "9: until another is usable";
    last_resort_passed_over: LastResortPassedOver, NOTHING_USABLE, "9: the last resort serves";
    not_ready_used: NotReadyUsed, SWITCHED, "9: never one that is not ready";
    queue_unbounded: QueueUnbounded, NOTHING_USABLE, "9: the waiting room is bounded";
    no_hold: NoHold, NOTHING_USABLE, "9: held before it is refused";
    held_dropped: HeldDropped, NOTHING_USABLE, "9: refused only when its time is over";
    held_forgotten: HeldForgotten, NOTHING_USABLE, "9: let go for the first endpoint to become usable";
    held_forever: HeldForever, NOTHING_USABLE, "9: held no longer than its time";
    held_to_the_end: HeldForgotten, TWICE_DELETED, "every request comes to its end";
    table_forgotten: TableForgotten, GAP, "10: without its source it serves the table it knew";
    post_replayed: PostReplayed, TWO_PROXIES, "R3: a POST runs once";
    post_on_stale: PostOnStale, NOTHING_POST, "R3: a POST goes out on a connection that stands";
    replayed_after_a_byte: ReplayedAfterAByte, NOTHING_POST, "R4: nothing is replayed once a byte was passed";
}

/// Two requests at one proxy, so that the second finds the first one's connection, whose pod was killed.
const NOTHING_POST: Bounds = Bounds {
    name: "a GET, then a POST on its connection",
    requests: &[(0, true), (0, false)],
    ..NOTHING_USABLE
};
