//! What client and proxy agree on: the certificate, the version, the protocol, the client's own
//! certificate.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::{ClientConfig, NamedGroup, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::play::{Act, OK, Play};
use crate::proxy::tls::{Authority, connect, folder, listener, rig, speaking, trusting};
use crate::support::folder::{Ep, Folder};
use crate::support::rig::Rig;
use crate::support::wait::soon;

/// The answer to a GET on an open connection.
pub async fn ask(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
) -> std::io::Result<String> {
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    stream.write_all(request).await?;
    let mut text = vec![0; OK.len()];
    soon("an answer", stream.read_exact(&mut text)).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn serve(rig: &Rig) -> Play {
    let endpoint = Play::start(|_| Act::Say(OK.into())).await;
    rig.endpoints(&[Ep::new("e", endpoint.address())]);
    rig.usable(1).await;
    endpoint
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_name_that_it_asks_for() {
    let folder = Folder::new();
    let authority = Authority::new();
    let pairs = [
        authority.sign(&["a.example"]),
        authority.sign(&["*.shop.example"]),
        authority.sign(&["b.shop.example"]),
    ];
    for (pair, name) in pairs.iter().zip(["a", "b", "c"]) {
        pair.write(folder.path(), name);
    }
    let more = listener("http", "", "").replace(
        "key: a.key}",
        "key: a.key}, {certificate: b.crt, key: b.key}, {certificate: c.crt, key: c.key}",
    );
    let rig = Rig::run(folder, &more).await;
    for (name, expected) in [
        ("a.example", 0),
        ("x.shop.example", 1),
        ("B.shop.example", 2),
        ("y.x.shop.example", 0),
        ("other.example", 0),
        // No name is sent.
        ("127.0.0.1", 0),
    ] {
        for version in [&version::TLS12, &version::TLS13] {
            let config = Arc::new(speaking(version));
            let stream = connect(rig.web(), name, &config).await.unwrap();
            let shown = stream.get_ref().1.peer_certificates().unwrap();
            assert_eq!(shown[0], pairs[expected].der(), "{name}");
        }
    }
}

#[tokio::test]
async fn http_over_tls_is_agreed_on_and_the_application_learns_of_it() {
    for (protocol, offers, agreed) in [
        ("http", &["http/1.1"][..], Some("http/1.1")),
        ("auto", &["other", "http/1.1"], Some("http/1.1")),
        ("auto", &[], None),
        ("http", &[], None),
    ] {
        let rig = rig(protocol, "", "").await;
        let endpoint = serve(&rig).await;
        let mut config = trusting();
        config.alpn_protocols = offers.iter().map(|it| it.as_bytes().to_vec()).collect();
        let mut stream = connect(rig.web(), "a.example", &Arc::new(config))
            .await
            .unwrap();
        let found = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(found.as_deref(), agreed.map(str::as_bytes), "{protocol}");
        for _ in 0..3 {
            assert_eq!(ask(&mut stream).await.unwrap(), OK);
        }
        let requests = endpoint.requests();
        assert_eq!(requests.len(), 3);
        for request in requests {
            let text = String::from_utf8(request).unwrap();
            assert!(text.contains("\r\nX-Forwarded-Proto: https\r\n"), "{text}");
        }
        assert_eq!(rig.metric("ebbtide_tls_handshakes_total", "full"), 1.0);
        assert_eq!(rig.metric("ebbtide_connections_total", "http"), 1.0);
    }
}

#[tokio::test]
async fn a_tcp_listener_agrees_on_no_protocol_and_takes_any_client() {
    let rig = rig("tcp", "", "").await;
    let _endpoint = serve(&rig).await;
    let mut config = trusting();
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    let mut stream = connect(rig.web(), "a.example", &Arc::new(config))
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    assert_eq!(ask(&mut stream).await.unwrap(), OK);
    assert_eq!(rig.metric("ebbtide_connections_total", "tcp"), 1.0);
}

#[tokio::test]
async fn a_protocol_that_nobody_speaks_here_is_refused() {
    let rig = rig("http", "", "").await;
    let mut config = trusting();
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    let refused = connect(rig.web(), "a.example", &Arc::new(config)).await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("NoApplicationProtocol")
    );
}

#[tokio::test]
async fn the_oldest_version_is_as_configured() {
    for (tls, version, served) in [
        ("", &version::TLS12, true),
        (", minVersion: '1.2'", &version::TLS12, true),
        (", minVersion: '1.3'", &version::TLS12, false),
        (", minVersion: '1.3'", &version::TLS13, true),
    ] {
        let rig = rig("http", tls, "").await;
        let answer = connect(rig.web(), "a.example", &Arc::new(speaking(version))).await;
        assert_eq!(answer.is_ok(), served, "{tls} {version:?}");
    }
}

#[tokio::test]
async fn a_key_exchange_that_a_quantum_computer_does_not_break_is_preferred_and_enough() {
    let rig = rig("http", "", "").await;
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519MLKEM768];
    let config = ClientConfig::builder_with_provider(Arc::new(provider));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(super::Trusting))
        .with_no_client_auth();
    for config in [config, trusting()] {
        let stream = connect(rig.web(), "a.example", &Arc::new(config))
            .await
            .unwrap();
        let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    }
}

