//! SIGTERM, a second SIGTERM, SIGHUP, refused starts, and a process that replaces another one. The
//! tests run a real process and check what it answers, logs and exits with (contract 1.14). No
//! accepted client may be reset without a response before the grace period is over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ebbtide::command::demo::client::{Client, Failure};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::proxy::play::{Act, Play};
use crate::proxy::scripted::Scripted;
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::process::Process;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An endpoint that answers immediately, except `/gate` (when the gate opens) and `/never` (never).
struct App {
    endpoint: Scripted,
    gate: Arc<Semaphore>,
    /// Requests that wait, at the gate or for ever.
    waiting: Arc<AtomicUsize>,
}

impl App {
    async fn start() -> Self {
        let (gate, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (opened, count) = (gate.clone(), waiting.clone());
        let endpoint = Scripted::start(move |mut stream: TcpStream, _| {
            let (gate, waiting) = (opened.clone(), count.clone());
            async move {
                let mut buf = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buf).await {
                    if buf.starts_with(b"GET /gate") {
                        waiting.fetch_add(1, Ordering::SeqCst);
                        let _ = gate.acquire().await;
                    } else if buf.starts_with(b"GET /never") {
                        waiting.fetch_add(1, Ordering::SeqCst);
                        std::future::pending::<()>().await;
                    }
                    assert!(buf[..n].ends_with(b"\r\n\r\n"));
                    if stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            }
        })
        .await;
        Self {
            endpoint,
            gate,
            waiting,
        }
    }

    fn ep(&self) -> Ep {
        Ep::new("app", self.endpoint.address)
    }

    async fn wait_for(&self, requests: usize) {
        eventually("requests at the endpoint", async || {
            self.waiting.load(Ordering::SeqCst) == requests
        })
        .await;
    }
}

/// An endpoint that echoes, and streams for ever to a client that sends `flood`.
async fn echo_or_flood() -> Scripted {
    Scripted::start(|mut stream: TcpStream, _| async move {
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buf).await {
            while buf.starts_with(b"flood") {
                if stream.write_all(&[b'x'; 4096]).await.is_err() {
                    return;
                }
            }
            if stream.write_all(&buf[..n]).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn get(
    client: &mut Client,
    path: &str,
) -> Result<ebbtide::command::demo::client::Response, Failure> {
    soon("a response", client.exchange("GET", path, "", b"")).await
}

async fn is_refused(address: SocketAddr) -> bool {
    matches!(Client::connect(address).await, Err(Failure::Refused))
}

async fn readyz(process: &Process) -> (u16, String) {
    let answer = process.proxy.page("/readyz").await.unwrap();
    (answer.status, answer.text().into_owned())
}

async fn exit_code(process: &mut Process) -> Option<i32> {
    soon("the process's end", process.proxy.wait())
        .await
        .unwrap()
        .code()
}

#[tokio::test]
async fn the_lame_duck_fails_readyz_and_goes_on_serving() {
    let app = App::start().await;
    let mut process = Process::start(
        "http",
        &[app.ep()],
        "timeouts: {lameDuck: 10m, shutdown: 10m}",
    )
    .await;
    let mut old = Client::connect(process.web()).await.unwrap();
    assert!(get(&mut old, "/").await.unwrap().keep_alive);
    process.proxy.signal(Signal::TERM);
    eventually("/readyz fails", async || readyz(&process).await.0 == 503).await;
    assert!(readyz(&process).await.1.contains("shutting down"));
    assert_eq!(process.json("/api/v1/status").await["shuttingDown"], true);
    let mut new = Client::connect(process.web()).await.unwrap();
    for client in [&mut old, &mut new] {
        let answer = get(client, "/").await.unwrap();
        assert_eq!((answer.status, answer.keep_alive), (200, true));
    }
    // From a second after the first signal on, the next one ends the process immediately, although
    // both graces are long and two clients are connected.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    process.proxy.signal(Signal::TERM);
    assert_eq!(exit_code(&mut process).await, Some(0));
    process.lines("second signal").await;
}

#[tokio::test]
async fn without_clients_it_ends_when_the_lame_duck_is_over() {
    let app = App::start().await;
    let mut process = Process::start(
        "http",
        &[app.ep()],
        "timeouts: {lameDuck: 700ms, shutdown: 10m}",
    )
    .await;
    // A connection that has ended, and an idle connection to the endpoint, delay nothing.
    get(&mut Client::connect(process.web()).await.unwrap(), "/")
        .await
        .unwrap();
    let begun = Instant::now();
    process.proxy.signal(Signal::INT);
    assert_eq!(exit_code(&mut process).await, Some(0));
    assert!(
        begun.elapsed() >= Duration::from_millis(700),
        "{:?}",
        begun.elapsed()
    );
    process.lines("no connection was cut").await;
}

#[tokio::test]
async fn requests_in_flight_are_answered_and_keep_alive_clients_get_connection_close() {
    let app = App::start().await;
    let mut process = Process::start("http", &[app.ep()], "timeouts: {shutdown: 10m}").await;
    let web = process.web();
    let mut idle = Client::connect(web).await.unwrap();
    get(&mut idle, "/").await.unwrap();
    let in_flight =
        tokio::spawn(async move { get(&mut Client::connect(web).await.unwrap(), "/gate").await });
    app.wait_for(1).await;
    process.proxy.signal(Signal::TERM);
    eventually("it stops accepting", async || is_refused(web).await).await;
    app.gate.add_permits(1);
    let answer = in_flight.await.unwrap().unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    // This client could have sent its next request at any time.
    let answer = get(&mut idle, "/").await.unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    soon("the end of its connection", idle.ended()).await;
    assert_eq!(exit_code(&mut process).await, Some(0));
    process.lines("no connection was cut").await;
}

/// GNU `timeout` signals the child and then its process group.
#[tokio::test]
async fn signals_within_a_second_of_the_first_are_no_second_thought() {
    let app = App::start().await;
    let mut process = Process::start("http", &[app.ep()], "timeouts: {shutdown: 10m}").await;
    let web = process.web();
    let in_flight =
        tokio::spawn(async move { get(&mut Client::connect(web).await.unwrap(), "/gate").await });
    app.wait_for(1).await;
    for (pause, repeated) in [(0, Signal::TERM), (1, Signal::INT), (300, Signal::TERM)] {
        process.proxy.signal(Signal::TERM);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        process.proxy.signal(repeated);
    }
    eventually("it stops accepting", async || is_refused(web).await).await;
    app.gate.add_permits(1);
    let answer = in_flight.await.unwrap().unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(exit_code(&mut process).await, Some(0));
    process.lines("no connection was cut").await;
    assert!(process.logged("second signal").is_empty());
}

#[tokio::test]
async fn what_is_left_at_the_end_of_the_grace_is_cut_and_named() {
    let app = App::start().await;
    let mut process = Process::start("http", &[app.ep()], "timeouts: {shutdown: 1s}").await;
    let web = process.web();
    let mut idle = Client::connect(web).await.unwrap();
    get(&mut idle, "/").await.unwrap();
    let hanging =
        tokio::spawn(async move { get(&mut Client::connect(web).await.unwrap(), "/never").await });
    app.wait_for(1).await;
    let begun = Instant::now();
    process.proxy.signal(Signal::TERM);
    // Nothing of the response had gone out, so the client gets 502. The request is not sent to
    // another endpoint.
    let answer = hanging.await.unwrap().unwrap();
    assert_eq!(
        (answer.status, answer.header("x-ebbtide-reason")),
        (502, Some("shutdown"))
    );
    soon("the end of the idle connection", idle.ended()).await;
    assert_eq!(exit_code(&mut process).await, Some(0));
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(app.waiting.load(Ordering::SeqCst), 1);
    let line = &process.lines("grace is over").await[0];
    assert_eq!(
        (&line["connections"], &line["in_flight"]),
        (&2.into(), &1.into()),
        "{line}"
    );
}

#[tokio::test]
async fn tcp_connections_go_on_during_the_grace_and_are_cut_at_its_end() {
    let echo = echo_or_flood().await;
    let mut process = Process::start(
        "tcp",
        &[Ep::new("echo", echo.address)],
        "timeouts: {shutdown: 4s}",
    )
    .await;
    let web = process.web();
    let mut quiet = TcpStream::connect(web).await.unwrap();
    let mut talking = TcpStream::connect(web).await.unwrap();
    let mut flooded = TcpStream::connect(web).await.unwrap();
    let mut buf = [0; 4096];
    for stream in [&mut quiet, &mut talking] {
        stream.write_all(b"before").await.unwrap();
        let n = soon("the echo", stream.read(&mut buf)).await.unwrap();
        assert_eq!(&buf[..n], b"before");
    }
    flooded.write_all(b"flood").await.unwrap();
    process.proxy.signal(Signal::TERM);
    eventually("it stops accepting", async || is_refused(web).await).await;
    talking.write_all(b"after").await.unwrap();
    let n = soon("the echo", talking.read(&mut buf)).await.unwrap();
    assert_eq!(&buf[..n], b"after");
    let end = soon("the cut", async {
        loop {
            match flooded.read(&mut buf).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error.kind()),
            }
        }
    })
    .await;
    assert_eq!(
        end,
        Err(std::io::ErrorKind::ConnectionReset),
        "a cut in mid-transfer must not look like an end"
    );
    assert_eq!(
        soon("the end", quiet.read(&mut buf)).await.unwrap(),
        0,
        "a quiet connection ends cleanly"
    );
    assert_eq!(exit_code(&mut process).await, Some(0));
    process.lines("grace is over").await;
    assert_eq!(process.logged("grace is over")[0]["connections"], 3);
}

#[tokio::test]
async fn what_waits_in_the_accept_queue_is_served() {
    let app = App::start().await;
    let more = "timeouts: {shutdown: 10m}\nlimits: {connections: 2}";
    let mut process = Process::start("http", &[app.ep()], more).await;
    let web = process.web();
    let mut first = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(web).await.unwrap();
        get(&mut client, "/").await.unwrap();
        first.push(client);
    }
    // For the kernel and the clients these are connected. The proxy has not accepted them.
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(web).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
            .await
            .unwrap();
        waiting.push(stream);
    }
    process.proxy.signal(Signal::TERM);
    eventually("/readyz fails", async || readyz(&process).await.0 == 503).await;
    drop(first);
    for (i, stream) in waiting.iter_mut().enumerate() {
        let mut answer = String::new();
        let read = soon("a response", stream.read_to_string(&mut answer)).await;
        assert!(
            read.is_ok() && answer.starts_with("HTTP/1.1 200 "),
            "{i}: {read:?} {answer:?}"
        );
        assert!(
            answer.to_ascii_lowercase().contains("connection: close"),
            "{answer:?}"
        );
    }
    assert_eq!(exit_code(&mut process).await, Some(0));
}

