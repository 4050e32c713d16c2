//! Which Services are served (contract 2.8), and what a claim binds (contract 2.9). An unclaimed
//! Service that no listener names is left alone. The end of a claim keeps the connections of
//! connected clients.

use std::net::{IpAddr, UdpSocket};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::api::{Api, Kind};
use super::rig::{Rig, WEB, claimed, deleting, pod, ready, service, shop, slice};
use crate::support::manifests::endpoint;
use crate::support::wait::eventually;

#[tokio::test]
async fn a_service_of_another_uid_is_another_service() {
    for by_list in [false, true] {
        let api = shop(2).await;
        let rig = Rig::start(&api).await;
        let ids = || {
            rig.port("shop")
                .unwrap()
                .usable
                .iter()
                .map(|endpoint| endpoint.id)
                .collect::<Vec<_>>()
        };
        rig.shop(&[1, 2]).await;
        let before = ids();
        let mut other = service("shop");
        other["metadata"]["uid"] = "another".into();
        if by_list {
            // Deleted and created again while no watch reported Services.
            api.hold(Kind::Services);
            api.apply(&other);
            api.forget_by_status(Kind::Services);
            api.release(Kind::Services);
        } else {
            api.delete(Kind::Services, "web", "shop");
            api.apply(&other);
        }
        eventually("drained", async || rig.drained() == [1, 2]).await;
        rig.shop(&[1, 2]).await;
        assert!(
            ids().iter().all(|id| !before.contains(id)),
            "new endpoints, new pools"
        );
    }
}

#[tokio::test]
async fn a_headless_service_is_served_and_an_external_name_is_not() {
    let api = shop(1).await;
    let mut headless = claimed(service("headless"));
    headless["spec"]["clusterIP"] = "None".into();
    headless["spec"]["type"] = "ClusterIP".into();
    api.apply(&headless);
    api.apply(&slice("h", "headless", &[ready(2, "p2")]));
    let mut external = claimed(service("external"));
    external["spec"]["type"] = "ExternalName".into();
    external["spec"]["externalName"] = "shop.example".into();
    api.apply(&external);
    api.apply(&slice("x", "external", &[ready(3, "p3")]));
    let rig = Rig::start(&api).await;
    assert_eq!(
        (rig.usable("headless"), rig.usable("shop")),
        (vec![2], vec![1])
    );
    assert!(rig.port("external").is_none());
    rig.clean().await;
}

#[tokio::test]
async fn unclaimed_services_are_not_served() {
    let api = shop(1).await;
    api.apply(&service("other"));
    api.apply(&slice("o", "other", &[ready(2, "p2")]));
    let mut foreign = claimed(service("foreign"));
    foreign["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = "cilium".into();
    api.apply(&foreign);
    // A Service that a listener names is served there. Its nodePort is not bound.
    let mut named = service("shop");
    named["spec"]["ports"][0]["nodePort"] = 30_080.into();
    api.apply(&named);
    let rig = Rig::launch(
        &api,
        "",
        &format!("{WEB}\nnodePorts: {{addresses: [127.0.0.1]}}"),
    );
    rig.clean().await;
    let listeners = rig.running().admin.health.state().listeners;
    assert_eq!(
        listeners
            .iter()
            .map(|it| it.name.as_str())
            .collect::<Vec<_>>(),
        ["web"]
    );
    rig.settled().await;
    assert!(rig.port("other").is_none() && rig.port("foreign").is_none());
    assert_eq!(rig.usable("shop"), [1]);
    api.apply(&claimed(service("other")));
    eventually("claimed", async || rig.usable("other") == [2]).await;
    api.apply(&service("other"));
    eventually("let go", async || rig.port("other").is_none()).await;
}

/// An address of this machine that is not loopback. Loopback addresses from an API server are
/// refused (contract 2.5).
fn own_address() -> Result<IpAddr, String> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
    // Connecting a UDP socket sends nothing: it only looks up the route.
    socket
        .connect("198.18.0.1:9")
        .map_err(|error| format!("no route ({error})"))?;
    let address = socket.local_addr().map_err(|error| error.to_string())?.ip();
    if address.is_loopback() {
        Err("only a loopback address".into())
    } else {
        Ok(address)
    }
}

#[tokio::test]
async fn a_claim_binds_the_node_port_and_its_end_releases_it_and_keeps_the_connections() {
    let address = match own_address() {
        Ok(address) => address,
        Err(why) => {
            return println!(
                "SKIPPED: a_claim_binds_the_node_port_and_its_end_releases_it_and_keeps_the_connections: {why}"
            );
        }
    };
    let echo = TcpListener::bind((address, 0)).await.unwrap();
    let target = echo.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    let api = Api::start().await;
    let node_port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut shop = service("shop");
    shop["metadata"]["annotations"] = json!({"ebbtide.dev/protocol": "tcp"});
    shop["spec"]["ports"][0]["nodePort"] = node_port.into();
    let mut endpoints = slice(
        "s",
        "shop",
        &[endpoint(
            &target.ip().to_string(),
            Some("p1"),
            [true, true, false],
        )],
    );
    endpoints["ports"][0]["port"] = target.port().into();
    [&shop, &endpoints, &pod("p1")]
        .iter()
        .for_each(|object| api.apply(object));
    let rig = Rig::launch(&api, "", "nodePorts: {addresses: [127.0.0.1]}");
    rig.clean().await;
    let listener = || rig.running().listener("web/shop:80@127.0.0.1");
    assert_eq!(listener(), None);

    api.apply(&claimed(shop.clone()));
    eventually("bound", async || {
        listener().is_some_and(|it| it.port() == node_port)
    })
    .await;
    let mut client = TcpStream::connect(("127.0.0.1", node_port)).await.unwrap();
    let mut echoes = async || {
        client.write_all(b"hello").await.unwrap();
        let mut echoed = [0; 5];
        let read = tokio::time::timeout(
            std::time::Duration::from_secs(30),
            client.read_exact(&mut echoed),
        )
        .await;
        assert!(matches!(read, Ok(Ok(_))) && echoed == *b"hello", "{read:?}");
    };
    echoes().await;

    api.apply(&shop);
    eventually("released", async || listener().is_none()).await;
    eventually("closed", async || {
        std::net::TcpStream::connect(("127.0.0.1", node_port)).is_err()
    })
    .await;
    echoes().await;
    // The namespace is still watched, because clients are still connected to the Service.
    api.apply(&deleting(pod("p1"), &api, 600, 600));
    // The only endpoint would be the last resort for as long as it serves.
    endpoints["endpoints"][0]["conditions"] =
        json!({"ready": false, "serving": false, "terminating": true});
    api.apply(&endpoints);
    eventually("its drain", async || {
        rig.drains()
            .first()
            .is_some_and(|drain| drain.in_flight == 1)
    })
    .await;
    echoes().await;
}
