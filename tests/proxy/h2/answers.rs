//! Answers in all their forms: interim ones, fields of one hop, a body that is cut, and what an HTTP/1
//! answer becomes that no HTTP/2 answer may be.

use std::future::poll_fn;

use h2::client::ResponseFuture;
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::proxy::ask::raw;
use crate::proxy::h2::app::Version::{H1, H2};
use crate::proxy::h2::app::{
    App, Call, Client, Piece, Whole, body, data, field, request, rig, whole, with,
};
use crate::proxy::h2::raw::Raw;
use crate::proxy::play::{Act, Play};
use crate::support::folder::Ep;
use crate::support::frames::{DATA, get};
use crate::support::serve::serve;
use crate::support::wait::soon;

/// Sends a request on a connection of HTTP/2.
async fn send(
    client: &Client,
    request: Request<()>,
    ends: bool,
) -> (ResponseFuture, h2::SendStream<bytes::Bytes>) {
    let Client::H2(client, _) = client else {
        unreachable!()
    };
    let mut client = client.clone().ready().await.unwrap();
    client.send_request(request, ends).unwrap()
}

/// The next interim answer.
async fn interim(response: &mut ResponseFuture) -> Response<()> {
    let next = poll_fn(|cx| response.poll_informational(cx));
    soon("an interim answer", next).await.unwrap().unwrap()
}

#[tokio::test]
async fn interim_answers_reach_a_client_of_http2() {
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                  HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n\
                  HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let play = Play::start(|_| Act::Say(answer.into())).await;
    let rig = rig("http", None, &[Ep::new("a", play.address())], "").await;
    let client = Client::connect(H2, rig.web()).await;
    let (mut response, _) = send(&client, request("GET", "/"), true).await;
    for link in ["</a>", "</b>"] {
        let hints = interim(&mut response).await;
        assert_eq!(
            (hints.status().as_u16(), field(hints.headers(), "link")),
            (103, link)
        );
    }
    assert_eq!(soon("an answer", response).await.unwrap().status(), 200);
}

/// An endpoint of HTTP/2 that answers each request with these interim answers, and then 200.
async fn hinting(
    interims: &'static [(u16, &'static str)],
) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = serve(listener, move |stream: TcpStream, _| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            for (status, link) in interims {
                let mut hints = Response::new(());
                *hints.status_mut() = StatusCode::from_u16(*status).unwrap();
                hints.headers_mut().insert("link", link.parse().unwrap());
                respond.send_informational(hints).unwrap();
            }
            let mut body = request.into_body();
            tokio::spawn(async move {
                while let Some(Ok(_)) = body.data().await {}
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data("ok".into(), true).unwrap();
            });
        }
    });
    (address, task)
}

#[tokio::test]
async fn interim_answers_of_an_endpoint_of_http2_reach_every_client() {
    let (address, _task) = hinting(&[(103, "</a>"), (103, "</b>")]).await;
    let rig = rig("http", Some("grpc"), &[Ep::new("a", address)], "").await;
    let client = Client::connect(H2, rig.web()).await;
    let (mut response, _) = send(&client, request("GET", "/"), true).await;
    for link in ["</a>", "</b>"] {
        assert_eq!(field(interim(&mut response).await.headers(), "link"), link);
    }
    assert_eq!(soon("an answer", response).await.unwrap().status(), 200);

    let mut stream = TcpStream::connect(rig.web()).await.unwrap();
    let head = b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut text = String::new();
    soon("an answer", stream.read_to_string(&mut text))
        .await
        .unwrap();
    let heads: Vec<&str> = text.split("\r\n\r\n").collect();
    assert!(
        heads[0].starts_with("HTTP/1.1 103") && heads[0].contains("link: </a>"),
        "{text}"
    );
    assert!(
        heads[1].starts_with("HTTP/1.1 103") && heads[1].contains("link: </b>"),
        "{text}"
    );
    assert!(heads[2].starts_with("HTTP/1.1 200"), "{text}");
}

