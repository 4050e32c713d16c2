//! The command: prepares the drill, makes its objects, runs its phases, and removes the objects.

use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cluster::api::said;
use crate::command::demo::comparison::{Row, table, verdict};
use crate::command::demo::load::CLIENTS;
use crate::command::demo::page::Page;
use crate::command::demo::plan::Plan;
use crate::command::demo::stop::{stop_at_signal, unless};
use crate::command::demo::under_load::under_load;
use crate::command::drill::cluster::{Cluster, Made, POLL, Rollout};
use crate::command::drill::deployed::Deployed;
use crate::command::drill::manifests::{self, MANAGED_BY, MANAGER, NAME, PLAIN, REPLICAS};
use crate::command::drill::reach::{Addresses, answering, list, replays, resolve};
use crate::command::drill::settings::{Settings, refused};

/// The command. Returns true only if Ebbtide failed no request, no client needed a second socket,
/// and no object is left.
///
/// # Errors
/// [`Refused`](crate::config::fault::Refused) if the drill cannot begin. Any other error came
/// later.
pub fn run(settings: &Settings) -> anyhow::Result<bool> {
    let page = settings.report.as_deref().map(Page::at).transpose()?;
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
            "ebbtide drill: ended immediately; objects may be left, to remove them: {}\n",
            by_hand(settings)
        );
        tokio::spawn(stop_at_signal(
            [interrupt?, terminate?, hangup?],
            stop.clone(),
            last_words,
        ));
        drill(settings, page, &stop).await
    })
}

