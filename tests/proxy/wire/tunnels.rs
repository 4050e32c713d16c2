//! Connections that become tunnels (contract 4.2 and 4.4): a granted upgrade, and CONNECT where the
//! listener allows it. Early bytes in both directions arrive, and each end is passed on as it was.
//! The drain of a tunnel is tested in `tests/proxy/tcp.rs`.

use super::*;

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: chat\r\n\r\n";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: upgrade\r\n\r\n";

/// Switches protocols with a greeting in the same write as the response (`slow`: byte by byte).
/// Then echoes in capitals until the client's FIN, and answers that with `bye`.
async fn chat(slow: bool) -> Origin {
    Origin::start(move |mut wire, _| async move {
        let Some(head) = wire.head().await else { return };
        assert_eq!(
            head,
            format!("GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: chat\r\n{FORWARDED}Connection: upgrade\r\n\r\n")
        );
        let answer = SWITCHING.to_owned() + "hello";
        match slow {
            true => wire.dribble(answer.as_bytes()).await,
            false => wire.send(answer).await,
        }
        loop {
            let received = String::from_utf8_lossy(&std::mem::take(&mut wire.buffer)).to_uppercase();
            wire.send(received).await;
            if !wire.fill().await {
                break;
            }
        }
        wire.send("bye").await;
    })
    .await
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_with_early_data_both_ways() {
    for slow in [false, true] {
        let origin = chat(slow).await;
        let rig = scene(&origin, "").await;
        for at in 0..UPGRADE.len() + 3 {
            let mut client = Wire::connect(&rig).await;
            client
                .send_split(format!("{UPGRADE}early").as_bytes(), at)
                .await;
            assert_eq!(
                client.head().await.as_deref(),
                Some(SWITCHING),
                "split at {at}"
            );
            assert_eq!(
                client.take(10).await.unwrap(),
                b"helloEARLY",
                "split at {at}"
            );
            client.send("more").await;
            assert_eq!(client.take(4).await.unwrap(), b"MORE");
            client.half_close().await;
            assert_eq!(client.rest().await, ("bye".into(), End::Fin));
        }
    }
}

#[tokio::test]
async fn the_ends_of_a_tunnel_are_passed_on() {
    let (report, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |mut wire, number| {
        let report = report.clone();
        async move {
            wire.head().await.unwrap();
            wire.send(SWITCHING).await;
            match number {
                // Ends its direction, and reads the other one to the end.
                0 => {
                    wire.half_close().await;
                    report.send(wire.rest().await).unwrap();
                }
                1 => {
                    assert_eq!(wire.take(1).await.unwrap(), b"x");
                    wire.stream.set_zero_linger().unwrap();
                }
                _ => report.send(wire.rest().await).unwrap(),
            }
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    client.send(UPGRADE).await;
    assert_eq!(client.rest().await, (SWITCHING.into(), End::Fin));
    client.send("still heard").await;
    client.half_close().await;
    assert_eq!(
        soon("an end", ended.recv()).await.unwrap(),
        ("still heard".into(), End::Fin)
    );
    let mut client = Wire::connect(&rig).await;
    client.send(UPGRADE).await;
    client.head().await.unwrap();
    client.send("x").await;
    assert_eq!(client.rest().await, (String::new(), End::Reset));
    let mut client = Wire::connect(&rig).await;
    client.send(UPGRADE).await;
    client.head().await.unwrap();
    client.stream.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(
        soon("an end", ended.recv()).await.unwrap(),
        (String::new(), End::Reset)
    );
}

#[tokio::test]
async fn an_upgrade_not_granted_is_an_ordinary_exchange() {
    let origin = Origin::answering(|_| {
        "HTTP/1.1 426 No\r\nUpgrade: other\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n"
            .into()
    })
    .await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    for _ in 0..2 {
        client.send(UPGRADE).await;
        let expected =
            "HTTP/1.1 426 No\r\nUpgrade: other\r\nContent-Length: 0\r\nConnection: upgrade\r\n\r\n";
        assert_eq!(client.message().await.as_deref(), Some(expected));
    }
    assert_eq!(origin.used(), 1);
}

#[tokio::test]
async fn connect_makes_a_tunnel_where_it_is_allowed() {
    let origin = Origin::start(|mut wire, _| async move {
        while let Some(head) = wire.head().await {
            if head.starts_with("CONNECT no:80 HTTP/1.1\r\nHost: no:80\r\n") {
                wire.send("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
                    .await;
                continue;
            }
            assert!(
                head.starts_with("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n"),
                "{head}"
            );
            wire.send("HTTP/1.1 200 Connected\r\nContent-Length: 7\r\n\r\nhello")
                .await;
            let (received, _) = wire.rest().await;
            return wire.send(received.to_uppercase()).await;
        }
    })
    .await;
    let rig = scene_with(&origin, "protocol: http, allowConnect: true", "").await;
    let mut client = Wire::connect(&rig).await;
    client
        .send("CONNECT no:80 HTTP/1.1\r\nHost: no:80\r\n\r\n")
        .await;
    assert_eq!(
        client.message().await.as_deref(),
        Some("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
    );
    client
        .send("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\nearly")
        .await;
    assert_eq!(
        client.head().await.as_deref(),
        Some("HTTP/1.1 200 Connected\r\n\r\n")
    );
    assert_eq!(client.take(5).await.unwrap(), b"hello");
    client.half_close().await;
    assert_eq!(client.rest().await, ("EARLY".into(), End::Fin));
    assert_eq!(origin.used(), 1);
}
