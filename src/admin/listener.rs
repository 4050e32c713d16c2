//! The admin address, and how one process takes it over from another while a node's Ebbtide is being replaced.
//!
//! Old and new process share the node's network for a while (a DaemonSet with `maxSurge`), and the data plane's ports,
//! but not this one: probes and scrapes must know whom they ask. So the successor asks the one that holds the address to give
//! way, over a Unix socket whose abstract name is that of the port, and has it from its start on. If the successor ends
//! first, the other one takes it back. Only a process of the same user may ask.

use std::io::{self, Read};
use std::net::{self, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The address, bound before there is a runtime.
pub struct Bound {
    pub address: SocketAddr,
    listener: net::TcpListener,
    /// The one that gave way; closed when this process ends, which tells it.
    elder: Option<unix::UnixStream>,
}

/// Binds the admin address, or takes it over from another Ebbtide of this user that has it.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let (listener, elder) = match net::TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // The first error says more than that nobody could be asked.
            let elder = ask_to_give_way(address.port()).map_err(|_| error)?;
            (bind_soon(address)?, Some(elder))
        }
        other => (other?, None),
    };
    listener.set_nonblocking(true)?;
    Ok(Bound {
        address: listener.local_addr()?,
        listener,
        elder,
    })
}

/// A child that the elder has only just forked holds the address until it executes its program.
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

fn ask_to_give_way(port: u16) -> io::Result<unix::UnixStream> {
    let mut elder = unix::UnixStream::connect_addr(&name(port)?)?;
    elder.set_read_timeout(Some(PATIENCE))?;
    elder.read_exact(&mut [0])?;
    tracing::info!(
        port,
        "taken the admin address over from the process that is being replaced"
    );
    Ok(elder)
}

fn name(port: u16) -> io::Result<unix::SocketAddr> {
    unix::SocketAddr::from_abstract_name(format!("ebbtide-admin-{port}"))
}

/// The address as served: accepts while it is ours, and waits while it is another's.
pub struct AdminListener {
    address: SocketAddr,
    listener: Option<TcpListener>,
    /// Where a successor asks. `None` where somebody else has the name: then nobody can take over.
    asked: Option<UnixListener>,
    successor: Option<UnixStream>,
    _elder: Option<unix::UnixStream>,
}

impl AdminListener {
    /// To be called inside a runtime.
    pub fn new(bound: Bound) -> io::Result<Self> {
        let Bound {
            address,
            listener,
            elder,
        } = bound;
        let listener = Some(TcpListener::from_std(listener)?);
        Ok(Self {
            address,
            listener,
            asked: ask_here(address.port()),
            successor: None,
            _elder: elder,
        })
    }

    /// The next client. Cancellation-safe.
    pub async fn accept(&mut self) -> io::Result<TcpStream> {
        loop {
            let Some(listener) = &self.listener else {
                self.take_back().await;
                continue;
            };
            tokio::select! {
                accepted = listener.accept() => return accepted.map(|(stream, _)| stream),
                successor = successor(self.asked.as_ref()) => self.give_way(successor).await,
            }
        }
    }

    async fn give_way(&mut self, mut successor: UnixStream) {
        self.listener = None;
        self.asked = None;
        if successor.write_all(&[1]).await.is_ok() {
            tracing::info!(address = %self.address, "admin address given to the process that replaces this one");
        }
        self.successor = Some(successor);
    }

    /// Waits until the successor has ended, and until the address can be bound.
    async fn take_back(&mut self) {
        if let Some(successor) = &mut self.successor {
            // It never writes: this ends with it.
            let _ = successor.read(&mut [0]).await;
            self.successor = None;
        }
        match bind_again(self.address) {
            Ok(listener) => {
                tracing::info!(address = %self.address, "admin address taken back");
                self.listener = Some(listener);
                self.asked = ask_here(self.address.port());
            }
            // Whoever came after the successor has it.
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

/// The next process of our user that asks for the address.
async fn successor(asked: Option<&UnixListener>) -> UnixStream {
    let Some(asked) = asked else {
        return std::future::pending().await;
    };
    loop {
        match asked.accept().await {
            Ok((stream, _)) => {
                let us = rustix::process::geteuid().as_raw();
                if stream.peer_cred().is_ok_and(|peer| peer.uid() == us) {
                    return stream;
                }
            }
            Err(_) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

/// For the other process to answer.
const PATIENCE: Duration = Duration::from_secs(2);
const TRY_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    async fn answers(address: SocketAddr, who: &mut AdminListener) -> bool {
        let (client, served) = tokio::join!(TcpStream::connect(address), who.accept());
        client.is_ok() && served.is_ok()
    }

    /// As the admin port is, not among those that the kernel gives to whoever connects: while it passes on, nobody has it.
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

    #[tokio::test]
    async fn a_newcomer_takes_over_and_the_old_one_takes_back() {
        let mut old = AdminListener::new(bound_apart()).unwrap();
        let address = old.address;
        assert!(answers(address, &mut old).await);
        // Asking blocks its thread, as at a start.
        let asking = tokio::task::spawn_blocking(move || bind(address));
        let new = tokio::select! {
            bound = asking => bound.unwrap().unwrap(),
            _ = old.accept() => panic!("nobody has connected"),
        };
        assert_eq!(new.address, address);
        let mut new = AdminListener::new(new).unwrap();
        assert!(answers(address, &mut new).await);
        drop(new);
        assert!(answers_in_the_end(address, &mut old).await);
    }

    /// The old one may still be about to bind when the first clients come, and one of them may have reached the other.
    async fn answers_in_the_end(address: SocketAddr, who: &mut AdminListener) -> bool {
        let clients = async {
            loop {
                let _ = TcpStream::connect(address).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            accepted = who.accept() => accepted.is_ok(),
            () = clients => false,
        }
    }

    #[test]
    fn an_address_that_somebody_else_has_is_refused() {
        let other = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind(other.local_addr().unwrap()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
