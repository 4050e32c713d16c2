//! The annotations of ingress-nginx that count with `ingress.keys: nginx`.
//!
//! Files import downwards in this order. `keys`: what the annotations of an Ingress ask for. `cors`: those
//! of pages of other origins. `values`: how nginx writes sizes, times, ranges and redirects.

mod cors;
pub mod keys;
mod values;
