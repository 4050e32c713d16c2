//! Endpoints on loopback that do as a script says.

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Runs `script` on every accepted connection, with its number, counted from 0. Probes of the
/// proxy's control side connect and close at once: they count as connections too, so a script must
/// bear an immediate end.
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
