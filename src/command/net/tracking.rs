//! Whether the kernel's table of connections (conntrack) is full: then it drops each new connection to
//! and from this node, served by Ebbtide or not. A connection by a cluster IP takes two places, the client's
//! and the proxy's own to the endpoint.

use std::io;
use std::time::{Duration, Instant};

use crate::net::flows::{self, Tracked};
use crate::net::rules::Obstacle;

/// What is known of the table.
#[derive(Default)]
pub struct Tracking {
    /// How much had been dropped at the look before.
    dropped: Option<u64>,
    full: Option<(Instant, u64)>,
}

impl Tracking {
    /// Returns what the table keeps from the proxy.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self) -> io::Result<Option<Obstacle>> {
        Ok(self.note(flows::tracked()?, Instant::now()))
    }

    /// The kernel drops for other reasons, too, and a full table makes room by flows without an answer.
    /// So it counts only if both hold.
    fn note(&mut self, now: Tracked, at: Instant) -> Option<Obstacle> {
        let Tracked {
            entries,
            limit,
            dropped,
        } = now;
        let new = dropped.saturating_sub(self.dropped.unwrap_or(dropped));
        self.dropped = Some(dropped);
        let is_high = entries * 10 >= limit * 9;
        if is_high && new > 0 {
            let before = self.full.map_or(0, |(_, count)| count);
            self.full = Some((at, before + new));
        }
        self.full = self
            .full
            .filter(|(since, _)| is_high && at < *since + REMEMBERED);
        let words = match self.full {
            Some((_, count)) => format!(
                "the kernel's table of connections is full ({entries} of {limit}), and new connections are dropped on \
                 this node ({count} packets so far)"
            ),
            None if is_high => {
                format!("the kernel's table of connections is nearly full ({entries} of {limit})")
            }
            None => return None,
        };
        Some(Obstacle {
            is_certain: self.full.is_some(),
            words: format!("{words}; raise net.netfilter.nf_conntrack_max on the node"),
        })
    }
}

/// How long the last drop counts.
const REMEMBERED: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_fills_is_a_doubt_and_one_that_drops_is_certain_for_a_time() {
        let (mut tracking, at) = (Tracking::default(), Instant::now());
        let mut say = |entries, dropped, at| {
            let limit = 1_000;
            let now = Tracked {
                entries,
                limit,
                dropped,
            };
            tracking.note(now, at).map(|it| (it.is_certain, it.words))
        };
        assert_eq!(say(10, 7, at), None);
        assert_eq!(say(899, 9, at), None, "dropped, and not for the table");
        let (is_certain, words) = say(900, 9, at).unwrap();
        assert!(
            !is_certain && words.contains("nearly full (900 of 1000); raise"),
            "{words}"
        );
        let (is_certain, words) = say(1_000, 12, at).unwrap();
        assert!(
            is_certain && words.contains("is full (1000 of 1000)"),
            "{words}"
        );
        assert!(words.contains("(3 packets so far)"), "{words}");
        assert!(say(1_000, 13, at).unwrap().1.contains("(4 packets so far)"));
        assert!(!say(1_000, 13, at + REMEMBERED).unwrap().0, "it makes room");
        assert!(say(1_000, 14, at).unwrap().0);
        assert_eq!(say(500, 14, at), None);
    }
}
