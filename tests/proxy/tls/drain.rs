//! The promises of a drain, for clients that speak TLS.

use std::time::Duration;

use ebbtide::command::demo::fleet::{Fleet, Options, Tell};
use ebbtide::command::demo::load::Load;
use ebbtide::command::demo::proxy::{Proxy, config};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::proxy::play::{Act, OK, Play};
use crate::proxy::scripted::Scripted;
use crate::proxy::tls::handshake::ask;
use crate::proxy::tls::{Authority, open, rig, tunnel};
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::wait::{eventually, soon};

#[tokio::test]
async fn a_rolling_update_costs_no_client_a_request_or_its_connection() {
    let options = Options {
        replicas: 5,
        tell: Tell::PodAndSlice,
        signal: Signal::KILL,
        signal_offset: -50..=50,
        ..Options::new(BINARY)
    };
    let mut fleet = Fleet::start(options).await.unwrap();
    let (folder, manifests) = (fleet.folder().to_owned(), fleet.manifests());
    Authority::new().sign(&["a.example"]).write(&folder, "a");
    let tls = "port: http, tls: {certificates: [{certificate: a.crt, key: a.key}]}}";
    let text = config(&manifests, "workers: 2").replace("port: http}", tls);
    let proxy = Proxy::start(BINARY.as_ref(), &folder, &text, &["web"])
        .await
        .unwrap();
    eventually("five ready endpoints", async || {
        let status = proxy.page("/api/v1/status").await.unwrap();
        status.text().matches("\"state\":\"ready\"").count() >= 5
    })
    .await;
    let clear = tunnel(proxy.web().unwrap()).await;
    let load = Load {
        timeout: Duration::from_secs(180),
        ..Load::new(clear, "/slow?ms=3", Duration::from_secs(6))
    };
    let stop = CancellationToken::new();
    let update = async {
        for old in fleet.ids() {
            fleet.replace(old, "v2").await.unwrap();
        }
    };
    let (report, ()) = tokio::join!(load.run(&stop, |_| {}), update);
    assert_eq!(report.failed, 0, "{report}\n{}", proxy.log_tail());
    assert_eq!((report.sent, report.sockets), (3_000, 8), "{report}");
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
