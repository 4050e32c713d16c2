//! Passing TLS on by the name that its client asks for (SNI): a listener's connection becomes one of the
//! listener that belongs to the name.
//!
//! Invariants: no byte is changed or kept back. What is read before the name is known is bounded in time
//! and memory: by the time of a head from the first byte on, and by rustls, which refuses a message of
//! more than 64 KiB. A client that speaks no TLS, or asks for no name or an unknown one, stays with the
//! listener's own Service; where routes serve names, it is refused.

use std::future::poll_fn;
use std::rc::Rc;

use rustls::server::Acceptor;

use crate::contract::reason::CloseReason;
use crate::proxy::client::Client;
use crate::proxy::tls::{HANDSHAKE, failed, first_bytes};
use crate::proxy::worker::Worker;
use crate::text::one_line;

/// What a client begins with.
pub(super) enum Hello {
    /// TLS, for this name.
    Named(String),
    /// TLS, for no name.
    Nameless,
    /// No TLS.
    Other,
}

/// Finds the listener of the client's connection.
pub(super) async fn choose(worker: &Rc<Worker>, client: &mut Client) -> Result<(), CloseReason> {
    if let Hello::Named(name) = hello(worker, client).await?
        && let Some(listener) = client.listener.by_name.find(&name)
    {
        client.listener = listener.clone();
    }
    Ok(())
}

/// Reads what a client begins with. All of it stays in [`Client::unread`].
pub(super) async fn hello(worker: &Rc<Worker>, client: &mut Client) -> Result<Hello, CloseReason> {
    first_bytes(worker, client).await?;
    if client.unread[0] != HANDSHAKE {
        return Ok(Hello::Other);
    }
    let head_time = worker.config().timeouts.head;
    let named = tokio::time::timeout(head_time, name(worker, client)).await;
    let named = named.unwrap_or(Err(CloseReason::ClientTimeout))?;
    Ok(named.map_or(Hello::Nameless, Hello::Named))
}

/// Refuses a client because nobody here has the name that it asks for. It sees a reset and no alert: who
/// passes TLS on does not speak it, and the Gateway API's suite takes an alert for an endpoint's answer.
pub(super) fn refuse_name(worker: &Worker, client: &mut Client, name: &str) -> CloseReason {
    client.stream.reset_on_close();
    let cause = format!("no route is for the name `{}`", one_line(name));
    failed(worker, client, cause)
}

/// The name that the client asks for, if it asks for one.
async fn name(worker: &Worker, client: &mut Client) -> Result<Option<String>, CloseReason> {
    let (mut acceptor, mut seen) = (Acceptor::default(), 0);
    loop {
        let refused = |client: &Client, cause: String| failed(worker, client, cause);
        let mut rest = &client.unread[seen..];
        while !rest.is_empty() {
            let read = acceptor.read_tls(&mut rest);
            read.map_err(|error| refused(client, error.to_string()))?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    return Ok(accepted.client_hello().server_name().map(str::to_owned));
                }
                Err((error, _)) => return Err(refused(client, error.to_string())),
            }
        }
        seen = client.unread.len();
        let filled = poll_fn(|cx| client.poll_fill(cx, worker)).await;
        filled.map_err(|_| CloseReason::ClientReset)?;
        if client.unread.len() == seen {
            return Err(refused(
                client,
                "the client left in the middle of it".into(),
            ));
        }
    }
}
