//! Where the truth about endpoints comes from.
//!
//! A source (`files`, `kubernetes`, `fixed`) turns what it reads into changes of the few object kinds in `object`, and
//! sends them as messages (`source`). It knows nothing of routing.

pub mod files;
pub mod fixed;
pub mod kubernetes;
pub mod manifest;
pub mod object;
pub mod source;
