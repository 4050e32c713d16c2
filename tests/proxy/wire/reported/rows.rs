//! The rows of tests/REPORTS.md.

use super::*;
use Replay::{Answer, Request, Scene};
use Verdict::{Fixed, Holds, OnPurpose};

const GET_IT: &str = "GET {} HTTP/1.1\r\nHost: a\r\n\r\n";
const HEAD_IT: &str = "HEAD {} HTTP/1.1\r\nHost: a\r\n\r\n";
const POST_IT: &str = "POST {} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok";

/// An answer that arrives as these bytes.
fn arrives(ask: &'static str, answer: &str, bytes: &str) -> Replay {
    Answer(ask, answer.into(), None, Gets::Bytes(bytes.into()))
}

/// An answer that arrives as it is.
fn passes(ask: &'static str, answer: &str) -> Replay {
    arrives(ask, answer, answer)
}

fn refused(answer: &str, reason: &'static str) -> Replay {
    Answer(GET_IT, answer.into(), None, Gets::Refused(reason))
}

macro_rules! scene {
    ($name:ident) => {
        Scene(|| Box::pin(scenes::$name()))
    };
}

pub(super) fn rows() -> Vec<Report> {
    let mut rows = Vec::new();
    let mut add = |of, situation, verdict, replay| {
        rows.push(Report {
            of,
            situation,
            verdict,
            replay,
        });
    };
    answers(&mut add);
    requests(&mut add);
    connections(&mut add);
    rows
}

type Add<'a> = dyn FnMut(&'static str, &'static str, Verdict, Replay) + 'a;

