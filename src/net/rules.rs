//! Which addresses lead to the proxy, as the proxy tells it to the process that writes the kernel's
//! table: data and messages, no kernel.
//!
//! The proxy connects to a Unix socket and writes one JSON message a line. Its first message holds
//! all rules, each later one a change, or a question for the shadows of clients. The other side answers
//! each message with a line once the kernel has what it says, or with the error that kept it. Between
//! answers, it says what keeps clients away.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::net::source::Client;

/// The protocol of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// TCP of the node's own processes only, such as the kubelet's.
    Own,
}

impl Transport {
    /// The protocol's number in an IP header.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Tcp | Self::Own => 6,
            Self::Udp => 17,
        }
    }
}

/// Where connections to each address are led.
pub type Rules = BTreeMap<(Transport, SocketAddr), SocketAddr>;

/// One line from the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    /// These are all rules. None: the proxy lets go, and its last connections go on.
    All(Vec<Rule>),
    /// These rules are new or others than before; `None` ends one.
    Change(Vec<(Transport, SocketAddr, Option<SocketAddr>)>),
    /// These clients want a shadow each.
    Sources(Vec<Client>),
}

/// A rule as a message holds it: the protocol, the address, and where it leads.
pub type Rule = (Transport, SocketAddr, SocketAddr);

/// One line to the proxy: it answers the messages in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The kernel has the rules.
    Applied,
    /// Another process of the node's Ebbtide writes the table. This one has kept the rules.
    Kept,
    /// The kernel has refused them, and why. They are tried again.
    Failed(String),
    /// The shadows, in the order of the clients; `None`: the node's own address has to do.
    Sources(Vec<Option<IpAddr>>),
    /// No answer: what keeps clients from the proxy now. It is said whenever that changes.
    Obstacle(Option<Obstacle>),
}

/// What keeps clients from the port to which the rules lead them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Obstacle {
    /// Clients have been kept away. If not, something only looks like it.
    pub is_certain: bool,
    /// What it is, and the cure: one line.
    pub words: String,
}

/// What turns `from` into `to`: each address that differs, with where it led and where it will.
pub fn difference(from: &Rules, to: &Rules) -> Vec<Step> {
    let gone = from.iter().filter(|(at, _)| !to.contains_key(at));
    let gone = gone.map(|(at, before)| Step {
        at: *at,
        before: Some(*before),
        after: None,
    });
    let others = to.iter().filter_map(|(at, after)| {
        let before = from.get(at).copied();
        (before != Some(*after)).then_some(Step {
            at: *at,
            before,
            after: Some(*after),
        })
    });
    gone.chain(others).collect()
}

/// A change of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The address.
    pub at: (Transport, SocketAddr),
    /// Where it leads now; `None`: there is no rule.
    pub before: Option<SocketAddr>,
    /// Where it will lead; `None`: the rule ends.
    pub after: Option<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(of: &[(&str, &str)]) -> Rules {
        let pairs = of.iter().map(|(at, to)| {
            let at: SocketAddr = at.parse().unwrap();
            ((Transport::Tcp, at), to.parse().unwrap())
        });
        pairs.collect()
    }

    #[test]
    fn the_difference_names_what_ends_what_changes_and_what_is_new_and_nothing_else() {
        let from = rules(&[
            ("10.0.0.1:80", "192.0.2.1:15001"),
            ("10.0.0.2:80", "192.0.2.1:15001"),
            ("10.0.0.3:80", "192.0.2.1:15001"),
        ]);
        let to = rules(&[
            ("10.0.0.2:80", "192.0.2.1:9"),
            ("10.0.0.3:80", "192.0.2.1:15001"),
            ("[fd00::4]:80", "[2001:db8::1]:15001"),
        ]);
        let steps = difference(&from, &to);
        let seen: Vec<_> = steps
            .iter()
            .map(|it| (it.at.1.to_string(), it.before.is_some(), it.after.is_some()))
            .collect();
        let expected = [
            ("10.0.0.1:80", true, false),
            ("10.0.0.2:80", true, true),
            ("[fd00::4]:80", false, true),
        ];
        assert_eq!(seen, expected.map(|(at, b, a)| (at.to_owned(), b, a)));
        assert_eq!(difference(&to, &to), []);
    }

    #[test]
    fn a_message_is_one_line() {
        let at = "10.0.0.1:80".parse().unwrap();
        let change = Message::Change(vec![(Transport::Udp, at, None)]);
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(text, r#"{"change":[["udp","10.0.0.1:80",null]]}"#);
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), change);
    }
}
