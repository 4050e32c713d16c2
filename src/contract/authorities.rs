//! Where the authorities of certificates are found, and what is known of them there.
//!
//! Invariant: authorities that are found are well-formed. They are public.

use std::fmt;
use std::sync::Arc;

use crate::contract::name::ObjectName;

/// An object with the authorities of certificates, in its key `ca.crt`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its kind.
    pub kind: HolderKind,
    /// Its namespace and name.
    pub name: ObjectName,
}

/// The kinds of objects that hold authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HolderKind {
    /// A v1 Secret.
    Secret,
    /// A v1 ConfigMap.
    ConfigMap,
}

impl Holder {
    /// The object of this name. `None`: no object can have it (RFC 1123 subdomain). The name becomes part
    /// of a field selector.
    pub fn of(kind: HolderKind, namespace: &str, name: &str) -> Option<Self> {
        let is_allowed = |it: u8| matches!(it, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        let is_name = (1..=253).contains(&name.len()) && name.bytes().all(is_allowed);
        is_name.then(|| Self {
            kind,
            name: ObjectName::new(namespace, name),
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

/// What is known of a [`Holder`]: its authorities (PEM), or why it gives none.
pub type FoundAuthorities = Result<Arc<str>, String>;
