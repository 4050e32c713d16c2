//! A Layer-4 balancer that uses the endpoint list as it was a fixed time ago.
//!
//! It stands for kube-proxy, which rewrites its rules at most once per `minSyncPeriod` (1 s by
//! default). A connection goes to one endpoint for its whole life. The next connection goes to the
//! next endpoint in the list, even if that endpoint has ended. Like the kernel's NAT, this balancer
//! knows no requests, tries nothing twice, and resets the client if an endpoint refuses.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// A running balancer. It has its own thread, so that work of its owner does not delay it. It ends
/// when dropped.
pub struct Late {
    /// Where clients connect.
    pub address: SocketAddr,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Late {
    /// Listens on a free loopback port. The current list of `endpoints` is used immediately, each
    /// change `delay` after it came.
    ///
    /// # Errors
    /// The kernel gives no socket or no thread.
    pub fn start(
        endpoints: watch::Receiver<Vec<SocketAddr>>,
        delay: Duration,
    ) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")
            .context("cannot listen for the late balancer")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let body = move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            else {
                return;
            };
            runtime.block_on(async {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = serve(listener, endpoints, delay) => {}
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("late balancer".into())
            .spawn(body)?;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts until it is dropped. Its connections end with it.
async fn serve(
    listener: std::net::TcpListener,
    mut endpoints: watch::Receiver<Vec<SocketAddr>>,
    delay: Duration,
) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    let known = Arc::new(Mutex::new(endpoints.borrow_and_update().clone()));
    let learn = learn(known.clone(), endpoints, delay);
    let accept = async {
        let mut connections = JoinSet::new();
        let mut next = 0usize;
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => {
                        let known = known.lock().unwrap_or_else(PoisonError::into_inner);
                        let endpoint = known.get(next % known.len().max(1)).copied();
                        next = next.wrapping_add(1);
                        connections.spawn(relay(client, endpoint));
                    }
                    // Most likely the process is out of descriptors. A pause gives it time to free
                    // some.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    };
    tokio::join!(learn, accept);
}

/// Makes each list the current one `delay` after it came.
async fn learn(
    known: Arc<Mutex<Vec<SocketAddr>>>,
    mut endpoints: watch::Receiver<Vec<SocketAddr>>,
    delay: Duration,
) {
    let mut coming: VecDeque<(Instant, Vec<SocketAddr>)> = VecDeque::new();
    loop {
        let at = coming.front().map(|(at, _)| *at);
        tokio::select! {
            biased;
            () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {
                if let Some((_, list)) = coming.pop_front() {
                    *known.lock().unwrap_or_else(PoisonError::into_inner) = list;
                }
            }
            Ok(()) = endpoints.changed() => {
                coming.push_back((Instant::now() + delay, endpoints.borrow_and_update().clone()));
            }
            // The list has no writer any more, and no list is waiting.
            else => return,
        }
    }
}

/// One connection, in both directions. A FIN is passed on as a FIN, a reset as a reset.
async fn relay(mut client: TcpStream, endpoint: Option<SocketAddr>) {
    let connected = match endpoint {
        Some(endpoint) => TcpStream::connect(endpoint).await.ok(),
        None => None,
    };
    if let Some(mut upstream) = connected {
        let _ = client.set_nodelay(true);
        let _ = upstream.set_nodelay(true);
        if copy_bidirectional(&mut client, &mut upstream).await.is_ok() {
            return;
        }
        let _ = upstream.set_zero_linger();
    }
    let _ = client.set_zero_linger();
}
