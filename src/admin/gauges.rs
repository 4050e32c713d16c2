//! Gauges that are computed when `/metrics` is read: the source's age, the namespaces that it cannot
//! show, the listeners that cannot be bound, and for each Service port that is shown its endpoints by
//! state and its connections to them. All other metrics are kept where they change.

use std::sync::atomic::Ordering;

use crate::admin::report::Admin;
use crate::admin::state::State;
use crate::contract::endpoint::Endpoint;

/// Sets these gauges from the snapshot in force. Call it before the metrics are rendered.
pub fn refresh_gauges(admin: &Admin) {
    let state = admin.health.state();
    let failed = state.listeners.iter().filter(|it| it.error.is_some());
    admin
        .metrics
        .listeners_failed
        .set(failed.count().cast_signed() as i64);
    let standing = &state.standing;
    let namespaces = standing.missing.union(&standing.absent).count();
    admin
        .metrics
        .namespaces_failed
        .set(namespaces.cast_signed() as i64);
    let age = state.age().as_secs();
    admin
        .metrics
        .discovery_age
        .set(i64::try_from(age).unwrap_or(i64::MAX));
    let snapshot = admin.snapshot.load();
    for port in snapshot.ports.values().filter(|it| it.metrics.is_used()) {
        let mut counts = [0; 4];
        for endpoint in port.all.iter() {
            // The order of `families::ENDPOINT_STATES`.
            counts[match State::of(endpoint) {
                State::Ready => 0,
                State::Serving => 1,
                State::Joining | State::NotReady | State::NotAnswering | State::Out => 2,
                State::Draining => 3,
            }] += 1;
        }
        for (gauge, count) in port.metrics.endpoints.iter().zip(counts) {
            gauge.set(count);
        }
        let sum = |count: fn(&Endpoint) -> u64| port.all.iter().map(|e| count(e)).sum::<u64>();
        port.metrics
            .upstream_active
            .set(sum(Endpoint::leases).cast_signed());
        port.metrics
            .upstream_idle
            .set(sum(|e| u64::from(e.tally.idle.load(Ordering::Relaxed))).cast_signed());
    }
}