fn answers(add: &mut Add<'_>) {
    add(
        "haproxy/haproxy#1997",
        "a 426 with `Connection: upgrade` becomes a 502",
        Holds,
        arrives(
            GET_IT,
            "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\nConnection: upgrade\r\n\r\n",
        ),
    );
    add(
        "haproxy/haproxy#2677",
        "a response with `Transfer-Encoding: chunked` twice becomes a 502",
        OnPurpose("a body could be chunked twice, and HAProxy refuses it by default"),
        refused(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "bad_transfer_encoding",
        ),
    );
    add(
        "haproxy/haproxy#2806",
        "a response with a space in a field's name becomes a 502",
        OnPurpose("readers differ in where such a name ends"),
        refused(
            "HTTP/1.1 200 OK\r\nA b: c\r\nContent-Length: 2\r\n\r\nok",
            "bad_header",
        ),
    );
    add(
        "haproxy/haproxy#176",
        "bytes behind a response spoil the next one on the connection",
        Holds,
        arrives(
            GET_IT,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok<html>more",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
    );
    add(
        "nginx/nginx#723",
        "a malformed status line makes the client wait for the timeout",
        Holds,
        refused(
            "HTTP/1.1: 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "bad_status_line",
        ),
    );
    add(
        "nginx/nginx#546",
        "a response with Content-Length and Transfer-Encoding becomes a 502",
        OnPurpose("it can be read in two ways"),
        refused(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 12\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "length_with_transfer_encoding",
        ),
    );
    add(
        "envoyproxy/envoy#9016",
        "the same, in the other order, with a length that is not 0",
        OnPurpose("it can be read in two ways"),
        refused(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "length_with_transfer_encoding",
        ),
    );
    add(
        "envoyproxy/envoy#31009",
        "a response with a folded field becomes a 502",
        OnPurpose("nginx refuses it too, and some readers end the value at the fold"),
        refused(
            "HTTP/1.1 200 OK\r\nContent-Security-Policy: a;\r\n\tb\r\nContent-Length: 2\r\n\r\nok",
            "obs_fold",
        ),
    );
    add(
        "MarSeventh/CloudFlare-ImgBed#549",
        "the same Content-Length twice becomes a 502 (nginx)",
        Fixed,
        arrives(
            GET_IT,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
    );
    add(
        "linkerd/linkerd#1468",
        "two Content-Length that contradict each other are forwarded",
        Holds,
        refused(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
            "duplicate_content_length",
        ),
    );
    add(
        "encode/httpx#1378",
        "a server that ends its head with a line feed alone cannot be used",
        Fixed,
        arrives(
            GET_IT,
            "HTTP/1.1 200 OK\r\nX-Frame-Options: sameorigin\r\nContent-Length: 2\r\n\nok",
            "HTTP/1.1 200 OK\r\nX-Frame-Options: sameorigin\r\nContent-Length: 2\r\n\r\nok",
        ),
    );
    add(
        "boostorg/beast#1761",
        "a server whose lines all end in a line feed alone cannot be used",
        Fixed,
        arrives(
            GET_IT,
            "HTTP/1.1 200 OK\nContent-Type: text/plain\nContent-Length: 2\n\nok",
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok",
        ),
    );
    add(
        "mitmproxy/mitmproxy#15",
        "a status line without a reason is discarded",
        Holds,
        arrives(
            GET_IT,
            "HTTP/1.0 200\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
        ),
    );
    add(
        "envoyproxy/envoy#9559",
        "the reason of a status line is replaced",
        Holds,
        passes(
            GET_IT,
            "HTTP/1.1 403 Invalid Requestor ID and Scope\r\nContent-Length: 0\r\n\r\n",
        ),
    );
    add(
        "envoyproxy/envoy#10566",
        "`Upgrade: h2` beside chunks in a 200 spoils the response",
        Holds,
        arrives(
            GET_IT,
            "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: h2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
    );
    add(
        "envoyproxy/envoy#16071",
        "a 304 without a length gets `Transfer-Encoding: chunked`",
        Holds,
        passes(GET_IT, "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
    );
    add(
        "envoyproxy/envoy#9274",
        "a 304 with a body spoils what follows",
        Holds,
        arrives(
            GET_IT,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
        ),
    );
    add(
        "sozu-proxy/sozu#1049",
        "the chunks of a 304 spoil the next response",
        Holds,
        arrives(
            GET_IT,
            "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
    );
    add(
        "envoyproxy/envoy#5554",
        "a 204 gets `Content-Length: 0`",
        Holds,
        passes(GET_IT, "HTTP/1.1 204 No Content\r\nA: b\r\n\r\n"),
    );
    add(
        "linkerd/linkerd#2166",
        "the Content-Length of a 204 is forwarded or complained of",
        Holds,
        arrives(
            GET_IT,
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ),
    );
    add(
        "apache/trafficserver#25",
        "a 204 to a POST closes the client's connection",
        Holds,
        arrives(
            POST_IT,
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ),
    );
    add(
        "h2o/h2o#274",
        "a 204, or a stray line end behind an empty body, makes the client wait",
        Holds,
        arrives(
            GET_IT,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
    );
    let large = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 205844\r\n\r\n{}",
        "x".repeat(205_844)
    );
    add(
        "linkerd/linkerd#1071",
        "a long counted response loses its Content-Length",
        Holds,
        passes(GET_IT, &large),
    );
    add(
        "traefik/traefik#8060",
        "a short counted response becomes chunked",
        Holds,
        passes(
            GET_IT,
            "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"UP\"}",
        ),
    );
    add(
        "linkerd/linkerd#1978",
        "a response of HTTP/1.0 that its end delimits makes the client wait",
        Holds,
        Answer(
            GET_IT,
            "HTTP/1.0 200 OK\r\nA: b\r\n\r\nok".into(),
            Some(End::Fin),
            Gets::Bytes(
                "HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
                    .into(),
            ),
        ),
    );
    add(
        "chimurai/http-proxy-middleware#1121",
        "a response to HEAD gets `Content-Length: 0`",
        Holds,
        passes(
            HEAD_IT,
            "HTTP/1.1 200 OK\r\nContent-Length: 1488324\r\n\r\n",
        ),
    );
    let chunks = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        format!("10000\r\n{}\r\n", "x".repeat(65_536)).repeat(16)
    );
    add(
        "sozu-proxy/sozu#194",
        "of 1 MB in chunks only the beginning arrives",
        Holds,
        passes(GET_IT, &chunks),
    );
    add(
        "traefik/traefik#1805",
        "trailers that no Trailer field announces are lost",
        Holds,
        passes(
            GET_IT,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nGrpc-Status: 0\r\n\r\n",
        ),
    );
    add(
        "haproxy/haproxy#27",
        "100 Continue is lost, or taken for the response",
        Holds,
        passes(
            POST_IT,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
    );
    add(
        "openresty/openresty#351",
        "a 500 to a POST that may not be sent again is replaced",
        Holds,
        passes(
            POST_IT,
            "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nmine",
        ),
    );
}

fn requests(add: &mut Add<'_>) {
    add(
        "haproxy/haproxy#2237",
        "an empty Content-Length is forwarded",
        Holds,
        Request(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
            Sees::Refused("400", "bad_content_length"),
        ),
    );
    add(
        "envoyproxy/envoy#11398",
        "a request with Content-Length and Transfer-Encoding is refused",
        OnPurpose("it can be read in two ways, and is the usual way to smuggle"),
        Request(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Sees::Refused("400", "length_with_transfer_encoding"),
        ),
    );
    add(
        "haproxy/haproxy#2997",
        "a `\\` in the target is forwarded, and the server refuses it",
        OnPurpose("every server reads it alike; which targets exist is the application's choice"),
        Request(
            "GET /a?b\\share HTTP/1.1\r\nHost: a\r\n\r\n",
            Sees::Text("GET /a?b\\share HTTP/1.1\r\n"),
        ),
    );
    add(
        "traefik/traefik#5330",
        "the case of `Sec-WebSocket-Key` changes, and the server refuses it",
        Holds,
        Request(
            "GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: x\r\nsec-websocket-version: 13\r\n\r\n",
            Sees::Text("\r\nSec-WebSocket-Key: x\r\nsec-websocket-version: 13\r\n"),
        ),
    );
    add(
        "caddyserver/caddy#1710",
        "an upload in chunks arrives without its end",
        Holds,
        Request(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
            Sees::Text("\r\n\r\n3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n"),
        ),
    );
    add(
        "caddyserver/caddy#5992",
        "an offer of h2c reaches a server that fails on it",
        Holds,
        Request(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            Sees::NotText("h2c"),
        ),
    );
}

fn connections(add: &mut Add<'_>) {
    add(
        "haproxy/haproxy#1064",
        "a chunk over 2 GB becomes a 502",
        Holds,
        scene!(a_chunk_over_2_gb),
    );
    add(
        "haproxy/haproxy#3316",
        "a refusal instead of 100 Continue ends in a reset",
        Holds,
        scene!(a_refusal_instead_of_100_continue),
    );
    add(
        "http-party/node-http-proxy#1219",
        "a client that waits for 100 Continue waits for ever",
        Holds,
        scene!(a_client_waits_for_100_continue),
    );
    add(
        "haproxy/haproxy#511",
        "a health check by PROXY v2 LOCAL is refused, or its addresses are believed",
        Holds,
        scene!(a_health_check_by_proxy_v2_local),
    );
    add(
        "envoyproxy/envoy#2066",
        "an HTTP client that half-closes gets no response",
        Holds,
        scene!(an_http_client_half_closes),
    );
    add(
        "envoyproxy/envoy#2067",
        "a TCP client that half-closes gets no response",
        Holds,
        scene!(a_tcp_client_half_closes),
    );
    add(
        "traefik/traefik#11240",
        "a 101 with `connection: upgrade` in lower case makes no tunnel",
        Holds,
        scene!(a_101_in_lower_case),
    );
    add(
        "linkerd/linkerd2#8539",
        "a 200 to CONNECT with `Content-Length: 0` makes no tunnel",
        Holds,
        scene!(a_tunnel_with_a_length),
    );
    add(
        "caddyserver/caddy#6452",
        "a connection that its server has closed while idle costs a 502",
        Holds,
        scene!(a_server_closes_idle_connections),
    );
    add(
        "h2o/h2o#281",
        "the same for a POST, which cannot simply be sent again",
        Holds,
        scene!(a_post_after_a_server_closed_its_connection),
    );
    add(
        "caddyserver/caddy#5431",
        "a response that comes slowly in chunks is cut",
        Holds,
        scene!(a_response_in_slow_chunks),
    );
    add(
        "caddyserver/caddy#4247",
        "the head of an event stream waits for the first event",
        Holds,
        scene!(the_head_of_an_event_stream),
    );
    add(
        "traefik/traefik#503",
        "an event waits for the next one",
        Holds,
        scene!(events_one_by_one),
    );
    add(
        "cloudflare/pingora#935",
        "the end of a chunked upload is written twice and spoils the connection",
        Holds,
        scene!(uploads_on_one_connection),
    );
    add(
        "villadora/express-http-proxy#546",
        "a 413 before the body was read ends in a reset",
        Holds,
        scene!(a_413_before_the_body_was_read),
    );
    add(
        "traefik/traefik#8990",
        "a POST whose server was lost is sent to another one",
        Holds,
        scene!(a_post_whose_server_is_lost),
    );
    add(
        "kubernetes/ingress-nginx#7330",
        "a POST to a pod that was just deleted becomes a 502",
        Holds,
        scene!(a_post_to_a_pod_that_is_gone),
    );
    add(
        "kubernetes/ingress-nginx#7097",
        "a keep-alive client gets a 502 when its pod is replaced",
        Holds,
        scene!(a_keep_alive_client_in_a_rollout),
    );
}
