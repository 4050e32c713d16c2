//! The wiring: starts every thread, connects them, and waits for the control loop and the workers.
//!
//! [`start`] returns the bound addresses, so that tests run the same wiring as `ebbtide run`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::listener::{self, AdminListener};
use crate::admin::report::{Admin, GateView};
use crate::admin::server;
use crate::app::feed::{Writing, feed, feed_from_api_server, locate};
use crate::app::workers::{descriptors, start_workers};
use crate::cluster::events::Events;
use crate::cluster::writer::{self, Writer};
use crate::config::fault::Refused;
use crate::config::settings::{Config, Discovery, Publish};
use crate::contract::name::ObjectName;
use crate::contract::snapshot::Published;
use crate::control::addresses::Addresses;
use crate::control::adopt::Adoptions;
use crate::control::certificates::Certificates;
use crate::control::command::Command;
use crate::control::doors::Inheritance;
use crate::control::event_loop::Control;
use crate::control::gateways::Gateways;
use crate::control::handoff::Handoff;
use crate::control::listeners::Listeners;
use crate::control::net_link::{self, Outbox, Reports};
use crate::control::planner::Planner;
use crate::control::routed::Routed;
use crate::control::statuses::Publisher;
use crate::control::unserved::Unserved;
use crate::discovery::kubernetes;
use crate::discovery::manifest::Reader;
use crate::discovery::source::InUse;
use crate::observe::access_log::{AccessLog, AccessLogWriter};
use crate::observe::health::Health;
use crate::observe::metrics::Metrics;
use crate::proxy::shared::{Shared, Spare, WorkerCommand};
use crate::routing::drains;
use crate::routing::table::RoutingTable;
use crate::routing::world::objects::World;

mod feed;
mod gate;
mod manager;
mod workers;

/// What to do about an admin address that cannot be bound.
fn cure(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "another program does; stop it, or choose another port",
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address; choose another",
        std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a privilege; choose another port"
        }
        _ => "choose another address",
    }
}

/// A proxy that runs on its own threads.
pub struct Running {
    /// The admin address as bound. A configured port 0 is resolved.
    pub admin_address: SocketAddr,
    /// Health, snapshot, drains and metrics, as the admin pages read them.
    pub admin: Admin,
    commands: mpsc::UnboundedSender<Command>,
    control: JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    access_log: Option<AccessLogWriter>,
    /// Is cut when all is written that the API server is to get.
    written: std::sync::mpsc::Receiver<()>,
    /// Nothing is counted any more.
    counted: CancellationToken,
    /// Is cut when the admin pages have ended.
    paged: std::sync::mpsc::Receiver<()>,
}

/// Runs the proxy until a signal (SIGTERM, SIGINT) has shut it down. SIGHUP reads `config_path`
/// again.
///
/// # Errors
/// [`Refused`], and whatever keeps a thread from starting.
pub fn run(config: Config, config_path: Option<PathBuf>) -> anyhow::Result<()> {
    let running = start(config)?;
    let commands = running.commands.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || watch_signals(&commands, config_path.as_deref()))?;
    anyhow::ensure!(running.wait(), "the control loop has panicked");
    Ok(())
}

