//! The seconds of one Service, in few bytes each.
//!
//! A second is one byte of flags, then only what it has: up to three generations with their
//! requests, failures, replays, holds, and two latencies. Numbers take a byte for each seven bits.
//!
//! Invariant: a second takes at most `SECOND` bytes, and a ring holds [`WINDOW`] seconds.

use std::collections::VecDeque;
use std::sync::Arc;

/// Seconds that a ring holds: 15 minutes.
pub const WINDOW: usize = 900;
/// The generations of pods that a ring tells apart. Later ones are shown as [`OTHERS`], until an
/// earlier one has had no traffic for 15 minutes.
pub const GENERATIONS: usize = 32;
/// The name of what is not told apart.
pub const OTHERS: &str = "others";
/// The buckets of the latency histogram, the last one without a bound.
pub const BUCKETS: usize = 16;

/// The generations of one second. The smaller ones beyond these are one, [`OTHERS`].
const AT_ONCE: usize = 3;
/// The largest number that is kept: three bytes of seven bits.
const MOST: u64 = (1 << 21) - 1;
/// The most bytes of a second: flags, three generations of four bytes, three numbers, latencies.
const SECOND: usize = 1 + AT_ONCE * 4 + 3 * 3 + 2;
/// How many bytes a ring grows by.
const GROWTH: usize = 512;
/// The id of [`OTHERS`].
const OTHERS_ID: u8 = u8::MAX;

const FAILURES: u8 = 4;
const REPLAYED: u8 = 8;
const HELD: u8 = 16;
const LATENCY: u8 = 32;

/// What happened to a Service between two samples.
#[derive(Debug, Default)]
pub struct Sums {
    /// Requests and TCP connections that were sent to each generation.
    pub generations: Vec<(Arc<str>, u64)>,
    /// Requests that Ebbtide had to fail.
    pub failures: u64,
    /// Requests that were lost and sent again.
    pub replayed: u64,
    /// Requests and connections that began to wait for an endpoint.
    pub held: u64,
    /// Response times up to each bound of [`BOUNDS`].
    pub latency: [u64; BUCKETS],
}

/// The counts of one second that are not of one generation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Second {
    /// Requests that Ebbtide had to fail.
    pub failures: u32,
    /// Requests that were lost and sent again.
    pub replayed: u32,
    /// Requests and connections that began to wait for an endpoint.
    pub held: u32,
    /// The median and the 99th percentile of the response times in seconds, estimated within the
    /// bucket of the histogram and kept to 6 %. `None`: no response.
    pub latency: Option<[f64; 2]>,
}

/// The name of a generation, and its requests of all seconds.
pub type Generation = (Arc<str>, Vec<u32>);

/// The bounds of `ebbtide_request_duration_seconds`.
pub const BOUNDS: [f64; BUCKETS - 1] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// The last [`WINDOW`] seconds of one Service.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: VecDeque<u8>,
    /// How many seconds `bytes` holds.
    seconds: usize,
    /// The number of the last one.
    last: u64,
    /// The number of the last one in which something happened.
    active: u64,
    /// In the order in which they came.
    names: Vec<Name>,
    /// What the last second holds.
    newest: (u64, Second),
}

#[derive(Debug)]
struct Name {
    name: Arc<str>,
    id: u8,
    /// The last second in which it had traffic.
    seen: u64,
}

impl Sums {
    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.generations.is_empty()
            && self.failures + self.replayed + self.held + self.latency[BUCKETS - 1] == 0
    }
}

impl Ring {
    /// The most bytes of a ring: its seconds, the room that it has grown by, and the names.
    pub const LARGEST: usize =
        WINDOW * SECOND + GROWTH + GENERATIONS * size_of::<Name>() + size_of::<Self>();

