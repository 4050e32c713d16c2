//! What the elected instance of an installation writes: the election and the statuses, as one task.

use kube::Client;
use tokio::sync::watch;

use crate::cluster::leader::{self, Candidacy, Election};
use crate::cluster::status::{self, Statuses};
use crate::contract::name::ObjectName;

/// The writer of an installation.
pub struct Writer {
    candidacy: Candidacy,
    elected: watch::Receiver<bool>,
    statuses: Statuses,
    /// The Lease, by which the instances of an installation find each other.
    lease: ObjectName,
}

impl Writer {
    /// A writer, and the two ways to it.
    pub fn of(lease: ObjectName) -> (Self, Election, Statuses) {
        let (election, candidacy) = Election::begin();
        let statuses = Statuses::kept();
        let writer = Self {
            candidacy,
            elected: election.elected(),
            statuses: statuses.clone(),
            lease,
        };
        (writer, election, statuses)
    }

    /// Runs until this process has resigned. Cancellation as for [`leader::run`].
    pub async fn run(self, client: Client, errors: impl Fn(&'static str) + Clone) {
        let manager = manager(&self.lease);
        let leads = leader::run(client.clone(), self.lease, self.candidacy, errors.clone());
        let writes = status::run(client, self.statuses, manager, self.elected, errors);
        tokio::join!(leads, writes);
    }
}

/// Under which name an installation writes. Its instances share it.
pub fn manager(lease: &ObjectName) -> String {
    // The API bounds its length (128).
    lease.to_string().chars().take(128).collect()
}
