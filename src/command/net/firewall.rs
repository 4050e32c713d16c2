//! Whether a firewall of this node keeps clients from the proxy: what is certain by the kernel's
//! counts, and what only looks like it.
//!
//! Invariant: nothing is called certain that could have been on its way. So what was led a look ago is
//! compared with what has arrived now. On a busy node some loss stays hidden for a while.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use crate::net::netlink::Family;
use crate::net::passage::{self, Passage};
use crate::net::rules::{Obstacle, Rules, Transport};

/// What is known of this node's firewall. For the process that owns the table.
#[derive(Default)]
pub struct Firewall {
    families: [Watched; 2],
    has_arrived: bool,
    /// The chains that drop what no rule accepts, as of the last look at them.
    chains: Vec<String>,
    next_chains: Option<Instant>,
}

impl Firewall {
    /// Looks at what the kernel has counted. Returns what keeps clients away.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self, rules: Option<&Rules>) -> io::Result<Option<Obstacle>> {
        let now = Instant::now();
        let mut has_lost = false;
        for family in Family::ALL {
            if let Some(counted) = passage::read(family)? {
                has_lost |= self.families[family as usize].note(counted, now);
                self.has_arrived |= counted.arrived > 0;
            }
        }
        let is_due = !self.has_arrived && self.next_chains.is_none_or(|at| at <= now);
        if is_due || has_lost {
            self.chains = passage::dropping_chains()?;
            self.next_chains = Some(now + CHAINS_EVERY);
        }
        Ok(self.words(rules))
    }

    fn words(&self, rules: Option<&Rules>) -> Option<Obstacle> {
        let chains = self.chains.join(", ");
        let cure = cure(rules);
        let lost = Family::ALL.into_iter().find_map(|family| {
            let loss = self.families[family as usize].loss?;
            Some((family, loss))
        });
        if let Some((family, Loss { lost, led, .. })) = lost {
            let sign = match self.chains.is_empty() {
                true => String::new(),
                false => format!(" ({chains} drops what no rule of it accepts)"),
            };
            let family = match family {
                Family::V4 => "an IPv4",
                Family::V6 => "an IPv6",
            };
            return Some(Obstacle {
                is_certain: true,
                words: format!(
                    "a firewall of this node keeps pods or other hosts from the proxy: {lost} of {led} attempts to \
                     connect to {family} address of a Service were dropped on this node{sign}; {cure}"
                ),
            });
        }
        (!self.has_arrived && !self.chains.is_empty()).then(|| Obstacle {
            is_certain: false,
            words: format!(
                "a firewall of this node may keep pods from the proxy: {chains} drops what no rule of it accepts, and \
                 no pod has connected to a Service's address yet; {cure}"
            ),
        })
    }
}

/// What to allow: the ports to which the rules lead.
fn cure(rules: Option<&Rules>) -> String {
    let all = || rules.into_iter().flatten();
    let tcp = all().filter(|((transport, _), _)| *transport == Transport::Tcp);
    let ports: BTreeSet<u16> = tcp.map(|(_, to)| to.port()).collect();
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let ports = match ports.len() {
        0 => "services.port".to_owned(),
        _ => ports.join(" and "),
    };
    let has_udp = all().any(|((transport, _), _)| *transport == Transport::Udp);
    let udp = if has_udp { ", and UDP" } else { "" };
    format!("let it accept from pods TCP to {ports}{udp}")
}

/// The counts of one family.
#[derive(Default)]
struct Watched {
    /// At the look before.
    before: Passage,
    /// The most that was certain, since the table was written.
    lost: u64,
    loss: Option<Loss>,
}

/// What is known to be lost.
#[derive(Debug, Clone, Copy)]
struct Loss {
    lost: u64,
    led: u64,
    at: Instant,
    /// What had arrived at this time.
    arrived: u64,
}

