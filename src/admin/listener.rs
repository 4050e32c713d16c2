//! The admin address, and how it passes from one process to the next while the Ebbtide of a node is
//! being replaced (contract 1.14).
//!
//! For some time, the old and the new process share the node's network (a DaemonSet with
//! `maxSurge`). They also share the ports of the data plane, but not this one: a probe must reach
//! the process that it asks for. So the new process asks the old one for the address, over a Unix
//! socket whose abstract name holds the port. The new process has the address from its start on, and
//! the old one goes on telling it whether it serves, so that `/readyz` can speak for the node. If the
//! new process ends first, the old one takes the address back. Both check that the other is of the
//! same user. What the old one counts goes with the address (`counts.rs`).

use std::io::{self, Read};
use std::net::{self, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::admin::counts::{self, Giving, Taking};
use crate::admin::readiness;
use crate::net::socket;
use crate::observe::health::Health;
use crate::observe::metrics::Metrics;

/// The admin address, bound before the runtime exists.
pub struct Bound {
    /// The address with the port that the kernel chose, if port 0 was asked for.
    pub address: SocketAddr,
    listener: net::TcpListener,
    /// The connection to the process that gave the address up. It closes when this process ends;
    /// the other process then takes the address back.
    predecessor: Option<Predecessor>,
}

struct Predecessor {
    stream: unix::UnixStream,
    /// Its first word.
    serves: bool,
    /// `None`: it tells nothing of what it counts.
    counts: Option<Taking>,
}

/// Binds the admin address, or takes it over from another Ebbtide of this user.
///
/// # Errors
/// The error of the first bind, if no other Ebbtide gives the address up within 2 s.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let (listener, predecessor) = match net::TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // The first error says more than the failure to ask another process.
            let us = rustix::process::geteuid().as_raw();
            let predecessor = ask_to_give_way(address.port(), us).map_err(|refused| {
                // Nobody has the name: another program has the address.
                if refused.kind() != io::ErrorKind::ConnectionRefused {
                    tracing::warn!(%address, error = %refused, "no Ebbtide gives the admin address up");
                }
                error
            })?;
            (bind_soon(address)?, Some(predecessor))
        }
        other => (other?, None),
    };
    listener.set_nonblocking(true)?;
    Ok(Bound {
        address: listener.local_addr()?,
        listener,
        predecessor,
    })
}

