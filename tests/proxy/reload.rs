//! A listener that a new configuration leads to another Service: its clients go on there (contract 1.5).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::proxy::h2::app::{Client, Version, request};
use crate::proxy::ingress::{add, ask, named, ok};
use crate::support::folder::Ep;
use crate::support::process::Process;
use crate::support::wait::eventually;

fn text(at: SocketAddr, service: &str) -> String {
    format!(
        "discovery: {{files: {{path: manifests}}}}\nlisteners:\n\
         - {{name: web, address: '{at}', service: web/{service}, port: 80, protocol: http}}\n\
         admin: {{address: '127.0.0.1:0'}}\nworkers: 2\n"
    )
}

async fn reload(process: &Process, text: &str) {
    std::fs::write(process.folder.path().join("ebbtide.yaml"), text).unwrap();
    process.proxy.signal(Signal::HUP);
}

#[tokio::test]
async fn clients_of_a_listener_go_on_at_the_service_to_which_it_leads_now() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = free.local_addr().unwrap();
    drop(free);
    let (shop, green) = (named("shop").await, named("green").await);
    let endpoints = [Ep::new("shop", shop.address())];
    let process = Process::run(&endpoints, &text(at, "shop"), &["web"]).await;
    add(&process.folder, "green", green.address());
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut client = TcpStream::connect(at).await.unwrap();
        assert_eq!(ask(&mut client, "x", "/", "").await, ok("shop"));
        kept.push(client);
    }
    let mut streams = Client::connect(Version::H2, at).await;
    assert_eq!(streams.get("/").await, ok("shop"));
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let others = tokio::spawn(async move {
        let mut asked = 0;
        while !over.load(Ordering::SeqCst) {
            let mut client = TcpStream::connect(at).await.unwrap();
            assert_eq!(ask(&mut client, "x", "/", "").await.0, 200);
            asked += 1;
        }
        asked
    });
    for service in ["green", "shop", "green"] {
        reload(&process, &text(at, service)).await;
        for client in &mut kept {
            eventually(&format!("a client is led to {service}"), async || {
                let (status, text) = ask(client, "x", "/", "").await;
                assert_eq!(status, 200, "{text}");
                text == service
            })
            .await;
        }
        eventually(&format!("streams are led to {service}"), async || {
            let (status, text) = streams.get("/").await;
            assert_eq!(status, 200, "{text}");
            text == service
        })
        .await;
    }
    is_over.store(true, Ordering::SeqCst);
    assert!(others.await.unwrap() > 0);
    // Nothing takes the place of a listener that is removed: its clients are told to go.
    reload(
        &process,
        &text(at, "shop").replace(&at.to_string(), "127.0.0.1:0"),
    )
    .await;
    eventually("the connection of HTTP/2 ends", async || {
        if streams.is_open() {
            let _ = streams.ask(request("GET", "/"), None).await;
        }
        !streams.is_open()
    })
    .await;
}
