//! What the process shows of itself: metrics, health, its log and the access log.

pub mod access_log;
pub mod health;
pub mod log;
pub mod metrics;
