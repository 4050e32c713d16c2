//! The way to one other instance: a connection that is kept, and a question on it.
//!
//! Invariant: a question takes at most [`PATIENCE`], also to connect. A connection that fails is not
//! used again.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::gate::log::Has;
use crate::gate::message::{Answers, LEAVING, LONGEST, Leaving, SIGNATURE, sign};

/// A connection to an instance.
pub(super) struct Link {
    address: SocketAddr,
    sender: Option<SendRequest<Body>>,
}

impl Link {
    /// Connects at the first question.
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            sender: None,
        }
    }

    /// Tells that these pods leave, and asks what the instance has of them.
    ///
    /// # Errors
    /// It does not answer in time, or not as an instance does.
    pub(super) async fn tell(
        &mut self,
        pods: &[String],
        key: Option<&[u8]>,
    ) -> io::Result<Vec<Has>> {
        let message = Leaving {
            pods: pods.to_vec(),
        };
        let body = serde_json::to_vec(&message)?;
        let answer = self.ask(Method::POST, LEAVING, body, key).await?;
        let Answers { pods: found } = serde_json::from_slice(&answer)?;
        match found.len() == pods.len() {
            true => Ok(found),
            false => Err(io::Error::other("the answer is about other pods")),
        }
    }

    /// Asks what the instance has of a pod, by its name.
    ///
    /// # Errors
    /// As for [`Self::tell`].
    pub(super) async fn look(&mut self, path: &str, key: Option<&[u8]>) -> io::Result<Has> {
        let answer = self.ask(Method::GET, path, Vec::new(), key).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        key: Option<&[u8]>,
    ) -> io::Result<Vec<u8>> {
        let is_kept = self.sender.is_some();
        let result = timeout(PATIENCE, async {
            match self.exchange(&method, path, &body, key).await {
                // The other side has closed it meanwhile.
                Err(_) if is_kept => {
                    self.sender = None;
                    self.exchange(&method, path, &body, key).await
                }
                result => result,
            }
        });
        let result = result.await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        if result.is_err() {
            self.sender = None;
        }
        result
    }

    async fn exchange(
        &mut self,
        method: &Method,
        path: &str,
        body: &[u8],
        key: Option<&[u8]>,
    ) -> io::Result<Vec<u8>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string());
        if let Some(key) = key {
            request = request.header(SIGNATURE, sign(key, path, body, SystemTime::now()));
        }
        let request = request.body(Body::from(body.to_vec()));
        let request = request.map_err(io::Error::other)?;
        let sender = match &mut self.sender {
            Some(sender) => sender,
            none => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                let made = handshake(TokioIo::new(stream)).await;
                let (sender, connection) = made.map_err(io::Error::other)?;
                tokio::task::spawn_local(connection);
                none.insert(sender)
            }
        };
        sender.ready().await.map_err(io::Error::other)?;
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(io::Error::other)?;
        let status = answer.status();
        let body = axum::body::to_bytes(Body::new(answer.into_body()), LONGEST).await;
        match status {
            StatusCode::OK => Ok(body.map_err(io::Error::other)?.to_vec()),
            StatusCode::UNAUTHORIZED => Err(io::Error::other(
                "401: it has another gate.key, or its clock is 30 s off",
            )),
            other => Err(io::Error::other(other.to_string())),
        }
    }
}

/// How long an instance may take for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
