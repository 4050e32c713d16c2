//! Access and secrets: who may reach the admin port, what the logs may contain, and where the code
//! may use `unsafe`. Text from clients, endpoints and manifests is untrusted. It must never end a
//! log line, split a response, or add a header.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::proxy::ask::raw;
use crate::proxy::scripted::Scripted;
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::manifests::{endpoint, service, slice};
use crate::support::process::Process;
use crate::support::wait::{eventually, soon};

/// The proxy at its most verbose log level. It writes its log and its access log to files.
struct Scene {
    folder: TempDir,
    process: Child,
    web: SocketAddr,
    admin: SocketAddr,
    _app: tokio::task::JoinHandle<()>,
}

impl Scene {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = app.local_addr().unwrap();
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let write = |file: &str, object: Value| {
            std::fs::write(manifests.join(file), object.to_string()).unwrap()
        };
        let annotations =
            json!({"ebbtide.dev/hold-timeout": HOSTILE, format!("ebbtide.dev/{HOSTILE}"): "x"});
        write("service.json", service("shop", annotations));
        let mut endpoint = endpoint(
            &address.ip().to_string(),
            Some(HOSTILE),
            [true, true, false],
        );
        endpoint["targetRef"]["uid"] = HOSTILE.into();
        write(
            "slice.json",
            slice("one", "shop", ("", address.port()), &[endpoint]),
        );
        let broken =
            |metadata: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata});
        write("broken.json", broken(json!({"name": [HOSTILE]})));
        write(
            "key.json",
            broken(json!({"name": "key", "annotations": {HOSTILE: 1}})),
        );
        write("name.json", broken(json!({"name": HOSTILE})));
        write(
            &format!("{}.json", HOSTILE.replace('\0', "")),
            broken(json!({})),
        );
        std::fs::write(
            manifests.join("key.yaml"),
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x, labels: {\"a\\nlevel=ERROR \": [1]}}\n",
        )
        .unwrap();
        let config = folder.path().join("ebbtide.yaml");
        let text = "discovery: {files: {path: manifests}}\nlisteners: [{name: web, address: '127.0.0.1:0', service: web/shop, port: 80, \
                    protocol: http}]\nadmin: {address: '127.0.0.1:0'}\naccessLog: json\n";
        std::fs::write(&config, text).unwrap();
        let to = |file: &str| {
            Stdio::from(OwnedFd::from(
                std::fs::File::create(folder.path().join(file)).unwrap(),
            ))
        };
        let process = Command::new(BINARY)
            .args(["run", "--config"])
            .arg(&config)
            .env("EBBTIDE_LOG", "trace")
            .stdin(Stdio::null())
            .stdout(to("access"))
            .stderr(to("log"))
            .spawn()
            .unwrap();
        let app = tokio::spawn(async move {
            while let Ok((stream, _)) = app.accept().await {
                tokio::spawn(answer(stream));
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut scene = Self {
            folder,
            process,
            web: nowhere,
            admin: nowhere,
            _app: app,
        };
        for (message, listener) in [("listening", true), ("admin listening", false)] {
            let address = scene.logged(|line| {
                let said = line["message"] == message && (line["listener"] == "web") == listener;
                said.then(|| line["address"].as_str().unwrap().parse().unwrap())
            });
            *(if listener {
                &mut scene.web
            } else {
                &mut scene.admin
            }) = address.await;
        }
        eventually("a ready endpoint", async || {
            let (status, _) = raw(scene.admin, page("/api/v1/status").as_bytes()).await;
            status.contains("\"state\":\"ready\"")
        })
        .await;
        scene
    }

    fn read(&self, file: &str) -> String {
        String::from_utf8(std::fs::read(self.folder.path().join(file)).unwrap()).unwrap()
    }

    /// Waits until the log has a line for which `found` returns something.
    async fn logged<T>(&self, found: impl Fn(&Value) -> Option<T>) -> T {
        let mut it = None;
        eventually("a line of the log", async || {
            let log = self.read("log");
            it = log
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .find_map(|line| found(&line));
            it.is_some()
        })
        .await;
        it.unwrap()
    }

    /// Ends the process. Returns the access log and the log, each line one JSON object, and both as
    /// text.
    fn written(mut self) -> (Vec<Value>, Vec<Value>, String) {
        let pid = rustix::process::Pid::from_raw(self.process.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.process.wait().unwrap();
        let lines = |file: &str| -> Vec<Value> {
            let text = self.read(file);
            let bad = text.chars().find(|c| c.is_control() && *c != '\n');
            assert_eq!(bad, None, "{file}:\n{text}");
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
                .collect()
        };
        (
            lines("access"),
            lines("log"),
            self.read("access") + &self.read("log"),
        )
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            println!("{}", self.read("log"));
        }
    }
}

fn page(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

/// Answers each request with the request's head as the body.
async fn answer(mut stream: TcpStream) {
    let (mut head, mut buf) = (Vec::new(), [0; 4_096]);
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        head.extend_from_slice(&buf[..n]);
        if head.ends_with(b"\r\n\r\n") {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nSet-Cookie: {SECRET}\r\nContent-Length: {}\r\n\r\n",
                head.len()
            );
            let _ = stream.write_all(&[answer.as_bytes(), &head].concat()).await;
            head.clear();
        }
    }
}

/// Text that would end a line, a JSON string and a tag, and holds terminal escapes.
const HOSTILE: &str = "x\"}\r\n{\"level\":\"FORGED\"}\u{1b}[31m<script>\u{0}\u{7f}\u{85}\u{9b}31m";
const SECRET: &str = "s3cr3t-0f-a-cl1ent";

#[test]
fn admin_binds_to_loopback_unless_configured_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    let file = folder.path().join("ebbtide.yaml");
    std::fs::write(&file, "discovery: {files: {path: manifests}}\n").unwrap();
    let config = ebbtide::config::settings::Config::load(&file).unwrap();
    assert_eq!(config.admin.ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
}

/// `only_get_and_head_and_only_these_paths` of `tests/proxy/admin.rs` shows that methods that
/// change something are refused.
#[tokio::test]
async fn no_header_reaches_the_admin_pages_through_a_listener() {
    let scene = Scene::start().await;
    let admin = scene.admin;
    for target in [
        "/metrics",
        "/api/v1/status",
        &format!("http://{admin}/metrics"),
    ] {
        for fields in [
            format!("Host: {admin}"),
            format!("Host: {admin}\r\nX-Forwarded-Host: {admin}\r\nForwarded: host={admin}"),
            format!(
                "Host: {admin}\r\nX-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics\r\nX-HTTP-Method-Override: GET"
            ),
        ] {
            let answer = raw(
                scene.web,
                format!("GET {target} HTTP/1.1\r\n{fields}\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await
            .0;
            // The application answered: the body is the request that it received.
            assert!(
                answer.contains(&format!(
                    "\r\n\r\nGET {}",
                    target.trim_start_matches(&format!("http://{admin}"))
                )),
                "{answer}"
            );
            assert!(
                !answer.contains("ebbtide_build_info") && !answer.contains("uptimeSeconds"),
                "{answer}"
            );
        }
    }
    let connect = raw(
        scene.web,
        format!("CONNECT {admin} HTTP/1.1\r\nHost: {admin}\r\n\r\n").as_bytes(),
    )
    .await
    .0;
    assert!(connect.starts_with("HTTP/1.1 501 "), "{connect}");
}

#[tokio::test]
async fn no_text_of_a_peer_or_a_manifest_ends_a_log_line_or_splits_a_response() {
    let scene = Scene::start().await;
    let mut refused = 0;
    for (target, field) in [
        ("/\"}{\"level\":\"FORGED\"}".to_owned(), "x".to_owned()),
        ("/%0d%0aSet-Cookie:%20evil=1%0d%0a%0d%0a".into(), "x".into()),
        ("/\\u000a\\".into(), HOSTILE.replace(char::is_control, "?")),
        ("/\u{1b}[31m".into(), "x".into()),
        ("/\u{ff}\u{2028}".into(), "x".into()),
        ("/".into(), "a\rSet-Cookie: evil=1".into()),
        ("/".into(), "a\u{0}b".into()),
    ] {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: shop\r\nUser-Agent: {field}\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(scene.web, request.as_bytes()).await.0;
        let head = answer.split("\r\n\r\n").next().unwrap();
        assert!(!head.contains("evil"), "{answer}");
        refused += usize::from(head.starts_with("HTTP/1.1 400 "));
        assert!(
            head.starts_with("HTTP/1.1 400 ") || head.starts_with("HTTP/1.1 200 "),
            "{answer}"
        );
    }
    assert!(refused >= 4, "{refused}");
    // `check` prints the same manifests to a terminal.
    let check = Command::new(BINARY)
        .args(["check", "--config"])
        .arg(scene.folder.path().join("ebbtide.yaml"))
        .output();
    let check = check.unwrap();
    let (tables, errors) = (
        String::from_utf8(check.stdout).unwrap(),
        String::from_utf8(check.stderr).unwrap(),
    );
    for text in [&tables, &errors] {
        assert!(text.contains("FORGED"), "{text}");
        assert!(
            !text.contains(|c: char| c.is_control() && c != '\n'),
            "{text:?}"
        );
        assert!(
            !text
                .lines()
                .any(|line| line.starts_with("{") || line.starts_with("level=")),
            "{text}"
        );
    }
    assert_eq!(
        errors.lines().count(),
        5,
        "one line for each broken manifest:\n{errors}"
    );
    assert!(
        errors.lines().all(|line| line.starts_with("error: ")),
        "{errors}"
    );
    let (access, log, text) = scene.written();
    assert!(access.len() >= 2, "{access:?}");
    // An escape sequence of the target is logged as plain text.
    assert!(
        access.iter().any(|line| line["target"] == "/\\u000a\\"),
        "{access:?}"
    );
    // The hostile names of the manifests are logged, as text.
    assert!(text.contains("FORGED"), "{text}");
    assert!(
        access
            .iter()
            .chain(&log)
            .all(|line| line["level"] != "FORGED")
    );
}

#[tokio::test]
async fn secrets_of_clients_and_endpoints_are_not_written_at_any_level() {
    let scene = Scene::start().await;
    let fields = format!(
        "Authorization: Bearer {SECRET}\r\nCookie: {SECRET}\r\nX-Api-Key: {SECRET}\r\nProxy-Authorization: {SECRET}"
    );
    for request in [
        format!("GET / HTTP/1.1\r\nHost: shop\r\n{fields}\r\nConnection: close\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: shop\r\n{fields}\r\nBroken : x\r\n\r\n"),
        format!(
            "POST / HTTP/1.1\r\nHost: shop\r\n{fields}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
        ),
    ] {
        assert!(
            raw(scene.web, request.as_bytes())
                .await
                .0
                .starts_with("HTTP/1.1 ")
        );
    }
    for page in [
        "/",
        "/metrics",
        "/api/v1/status",
        "/api/v1/drains",
        "/readyz",
    ] {
        let answer = raw(scene.admin, self::page(page).as_bytes()).await.0;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && !answer.contains(SECRET),
            "{answer}"
        );
    }
    let (access, log, text) = scene.written();
    assert!(!access.is_empty() && !log.is_empty());
    assert!(!text.contains(SECRET), "{text}");
}

/// A token of the kubeconfig, with an API server that refuses it and sends it back.
#[tokio::test]
async fn the_token_of_the_api_server_is_not_written_at_any_level() {
    let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = api.local_addr().unwrap();
    let (seen, mut asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = api.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut buf = [0; 8_192];
                while let Ok(n @ 1..) = stream.read(&mut buf).await {
                    let _ = seen.send(String::from_utf8_lossy(&buf[..n]).contains(SECRET));
                    let answer = "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
         users: [{{name: u, user: {{token: '{SECRET}'}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let config = folder.path().join("ebbtide.yaml");
    let text = format!(
        "discovery: {{kubernetes: {{kubeconfig: '{}'}}}}\nadmin: {{address: '127.0.0.1:0'}}\n",
        kubeconfig.display()
    );
    std::fs::write(&config, text).unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut process = Command::new(BINARY)
        .args(["run", "--config"])
        .arg(&config)
        .env("EBBTIDE_LOG", "trace")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut with_token = false;
    for _ in 0..3 {
        with_token |= soon("a request", asked.recv()).await.unwrap();
    }
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(with_token, "the token was not used");
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("the API server does not answer"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
}

/// A manifest that nothing reads is named once, however often its file is read again.
#[tokio::test]
async fn a_manifest_that_is_passed_over_is_named_once() {
    let process = Process::start("http", &[], "").await;
    let write = |file: &str, note: u32| {
        let typo = serde_json::json!({
            "apiVersion": "v1", "kind": "Sevice",
            "metadata": {"name": file, "namespace": "web", "annotations": {"note": note.to_string()}},
        });
        process.folder.write(&format!("{file}.json"), &typo);
    };
    let named = |file: &str| {
        let mut lines = process.logged("a manifest is passed over");
        lines.retain(|it| it["file"].as_str().is_some_and(|it| it.ends_with(file)));
        lines
    };
    write("one", 1);
    eventually("the first", async || !named("one.json").is_empty()).await;
    let why = "Sevice web/one: there is no kind Sevice, did you mean Service?";
    assert_eq!(named("one.json")[0]["why"], why);
    write("one", 2);
    write("two", 1);
    eventually("the second", async || !named("two.json").is_empty()).await;
    assert_eq!(named("one.json").len(), 1);
}

/// `#![forbid(unsafe_code)]` allows no exception, so Cargo.toml denies `unsafe_code`. This test
/// lists the places of the exceptions.
#[test]
fn unsafe_code_is_in_one_file_and_each_block_has_its_argument() {
    let mut files = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                files.push(path);
            }
        }
    }
    assert!(files.len() > 30, "{files:?}");
    let mut found = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let is_code = |line: &str| !line.trim_start().starts_with("//");
        let is_unsafe = |line: &str| line.contains("unsafe {") || line.contains("unsafe_code");
        for (at, line) in lines.iter().enumerate() {
            if !is_code(line) || !is_unsafe(line) {
                continue;
            }
            assert!(
                file.ends_with("src/net/socket.rs"),
                "{}: {line}",
                file.display()
            );
            found += 1;
            // rustfmt puts a long argument on the line below.
            let argued = lines[at..]
                .iter()
                .take(2)
                .any(|line| line.contains("// SAFETY: "));
            assert!(!line.contains("allow(") || argued, "{line}");
        }
        for keyword in ["unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"] {
            assert!(!text.contains(keyword), "{}: {keyword}", file.display());
        }
    }
    assert_eq!(
        found, 10,
        "five blocks, each allowed on its line: discuss any further exception first"
    );
    let manifest =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"deny\""));
}

/// Refused PROXY headers are reported, at most once in ten seconds: any client can cause them.
#[tokio::test]
async fn refused_proxy_headers_are_logged_with_a_count_and_at_a_bounded_pace() {
    let app = Scripted::start(|_, _| async {}).await;
    let process = Process::start(
        "http, proxyProtocol: required",
        &[Ep::new("a", app.address)],
        "",
    )
    .await;
    let refuse = async |clients: usize| {
        for _ in 0..clients {
            let mut client = TcpStream::connect(process.web()).await.unwrap();
            let _ = client.write_all(b"PROXY UNKNOWN\r\n").await;
            let _ = soon("the end", client.read_to_end(&mut Vec::new())).await;
        }
    };
    let doubts = || process.logged("the configuration has a doubtful field");
    eventually("the warning at the start", async || !doubts().is_empty()).await;
    let warning = doubts()[0]["warning"].as_str().unwrap().to_owned();
    assert!(
        warning.starts_with("listener web: proxyProtocol: required refuses every client"),
        "{warning}"
    );
    let begun = std::time::Instant::now();
    refuse(20).await;
    let lines = || process.logged("PROXY headers refused");
    eventually("the first line", async || !lines().is_empty()).await;
    assert_eq!(lines().len(), 1, "{:?}", lines());
    assert_eq!(
        (&lines()[0]["count"], &lines()[0]["peer"]),
        (&1.into(), &"127.0.0.1".into())
    );
    let cause = lines()[0]["cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("trustedProxies"), "{cause}");
    // The next line counts all since the first.
    let pause = std::time::Duration::from_millis(10_100);
    tokio::time::sleep(pause.saturating_sub(begun.elapsed())).await;
    refuse(3).await;
    eventually("the second line", async || lines().len() == 2).await;
    assert_eq!(lines()[1]["count"], 20);
}
