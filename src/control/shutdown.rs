//! The phases of this process's own shutdown.
//!
//! Invariant: no connection is cut before the grace is over.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::contract::snapshot::Published;
use crate::control::listeners::Listeners;
use crate::observe::health::Health;
use crate::proxy::shared::{Shared, WorkerCommand};

/// How far the shutdown has come.
pub(super) enum Phase {
    /// No shutdown.
    Running,
    /// `/readyz` fails. Accepting goes on until this moment, or until the earlier one if a successor
    /// is there then.
    LameDuck {
        /// Without a successor.
        until: Instant,
        /// With one.
        handed: Option<Instant>,
    },
    /// Nothing is accepted. Clients have until this moment.
    Draining(Instant),
    /// The workers cut the remaining connections. The process ends at this moment at the latest.
    Cutting(Instant),
}

impl Phase {
    /// When to look again.
    pub(super) fn next_look(&self) -> Option<Instant> {
        match self {
            Self::Running => None,
            Self::LameDuck { until, handed } => Some(handed.map_or(*until, |at| at.min(*until))),
            Self::Draining(until) | Self::Cutting(until) => {
                Some((*until).min(Instant::now() + LOOK))
            }
        }
    }

    /// The successor accepts, so this process may soon stop. Not at once: a successor that dies while
    /// clients pass to it would leave nobody who accepts.
    pub(super) fn has_successor(&mut self) {
        if let Self::LameDuck { handed, .. } = self {
            *handed = Some(Instant::now() + SETTLES);
        }
    }

    /// Moves the shutdown on. Returns `false` when it is complete. `grace` is how long clients have
    /// once nothing is accepted.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        grace: Duration,
        shared: &Shared,
        listeners: &mut Listeners,
        health: &Health,
        snapshot: &Published,
    ) -> bool {
        match *self {
            Self::LameDuck { until, handed }
                if handed.is_some_and(|at| now >= at && at < until) && !shared.has_heir() =>
            {
                // It is gone again. Another one may come.
                *self = Self::LameDuck {
                    until,
                    handed: None,
                };
            }
            Self::LameDuck { until, handed } if now >= handed.unwrap_or(until).min(until) => {
                shared.closing.store(true, Ordering::Relaxed);
                listeners.close_all(shared, health);
                shared.post_all(|| WorkerCommand::Closing);
                *self = Self::Draining(now + grace);
            }
            Self::Draining(_) if shared.connections() == 0 && listeners.are_closed() => {
                tracing::info!("shut down; no connection was cut");
                return false;
            }
            Self::Draining(until) if now >= until => {
                let (connections, in_flight) = (shared.connections(), snapshot.load().in_flight());
                tracing::warn!(
                    connections,
                    in_flight,
                    "shutdown grace is over; cutting what is left"
                );
                shared.post_all(|| WorkerCommand::Cut);
                *self = Self::Cutting(now + CUT_TIME);
            }
            Self::Cutting(until) if now >= until || shared.connections() == 0 => return false,
            _ => {}
        }
        true
    }
}

/// How long a successor is watched before this process stops to accept: the clients that can pass at
/// once have passed long before.
const SETTLES: Duration = Duration::from_secs(2);
/// How often to look whether the last client has gone.
const LOOK: Duration = Duration::from_millis(20);
/// How long the cut itself may take.
const CUT_TIME: Duration = Duration::from_secs(1);