/// Clients that connect as fast as they can while the listener closes. Refused is right, connected
/// and then reset is not.
#[tokio::test]
async fn no_connected_client_is_reset_without_a_response() {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
    let app = App::start().await;
    for round in 0..5 {
        let mut process = Process::start(
            "http",
            &[app.ep()],
            "timeouts: {lameDuck: 300ms, shutdown: 10m}",
        )
        .await;
        let web = process.web();
        let clients: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(move || {
                    use std::io::{Read, Write};
                    let mut answered = 0;
                    loop {
                        let mut stream = match std::net::TcpStream::connect(web) {
                            Ok(stream) => stream,
                            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                                return Ok(answered);
                            }
                            Err(error) => return Err((answered, error)),
                        };
                        let mut answer = Vec::new();
                        stream
                            .set_read_timeout(Some(Duration::from_secs(30)))
                            .unwrap();
                        let outcome = stream
                            .write_all(REQUEST)
                            .and_then(|()| stream.read_to_end(&mut answer));
                        match outcome {
                            Ok(_) if answer.starts_with(b"HTTP/1.1 200 ") => answered += 1,
                            Ok(_) => {
                                return Err((
                                    answered,
                                    std::io::Error::other("ended without a response"),
                                ));
                            }
                            Err(error) => return Err((answered, error)),
                        }
                    }
                })
            })
            .collect();
        process.proxy.signal(Signal::TERM);
        assert_eq!(exit_code(&mut process).await, Some(0));
        for client in clients {
            let answered = client.join().unwrap();
            assert!(
                answered.as_ref().is_ok_and(|n| *n > 0),
                "round {round}: {answered:?}"
            );
        }
    }
}

