//! UDP: datagrams of clients, sessions that keep a client with its endpoint, and the answers.
//!
//! A session has no end that anybody announces. So it costs a drain little: the next datagram goes to
//! another endpoint, and the answers of the old one are passed on until it has been silent for two
//! seconds (contract 1.17).
//!
//! | files | what they own |
//! |---|---|
//! | [`serve`] | a worker's share of a UDP listener |
//! | [`handed`] | sessions that pass to the process that replaces this one |
//! | [`forward`] | the way of a datagram to an endpoint, and of the answers back; the hold |
//! | [`sessions`] | one worker's sessions, and their bound |

pub mod forward;
pub mod handed;
pub mod serve;
pub mod sessions;
