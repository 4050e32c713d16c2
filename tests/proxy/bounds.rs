//! The bounds of the process: connections, descriptors, memory of idle connections, and system
//! calls of busy ones. At a bound the proxy serves those it has accepted, and recovers when there
//! is room. The tests measure real processes from outside.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebbtide::command::demo::client::Client;
use ebbtide::command::demo::fleet::{Fleet, Options};
use ebbtide::command::demo::proxy::Proxy;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::proxy::ask::get;
use crate::proxy::scripted::Scripted;
use crate::support::binary::BINARY;
use crate::support::folder::{Ep, Folder};
use crate::support::manifests::{endpoint, service, slice};
use crate::support::memory::own_bytes;
use crate::support::process::Process;
use crate::support::rig::one_listener;
use crate::support::vitals::{cpu, limited, open_descriptors, room_for};
use crate::support::wait::{eventually, soon};

/// An endpoint that answers every request with `ok` and keeps the connection.
async fn app() -> Scripted {
    Scripted::start(|mut stream: TcpStream, _| async move {
        let mut buf = [0; 4096];
        while let Ok(1..) = stream.read(&mut buf).await {
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await
                .is_err()
            {
                return;
            }
        }
    })
    .await
}

async fn ok(client: &mut Client) {
    assert_eq!(get(client).await.status, 200);
}

/// A keep-alive client that has had one response.
async fn served(web: SocketAddr) -> Client {
    let mut client = soon("a connection", Client::connect(web)).await.unwrap();
    ok(&mut client).await;
    client
}

fn pid(proxy: &Proxy) -> u32 {
    proxy.pid().unwrap()
}

/// Fails if one more client is served although all places are taken. Returns that client as a task,
/// whose response is still to come.
async fn one_too_many(web: SocketAddr) -> tokio::task::JoinHandle<Client> {
    let mut waiting = tokio::spawn(served(web));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "served beyond the limit");
    waiting
}

#[tokio::test]
async fn at_the_limit_it_stops_accepting_and_recovers() {
    let app = app().await;
    let process = Process::start(
        "http",
        &[Ep::new("app", app.address)],
        "limits: {connections: 3}",
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(served(process.web()).await);
    }
    for round in 0..3 {
        let waiting = one_too_many(process.web()).await;
        let active = process
            .proxy
            .metric("ebbtide_connections_active", |_| true)
            .await
            .unwrap();
        assert_eq!(active, 3.0, "round {round}");
        // Clients with a place notice nothing.
        for client in &mut clients {
            ok(client).await;
        }
        clients.remove(0);
        clients.push(soon("the place that became free", waiting).await.unwrap());
    }
}

#[tokio::test]
async fn the_effective_limit_is_what_descriptors_allow() {
    let app = app().await;
    let folder = tempfile::tempdir().unwrap();
    let program = limited(BINARY.as_ref(), 600, folder.path());
    let process = Process::run_as(&program, &[Ep::new("app", app.address)], "http", "").await;
    let warning = &process.lines("fewer clients than the default").await[0];
    // 24, 4 for each of 2 workers, an eighth, a listening socket for each worker, and two for each.
    assert_eq!(
        (&warning["limit"], &warning["descriptors"]),
        (&247.into(), &600.into())
    );
    let mut clients = Vec::new();
    for _ in 0..247 {
        clients.push(served(process.web()).await);
    }
    let waiting = one_too_many(process.web()).await;
    clients.pop();
    soon("the place that became free", waiting).await.unwrap();
}

/// One Service wants every place: the last ones are for the other.
#[tokio::test]
async fn the_last_places_are_not_for_a_service_that_has_half_of_all() {
    let app = app().await;
    let folder = Folder::new();
    folder.write("service-other.json", &service("other", json!({})));
    let ep = Ep::new("app", app.address);
    let mut slice = ep.slice_of("other", "");
    slice["metadata"]["name"] = json!("other");
    folder.endpoints(&[ep]);
    folder.write("other-slice.json", &slice);
    let text = "discovery: {files: {path: manifests}}\n\
         listeners:\n\
         - {name: web, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: http}\n\
         - {name: other, address: '127.0.0.1:0', service: web/other, port: 80, protocol: http}\n\
         admin: {address: '127.0.0.1:0'}\nworkers: 2\nlimits: {connections: 16}\n";
    let proxy = Proxy::start(BINARY.as_ref(), folder.path(), text, &["web", "other"]);
    let process = Process {
        proxy: proxy.await.unwrap(),
        folder,
    };
    process.ready(2).await;
    let mut greedy = Vec::new();
    for _ in 0..14 {
        greedy.push(served(process.web()).await);
    }
    let waiting = one_too_many(process.web()).await;
    let other = process.proxy.listeners["other"];
    let modest = [served(other).await, served(other).await];
    drop(modest);
    greedy.pop();
    soon("the place that became free", waiting).await.unwrap();
}

