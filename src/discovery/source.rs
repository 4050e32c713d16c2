//! The messages that a source sends to the control loop.
//!
//! Invariant: the control loop applies one [`Message::Changes`] as a whole before it publishes
//! anything.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use ipnet::IpNet;

use crate::contract::authorities::{FoundAuthorities, Holder};
use crate::contract::name::ObjectName;
use crate::discovery::object::Change;
use crate::discovery::secret::Found;
use crate::text::one_line;

/// A message from a source to the control loop.
#[derive(Debug)]
pub enum Message {
    /// Changes that arrived together. They are applied as a whole before anything is published.
    Changes {
        /// When the first of the changes arrived.
        received: Instant,
        /// The changes in the order in which they are applied.
        changes: Vec<Change>,
    },
    /// The first complete list has been sent. An empty list counts.
    Synced,
    /// How far the first table is. Comes before [`Message::Synced`], and when it changes.
    Standing(Standing),
    /// What is known of a Secret with a certificate. It is no part of the table.
    Certificate {
        /// The Secret.
        secret: ObjectName,
        /// Its certificate, or why it has none.
        found: Found,
    },
    /// What is known of an object with authorities. It is no part of the table.
    Authorities {
        /// The object.
        holder: Holder,
        /// Its authorities, or why it has none. `None`: nobody looks at it any more.
        found: Option<FoundAuthorities>,
    },
    /// What the status of Ingress objects is to say: IP addresses and host names.
    Published(Vec<String>),
    /// The ranges of this node's pods.
    PodRanges(Vec<IpNet>),
    /// The whole list of the source's problems as it is now. It is empty when the source is in
    /// order again.
    Problems(Vec<Problem>),
}

/// What the table in force lacks. The default is a table that lacks nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Namespaces whose objects are not known yet. Their Services are not served.
    pub missing: BTreeSet<String>,
    /// Configured namespaces that do not exist.
    pub absent: BTreeSet<String>,
    /// When the table was last in order, if it is a saved one that the source has not confirmed yet.
    pub saved_at: Option<SystemTime>,
}

/// What the table uses, for a source that reads only what is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUse {
    /// The Services that configured listeners name.
    pub named: BTreeSet<ObjectName>,
    /// The Services that the table routes to, or whose connections still exist.
    pub routed: BTreeSet<ObjectName>,
    /// The Secrets that configured listeners name.
    pub secrets: BTreeSet<ObjectName>,
    /// The objects with authorities that Services name.
    pub holders: BTreeSet<Holder>,
}

/// Something that a source cannot read. The last good state stays in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, folder or watch that has the problem.
    pub subject: String,
    /// One line: what is wrong, where, and how to correct it.
    pub error: String,
    /// When the problem was first seen.
    pub since: SystemTime,
}

impl Problem {
    /// Makes a problem. Control characters become spaces, because names of files and messages of
    /// servers may contain anything.
    pub fn new(subject: &str, error: &str, since: SystemTime) -> Self {
        Self {
            subject: one_line(subject),
            error: one_line(error),
            since,
        }
    }
}
