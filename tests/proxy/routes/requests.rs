//! What a route makes of a request before an endpoint has it, and whom it keeps away.

use std::sync::{Arc, Mutex};

use ebbtide::contract::filters::{Cors, FieldChanges, Filters, NewPath, Redirect, Rewrite};
use ebbtide::contract::policy::Protocol;
use http::request::Parts;

use super::{action, filtered, http, rig, serve, table, to};
use crate::proxy::ask::raw;
use crate::proxy::h2::app::Version::{self, H1, H2};
use crate::proxy::h2::app::{App, Call, Client, Piece, body, data, field, request, whole, with};

/// An endpoint that says `ok` and remembers what it was asked, with the body.
async fn keeping(version: Version) -> (App, Arc<Mutex<Vec<(Parts, Vec<u8>)>>>) {
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let kept = seen.clone();
    let app = App::start(version, move |call: Call| {
        let kept = kept.clone();
        async move {
            let body = whole(call.body).await.data;
            kept.lock().unwrap().push((call.parts, body));
            let mut response = http::Response::new(());
            for (name, value) in [("x-a", "app"), ("x-b", "app"), ("x-c", "app")] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            call.reply.send(response, data("ok"));
        }
    })
    .await;
    (app, seen)
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = all.iter().map(|(a, b)| (a.to_string(), b.to_string()));
    owned.collect()
}

/// Sets `x-a`, adds to `x-b`, removes `x-c`, and tries what is not allowed.
fn changes(who: &str) -> FieldChanges {
    FieldChanges {
        set: pairs(&[
            ("x-a", who),
            ("host", "evil"),
            ("transfer-encoding", "gzip"),
        ]),
        add: pairs(&[
            ("x-b", who),
            ("content-length", "7"),
            ("connection", "close"),
        ]),
        remove: vec!["x-c".to_owned(), "content-length".to_owned()],
    }
}

