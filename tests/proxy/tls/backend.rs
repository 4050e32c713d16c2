//! Endpoints that speak TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::proxy::ask::raw;
use crate::proxy::play::OK;
use crate::proxy::scripted::Scripted;
use crate::proxy::tls::{Authority, Pair};
use crate::support::folder::{Ep, Folder};
use crate::support::manifests::service;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// Endpoint of Service `web/shop` that speaks TLS with this certificate.
struct Secure {
    scripted: Scripted,
    /// Handshakes that the endpoint has taken for good.
    shaken: Arc<AtomicUsize>,
}

impl Secure {
    async fn start<F, Fut>(pair: &Pair, script: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth();
        let config = config
            .with_single_cert(vec![pair.der()], pair.key())
            .unwrap();
        let (acceptor, script) = (TlsAcceptor::from(Arc::new(config)), Arc::new(script));
        let shaken = Arc::new(AtomicUsize::new(0));
        let count = shaken.clone();
        let scripted = Scripted::start(move |stream, _| {
            let (acceptor, script, count) = (acceptor.clone(), script.clone(), count.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    count.fetch_add(1, Ordering::SeqCst);
                    script(stream).await;
                }
            }
        })
        .await;
        Self { scripted, shaken }
    }

    /// Answers each request, and keeps its connections.
    async fn answering(pair: &Pair) -> Self {
        Self::start(pair, |mut stream| async move {
            let mut head = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    let _ = stream.write_all(OK.as_bytes()).await;
                    let _ = stream.flush().await;
                }
            }
        })
        .await
    }
}

/// A proxy whose Service has this annotation, without a listener protocol of its own.
async fn rig(backend: &str, app_protocol: &str, more: &[(&str, &str)], endpoint: &Scripted) -> Rig {
    rig_in(Folder::new(), backend, app_protocol, more, endpoint).await
}

async fn rig_in(
    folder: Folder,
    backend: &str,
    app_protocol: &str,
    more: &[(&str, &str)],
    endpoint: &Scripted,
) -> Rig {
    let mut annotations = json!({"ebbtide.dev/backend-tls": backend});
    for (name, value) in more {
        annotations[*name] = json!(value);
    }
    let mut shop = service("shop", annotations);
    shop["spec"]["ports"][0]["appProtocol"] = app_protocol.into();
    folder.write("service.json", &shop);
    folder.endpoints(&[Ep::new("e", endpoint.address)]);
    let text = "discovery: {files: {path: manifests}}\n\
                listeners: [{name: web, address: '127.0.0.1:0', service: web/shop, port: 80}]\n\
                admin: {address: '127.0.0.1:0'}\nworkers: 1\n";
    let rig = Rig::run(folder, text).await;
    rig.usable(1).await;
    rig
}

