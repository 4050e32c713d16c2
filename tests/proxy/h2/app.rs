//! Clients and endpoints that speak either version. A request and its answer look the same to a
//! scenario, whatever carries them. Peers that misbehave are in `raw.rs`.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, request, response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::support::folder::{Ep, Folder};
use crate::support::manifests::service;
use crate::support::rig::{Rig, one_listener};
use crate::support::serve::serve;
use crate::support::wait::soon;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    H1,
    H2,
}

/// A part of a body.
#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body is not whole.
    Cut,
}

pub type Pieces = mpsc::Receiver<Piece>;

/// All of a body.
#[derive(Debug, Default, PartialEq)]
pub struct Whole {
    pub data: Vec<u8>,
    pub trailers: HeaderMap,
    pub cut: bool,
}

/// Reads a body to its end.
pub async fn whole(mut pieces: Pieces) -> Whole {
    let mut whole = Whole::default();
    let read = async {
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Data(data) => whole.data.extend_from_slice(&data),
                Piece::Trailers(trailers) => whole.trailers = trailers,
                Piece::Cut => whole.cut = true,
            }
        }
    };
    soon("the end of a body", read).await;
    whole
}

/// A body of these pieces.
pub fn body(pieces: impl IntoIterator<Item = Piece>) -> Option<Pieces> {
    let pieces: Vec<Piece> = pieces.into_iter().collect();
    let (send, receive) = mpsc::channel(pieces.len().max(1));
    for piece in pieces {
        send.try_send(piece).unwrap();
    }
    Some(receive)
}

/// A body that is one piece of data.
pub fn data(data: impl Into<Bytes>) -> Option<Pieces> {
    body([Piece::Data(data.into())])
}

/// A client's connection.
pub enum Client {
    H1(hyper::client::conn::http1::SendRequest<Outgoing>),
    H2(
        h2::client::SendRequest<Bytes>,
        JoinHandle<Result<(), h2::Error>>,
    ),
}

/// An answer's head, and its body as it comes.
pub struct Answer {
    pub parts: response::Parts,
    pub pieces: Pieces,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.parts.status.as_u16()
    }

    /// The value of a field, or nothing.
    pub fn field(&self, name: &str) -> &str {
        field(&self.parts.headers, name)
    }
}

/// The value of a field, or nothing.
pub fn field<'a>(fields: &'a HeaderMap, name: &str) -> &'a str {
    fields.get(name).map_or("", |value| value.to_str().unwrap())
}

impl Client {
    pub async fn connect(version: Version, to: SocketAddr) -> Self {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(16 << 20);
        Self::connect_with(version, to, &builder).await
    }

    /// Like [`Self::connect`]. A connection of HTTP/2 has these settings.
    pub async fn connect_with(
        version: Version,
        to: SocketAddr,
        builder: &h2::client::Builder,
    ) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        match version {
            Version::H1 => {
                let io = TokioIo::new(stream);
                let (send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection.with_upgrades());
                Self::H1(send)
            }
            Version::H2 => {
                let (send, connection) = builder.handshake(stream).await.unwrap();
                Self::H2(send, tokio::spawn(connection))
            }
        }
    }

    /// Sends a request. It has no body if `body` is `None`.
    ///
    /// # Errors
    /// The connection or the stream has failed before a response head came.
    pub async fn ask(
        &mut self,
        request: Request<()>,
        body: Option<Pieces>,
    ) -> Result<Answer, String> {
        let (send, pieces) = mpsc::channel(16);
        let asked = async {
            match self {
                Self::H1(client) => {
                    client.ready().await.map_err(|error| error.to_string())?;
                    let (mut parts, ()) = request.into_parts();
                    let authority = parts.uri.authority().map(ToString::to_string);
                    if let (Some(host), false) = (authority, parts.headers.contains_key("host")) {
                        parts.headers.insert("host", host.parse().unwrap());
                    }
                    let path = parts.uri.path_and_query().unwrap().as_str();
                    parts.uri = path.parse().unwrap();
                    let request = Request::from_parts(parts, Outgoing(body));
                    let asked = client.send_request(request).await;
                    let (parts, body) = asked.map_err(|error| error.to_string())?.into_parts();
                    tokio::spawn(read_h1(body, send));
                    Ok::<_, String>(parts)
                }
                Self::H2(client, _) => {
                    let mut client = client.clone().ready().await.map_err(|e| e.to_string())?;
                    let sent = client.send_request(request, body.is_none());
                    let (response, stream) = sent.map_err(|error| error.to_string())?;
                    if let Some(body) = body {
                        tokio::spawn(write_h2(stream, body));
                    }
                    let (parts, body) = response.await.map_err(|e| e.to_string())?.into_parts();
                    tokio::spawn(read_h2(body, send));
                    Ok(parts)
                }
            }
        };
        let parts = soon("a response", asked).await?;
        Ok(Answer { parts, pieces })
    }

    /// The status and the body of the answer to a GET.
    pub async fn get(&mut self, path: &str) -> (u16, String) {
        let answer = self.ask(request("GET", path), None).await.unwrap();
        let (status, body) = (answer.status(), whole(answer.pieces).await);
        assert!(!body.cut, "{path}");
        (status, String::from_utf8(body.data).unwrap())
    }

    /// Whether the connection still takes requests.
    pub fn is_open(&self) -> bool {
        match self {
            Self::H1(client) => !client.is_closed(),
            Self::H2(_, connection) => !connection.is_finished(),
        }
    }
}

