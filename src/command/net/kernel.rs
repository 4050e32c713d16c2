//! The rules that are wanted, and whether the kernel has them.
//!
//! Invariant: while this process writes the table, the kernel's rules are the wanted ones a second
//! after anybody has changed them, or the log says why not.

use std::io;
use std::net::SocketAddr;

use crate::net::netlink::{self, Family};
use crate::net::rules::{Message, Rules, Step, Transport, difference};

/// The wanted rules beside those that the kernel has.
#[derive(Default)]
pub struct Kernel {
    /// `None` until the proxy has said what it wants.
    wanted: Option<Rules>,
    /// What the kernel has. `None`: it is not known, so everything is written anew.
    written: Option<Rules>,
    /// The number of the last change of the kernel's tables that was ours, or that left our tables
    /// as they were.
    seen: u32,
}

impl Kernel {
    /// Whether the proxy has said what it wants.
    pub fn knows(&self) -> bool {
        self.wanted.is_some()
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
                let last: std::collections::BTreeMap<(Transport, SocketAddr), Option<SocketAddr>> =
                    changes
                        .into_iter()
                        .map(|(transport, at, to)| ((transport, at), to))
                        .collect();
                let steps = last.into_iter().filter_map(|(at, after)| {
                    let before = wanted.get(&at).copied();
                    (before != after).then_some(Step { at, before, after })
                });
                steps.collect::<Vec<_>>()
            }
        };
        if let Some(wanted) = &mut self.wanted {
            step_through(wanted, &steps);
        }
        Ok(steps)
    }

    /// Writes these steps, which [`Self::take`] has returned. If the kernel's table is not as it was
    /// written, everything is written anew.
    ///
    /// # Errors
    /// The kernel's. [`Self::look`] tries again.
    pub fn write(&mut self, steps: &[Step]) -> io::Result<()> {
        let Some(written) = &mut self.written else {
            return self.write_all();
        };
        let mut families = steps.iter().filter(|it| it.after.is_some());
        let has = |family| written.keys().any(|(_, at)| Family::of(at) == family);
        // A family's first rule makes its table.
        if !families.all(|step| has(Family::of(&step.at.1))) {
            return self.write_all();
        }
        if let Err(error) = netlink::change(steps) {
            tracing::warn!(%error, "the table is not as it was left; writing it anew");
            return self.write_all();
        }
        step_through(written, steps);
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
        self.written = None;
        netlink::replace(wanted)?;
        self.written = Some(wanted.clone());
        tracing::info!(rules = wanted.len(), "the table is written");
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
        if self.written.as_ref() != Some(wanted) {
            return self.write_all();
        }
        let (now, program) = netlink::last_change()?;
        if now == self.seen {
            return Ok(());
        }
        let (found, families) = netlink::list()?;
        let wants = |family| wanted.keys().any(|(_, at)| Family::of(at) == family);
        let lacks = |family| wants(family) && !families.contains(&family);
        if found == *wanted && ![Family::V4, Family::V6].into_iter().any(lacks) {
            self.seen = now;
            return Ok(());
        }
        let (found, wanted) = (found.len(), wanted.len());
        tracing::warn!(
            found,
            wanted,
            program,
            "somebody has changed the table; writing it anew"
        );
        self.write_all()
    }

    /// Forgets what is wanted, too: the proxy has let go.
    pub fn let_go(&mut self) {
        *self = Self::default();
    }

    /// Forgets what the kernel has: another process writes the table from now on.
    pub fn stand_down(&mut self) {
        self.written = None;
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

fn step_through(rules: &mut Rules, steps: &[Step]) {
    for step in steps {
        match step.after {
            Some(to) => _ = rules.insert(step.at, to),
            None => _ = rules.remove(&step.at),
        }
    }
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
