//! A stream of a client's connection, read and written as a connection of HTTP/1 that carries one
//! request.
//!
//! Invariants: the client learns whether its answer is whole. One that was cut ends with
//! `grpc-status: 14` for gRPC, and with RST_STREAM otherwise. After a whole answer and a whole request,
//! the stream reads as ended, so its session ends too. Where the session reads the rest of a request whose
//! answer it has sent, the stream waits for that rest. Elsewhere a request that is not whole by then ends
//! with RST_STREAM and NO_ERROR (RFC 9113 section 8.1).

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use crate::net::socket::Peer;
use crate::net::stream::Carried;
use crate::proxy::h2::flow::{Beginning, Bodies, Inflow, Outflow, broken, take};
use crate::wire::message::{Framing, Reject};
use crate::wire::translate::{Tunnel, Wanted, is_grpc, read_response, write_request};

/// What a connection knows of its streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) bodies: Bodies,
    /// Streams that are open.
    pub(super) open: Cell<u32>,
    /// Streams that the client has reset before they had an answer.
    pub(super) resets: Cell<u32>,
    /// Answers that had begun. Many a call of gRPC has no other end than its client's reset.
    pub(super) answers: Cell<u32>,
}

/// A stream of a client's connection.
#[derive(Debug)]
pub(super) struct ClientStream {
    state: RefCell<State>,
    streams: Rc<Streams>,
    secure: Secure,
}

/// What TLS says of a connection.
#[derive(Debug, Clone)]
pub(super) struct Secure {
    /// Whether it is spoken.
    pub(super) is_tls: bool,
    /// The name that the client has asked for.
    pub(super) name: Option<Rc<str>>,
}

#[derive(Debug)]
struct State {
    /// What is left of the request's head.
    head: Vec<u8>,
    body: Rc<RefCell<Inflow>>,
    answer: Answer,
    partial: Beginning,
    wanted: Wanted,
    head_only: bool,
    /// The session reads the rest of the request behind its answer.
    reads_on: bool,
    /// Client and endpoint are joined byte for byte.
    is_tunnel: bool,
    /// The client has reset the stream, or its connection has ended.
    gone: bool,
    /// Wakes the task that polled last.
    waker: Waker,
}

#[derive(Debug)]
enum Answer {
    Due(SendResponse<Bytes>),
    Begun { body: Outflow, grpc: bool },
    Over,
}

impl ClientStream {
    /// A stream that has just come. Its end is counted in `streams`. `secure` is of its connection.
    ///
    /// # Errors
    /// The request cannot be forwarded, and has been answered.
    pub(super) fn new(
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        streams: Rc<Streams>,
        secure: Secure,
    ) -> Result<Self, Reject> {
        let (parts, recv) = request.into_parts();
        let protocol = parts.extensions.get::<h2::ext::Protocol>();
        let protocol = protocol.map(|it| it.as_str().to_owned());
        let request = Request::from_parts(parts, ());
        let mut head = Vec::new();
        let ends = recv.is_end_stream();
        let written = write_request(&request, protocol.as_deref(), ends, &mut head);
        let (framing, wanted) = match written {
            Ok(written) => written,
            Err(reject) => {
                let status = StatusCode::from_u16(reject.status).unwrap_or(StatusCode::BAD_REQUEST);
                let answer = refusal(status, reject.reason, is_grpc(request.headers()));
                // It fails only where the client has left.
                let _ = respond.send_response(answer, true);
                return Err(reject);
            }
        };
        streams.open.set(streams.open.get() + 1);
        Ok(Self {
            state: RefCell::new(State {
                head,
                body: streams.bodies.add(Inflow::new(recv, framing)),
                answer: Answer::Due(respond),
                partial: Beginning::default(),
                wanted,
                head_only: request.method() == Method::HEAD,
                reads_on: false,
                is_tunnel: false,
                gone: false,
                waker: Waker::noop().clone(),
            }),
            streams,
            secure,
        })
    }
}

