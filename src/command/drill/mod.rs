//! `ebbtide drill`: the demo on the user's own cluster. A sample application behind Ebbtide is rolled under load, first
//! through a NodePort as it is, then through one that Ebbtide serves.
//!
//! Load, table and verdict are the demo's. What may stop a drill is looked for before anything is made, and whatever way it
//! ends (an error, Ctrl-C, SIGTERM), what it made is removed and waited for, or named.

mod cluster;
mod manifests;
pub mod settings;

use std::cell::Cell;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::cluster::api::said;
use crate::command::demo::client::Client;
use crate::command::demo::{
    CLIENTS, Plan, Row, proxy, stop_at_signal, table, under_load, unless, verdict,
};
use crate::command::drill::cluster::{Cluster, POLL, Rollout};
use crate::command::drill::manifests::{MANAGED_BY, MANAGER, NAME, PLAIN, REPLICAS};
use crate::command::drill::settings::{Settings, refused};
use crate::config::fault::Refused;

/// The command. True only if Ebbtide failed no request, its clients never needed a second socket, and nothing was left.
///
/// # Errors
/// [`Refused`]; anything else went wrong at work.
pub fn run(settings: &Settings) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ]
        .map(signal);
        let [interrupt, terminate, hangup] = kinds;
        let stop = CancellationToken::new();
        let last_words = format!(
            "ebbtide drill: ended at once; something may be left: {}\n",
            by_hand(settings)
        );
        tokio::spawn(stop_at_signal(
            [interrupt?, terminate?, hangup?],
            stop.clone(),
            last_words,
        ));
        drill(settings, &stop).await
    })
}

async fn drill(settings: &Settings, stop: &CancellationToken) -> anyhow::Result<bool> {
    let Some(prepared) = unless(stop, prepare(settings)).await else {
        note("interrupted; nothing was made");
        return Ok(false);
    };
    let (cluster, addresses, objects) = prepared?;
    // Not to be interrupted: what is being made when nobody listens any more would be left.
    let outcome = match make(&cluster, &objects).await {
        Ok(ports) => unless(stop, show(settings, &cluster, &addresses, &ports, stop))
            .await
            .transpose(),
        Err(error) => Err(error),
    };
    let removed = match settings.keep {
        true => {
            say(&format!(
                "\nkept, as asked; to remove it: {}",
                by_hand(settings)
            ));
            true
        }
        false => remove(settings, &cluster).await,
    };
    let Some(clean) = outcome? else {
        note("interrupted");
        return Ok(false);
    };
    Ok(clean && removed)
}

/// How the nodes, or what stands before them, are reached.
struct Addresses {
    nodes: Vec<IpAddr>,
    /// As given by the user.
    ebbtide: Option<SocketAddr>,
}

/// All that can be known before anything is made; also says what will be.
async fn prepare(settings: &Settings) -> anyhow::Result<(Cluster, Addresses, Vec<Value>)> {
    if settings.load < SHORTEST {
        return Err(refused(format!(
            "--for must be at least {SHORTEST:?}, to have time for an update"
        ))
        .into());
    }
    let ebbtide = match &settings.address {
        Some(address) => Some(resolve(address).await?),
        None => None,
    };
    let cluster = Cluster::connect(&settings.namespace).await?;
    let image = match &settings.image {
        Some(image) => image.clone(),
        None => cluster.image().await,
    };
    let node_port = ebbtide
        .map(|address| address.port())
        .filter(|port| NODE_PORTS.contains(port));
    let mut objects = vec![manifests::deployment(&image), manifests::claimed(node_port)];
    if !settings.without_comparison {
        objects.push(manifests::plain());
    }
    cluster.prepare(settings, &objects).await?;
    let nodes = match ebbtide {
        Some(address) => vec![address.ip()],
        None => cluster
            .nodes()
            .await
            .map_err(|error| refused(format!("nodes: {}", said(&error))))?,
    };
    if nodes.is_empty() {
        return Err(refused(
            "no node is ready and has an InternalIP; --address names another way in",
        )
        .into());
    }
    say(&format!(
        "Ebbtide drill: what a rolling update costs the clients, in namespace {}\n\n     \
         application  {REPLICAS} pods of {image} that exit at once at SIGTERM: no preStop hook, no graceful shutdown\n     \
         load         {CLIENTS} keep-alive clients, 500 requests a second, 5 ms of work for each\n     \
         updates      as many as fit into {:?}, by the Deployment's own rolling update\n",
        settings.namespace, settings.load
    ));
    Ok((cluster, Addresses { nodes, ebbtide }, objects))
}