fn all(fields: &http::HeaderMap, name: &str) -> Vec<String> {
    let values = fields.get_all(name).iter();
    values.map(|it| it.to_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn fields_are_changed_both_ways_and_no_field_of_the_connection_is() {
    for (client_version, version) in [(H1, H1), (H1, H2), (H2, H1), (H2, H2)] {
        let what = format!("{client_version:?} to {version:?}");
        let rig = rig("").await;
        let (app, seen) = keeping(version).await;
        serve(&rig, "a", &[app.address]).await;
        let protocol = (version == H2).then_some(Protocol::Http2);
        let mut target = to("a", protocol);
        let of = |who| Filters {
            request: changes(who),
            response: changes(who),
            ..Filters::default()
        };
        target.filters = Some(Arc::new(of("backend")));
        let door = http(
            &rig,
            table(vec![("/", action(of("route"), vec![(1, Some(target))]))]),
        )
        .await;
        let mut client = Client::connect(client_version, door).await;
        for counted in [true, false] {
            let mut fields = vec![("x-a", "client"), ("x-b", "client"), ("x-c", "client")];
            fields.extend(counted.then_some(("content-length", "10")));
            let pieces = [Piece::Data("0123".into()), Piece::Data("456789".into())];
            let asked = with(request("POST", "/"), &fields);
            let answer = client.ask(asked, body(pieces)).await.unwrap();
            assert_eq!(answer.status(), 200, "{what}");
            let got = &answer.parts.headers;
            // Those of the backend are nearer to it, so they come first in an answer.
            assert_eq!(all(got, "x-a"), ["route"], "{what}");
            assert_eq!(all(got, "x-b"), ["app", "backend", "route"], "{what}");
            assert_eq!(all(got, "x-c"), [""; 0], "{what}");
            assert_eq!(whole(answer.pieces).await.data, b"ok", "{what}");
            let (parts, sent) = seen.lock().unwrap().pop().unwrap();
            let got = &parts.headers;
            assert_eq!(sent, b"0123456789", "{what}");
            assert_eq!(all(got, "x-a"), ["backend"], "{what}");
            assert_eq!(all(got, "x-b"), ["client", "route", "backend"], "{what}");
            assert_eq!(all(got, "x-c"), [""; 0], "{what}");
            let host = parts.uri.host().unwrap_or(field(got, "host"));
            assert_eq!(host, "shop", "{what}");
        }
        assert!(client.is_open(), "{what}");
    }
}

#[tokio::test]
async fn a_route_gives_its_requests_another_path_and_another_host() {
    let rig = rig("").await;
    let (app, seen) = keeping(H1).await;
    serve(&rig, "a", &[app.address]).await;
    let rewrite = |host: Option<&str>, path| Filters {
        rewrite: Some(Rewrite {
            host: host.map(str::to_owned),
            path,
        }),
        ..Filters::default()
    };
    let prefix = NewPath::Prefix {
        of: "/old".to_owned(),
        to: "/new/".to_owned(),
    };
    let whole_path = NewPath::Full("/whole".to_owned());
    let door = http(
        &rig,
        table(vec![
            ("/old", filtered(rewrite(None, Some(prefix)), "a")),
            (
                "/full",
                filtered(rewrite(Some("b.example"), Some(whole_path)), "a"),
            ),
        ]),
    )
    .await;
    for version in [H1, H2] {
        let mut client = Client::connect(version, door).await;
        for (asked, target, host) in [
            ("/old/x/y?z=1", "/new/x/y?z=1", "shop"),
            ("/full/x?z", "/whole?z", "b.example"),
        ] {
            assert_eq!(client.get(asked).await, (200, "ok".to_owned()));
            let (parts, _) = seen.lock().unwrap().pop().unwrap();
            assert_eq!(parts.uri.to_string(), target);
            assert_eq!(field(&parts.headers, "host"), host);
            assert_eq!(field(&parts.headers, "x-forwarded-host"), "shop");
        }
    }
}

#[tokio::test]
async fn a_redirect_is_answered_without_an_endpoint_and_keeps_the_connection() {
    let rig = rig("").await;
    let (app, seen) = keeping(H1).await;
    serve(&rig, "a", &[app.address]).await;
    let to_scheme = |scheme: &str| Filters {
        redirect: Some(Redirect {
            scheme: Some(scheme.to_owned()),
            status: 308,
            ..Redirect::default()
        }),
        ..Filters::default()
    };
    let mut of_backend = to("a", None);
    of_backend.filters = Some(Arc::new(Filters {
        redirect: Some(Redirect {
            host: Some("b.example".to_owned()),
            status: 302,
            ..Redirect::default()
        }),
        ..Filters::default()
    }));
    let door = http(
        &rig,
        table(vec![
            ("/secure", action(to_scheme("https"), vec![])),
            ("/back", filtered(to_scheme("http"), "a")),
            ("/back/none", action(to_scheme("http"), vec![])),
            (
                "/of-backend",
                action(Filters::default(), vec![(1, Some(of_backend))]),
            ),
        ]),
    )
    .await;
    let port = door.port();
    for version in [H1, H2] {
        let mut client = Client::connect(version, door).await;
        for (method, path, status, location) in [
            (
                "GET",
                "/secure/x?y",
                308,
                "https://shop/secure/x?y".to_owned(),
            ),
            ("HEAD", "/secure", 308, "https://shop/secure".to_owned()),
            ("POST", "/secure", 308, "https://shop/secure".to_owned()),
            ("GET", "/back/none", 308, "http://shop/back/none".to_owned()),
            (
                "GET",
                "/of-backend",
                302,
                format!("http://b.example:{port}/of-backend"),
            ),
        ] {
            let sent = if method == "POST" { data("body") } else { None };
            let length = if sent.is_some() { "4" } else { "0" };
            let asked = with(request(method, path), &[("content-length", length)]);
            let answer = client.ask(asked, sent).await.unwrap();
            let reason = answer.field("x-ebbtide-reason").to_owned();
            let got = (answer.status(), answer.field("location").to_owned(), reason);
            assert_eq!(
                got,
                (status, location, "route_redirect".to_owned()),
                "{path}"
            );
            assert!(!whole(answer.pieces).await.cut);
        }
        // It leads to where the request was, and there is something to serve.
        assert_eq!(client.get("/back/x").await, (200, "ok".to_owned()));
        assert_eq!(seen.lock().unwrap().len(), 1);
        seen.lock().unwrap().clear();
        assert!(client.is_open());
    }
}

/// A browser's question before a request is answered here, and its answers may be read by the pages that the
/// filter names. What an endpoint says of that does not count.
#[tokio::test]
async fn pages_of_other_origins_are_told_what_the_filter_says() {
    let rig = rig("").await;
    let (app, seen) = keeping(H1).await;
    serve(&rig, "a", &[app.address]).await;
    let text = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    let filters = Filters {
        cors: Some(Cors {
            origins: text(&["https://a.example", "https://*.b.example"]),
            methods: text(&["GET", "PUT"]),
            headers: text(&["*"]),
            expose: text(&["x-a"]),
            credentials: true,
            max_age: 60,
            one_label: false,
        }),
        ..Filters::default()
    };
    let mut of_backend = to("a", None);
    of_backend.filters = Some(Arc::new(filters.clone()));
    let of_backend = action(Filters::default(), vec![(1, Some(of_backend))]);
    let rules = vec![("/", filtered(filters, "a")), ("/backend", of_backend)];
    let door = http(&rig, table(rules)).await;
    let says =
        |fields: &http::HeaderMap, name: &str| all(fields, &format!("access-control-{name}"));
    for (version, path) in [(H1, "/"), (H2, "/"), (H1, "/backend"), (H2, "/backend")] {
        let mut client = Client::connect(version, door).await;
        for (origin, permitted) in [("https://x.b.example", true), ("https://b.example", false)] {
            let list = |it: &str| {
                if permitted {
                    vec![it.to_owned()]
                } else {
                    Vec::new()
                }
            };
            let asked = [
                ("origin", origin),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x-z"),
            ];
            let answer = client
                .ask(with(request("OPTIONS", path), &asked), None)
                .await;
            let answer = answer.unwrap();
            assert_eq!(answer.status(), 204);
            assert_eq!(answer.field("x-ebbtide-reason"), "cors_preflight");
            let got = &answer.parts.headers;
            assert_eq!(says(got, "allow-origin"), list(origin));
            assert_eq!(says(got, "allow-methods"), list("GET, PUT"));
            assert_eq!(says(got, "allow-headers"), list("x-z"));
            assert_eq!(says(got, "allow-credentials"), list("true"));
            assert_eq!(says(got, "max-age"), list("60"));
            assert_eq!(all(got, "vary"), ["origin"]);
            assert_eq!(whole(answer.pieces).await.data, b"");
            assert_eq!(seen.lock().unwrap().len(), 0, "no endpoint was asked");
            let asked = with(request("GET", path), &[("origin", origin)]);
            let answer = client.ask(asked, None).await.unwrap();
            let got = &answer.parts.headers;
            assert_eq!(says(got, "allow-origin"), list(origin));
            assert_eq!(says(got, "expose-headers"), list("x-a"));
            assert_eq!(says(got, "allow-methods"), [""; 0]);
            assert_eq!(all(got, "vary"), ["origin"]);
            assert_eq!(whole(answer.pieces).await.data, b"ok");
            seen.lock().unwrap().clear();
        }
        // Neither asks for a page of another origin.
        let answer = client.ask(request("OPTIONS", path), None).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(whole(answer.pieces).await.data, b"ok");
        assert_eq!(client.get(path).await, (200, "ok".to_owned()));
        seen.lock().unwrap().clear();
        assert!(client.is_open());
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_gets_413_and_as_long_as_allowed_is_served() {
    let rig = rig("").await;
    let (app, seen) = keeping(H1).await;
    serve(&rig, "a", &[app.address]).await;
    let filters = Filters {
        body_size: Some(8),
        ..Filters::default()
    };
    let door = http(&rig, table(vec![("/", filtered(filters, "a"))])).await;
    let chunked = "Transfer-Encoding: chunked";
    for (framing, sent, status) in [
        ("Content-Length: 8", "01234567", 200),
        ("Content-Length: 9", "012345678", 413),
        // The body is not waited for.
        ("Content-Length: 9\r\nExpect: 100-continue", "", 413),
        ("Content-Length: 99999999", "", 413),
        (chunked, "4\r\n0123\r\n4\r\n4567\r\n0\r\n\r\n", 200),
        (chunked, "4\r\n0123\r\n5\r\n45678\r\n0\r\n\r\n", 413),
        (chunked, "4\r\n0123\r\n5\r\n45678\r\n", 413),
    ] {
        let close = if sent.is_empty() {
            ""
        } else {
            "Connection: close\r\n"
        };
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{close}{framing}\r\n\r\n");
        let (text, _) = raw(door, (head + sent).as_bytes()).await;
        let begins = format!("HTTP/1.1 {status} ");
        assert!(text.starts_with(&begins), "{framing} {sent:?}: {text}");
        assert_eq!(text.contains("body_too_large"), status == 413);
        let reached = seen.lock().unwrap().drain(..).count();
        assert_eq!(reached == 1, status == 200, "{framing} {sent:?}");
    }
    // A part that comes later, when the endpoint has the beginning.
    for version in [H1, H2] {
        let mut client = Client::connect(version, door).await;
        let (send, pieces) = tokio::sync::mpsc::channel(4);
        send.send(Piece::Data("0123".into())).await.unwrap();
        let late = async {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            send.send(Piece::Data("45678".into())).await.unwrap();
        };
        let asked = client.ask(request("POST", "/"), Some(pieces));
        let (answer, ()) = tokio::join!(asked, late);
        let answer = answer.unwrap();
        let got = (answer.status(), answer.field("x-ebbtide-reason"));
        assert_eq!(got, (413, "body_too_large"), "{version:?}");
    }
}

#[tokio::test]
async fn a_client_from_elsewhere_gets_403() {
    let rig = rig("").await;
    let (app, seen) = keeping(H1).await;
    serve(&rig, "a", &[app.address]).await;
    let from = |range: &str| Filters {
        source_ranges: vec![range.parse().unwrap()],
        ..Filters::default()
    };
    let rules = vec![
        ("/here", filtered(from("127.0.0.0/8"), "a")),
        ("/there", filtered(from("192.0.2.0/24"), "a")),
    ];
    let door = http(&rig, table(rules)).await;
    let mut client = Client::connect(H1, door).await;
    for _ in 0..2 {
        let answer = client.ask(request("GET", "/there"), None).await.unwrap();
        let got = (answer.status(), answer.field("x-ebbtide-reason"));
        assert_eq!(got, (403, "source_not_allowed"));
    }
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(client.get("/here").await, (200, "ok".to_owned()));
}
