//! What a client of these scenarios asks, where it is nothing special.

use std::net::SocketAddr;

use ebbtide::command::demo::client::{Client, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::wait::soon;

/// The answer to a GET of `/`.
pub async fn get(client: &mut Client) -> Response {
    soon("an answer", client.exchange("GET", "/", "", b""))
        .await
        .unwrap()
}

/// Sends bytes as they are and reads until the connection ends. Tells the text, and whether it
/// ended cleanly.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // Whoever refuses a request need not take all of it.
    let _ = stream.write_all(bytes).await;
    let mut text = Vec::new();
    let clean = soon("the end", stream.read_to_end(&mut text)).await.is_ok();
    (String::from_utf8_lossy(&text).into_owned(), clean)
}