#[tokio::test]
async fn endpoints_go_on_draining_and_nothing_is_bound_again() {
    let (a, b) = (echo_or_flood().await, echo_or_flood().await);
    let eps = [Ep::new("a", a.address), Ep::new("b", b.address)];
    let mut process = Process::start("tcp", &eps, "timeouts: {shutdown: 10m, drain: 1s}").await;
    let web = process.web();
    let mut streams = Vec::new();
    while a.accepted() < 2 || b.accepted() < 2 {
        // One accepted connection is the join check's.
        let mut stream = TcpStream::connect(web).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        soon("the echo", stream.read_exact(&mut [0; 5]))
            .await
            .unwrap();
        streams.push(stream);
    }
    process.proxy.signal(Signal::TERM);
    eventually("it stops accepting", async || is_refused(web).await).await;
    process.folder.endpoints(&eps[1..]);
    let receipt = &process.lines("endpoint forced").await[0];
    assert_eq!(receipt["address"], a.address.to_string());
    let listening = process
        .lines("listening")
        .await
        .iter()
        .filter(|line| line["listener"] == "web")
        .count();
    assert_eq!(
        listening, 1,
        "a change of endpoints has opened the listener again"
    );
    drop(streams);
    assert_eq!(exit_code(&mut process).await, Some(0));
}

