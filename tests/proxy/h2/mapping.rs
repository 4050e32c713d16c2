//! How a request of HTTP/2 becomes one of HTTP/1.1 (RFC 9113 section 8): the exact bytes that an
//! endpoint gets, or how the request is refused. No byte of a refused request reaches an endpoint as
//! part of a whole request.

use std::fmt::Write;

use crate::proxy::h2::raw::{GOAWAY, Raw, status};
use crate::proxy::play::{Act, OK, Play};
use crate::support::folder::Ep;
use crate::support::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, block};
use crate::support::rig::Rig;

type Fields = Vec<(&'static [u8], &'static [u8])>;

/// What becomes of a request.
#[derive(Debug, PartialEq)]
enum Fate {
    /// The endpoint gets exactly these bytes, and the client 200.
    Gets(String),
    /// The client gets this status, and the endpoint nothing.
    Status(u16),
    /// The stream is reset.
    Reset,
    /// The connection ends: the field block itself is not one of HTTP/2.
    Away,
}
use Fate::{Away, Gets, Reset, Status};

/// A request that is sent, and its fate.
struct Row {
    what: &'static str,
    fields: Fields,
    /// What follows the head in a frame of DATA. `None`: the head ends the stream.
    data: Option<&'static [u8]>,
    trailers: Option<Fields>,
    fate: Fate,
}

/// The pseudo fields of a request, with one of them replaced.
fn pseudo(name: &'static str, value: &'static [u8]) -> Fields {
    let mut fields: Fields = vec![
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"shop"),
    ];
    fields.retain(|field| field.0 != name.as_bytes());
    fields.push((name.as_bytes(), value));
    fields
}

/// A GET with these fields.
fn and(more: &[(&'static [u8], &'static [u8])]) -> Fields {
    [pseudo(":authority", b"shop"), more.to_vec()].concat()
}

/// A POST with these fields.
fn post(more: &[(&'static [u8], &'static [u8])]) -> Fields {
    [pseudo(":method", b"POST"), more.to_vec()].concat()
}

/// The head that an endpoint gets, and what follows it.
fn head(line: &str, fields: &str, host: &str, behind: &str, body: &str) -> Fate {
    let mut text = format!("{line} HTTP/1.1\r\n");
    for field in fields.split('|').filter(|field| !field.is_empty()) {
        let _ = write!(text, "{field}\r\n");
    }
    let _ = write!(
        text,
        "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: {host}\r\n{behind}\r\n{body}"
    );
    Gets(text)
}

fn row(what: &'static str, fields: Fields, fate: Fate) -> Row {
    Row {
        what,
        fields,
        data: None,
        trailers: None,
        fate,
    }
}

impl Row {
    fn with_data(self, data: &'static [u8]) -> Self {
        let data = Some(data);
        Self { data, ..self }
    }

    fn with_trailers(self, trailers: &[(&'static [u8], &'static [u8])]) -> Self {
        let trailers = Some(trailers.to_vec());
        Self { trailers, ..self }
    }
}

/// What a plain GET with this field in the middle becomes.
fn line(field: &str) -> Fate {
    head("GET /", &format!("host: shop|{field}"), "shop", "", "")
}

fn hosts() -> Vec<Row> {
    let own = || head("GET /", "host: shop", "shop", "", "");
    vec![
        row("a plain request", and(&[]), own()),
        row("the same in Host", and(&[(b"host", b"shop")]), own()),
        row("the same in another case", and(&[(b"host", b"SHOP")]), head("GET /", "host: SHOP", "SHOP", "", "")),
        row("another one in Host", and(&[(b"host", b"evil")]), Status(400)),
        row("two of Host", and(&[(b"host", b"shop"), (b"host", b"evil")]), Status(400)),
        row("twice the same Host", and(&[(b"host", b"shop"), (b"host", b"shop")]), Status(400)),
        row("a user", pseudo(":authority", b"u@shop"), Status(400)),
        row("a port", pseudo(":authority", b"shop:80"), head("GET /", "host: shop:80", "shop:80", "", "")),
        row("two ports", pseudo(":authority", b"shop:80:81"), Reset),
        row("no host at all", pseudo(":authority", b"shop").into_iter().filter(|it| it.0 != b":authority").collect(), Status(400)),
        row("an empty authority", pseudo(":authority", b""), Reset),
        row("a blank in the authority", pseudo(":authority", b"a b"), Reset),
        row("a line in the authority", pseudo(":authority", b"shop\r\nx: y"), Reset),
        row(
            "Host alone",
            vec![(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b"host", b"shop")],
            own(),
        ),
        row(
            "an empty Host",
            vec![(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b"host", b"")],
            Gets("GET / HTTP/1.1\r\nhost: \r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\r\n".into()),
        ),
    ]
}

