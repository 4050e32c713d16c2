//! What keeps clients from the proxy on this node, of all kinds: looked for, logged, and put into words
//! for the proxy.

use crate::command::net::firewall::Firewall;
use crate::command::net::tracking::Tracking;
use crate::net::rules::{Obstacle, Rules};

/// What is known. For the process that owns the table.
#[derive(Default)]
pub struct Obstacles {
    firewall: Firewall,
    tracking: Tracking,
    /// Whether each kind is there, and certain, as it was logged last.
    logged: [Option<bool>; 2],
}

impl Obstacles {
    /// Looks for all kinds. What cannot be looked at is no obstacle.
    pub fn look(&mut self, rules: Option<&Rules>) -> Option<Obstacle> {
        let looked = [self.firewall.look(rules), self.tracking.look()];
        let found = looked.map(|it| {
            it.unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot look whether clients reach the proxy");
                None
            })
        });
        for (known, it) in self.logged.iter_mut().zip(&found) {
            let is_certain = it.as_ref().map(|it| it.is_certain);
            if std::mem::replace(known, is_certain) != is_certain {
                match it {
                    Some(it) => tracing::warn!("{}", it.words),
                    None => tracing::info!("what kept clients away, or seemed to, is gone"),
                }
            }
        }
        found.into_iter().flatten().reduce(|one, other| Obstacle {
            is_certain: one.is_certain || other.is_certain,
            words: format!("{}; and {}", one.words, other.words),
        })
    }
}
