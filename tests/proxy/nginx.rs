//! Ingress objects with annotations of ingress-nginx: what a client of nginx knows is what it gets here.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::proxy::ingress::{Path, add, http, https, ingress, named, secret};
use crate::proxy::play::{Act, Play, Turn};
use crate::proxy::tls::{Authority, connect, trusting};
use crate::support::folder::Folder;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An Ingress with annotations.
fn with(name: &str, paths: &[Path<'_>], annotations: &[(&str, &str)]) -> Value {
    let mut object = ingress(name, "ebbtide", paths);
    for (key, value) in annotations {
        let key = format!("nginx.ingress.kubernetes.io/{key}");
        object["metadata"]["annotations"][key] = json!(value);
    }
    object
}

async fn rig(folder: Folder) -> Rig {
    rig_with(folder, "").await
}

async fn rig_with(folder: Folder, more: &str) -> Rig {
    let text = "discovery: {files: {path: manifests}}\n\
                ingress: {addresses: [127.0.0.1], httpPort: 0, httpsPort: 0, keys: nginx, server: edge}\n\
                admin: {address: '127.0.0.1:0'}\nworkers: 2\n";
    Rig::run(folder, &(text.to_owned() + more)).await
}

/// One request on a connection of its own: the status, and the fields and the body.
async fn ask(
    stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    host: &str,
    path: &str,
    more: &str,
) -> (u16, String) {
    ask_by("GET", stream, host, path, more).await
}

async fn ask_by(
    method: &str,
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    host: &str,
    path: &str,
    more: &str,
) -> (u16, String) {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon("an answer", stream.read_to_end(&mut answer))
        .await
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let status = answer[9..12].parse().unwrap();
    (status, answer)
}

/// The same on the port without TLS.
async fn plain(rig: &Rig, host: &str, path: &str, more: &str) -> (u16, String) {
    let stream = TcpStream::connect(http(rig)).await.unwrap();
    ask(stream, host, path, more).await
}

/// An endpoint that answers with the target that it is asked for.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo_on(BufReader::new(stream)));
        }
    });
    address
}

async fn echo_on(mut stream: BufReader<TcpStream>) {
    let mut line = String::new();
    while stream
        .read_line(&mut line)
        .await
        .is_ok_and(|length| length > 0)
    {
        let target = line.split(' ').nth(1).unwrap().to_owned();
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
        }
        let length = target.len();
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nServer: app\r\n\r\n{target}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        line.clear();
    }
}

