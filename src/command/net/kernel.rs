//! The rules that are wanted, and whether the kernel has them.
//!
//! Invariant: while this process writes the table, the kernel's rules are the wanted ones a second
//! after anybody has changed them, or the log says why not.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;

use crate::net::flows;
use crate::net::netlink::{self, Family};
use crate::net::passage;
use crate::net::rules::{Message, Rules, Step, Transport, difference};

/// The wanted rules, and how far the kernel has them.
#[derive(Default)]
pub struct Kernel {
    /// `None` until the proxy has said what it wants.
    wanted: Option<Rules>,
    /// The families whose tables hold the wanted rules, after each call of [`Self::write`]. `None`: it
    /// is not known what the kernel has, and the next write replaces all of it.
    tables: Option<Vec<Family>>,
    /// The number of the last change of the kernel's tables that was ours, or that left our tables
    /// as they were.
    seen: u32,
}

impl Kernel {
    /// Whether the proxy has said what it wants.
    pub fn knows(&self) -> bool {
        self.wanted.is_some()
    }

    /// The rules that the proxy wants.
    pub fn wanted(&self) -> Option<&Rules> {
        self.wanted.as_ref()
    }

    /// Takes in what the proxy wants, and writes nothing. A change of unknown rules is refused: the
    /// first message of a connection holds all.
    pub fn take(&mut self, message: Message) -> Result<Vec<Step>, String> {
        let steps = match (message, &self.wanted) {
            (Message::All(all), before) => {
                let rules = all
                    .into_iter()
                    .map(|(transport, at, to)| ((transport, at), to));
                let rules: Rules = rules.collect();
                let nothing = Rules::new();
                let steps = difference(before.as_ref().unwrap_or(&nothing), &rules);
                self.wanted = Some(rules);
                return Ok(steps);
            }
            (Message::Change(_), None) => return Err("a change came before all rules".into()),
            (Message::Change(changes), Some(wanted)) => {
                let last = changes
                    .into_iter()
                    .map(|(transport, at, to)| ((transport, at), to));
                let last: BTreeMap<_, _> = last.collect();
                let steps = last.into_iter().filter_map(|(at, after)| {
                    let before = wanted.get(&at).copied();
                    (before != after).then_some(Step { at, before, after })
                });
                steps.collect::<Vec<_>>()
            }
            (Message::Sources(_), _) => return Err("a question is no rule".into()),
        };
        if let Some(wanted) = &mut self.wanted {
            for step in &steps {
                match step.after {
                    Some(to) => _ = wanted.insert(step.at, to),
                    None => _ = wanted.remove(&step.at),
                }
            }
        }
        Ok(steps)
    }

    /// Writes these steps, which [`Self::take`] has just returned. If they do not fit what the kernel
    /// has, all rules are written.
    ///
    /// # Errors
    /// The kernel's. [`Self::look`] tries again.
    pub fn write(&mut self, steps: &[Step]) -> io::Result<()> {
        let mut new = steps.iter().filter(|it| it.after.is_some());
        // A family's first rule makes its table.
        let fits = self
            .tables
            .as_ref()
            .is_some_and(|tables| new.all(|step| tables.contains(&Family::of(&step.at.1))));
        if !fits {
            self.write_all()?;
            let ended = steps.iter().filter(|step| step.after.is_none());
            end_flows(ended.map(|step| (step.at, None)));
            return Ok(());
        }
        if let Err(error) = netlink::change(steps) {
            tracing::warn!(%error, "somebody has changed the table; writing all rules again");
            return self.write_all();
        }
        end_flows(steps.iter().map(|step| (step.at, step.after)));
        self.note_own_change()
    }

