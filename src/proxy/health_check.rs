//! The answer on a Service's `healthCheckNodePort`: whether this node has a ready endpoint of the
//! Service, in the words of kube-proxy. A load balancer asks each node, and sends clients only to
//! the nodes that answer 200.
//!
//! Invariant: an endpoint that terminates does not count, even where it still serves as last resort.
//! The path and the method have no effect, as with kube-proxy, and a connection gets one answer.

use std::collections::HashSet;
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use serde_json::json;

use crate::contract::name::ObjectName;
use crate::contract::policy::Scope;
use crate::contract::reason::CloseReason;
use crate::contract::snapshot::Published;
use crate::proxy::client::Client;
use crate::proxy::worker::Worker;

/// Answers one request of a client.
pub(super) async fn serve(
    worker: Rc<Worker>,
    mut client: Box<Client>,
    service: ObjectName,
) -> CloseReason {
    let limit = worker.config().timeouts.head;
    let exchange = async {
        if let Err(reason) = read_head(&worker, &mut client).await {
            return reason;
        }
        let serves = !worker.shared.leaving.load(Ordering::Relaxed);
        let endpoints = local_endpoints(&worker.shared.snapshot, &service);
        let answer = answer(&service, endpoints, serves);
        let sent = match client.stream.write_all(answer.as_bytes()).await {
            Ok(()) => client.stream.shutdown().await,
            failed => failed,
        };
        sent.map_or(CloseReason::ClientReset, |()| CloseReason::ClientClosed)
    };
    let ended = tokio::time::timeout(limit, exchange).await;
    ended.unwrap_or(CloseReason::ClientTimeout)
}

async fn read_head(worker: &Worker, client: &mut Client) -> Result<(), CloseReason> {
    loop {
        let before = client.unread.len();
        let read = poll_fn(|cx| client.poll_fill(cx, worker)).await;
        read.map_err(|_| CloseReason::ClientReset)?;
        if client.unread.len() == before {
            return Err(CloseReason::ClientClosed);
        }
        if client.unread.windows(4).any(|it| it == b"\r\n\r\n") {
            return Ok(());
        }
        if client.unread.len() > HEAD_MAX {
            return Err(CloseReason::BadRequest);
        }
    }
}

/// How many endpoints a client from outside reaches through this node.
fn local_endpoints(published: &Published, service: &ObjectName) -> usize {
    let ports = published.ports_of(service);
    let usable = ports
        .iter()
        .flat_map(|port| port.endpoints(Some(Scope::External))[0].iter());
    // An endpoint counts once, however many ports it has.
    usable
        .map(|it| it.address.ip())
        .collect::<HashSet<IpAddr>>()
        .len()
}

fn answer(service: &ObjectName, endpoints: usize, serves: bool) -> String {
    let status = match endpoints > 0 && serves {
        true => "200 OK",
        false => "503 Service Unavailable",
    };
    let ObjectName { namespace, name } = service;
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": serves,
    })
    .to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         X-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {endpoints}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The longest head of a health check, in bytes.
const HEAD_MAX: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_healthy_with_a_ready_endpoint_while_the_proxy_serves() {
        let shop = ObjectName::new("web", "shop");
        let status = |endpoints, serves| answer(&shop, endpoints, serves)[9..12].to_owned();
        assert_eq!(status(1, true), "200");
        assert_eq!(status(0, true), "503");
        assert_eq!(status(2, false), "503");
        let answer = answer(&shop, 2, true);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nX-Load-Balancing-Endpoint-Weight: 2\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let expected = json!({
            "service": {"namespace": "web", "name": "shop"},
            "localEndpoints": 2,
            "serviceProxyHealthy": true,
        });
        assert_eq!(body, expected);
    }
}