/// A client that waits for 100 gets it from the endpoint, and sends its body only then.
#[tokio::test]
async fn a_body_that_waits_for_100_is_asked_for() {
    let (address, _task) = hinting(&[(100, "")]).await;
    for says in [None, Some("grpc")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let of_http1 = listener.local_addr().unwrap();
        let _scripted = serve(listener, move |mut stream: TcpStream, _| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                    return;
                }
            }
            stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await
                .unwrap();
            while !head.ends_with(b"0\r\n\r\n") {
                assert!(matches!(stream.read_buf(&mut head).await, Ok(1..)));
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await
                .unwrap();
        });
        let ep = Ep::new("a", if says.is_some() { address } else { of_http1 });
        let rig = rig("http", says, &[ep], "").await;
        let client = Client::connect(H2, rig.web()).await;
        let post = with(request("POST", "/"), &[("expect", "100-continue")]);
        let (mut response, mut stream) = send(&client, post, false).await;
        assert_eq!(interim(&mut response).await.status(), 100, "{says:?}");
        stream.send_data("hello".into(), true).unwrap();
        assert_eq!(
            soon("an answer", response).await.unwrap().status(),
            200,
            "{says:?}"
        );
    }
}

#[tokio::test]
async fn fields_of_one_hop_and_reason_phrases_end_at_the_proxy() {
    let answer = "HTTP/1.1 200 Fine\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                  Upgrade: h2c\r\nProxy-Connection: a\r\nX-A: b\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\
                  Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let play = Play::start(|_| Act::Say(answer.into())).await;
    let rig = rig("http", None, &[Ep::new("a", play.address())], "").await;
    let mut client = Client::connect(H2, rig.web()).await;
    let answer = client.ask(request("GET", "/"), None).await.unwrap();
    let names: Vec<&str> = answer.parts.headers.keys().map(|it| it.as_str()).collect();
    assert_eq!(names, ["x-a", "set-cookie"]);
    assert_eq!(answer.parts.headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(whole(answer.pieces).await.data, b"ok");
}

/// What ends in the middle at one side ends in the middle at the other. It is never whole.
#[tokio::test]
async fn a_body_that_is_cut_is_never_whole() {
    for (client, endpoint) in [(H2, H2), (H2, H1), (H1, H2)] {
        for counted in [true, false] {
            let app = App::start(endpoint, move |call| async move {
                let mut response = Response::new(());
                if counted {
                    response
                        .headers_mut()
                        .insert("content-length", 100_000.into());
                }
                // The first part is long enough to be passed on.
                let pieces = [Piece::Data(vec![b'x'; 50_000].into()), Piece::Cut];
                call.reply.send(response, body(pieces));
            })
            .await;
            let says = (endpoint == H2).then_some("grpc");
            let rig = rig("http", says, &[app.ep("a")], "").await;
            let mut client_ = Client::connect(client, rig.web()).await;
            let what = format!("{client:?} {endpoint:?} {counted}");
            match client_.ask(request("GET", "/"), None).await {
                Err(_) => {}
                Ok(answer) if answer.status() == 502 => {}
                Ok(answer) => assert!(whole(answer.pieces).await.cut, "{what}"),
            }
        }
    }
}

/// The same for a request.
#[tokio::test]
async fn a_request_that_is_cut_is_never_whole() {
    for (client, endpoint) in [(H2, H2), (H2, H1), (H1, H2)] {
        let (tell, mut told) = mpsc::unbounded_channel();
        let app = App::start(endpoint, move |call: Call| {
            let tell = tell.clone();
            async move {
                // The reply must live as long as the body is read.
                let Call {
                    mut body,
                    reply: _reply,
                    ..
                } = call;
                while let Some(piece) = body.recv().await {
                    tell.send(Some(piece)).unwrap();
                }
                tell.send(None).unwrap();
            }
        })
        .await;
        let says = (endpoint == H2).then_some("grpc");
        let rig = rig("http", says, &[app.ep("a")], "").await;
        for counted in [true, false] {
            let mut asking = Client::connect(client, rig.web()).await;
            let mut post = request("POST", "/");
            if counted {
                post.headers_mut().insert("content-length", 200_000.into());
            }
            let (send, pieces) = mpsc::channel(1);
            let some = Piece::Data(vec![b'x'; 10_000].into());
            send.try_send(some).unwrap();
            let asked = tokio::spawn(async move { asking.ask(post, Some(pieces)).await.err() });
            let what = format!("{client:?} {endpoint:?} {counted}");
            let mut last = soon("a request", told.recv()).await.unwrap();
            assert!(matches!(last, Some(Piece::Data(_))), "{what}: {last:?}");
            send.send(Piece::Cut).await.unwrap();
            while let Some(piece) = soon("the end", told.recv()).await.unwrap() {
                last = Some(piece);
            }
            assert!(matches!(last, Some(Piece::Cut)), "{what}: {last:?}");
            assert!(
                soon("the client's end", asked).await.unwrap().is_some(),
                "{what}"
            );
        }
    }
}

/// A response of HTTP/1 that its connection's end ends is whole. Of a reset, it is not known.
#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_whole() {
    let answer = "HTTP/1.1 200 OK\r\n\r\nall of it";
    let play = Play::start(|_| Act::SayAndClose(answer.into())).await;
    let rig = rig("http", None, &[Ep::new("a", play.address())], "").await;
    let mut client = Client::connect(H2, rig.web()).await;
    for _ in 0..3 {
        assert_eq!(client.get("/").await, (200, "all of it".into()));
    }
}

