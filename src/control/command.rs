//! What the control loop is asked from outside.

use std::os::fd::OwnedFd;

use tokio::sync::oneshot;

use crate::config::settings::Config;
use crate::proxy::heir::{Adopted, Heir, Offer};

/// A command from outside the loop.
#[derive(Debug)]
pub enum Command {
    /// Use this configuration from now on (SIGHUP).
    Reload(Box<Config>),
    /// The process that this one replaces hands a connection over.
    Adopt(Box<Proposal>),
    /// A process that replaces this one is there.
    HandOver(Heir),
    /// Shut down. A second command ends the process immediately. The sender decides what counts as
    /// a second one.
    Shutdown,
}

/// A connection that another process offers, as the control loop gets it.
#[derive(Debug)]
pub struct Proposal {
    /// What it is.
    pub offer: Offer,
    /// Its sockets.
    pub sockets: Vec<OwnedFd>,
    /// The bytes that were read and not yet written.
    pub owed: Vec<u8>,
    /// Where the answer goes: the connection as a worker takes it, or why it is refused.
    pub answer: oneshot::Sender<Result<Box<Adopted>, &'static str>>,
}
