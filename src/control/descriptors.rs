//! How the descriptors of this process are divided: between clients, listening sockets, and what
//! the process needs itself.
//!
//! Invariant: the parts together never exceed the limit. So the sockets of too many nodePorts leave
//! no client without a descriptor, and a port without a place is refused by name.

use crate::config::fault::Refused;

/// What there is to divide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit of the process.
    pub limit: usize,
    /// For client connections and listening sockets together.
    shared: usize,
    /// `limits.connections`.
    wanted: usize,
}

impl Descriptors {
    /// Takes from `limit` what the process needs itself. The threads need theirs in any case. An
    /// eighth of the rest, at most 512, is for API connections, manifests, the admin pages and
    /// pipes. `connections` is `limits.connections`.
    ///
    /// # Errors
    /// So few are left that nobody could be served usefully.
    pub fn divide(limit: usize, workers: usize, connections: usize) -> Result<Self, Refused> {
        let threads = FIXED + EACH_WORKER * workers;
        let least = threads + LEAST;
        if limit < least {
            return Err(Refused::new(
                "ulimit -n",
                format!(
                    "this process may open {limit} files and sockets, and {workers} workers need \
                     at least {least}: raise the limit (`ulimit -n {USEFUL}`, LimitNOFILE= of \
                     systemd, or the container runtime's), or set fewer workers"
                ),
            ));
        }
        let rest = limit - threads;
        Ok(Self {
            limit,
            shared: rest - (rest / 8).min(512),
            wanted: connections,
        })
    }

    /// The most listening sockets: half, or all that `limits.connections` leaves.
    pub fn listening(&self) -> usize {
        let left = self.shared.saturating_sub(self.wanted.saturating_mul(2));
        left.max(self.shared / 2)
    }

    /// The most client connections beside this many listening sockets. Each connection needs two
    /// descriptors: its own, and that of a connection to an endpoint.
    pub fn connections(&self, listening: usize) -> usize {
        let left = self.shared.saturating_sub(listening);
        self.wanted.min(left / 2)
    }
}

/// What the process holds without a client, a listener or a source: standard streams, the admin
/// pages, signals, the control thread and others.
const FIXED: usize = 24;
/// What a worker's runtime holds.
const EACH_WORKER: usize = 4;
/// With less than this beside the threads, a few clients would take all there is.
const LEAST: usize = 64;
/// What the error recommends: enough for the default of `limits.connections`.
const USEFUL: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_never_exceed_the_limit_and_nobody_is_left_without() {
        for limit in (0..3_000).chain([4_096, 65_536, 1 << 20, usize::MAX]) {
            for workers in [1, 2, 64] {
                for wanted in [1, 3, 20_000, 1_000_000] {
                    let threads = FIXED + EACH_WORKER * workers;
                    let parts = match Descriptors::divide(limit, workers, wanted) {
                        Ok(parts) => parts,
                        Err(refused) => {
                            assert!(limit < threads + LEAST, "{limit} {workers}");
                            assert!(refused.to_string().contains("ulimit -n 65536"), "{refused}");
                            continue;
                        }
                    };
                    assert!(parts.listening() >= 14, "{limit}: {parts:?}");
                    for listening in [0, 1, parts.listening() / 2, parts.listening()] {
                        let connections = parts.connections(listening);
                        let all = threads + listening + 2 * connections;
                        assert!(all <= limit, "{limit} {listening}: {parts:?}");
                        assert!(connections >= wanted.min(14), "{limit}: {parts:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_reserve_is_in_proportion() {
        let of = |limit| Descriptors::divide(limit, 2, 20_000).unwrap();
        assert_eq!((of(200).connections(2), of(200).listening()), (72, 73));
        assert_eq!(
            (of(4_096).connections(1_778), of(4_096).listening()),
            (889, 1_778)
        );
        assert_eq!(of(65_536).connections(0), 20_000);
    }
}
