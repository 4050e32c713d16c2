//! The promises of a drain, for clients that speak TLS.

use ebbtide::command::demo::proxy::{Proxy, config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::proxy::play::{Act, OK, Play};
use crate::proxy::rollout::{five, roll_five};
use crate::proxy::scripted::Scripted;
use crate::proxy::tls::handshake::ask;
use crate::proxy::tls::{Authority, open, rig, tunnel};
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::wait::{eventually, soon};

#[tokio::test]
async fn a_rolling_update_costs_no_client_a_request_or_its_connection() {
    let mut fleet = five().await;
    let (folder, manifests) = (fleet.folder().to_owned(), fleet.manifests());
    Authority::new().sign(&["a.example"]).write(&folder, "a");
    let tls = "port: http, tls: {certificates: [{certificate: a.crt, key: a.key}]}}";
    let text = config(&manifests, "workers: 2").replace("port: http}", tls);
    let proxy = Proxy::start(BINARY.as_ref(), &folder, &text, &["web"])
        .await
        .unwrap();
    let clear = async { tunnel(proxy.web().unwrap()).await };
    roll_five(&mut fleet, &proxy, clear, |_| {}).await;
    let name = "ebbtide_tls_handshakes_total";
    assert_eq!(proxy.metric(name, |_| true).await.unwrap(), 8.0);
}

#[tokio::test]
async fn a_drain_closes_no_keep_alive_connection_and_a_lost_request_is_replayed() {
    let rig = rig("http", "", "").await;
    let first = Play::start(|_| Act::Hang).await;
    let second = Play::start(|_| Act::Say(OK.into())).await;
    rig.endpoints(&[Ep::new("a", first.address())]);
    rig.usable(1).await;
    let mut stream = open(rig.web()).await;
    let asked = async {
        assert_eq!(ask(&mut stream).await.unwrap(), OK);
        assert_eq!(ask(&mut stream).await.unwrap(), OK);
    };
    let loses = async {
        eventually("a request", async || first.heads() == 1).await;
        let (a, b) = (
            Ep::new("a", first.address()),
            Ep::new("b", second.address()),
        );
        rig.endpoints(&[a, b.clone()]);
        rig.usable(2).await;
        rig.endpoints(&[b]);
        rig.usable(1).await;
        first.drop_connections();
    };
    tokio::join!(asked, loses);
    assert_eq!((first.heads(), second.heads()), (1, 2));
}

/// Echoes. After `flood` it sends without end.
async fn talkative() -> Scripted {
    Scripted::start(|mut stream, _| async move {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            if buffer[..n].starts_with(b"flood") {
                while stream.write_all(&[7; 4096]).await.is_ok() {}
                return;
            }
            if stream.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn at_the_drain_deadline_a_quiet_connection_ends_cleanly_and_a_busy_one_is_cut() {
    for (word, is_clean) in [("quiet", true), ("flood", false)] {
        let rig = rig("tcp", "", "timeouts: {drain: 2s}").await;
        let endpoint = talkative().await;
        rig.endpoints(&[Ep::new("e", endpoint.address)]);
        rig.usable(1).await;
        let mut stream = open(rig.web()).await;
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut first = [0; 5];
        soon("an answer", stream.read_exact(&mut first))
            .await
            .unwrap();
        rig.endpoints(&[]);
        let read = soon("the end", async {
            let mut waste = vec![0; 64 << 10];
            loop {
                match stream.read(&mut waste).await {
                    Ok(0) => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            }
        })
        .await;
        assert_eq!(read.is_ok(), is_clean, "{word}: {read:?}");
        assert_eq!(rig.receipts().len(), 1);
    }
}