/// Starts the workers, the control loop, the source and the admin pages. Does not wait for them.
///
/// # Errors
/// [`Refused`], and whatever keeps a thread from starting.
pub fn start(config: Config) -> anyhow::Result<Running> {
    for warning in config.warnings() {
        tracing::warn!(warning, "the configuration has a doubtful field");
    }
    let config = Arc::new(config);
    let metrics = Metrics::with(config.per_service)?;
    let snapshot = Arc::<Published>::default();
    let drains = Arc::new(drains::Log::default());
    let health = Arc::new(Health::new(config.discovery.source()));
    let mut admin = Admin {
        snapshot: snapshot.clone(),
        drains: drains.clone(),
        metrics: metrics.clone(),
        health,
        history: Arc::default(),
        gate: GateView::default(),
        started: Instant::now(),
    };
    // Without the admin pages nobody could see the state of the proxy, so it does not start.
    let admin_place = listener::bind(config.admin).map_err(|error| {
        Refused::new(
            "admin.address",
            format!(
                "cannot listen on {} ({error}): {}",
                config.admin,
                cure(&error)
            ),
        )
    })?;
    let admin_address = admin_place.address;
    let api_server = match &config.discovery {
        Discovery::Kubernetes(wanted) => Some(locate(wanted)?),
        Discovery::Files { .. } | Discovery::Static { .. } => None,
    };

    let descriptors = descriptors(&config)?;
    let (notices_in, notices) = mpsc::unbounded_channel();
    let table = RoutingTable::new(
        config.clone(),
        snapshot.clone(),
        drains,
        metrics.clone(),
        notices_in,
    );
    let (access_log, access_log_writer) = match config.access_log {
        true => AccessLog::start(std::io::stdout(), metrics.access_log_dropped.clone())
            .map(|(log, w)| (Some(log), Some(w)))?,
        false => (None, None),
    };
    let (shared, workers) = start_workers(
        &config,
        snapshot,
        &table,
        access_log,
        descriptors.connections(0),
    )?;

    let (commands_in, commands) = mpsc::unbounded_channel();
    let (messages_in, messages) = mpsc::channel(64);
    let (in_use, used) = watch::channel(InUse {
        named: config.named_services(),
        secrets: config.named_secrets(),
        ..InUse::default()
    });
    let (events, event_queue) = match api_server.is_some() {
        true => Events::queue(),
        false => (Events::default(), Events::queue().1),
    };
    let reports = Reports::new(admin.health.clone(), events.clone(), &config);
    let addresses = tell_addresses(&config, reports, &shared)?;
    let outbox = addresses.as_ref().map(Addresses::outbox);
    let (gate, asked) = match gate::connect(&config, &admin, outbox) {
        None => Default::default(),
        Some(ends) => {
            admin.gate.looks = Some(ends.looks);
            spawn("gate", async move || {
                crate::gate::run::run(ends.parts).await
            })?;
            (ends.control, Some(ends.source))
        }
    };
    let certificates = Certificates::start(admin.health.clone())?;
    let (written_in, written) = std::sync::mpsc::channel();
    let lease = api_server.as_ref().map(|it| it.default_namespace.clone());
    let writes = config.ingress.is_some() || config.gateway.is_some();
    let lease = lease.filter(|_| writes);
    let lease = lease.map(|namespace| ObjectName::new(namespace, config.lease.clone()));
    let manager = lease.as_ref().map(writer::manager).unwrap_or_default();
    let (writer, election, statuses) = match lease.map(Writer::of) {
        Some((writer, election, statuses)) => (Some(writer), election, statuses),
        None => Default::default(),
    };
    let mut publisher = Publisher::new(statuses.clone(), manager);
    if let Some(Publish::Addresses(addresses)) = config.ingress.as_ref().map(|it| &it.publish) {
        publisher.take(addresses.clone());
    }
    let control = Control {
        config: config.clone(),
        started: config.clone(),
        snapshot: admin.snapshot.clone(),
        drains: admin.drains.clone(),
        health: admin.health.clone(),
        shared: shared.clone(),
        world: if api_server.is_some() {
            World::for_api_server()
        } else {
            World::default()
        },
        table,
        listeners: Listeners::within(
            descriptors,
            certificates.clone(),
            addresses,
            Inheritance::of_predecessor(admin_address.port()),
        ),
        certificates,
        routed: Routed::default(),
        gateways: Gateways::new(
            Planner::new(&config, api_server.is_some()),
            api_server.is_some(),
        ),
        statuses,
        notices,
        messages,
        commands,
        in_use,
        events,
        publisher,
        unserved: Unserved::default(),
        election,
        handoff: Handoff::new(admin_address.port(), commands_in.clone(), shared.clone()),
        adopted: Adoptions::default(),
        gate,
    };
    if let (Discovery::Kubernetes(wanted), Some(api_server)) = (&config.discovery, api_server) {
        let wanted = kubernetes::Wanted {
            settings: wanted.clone(),
            reader: Reader::of(&config),
            knows_pod_ranges: !config.inside.pods.is_empty(),
            in_use: used,
        };
        let out = Writing {
            events: event_queue,
            writer,
            written: written_in,
        };
        let publish = config.ingress.as_ref().map(|it| &it.publish);
        let publish = match publish {
            Some(Publish::Service(service)) => Some(service.clone()),
            _ => None,
        };
        let metrics = metrics.clone();
        feed_from_api_server(
            api_server,
            wanted,
            publish,
            messages_in.clone(),
            out,
            asked,
            metrics,
        )?;
    }
    let stop_pages = CancellationToken::new();
    watch_history(&admin, stop_pages.clone())?;
    let counted = CancellationToken::new();
    let paged = start_pages(
        admin_place,
        admin.clone(),
        shared.clone(),
        stop_pages.clone(),
        counted.clone(),
    )?;
    if !matches!(config.discovery, Discovery::Kubernetes(_)) {
        spawn("discovery", async move || {
            feed(config, messages_in, metrics).await
        })?;
    }
    // The pages end with the loop, also when it panics.
    let pages_end = stop_pages.drop_guard();
    let control = spawn("control", async move || {
        let _pages_end = pages_end;
        control.run().await;
    })?;
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        let health = admin.health.clone();
        spawn("manager", async move || manager::tell(health).await)?;
    }
    tracing::info!(address = %admin_address, "admin listening");
    Ok(Running {
        admin_address,
        admin,
        commands: commands_in,
        control,
        workers,
        shared,
        access_log: access_log_writer,
        written,
        counted,
        paged,
    })
}