async fn drill(
    settings: &Settings,
    page: Option<Page>,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let Some(prepared) = unless(stop, prepare(settings)).await else {
        note("interrupted; nothing was made");
        return Ok(false);
    };
    let (cluster, addresses, objects) = prepared?;
    // This step is not interrupted. Otherwise an object could be made after the drill has stopped,
    // and would be left.
    let outcome = match make(&cluster, &objects).await {
        Ok(services) => unless(
            stop,
            show(settings, &cluster, &addresses, &services, page, stop),
        )
        .await
        .transpose(),
        Err(error) => Err(error),
    };
    let removed = match settings.keep {
        true => {
            say(&format!(
                "\nkept, because of --keep; to remove it: {}",
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

/// Finds out all that can be known before anything is made, and prints the introduction.
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
    let deployed = Deployed::find(&cluster).await;
    let image = settings.image.clone().or(deployed.image);
    let image = image.unwrap_or_else(|| "ebbtide:dev".to_owned());
    let proxy_name = settings.proxy_name.clone().or(deployed.proxy_name);
    let proxy_name = proxy_name.as_deref().unwrap_or("ebbtide");
    let node_port = ebbtide
        .map(|address| address.port())
        .filter(|port| NODE_PORTS.contains(port));
    let mut objects = vec![
        manifests::deployment(&image),
        manifests::claimed(proxy_name, node_port),
    ];
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
            "no node is ready and has an InternalIP; give an address by --address",
        )
        .into());
    }
    say(&format!(
        "Ebbtide drill: what a rolling update costs the clients, in namespace {}\n\n     \
         application  {REPLICAS} pods of {image} that exit immediately at SIGTERM: no preStop hook, no graceful shutdown\n     \
         load         {CLIENTS} keep-alive clients, 500 requests a second, 5 ms of work for each\n     \
         updates      as many as fit into {:?}, by the Deployment's rolling update\n",
        settings.namespace, settings.load
    ));
    let addresses = Addresses {
        nodes,
        ebbtide,
        has_cluster_ips: deployed.has_addresses,
    };
    Ok((cluster, addresses, objects))
}

/// Makes all objects. Returns where the Services are reached, in the order of the objects.
async fn make(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<Vec<Made>> {
    let mut services = Vec::new();
    for object in objects {
        let made = cluster.create(object, false).await;
        let made = made.map_err(|error| {
            anyhow::anyhow!("cannot make the {}: {}", object["kind"], said(&error))
        })?;
        services.extend(made.node_port.is_some().then_some(made));
    }
    Ok(services)
}

/// Runs the phases and prints the table and the verdict. Returns whether Ebbtide's rows are clean.
async fn show(
    settings: &Settings,
    cluster: &Cluster,
    addresses: &Addresses,
    services: &[Made],
    page: Option<Page>,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let service = services.first();
    let port = service
        .and_then(|it| it.node_port)
        .context("the API server gave the Service no nodePort")?;
    let plain = services.get(1).and_then(|it| it.node_port);
    let cluster_ip = service.and_then(|it| it.cluster.filter(|_| addresses.has_cluster_ips));
    let phases = 1 + usize::from(plain.is_some()) + usize::from(cluster_ip.is_some());
    let mut number = 0;
    let mut begin = |what: String| {
        number += 1;
        let head = if phases > 1 {
            format!("{number}/{phases}  ")
        } else {
            String::new()
        };
        say(&format!(
            "{}{head}{what}",
            if number > 1 { "\n" } else { "" }
        ));
    };
    let at = |port: u16| {
        addresses
            .nodes
            .iter()
            .map(|ip| SocketAddr::new(*ip, port))
            .collect::<Vec<_>>()
    };
    let plan = Plan::of_unknown_updates(settings.load);
    let mut before = None;
    if let Some(port) = plain {
        begin(format!(
            "The NodePort of the Service {PLAIN}, as kube-proxy serves it"
        ));
        cluster.ready().await?;
        match answering(&at(port), PATIENCE).await {
            Some(target) => {
                before = Some(phase("NodePort as it is", cluster, &plan, target, stop).await?)
            }
            None => say(&format!(
                "     no response from {}: left out",
                list(&at(port))
            )),
        }
    }
    begin(format!("Ebbtide, by the Service {NAME}"));
    cluster.ready().await?;
    let candidates = addresses
        .ebbtide
        .map_or_else(|| at(port), |address| vec![address]);
    let Some(target) = answering(&candidates, PATIENCE).await else {
        bail!(
            "no response from {} within {PATIENCE:?}: does Ebbtide run there, with `nodePorts` in its configuration? \
             see `kubectl -n ebbtide-system get pods -o wide` and `ebbtide check`, or give another address by --address",
            list(&candidates)
        );
    };
    let replays_before = replays(&settings.namespace, target.ip()).await;
    let ebbtide = phase("Ebbtide", cluster, &plan, target, stop).await?;
    let replayed = replays(&settings.namespace, target.ip())
        .await
        .zip(replays_before)
        .map(|(now, then)| now.saturating_sub(then));
    let ebbtide = Row {
        replayed,
        ..ebbtide
    };
    let mut by_cluster_ip = None;
    if let Some(at) = cluster_ip {
        begin(format!("Ebbtide, by the cluster IP of the Service {NAME}"));
        cluster.ready().await?;
        match answering(&[at], NEAR).await {
            Some(target) => {
                by_cluster_ip =
                    Some(phase("Ebbtide, cluster IP", cluster, &plan, target, stop).await?);
            }
            None => say(&format!(
                "     no response from {at}: left out; a drill on a node or in a pod reaches it, if Ebbtide serves there"
            )),
        }
    }

    let ours = || [&ebbtide].into_iter().chain(&by_cluster_ip);
    let rows: Vec<&Row> = before.iter().chain(ours()).collect();
    say(&format!(
        "\n{}\n\n{}",
        table(&rows),
        verdict(before.as_ref(), &ebbtide)
    ));
    if let Some(row) = &by_cluster_ip {
        say(&verdict(None, row));
    }
    if let Some(page) = page {
        let what = format!(
            "What a rolling update costs the clients, in namespace {}",
            settings.namespace
        );
        page.write(&what, &rows, &verdict(before.as_ref(), &ebbtide))?;
    }
    if ours().any(|row| row.replaced == 0) {
        bail!(
            "no pod was replaced while the load ran, so the result shows nothing; give more time by --for"
        );
    }
    Ok(ours().all(Row::is_clean))
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

/// Does one update after the other, until the next one would probably not be done before the load
/// is over. Returns how many pods were replaced.
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

/// Removes the objects. Returns whether none is left.
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

/// Prints a line. An error of standard output is ignored: the objects must be removed even if the
/// terminal is gone.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "ebbtide drill: {text}");
}

/// The API server's default range of nodePorts, see its option `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// The shortest load that has time for an update.
const SHORTEST: Duration = Duration::from_secs(5);
/// The time between two updates.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an address may take until it returns its first good response.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the cluster IP may take. It is served by then, or it is not reached from here.
const NEAR: Duration = Duration::from_secs(3);