/// The answers of Ebbtide itself have a status and a reason, and those to gRPC are of gRPC.
#[tokio::test]
async fn answers_of_the_proxy_itself() {
    let rig = rig("http", None, &[], "timeouts: {hold: 50ms}").await;
    let mut client = Client::connect(H2, rig.web()).await;
    let answer = client.ask(request("GET", "/"), None).await.unwrap();
    assert_eq!(
        (answer.status(), answer.field("x-ebbtide-reason")),
        (503, "no_endpoint")
    );
    assert_eq!(
        whole(answer.pieces).await.data,
        b"Service Unavailable: no_endpoint\n"
    );
    let call = with(
        request("POST", "/a.B/C"),
        &[
            ("content-type", "application/grpc+proto"),
            ("te", "trailers"),
        ],
    );
    let answer = client.ask(call, data("x")).await.unwrap();
    let seen = (
        answer.status(),
        answer.field("grpc-status"),
        answer.field("grpc-message"),
    );
    assert_eq!(seen, (200, "14", "no_endpoint"));
    assert_eq!(answer.field("content-type"), "application/grpc");
    assert_eq!(whole(answer.pieces).await, Whole::default());
    assert!(client.is_open());
}

/// HTTP/1.0 has neither chunks nor trailers: there the end of the connection ends the body.
#[tokio::test]
async fn a_client_of_http10_gets_the_answer_of_http2() {
    let app = App::start(H2, |call| async move {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", 1.into());
        let pieces = [Piece::Data("all of it".into()), Piece::Trailers(trailers)];
        call.reply.send(Response::new(()), body(pieces));
    })
    .await;
    let rig = rig("http", Some("grpc"), &[app.ep("a")], "").await;
    let (text, clean) = raw(rig.web(), b"GET / HTTP/1.0\r\nHost: shop\r\n\r\n").await;
    assert!(clean && text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(
        text.ends_with("\r\n\r\nall of it") && !text.contains("hunked"),
        "{text}"
    );
}

/// A frame costs more than the byte that may be in it, for its reader, too.
#[tokio::test]
async fn small_chunks_that_come_together_leave_together() {
    let chunks = "1\r\nx\r\n".repeat(2_000);
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
    let play = Play::start(move |_| Act::Say(answer.clone().into())).await;
    let rig = rig("http", None, &[Ep::new("a", play.address())], "").await;
    let mut client = Raw::connect(rig.web()).await;
    client.headers(1, &get("/"), true).await;
    let (mut frames, mut bytes) = (0, 0);
    loop {
        let frame = client.until("DATA", |it| it.kind == DATA).await;
        (frames, bytes) = (frames + 1, bytes + frame.payload.len());
        if frame.ends_stream() {
            break;
        }
    }
    assert_eq!(bytes, 2_000);
    assert!(frames < 200, "{frames}");
}