impl Running {
    /// Whether the drains that belong to the published snapshot have begun. For tests.
    #[doc(hidden)]
    pub fn is_settled(&self) -> bool {
        self.admin.snapshot.generation() <= *self.shared.generation.borrow()
    }

    /// What the workers share. For tests.
    #[doc(hidden)]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The address of a listener; `None` while it is not bound.
    pub fn listener(&self, name: &str) -> Option<SocketAddr> {
        let state = self.admin.health.state();
        state
            .listeners
            .iter()
            .find(|l| l.name == name && l.error.is_none() && !l.refuses)
            .map(|l| l.address)
    }

    /// Begins a shutdown. A second call ends the process's connections immediately, however soon it
    /// comes. (A second signal counts only after a second.)
    pub fn shutdown(&self) {
        let _ = self.commands.send(Command::Shutdown);
    }

    /// Takes in a new configuration, as SIGHUP does.
    pub fn reload(&self, config: Config) {
        let _ = self.commands.send(Command::Reload(Box::new(config)));
    }

    /// Blocks until a shutdown is complete: the control loop and the workers have ended, and the
    /// access log is written. Returns `false` if the control loop has panicked. The admin pages are
    /// waited for only while a successor is told what was counted, since a client that does not read
    /// would delay the end.
    pub fn wait(self) -> bool {
        let ended = self.control.join().is_ok();
        self.shared.post_all(|| WorkerCommand::Exit);
        for worker in self.workers {
            let _ = worker.join();
        }
        drop(self.shared);
        self.counted.cancel();
        if let Some(writer) = self.access_log {
            writer.finish(LAST_LINES);
        }
        if self.admin.health.state().has_successor {
            let _ = self.paged.recv_timeout(LAST_WORDS);
        }
        let _ = self.written.recv_timeout(LAST_WORDS);
        ended
    }
}

/// Starts a thread that runs one future on a runtime of its own.
fn spawn<F: Future<Output = ()>>(
    name: &'static str,
    run: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            match Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default())
            {
                Ok(runtime) => runtime.block_on(run()),
                Err(error) => tracing::error!(%error, "the {name} thread cannot run"),
            }
        })
}

