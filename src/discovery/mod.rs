//! Where Services, EndpointSlices and Pods come from.
//!
//! A source (`files`, `kubernetes`, `fixed`) turns what it reads into changes of the few kinds of
//! objects in `object`, and sends them as messages (`source`). `manifest` reads the objects, and
//! `document` finds them in a text, and `passed_over` names those that were meant to be read. Nothing here merges objects or knows of routing; that is
//! `routing/world`.

mod absent;
mod arrivals;
pub mod confirm;
pub mod document;
pub mod files;
pub mod fixed;
pub mod gateway;
mod held;
pub mod ingress;
pub mod instances;
pub mod invalid;
pub mod kubernetes;
pub mod manifest;
pub mod object;
mod passed_over;
pub mod policy_spec;
pub mod published;
mod restored;
pub mod route_spec;
mod saved;
mod scope;
pub mod secret;
pub mod secrets;
pub mod service_spec;
pub mod source;
mod standing;

mod watches;
mod watching;