async fn resolve(address: &str) -> Result<SocketAddr, Refused> {
    let found = tokio::net::lookup_host(address).await;
    found.ok().and_then(|mut found| found.next()).ok_or_else(|| {
        refused(format!("--address: {address:?} is not to be found, expected HOST:PORT such as 192.0.2.1:30080"))
    })
}

/// Makes all; returns the nodePorts, in the objects' order.
async fn make(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<Vec<u16>> {
    let mut ports = Vec::new();
    for object in objects {
        let made = cluster.create(object, false).await;
        ports.extend(made.map_err(|error| {
            anyhow::anyhow!("cannot make the {}: {}", object["kind"], said(&error))
        })?);
    }
    Ok(ports)
}

/// Both phases, the table and the verdict, which is returned.
async fn show(
    settings: &Settings,
    cluster: &Cluster,
    addresses: &Addresses,
    ports: &[u16],
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let port = *ports
        .first()
        .context("the API server gave the Service no nodePort")?;
    let at = |port: u16| {
        addresses
            .nodes
            .iter()
            .map(|ip| SocketAddr::new(*ip, port))
            .collect::<Vec<_>>()
    };
    let plan = Plan::of_unknown_updates(settings.load);
    let mut before = None;
    if let Some(&port) = ports.get(1) {
        say(&format!(
            "1/2  The NodePort of the Service {PLAIN}, as kube-proxy serves it"
        ));
        cluster.ready().await?;
        match answering(&at(port), PATIENCE).await {
            Some(target) => {
                before = Some(phase("NodePort as it is", cluster, &plan, target, stop).await?)
            }
            None => say(&format!(
                "     nobody answers at {}: left out",
                list(&at(port))
            )),
        }
    }
    say(&format!(
        "{}Ebbtide, by the Service {NAME}",
        if ports.len() > 1 { "\n2/2  " } else { "" }
    ));
    cluster.ready().await?;
    let candidates = addresses
        .ebbtide
        .map_or_else(|| at(port), |address| vec![address]);
    let Some(target) = answering(&candidates, PATIENCE).await else {
        bail!(
            "nobody answers at {} within {PATIENCE:?}: does Ebbtide run there, with `nodePorts` in its configuration? \
             `kubectl -n ebbtide-system get pods -o wide` and `ebbtide check` tell; --address names another way in",
            list(&candidates)
        );
    };
    let replays_before = replays(settings, target.ip()).await;
    let ebbtide = phase("Ebbtide", cluster, &plan, target, stop).await?;
    let replayed = replays(settings, target.ip())
        .await
        .zip(replays_before)
        .map(|(now, then)| now.saturating_sub(then));
    let ebbtide = Row {
        replayed,
        ..ebbtide
    };

    let rows: Vec<&Row> = before.iter().chain([&ebbtide]).collect();
    say(&format!(
        "\n{}\n\n{}",
        table(&rows),
        verdict(before.as_ref(), &ebbtide)
    ));
    if ebbtide.replaced == 0 {
        bail!(
            "no pod was replaced while the load ran, so this shows nothing; give it more time by --for"
        );
    }
    Ok(ebbtide.is_clean())
}

async fn phase(
    name: &'static str,
    cluster: &Cluster,
    plan: &Plan,
    target: SocketAddr,
    stop: &CancellationToken,
) -> anyhow::Result<Row> {
    say(&format!("     load on {target}"));
    let update = Cell::new(0);
    let roll = async |over: CancellationToken| {
        roll(cluster, plan, &over, &update)
            .await
            .map_err(|error| anyhow::anyhow!("a rollout: {}", said(&error)))
    };
    let (report, replaced) = under_load(plan, target, stop, &update, roll).await?;
    say(&format!("     {replaced} pods were replaced"));
    Ok(Row {
        name,
        report,
        replayed: None,
        replaced,
    })
}

/// One update after the other, as long as the next will probably be done in time. Returns how many pods were replaced.
async fn roll(
    cluster: &Cluster,
    plan: &Plan,
    over: &CancellationToken,
    update: &Cell<usize>,
) -> kube::Result<usize> {
    let (end, mut replaced, mut longest) =
        (Instant::now() + plan.load - plan.lead, 0, Duration::ZERO);
    let mut pause = plan.lead;
    loop {
        if unless(over, sleep(pause)).await.is_none()
            || Instant::now() + longest.mul_f32(1.25) > end
        {
            return Ok(replaced);
        }
        let begun = Instant::now();
        cluster.update().await?;
        update.set(update.get() + 1);
        let rollout = loop {
            match cluster.rollout().await? {
                Rollout { done: false, .. } if !over.is_cancelled() => sleep(POLL).await,
                rollout => break rollout,
            }
        };
        replaced += rollout.replaced;
        longest = longest.max(begun.elapsed());
        pause = PAUSE;
    }
}

/// The first of these addresses to answer a request well.
async fn answering(candidates: &[SocketAddr], patience: Duration) -> Option<SocketAddr> {
    let asked = async {
        loop {
            for &candidate in candidates {
                let ask = async {
                    Client::connect(candidate)
                        .await?
                        .exchange("GET", "/", "Connection: close\r\n", b"")
                        .await
                };
                if timeout(ONE_ANSWER, ask)
                    .await
                    .is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200))
                {
                    return candidate;
                }
            }
            sleep(POLL).await;
        }
    };
    timeout(patience, asked).await.ok()
}