/// The admin pages have a thread of their own: rendering them can take seconds, and must delay no
/// drain. What is returned is cut when they have ended.
fn start_pages(
    place: listener::Bound,
    admin: Admin,
    shared: Arc<Shared>,
    stop: CancellationToken,
    counted: CancellationToken,
) -> std::io::Result<std::sync::mpsc::Receiver<()>> {
    let (ends, paged) = std::sync::mpsc::channel();
    let spare = move || shared.post_all(|| WorkerCommand::DropIdle(Spare::All));
    let (health, metrics) = (admin.health.clone(), admin.metrics.clone());
    spawn("admin", async move || {
        let _ends = ends;
        match AdminListener::new(place, health, metrics, counted) {
            Ok(listener) => server::serve(listener, admin, spare, stop).await,
            Err(error) => tracing::error!(%error, "no admin pages"),
        }
    })?;
    Ok(paged)
}

/// The history has a thread of its own: a page that takes seconds must not leave a gap in it.
fn watch_history(admin: &Admin, stop: CancellationToken) -> std::io::Result<()> {
    let (history, snapshot) = (admin.history.clone(), admin.snapshot.clone());
    std::thread::Builder::new()
        .name("history".into())
        .spawn(move || history.run(&snapshot, || stop.is_cancelled()))?;
    Ok(())
}

/// Tells `ebbtide net` which addresses are served, on a thread of its own: it may not answer.
fn tell_addresses(
    config: &Config,
    reports: Reports,
    shared: &Shared,
) -> std::io::Result<Option<Addresses>> {
    let Some(settings) = config.addresses.clone() else {
        return Ok(None);
    };
    let (outbox, path) = (Arc::<Outbox>::default(), settings.socket.clone());
    let told = outbox.clone();
    let sources = shared.sources.clone().unwrap_or_default();
    spawn("net", async move || {
        net_link::run(told, sources, path, reports).await
    })?;
    let map = shared.addresses.clone();
    Ok(Some(Addresses::new(settings, outbox, map)))
}

/// Turns signals into commands: SIGTERM and SIGINT shut down, SIGHUP reads the configuration again.
fn watch_signals(commands: &mpsc::UnboundedSender<Command>, config_path: Option<&Path>) {
    let watch = async {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut hup = signal(SignalKind::hangup())?;
        let mut first = None;
        loop {
            let command = tokio::select! {
                _ = term.recv() => Command::Shutdown,
                _ = int.recv() => Command::Shutdown,
                _ = hup.recv() => match config_path.map(Config::load) {
                    Some(Ok(config)) => Command::Reload(Box::new(config)),
                    Some(Err(error)) => {
                        tracing::error!(%error, "the new configuration is refused; the old one stays in force");
                        continue;
                    }
                    None => continue,
                },
            };
            if matches!(command, Command::Shutdown) && is_repeat(&mut first, Instant::now()) {
                tracing::info!("the signal to shut down is repeated within a second; ignored");
                continue;
            }
            if commands.send(command).is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build();
    if let Err(error) = runtime.and_then(|runtime| runtime.block_on(watch)) {
        tracing::error!(%error, "cannot watch signals");
    }
}

/// Whether a signal to shut down repeats the first one. GNU `timeout` signals the child and then its
/// process group, and a terminal and a supervisor may both signal, so one request to shut down can
/// arrive twice. Only a signal after [`SECOND_SIGNAL`] is a second thought.
fn is_repeat(first: &mut Option<Instant>, now: Instant) -> bool {
    match *first {
        Some(at) => now.saturating_duration_since(at) < SECOND_SIGNAL,
        None => {
            *first = Some(now);
            false
        }
    }
}

/// From when on a second signal to shut down counts, after the first.
const SECOND_SIGNAL: Duration = Duration::from_secs(1);
/// How long writing the last lines of the access log may take.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How long the API server may take for the last words.
const LAST_WORDS: Duration = Duration::from_secs(2);
