//! An endpoint that serves until the runtime it was started in ends. Each connection runs the
//! script on a task of its own. The port is chosen by the kernel, so tests that run together do not
//! collide.

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