/// Of 300 claimed Services with a nodePort, 71 have a place.
#[tokio::test]
async fn ports_without_a_descriptor_are_named_and_cost_the_others_nothing() {
    let app = app().await;
    let folder = Folder::new();
    let free: Vec<_> = (0..300)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let ports: Vec<u16> = free
        .iter()
        .map(|it| it.local_addr().unwrap().port())
        .collect();
    drop(free);
    for (number, port) in ports.into_iter().enumerate() {
        let name = format!("many-{number}");
        // Connects to 300 endpoints at once would need descriptors, too.
        let mut service = service(&name, json!({"ebbtide.dev/join-check": "off"}));
        service["metadata"]["labels"] =
            json!({"service.kubernetes.io/service-proxy-name": "ebbtide"});
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(port);
        folder.write(&format!("service-{name}.json"), &service);
        // A Service that never had an endpoint gets no socket.
        let endpoint = endpoint("127.0.0.1", None, [true, true, false]);
        let slice = slice(&name, &name, ("", app.address.port()), &[endpoint]);
        folder.write(&format!("of-{name}.json"), &slice);
    }
    folder.endpoints(&[Ep::new("app", app.address)]);
    let program = limited(BINARY.as_ref(), 200, folder.path());
    let text = one_listener("http", "nodePorts: {addresses: [127.0.0.1]}");
    let proxy = Proxy::start(&program, folder.path(), &text, &["web"]);
    let process = Process {
        proxy: proxy.await.unwrap(),
        folder,
    };
    process.ready(1).await;
    let mut clients = Vec::new();
    for _ in 0..30 {
        clients.push(served(process.web()).await);
    }
    let failed = async || {
        process
            .proxy
            .metric("ebbtide_listeners_failed", |_| true)
            .await
    };
    eventually("all ports tried", async || {
        failed().await.unwrap_or(0.0) > 0.0
    })
    .await;
    // One listener with a socket for each worker, and nodePorts with one each.
    assert_eq!(failed().await.unwrap(), 301.0 - 72.0);
    let answer = process.proxy.page("/readyz").await.unwrap();
    let text = answer.text();
    assert!(
        text.contains("no descriptor is left for it: of 200, 73 are for listening"),
        "{text}"
    );
}

/// A default that cannot be had is no fault of the configuration.
#[tokio::test]
async fn a_limit_that_descriptors_do_not_allow_is_a_warning_only_if_it_was_asked_for() {
    let app = app().await;
    let (quiet, loud) = (
        "the descriptor limit allows fewer clients",
        "limits.connections is more than the descriptor limit allows",
    );
    for (more, said, unsaid) in [
        ("", quiet, loud),
        ("limits: {connections: 900}", loud, quiet),
    ] {
        let folder = Folder::new();
        let program = limited(BINARY.as_ref(), 200, folder.path());
        let endpoints = [Ep::new("app", app.address)];
        let process = Process::run_as(&program, &endpoints, "http", more).await;
        assert_eq!(process.lines(said).await.len(), 1);
        assert_eq!(process.logged(unsaid).len(), 0, "{more}");
    }
}

#[tokio::test]
async fn with_too_few_descriptors_it_refuses_to_start_and_says_how_many_it_needs() {
    let folder = Folder::new();
    let file = folder.path().join("ebbtide.yaml");
    std::fs::write(&file, one_listener("http", "")).unwrap();
    let program = limited(BINARY.as_ref(), 90, folder.path());
    let output = tokio::process::Command::new(program)
        .arg("run")
        .arg("--config")
        .arg(&file)
        .output();
    let output = soon("the refusal", output).await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("ulimit -n") && text.contains("at least 96"),
        "{text}"
    );
}

/// A client that has had a response. The response may be 503: the client's own connection took the
/// last descriptor, and the hold time passed before another was free.
async fn answered(web: SocketAddr) -> Client {
    let mut client = soon("a connection", Client::connect(web)).await.unwrap();
    let answer = get(&mut client).await;
    assert!([200, 503].contains(&answer.status), "{}", answer.status);
    client
}

