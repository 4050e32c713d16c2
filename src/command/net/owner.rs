//! Which of a node's `ebbtide net` processes writes the table, while one replaces another.
//!
//! The owner listens under an abstract Unix name, which belongs to the node's network and ends with
//! its process. A newer process connects and says `TAKE`; the owner closes the name and answers
//! `GIVEN`, and the connection stays open. If the newer one ends first, the older one takes the
//! name back, unless an even newer one has it: then it says `WAIT`, and the end of that connection
//! tells it to try again. Both sides check that the other is of the same user.
//!
//! Invariant: of two processes that can hear each other, at most one writes.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::net::socket;

/// This process's part.
pub enum Role {
    /// It has nothing to write yet, and lets an older process go on.
    New,
    /// It writes. The streams are of processes that wait for its end.
    Owner(UnixListener, Vec<UnixStream>),
    /// It waits until the process at the other end is gone. Others wait for its own end: they are
    /// older, so they must not hear of an end before.
    Waits(UnixStream, Vec<UnixStream>),
}

impl Role {
    /// Whether this process writes the table.
    pub fn is_owner(&self) -> bool {
        matches!(self, Self::Owner(..))
    }

    /// Whether another process takes the table over when this one ends.
    pub fn has_heir(&self) -> bool {
        match self {
            Self::Owner(_, waiting) => waiting.iter().any(is_alive),
            Self::New | Self::Waits(..) => false,
        }
    }

    /// Becomes the owner, and asks an older one to give way.
    ///
    /// # Errors
    /// The name belongs to another user, or its owner does not answer within 2 s. Nothing has
    /// changed then.
    pub async fn take(&mut self) -> io::Result<()> {
        for _ in 0..TRIES {
            match listen() {
                Ok(listener) => {
                    *self = Self::Owner(listener, Vec::new());
                    return Ok(());
                }
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(error),
                Err(_) => {}
            }
            match ask(TAKE).await {
                // The older one has gone in between.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
                Ok(mut older) => {
                    let mut word = [0];
                    timeout(PATIENCE, older.read_exact(&mut word)).await??;
                    tracing::info!("an older ebbtide net has given the table up");
                    let listener = listen()?;
                    // It watches this connection, and takes the table back when it ends.
                    *self = Self::Owner(listener, vec![older]);
                    return Ok(());
                }
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// Takes the table back after the end of the process that was waited for, or waits for another
    /// one. Returns whether this process is the owner now.
    pub async fn take_back(&mut self) -> io::Result<bool> {
        let waiting = match self {
            Self::Waits(_, waiting) => std::mem::take(waiting),
            Self::New | Self::Owner(..) => Vec::new(),
        };
        match listen() {
            Ok(listener) => {
                *self = Self::Owner(listener, waiting);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                *self = Self::Waits(ask(WAIT).await?, waiting);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns when something has happened: the owner was asked (and `true`, if it has given the
    /// table up), or the process that is waited for is gone (`false`, and [`Self::take_back`] is
    /// next). Without end for a new process.
    ///
    /// Cancellation safety: a process that asks at the moment of the cancellation is not heard, and
    /// asks again.
    pub async fn changed(&mut self) -> bool {
        loop {
            match self {
                Self::New => std::future::pending().await,
                Self::Waits(stream, _) => {
                    // It says nothing more, so whatever comes is its end.
                    let _ = stream.read(&mut [0]).await;
                    return false;
                }
                Self::Owner(listener, waiting) => {
                    let Ok((mut stream, _)) = listener.accept().await else {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    };
                    if !is_ours(&stream) {
                        continue;
                    }
                    let mut word = [0];
                    match timeout(PAUSE, stream.read_exact(&mut word)).await {
                        Ok(Ok(_)) if word == TAKE => {}
                        Ok(Ok(_)) if word == WAIT => {
                            waiting.retain(is_alive);
                            waiting.push(stream);
                            continue;
                        }
                        _ => continue,
                    }
                    // The name must be free before the other one hears that it is.
                    let waiting = std::mem::take(waiting);
                    *self = Self::New;
                    let said = timeout(PAUSE, stream.write_all(&GIVEN)).await;
                    *self = Self::Waits(stream, waiting);
                    // If it is gone already, its end is heard next.
                    return said.is_ok();
                }
            }
        }
    }
}

/// Whether an `ebbtide net` owns the table of this network.
pub fn has_owner() -> bool {
    let name = unix::SocketAddr::from_abstract_name(NAME);
    name.and_then(|name| unix::UnixStream::connect_addr(&name))
        .is_ok()
}

fn listen() -> io::Result<UnixListener> {
    let name = unix::SocketAddr::from_abstract_name(NAME)?;
    let listener = unix::UnixListener::bind_addr(&name)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn ask(word: [u8; 1]) -> io::Result<UnixStream> {
    let name = unix::SocketAddr::from_abstract_name(NAME)?;
    let stream = unix::UnixStream::connect_addr(&name)?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    if !is_ours(&stream) {
        return Err(io::Error::other(
            "a process of another user has the name under which an ebbtide net is found",
        ));
    }
    stream.write_all(&word).await?;
    Ok(stream)
}

/// Whether the process at the other end, which says nothing more, is still there.
fn is_alive(stream: &UnixStream) -> bool {
    let read = stream.try_read(&mut [0]);
    read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn is_ours(stream: &UnixStream) -> bool {
    let us = rustix::process::geteuid().as_raw();
    socket::peer_user(stream).is_ok_and(|user| user == us)
}

const NAME: &[u8] = b"ebbtide-net";
const TAKE: [u8; 1] = *b"t";
const WAIT: [u8; 1] = *b"w";
const GIVEN: [u8; 1] = *b"g";
/// How often a name is tried whose owners come and go.
const TRIES: usize = 10;
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may take to say what it wants.
const PAUSE: Duration = Duration::from_millis(200);