    /// Writes all wanted rules in one batch.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write_all(&mut self) -> io::Result<()> {
        let Some(wanted) = &self.wanted else {
            return Ok(());
        };
        self.tables = None;
        netlink::replace(wanted)?;
        self.tables = Some(families(wanted));
        tracing::info!(rules = wanted.len(), "the table is written");
        end_flows(wanted.iter().map(|(at, to)| (*at, Some(*to))));
        self.note_own_change()
    }

    /// Looks whether somebody has changed the table since, and mends it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self) -> io::Result<()> {
        let Some(wanted) = &self.wanted else {
            return Ok(());
        };
        if self.tables.is_none() {
            return self.write_all();
        }
        let (now, program) = netlink::last_change()?;
        if now == self.seen {
            return Ok(());
        }
        let (found, tables) = netlink::list()?;
        let mut is_whole = found == *wanted;
        for family in families(wanted) {
            is_whole &= tables.contains(&family) && passage::read(family)?.is_some();
        }
        if is_whole {
            self.tables = Some(tables);
            self.seen = now;
            return Ok(());
        }
        let (found, wanted) = (found.len(), wanted.len());
        tracing::warn!(
            found,
            wanted,
            program,
            "somebody has changed the table; writing all rules again"
        );
        self.write_all()
    }

    /// Forgets what is wanted, too: the proxy has let go.
    pub fn let_go(&mut self) {
        *self = Self::default();
    }

    /// Forgets what the kernel has: another process writes the table from now on.
    pub fn stand_down(&mut self) {
        self.tables = None;
    }

    /// One batch counts as one change. If there were more, the others are not ours, and the next look
    /// compares.
    fn note_own_change(&mut self) -> io::Result<()> {
        let (now, _) = netlink::last_change()?;
        if now == self.seen.wrapping_add(1) {
            self.seen = now;
        }
        Ok(())
    }
}

/// Ends the flows to these addresses that lead elsewhere than the rules say now: UDP's, and TCP's that
/// have had no answer. Kube-proxy's are among them, of the time before the claim.
fn end_flows(rules: impl Iterator<Item = ((Transport, SocketAddr), Option<SocketAddr>)>) {
    let rules: HashMap<_, _> = rules.collect();
    if rules.is_empty() {
        return;
    }
    let datagrams = rules.keys().any(|at| at.0 == Transport::Udp);
    let is_stale = |at, leads_to| rules.get(&at).is_some_and(|to| *to != Some(leads_to));
    match flows::end(datagrams, is_stale) {
        Ok(0) => {}
        Ok(count) => tracing::info!(
            count,
            "flows to addresses that lead elsewhere now are ended"
        ),
        Err(error) => tracing::warn!(
            %error,
            "flows cannot be ended; a client that goes on sending from one port stays where it was"
        ),
    }
}

/// The families that these rules need a table for.
fn families(rules: &Rules) -> Vec<Family> {
    let needs = |family: &Family| rules.keys().any(|(_, at)| Family::of(at) == *family);
    Family::ALL.into_iter().filter(needs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> (Transport, SocketAddr) {
        (Transport::Tcp, text.parse().unwrap())
    }

    #[test]
    fn a_change_counts_from_the_rules_that_are_wanted_and_its_last_word_holds() {
        let mut kernel = Kernel::default();
        let (web, dns) = (at("10.96.0.1:80"), at("10.96.0.2:53"));
        let (node, closed): (SocketAddr, SocketAddr) = (
            "192.0.2.1:15001".parse().unwrap(),
            "192.0.2.1:9".parse().unwrap(),
        );
        let change = |rules: &[((Transport, SocketAddr), Option<SocketAddr>)]| {
            Message::Change(rules.iter().map(|((t, at), to)| (*t, *at, *to)).collect())
        };
        assert!(
            kernel.take(change(&[(web, None)])).is_err(),
            "nothing is known"
        );
        assert!(!kernel.knows());
        let all = Message::All(vec![(web.0, web.1, node)]);
        assert_eq!(kernel.take(all.clone()).unwrap().len(), 1);
        assert_eq!(kernel.take(all).unwrap(), [], "the same again");
        let steps = kernel
            .take(change(&[
                (web, Some(closed)),
                (dns, Some(node)),
                (dns, None),
            ]))
            .unwrap();
        let expected = [Step {
            at: web,
            before: Some(node),
            after: Some(closed),
        }];
        assert_eq!(steps, expected);
        assert_eq!(kernel.take(Message::All(Vec::new())).unwrap().len(), 1);
        assert!(kernel.knows());
    }
}