/// A request to host `shop`.
pub fn request(method: &str, path: &str) -> Request<()> {
    let uri = format!("http://shop{path}");
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

/// The same with these fields.
pub fn with(mut request: Request<()>, fields: &[(&'static str, &str)]) -> Request<()> {
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

/// A request as an endpoint sees it.
pub struct Call {
    pub parts: request::Parts,
    pub body: Pieces,
    pub reply: Reply,
}

/// The way to answer a request. Dropping it resets the stream, or ends the connection.
pub struct Reply(oneshot::Sender<(Response<()>, Option<Pieces>)>);

impl Reply {
    /// Answers. The answer has no body if `body` is `None`.
    pub fn send(self, response: Response<()>, body: Option<Pieces>) {
        let _ = self.0.send((response, body));
    }

    /// Answers 200 with this text.
    pub fn say(self, text: &str) {
        self.send(Response::new(()), data(text.to_owned()));
    }
}

impl Call {
    pub fn path(&self) -> &str {
        self.parts.uri.path()
    }
}

/// An endpoint. It ends at drop.
pub struct App {
    pub address: SocketAddr,
    calls: Arc<AtomicUsize>,
    connections: Connections,
    task: JoinHandle<()>,
}

/// The open connections of an endpoint of HTTP/2, with what tells each to end.
type Connections = Arc<Mutex<Vec<mpsc::Sender<()>>>>;

impl App {
    /// An endpoint that runs `script` for each request.
    pub async fn start<F, Fut>(version: Version, script: F) -> Self
    where
        F: Fn(Call) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::start_with(version, h2::server::Builder::new(), script).await
    }

    /// Like [`Self::start`]. Its connections of HTTP/2 have these settings.
    pub async fn start_with<F, Fut>(
        version: Version,
        builder: h2::server::Builder,
        script: F,
    ) -> Self
    where
        F: Fn(Call) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let (count, connections) = (calls.clone(), Connections::default());
        let list = connections.clone();
        let task = serve(listener, move |stream, _| {
            let (script, count, list) = (script.clone(), count.clone(), list.clone());
            let builder = builder.clone();
            async move {
                // A join check sends nothing, and is no connection.
                if !matches!(stream.peek(&mut [0]).await, Ok(1..)) {
                    return;
                }
                let called = move |parts, body| {
                    count.fetch_add(1, Ordering::SeqCst);
                    let (answer, answered) = oneshot::channel();
                    tokio::spawn(script(Call {
                        parts,
                        body,
                        reply: Reply(answer),
                    }));
                    answered
                };
                match version {
                    Version::H1 => serve_h1(stream, called).await,
                    Version::H2 => serve_h2(stream, &builder, &list, called).await,
                }
            }
        });
        Self {
            address,
            calls,
            connections,
            task,
        }
    }

    /// How many requests it has had.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Tells each client by GOAWAY to go to another connection, and goes on living.
    pub fn end_connections(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.try_send(());
        }
    }

    pub fn ep(&self, name: &str) -> Ep {
        Ep::new(name, self.address)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Answered = oneshot::Receiver<(Response<()>, Option<Pieces>)>;

async fn serve_h1(stream: TcpStream, called: impl Fn(request::Parts, Pieces) -> Answered) {
    let service = service_fn(|request: Request<Incoming>| {
        let (parts, incoming) = request.into_parts();
        let (send, body) = mpsc::channel(16);
        tokio::spawn(read_h1(incoming, send));
        let answered = called(parts, body);
        async {
            answered
                .await
                .map(|(response, body)| response.map(|()| Outgoing(body)))
        }
    });
    let server = hyper::server::conn::http1::Builder::new();
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn serve_h2(
    stream: TcpStream,
    builder: &h2::server::Builder,
    list: &Connections,
    called: impl Fn(request::Parts, Pieces) -> Answered,
) {
    let Ok(mut connection) = builder.handshake(stream).await else {
        return;
    };
    let (tell, mut told) = mpsc::channel(1);
    list.lock().unwrap().push(tell);
    let mut leaving = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            Some(()) = told.recv(), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, mut respond))) = accepted else {
            return;
        };
        let (parts, recv) = request.into_parts();
        let (send, body) = mpsc::channel(16);
        tokio::spawn(read_h2(recv, send));
        let answered = called(parts, body);
        tokio::spawn(async move {
            let Ok((response, body)) = answered.await else {
                return respond.send_reset(h2::Reason::INTERNAL_ERROR);
            };
            let Ok(stream) = respond.send_response(response, body.is_none()) else {
                return;
            };
            if let Some(body) = body {
                write_h2(stream, body).await;
            }
        });
    }
}

