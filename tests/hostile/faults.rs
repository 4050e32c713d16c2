//! The pure core (slices, routing table, pick, leases, drains) with signals that lie, are late and
//! get lost. Each test is one row of the fault table and runs 1,000 seeds. `run.rs` checks what
//! must hold after each step. Faults of the network are in `tests/proxy/faults.rs`.
//!
//! A failed seed prints the command that runs it again. The same seed always takes the same steps.

mod reported;
mod run;
mod truth;

use run::{Figures, Row, run};

use super::alone::beside_others;

const SEEDS: u64 = 1_000;

/// Two watches, each in order and a little late.
const PLAIN: Row = Row {
    name: "plain",
    late_ms: (0, 20),
    ordered: true,
    copies: 0,
    stuck: 0,
    reuse: 0,
    namesakes: false,
    flaps: false,
    vanishing: false,
    gaps: false,
    sudden: 0,
};

#[test]
fn late() {
    row(&Row {
        name: "late",
        late_ms: (0, 2_500),
        namesakes: true,
        ..PLAIN
    });
}

#[test]
fn repeated() {
    row(&Row {
        name: "repeated",
        late_ms: (0, 800),
        copies: 3,
        ..PLAIN
    });
}

#[test]
fn reordered() {
    row(&Row {
        name: "reordered",
        late_ms: (0, 2_000),
        ordered: false,
        ..PLAIN
    });
}

#[test]
fn contradictory() {
    row(&Row {
        name: "contradictory",
        late_ms: (0, 300),
        stuck: 6,
        ..PLAIN
    });
}

#[test]
fn address_reused() {
    row(&Row {
        name: "address_reused",
        late_ms: (0, 1_500),
        reuse: 7,
        stuck: 3,
        ..PLAIN
    });
}

#[test]
fn slices_vanish_and_return() {
    row(&Row {
        name: "slices_vanish_and_return",
        late_ms: (0, 500),
        vanishing: true,
        ..PLAIN
    });
}

#[test]
fn source_gone_and_back_with_a_gap() {
    row(&Row {
        name: "source_gone_and_back_with_a_gap",
        late_ms: (0, 300),
        gaps: true,
        namesakes: true,
        ..PLAIN
    });
}

#[test]
fn readiness_flaps() {
    row(&Row {
        name: "readiness_flaps",
        late_ms: (0, 1_000),
        flaps: true,
        ..PLAIN
    });
}

#[test]
fn dead_before_reported() {
    row(&Row {
        name: "dead_before_reported",
        late_ms: (500, 2_500),
        sudden: 7,
        ..PLAIN
    });
}

#[test]
fn all_faults_together() {
    row(&Row {
        name: "all_faults_together",
        late_ms: (0, 2_000),
        ordered: false,
        copies: 2,
        stuck: 3,
        reuse: 4,
        flaps: true,
        vanishing: true,
        gaps: true,
        sudden: 4,
        ..PLAIN
    });
}

#[test]
fn the_same_seed_is_the_same_run() {
    let _turn = beside_others();
    let row = Row {
        stuck: 2,
        flaps: true,
        vanishing: true,
        gaps: true,
        sudden: 4,
        ..PLAIN
    };
    let [first, second] = [(); 2].map(|()| {
        (0..50)
            .map(|seed| run(&row, seed).trace)
            .collect::<Vec<_>>()
    });
    assert_eq!(first, second);
    assert!(
        first.windows(2).any(|pair| pair[0] != pair[1]),
        "another seed is another run"
    );
}

/// Prints the seed of a run that panics.
struct Named<'a>(&'a Row, u64);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "run it again: EBBTIDE_SEED={} cargo test --test hostile faults::{}",
                self.1, self.0.name
            );
        }
    }
}

fn row(row: &Row) {
    let _turn = beside_others();
    let one = std::env::var("EBBTIDE_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let seeds = one.map_or(0..SEEDS, |seed| seed..seed + 1);
    let mut sum = Figures::default();
    let mut count = 0;
    for seed in seeds {
        let _named = Named(row, seed);
        let figures = run(row, seed);
        count += 1;
        sum.events += figures.events;
        sum.picks += figures.picks;
        sum.refused += figures.refused;
        sum.replays += figures.replays;
        sum.held += figures.held;
        sum.cut += figures.cut;
        sum.drains += figures.drains;
    }
    let Figures {
        events,
        picks,
        refused,
        replays,
        held,
        cut,
        drains,
        ..
    } = sum;
    if one.is_none() {
        // A row in which too little happens proves nothing.
        assert!(
            events > SEEDS * 10
                && picks > SEEDS
                && held > SEEDS / 10
                && replays > SEEDS / 10
                && drains > SEEDS,
            "{sum:?}"
        );
    }
    println!(
        "FIGURE faults world {}: {count} seeds, {events} events, {picks} dispatches ({refused} refused), \
         {replays} replays ({cut} cut at their deadline), {held} held, {drains} drains: 0 violations",
        row.name
    );
}