#[tokio::test]
async fn requests_are_redirected_rewritten_and_bounded_as_annotations_say() {
    let folder = Folder::new();
    let (authority, a) = (Authority::new(), echo().await);
    add(&folder, "a", a);
    let mut safe = with("safe", &[("a.example", "/", "Prefix", "a")], &[]);
    safe["spec"]["tls"] = json!([{"hosts": ["a.example"], "secretName": "s"}]);
    folder.write("safe.json", &safe);
    folder.write("s.json", &secret("s", &authority.sign(&["a.example"])));
    let strip = [("rewrite-target", "/$2"), ("use-regex", "true")];
    let paths = [("b.example", "/b(/|$)(.*)", "ImplementationSpecific", "a")];
    folder.write("strip.json", &with("strip", &paths, &strip));
    let bounded = [("proxy-body-size", "1k"), ("app-root", "/app")];
    folder.write(
        "bounded.json",
        &with("bounded", &[("c.example", "/", "Prefix", "a")], &bounded),
    );
    for (name, key, value) in [
        ("auth", "auth-url", "http://auth.example"),
        ("away", "allowlist-source-range", "10.0.0.0/8"),
        ("here", "allowlist-source-range", "127.0.0.0/8"),
        (
            "moved",
            "permanent-redirect",
            "https://new.example$request_uri",
        ),
    ] {
        let host = format!("{name}.example");
        let paths = [(host.as_str(), "/", "Prefix", "a")];
        folder.write(
            &format!("{name}.json"),
            &with(name, &paths, &[(key, value)]),
        );
    }
    let rig = rig(folder).await;
    eventually("the rules", async || {
        plain(&rig, "here.example", "/", "").await.0 == 200
    })
    .await;

    let (status, answer) = plain(&rig, "a.example", "/x?y", "").await;
    assert!(
        status == 308 && answer.contains("ocation: https://a.example/x?y\r\n"),
        "{answer}"
    );
    let config = Arc::new(trusting());
    let safely = connect(https(&rig), "a.example", &config).await.unwrap();
    let (status, answer) = ask(safely, "a.example", "/x", "").await;
    assert!(status == 200 && answer.ends_with("/x"), "{answer}");
    assert!(
        answer.contains("erver: edge\r\n") && !answer.contains("app\r\n"),
        "{answer}"
    );

    for (path, expected) in [("/b", "/"), ("/b/", "/"), ("/b/c?d", "/c?d")] {
        let (status, answer) = plain(&rig, "b.example", path, "").await;
        assert!(
            status == 200 && answer.ends_with(&format!("\r\n\r\n{expected}")),
            "{path}: {answer}"
        );
    }
    assert_eq!(plain(&rig, "b.example", "/bc", "").await.0, 404);

    let (status, answer) = plain(&rig, "c.example", "/", "").await;
    assert!(status == 302 && answer.contains("/app\r\n"), "{answer}");
    assert_eq!(plain(&rig, "c.example", "/x", "").await.0, 200);
    assert_eq!(
        plain(&rig, "c.example", "/x", "Content-Length: 1025\r\n")
            .await
            .0,
        413
    );

    assert_eq!(plain(&rig, "auth.example", "/", "").await.0, 403);
    assert_eq!(plain(&rig, "away.example", "/", "").await.0, 403);
    let (status, answer) = plain(&rig, "moved.example", "/x?y", "").await;
    assert!(
        status == 301 && answer.contains("https://new.example/x?y\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_canary_gets_its_share_and_those_who_ask_for_it() {
    let folder = Folder::new();
    let (a, b) = (named("a").await, named("b").await);
    add(&folder, "a", a.address());
    add(&folder, "b", b.address());
    let rule = |to| [("a.example", "/", "Prefix", to)];
    folder.write("main.json", &with("main", &rule("a"), &[]));
    let canary = [
        ("canary", "true"),
        ("canary-weight", "20"),
        ("canary-by-header", "X-New"),
    ];
    folder.write("canary.json", &with("canary", &rule("b"), &canary));
    let rig = rig(folder).await;
    let who = async |more: &str| {
        let (_, answer) = plain(&rig, "a.example", "/", more).await;
        answer.rsplit("\r\n").next().unwrap().to_owned()
    };
    eventually("the canary", async || who("X-New: always\r\n").await == "b").await;
    let mut canary = 0;
    for _ in 0..100 {
        canary += usize::from(who("").await == "b");
    }
    // Turns follow the golden ratio from a start by chance: of 100 in a row, these many are the canary's.
    assert!((18..=21).contains(&canary), "{canary} of 100");
    for _ in 0..20 {
        assert_eq!(who("X-New: always\r\n").await, "b");
        assert_eq!(who("X-New: never\r\n").await, "a");
    }
}

/// A page may also read what Ebbtide itself answers: else its script could not tell what has gone wrong.
#[tokio::test]
async fn pages_of_other_origins_are_told_what_cors_annotations_permit() {
    let folder = Folder::new();
    let (authority, a) = (Authority::new(), echo().await);
    add(&folder, "a", a);
    let keys = [
        ("enable-cors", "true"),
        (
            "cors-allow-origin",
            "https://*.page.example, https://one.example",
        ),
        ("cors-allow-methods", "PUT"),
        ("proxy-body-size", "1"),
    ];
    let paths = [
        ("a.example", "/", "Prefix", "a"),
        ("a.example", "/none", "Prefix", "none"),
    ];
    folder.write("cors.json", &with("cors", &paths, &keys));
    let mut safe = with("safe", &[("b.example", "/", "Prefix", "a")], &keys);
    safe["spec"]["tls"] = json!([{"hosts": ["b.example"], "secretName": "s"}]);
    folder.write("safe.json", &safe);
    folder.write("s.json", &secret("s", &authority.sign(&["b.example"])));
    let rig = rig(folder).await;
    eventually("the rules", async || {
        plain(&rig, "a.example", "/", "").await.0 == 200
    })
    .await;
    let by = async |method: &str, host: &str, path: &str, more: &str| {
        let stream = TcpStream::connect(http(&rig)).await.unwrap();
        let (status, answer) = ask_by(method, stream, host, path, more).await;
        (status, answer.to_ascii_lowercase())
    };
    let origin = "Origin: https://shop.page.example\r\n";
    let permits = "access-control-allow-origin: https://shop.page.example\r\n";
    let login = "access-control-allow-credentials: true\r\n";
    let asks = format!("{origin}Access-Control-Request-Method: PUT\r\n");
    for host in ["a.example", "b.example"] {
        // Also where a request without TLS is redirected: a browser follows no redirect here.
        let (status, answer) = by("OPTIONS", host, "/", &asks).await;
        assert_eq!(status, 204, "{answer}");
        let methods = "access-control-allow-methods: put\r\n";
        for field in [
            permits,
            login,
            methods,
            "access-control-max-age: 1728000\r\n",
        ] {
            assert!(answer.contains(field), "{field}: {answer}");
        }
    }
    let long = format!("{origin}Content-Length: 2\r\n");
    for (method, host, path, more, expected) in [
        ("GET", "a.example", "/", origin, 200),
        ("GET", "a.example", "/none", origin, 503),
        ("PUT", "a.example", "/", &long, 413),
        ("GET", "b.example", "/", origin, 308),
    ] {
        let (status, answer) = by(method, host, path, more).await;
        assert_eq!(status, expected, "{answer}");
        for field in [permits, login, "vary: origin\r\n"] {
            assert_eq!(answer.matches(field).count(), 1, "{field}: {answer}");
        }
        let is_later = answer.contains("retry-after: 1\r\n");
        assert_eq!(is_later, expected == 503, "{answer}");
        for other in ["", "Origin: https://a.shop.page.example\r\n"] {
            let more = more.replace(origin, other);
            let (status, answer) = by(method, host, path, &more).await;
            assert_eq!(status, expected, "{answer}");
            assert!(!answer.contains("access-control"), "{answer}");
            assert!(answer.contains("vary: origin\r\n"), "{answer}");
        }
    }
}

/// A load balancer that ends TLS, and that is trusted: clients are who it says, and have asked as it says.
#[tokio::test]
async fn behind_a_trusted_balancer_requests_count_as_those_of_its_clients() {
    let folder = Folder::new();
    add(&folder, "a", echo().await);
    let mut safe = with("safe", &[("a.example", "/", "Prefix", "a")], &[]);
    safe["spec"]["tls"] = json!([{"hosts": ["a.example"], "secretName": "s"}]);
    folder.write("safe.json", &safe);
    folder.write(
        "s.json",
        &secret("s", &Authority::new().sign(&["a.example"])),
    );
    for (name, key, value) in [
        ("forced", "force-ssl-redirect", "true"),
        ("root", "app-root", "/app"),
        ("few", "whitelist-source-range", "203.0.113.0/24"),
        ("balancer", "whitelist-source-range", "127.0.0.0/8"),
    ] {
        let host = format!("{name}.example");
        let paths = [(host.as_str(), "/", "Prefix", "a")];
        folder.write(
            &format!("{name}.json"),
            &with(name, &paths, &[(key, value)]),
        );
    }
    let rig = rig_with(folder, "trustedProxies: [127.0.0.0/8, 198.51.100.0/24]\n").await;
    eventually("the rules", async || {
        plain(&rig, "forced.example", "/", "").await.0 == 308
    })
    .await;
    let https = "X-Forwarded-Proto: https\r\n";
    for host in ["a.example", "forced.example"] {
        assert_eq!(plain(&rig, host, "/", "").await.0, 308, "{host}");
        assert_eq!(plain(&rig, host, "/", https).await.0, 200, "{host}");
    }
    for (host, more, expected) in [
        ("root.example", "", "http://root.example/app"),
        ("root.example", https, "https://root.example/app"),
        ("root.example:81", "", "http://root.example:81/app"),
    ] {
        let (status, answer) = plain(&rig, host, "/", more).await;
        let location = format!("ocation: {expected}\r\n");
        assert!(status == 302 && answer.contains(&location), "{answer}");
    }
    for (named, few, balancer) in [
        ("203.0.113.9", 200, 403),
        // The first of two is what the client itself has said.
        ("203.0.113.9, 192.0.2.1", 403, 403),
        ("192.0.2.1, 203.0.113.9, 198.51.100.7", 200, 403),
        ("nobody", 403, 200),
    ] {
        let more = format!("X-Forwarded-For: {named}\r\n");
        let found = [
            plain(&rig, "few.example", "/", &more).await.0,
            plain(&rig, "balancer.example", "/", &more).await.0,
        ];
        assert_eq!(found, [few, balancer], "{named}");
    }
}

/// An application that has permitted logins to its own page has not permitted them to any other.
#[tokio::test]
async fn logins_are_permitted_only_to_whom_the_annotations_permit_them() {
    let folder = Folder::new();
    let app = Play::start(|_: Turn| {
        Act::Say(
            "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://own.example\r\n\
             Access-Control-Allow-Credentials: true\r\nContent-Length: 0\r\n\r\n"
                .into(),
        )
    })
    .await;
    add(&folder, "a", app.address());
    let all = [
        ("any", "*", "false"),
        ("some", "https://page.example", "true"),
    ];
    for (name, origins, logins) in all {
        let host = format!("{name}.example");
        let annotations = [
            ("enable-cors", "true"),
            ("cors-allow-origin", origins),
            ("cors-allow-credentials", logins),
        ];
        let paths = [(host.as_str(), "/", "Prefix", "a")];
        folder.write(&format!("{name}.json"), &with(name, &paths, &annotations));
    }
    let rig = rig(folder).await;
    eventually("the rules", async || {
        plain(&rig, "some.example", "/", "").await.0 == 200
    })
    .await;
    for (host, permitted) in [("any.example", false), ("some.example", true)] {
        let (_, answer) = plain(&rig, host, "/", "Origin: https://page.example\r\n").await;
        let answer = answer.to_ascii_lowercase();
        let origin = "access-control-allow-origin: https://page.example\r\n";
        assert!(answer.contains(origin), "{answer}");
        let logins = answer.contains("access-control-allow-credentials: true\r\n");
        assert_eq!(logins, permitted, "{answer}");
    }
}