fn backend(authority: &Authority, hostname: &str) -> String {
    json!({"ca": authority.pem(), "hostname": hostname}).to_string()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn requests_go_to_a_verified_endpoint_over_connections_that_are_kept() {
    let authority = Authority::new();
    let endpoint = Secure::answering(&authority.sign(&["shop.example"])).await;
    for backend in [
        backend(&authority, "shop.example"),
        r#"{"insecure": true}"#.to_owned(),
        r#"{"insecure": true, "hostname": "any.example"}"#.to_owned(),
    ] {
        let before = endpoint.shaken.load(Ordering::SeqCst);
        let rig = rig(&backend, "https", &[], &endpoint.scripted).await;
        for _ in 0..3 {
            let mut client = TcpStream::connect(rig.web()).await.unwrap();
            for _ in 0..3 {
                client.write_all(GET).await.unwrap();
                let mut answer = vec![0; OK.len()];
                soon("an answer", client.read_exact(&mut answer))
                    .await
                    .unwrap();
                assert_eq!(answer, OK.as_bytes(), "{backend}");
            }
        }
        assert_eq!(
            endpoint.shaken.load(Ordering::SeqCst) - before,
            1,
            "{backend}"
        );
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_who_it_should_be_gets_nothing_and_is_not_tried_again() {
    let (authority, other) = (Authority::new(), Authority::new());
    let pair = authority.sign(&["shop.example"]);
    let clear = || {
        Scripted::start(|mut stream, _| async move {
            let mut came = [0; 100];
            if matches!(stream.read(&mut came).await, Ok(1..)) {
                assert!(!came.starts_with(b"GET"), "it came in the clear");
                let _ = stream.write_all(OK.as_bytes()).await;
            }
        })
    };
    let right = backend(&authority, "shop.example");
    for (backend, is_clear) in [
        (backend(&other, "shop.example"), false),
        (backend(&authority, "other.example"), false),
        (right.replace("ca", "authority"), false),
        (r#"{"hostname": "shop.example"}"#.to_owned(), false),
        (String::new(), false),
        (right.clone(), true),
        (r#"{"insecure": true}"#.to_owned(), true),
    ] {
        // An endpoint of its own: what an earlier proxy has connected may be counted late.
        let (secure, clear) = (Secure::answering(&pair).await, clear().await);
        let endpoint = if is_clear { &clear } else { &secure.scripted };
        let rig = rig(&backend, "https", &[], endpoint).await;
        eventually("the join check", async || endpoint.accepted() > 0).await;
        let before = endpoint.accepted();
        let (answer, _) = raw(
            rig.web(),
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{backend}: {answer}");
        assert!(
            answer
                .to_lowercase()
                .contains("x-ebbtide-reason: upstream_tls"),
            "{answer}"
        );
        assert!(endpoint.accepted() - before <= 1, "{backend}: no loop");
        assert_eq!(secure.shaken.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_kept_connection_serves_only_while_the_service_asks_for_the_same() {
    let authority = Authority::new();
    let endpoint = Secure::answering(&authority.sign(&["shop.example"])).await;
    let rig = rig(r#"{"insecure": true}"#, "https", &[], &endpoint.scripted).await;
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(raw(rig.web(), get).await.0.starts_with("HTTP/1.1 200"));
    let strict = json!({"ebbtide.dev/backend-tls": backend(&Authority::new(), "shop.example")});
    let mut shop = service("shop", strict);
    shop["spec"]["ports"][0]["appProtocol"] = "https".into();
    rig.write("service.json", &shop);
    eventually("the endpoint is refused", async || {
        raw(rig.web(), get).await.0.starts_with("HTTP/1.1 502")
    })
    .await;
}

#[tokio::test]
async fn a_response_of_an_endpoint_that_ends_without_a_close_notify_is_cut() {
    let authority = Authority::new();
    for says_so in [true, false] {
        let pair = authority.sign(&["shop.example"]);
        let endpoint = Secure::start(&pair, move |mut stream| async move {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it";
            stream.write_all(answer).await.unwrap();
            stream.flush().await.unwrap();
            if says_so {
                stream.shutdown().await.unwrap();
            }
        })
        .await;
        let rig = rig(
            &backend(&authority, "shop.example"),
            "https",
            &[],
            &endpoint.scripted,
        )
        .await;
        let (answer, clean) = raw(rig.web(), b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
        assert!(answer.ends_with("all of it"), "{answer}");
        assert_eq!(clean, says_so);
    }
}

#[tokio::test]
async fn a_tcp_connection_is_carried_both_ways_and_each_end_is_passed_on() {
    let authority = Authority::new();
    let pair = authority.sign(&["shop.example"]);
    let endpoint = Secure::start(&pair, |stream| async move {
        let (mut from, mut to) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    })
    .await;
    let tcp = [("ebbtide.dev/protocol", "tcp")];
    let rig = rig(
        &backend(&authority, "shop.example"),
        "tls",
        &tcp,
        &endpoint.scripted,
    )
    .await;
    let mut random = fastrand::Rng::with_seed(5);
    let sent: Vec<u8> = (0..4 << 20).map(|_| random.u8(..)).collect();
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    let (mut from, mut to) = client.split();
    let write = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut came = Vec::new();
    let (_, read) = soon("the echo", async {
        tokio::join!(write, from.read_to_end(&mut came))
    })
    .await;
    read.unwrap();
    assert!(came == sent, "{} of {}", came.len(), sent.len());
}

#[tokio::test]
async fn a_port_of_another_kind_is_spoken_to_in_the_clear() {
    let clear = Scripted::start(|mut stream, _| async move {
        let mut came = [0; 100];
        if matches!(stream.read(&mut came).await, Ok(1..)) && came.starts_with(b"GET") {
            let _ = stream.write_all(OK.as_bytes()).await;
        }
    })
    .await;
    let rig = rig(
        &backend(&Authority::new(), "shop.example"),
        "http",
        &[],
        &clear,
    )
    .await;
    let (answer, _) = raw(
        rig.web(),
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

fn holder(kind: &str, pem: &str) -> serde_json::Value {
    let data = if kind == "Secret" {
        "stringData"
    } else {
        "data"
    };
    json!({
        "apiVersion": "v1", "kind": kind, "metadata": {"namespace": "web", "name": "shop-ca"},
        data: {"ca.crt": pem},
    })
}

#[tokio::test]
async fn authorities_come_from_a_secret_or_a_config_map_and_none_goes_unverified_without() {
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for (kind, field) in [("Secret", "caSecret"), ("ConfigMap", "caConfigMap")] {
        let (right, wrong) = (Authority::new(), Authority::new());
        let endpoint = Secure::answering(&right.sign(&["shop.example"])).await;
        let backend = json!({field: "shop-ca", "hostname": "shop.example"}).to_string();
        let rig = rig(&backend, "https", &[], &endpoint.scripted).await;
        let answers = async |status: &str| {
            eventually(status, async || {
                let answer = raw(rig.web(), get).await.0;
                answer.starts_with(&format!("HTTP/1.1 {status}"))
            })
            .await;
        };
        let missing = raw(rig.web(), get).await.0.to_lowercase();
        assert!(missing.starts_with("http/1.1 502 "), "{missing}");
        assert!(
            missing.contains("x-ebbtide-reason: upstream_tls"),
            "{missing}"
        );
        assert_eq!(endpoint.shaken.load(Ordering::SeqCst), 0);
        // Of another kind with the same name.
        let other = if kind == "Secret" {
            "ConfigMap"
        } else {
            "Secret"
        };
        rig.write("other.json", &holder(other, &right.pem()));
        rig.write("ca.json", &holder(kind, &wrong.pem()));
        let port = || {
            let key = ebbtide::contract::name::ObjectName::new("web", "shop").port(80);
            rig.running().admin.snapshot.load().ports[&key].clone()
        };
        eventually("authorities", async || {
            let backend = port().policy.backend.clone().unwrap();
            backend
                .session(endpoint.scripted.address.ip(), false)
                .is_ok()
        })
        .await;
        answers("502").await;
        rig.write("ca.json", &holder(kind, &right.pem()));
        answers("200").await;
        // The last good ones stay.
        let before = port().policy.backend.as_ref().unwrap().id;
        let ca = rig.manifests().join("ca.json");
        for (seconds, is_there) in [(3, true), (4, false)] {
            match is_there {
                true => rig.write("ca.json", &holder(kind, "broken")),
                false => std::fs::remove_file(&ca).unwrap(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            let hold = format!("{seconds}s");
            let annotations =
                json!({"ebbtide.dev/backend-tls": backend, "ebbtide.dev/hold-timeout": hold});
            let mut shop = service("shop", annotations);
            shop["spec"]["ports"][0]["appProtocol"] = "https".into();
            rig.write("service.json", &shop);
            eventually("a later change", async || {
                port().policy.hold_timeout == Duration::from_secs(seconds)
            })
            .await;
            assert_eq!(port().policy.backend.as_ref().unwrap().id, before);
        }
        answers("200").await;
    }
}

#[tokio::test]
async fn a_response_goes_on_while_the_authorities_change() {
    let (right, wrong) = (Authority::new(), Authority::new());
    let (begun, goes_on) = (
        Arc::new(tokio::sync::Notify::new()),
        Arc::new(tokio::sync::Notify::new()),
    );
    let signals = (begun.clone(), goes_on.clone());
    let endpoint = Secure::start(&right.sign(&["shop.example"]), move |mut stream| {
        let (begun, goes_on) = signals.clone();
        async move {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
                .await;
            let _ = stream.flush().await;
            begun.notify_one();
            goes_on.notified().await;
            let _ = stream.write_all(b"half").await;
            let _ = stream.flush().await;
        }
    })
    .await;
    let folder = Folder::new();
    let backend = r#"{"caConfigMap": "shop-ca", "hostname": "shop.example"}"#;
    folder.write("ca.json", &holder("ConfigMap", &right.pem()));
    let rig = rig_in(folder, backend, "https", &[], &endpoint.scripted).await;
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    client.write_all(GET).await.unwrap();
    soon("half a response", begun.notified()).await;
    rig.write("ca.json", &holder("ConfigMap", &wrong.pem()));
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    eventually("the endpoint is refused", async || {
        let asked = raw(rig.web(), get);
        let asked = tokio::time::timeout(Duration::from_secs(1), asked).await;
        asked.is_ok_and(|it| it.0.starts_with("HTTP/1.1 502"))
    })
    .await;
    goes_on.notify_one();
    let mut answer = Vec::new();
    while !answer.ends_with(b"halfhalf") {
        let more = soon("the rest", client.read_buf(&mut answer))
            .await
            .unwrap();
        assert!(more > 0, "{}", String::from_utf8_lossy(&answer));
    }
}