impl Carried for ClientStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.borrow_mut().poll_readable(cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.state.borrow_mut();
        state.waker.clone_from(cx.waker());
        match &mut state.answer {
            Answer::Begun { body, .. } => body.poll_ready(cx),
            Answer::Due(_) | Answer::Over => Poll::Ready(Ok(())),
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let state = &mut *self.state.borrow_mut();
        ready!(state.poll_readable(cx))?;
        if !state.head.is_empty() {
            return Poll::Ready(Ok(take(&mut state.head, room)));
        }
        if state.is_over() && !state.reads_on {
            return Poll::Ready(Ok(0));
        }
        state.body.borrow_mut().poll_read(cx, room).map_err(broken)
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let state = &mut *self.state.borrow_mut();
        state.waker.clone_from(cx.waker());
        let mut taken = 0;
        while matches!(state.answer, Answer::Due(_)) {
            let read = state.partial.read(&bytes[taken..], read_response);
            let (n, head) = read.map_err(|_| io::ErrorKind::InvalidData)?;
            taken += n;
            let Some(head) = head else {
                return Poll::Ready(Ok(taken));
            };
            state.reads_on = !head.is_last;
            state.begin(head.head, head.framing)?;
        }
        let rest = &bytes[taken..];
        let Answer::Begun { body, .. } = &mut state.answer else {
            return Poll::Ready(Ok(bytes.len()));
        };
        let written = match body.poll_write(cx, rest) {
            Poll::Pending if taken > 0 => 0,
            written => ready!(written)?,
        };
        if body.is_done() {
            state.answer = Answer::Over;
        }
        Poll::Ready(Ok(taken + written))
    }

    fn poll_shutdown(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.state.borrow_mut();
        match &mut state.answer {
            Answer::Over => {}
            Answer::Begun { body, .. } => match body.end() {
                true => state.answer = Answer::Over,
                false => state.cut(),
            },
            Answer::Due(_) => state.cut(),
        }
        Poll::Ready(Ok(()))
    }

    fn peer(&self) -> Peer {
        let state = &mut *self.state.borrow_mut();
        let waker = state.waker.clone();
        match state.poll_gone(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => Peer::Gone,
            Poll::Pending => Peer::Open,
        }
    }

    fn is_tls(&self) -> bool {
        self.secure.is_tls
    }

    fn server_name(&self) -> Option<&str> {
        self.secure.name.as_deref()
    }
}

impl State {
    /// The answer is whole, so the stream is at its end. A tunnel ends by direction.
    fn is_over(&self) -> bool {
        matches!(self.answer, Answer::Over) && !self.is_tunnel
    }