#[tokio::test]
async fn what_a_shutdown_cuts_on_a_draining_endpoint_is_counted_once() {
    for protocol in ["tcp", "http"] {
        let a = Play::start(|_| Act::Hang).await;
        let more = "timeouts: {drain: 10m, shutdown: 100ms}";
        let rig = Rig::with_protocol(protocol, more).await;
        rig.endpoints(&[Ep::new("a", a.address())]);
        rig.usable(1).await;
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        client.write_all(request).await.unwrap();
        eventually("in flight", async || a.heads() == 1).await;
        let snapshot = rig.running().admin.snapshot.load();
        let endpoint = snapshot.ports.values().next().unwrap().all[0].clone();
        rig.endpoints(&[]);
        eventually("the drain", async || endpoint.is_draining()).await;
        assert_eq!(endpoint.leases(), 1);
        rig.running().shutdown();
        eventually("the cut", async || endpoint.leases() == 0).await;
        let tally = &endpoint.tally;
        let counted = [&tally.finished, &tally.forced].map(|n| n.load(Ordering::Relaxed));
        assert_eq!(counted, [0, 1], "{protocol}");
    }
}

/// Runs `ebbtide run` with this configuration until it ends. Returns its exit code and its output.
async fn refused(config: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    let file = folder.path().join("ebbtide.yaml");
    std::fs::write(&file, config).unwrap();
    let mut command = tokio::process::Command::new(BINARY);
    command
        .args(["run", "--config"])
        .arg(&file)
        .kill_on_drop(true);
    let output = soon("its end", command.output()).await.unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// With SO_REUSEPORT both processes would get a part of the clients, without a word.
#[tokio::test]
async fn a_second_process_on_an_address_in_use_is_refused_or_warned_of() {
    let app = App::start().await;
    let endpoints = [Ep::new("app", app.endpoint.address)];
    let first = Process::start("http", &endpoints, "").await;
    let (web, admin) = (first.web().to_string(), first.proxy.admin.to_string());
    let to = app.endpoint.address.to_string();
    for (flag, listen, at) in [
        ("--listen", &web, "127.0.0.1:0"),
        ("--admin", &"127.0.0.1:0".to_owned(), admin.as_str()),
    ] {
        let mut command = tokio::process::Command::new(BINARY);
        command
            .args(["proxy", "--to", &to, "--listen", listen, "--admin", at])
            .kill_on_drop(true);
        let output = soon("its end", command.output()).await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains(flag) && text.contains("another program listens"),
            "{text}"
        );
    }
    // `run` may replace a process, so it only warns.
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\nadmin: {{address: '127.0.0.1:0'}}\n\
         listeners: [{{name: web, address: '{web}', service: web/shop, port: 80}}]\n"
    );
    let second = Process::run(&endpoints, &text, &["web"]).await;
    let warning = "another process listens";
    assert_eq!(second.lines(warning).await.len(), 1);
    assert_eq!(first.logged(warning).len(), 0);
}

#[tokio::test]
async fn a_taken_admin_port_is_a_refused_start() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let config =
        format!("discovery: {{files: {{path: manifests}}}}\nadmin: {{address: '{address}'}}\n");
    let (code, text) = refused(&config).await;
    assert_eq!(code, Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in [
        "admin.address",
        &address.to_string(),
        "another program",
        "choose another",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[tokio::test]
async fn a_taken_listener_port_is_named_and_bound_once_it_is_free() {
    let app = App::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\n\
         listeners:\n\
         - {{name: web, address: '127.0.0.1:0', service: web/shop, port: 80}}\n\
         - {{name: late, address: '{address}', service: web/shop, port: 80}}\n\
         admin: {{address: '127.0.0.1:0'}}\nworkers: 2\n"
    );
    let process = Process::run(&[app.ep()], &text, &["web"]).await;
    let (status, line) = readyz(&process).await;
    assert_eq!(status, 200);
    assert!(
        line.contains(&format!("late {address}")) && line.contains("in use"),
        "{line}"
    );
    let listeners = process.json("/api/v1/status").await["listeners"].clone();
    let late = listeners
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["name"] == "late")
        .unwrap()
        .clone();
    assert!(
        late["error"]
            .as_str()
            .is_some_and(|error| error.contains("in use")),
        "{late}"
    );
    assert_eq!(process.lines("cannot listen").await.len(), 1);
    get(&mut Client::connect(process.web()).await.unwrap(), "/")
        .await
        .unwrap();
    drop(taken);
    eventually("it is bound", async || {
        !readyz(&process).await.1.contains("late")
    })
    .await;
    get(&mut Client::connect(address).await.unwrap(), "/")
        .await
        .unwrap();
    // Logged once, not for every try.
    assert_eq!(process.lines("cannot listen").await.len(), 1);
}