    /// Adds a second. Those between the last one and this one are empty.
    pub fn push(&mut self, second: u64, sums: &Sums) {
        if self.seconds > 0 && second <= self.last {
            return;
        }
        if self.seconds > 0 {
            self.skip_to(second - 1);
        }
        let oldest = second.saturating_sub(WINDOW as u64 - 1);
        self.names.retain(|name| name.seen >= oldest);
        let mut generations: Vec<(u8, u64)> = Vec::with_capacity(sums.generations.len());
        for (name, count) in &sums.generations {
            let id = self.id(name, second);
            match generations.iter_mut().find(|(it, _)| *it == id) {
                Some((_, sum)) => *sum += count,
                None => generations.push((id, *count)),
            }
        }
        generations.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        if generations.len() > AT_ONCE {
            let rest = generations.split_off(AT_ONCE - 1);
            generations.push((OTHERS_ID, rest.iter().map(|(_, count)| count).sum()));
        }
        let latency = latencies(&sums.latency);
        let numbers = [sums.failures, sums.replayed, sums.held];
        let mut flags = generations.len() as u8;
        for (flag, number) in [FAILURES, REPLAYED, HELD].into_iter().zip(numbers) {
            flags |= if number > 0 { flag } else { 0 };
        }
        flags |= if latency.is_some() { LATENCY } else { 0 };
        self.make_room(second);
        self.bytes.push_back(flags);
        for (id, count) in &generations {
            self.bytes.push_back(*id);
            self.write(*count);
        }
        numbers
            .into_iter()
            .filter(|it| *it > 0)
            .for_each(|number| self.write(number));
        self.bytes.extend(latency.into_iter().flatten());
        self.active = second;
        let [failures, replayed, held] = numbers.map(|it| it.min(MOST) as u32);
        let requests = generations.iter().map(|(_, count)| count).sum();
        let latency = latency.map(|it| it.map(time));
        self.newest = (
            requests,
            Second {
                failures,
                replayed,
                held,
                latency,
            },
        );
    }

    /// Adds empty seconds up to this one. Returns whether the ring holds anything but empty ones.
    pub fn skip_to(&mut self, second: u64) -> bool {
        if second.saturating_sub(self.active) >= WINDOW as u64 {
            return false;
        }
        while self.last < second {
            self.make_room(self.last + 1);
            self.bytes.push_back(0);
            self.newest = Default::default();
        }
        true
    }

    /// The generations in the order in which they came, each with its requests of all seconds, and
    /// the other counts of all seconds.
    pub fn read(&self) -> (Vec<Generation>, Vec<Second>) {
        let names = self.names.iter().map(|it| (it.id, it.name.clone()));
        let names = names.chain([(OTHERS_ID, OTHERS.into())]);
        let mut generations: Vec<(u8, Arc<str>, Vec<u32>)> = names
            .map(|(id, name)| (id, name, vec![0; self.seconds]))
            .collect();
        let mut seconds = Vec::with_capacity(self.seconds);
        let mut bytes = self.bytes.iter().copied();
        while let Some(flags) = bytes.next() {
            for _ in 0..flags & 3 {
                let id = bytes.next().unwrap_or(OTHERS_ID);
                let count = number(&mut bytes);
                if let Some((_, _, counts)) = generations.iter_mut().find(|it| it.0 == id)
                    && let Some(place) = counts.get_mut(seconds.len())
                {
                    *place += count;
                }
            }
            let mut if_set = |flag| match flags & flag {
                0 => 0,
                _ => number(&mut bytes),
            };
            let (failures, replayed, held) = (if_set(FAILURES), if_set(REPLAYED), if_set(HELD));
            let mut code = || bytes.next().map_or(0.0, time);
            seconds.push(Second {
                failures,
                replayed,
                held,
                latency: (flags & LATENCY != 0).then(|| [code(), code()]),
            });
        }
        let used = generations.into_iter();
        let used = used.filter(|(.., counts)| counts.iter().any(|count| *count > 0));
        let used = used.map(|(_, name, counts)| (name, counts));
        (used.collect(), seconds)
    }

    /// The last second, with the sum over its generations.
    pub fn last(&self) -> (u64, Second) {
        self.newest
    }

    /// Bytes that this ring takes, without the text of its generations' names, which the endpoints
    /// share.
    pub fn bytes(&self) -> usize {
        self.bytes.capacity() + self.names.capacity() * size_of::<Name>() + size_of::<Self>()
    }