fn targets() -> Vec<Row> {
    let path = |path: &'static [u8]| pseudo(":path", path);
    let gets = |line: &str| head(line, "host: shop", "shop", "", "");
    let mut options = pseudo(":path", b"*");
    options[0].1 = b"OPTIONS";
    vec![
        row("a query", path(b"/a?b=c&d"), gets("GET /a?b=c&d")),
        row("two slashes", path(b"//evil/"), gets("GET //evil/")),
        row("dots", path(b"/../a"), gets("GET /../a")),
        row("OPTIONS *", options, gets("OPTIONS *")),
        row("GET *", path(b"*"), Status(400)),
        row("an empty path", path(b""), Reset),
        row("a path without a slash", path(b"evil"), Reset),
        row("an absolute path", path(b"http://evil/"), Reset),
        row("a blank", path(b"/ HTTP/1.1"), Reset),
        row("a line", path(b"/ HTTP/1.1\r\nx: y"), Reset),
        row("NUL", path(b"/\0"), Reset),
        row("a tab", path(b"/\t"), Reset),
        row("DEL", path(b"/\x7f"), Reset),
        row("a byte outside of ASCII", path(b"/\xc3\xa9"), Status(400)),
        row("a fragment", path(b"/a#b"), gets("GET /a")),
        row(
            "a method with a blank",
            pseudo(":method", b"GET / HTTP/1.1"),
            Away,
        ),
        row(
            "a method with a line",
            pseudo(":method", b"GET\r\nx:"),
            Away,
        ),
        row("an empty method", pseudo(":method", b""), Away),
        row(
            "an unknown method",
            pseudo(":method", b"BREW"),
            gets("BREW /"),
        ),
        row("another scheme", pseudo(":scheme", b"ftp"), gets("GET /")),
        row(
            "CONNECT",
            vec![(b":method", b"CONNECT"), (b":authority", b"shop:443")],
            Status(501),
        ),
        row(
            "CONNECT with a path",
            vec![
                (b":method", b"CONNECT"),
                (b":authority", b"shop:443"),
                (b":path", b"/"),
            ],
            Reset,
        ),
        row(
            "extended CONNECT for another protocol",
            [
                pseudo(":method", b"CONNECT"),
                vec![(b":protocol", b"connect-udp")],
            ]
            .concat(),
            Status(501),
        ),
        row(
            ":protocol of a GET",
            [pseudo(":path", b"/"), vec![(b":protocol", b"websocket")]].concat(),
            Reset,
        ),
    ]
}

fn fields() -> Vec<Row> {
    let one = |name: &'static [u8], value: &'static [u8]| and(&[(name, value)]);
    vec![
        row("a field", one(b"x-a", b"b"), line("x-a: b")),
        row(
            "bytes outside of ASCII",
            one(b"x-a", b"b\xe9c"),
            line("x-a: b\u{fffd}c"),
        ),
        row("an empty value", one(b"x-a", b""), line("x-a: ")),
        row(
            "crumbs",
            and(&[(b"cookie", b"a=b"), (b"x-a", b"b"), (b"cookie", b"c=d")]),
            line("x-a: b|cookie: a=b; c=d"),
        ),
        row(
            "te: trailers",
            one(b"te", b"trailers"),
            head(
                "GET /",
                "host: shop|TE: trailers",
                "shop",
                "Connection: TE\r\n",
                "",
            ),
        ),
        row("another te", one(b"te", b"gzip"), Reset),
        row("a carriage return", one(b"x-a", b"b\rc"), Away),
        row("a line feed", one(b"x-a", b"b\nc"), Away),
        row("a line", one(b"x-a", b"b\r\ncontent-length: 5"), Away),
        row("NUL in a value", one(b"x-a", b"b\0c"), Away),
        row("a line in a crumb", one(b"cookie", b"b\r\nx: y"), Away),
        row("an upper-case name", one(b"X-A", b"b"), Away),
        row("a blank in a name", one(b"x a", b"b"), Away),
        row("a colon in a name", one(b"x:a", b"b"), Away),
        row("a line in a name", one(b"x\r\na", b"b"), Away),
        row("an empty name", one(b"", b"b"), Away),
        row("connection", one(b"connection", b"close"), Reset),
        row(
            "connection that lists a field",
            one(b"connection", b"x-forwarded-for"),
            Reset,
        ),
        row("keep-alive", one(b"keep-alive", b"a"), Reset),
        row("proxy-connection", one(b"proxy-connection", b"a"), Reset),
        row(
            "transfer-encoding",
            post(&[(b"transfer-encoding", b"chunked")]),
            Reset,
        )
        .with_data(b"0\r\n\r\n"),
        row("upgrade", one(b"upgrade", b"h2c"), Reset),
        row(
            "http2-settings",
            one(b"http2-settings", b"AAA"),
            head("GET /", "host: shop", "shop", "", ""),
        ),
        row(
            "a claim about the client",
            one(b"x-forwarded-for", b"192.0.2.1"),
            head("GET /", "host: shop", "shop", "", ""),
        ),
        row(
            "a field that some read as that",
            one(b"x_forwarded_for", b"192.0.2.1"),
            head("GET /", "host: shop", "shop", "", ""),
        ),
        row(
            "a pseudo field behind the others",
            [and(&[(b"x-a", b"b")]), vec![(b":path", b"/b")]].concat(),
            Reset,
        ),
        row(
            "two paths",
            [and(&[]), vec![(b":path", b"/b")]].concat(),
            Reset,
        ),
        row(
            "two authorities",
            [and(&[]), vec![(b":authority", b"evil")]].concat(),
            Reset,
        ),
        row(
            "an unknown pseudo field",
            [vec![(&b":x"[..], &b"y"[..])], and(&[])].concat(),
            Away,
        ),
        row(
            "a status",
            [vec![(&b":status"[..], &b"200"[..])], and(&[])].concat(),
            Reset,
        ),
        row("no method", and(&[])[1..].to_vec(), Reset),
    ]
}