    /// Ready when there is something to read, or nothing will come.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waker.clone_from(cx.waker());
        if !self.head.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if self.is_over() && self.reads_on {
            return self.body.borrow_mut().poll_ready(cx).map_err(broken);
        }
        if self.is_over() {
            // Some clients take a reset before they have sent the end for a failure.
            return self.body.borrow_mut().poll_last(cx).map(Ok);
        }
        let read = self.body.borrow_mut().poll_ready(cx);
        let has_more = self.body.borrow().has_more();
        match read {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => {
                self.gone = true;
                Poll::Ready(Err(broken(error)))
            }
            Poll::Ready(Ok(())) if self.is_tunnel || has_more => Poll::Ready(Ok(())),
            // The client has sent its request, and waits.
            Poll::Ready(Ok(())) => {
                ready!(self.poll_gone(cx));
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
    }

    /// Ready when the client has reset the stream, or its connection has ended.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.gone {
            match &mut self.answer {
                Answer::Due(send) => _ = ready!(send.poll_reset(cx)),
                Answer::Begun { body, .. } => ready!(body.poll_reset(cx)),
                Answer::Over => return Poll::Pending,
            }
            self.gone = true;
        }
        Poll::Ready(())
    }

    /// Sends a response head.
    fn begin(&mut self, mut response: Response<()>, framing: Framing) -> io::Result<()> {
        let Answer::Due(send) = &mut self.answer else {
            return Ok(());
        };
        let status = response.status();
        let upgrades = status == StatusCode::SWITCHING_PROTOCOLS;
        if status.is_informational() && !upgrades {
            return send.send_informational(response).map_err(broken);
        }
        self.is_tunnel = match self.wanted.tunnel {
            Some(Tunnel::Connect) => status.is_success(),
            Some(Tunnel::WebSocket) => upgrades,
            None => false,
        };
        if self.is_tunnel {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
        }
        if self.wanted.tunnel == Some(Tunnel::WebSocket) && !upgrades && status.is_success() {
            // Any 2xx would say that the tunnel stands (RFC 8441 section 5).
            let answer = refusal(StatusCode::BAD_GATEWAY, "upgrade_ignored", false);
            send.send_response(answer, true).map_err(broken)?;
            self.answer = Answer::Over;
            return Ok(());
        }
        let own = response.headers().get(REASON).cloned();
        if let Some(reason) = own.filter(|_| self.wanted.grpc && !status.is_success()) {
            let reason = reason.to_str().unwrap_or_default();
            let answer = refusal(status, reason, true);
            send.send_response(answer, true).map_err(broken)?;
            self.answer = Answer::Over;
            return Ok(());
        }
        let framing = match framing {
            _ if self.is_tunnel => Framing::UntilClose,
            _ if self.head_only => Framing::None,
            framing => framing,
        };
        let grpc = is_grpc(response.headers());
        let ends = matches!(framing, Framing::None | Framing::Counted(0));
        let body = Outflow::new(send.send_response(response, ends).map_err(broken)?, framing);
        self.answer = match ends {
            true => Answer::Over,
            false => Answer::Begun { body, grpc },
        };
        Ok(())
    }

    /// Ends an answer that cannot be completed.
    fn cut(&mut self) {
        match std::mem::replace(&mut self.answer, Answer::Over) {
            Answer::Due(mut send) => send.send_reset(Reason::INTERNAL_ERROR),
            Answer::Begun {
                mut body,
                grpc: true,
            } => {
                let mut trailers = HeaderMap::new();
                trailers.insert(GRPC_STATUS, HeaderValue::from_static("14"));
                let message =
                    HeaderValue::from_static("ebbtide: the connection to the endpoint ended");
                trailers.insert(GRPC_MESSAGE, message);
                body.end_with(trailers);
            }
            Answer::Begun { mut body, .. } => body.reset(Reason::INTERNAL_ERROR),
            Answer::Over => {}
        }
        self.is_tunnel = false;
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let streams = &self.streams;
        streams.open.set(streams.open.get() - 1);
        let state = self.state.get_mut();
        match state.answer {
            Answer::Due(_) if state.gone => streams.resets.set(streams.resets.get() + 1),
            Answer::Due(_) => {}
            Answer::Begun { .. } | Answer::Over => streams.answers.set(streams.answers.get() + 1),
        }
        if !state.gone {
            state.cut();
        }
    }
}

/// An answer of Ebbtide itself without a body. gRPC reads its own status (gRPC over HTTP/2, "Responses").
fn refusal(status: StatusCode, reason: &str, grpc: bool) -> Response<()> {
    let mut response = Response::new(());
    let reason = HeaderValue::from_str(reason).unwrap_or(HeaderValue::from_static(""));
    if grpc {
        let code = match status.as_u16() {
            400 | 431 => "13",
            403 => "7",
            404 | 501 => "12",
            413 => "8",
            _ => "14",
        };
        let fields = response.headers_mut();
        let kind = HeaderValue::from_static("application/grpc");
        fields.insert(header::CONTENT_TYPE, kind);
        fields.insert(GRPC_STATUS, HeaderValue::from_static(code));
        fields.insert(GRPC_MESSAGE, reason.clone());
    } else {
        *response.status_mut() = status;
    }
    response.headers_mut().insert(REASON, reason);
    response
}

const REASON: HeaderName = HeaderName::from_static("x-ebbtide-reason");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
