//! A process that is started beside the one that it replaces, as on a node whose DaemonSet pod is
//! replaced (contract 1.14): while it knows nothing yet, the node still serves.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use ebbtide::app;
use ebbtide::config::settings::Config;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::support::binary::BINARY;
use crate::support::folder::Folder;
use crate::support::process::Process;
use crate::support::wait::eventually;

/// The status code of `/readyz` for a client with the last number `from` of 127.0.0.0/8. From the
/// address of the admin pages themselves, the kubelet asks; from others, load balancers.
async fn readyz(admin: SocketAddr, from: u8) -> Option<String> {
    let socket = TcpSocket::new_v4().unwrap();
    let own = Ipv4Addr::new(127, 0, 0, from);
    socket.bind(SocketAddr::from((own, 0))).unwrap();
    let mut stream = socket.connect(admin).await.ok()?;
    let request = b"GET /readyz HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text.get(9..12)?.to_owned())
}

#[tokio::test]
async fn the_node_is_ready_while_the_old_process_serves_and_the_new_one_knows_nothing() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = free.local_addr().unwrap();
    drop(free);
    let common = format!("admin: {{address: '{admin}'}}\nworkers: 1\n");
    let text =
        format!("discovery: {{files: {{path: manifests}}}}\ntimeouts: {{lameDuck: 10m}}\n{common}");
    let mut old = Process::run(&[], &text, &[]).await;
    eventually("ready", async || {
        readyz(admin, 1).await.as_deref() == Some("200")
    })
    .await;

    // Nobody listens at this API server's address.
    let folder = Folder::new();
    let kubeconfig = "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
         clusters: [{name: it, cluster: {server: 'http://127.0.0.1:9'}}]\n\
         users: [{name: it, user: {token: secret}}]\n\
         contexts: [{name: it, context: {cluster: it, user: it}}]\n";
    std::fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
    let text = format!("discovery: {{kubernetes: {{kubeconfig: kubeconfig}}}}\n{common}");
    let file = folder.path().join("ebbtide.yaml");
    std::fs::write(&file, text).unwrap();
    let new = app::start(Config::load(&file).unwrap()).unwrap();
    assert_eq!(old.lines("admin address given").await.len(), 1);
    assert_eq!(
        readyz(admin, 1).await.as_deref(),
        Some("503"),
        "the kubelet"
    );
    assert_eq!(readyz(admin, 2).await.as_deref(), Some("200"), "a balancer");

    // It goes on accepting for ten minutes, but wants no traffic.
    old.proxy.signal(Signal::TERM);
    eventually("not ready for anybody", async || {
        readyz(admin, 2).await.as_deref() == Some("503")
    })
    .await;
    old.proxy.signal(Signal::KILL);
    let _ = old.proxy.wait().await;
    assert_eq!(readyz(admin, 2).await.as_deref(), Some("503"));
    new.shutdown();
    new.shutdown();
    new.wait();
}

/// Each pod has a PID namespace of its own, so neither process can name the other one.
#[tokio::test]
async fn a_process_in_another_pid_namespace_takes_the_admin_address_over() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = free.local_addr().unwrap();
    drop(free);
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\nadmin: {{address: '{admin}'}}\nworkers: 1\n"
    );
    let mut old = Process::run(&[], &text, &[]).await;
    let ready = async || readyz(admin, 1).await.as_deref() == Some("200");
    eventually("ready", ready).await;

    let folder = Folder::new();
    let file = folder.path().join("ebbtide.yaml");
    std::fs::write(&file, &text).unwrap();
    let namespace = ["--pid", "--fork", "--kill-child"];
    let allowed = tokio::process::Command::new("unshare")
        .args(namespace)
        .arg("true")
        .status();
    if !allowed.await.is_ok_and(|status| status.success()) {
        return println!(
            "SKIPPED: a_process_in_another_pid_namespace: unshare --pid is not allowed"
        );
    }
    let mut new = tokio::process::Command::new("unshare")
        .args(namespace)
        .args([BINARY, "run", "--config"])
        .arg(&file)
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    assert_eq!(old.lines("admin address given").await.len(), 1);
    old.proxy.signal(Signal::KILL);
    let _ = old.proxy.wait().await;
    eventually("the new one has the address", ready).await;
    assert!(new.try_wait().unwrap().is_none(), "it runs");
    let _ = new.kill().await;
}
