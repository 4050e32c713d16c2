//! Sockets of listeners that the process which replaces this one has as well: which of both reads.
//!
//! Invariant: at every moment somebody reads. A worker reads until the other process has said that it
//! reads from now on.
//!
//! They are the same sockets, so the kernel divides the clients as before, and what waits in a socket is
//! nobody's loss. From a TCP listener both processes accept: a connection in its queue goes to the one
//! that is faster, or lives.

use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::contract::policy::Transport;

/// Which socket of the old process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DoorName {
    /// The listener's transport. An earlier version knows sockets of UDP listeners only.
    #[serde(default = "udp")]
    pub transport: Transport,
    /// The listener's address.
    pub listener: SocketAddr,
    /// Its number among the listener's sockets. Of UDP it is that of the worker that reads it. An earlier
    /// version has one socket for each worker, and calls it so.
    #[serde(rename = "worker")]
    pub number: usize,
}

fn udp() -> Transport {
    Transport::Udp
}

/// A worker wants to leave a socket to the other process.
#[derive(Debug)]
pub struct Release {
    /// The socket.
    pub door: DoorName,
    /// Whether the other process reads now. Dropped: it does not.
    pub taken: oneshot::Sender<bool>,
}

/// The processes that have this one's sockets.
#[derive(Debug, Default)]
pub struct Doors(Mutex<Vec<Sender<Release>>>);

impl Doors {
    /// Another process has them. It is asked by this, until the other end is dropped.
    pub fn add(&self, asked: Sender<Release>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(asked);
    }

    /// Leaves a socket to the other process. Returns whether that one reads now. Cancellation safe: at worst,
    /// both read.
    pub async fn release(&self, door: DoorName) -> bool {
        let answers: Vec<_> = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let ask = |asked: &Sender<Release>| {
                let (taken, answer) = oneshot::channel();
                asked.send(Release { door, taken }).ok().map(|()| answer)
            };
            // One whose other end is dropped has ended.
            let (there, answers) = all
                .drain(..)
                .filter_map(|it| ask(&it).map(|a| (it, a)))
                .unzip();
            *all = there;
            answers
        };
        let mut is_taken = false;
        for answer in answers {
            is_taken |= answer.await.unwrap_or(false);
        }
        is_taken
    }
}
