//! A terminating endpoint leaves rotation, its connections drain, and what is lost with it is replayed.

use ebbtide::demo::client::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{Ep, Rig, Scripted, eventually, soon};

/// Answers every request with `body`, keep-alive.
async fn answering(body: &'static str) -> Scripted {
    Scripted::start(move |mut stream: TcpStream, _| async move {
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buf).await {
            let requests = buf[..n].windows(4).filter(|w| w == b"\r\n\r\n").count();
            for _ in 0..requests {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// The contract's first promise, for a reader of `routing.rs`: once the change is in force, nothing reaches the endpoint.
#[tokio::test]
async fn a_terminating_endpoint_gets_nothing_more() {
    let (a, b) = (answering("a").await, answering("b").await);
    let rig = Rig::start("").await;
    let (ep_a, ep_b) = (Ep::new("a", a.address), Ep::new("b", b.address));
    rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
    rig.usable(2).await;
    let mut client = Client::connect(rig.web()).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 2 {
        seen.insert(soon("an answer", client.exchange("GET", "/", "", b"")).await.unwrap().text().into_owned());
    }
    rig.endpoints(&[ep_a.terminating(), ep_b]);
    eventually("a drain", || rig.running().admin.drains.records().len() == 1).await;
    for _ in 0..200 {
        let answer = soon("an answer", client.exchange("GET", "/", "", b"")).await.unwrap();
        assert_eq!(answer.text(), "b");
    }
}
