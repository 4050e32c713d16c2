//! The configuration: real, checked types, and the way in from a file.
//!
//! `load` is the only door: what it returns has its defaults filled in and every value inside its bounds, so that nothing
//! behind it checks again. Reading goes from `raw` (the file's shape, by serde) through `checked` to `settings`; `value`
//! reads single values, `places` finds the line of a field, `service` lays a Service's annotations over the configuration.

mod checked;
pub mod fault;
mod load;
mod places;
mod raw;
pub mod service;
pub mod settings;
pub mod value;
