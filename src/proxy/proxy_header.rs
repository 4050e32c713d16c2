//! The header of the PROXY protocol, v1 or v2, which comes before all else that a client sends
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>).
//!
//! Invariant: a header is required where the listener's configuration says so, and never guessed.
//! What comes behind it stays in [`Client::unread`].

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use crate::contract::clock::millis;
use crate::contract::reason::CloseReason;
use crate::proxy::client::Client;
use crate::proxy::worker::Worker;

use Fault::{Ended, Refused};

/// Reads the header and takes the client's address from it. Only peers inside `trustedProxies` may
/// send one.
pub(super) async fn read(worker: &Rc<Worker>, client: &mut Client) -> Result<(), CloseReason> {
    let read = read_trusted(worker, client).await;
    if let Err(Refused(cause)) = read {
        let refused = &worker.shared.refused_headers;
        if let Some(count) = refused.count(millis(Instant::now())) {
            let (peer, listener) = (client.neighbour, client.listener.name.as_str());
            tracing::warn!(count, %peer, listener, cause, "PROXY headers refused");
        }
    }
    read.map_err(|end| match end {
        Refused(_) => CloseReason::BadProxyHeader,
        Ended(reason) => reason,
    })
}

/// Why a client with a PROXY header is not served.
#[derive(Clone, Copy)]
enum Fault {
    /// The header is missing, wrong or not allowed.
    Refused(&'static str),
    /// The connection ended first.
    Ended(CloseReason),
}

async fn read_trusted(worker: &Rc<Worker>, client: &mut Client) -> Result<(), Fault> {
    let config = worker.config();
    if !config
        .trusted_proxies
        .iter()
        .any(|net| net.contains(&client.neighbour))
    {
        return Err(Refused("the peer is not in trustedProxies"));
    }
    let read = async {
        loop {
            if !goes_on(&client.unread) {
                let (len, source) = match ppp::HeaderResult::parse(&client.unread) {
                    ppp::HeaderResult::V1(Ok(header)) => {
                        (header.header.len(), source_v1(&header.addresses))
                    }
                    ppp::HeaderResult::V2(Ok(header)) => (header.header.len(), source_v2(&header)),
                    _ => return Err(Refused("the connection begins without a valid header")),
                };
                client.unread.drain(..len);
                client.peer = source.unwrap_or(client.peer);
                return Ok(());
            }
            let before = client.unread.len();
            poll_fn(|cx| client.poll_fill(cx, worker))
                .await
                .map_err(|_| Ended(CloseReason::ClientReset))?;
            if client.unread.len() == before {
                return Err(Refused("the connection ended within the header"));
            }
        }
    };
    tokio::time::timeout(config.timeouts.head, read)
        .await
        .unwrap_or(Err(Ended(CloseReason::ClientTimeout)))
}

/// Whether these bytes are the beginning of a header whose end is still to come. The parser of
/// `ppp` cannot be asked: it reports a v1 line that is cut within a port as a fault.
fn goes_on(bytes: &[u8]) -> bool {
    const V1: &[u8] = b"PROXY ";
    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    if V1.starts_with(bytes) || V2.starts_with(bytes) {
        return true;
    }
    if bytes.starts_with(V2) {
        let Some(&[high, low]) = bytes.get(14..16) else {
            return true;
        };
        let whole = 16 + usize::from(u16::from_be_bytes([high, low]));
        return bytes.len() < whole && whole <= HEADER_MAX;
    }
    bytes.starts_with(V1) && bytes.len() < LINE_MAX && !bytes.contains(&b'\n')
}

fn source_v1(addresses: &ppp::v1::Addresses) -> Option<SocketAddr> {
    match addresses {
        ppp::v1::Addresses::Tcp4(a) => Some((a.source_address, a.source_port).into()),
        ppp::v1::Addresses::Tcp6(a) => Some((a.source_address, a.source_port).into()),
        ppp::v1::Addresses::Unknown => None,
    }
}

/// `None` also for a LOCAL command: that is a health check by the proxy in front, and its addresses
/// mean nothing.
fn source_v2(header: &ppp::v2::Header<'_>) -> Option<SocketAddr> {
    match &header.addresses {
        _ if header.command == ppp::v2::Command::Local => None,
        ppp::v2::Addresses::IPv4(a) => Some((a.source_address, a.source_port).into()),
        ppp::v2::Addresses::IPv6(a) => Some((a.source_address, a.source_port).into()),
        ppp::v2::Addresses::Unspecified | ppp::v2::Addresses::Unix(_) => None,
    }
}

/// The longest v2 header, with all its extensions.
const HEADER_MAX: usize = 4096;
/// The longest v1 header, which is a line.
const LINE_MAX: usize = 107;