    /// The id of a generation.
    fn id(&mut self, name: &Arc<str>, second: u64) -> u8 {
        if let Some(known) = self.names.iter_mut().find(|it| it.name == *name) {
            known.seen = second;
            return known.id;
        }
        if self.names.len() == GENERATIONS {
            return OTHERS_ID;
        }
        let used = |id: &u8| self.names.iter().any(|it| it.id == *id);
        let id = (0..OTHERS_ID).find(|id| !used(id)).unwrap_or(OTHERS_ID);
        self.names.reserve_exact(1);
        self.names.push(Name {
            name: name.clone(),
            id,
            seen: second,
        });
        id
    }

    /// Drops the oldest second if there are [`WINDOW`], and counts the one that follows.
    fn make_room(&mut self, second: u64) {
        if self.seconds == WINDOW {
            self.drop_oldest();
        }
        if self.bytes.capacity() - self.bytes.len() < SECOND {
            self.bytes.reserve_exact(GROWTH);
        }
        self.seconds += 1;
        self.last = second;
    }

    fn drop_oldest(&mut self) {
        let flags = self.bytes.pop_front().unwrap_or_default();
        let numbers = [FAILURES, REPLAYED, HELD].into_iter();
        let numbers = numbers.filter(|flag| flags & flag != 0).count();
        for part in 0..usize::from(flags & 3) + numbers {
            if part < usize::from(flags & 3) {
                self.bytes.pop_front();
            }
            while self.bytes.pop_front().is_some_and(|byte| byte & 128 != 0) {}
        }
        if flags & LATENCY != 0 {
            self.bytes.drain(..2);
        }
        self.seconds -= 1;
    }

    /// Appends a number, low bits first. The top bit of a byte says that another one follows.
    fn write(&mut self, number: u64) {
        let mut left = number.min(MOST);
        while left > 127 {
            self.bytes.push_back(left as u8 | 128);
            left >>= 7;
        }
        self.bytes.push_back(left as u8);
    }
}

fn number(bytes: &mut impl Iterator<Item = u8>) -> u32 {
    let mut number = 0;
    for (place, byte) in bytes.enumerate() {
        number |= u32::from(byte & 127) << (7 * place.min(4));
        if byte & 128 == 0 {
            break;
        }
    }
    number
}

/// The median and the 99th percentile as codes; `None` if nothing was counted.
fn latencies(cumulative: &[u64; BUCKETS]) -> Option<[u8; 2]> {
    let all = cumulative[BUCKETS - 1];
    let quantile = |part: f64| {
        let rank = all as f64 * part;
        let bucket = cumulative.partition_point(|count| (*count as f64) < rank);
        let bucket = bucket.min(BUCKETS - 1);
        let below = if bucket == 0 {
            (0.0, 0)
        } else {
            (BOUNDS[bucket - 1], cumulative[bucket - 1])
        };
        // Nothing is known of how much is beyond the last bound.
        let upper = BOUNDS.get(bucket).copied().unwrap_or(below.0);
        let within = (cumulative[bucket] - below.1).max(1) as f64;
        code(below.0 + (upper - below.0) * (rank - below.1 as f64) / within)
    };
    (all > 0).then(|| [quantile(0.5), quantile(0.99)])
}

/// A time of 0.05 ms to 117 s in twelve steps for each doubling.
fn code(seconds: f64) -> u8 {
    (12.0 * (seconds.max(SHORTEST) / SHORTEST).log2()).round() as u8
}

fn time(code: u8) -> f64 {
    SHORTEST * 2f64.powf(f64::from(code) / 12.0)
}

