//! What a load met in each second: which version answered how often, what failed, and the p99.
//!
//! Invariant: at most `LONGEST` seconds and `VERSIONS` versions are kept, so the memory does not
//! grow with the load. An answer counts in the second in which it came.

use std::time::Duration;

/// The seconds of a load.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// The versions in the order in which they first answered.
    pub versions: Vec<String>,
    /// The seconds since the load began.
    pub seconds: Vec<Second>,
    /// The latencies of the last second.
    open: Vec<Duration>,
}

/// One second of a load.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Second {
    /// Good responses by the index of their version.
    pub answered: Vec<(usize, u32)>,
    /// Requests that failed.
    pub failed: u32,
    /// Of the good responses.
    pub p99: Duration,
}

impl Second {
    /// All good responses.
    pub(crate) fn sum(&self) -> u32 {
        self.answered.iter().map(|(_, count)| count).sum()
    }
}

impl Timeline {
    /// Counts a good response at this time since the beginning. Its body is the version.
    pub(crate) fn answered(&mut self, at: Duration, latency: Duration, body: &[u8]) {
        let version = self.version(body);
        let Some(second) = self.second(at) else {
            return;
        };
        match second.answered.iter_mut().find(|(it, _)| *it == version) {
            Some((_, count)) => *count += 1,
            None => {
                second.answered.push((version, 1));
                second.answered.sort_unstable();
            }
        }
        self.open.push(latency);
    }

    /// Counts a request that failed.
    pub(crate) fn failed(&mut self, at: Duration) {
        if let Some(second) = self.second(at) {
            second.failed += 1;
        }
    }

    /// Ends the last second.
    pub(crate) fn close(&mut self) {
        self.open.sort_unstable();
        let rank = (self.open.len() * 99).div_ceil(100).saturating_sub(1);
        if let (Some(p99), Some(last)) = (self.open.get(rank), self.seconds.last_mut()) {
            last.p99 = *p99;
        }
        self.open.clear();
    }

    fn second(&mut self, at: Duration) -> Option<&mut Second> {
        let index = usize::try_from(at.as_secs())
            .ok()
            .filter(|it| *it < LONGEST)?;
        while self.seconds.len() <= index {
            self.close();
            self.seconds.push(Second::default());
        }
        self.seconds.last_mut()
    }

    fn version(&mut self, body: &[u8]) -> usize {
        let text = String::from_utf8_lossy(&body[..body.len().min(32)]);
        let text = text.trim();
        match self.versions.iter().position(|it| it == text) {
            Some(index) => index,
            None if self.versions.len() < VERSIONS => {
                self.versions.push(text.to_owned());
                self.versions.len() - 1
            }
            None => VERSIONS - 1,
        }
    }
}

/// The seconds that are kept: the longest load but an endless one.
const LONGEST: usize = 3_600;
/// The versions that are told apart.
const VERSIONS: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_versions_failures_and_p99() {
        let mut timeline = Timeline::default();
        let ms = Duration::from_millis;
        timeline.answered(ms(10), ms(5), b"v1\n");
        timeline.answered(ms(20), ms(9), b"v1\n");
        timeline.failed(ms(2_100));
        timeline.answered(ms(2_200), ms(7), b"v2");
        timeline.failed(Duration::from_secs(4_000));
        timeline.close();
        let second = |answered: &[(usize, u32)], failed, p99| Second {
            answered: answered.to_vec(),
            failed,
            p99: ms(p99),
        };
        let expected = [
            second(&[(0, 2)], 0, 9),
            second(&[], 0, 0),
            second(&[(1, 1)], 1, 7),
        ];
        assert_eq!(timeline.seconds, expected);
        assert_eq!(timeline.versions, ["v1", "v2"]);
        for n in 0..2_000 {
            timeline.answered(ms(2_300), ms(1), format!("{n}").as_bytes());
        }
        assert_eq!(timeline.versions.len(), VERSIONS);
    }
}
