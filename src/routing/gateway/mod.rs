//! What the objects of the Gateway API come to: a pure function of the objects, and of what is known of
//! Services and Secrets.
//!
//! Invariant: older objects come first, and of two that are equally old the first by name. So a new object
//! takes no requests from an older one, and every node comes to the same result.
//!
//! Source: <https://gateway-api.sigs.k8s.io/reference/spec/>.

pub mod addresses;
pub mod conditions;
pub mod doors;
pub mod facts;
pub mod grants;
pub mod hosts;
pub mod listeners;
pub mod plan;
pub mod policies;
pub mod routes;
pub mod rules;
pub mod statuses;

#[cfg(test)]
mod tests;
