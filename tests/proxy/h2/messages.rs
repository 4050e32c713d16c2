//! Whole messages, for each pair of versions and each way in which a port says its protocol: methods,
//! bodies in both directions, trailers, statuses without a body.

use bytes::Bytes;
use http::{HeaderMap, Response};

use crate::proxy::h2::app::Version::{self, H1, H2};
use crate::proxy::h2::app::{
    App, Call, Client, Piece, body, data, field, request, rig, whole, with,
};
use crate::support::rig::Rig;

/// The version of a client, the listener's protocol, what the Service's port says, and the version
/// that the endpoint must get.
type Lane = (Version, &'static str, Option<&'static str>, Version);

const LANES: [Lane; 11] = [
    (H1, "http", None, H1),
    (H1, "http", Some("kubernetes.io/h2c"), H2),
    (H1, "h2c", None, H2),
    (H1, "auto", None, H1),
    (H1, "auto", Some("grpc"), H2),
    (H2, "http", None, H1),
    (H2, "http", Some("grpc"), H2),
    (H2, "h2c", None, H2),
    (H2, "auto", None, H2),
    (H2, "auto", Some("http"), H1),
    (H2, "auto", Some("kubernetes.io/h2c"), H2),
];

/// What the endpoint does, by the request's path.
async fn shop(call: Call) {
    let mut response = Response::new(());
    let method = call.parts.method.clone();
    let fields = response.headers_mut();
    fields.insert("x-method", method.as_str().parse().unwrap());
    if let Some(te) = call.parts.headers.get("te") {
        fields.insert("x-te", te.clone());
    }
    match call.path() {
        "/get" => {
            let text = (method != "HEAD").then(|| data("twelve bytes").unwrap());
            fields.insert("content-length", 12.into());
            call.reply.send(response, text);
        }
        "/204" | "/304" => {
            if call.path() == "/304" {
                fields.insert("content-length", 12.into());
            }
            *response.status_mut() = call.path()[1..].parse().unwrap();
            call.reply.send(response, None);
        }
        "/empty" => call.reply.send(response, None),
        // Says in fields what has come.
        "/upload" => {
            let got = whole(call.body).await;
            fields.insert("x-length", got.data.len().into());
            fields.insert("x-cut", got.cut.to_string().parse().unwrap());
            fields.insert("x-got", field(&got.trailers, "x-sum").parse().unwrap());
            call.reply.send(response, None);
        }
        "/counted" => {
            let got = whole(call.body).await.data;
            fields.insert("content-length", got.len().into());
            call.reply.send(response, data(got));
        }
        "/trailers" => {
            let got = whole(call.body).await.data;
            fields.insert("trailer", "x-sum".parse().unwrap());
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", got.len().into());
            let pieces = [Piece::Data(got.into()), Piece::Trailers(trailers)];
            call.reply.send(response, body(pieces));
        }
        path => unreachable!("{path}"),
    }
}

/// Runs a scenario for each lane.
async fn in_each_lane(scenario: impl AsyncFn(Lane, &mut Client, &Rig)) {
    for lane in LANES {
        let (client, listener, says, endpoint) = lane;
        let app = App::start(endpoint, shop).await;
        let rig = rig(listener, says, &[app.ep("a")], "").await;
        let mut client = Client::connect(client, rig.web()).await;
        scenario(lane, &mut client, &rig).await;
        assert!(client.is_open(), "{lane:?}: the connection was kept");
    }
}

/// Bytes that repeat nowhere, so that no part of them can stand for another.
fn bytes(length: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(length as u64);
    (0..length).map(|_| random.u8(..)).collect()
}

#[tokio::test]
async fn answers_without_a_body_and_answers_of_a_known_length() {
    in_each_lane(async |lane, client, _| {
        assert_eq!(
            client.get("/get").await,
            (200, "twelve bytes".into()),
            "{lane:?}"
        );
        let head = client.ask(request("HEAD", "/get"), None).await.unwrap();
        assert_eq!(
            (head.status(), head.field("content-length")),
            (200, "12"),
            "{lane:?}"
        );
        assert_eq!(head.field("x-method"), "HEAD", "{lane:?}");
        assert_eq!(whole(head.pieces).await.data, b"", "{lane:?}");
        for status in [204, 304] {
            let path = format!("/{status}");
            assert_eq!(client.get(&path).await, (status, String::new()), "{lane:?}");
        }
        assert_eq!(client.get("/empty").await, (200, String::new()), "{lane:?}");
    })
    .await;
}

#[tokio::test]
async fn bodies_of_every_size_pass_whole_in_both_directions() {
    in_each_lane(async |lane, client, _| {
        // Answers and requests that are counted, and whose length is not known before.
        let forms = [
            ("/counted", true),
            ("/trailers", false),
            ("/counted", false),
        ];
        for length in [0, 1, 65_535, 65_537, 1 << 20] {
            let sent = bytes(length);
            let some = if length < 1 << 20 { 3 } else { 2 };
            for (path, counted) in &forms[..some] {
                let mut post = request("POST", path);
                if *counted {
                    post.headers_mut().insert("content-length", length.into());
                }
                let what = format!("{lane:?} {length} {path} {counted}");
                let answer = client.ask(post, data(sent.clone())).await;
                let got = whole(answer.expect(&what).pieces).await;
                assert!(got.data == sent && !got.cut, "{what}: {}", got.data.len());
            }
        }
    })
    .await;
}

#[tokio::test]
async fn trailers_pass_in_both_directions_and_te_is_kept() {
    in_each_lane(async |lane, client, _| {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "up".parse().unwrap());
        let pieces = [Piece::Data("abc".into()), Piece::Trailers(trailers)];
        let post = with(request("POST", "/upload"), &[("trailer", "x-sum")]);
        let answer = client.ask(post, body(pieces)).await.unwrap();
        let seen = (
            answer.field("x-length"),
            answer.field("x-cut"),
            answer.field("x-got"),
        );
        assert_eq!(seen, ("3", "false", "up"), "{lane:?}");
        whole(answer.pieces).await;

        let post = with(request("POST", "/trailers"), &[("te", "trailers")]);
        let answer = client.ask(post, data("abc")).await.unwrap();
        assert_eq!(answer.field("x-te"), "trailers", "{lane:?}");
        let got = whole(answer.pieces).await;
        assert_eq!(
            (&*got.data, field(&got.trailers, "x-sum")),
            (&b"abc"[..], "3"),
            "{lane:?}"
        );
    })
    .await;
}

/// A body without a byte, with and without an end of its own.
#[tokio::test]
async fn an_empty_body_ends() {
    in_each_lane(async |lane, client, _| {
        for pieces in [None, body([]), data("")] {
            let answer = client
                .ask(request("POST", "/upload"), pieces)
                .await
                .unwrap();
            let seen = (answer.field("x-length"), answer.field("x-cut"));
            assert_eq!(seen, ("0", "false"), "{lane:?}");
            whole(answer.pieces).await;
        }
    })
    .await;
}