impl Watched {
    /// Takes in the counts of a look. Returns whether more is lost.
    fn note(&mut self, now: Passage, at: Instant) -> bool {
        if now.led < self.before.led || now.arrived < self.before.arrived {
            // The table was written again. A loss counts until something arrives.
            (self.before, self.lost) = (Passage::default(), 0);
            if let Some(loss) = &mut self.loss {
                loss.arrived = 0;
            }
        }
        let Passage { led, .. } = std::mem::replace(&mut self.before, now);
        let lost = led.saturating_sub(now.arrived);
        if lost > self.lost {
            self.lost = lost;
            let arrived = now.arrived;
            self.loss = Some(Loss {
                lost,
                led,
                at,
                arrived,
            });
            return true;
        }
        let is_over = |loss: &Loss| now.arrived > loss.arrived && at >= loss.at + REMEMBERED;
        self.loss = self.loss.filter(|loss| !is_over(loss));
        false
    }
}

/// A loss counts at least for this time. A client repeats a SYN after 1, 2, 4, 8 and 16 s.
const REMEMBERED: Duration = Duration::from_secs(30);
/// How often the chains are listed while nothing has arrived. A node can have 10,000.
const CHAINS_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(led: u64, arrived: u64) -> Passage {
        Passage { led, arrived }
    }

    #[test]
    fn what_may_be_on_its_way_is_not_lost_and_what_was_led_a_look_ago_is() {
        let (mut watched, at) = (Watched::default(), Instant::now());
        // On its way at each look.
        for n in 1..50 {
            assert!(!watched.note(counts(n * 10, n * 10 - 10), at));
        }
        assert!(watched.loss.is_none());
        // Four of these never arrive.
        assert!(!watched.note(counts(494, 490), at));
        assert!(watched.note(counts(494, 490), at));
        let loss = watched.loss.unwrap();
        assert_eq!((loss.lost, loss.led), (4, 494));
        assert!(!watched.note(counts(494, 490), at), "the same loss");
        assert!(!watched.note(counts(495, 490), at), "on its way");
        assert!(watched.note(counts(495, 490), at), "one more");
    }

    #[test]
    fn a_loss_counts_until_something_arrives_and_nothing_is_lost_for_a_time() {
        let (mut watched, at) = (Watched::default(), Instant::now());
        watched.note(counts(1, 0), at);
        assert!(watched.note(counts(1, 0), at));
        let later = at + REMEMBERED;
        watched.note(counts(1, 0), later);
        assert!(watched.loss.is_some(), "nobody has tried since");
        // The table is written again, which proves nothing.
        watched.note(counts(0, 0), later);
        assert!(watched.loss.is_some());
        watched.note(counts(1, 1), at);
        assert!(watched.loss.is_some(), "others may still be kept away");
        watched.note(counts(2, 2), later);
        assert!(watched.loss.is_none());
    }

    #[test]
    fn a_loss_is_said_as_it_is_and_a_chain_is_only_a_sign() {
        let mut firewall = Firewall::default();
        assert_eq!(firewall.words(None), None);
        firewall.chains = vec!["chain input of table inet filter".into()];
        let doubt = firewall.words(None).unwrap();
        assert!(!doubt.is_certain);
        assert!(
            doubt.words.contains("may keep pods") && doubt.words.ends_with("TCP to services.port")
        );
        firewall.has_arrived = true;
        assert_eq!(firewall.words(None), None, "a rule accepts it");
        let rule = |transport, to: &str| {
            let at = format!("10.96.0.7:{}", to.len()).parse().unwrap();
            ((transport, at), format!("192.0.2.1:{to}").parse().unwrap())
        };
        let rules = Rules::from([
            rule(Transport::Tcp, "15001"),
            rule(Transport::Tcp, "9"),
            rule(Transport::Udp, "40000"),
        ]);
        let now = Instant::now();
        for _ in 0..2 {
            firewall.families[1].note(counts(3, 1), now);
        }
        let certain = firewall.words(Some(&rules)).unwrap();
        let expected = "a firewall of this node keeps pods or other hosts from the proxy: 2 of 3 attempts to connect \
                        to an IPv6 address of a Service were dropped on this node (chain input of table inet filter \
                        drops what no rule of it accepts); let it accept from pods TCP to 9 and 15001, and UDP";
        assert_eq!(
            (certain.is_certain, certain.words.as_str()),
            (true, expected)
        );
    }
}
