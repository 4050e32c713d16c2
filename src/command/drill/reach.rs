//! How the drill reaches Ebbtide: addresses, the first response, and the count of replays.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::command::demo::{client, proxy};
use crate::command::drill::cluster::POLL;
use crate::command::drill::manifests::NAME;
use crate::command::drill::settings::refused;
use crate::config::fault::Refused;

/// The addresses of the nodes, or of what stands in front of them.
pub(super) struct Addresses {
    pub(super) nodes: Vec<IpAddr>,
    /// The user's `--address`.
    pub(super) ebbtide: Option<SocketAddr>,
    /// Cluster IPs are served, too.
    pub(super) has_cluster_ips: bool,
}

/// The first address of `--address`.
pub(super) async fn resolve(address: &str) -> Result<SocketAddr, Refused> {
    let found = tokio::net::lookup_host(address).await;
    found
        .ok()
        .and_then(|mut found| found.next())
        .ok_or_else(|| {
            refused(format!(
                "--address: {address:?} cannot be resolved, expected HOST:PORT such as 192.0.2.1:30080"
            ))
        })
}

/// The first of these addresses that returns status 200 within `patience`.
pub(super) async fn answering(candidates: &[SocketAddr], patience: Duration) -> Option<SocketAddr> {
    let asked = async {
        loop {
            for &candidate in candidates {
                let response = client::get(candidate, "/", ONE_RESPONSE).await;
                if response.is_ok_and(|response| response.status == 200) {
                    return candidate;
                }
            }
            sleep(POLL).await;
        }
    };
    timeout(patience, asked).await.ok()
}

/// How many requests for the drill's Service the Ebbtide on this node has sent a second time.
/// `None` if its admin pages cannot be reached.
pub(super) async fn replays(namespace: &str, node: IpAddr) -> Option<u64> {
    let page = proxy::page(SocketAddr::new(node, ADMIN), "/metrics")
        .await
        .ok()?;
    let text = page.text();
    let labels = [
        format!("namespace=\"{namespace}\""),
        format!("service=\"{NAME}\""),
    ];
    // A failed connect is not counted as a replay, because nothing had been sent.
    let ours = |of: &str| {
        labels.iter().all(|label| of.contains(label)) && !of.contains("reason=\"connect\"")
    };
    text.contains("ebbtide_build_info")
        .then(|| proxy::sum(&text, "ebbtide_retries_total", ours) as u64)
}

/// The addresses as one line.
pub(super) fn list(addresses: &[SocketAddr]) -> String {
    addresses
        .iter()
        .map(SocketAddr::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The port of the admin pages in the manifests of `deploy/`.
const ADMIN: u16 = 9901;
/// How long one response may take.
const ONE_RESPONSE: Duration = Duration::from_secs(1);
