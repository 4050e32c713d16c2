//! The configuration: checked types, and the way to read them from a file.
//!
//! Invariant: what `load` returns has its defaults filled in and every value inside its bounds, so
//! the rest of the program does not check again. Reading goes from `raw` (the file's shape, by
//! serde) through `checked` to `settings`. `value` reads single values, `places` finds the line of
//! a field, `expected` says what the schema knows of it, and `service` applies a Service's annotations to the configuration.

pub mod backend;
mod checked;
mod claimed;
mod expected;
pub mod fault;
pub mod gate;
mod gateway;
mod ingress;
mod listener;
mod load;
mod places;
mod raw;
pub mod service;
pub mod settings;
pub mod tls;
pub mod value;
