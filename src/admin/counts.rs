//! What a process has counted reaches the one that takes the admin address from it: at once, then once
//! a second, and when it ends.
//!
//! It goes over a second Unix socket, whose name the process that gives the address up opens. So a
//! process of a version that knows nothing of it hinders nobody: counters begin at zero then.

use std::io::{self, ErrorKind, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::net::socket;
use crate::observe::metrics::Metrics;

/// The side of the process that is replaced.
pub(super) struct Giving(JoinHandle<()>);

impl Giving {
    /// Tells a successor from now on, and for the last time at `end`. Must be called inside a runtime.
    ///
    /// # Errors
    /// Another process has the name.
    pub(super) fn start(
        port: u16,
        metrics: Arc<Metrics>,
        end: CancellationToken,
    ) -> io::Result<Self> {
        let asked = unix::UnixListener::bind_addr(&name(port)?)?;
        asked.set_nonblocking(true)?;
        let asked = UnixListener::from_std(asked)?;
        Ok(Self(tokio::spawn(tell(asked, metrics, end))))
    }

    /// Waits until the last counts are told.
    pub(super) async fn finish(mut self) {
        let _ = (&mut self.0).await;
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The name is free as soon as the successor has asked: the successor needs it for its own.
async fn tell(asked: UnixListener, metrics: Arc<Metrics>, end: CancellationToken) {
    let mut heir = tokio::select! {
        heir = next_of_own_user(&asked) => heir,
        () = end.cancelled() => return,
    };
    drop(asked);
    loop {
        let is_last = end.is_cancelled();
        match tokio::time::timeout(PATIENCE, send(&mut heir, &metrics)).await {
            Ok(Ok(())) if !is_last => {}
            _ => return,
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = end.cancelled() => {}
        }
    }
}

/// The next process of this user that connects. Cancellation safe.
pub(super) async fn next_of_own_user(asked: &UnixListener) -> UnixStream {
    loop {
        match asked.accept().await {
            Ok((stream, _)) => {
                let us = rustix::process::geteuid().as_raw();
                if stream.peer_cred().is_ok_and(|peer| peer.uid() == us) {
                    return stream;
                }
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn send(stream: &mut UnixStream, metrics: &Metrics) -> io::Result<()> {
    let report = metrics.report().map_err(io::Error::other)?;
    let length = u32::try_from(report.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(&report).await
}

/// The side of the process that replaces another one.
pub(super) struct Taking {
    stream: unix::UnixStream,
    first: Vec<u8>,
}

impl Taking {
    /// Asks a process of user `us` that has just given the admin address up, and waits for its counts.
    ///
    /// # Errors
    /// `ConnectionRefused`: it is of a version that tells nothing. `PermissionDenied`: another user has
    /// the name. Nothing whole came in time.
    pub(super) fn start(port: u16, us: u32) -> io::Result<Self> {
        let mut stream = unix::UnixStream::connect_addr(&name(port)?)?;
        if socket::peer_user(&stream)? != us {
            return Err(ErrorKind::PermissionDenied.into());
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut first = vec![0; checked(length)?];
        stream.read_exact(&mut first)?;
        Ok(Self { stream, first })
    }

    /// Takes in what has come, and goes on by itself. Must be called inside a runtime.
    pub(super) fn go_on(self, metrics: Arc<Metrics>) {
        take_in(&self.first, &metrics);
        let stream = self.stream;
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream));
        match stream {
            Ok(stream) => drop(tokio::spawn(hear(stream, metrics))),
            Err(error) => broken(&error),
        }
    }
}

/// Until the other process has ended.
async fn hear(mut stream: UnixStream, metrics: Arc<Metrics>) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).await.is_ok() {
        let report = async {
            let mut report = vec![0; checked(length)?];
            stream.read_exact(&mut report).await.map(|_| report)
        };
        match report.await {
            Ok(report) => take_in(&report, &metrics),
            Err(error) => return broken(&error),
        }
    }
}

fn take_in(report: &[u8], metrics: &Metrics) {
    if let Err(error) = metrics.inherit(report) {
        broken(&error);
    }
}

fn broken(error: &impl std::fmt::Display) {
    tracing::warn!(
        %error,
        "the counts of the process that this one replaces are not whole"
    );
}

fn checked(length: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(length) as usize;
    if length > LARGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(length)
}

fn name(port: u16) -> io::Result<unix::SocketAddr> {
    unix::SocketAddr::from_abstract_name(format!("ebbtide-counts-{port}"))
}

/// The pause between two reports.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a report may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest report in bytes. Each Service port with traffic takes 300 to 500.
const LARGEST: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::name::ObjectName;

    /// The number of requests, as the page of metrics shows it.
    fn requests(metrics: &Metrics) -> String {
        let text = metrics.render().unwrap();
        let series = "ebbtide_requests_total{code=\"2xx\"";
        let line = text.lines().find(|it| it.starts_with(series)).unwrap();
        line.rsplit_once(' ').unwrap().1.to_owned()
    }

    #[tokio::test]
    async fn a_successor_knows_the_counts_at_once_and_the_last_ones_too() {
        let (port, us) = (fastrand::u16(1..), rustix::process::geteuid().as_raw());
        let [old, new] = [(); 2].map(|()| Metrics::new().unwrap());
        let key = ObjectName::new("web", "shop").port(80);
        old.service(&key).answered(200);
        new.service(&key).answered(200);
        let end = CancellationToken::new();
        let giving = Giving::start(port, old.clone(), end.clone()).unwrap();
        let again = Giving::start(port, old.clone(), end.clone());
        assert!(again.is_err(), "the name is taken");
        let ask = |port, us| tokio::task::spawn_blocking(move || Taking::start(port, us));
        let _other = Giving::start(port - 1, old.clone(), end.clone()).unwrap();
        let refused = ask(port - 1, us + 1).await.unwrap().err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        let taking = ask(port, us).await.unwrap().unwrap();
        Giving::start(port, new.clone(), end.clone()).expect("the name is free for the next one");
        taking.go_on(new.clone());
        assert_eq!(requests(&new), "2");
        old.service(&key).answered(200);
        end.cancel();
        giving.finish().await;
        let last = async {
            while requests(&new) != "3" {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), last)
            .await
            .unwrap();
        let refused = ask(port, us).await.unwrap().err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
}