fn bodies() -> Vec<Row> {
    let chunked = |body| {
        head(
            "POST /",
            "host: shop|Transfer-Encoding: chunked",
            "shop",
            "",
            body,
        )
    };
    let counted = || {
        head(
            "POST /",
            "host: shop|content-length: 5",
            "shop",
            "",
            "hello",
        )
    };
    vec![
        row("no length", post(&[]), chunked("5\r\nhello\r\n0\r\n\r\n")).with_data(b"hello"),
        row("a length", post(&[(b"content-length", b"5")]), counted()).with_data(b"hello"),
        row(
            "zeros before a length",
            post(&[(b"content-length", b"005")]),
            counted(),
        )
        .with_data(b"hello"),
        row(
            "a length of nothing",
            post(&[(b"content-length", b"0")]),
            head("POST /", "host: shop|content-length: 0", "shop", "", ""),
        ),
        row("too little", post(&[(b"content-length", b"6")]), Reset).with_data(b"hello"),
        row("too much", post(&[(b"content-length", b"4")]), Reset).with_data(b"hello"),
        row(
            "a length and no body",
            post(&[(b"content-length", b"5")]),
            Reset,
        ),
        row(
            "two lengths",
            post(&[(b"content-length", b"5"), (b"content-length", b"6")]),
            Reset,
        )
        .with_data(b"hello"),
        row(
            "twice the same length",
            post(&[(b"content-length", b"5"), (b"content-length", b"5")]),
            Status(400),
        )
        .with_data(b"hello"),
        row(
            "a list of lengths",
            post(&[(b"content-length", b"5, 5")]),
            Reset,
        )
        .with_data(b"hello"),
        row("a sign", post(&[(b"content-length", b"+5")]), Reset).with_data(b"hello"),
        row(
            "trailers",
            post(&[]),
            chunked("5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"),
        )
        .with_data(b"hello")
        .with_trailers(&[(b"x-sum", b"1")]),
        row("a length as a trailer", post(&[]), Status(400))
            .with_data(b"hello")
            .with_trailers(&[(b"content-length", b"1")]),
        row(
            "a pseudo field as a trailer",
            post(&[]),
            chunked("5\r\nhello\r\n0\r\n\r\n"),
        )
        .with_data(b"hello")
        .with_trailers(&[(b":path", b"/b")]),
        row("a line in a trailer", post(&[]), Away)
            .with_data(b"hello")
            .with_trailers(&[(b"x", b"1\r\n\r\nGET /")]),
    ]
}

/// Sends a request on a connection of its own, and returns its fate.
async fn fate(rig: &Rig, row: &Row, play: &Play) -> Fate {
    let before = play.requests().len();
    let mut raw = Raw::connect(rig.web()).await;
    let ends = |last: bool| if last { END_STREAM } else { 0 };
    let head = block(&row.fields);
    raw.send(HEADERS, END_HEADERS | ends(row.data.is_none()), 1, &head)
        .await;
    if let Some(data) = row.data {
        raw.send(DATA, ends(row.trailers.is_none()), 1, data).await;
    }
    if let Some(trailers) = &row.trailers {
        raw.headers(1, trailers, true).await;
    }
    let frame = raw
        .until(row.what, |it| {
            matches!(it.kind, HEADERS | RST_STREAM | GOAWAY)
        })
        .await;
    let got = play.requests().split_off(before);
    match frame.kind {
        HEADERS if status(&frame.payload) == 200 => {
            assert_eq!(got.len(), 1, "{}", row.what);
            Gets(String::from_utf8_lossy(&got[0]).into_owned())
        }
        kind => {
            assert_eq!(got, Vec::<Vec<u8>>::new(), "{}", row.what);
            match kind {
                HEADERS => Status(status(&frame.payload)),
                RST_STREAM => Reset,
                _ => Away,
            }
        }
    }
}

#[tokio::test]
async fn an_endpoint_gets_exactly_these_bytes_or_none() {
    let play = Play::start(|_| Act::Say(OK.into())).await;
    let rig = Rig::with_protocol("http", "").await;
    rig.endpoints(&[Ep::new("a", play.address())]);
    rig.usable(1).await;
    let mut wrong = String::new();
    for row in [hosts(), targets(), fields(), bodies()]
        .into_iter()
        .flatten()
    {
        let fate = fate(&rig, &row, &play).await;
        if fate != row.fate {
            let _ = write!(
                wrong,
                "{}:\n  {:?}\n  instead of {:?}\n",
                row.what, fate, row.fate
            );
        }
    }
    assert_eq!(wrong, "");
}