/// Binds within 2 s. A child that the old process has just forked holds the address until the child
/// executes its program.
fn bind_soon(address: SocketAddr) -> io::Result<net::TcpListener> {
    let begun = Instant::now();
    loop {
        match net::TcpListener::bind(address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Asks a process of user `us`. Any user of this network could have taken the name.
fn ask_to_give_way(port: u16, us: u32) -> io::Result<Predecessor> {
    let mut stream = unix::UnixStream::connect_addr(&name(port)?)?;
    let owner = socket::peer_user(&stream)?;
    if owner != us {
        tracing::warn!(
            port,
            owner,
            "a process of another user has the name under which an Ebbtide is asked for its admin address"
        );
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut word = [0];
    stream.read_exact(&mut word)?;
    tracing::info!(
        port,
        "admin address taken over from the process that this one replaces"
    );
    Ok(Predecessor {
        stream,
        serves: word == [SERVES],
        counts: counts_of(port, us),
    })
}

fn counts_of(port: u16, us: u32) -> Option<Taking> {
    match Taking::start(port, us) {
        Ok(counts) => Some(counts),
        Err(error) => {
            // It is of an earlier version.
            if error.kind() != io::ErrorKind::ConnectionRefused {
                tracing::warn!(port, %error, "the process that this one replaces does not tell what it has counted; counters begin at zero");
            }
            None
        }
    }
}

fn name(port: u16) -> io::Result<unix::SocketAddr> {
    unix::SocketAddr::from_abstract_name(format!("ebbtide-admin-{port}"))
}

/// The admin address as a server uses it. It accepts while this process has the address, and waits
/// while another process has it.
pub struct AdminListener {
    address: SocketAddr,
    listener: Option<TcpListener>,
    /// Where a successor asks for the address. `None` if another process has the socket's name;
    /// then no process can take over.
    asked: Option<UnixListener>,
    successor: Option<UnixStream>,
    /// What the successor was told last.
    told: u8,
    /// Tells the successor what this process counts.
    giving: Option<Giving>,
    predecessor: Option<UnixStream>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    /// Nothing is counted any more.
    counted: CancellationToken,
}

impl AdminListener {
    /// Must be called inside a runtime. `counted`: nothing is counted any more.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub fn new(
        bound: Bound,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        counted: CancellationToken,
    ) -> io::Result<Self> {
        let Bound {
            address,
            listener,
            predecessor,
        } = bound;
        let listener = Some(TcpListener::from_std(listener)?);
        let predecessor = match predecessor {
            Some(Predecessor {
                stream,
                serves,
                counts,
            }) => {
                if let Some(counts) = counts {
                    counts.go_on(metrics.clone());
                }
                stream.set_nonblocking(true)?;
                health.update(|state| state.predecessor_serves = serves);
                Some(UnixStream::from_std(stream)?)
            }
            None => None,
        };
        let asked = ask_here(address.port());
        if asked.is_none() {
            tracing::warn!(%address, "another process has the name under which a new Ebbtide asks for the admin address; trying again");
        }
        Ok(Self {
            address,
            listener,
            asked,
            successor: None,
            told: 0,
            giving: None,
            predecessor,
            health,
            metrics,
            counted,
        })
    }

    /// Accepts the next client. Cancellation safe.
    ///
    /// # Errors
    /// The error of `accept`, usually that the process is out of descriptors.
    pub async fn accept(&mut self) -> io::Result<TcpStream> {
        loop {
            let Some(listener) = &self.listener else {
                self.take_back().await;
                continue;
            };
            tokio::select! {
                accepted = listener.accept() => return accepted.map(|(stream, _)| stream),
                successor = successor(self.asked.as_ref()) => self.give_way(successor).await,
                serves = word_of(self.predecessor.as_mut()) => self.hear(serves),
                () = tokio::time::sleep(TRY_AGAIN), if self.asked.is_none() => {
                    self.asked = ask_here(self.address.port());
                }
            }
        }
    }

    async fn give_way(&mut self, mut successor: UnixStream) {
        self.listener = None;
        self.asked = None;
        self.told = self.word();
        let (metrics, counted) = (self.metrics.clone(), self.counted.clone());
        match Giving::start(self.address.port(), metrics, counted) {
            Ok(giving) => self.giving = Some(giving),
            Err(error) => {
                tracing::warn!(%error, "the process that replaces this one is not told what was counted; its counters begin at zero");
            }
        }
        if successor.write_all(&[self.told]).await.is_ok() {
            tracing::info!(address = %self.address, "admin address given to the process that replaces this one");
        }
        self.successor = Some(successor);
        self.health.update(|state| state.has_successor = true);
    }

    /// This process ends. Waits until its successor, if there is one, knows all that was counted.
    pub async fn finish(self) {
        if let Some(giving) = self.giving {
            giving.finish().await;
        }
    }

    /// Takes in whether the predecessor serves. `None`: it has ended.
    fn hear(&mut self, serves: Option<bool>) {
        if serves.is_none() {
            self.predecessor = None;
        }
        let serves = serves.unwrap_or_default();
        self.health
            .update(|state| state.predecessor_serves = serves);
    }

    /// What a successor is told.
    fn word(&self) -> u8 {
        match readiness::of_node(&self.health.state()) {
            Ok(_) => SERVES,
            Err(_) => LEAVES,
        }
    }

    /// Waits until the successor has ended, and until the address can be bound. Tells the successor
    /// meanwhile whether this process serves.
    async fn take_back(&mut self) {
        let mut nothing = [0];
        while let Some(successor) = &mut self.successor {
            tokio::select! {
                // The successor never writes, so this read ends when the successor ends.
                _ = successor.read(&mut nothing) => self.successor = None,
                () = tokio::time::sleep(TELL) => {
                    let word = self.word();
                    if word != self.told
                        && let Some(successor) = &mut self.successor
                    {
                        self.told = word;
                        // If the successor has ended, the read above shows it.
                        let _ = successor.write_all(&[word]).await;
                    }
                }
            }
        }
        self.giving = None;
        self.health.update(|state| state.has_successor = false);
        match bind_again(self.address) {
            Ok(listener) => {
                tracing::info!(address = %self.address, "admin address taken back");
                self.listener = Some(listener);
                self.asked = ask_here(self.address.port());
            }
            // A process that came after the successor has the address.
            Err(_) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

fn bind_again(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn ask_here(port: u16) -> Option<UnixListener> {
    let listener = unix::UnixListener::bind_addr(&name(port).ok()?).ok()?;
    listener.set_nonblocking(true).ok()?;
    UnixListener::from_std(listener).ok()
}

/// The next process that asks for the address. Cancellation safe.
async fn successor(asked: Option<&UnixListener>) -> UnixStream {
    match asked {
        Some(asked) => counts::next_of_own_user(asked).await,
        None => std::future::pending().await,
    }
}

/// The next word of the predecessor: whether it serves. `None`: it has ended. Cancellation safe.
async fn word_of(predecessor: Option<&mut UnixStream>) -> Option<bool> {
    let Some(predecessor) = predecessor else {
        return std::future::pending().await;
    };
    let mut word = [0];
    match predecessor.read(&mut word).await {
        Ok(1) => Some(word == [SERVES]),
        _ => None,
    }
}

/// The words that a process tells its successor.
const SERVES: u8 = 1;
const LEAVES: u8 = 2;
/// How often a process looks whether it has another word for its successor.
const TELL: Duration = Duration::from_millis(200);
/// How long the other process may take to give the address up.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause between two tries to take the address back.
const TRY_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    async fn answers(address: SocketAddr, listener: &mut AdminListener) -> bool {
        let (client, served) = tokio::join!(TcpStream::connect(address), listener.accept());
        client.is_ok() && served.is_ok()
    }

    /// A port outside the kernel's ephemeral range, like the real admin port. While the address
    /// passes from one process to the other, no process holds it, and the kernel must not give it
    /// to a client.
    fn bound_apart() -> Bound {
        loop {
            if let Ok(bound) = bind(SocketAddr::from((
                [127, 0, 0, 1],
                fastrand::u16(10_000..30_000),
            ))) {
                return bound;
            }
        }
    }

    fn listener_at(place: Bound) -> AdminListener {
        let (health, metrics) = (Health::new("files"), Metrics::new().unwrap());
        AdminListener::new(place, Arc::new(health), metrics, CancellationToken::new()).unwrap()
    }

    #[tokio::test]
    async fn a_successor_takes_the_address_over_and_the_old_process_takes_it_back() {
        let mut old = listener_at(bound_apart());
        let address = old.address;
        assert!(answers(address, &mut old).await);
        // `bind` blocks its thread, as it does when a process starts.
        let asking = tokio::task::spawn_blocking(move || bind(address));
        let new = tokio::select! {
            bound = asking => bound.unwrap().unwrap(),
            _ = old.accept() => panic!("accepted a client that never connected"),
        };
        assert_eq!(new.address, address);
        let mut new = listener_at(new);
        assert!(answers(address, &mut new).await);
        drop(new);
        assert!(answers_in_the_end(address, &mut old).await);
    }

    /// The first clients may come before the old process has bound the address again, and may still
    /// have reached the other process. So clients keep connecting until one is accepted.
    async fn answers_in_the_end(address: SocketAddr, listener: &mut AdminListener) -> bool {
        let clients = async {
            loop {
                let _ = TcpStream::connect(address).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            accepted = listener.accept() => accepted.is_ok(),
            () = clients => false,
        }
    }

    /// The first process with the name could keep every new process from its admin address, or could give
    /// it an address that it does not have.
    #[tokio::test]
    async fn a_name_that_another_user_has_is_not_asked_and_is_taken_when_it_is_free() {
        let bound = bound_apart();
        let port = bound.address.port();
        let other = unix::UnixListener::bind_addr(&name(port).unwrap()).unwrap();
        let mut old = listener_at(bound);
        let us = rustix::process::geteuid().as_raw();
        let answering = other.try_clone().unwrap();
        let answering = std::thread::spawn(move || {
            for stream in [answering.accept(), answering.accept()] {
                let _ = io::Write::write_all(&mut stream.unwrap().0, &[SERVES]);
            }
        });
        let refused = ask_to_give_way(port, us + 1).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(ask_to_give_way(port, us).unwrap().serves);
        answering.join().unwrap();
        drop(other);
        // The process takes the name, although nobody connects, and gives the address up.
        let asking = async {
            loop {
                let asking = move || ask_to_give_way(port, us);
                if let Ok(Ok(it)) = tokio::task::spawn_blocking(asking).await {
                    return it.serves;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let serves = tokio::select! {
            serves = tokio::time::timeout(Duration::from_secs(60), asking) => serves.unwrap(),
            _ = old.accept() => panic!("accepted a client that never connected"),
        };
        assert!(!serves, "it has no table yet");
    }

    #[test]
    fn an_address_that_another_program_has_is_refused() {
        let other = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind(other.local_addr().unwrap()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
