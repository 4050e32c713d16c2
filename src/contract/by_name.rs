//! What belongs to the names of servers that clients of TLS ask for (SNI, RFC 6066 section 3).
//!
//! Invariant: a name is found by exactly itself first, then by `*.` and the name without its first
//! label. Case does not count.

use std::collections::HashMap;

/// What belongs to names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByName<T>(HashMap<String, T>);

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ByName<T> {
    /// Adds a name, which may begin with `*.`. If it is there already, nothing changes.
    pub fn add(&mut self, name: &str, value: T) {
        self.0.entry(name.to_ascii_lowercase()).or_insert(value);
    }

    /// What belongs to the name that a client asks for.
    pub fn find(&self, asked: &str) -> Option<&T> {
        // A name that ends with a dot is no SNI, and rustls refuses it.
        let asked = asked.to_ascii_lowercase();
        let wildcard = || {
            let (_, parent) = asked.split_once('.')?;
            self.0.get(&format!("*.{parent}"))
        };
        self.0.get(&asked).or_else(wildcard)
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