#[tokio::test]
async fn clients_show_a_certificate_where_they_are_asked_to() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (known, unknown) = (authority.sign(&["client"]), other.sign(&["client"]));
    for (asked, (none, ours, theirs)) in [
        (", clientCa: ca.crt", (false, true, false)),
        (
            ", clientCa: ca.crt, clientCertificates: required",
            (false, true, false),
        ),
        (
            ", clientCa: ca.crt, clientCertificates: optional",
            (true, true, false),
        ),
        (
            ", clientCa: ca.crt, clientCertificates: none",
            (true, true, true),
        ),
    ] {
        let (folder, _) = folder();
        std::fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
        let rig = Rig::run(folder, &listener("http", asked, "")).await;
        let _endpoint = serve(&rig).await;
        for (shown, served) in [(None, none), (Some(&known), ours), (Some(&unknown), theirs)] {
            for version in [&version::TLS12, &version::TLS13] {
                let config = speaking(version);
                let config = match shown {
                    None => config,
                    Some(pair) => {
                        let provider = Arc::new(default_provider());
                        let config = ClientConfig::builder_with_provider(provider);
                        let config = config.with_protocol_versions(&[version]).unwrap();
                        config
                            .dangerous()
                            .with_custom_certificate_verifier(Arc::new(super::Trusting))
                            .with_client_auth_cert(vec![pair.der()], pair.key())
                            .unwrap()
                    }
                };
                // In TLS 1.3, the client learns of a refusal with its first read.
                let answer = match connect(rig.web(), "a.example", &Arc::new(config)).await {
                    Ok(mut stream) => ask(&mut stream).await,
                    Err(error) => Err(error),
                };
                assert_eq!(answer.is_ok(), served, "{asked} {:?}", shown.is_some());
            }
        }
    }
}

#[tokio::test]
async fn a_proxy_header_comes_before_the_handshake() {
    let (folder, _) = folder();
    let text = listener("http", "", "trustedProxies: [127.0.0.0/8]").replace(
        "protocol: http,",
        "protocol: http, proxyProtocol: required,",
    );
    let rig = Rig::run(folder, &text).await;
    let endpoint = serve(&rig).await;
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 443\r\n";
    let mut stream = TcpStream::connect(rig.web()).await.unwrap();
    stream.write_all(header).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting()));
    let name = "a.example".try_into().unwrap();
    let mut stream = soon("a handshake", connector.connect(name, stream))
        .await
        .unwrap();
    assert_eq!(ask(&mut stream).await.unwrap(), OK);
    let request = String::from_utf8(endpoint.requests().remove(0)).unwrap();
    assert!(
        request.contains("X-Forwarded-For: 192.0.2.7\r\n"),
        "{request}"
    );
}
