//! How a connection is known for HTTP/2: by its preface, wherever the network splits it, and only at
//! its beginning.

use crate::proxy::h2::app::{App, Call, Version, rig};
use crate::proxy::h2::raw::Raw;
use crate::support::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, block, frame, get,
};
use crate::support::wait::soon;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn ok(call: Call) {
    call.reply.say("ok");
}

#[tokio::test]
async fn the_preface_is_known_wherever_it_is_split() {
    let headers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&get("/")));
    let all = [PREFACE, &frame(SETTINGS, 0, 0, b""), &headers].concat();
    for (listener, endpoint) in [
        ("http", Version::H1),
        ("h2c", Version::H2),
        ("auto", Version::H2),
    ] {
        let app = App::start(endpoint, ok).await;
        let rig = rig(listener, None, &[app.ep("a")], "").await;
        for split in 1..=PREFACE.len() + 1 {
            let stream = TcpStream::connect(rig.web()).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut raw = Raw::new(stream);
            raw.stream.write_all(&all[..split]).await.unwrap();
            // The proxy reads the first part alone.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            raw.stream.write_all(&all[split..]).await.unwrap();
            let what = format!("{listener}: the answer, split at {split}");
            let data = raw.until(&what, |it| it.kind == DATA).await;
            assert_eq!(data.payload, b"ok", "{what}");
        }
        assert_eq!(app.calls(), PREFACE.len() + 1);
    }
}

/// Behind a request of HTTP/1, the preface is a request that is refused.
#[tokio::test]
async fn the_preface_is_known_at_the_beginning_only() {
    let app = App::start(Version::H1, ok).await;
    for head in [
        &["GET / HTTP/1.1\r\nHost: shop\r\n\r\n"][..],
        &["GET / HT", "TP/1.1\r\nHost: shop\r\n\r\n"],
    ] {
        let rig = rig("http", None, &[app.ep("a")], "").await;
        let mut stream = TcpStream::connect(rig.web()).await.unwrap();
        for part in head {
            stream.write_all(part.as_bytes()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok") && !answer.ends_with(b"0\r\n\r\n") {
            soon("an answer", stream.read_buf(&mut answer))
                .await
                .unwrap();
        }
        stream.write_all(PREFACE).await.unwrap();
        let mut rest = Vec::new();
        soon("the end", stream.read_to_end(&mut rest))
            .await
            .unwrap();
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.starts_with("HTTP/1.1 505"), "{head:?}: {rest}");
    }
}
