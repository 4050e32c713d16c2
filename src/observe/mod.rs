//! What the process shows of itself: metrics, health, the log and the access log.
//!
//! Nothing here decides anything. The admin pages that serve this state are in `admin`.

pub mod access_log;
pub mod families;
pub mod health;
pub mod history;
mod lines;
pub mod log;
pub mod metrics;
mod process;
pub mod ring;