/// Requests that Ebbtide on that node has sent a second time for our Service; `None` where its pages are not reached.
async fn replays(settings: &Settings, node: IpAddr) -> Option<u64> {
    let page = proxy::page(SocketAddr::new(node, ADMIN), "/metrics")
        .await
        .ok()?;
    let text = page.text();
    let labels = [
        format!("namespace=\"{}\"", settings.namespace),
        format!("service=\"{NAME}\""),
    ];
    // A connect that moved on to another endpoint was no replay: nothing had been sent.
    let ours = |of: &str| {
        labels.iter().all(|label| of.contains(label)) && !of.contains("reason=\"connect\"")
    };
    text.contains("ebbtide_build_info")
        .then(|| proxy::sum(&text, "ebbtide_retries_total", ours) as u64)
}

/// True when nothing is left.
async fn remove(settings: &Settings, cluster: &Cluster) -> bool {
    say("\nremoving what was made");
    let left = cluster.remove().await;
    for what in &left {
        note(&format!("cannot remove {what}"));
    }
    if !left.is_empty() {
        note(&format!("to remove it by hand: {}", by_hand(settings)));
    }
    left.is_empty()
}

fn by_hand(settings: &Settings) -> String {
    format!(
        "kubectl --namespace {} delete deployment,service --selector {MANAGED_BY}={MANAGER}",
        settings.namespace
    )
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses
        .iter()
        .map(SocketAddr::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whether somebody reads or not: the end of a terminal must not keep us from cleaning up.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "ebbtide drill: {text}");
}

fn namespace(text: &str) -> Result<String, String> {
    if crate::config::value::label(text) {
        Ok(text.to_owned())
    } else {
        Err("expected the name of a namespace such as default".to_owned())
    }
}

/// The API server's default range, see its `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Where `deploy/` puts the admin pages.
const ADMIN: u16 = 9901;
const SHORTEST: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);
const ONE_ANSWER: Duration = Duration::from_secs(1);