const SHORTEST: f64 = 0.000_05;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::counters::ServiceMetrics;

    fn sums(generations: &[(&str, u64)]) -> Sums {
        let generations = generations.iter();
        Sums {
            generations: generations.map(|(name, n)| ((*name).into(), *n)).collect(),
            ..Sums::default()
        }
    }

    /// What is read is what was pushed, second by second.
    #[test]
    fn a_ring_holds_the_last_15_minutes_and_nothing_else() {
        let mut ring = Ring::default();
        for second in 1..=2_000 {
            let mut sums = sums(&[("old", second * 3), ("new", second % 2 * 200)]);
            sums.generations.retain(|(_, count)| *count > 0);
            (sums.failures, sums.held) = (second % 3, second % 500);
            ring.push(second, &sums);
        }
        let (generations, seconds) = ring.read();
        assert_eq!(seconds.len(), WINDOW);
        assert_eq!((&*generations[0].0, &*generations[1].0), ("old", "new"));
        for (index, second) in (1_101..=2_000).enumerate() {
            assert_eq!(generations[0].1[index], second * 3);
            assert_eq!(generations[1].1[index], second % 2 * 200);
            let expected = (second % 3, 0, second % 500);
            let Second {
                failures,
                replayed,
                held,
                latency,
            } = seconds[index];
            assert_eq!((failures, replayed, held), expected, "{second}");
            assert_eq!(latency, None);
        }
        assert_eq!(ring.last().0, 6_000);
    }

    #[test]
    fn seconds_without_traffic_are_there_and_a_ring_of_them_alone_is_over() {
        let mut ring = Ring::default();
        ring.push(10, &sums(&[("a", 1)]));
        ring.push(13, &sums(&[("a", 2)]));
        assert!(ring.skip_to(14));
        assert_eq!(ring.read().0, [("a".into(), vec![1, 0, 0, 2, 0])]);
        assert_eq!(ring.last(), Default::default());
        assert!(ring.skip_to(13 + WINDOW as u64 - 1));
        assert!(!ring.skip_to(13 + WINDOW as u64), "nothing is left of it");
    }

    /// The numbers of docs/reference.md, "History".
    #[test]
    fn the_memory_of_a_ring_is_bounded_whatever_happens_and_small_in_general() {
        let (mut worst, mut usual) = (Ring::default(), Ring::default());
        for second in 1..3 * WINDOW as u64 {
            let names: Vec<String> = (0..50).map(|n| format!("g{}", second * 50 + n)).collect();
            let all: Vec<_> = names
                .iter()
                .map(|it| (it.as_str(), u64::MAX / 100))
                .collect();
            let mut sums_ = sums(&all);
            (sums_.failures, sums_.replayed, sums_.held) = (u64::MAX, u64::MAX, u64::MAX);
            sums_.latency = [9; BUCKETS];
            worst.push(second, &sums_);
            sums_ = sums(&[("7d9c5b6f4", 90 + second % 60)]);
            sums_.latency = [9; BUCKETS];
            usual.push(second, &sums_);
            assert!(worst.bytes() <= Ring::LARGEST, "{}", worst.bytes());
        }
        let (generations, seconds) = worst.read();
        assert_eq!(seconds[0].failures, MOST as u32);
        assert!(generations.iter().any(|(name, _)| &**name == OTHERS));
        const { assert!(Ring::LARGEST <= 23_500) };
        assert!(usual.bytes() <= 5_700, "{}", usual.bytes());
    }

    #[test]
    fn of_more_generations_than_a_second_has_room_for_the_smaller_are_one() {
        let mut ring = Ring::default();
        ring.push(1, &sums(&[("a", 1), ("b", 20), ("c", 2), ("d", 30)]));
        let one = |name: &str, count| (Arc::<str>::from(name), vec![count]);
        let expected = [one("b", 20), one("d", 30), one(OTHERS, 3)];
        assert_eq!(ring.read().0, expected);
    }

    #[test]
    fn latencies_are_estimated_within_their_bucket() {
        let metrics = ServiceMetrics::default();
        let bounds = metrics
            .request_duration
            .cumulative()
            .map(|(bound, _)| bound);
        assert!(bounds.eq(BOUNDS.into_iter().chain([f64::INFINITY])));
        for _ in 0..98 {
            metrics.request_duration.observe(0.004);
        }
        metrics.request_duration.observe(0.2);
        metrics.request_duration.observe(0.2);
        let mut cumulative = [0; BUCKETS];
        for (to, (_, count)) in cumulative
            .iter_mut()
            .zip(metrics.request_duration.cumulative())
        {
            *to = count;
        }
        let [p50, p99] = latencies(&cumulative).unwrap().map(time);
        assert!((0.0035..0.0041).contains(&p50), "{p50}");
        assert!((0.1..0.25).contains(&p99), "{p99}");
        assert_eq!(latencies(&[0; BUCKETS]), None);
        for seconds in [0.000_05, 0.003, 1.0, 100.0] {
            assert!((time(code(seconds)) / seconds - 1.0).abs() < 0.03);
        }
        assert_eq!((code(0.0), code(1e9)), (0, 255));
    }
}