async fn read_h2(mut recv: RecvStream, send: mpsc::Sender<Piece>) {
    while let Some(data) = recv.data().await {
        let Ok(data) = data else {
            let _ = send.send(Piece::Cut).await;
            return;
        };
        let length = data.len();
        if send.send(Piece::Data(data)).await.is_err() {
            return;
        }
        let _ = recv.flow_control().release_capacity(length);
    }
    let last = match recv.trailers().await {
        Ok(Some(trailers)) => Piece::Trailers(trailers),
        Ok(None) => return,
        Err(_) => Piece::Cut,
    };
    let _ = send.send(last).await;
}

async fn write_h2(mut stream: SendStream<Bytes>, mut body: Pieces) {
    while let Some(piece) = body.recv().await {
        let mut data = match piece {
            Piece::Data(data) => data,
            Piece::Trailers(trailers) => return drop(stream.send_trailers(trailers)),
            Piece::Cut => return stream.send_reset(h2::Reason::INTERNAL_ERROR),
        };
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let Some(Ok(room)) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
                return;
            };
            let some = data.split_to(room.min(data.len()));
            if stream.send_data(some, false).is_err() {
                return;
            }
        }
    }
    let _ = stream.send_data(Bytes::new(), true);
}

async fn read_h1(mut incoming: Incoming, send: mpsc::Sender<Piece>) {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
        let piece = match frame.map(Frame::into_data) {
            Ok(Ok(data)) => Piece::Data(data),
            Ok(Err(frame)) => Piece::Trailers(frame.into_trailers().unwrap()),
            Err(_) => Piece::Cut,
        };
        if send.send(piece).await.is_err() {
            return;
        }
    }
}

/// A body for `hyper`.
pub struct Outgoing(Option<Pieces>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(pieces) = &mut self.0 else {
            return Poll::Ready(None);
        };
        pieces.poll_recv(cx).map(|piece| {
            piece.map(|piece| match piece {
                Piece::Data(data) => Ok(Frame::data(data)),
                Piece::Trailers(trailers) => Ok(Frame::trailers(trailers)),
                Piece::Cut => Err("cut"),
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let nothing = || SizeHint::with_exact(0);
        self.0
            .as_ref()
            .map_or_else(nothing, |_| SizeHint::default())
    }
}

/// A proxy with a listener of this protocol, for a Service whose port says `app`.
pub async fn rig(listener: &str, app: Option<&str>, endpoints: &[Ep], more: &str) -> Rig {
    let (folder, mut shop) = (Folder::new(), service("shop", json!({})));
    if let Some(app) = app {
        shop["spec"]["ports"][0]["appProtocol"] = json!(app);
    }
    folder.write("service.json", &shop);
    let rig = Rig::run(folder, &one_listener(listener, more)).await;
    rig.endpoints(endpoints);
    rig.usable(endpoints.len()).await;
    rig
}
