//! Endpoints on loopback that follow a script. Each connection runs the script on a task of its
//! own, and one that fails does not stop the others. An endpoint that counts its connections is in
//! `tests/proxy/scripted.rs`.

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Runs `script` on each accepted connection. `script` gets the number of the connection, counted
/// from 0. The proxy's join checks connect and close immediately. They count as connections too, so
/// a script must accept an immediate end.
pub fn serve<F, Fut>(listener: TcpListener, script: F) -> JoinHandle<()>
where
    F: Fn(TcpStream, usize) -> Fut + Send + 'static,
    Fut: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            tokio::spawn(script(stream, number));
        }
    })
}
