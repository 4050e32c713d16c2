//! Plain requests for scenarios that need nothing special, by GET or as raw bytes. A request that
//! gets no response in time fails the test, so no scenario waits for ever. Scenarios that look at
//! both sides byte for byte use `wire.rs`.

use std::net::SocketAddr;

use ebbtide::command::demo::client::{Client, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::wait::soon;

/// The response to a GET of `/`.
pub async fn get(client: &mut Client) -> Response {
    soon("a response", client.exchange("GET", "/", "", b""))
        .await
        .unwrap()
}

/// Sends bytes unchanged and reads until the connection ends. Returns the text, and whether the
/// connection ended cleanly.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // A server that refuses a request need not read all of it.
    let _ = stream.write_all(bytes).await;
    let mut text = Vec::new();
    let clean = soon("the end", stream.read_to_end(&mut text)).await.is_ok();
    (String::from_utf8_lossy(&text).into_owned(), clean)
}

/// Whether a client may take this for a whole response, if its connection then ended cleanly.
pub fn looks_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_ascii_lowercase();
    match head.split_once("content-length: ") {
        Some((_, length)) => {
            let digits = length.split("\r\n").next().unwrap();
            body.len() >= digits.parse::<usize>().unwrap()
        }
        None if head.contains("transfer-encoding: chunked") => {
            body.contains("\r\n0\r\n") && body.ends_with("\r\n\r\n")
        }
        None => true,
    }
}
