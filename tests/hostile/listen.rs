//! An endpoint that serves until the runtime it was started in ends.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};

use crate::support::serve::serve;

pub async fn listen<F, Fut>(script: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output: Send> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serve(listener, move |stream, _| script(stream));
    address
}
