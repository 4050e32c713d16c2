//! Sessions that a client resumes: at the same process, at another one with the same certificate, and
//! nowhere where more is asked of it.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind, version};
use tokio::io::AsyncReadExt;

use crate::proxy::play::{Act, OK, Play};
use crate::proxy::tls::handshake::ask;
use crate::proxy::tls::{Authority, Pair, connect, folder, listener, speaking};
use crate::support::folder::{Ep, Folder};
use crate::support::process::Process;
use crate::support::rig::Rig;

/// A process with this certificate.
async fn process(pair: &Pair, endpoint: &Play, port: u16) -> Process {
    let folder = Folder::new();
    pair.write(folder.path(), "a");
    let (from, to) = (
        folder.path().display().to_string(),
        folder.path().to_owned(),
    );
    let text = listener("http", "", "")
        .replace("a.crt", &format!("{from}/a.crt"))
        .replace("a.key", &format!("{from}/a.key"))
        .replace(
            "'127.0.0.1:0', service",
            &format!("'127.0.0.1:{port}', service"),
        );
    let process = Process::run(&[Ep::new("e", endpoint.address())], &text, &["web"]).await;
    // The files are read once a second.
    assert!(to.join("a.crt").exists());
    std::mem::forget(folder);
    process
}

/// A request over a new connection, and how its handshake went.
async fn kind(rig: std::net::SocketAddr, config: &Arc<ClientConfig>) -> Option<HandshakeKind> {
    let mut stream = connect(rig, "a.example", config).await.ok()?;
    let answer = ask(&mut stream).await;
    answer.ok().and(stream.get_ref().1.handshake_kind())
}

fn remembering(version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut config = speaking(version);
    config.resumption = Resumption::in_memory_sessions(8);
    Arc::new(config)
}

#[tokio::test]
async fn a_session_goes_on_in_another_process_where_that_gives_no_secret_away() {
    let endpoint = Play::start(|_| Act::Say(OK.into())).await;
    let pair = Authority::new().sign(&["a.example"]);
    let (first, second) = (
        process(&pair, &endpoint, 0).await,
        process(&pair, &endpoint, 0).await,
    );
    let (full, resumed) = (HandshakeKind::Full, HandshakeKind::Resumed);
    for (version, elsewhere) in [(&version::TLS13, resumed), (&version::TLS12, full)] {
        let config = remembering(version);
        assert_eq!(kind(first.web(), &config).await, Some(full));
        assert_eq!(kind(first.web(), &config).await, Some(resumed));
        assert_eq!(kind(second.web(), &config).await, Some(elsewhere));
        assert_eq!(kind(second.web(), &config).await, Some(resumed));
    }
    let count = async |process: &Process, kind: &str| {
        let name = "ebbtide_tls_handshakes_total";
        process
            .proxy
            .metric(name, |it| it.contains(kind))
            .await
            .unwrap()
    };
    assert_eq!(count(&first, "full").await, 2.0);
    assert_eq!(count(&first, "resumed").await, 2.0);
    assert_eq!(count(&second, "resumed").await, 3.0);
}

/// The ticket of one listener must not be a way past the other's demand for a certificate.
#[tokio::test]
async fn a_ticket_is_no_way_past_a_listener_that_asks_for_more() {
    let endpoint = Play::start(|_| Act::Say(OK.into())).await;
    for version in [&version::TLS12, &version::TLS13] {
        let (folder, _) = folder();
        std::fs::write(folder.path().join("ca.crt"), Authority::new().pem()).unwrap();
        let text = listener("http", "", "").replace(
            "listeners: [",
            "listeners: [{name: strict, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: http, \
             tls: {certificates: [{certificate: a.crt, key: a.key}], clientCa: ca.crt}}, ",
        );
        let rig = Rig::run(folder, &text).await;
        rig.endpoints(&[Ep::new("e", endpoint.address())]);
        rig.usable(1).await;
        let strict = rig.running().listener("strict").unwrap();
        let config = remembering(version);
        assert_eq!(kind(rig.web(), &config).await, Some(HandshakeKind::Full));
        assert_eq!(kind(rig.web(), &config).await, Some(HandshakeKind::Resumed));
        assert_eq!(kind(strict, &config).await, None, "{version:?}");
        assert_eq!(rig.metric("ebbtide_requests_total", "2xx"), 2.0);
        let text = match connect(strict, "a.example", &config).await {
            Err(error) => error.to_string(),
            Ok(mut stream) => stream.read_u8().await.unwrap_err().to_string(),
        };
        assert!(
            text.contains("CertificateRequired") || text.contains("HandshakeFailure"),
            "{text}"
        );
    }
}