/// The configuration of the SIGHUP tests: listeners by name, and timeouts.
fn two(listeners: &[&str], timeouts: &str) -> String {
    let listeners: String = listeners
        .iter()
        .map(|name| {
            format!("- {{name: {name}, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: http}}\n")
        })
        .collect();
    format!(
        "discovery: {{files: {{path: manifests}}}}\nlisteners:\n{listeners}admin: {{address: '127.0.0.1:0'}}\n\
         workers: 2\ntimeouts: {timeouts}\n"
    )
}

async fn reload(process: &Process, text: &str) {
    std::fs::write(process.folder.path().join("ebbtide.yaml"), text).unwrap();
    process.proxy.signal(Signal::HUP);
}

/// The address that the listener is bound to, by the status page.
async fn bound(process: &Process, name: &str) -> Option<SocketAddr> {
    let status = process.json("/api/v1/status").await;
    let listener = status["listeners"]
        .as_array()?
        .iter()
        .find(|l| l["name"] == name)?
        .clone();
    listener["address"].as_str()?.parse().ok()
}

#[tokio::test]
async fn sighup_adds_and_removes_listeners_and_keeps_all_others() {
    let app = App::start().await;
    let process = Process::run(
        &[app.ep()],
        &two(&["kept", "removed"], "{}"),
        &["kept", "removed"],
    )
    .await;
    let (kept, removed) = (
        process.proxy.listeners["kept"],
        process.proxy.listeners["removed"],
    );
    let mut clients = [
        Client::connect(kept).await.unwrap(),
        Client::connect(removed).await.unwrap(),
    ];
    for client in &mut clients {
        get(client, "/").await.unwrap();
    }
    reload(&process, &two(&["kept", "added"], "{}")).await;
    eventually("the new listener", async || {
        bound(&process, "added").await.is_some()
    })
    .await;
    let added = bound(&process, "added").await.unwrap();
    get(&mut Client::connect(added).await.unwrap(), "/")
        .await
        .unwrap();
    eventually("the removed listener is closed", async || {
        is_refused(removed).await
    })
    .await;
    assert_eq!(bound(&process, "removed").await, None);
    assert_eq!(bound(&process, "kept").await, Some(kept));
    // Existing connections go on, also those of the removed listener.
    for client in &mut clients {
        assert!(get(client, "/").await.unwrap().keep_alive);
    }
    assert_eq!(
        process
            .lines("listening")
            .await
            .iter()
            .filter(|line| line["listener"] == "kept")
            .count(),
        1
    );
}

#[tokio::test]
async fn sighup_with_a_bad_file_changes_nothing_and_logs_why() {
    let app = App::start().await;
    let process = Process::run(&[app.ep()], &two(&["web"], "{}"), &["web"]).await;
    let mut client = Client::connect(process.web()).await.unwrap();
    get(&mut client, "/").await.unwrap();
    reload(&process, &two(&["web", "other"], "{shutdown: soon}")).await;
    let line = &process.lines("the new configuration is refused").await[0];
    let error = line["error"].as_str().unwrap();
    assert!(
        error.contains("ebbtide.yaml") && error.contains("timeouts.shutdown"),
        "{error}"
    );
    assert_eq!(bound(&process, "other").await, None);
    get(&mut client, "/").await.unwrap();
    get(&mut Client::connect(process.web()).await.unwrap(), "/")
        .await
        .unwrap();
    // A correct file is used after it.
    reload(&process, &two(&["web", "other"], "{}")).await;
    eventually("the new listener", async || {
        bound(&process, "other").await.is_some()
    })
    .await;
}

