//! The end of a client's TLS: the handshake, before anything is known of what the client speaks.
//!
//! Invariant: a handshake is bounded. A client that has sent nothing costs no more than any silent
//! client. From its first byte on, it has the time of a head. A handshake's work takes turns with that
//! of others, in a queue of its own: established clients wait for one signature at most. Its memory is
//! bounded by rustls, which refuses a message of more than 64 KiB.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection};

use crate::contract::clock::millis;
use crate::contract::policy::Protocol;
use crate::contract::reason::CloseReason;
use crate::contract::termination::Termination;
use crate::net::turns::in_turn;
use crate::proxy::client::Client;
use crate::proxy::http::serve::linger;
use crate::proxy::worker::Worker;
use crate::wire::answer;
use crate::wire::sniff::{Beginning, Sniff, beginning, sniff};

/// Shakes hands with a client of a listener with TLS. Bytes behind a PROXY header are in
/// [`Client::unread`], and belong to the handshake.
pub(super) async fn terminate(
    worker: &Rc<Worker>,
    client: &mut Client,
    termination: &Termination,
    protocol: Protocol,
) -> Result<(), CloseReason> {
    first_bytes(worker, client).await?;
    let end = tokio::time::Instant::now() + worker.config().timeouts.head;
    let rest = handshake(worker, client, termination, protocol);
    let ended = tokio::time::timeout_at(end, rest).await;
    match ended.unwrap_or(Err(CloseReason::ClientTimeout)) {
        Err(CloseReason::BadRequest) => {
            Box::pin(answer_plain(worker, client)).await;
            Err(CloseReason::BadRequest)
        }
        Err(CloseReason::BadHandshake) => {
            // Many clients send a request before they read that their certificate is refused.
            let _ = tokio::time::timeout_at(end, Box::pin(linger(worker, client))).await;
            Err(CloseReason::BadHandshake)
        }
        ended => ended,
    }
}

/// Waits for a client's first bytes.
pub(super) async fn first_bytes(worker: &Worker, client: &mut Client) -> Result<(), CloseReason> {
    if client.unread.is_empty() {
        let idle = worker.config().timeouts.client_idle;
        let filled = poll_fn(|cx| client.poll_fill(cx, worker));
        let filled = tokio::time::timeout(idle, filled).await;
        filled
            .map_err(|_| CloseReason::ClientTimeout)?
            .map_err(|_| CloseReason::ClientReset)?;
    }
    match client.unread.is_empty() {
        true => Err(CloseReason::ClientClosed),
        false => Ok(()),
    }
}

async fn handshake(
    worker: &Rc<Worker>,
    client: &mut Client,
    termination: &Termination,
    protocol: Protocol,
) -> Result<(), CloseReason> {
    if client.unread[0] != HANDSHAKE && speaks_http(worker, client).await? {
        return Err(CloseReason::BadRequest);
    }
    let config = in_force(termination, protocol).await;
    worker.handshakes.turn().await;
    let failed = |client: &Client, cause: String| failed(worker, client, cause);
    let session =
        ServerConnection::new(config).map_err(|error| failed(client, error.to_string()))?;
    let read = std::mem::take(&mut client.unread);
    let begun = client.stream.begin_tls(session, &read, 0);
    begun.map_err(|error| failed(client, error.to_string()))?;
    let shaken = {
        let shake = poll_fn(|cx| client.stream.poll_handshake(cx));
        in_turn(&worker.handshakes, &Cell::new(true), true, pin!(shake)).await
    };
    shaken.map_err(|error| match error.kind() {
        ErrorKind::InvalidData => failed(client, error.to_string()),
        ErrorKind::UnexpectedEof => failed(client, "the client left in the middle of it".into()),
        _ => CloseReason::ClientReset,
    })
}

/// Counts a handshake that has failed.
pub(super) fn failed(worker: &Worker, client: &Client, cause: String) -> CloseReason {
    let refused = &worker.shared.refused_handshakes;
    if let Some(count) = refused.count(millis(Instant::now())) {
        let (peer, listener) = (client.peer, client.listener.name.as_str());
        tracing::warn!(count, %peer, listener, cause, "TLS handshakes failed");
    }
    CloseReason::BadHandshake
}

/// The certificates, as soon as there are any: a listener's first moments.
async fn in_force(termination: &Termination, protocol: Protocol) -> Arc<ServerConfig> {
    loop {
        if let Some(config) = termination.now(protocol) {
            return config;
        }
        tokio::time::sleep(NOT_YET).await;
    }
}

/// Whether a client that sends no TLS sends a request of HTTP in its place.
async fn speaks_http(worker: &Worker, client: &mut Client) -> Result<bool, CloseReason> {
    loop {
        match (sniff(&client.unread), beginning(&client.unread)) {
            (Sniff::Http, _) | (_, Beginning::Request) => return Ok(true),
            (Sniff::NeedMore, Beginning::Word) => {}
            _ => return Ok(false),
        }
        let before = client.unread.len();
        let filled = poll_fn(|cx| client.poll_fill(cx, worker)).await;
        filled.map_err(|_| CloseReason::ClientReset)?;
        if client.unread.len() == before {
            return Ok(false);
        }
    }
}

/// Tells a client without TLS what is missing.
async fn answer_plain(worker: &Worker, client: &mut Client) {
    let mut answer = Vec::new();
    answer::write_answer(400, "tls_required", None, true, false, &mut answer);
    let wrote = tokio::time::timeout(ANSWER, client.stream.write_all(&answer));
    if let Ok(Ok(())) = wrote.await {
        linger(worker, client).await;
    }
}

/// The first byte of TLS: the type of its record (RFC 8446 section 5.1).
pub(super) const HANDSHAKE: u8 = 0x16;
/// The time between two looks at whether a listener has its certificates.
const NOT_YET: Duration = Duration::from_millis(20);
/// How long the answer to a client without TLS may take.
const ANSWER: Duration = Duration::from_secs(1);
