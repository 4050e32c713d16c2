//! A stream of a connection to an endpoint, read and written as a connection of HTTP/1 that carries one
//! request.
//!
//! Invariant: [`Carried::is_refused`] is true only if the endpoint has said, or cannot know, that it has
//! not begun the request (RFC 9113 sections 6.8 and 8.7): such a request may be sent again, whatever its
//! method.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use http::{Method, Request};

use crate::net::socket::Peer;
use crate::net::stream::Carried;
use crate::proxy::h2::carrier;
use crate::proxy::h2::flow::{Beginning, Inflow, Outflow, broken, take};
use crate::wire::answer::write_answer;
use crate::wire::message::Framing;
use crate::wire::translate::{
    Read, connect_websocket, read_request, write_response, write_websocket,
};

/// A stream of a connection to an endpoint.
#[derive(Debug)]
pub(super) struct EndpointStream {
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    partial: Beginning,
    request: Sending,
    head_only: bool,
    /// What a WebSocket's upgrade is granted with, if the request asks for one.
    accept: Option<String>,
    /// What is left of the response's head.
    head: Vec<u8>,
    response: Receiving,
    refused: bool,
    /// The stream has failed.
    lost: bool,
    /// Its place on the connection.
    carried: carrier::Carried,
}

#[derive(Debug)]
enum Sending {
    Due(SendRequest<Bytes>),
    Begun(Outflow),
}

#[derive(Debug)]
enum Receiving {
    /// The request is still to be sent.
    Due,
    Head(ResponseFuture),
    Body(Rc<RefCell<Inflow>>),
    /// It did not come from the endpoint.
    Made,
}

impl EndpointStream {
    pub(super) fn new(carried: carrier::Carried) -> Self {
        let request = Sending::Due(carried.0.send.clone());
        Self {
            state: RefCell::new(State {
                partial: Beginning::default(),
                request,
                head_only: false,
                accept: None,
                head: Vec::new(),
                response: Receiving::Due,
                refused: false,
                lost: false,
                carried,
            }),
        }
    }
}

impl Carried for EndpointStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.borrow_mut().poll_readable(cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state.borrow_mut().request {
            Sending::Begun(body) => body.poll_ready(cx),
            Sending::Due(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let state = &mut *self.state.borrow_mut();
        ready!(state.poll_readable(cx))?;
        if !state.head.is_empty() {
            return Poll::Ready(Ok(take(&mut state.head, room)));
        }
        match &mut state.response {
            Receiving::Body(body) => body.borrow_mut().poll_read(cx, room).map_err(broken),
            _ => Poll::Ready(Ok(0)),
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let state = &mut *self.state.borrow_mut();
        let mut taken = 0;
        if let Sending::Due(send) = &mut state.request {
            if let Err(error) = ready!(send.poll_ready(cx)) {
                (state.lost, state.refused) = (true, true);
                return Poll::Ready(Err(broken(error)));
            }
            if matches!(state.response, Receiving::Made) {
                return Poll::Ready(Ok(bytes.len()));
            }
            let is_tls = state.carried.0.backend.is_some();
            match state.partial.read(bytes, |text| read_request(text, is_tls)) {
                Ok((n, None)) => return Poll::Ready(Ok(n)),
                Ok((n, Some(read))) => {
                    taken = n;
                    state.begin(read)?;
                }
                Err(reject) => {
                    write_answer(400, reject.reason, None, true, false, &mut state.head);
                    state.response = Receiving::Made;
                    return Poll::Ready(Ok(bytes.len()));
                }
            }
        }
        let Sending::Begun(body) = &mut state.request else {
            return Poll::Ready(Ok(bytes.len()));
        };
        match body.poll_write(cx, &bytes[taken..]) {
            Poll::Pending if taken > 0 => Poll::Ready(Ok(taken)),
            written => written.map_ok(|n| taken + n),
        }
    }

    /// A request that is whole has ended its stream already.
    fn poll_shutdown(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Sending::Begun(body) = &mut self.state.borrow_mut().request {
            body.end();
        }
        Poll::Ready(Ok(()))
    }

    fn peer(&self) -> Peer {
        match self.state.borrow().lost {
            true => Peer::Gone,
            false => Peer::Open,
        }
    }

    fn is_refused(&self) -> bool {
        self.state.borrow().refused
    }
}

impl State {
    /// Sends a request head.
    fn begin(&mut self, read: Read<Request<()>>) -> io::Result<()> {
        let Sending::Due(send) = &mut self.request else {
            return Ok(());
        };
        let (mut request, mut framing) = (read.head, read.framing);
        let is_known = send.is_extended_connect_protocol_enabled();
        self.accept = connect_websocket(&mut request, is_known);
        if self.accept.is_some() {
            let protocol = Protocol::from_static("websocket");
            request.extensions_mut().insert(protocol);
            framing = Framing::UntilClose;
        }
        self.head_only = request.method() == Method::HEAD;
        let ends = matches!(framing, Framing::None | Framing::Counted(0));
        match send.send_request(request, ends) {
            Ok((response, send)) => {
                self.request = Sending::Begun(Outflow::new(send, framing));
                self.response = Receiving::Head(response);
                Ok(())
            }
            Err(error) => {
                (self.lost, self.refused) = (true, true);
                Err(broken(error))
            }
        }
    }

    /// Ready when there is something to read, or nothing will come.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.head.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if self.lost {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let ready = match &mut self.response {
            Receiving::Due => return Poll::Pending,
            Receiving::Made => return Poll::Ready(Ok(())),
            Receiving::Body(body) => ready!(body.borrow_mut().poll_ready(cx)),
            Receiving::Head(response) => {
                if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                    let (status, fields) = (interim.status(), interim.headers());
                    write_response(status, fields, true, self.head_only, &mut self.head);
                    return Poll::Ready(Ok(()));
                }
                match ready!(Pin::new(response).poll(cx)) {
                    Ok(response) => {
                        let (parts, recv) = response.into_parts();
                        let ends = recv.is_end_stream();
                        let (status, fields) = (parts.status, &parts.headers);
                        let granted = self.accept.take().filter(|_| status.is_success());
                        let framing = match granted {
                            Some(accept) => {
                                write_websocket(fields, &accept, &mut self.head);
                                Framing::UntilClose
                            }
                            None => {
                                write_response(status, fields, ends, self.head_only, &mut self.head)
                            }
                        };
                        let body = Inflow::new(recv, framing);
                        self.response = Receiving::Body(self.carried.0.bodies.add(body));
                        Ok(())
                    }
                    Err(error) => {
                        self.refused = is_unprocessed(&error);
                        Err(error)
                    }
                }
            }
        };
        self.lost |= ready.is_err();
        Poll::Ready(ready.map_err(broken))
    }
}

/// Whether the endpoint says that it has not begun a request. GOAWAY says it of each stream above its
/// last one, for whatever reason it comes. A stream that was under way when its connection ended fails
/// otherwise: `h2` keeps the two apart.
fn is_unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || refused)
}