#[tokio::test]
async fn sighup_changes_timeouts_for_new_connections() {
    let app = App::start().await;
    let process = Process::run(&[app.ep()], &two(&["web"], "{clientIdle: 10m}"), &["web"]).await;
    let mut old = Client::connect(process.web()).await.unwrap();
    get(&mut old, "/").await.unwrap();
    reload(&process, &two(&["web"], "{clientIdle: 200ms}")).await;
    process.lines("the new configuration is in force").await;
    let new = Client::connect(process.web()).await.unwrap();
    soon("the end of an idle client", new.ended()).await;
    // The timeout of a wait is the one that was in force when the wait began.
    assert!(get(&mut old, "/").await.unwrap().keep_alive);
}

/// A field that needs a restart is named when it changes, and not when its change is taken back.
#[tokio::test]
async fn sighup_names_a_field_that_needs_a_restart_once() {
    let app = App::start().await;
    let text = |workers: u32, more: &str| {
        two(&["web"], "{}").replace("workers: 2", &format!("workers: {workers}\n{more}"))
    };
    let process = Process::run(&[app.ep()], &text(2, ""), &["web"]).await;
    let changes = [
        (3, ""),
        (3, "accessLog: json"),
        (2, "accessLog: json"),
        (2, ""),
        (4, ""),
    ];
    for (count, (workers, more)) in changes.into_iter().enumerate() {
        reload(&process, &text(workers, more)).await;
        eventually("the reload", async || {
            process.logged("the new configuration is in force").len() > count
        })
        .await;
    }
    let lines = process.logged("takes effect only at a restart");
    let fields: Vec<_> = lines
        .iter()
        .map(|line| line["field"].as_str().unwrap())
        .collect();
    assert_eq!(fields, ["workers", "accessLog", "workers"]);
}

/// As on a node whose DaemonSet pod is replaced with `maxSurge`: both processes have the same
/// addresses.
#[tokio::test]
async fn a_process_is_replaced_by_one_at_the_same_addresses() {
    let app = App::start().await;
    let free = [
        std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
        std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
    ];
    let [web, admin] = free.map(|socket| socket.local_addr().unwrap());
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\n\
         listeners: [{{name: web, address: '{web}', service: web/shop, port: 80, protocol: http}}]\n\
         admin: {{address: '{admin}'}}\nworkers: 2\n"
    );
    let mut old = Process::run(&[app.ep()], &text, &["web"]).await;
    let mut kept = Client::connect(web).await.unwrap();
    let gated = tokio::spawn(async move { get(&mut kept, "/gate").await });
    app.wait_for(1).await;

    let new = Process::run(&[app.ep()], &text, &["web"]).await;
    assert_eq!(old.lines("admin address given").await.len(), 1);
    old.proxy.signal(Signal::TERM);
    old.lines("shutting down").await;
    let readyz = new.proxy.page("/readyz").await.unwrap();
    assert_eq!(
        readyz.text(),
        "ready\n",
        "the new process answers, not the leaving one"
    );
    // New connections are served by a process that still accepts.
    for _ in 0..20 {
        let mut client = Client::connect(web).await.unwrap();
        assert_eq!(get(&mut client, "/").await.unwrap().status, 200);
    }
    app.gate.add_permits(1);
    assert_eq!(
        gated.await.unwrap().unwrap().status,
        200,
        "a request in flight at the old process ends there"
    );
    assert!(
        soon("the old process's end", old.proxy.wait())
            .await
            .unwrap()
            .success()
    );
    assert_eq!(
        get(&mut Client::connect(web).await.unwrap(), "/")
            .await
            .unwrap()
            .status,
        200
    );
    assert!(new.logged("another process listens").is_empty());
}

/// The process that was to replace the old one ends first (a bad release): the old process serves
/// the admin address again.
#[tokio::test]
async fn the_admin_address_returns_when_the_successor_ends() {
    let app = App::start().await;
    let admin = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\n\
         listeners: [{{name: web, address: '127.0.0.1:0', service: web/shop, port: 80}}]\nadmin: {{address: '{admin}'}}\n"
    );
    let old = Process::run(&[app.ep()], &text, &["web"]).await;
    let mut new = Process::run(&[app.ep()], &text, &["web"]).await;
    new.proxy.signal(Signal::KILL);
    soon("its end", new.proxy.wait()).await.unwrap();
    eventually("a response", async || {
        old.proxy
            .page("/readyz")
            .await
            .is_ok_and(|page| page.text() == "ready\n")
    })
    .await;
    assert_eq!(old.lines("admin address taken back").await.len(), 1);
}