#[tokio::test]
async fn out_of_descriptors_it_neither_spins_nor_dies_and_recovers() {
    let app = app().await;
    let process = Process::start(
        "http",
        &[Ep::new("app", app.address)],
        "timeouts: {hold: 300ms}",
    )
    .await;
    let pid = pid(&process.proxy);
    drop(served(process.web()).await);
    limit_descriptors(pid, open_descriptors(pid) + 10);
    let web = process.web();
    let mut clients: Vec<_> = (0..60).map(|_| tokio::spawn(answered(web))).collect();
    // No client leaves, so the descriptors run out. The shortage lasts long enough to show a busy
    // loop.
    process.lines("cannot accept").await;
    let (before, begun) = (cpu(pid), Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let busy = (cpu(pid) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(
        busy < 0.1,
        "{:.0} % of a processor while no descriptor is free",
        busy * 100.0
    );
    assert!(
        clients.iter().any(|client| !client.is_finished()),
        "the limit was not hit"
    );
    // A client leaves once it has its response. In the end all have one.
    while let Some(client) = clients.pop() {
        if client.is_finished() {
            drop(client.await.unwrap());
        } else {
            clients.insert(0, client);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    // The shortage is logged now and then, not for every try.
    assert!(
        process.logged("cannot accept").len() < 20,
        "{}",
        process.proxy.log_tail()
    );
    drop(served(web).await);
}

/// New connections get the descriptors that are left over, not those that established clients need
/// for their next request.
#[tokio::test]
async fn an_established_client_does_not_lose_its_descriptors_to_new_connections() {
    let app = app().await;
    let process = Process::start(
        "http",
        &[Ep::new("app", app.address)],
        "timeouts: {hold: 300ms}",
    )
    .await;
    let (pid, web) = (pid(&process.proxy), process.web());
    let mut established = Vec::new();
    for _ in 0..8 {
        established.push(served(web).await);
    }
    // Each established client has a connection to the endpoint.
    futures::future::join_all(established.iter_mut().map(get)).await;
    limit_descriptors(pid, first_free_descriptor(pid));
    let new_clients: Vec<_> = (0..60).map(|_| tokio::spawn(answered(web))).collect();
    process.lines("cannot accept").await;
    for _ in 0..20 {
        for client in &mut established {
            ok(client).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    new_clients.iter().for_each(|client| client.abort());
}

#[tokio::test]
async fn kept_upstream_connections_do_not_starve_clients_of_descriptors() {
    let mut apps = Vec::new();
    for _ in 0..30 {
        apps.push(app().await);
    }
    let eps: Vec<Ep> = apps
        .iter()
        .enumerate()
        .map(|(i, app)| Ep::new(&format!("app-{i}"), app.address))
        .collect();
    let process = Process::start("http", &eps, "").await;
    let pid = pid(&process.proxy);
    limit_descriptors(pid, open_descriptors(pid) + 24);
    // There are far fewer clients than descriptors, but each client leaves a connection on every
    // endpoint that it reaches.
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(served(process.web()).await);
        for client in &mut clients {
            for _ in 0..30 {
                ok(client).await;
            }
        }
    }
    // A join check or a scrape must succeed, too, although no number below the limit is free.
    limit_descriptors(pid, first_free_descriptor(pid));
    let failed = process
        .proxy
        .metric("ebbtide_requests_total", |labels| !labels.contains("2xx"))
        .await
        .unwrap();
    assert_eq!(failed, 0.0);
}

/// The bytes of the proxy's own memory that each of `count` connections costs, once `open` has made
/// it and left it idle. A debug build's futures are as large as those of a release build.
async fn cost_of_idle<C>(
    protocol: &str,
    endpoints: &[Ep],
    count: usize,
    open: impl AsyncFn(SocketAddr) -> C,
) -> f64 {
    let process = Process::start(protocol, endpoints, "").await;
    let pid = pid(&process.proxy);
    // The first clients are not counted, so that one-time allocations happen before the
    // measurement.
    let mut warm = Vec::new();
    for _ in 0..200 {
        warm.push(open(process.web()).await);
    }
    let mut clients = Vec::with_capacity(count);
    let before = own_bytes(pid);
    for _ in 0..count {
        clients.push(open(process.web()).await);
    }
    let active = process
        .proxy
        .metric("ebbtide_connections_active", |_| true)
        .await
        .unwrap();
    assert_eq!(active as usize, count + warm.len());
    let after = own_bytes(pid);
    (after as f64 - before as f64) / count as f64
}

#[tokio::test]
async fn an_idle_connection_is_small() {
    let Some(count) = room_for(9_000) else {
        return println!(
            "SKIPPED: an_idle_connection_is_small: the hard limit of descriptors is too low"
        );
    };
    // The other ends of the connections are in the sample application, so this process needs one
    // descriptor for each.
    let options = Options {
        replicas: 1,
        app_args: vec!["--tcp".into()],
        ..Options::new(BINARY)
    };
    let fleet = Fleet::start(options).await.unwrap();
    let pair = [Ep::new("echo", fleet.pods()[0].address)];
    let app = app().await;
    let http = [Ep::new("app", app.address)];
    let echoed = async |web: SocketAddr| {
        let mut stream = TcpStream::connect(web).await.unwrap();
        // A byte that cannot begin a request line.
        stream.write_all(b"\0").await.unwrap();
        soon("the echo", stream.read_exact(&mut [0])).await.unwrap();
        stream
    };
    let tcp = cost_of_idle("tcp", &pair, count, echoed).await;
    let auto = cost_of_idle("auto", &pair, count, echoed).await;
    let http = cost_of_idle("http", &http, count, served).await;
    println!(
        "{count} of each: a TCP pair {tcp:.0} bytes ({auto:.0} by auto), an HTTP client {http:.0}"
    );
    assert!(
        tcp.max(auto) <= 1_792.0,
        "a TCP pair costs {tcp:.0} bytes, by auto {auto:.0}"
    );
    assert!(http <= 2_560.0, "an HTTP client costs {http:.0} bytes");
}

/// 64 clients that never pause. strace counts once all of them are connected.
#[tokio::test]
async fn a_keep_alive_request_costs_four_system_calls() {
    const CLIENTS: usize = 64;
    const REQUESTS: usize = 200;
    let app = app().await;
    let process = Process::start("http", &[Ep::new("app", app.address)], "").await;
    let web = process.web();
    let barrier = Arc::new(Barrier::new(CLIENTS + 1));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let barrier = barrier.clone();
            tokio::spawn(async move {
                let mut client = served(web).await;
                // First barrier: all clients are connected. Second barrier: strace is attached.
                barrier.wait().await;
                barrier.wait().await;
                for _ in 0..REQUESTS {
                    ok(&mut client).await;
                }
                barrier.wait().await;
                barrier.wait().await;
            })
        })
        .collect();
    barrier.wait().await;
    // Within a second after its connect, each connection to an endpoint costs five more system
    // calls, which set its timeouts.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let counts = process.folder.path().join("strace");
    let mut strace = tokio::process::Command::new("strace");
    strace
        .args(["-c", "-f", "-p", &pid(&process.proxy).to_string(), "-o"])
        .arg(&counts);
    let Ok(mut strace) = strace
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
    else {
        return println!(
            "SKIPPED: a_keep_alive_request_costs_four_system_calls: strace is not installed"
        );
    };
    // strace reports that it has attached, or why it cannot.
    let mut said = BufReader::new(strace.stderr.take().unwrap()).lines();
    let line = soon("strace", said.next_line())
        .await
        .unwrap()
        .unwrap_or_default();
    if !line.contains("attached") {
        return println!(
            "SKIPPED: a_keep_alive_request_costs_four_system_calls: strace cannot attach: {line}"
        );
    }
    tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
    barrier.wait().await;
    soon("all responses", barrier.wait()).await;
    let id = Pid::from_raw(strace.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(id, Signal::INT).unwrap();
    soon("the end of strace", strace.wait()).await.unwrap();
    barrier.wait().await;
    for client in clients {
        client.await.unwrap();
    }
    let table = std::fs::read_to_string(&counts).unwrap();
    let of = |name: &str| {
        let line = table
            .lines()
            .find(|line| line.trim_end().ends_with(name))
            .unwrap();
        line.split_whitespace()
            .nth(3)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            / (CLIENTS * REQUESTS) as f64
    };
    let (all, waits) = (of("total"), of("epoll_wait"));
    println!("{all:.3} system calls a request, {waits:.3} of them epoll_wait\n{table}");
    // The load of the machine decides how many requests one epoll_wait brings. It must be more than
    // one.
    assert!(
        (3.9..=4.05).contains(&(all - waits)),
        "{all:.3} system calls a request\n{table}"
    );
    assert!(waits < 1.0, "{waits:.3} epoll_wait a request\n{table}");
}

/// The lowest free descriptor number.
fn first_free_descriptor(pid: u32) -> u64 {
    (0..)
        .find(|fd| !Path::new(&format!("/proc/{pid}/fd/{fd}")).exists())
        .unwrap()
}

/// Lowers the limit of a running process. The process does not notice until it reaches the limit.
fn limit_descriptors(pid: u32, to: u64) {
    let limit = Rlimit {
        current: Some(to),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    prlimit(Pid::from_raw(pid.cast_signed()), Resource::Nofile, limit).unwrap();
}
