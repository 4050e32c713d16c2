//! From the file's shape to the checked types: defaults are filled in, every value is inside its
//! bounds, and no two values contradict each other.
//!
//! The first fault ends the check. Each fault names the path of its field, and [`super::places`]
//! adds the line. Files that the configuration names are opened only to see that they can be read.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::config::fault::Fault;
use crate::config::listener::listeners;
use crate::config::raw;
use crate::config::settings::{
    Config, Discovery, Kubernetes, Limits, Node, PerService, PodWatch, Retry, Timeouts,
};
use crate::config::value::{self, DAY, MILLISECOND, MINUTE};
use crate::contract::policy::NonIdempotent;
use crate::wire::fields::MAX_HEADERS;

impl raw::Config {
    /// Fills in defaults and checks every value. `folder` is the configuration file's folder;
    /// relative paths count from it.
    pub(super) fn check(self, folder: &Path) -> Result<Config, Fault> {
        let default = Config::new(self.discovery.unwrap_or_default().check(folder)?);
        let admin = match self.admin.unwrap_or_default().address {
            None => default.admin,
            Some(text) => at("admin.address", value::address(&text))?,
        };
        let services = self.services.unwrap_or_default();
        let claim = services.check_claim()?;
        let (addresses, inside) = services.check(folder, admin)?;
        let mut listeners = listeners(
            self.listeners.unwrap_or_default(),
            folder,
            admin,
            &default.discovery,
        )?;
        let ingress = self.ingress.map(|it| it.check(&inside.nodes));
        let ingress = ingress.transpose()?;
        let ingress = ingress.map(|(ingress, own)| {
            listeners.extend(own);
            ingress
        });
        let of_api_server = matches!(default.discovery, Discovery::Kubernetes(_));
        let gate = self.gate.map(|it| {
            let shared = addresses.as_ref().map(|it| it.port);
            it.check(
                folder,
                &inside.nodes,
                of_api_server,
                [Some(admin.port()), shared],
            )
        });
        let gate = gate.transpose()?;
        Ok(Config {
            node_port_addresses: self
                .node_ports
                .map_or(Ok(Vec::new()), raw::NodePorts::check)?,
            claim,
            addresses,
            inside,
            listeners,
            ingress,
            gateway: self.gateway.map(raw::Gateway::check).transpose()?,
            gate,
            admin,
            workers: self.workers.map_or(Ok(default.workers), workers)?,
            timeouts: self.timeouts.unwrap_or_default().check()?,
            limits: self.limits.unwrap_or_default().check()?,
            retry: self.retry.unwrap_or_default().check()?,
            trusted_proxies: items(
                "trustedProxies",
                self.trusted_proxies.unwrap_or_default(),
                cidr,
            )?,
            access_log: at("accessLog", value::off_or("json", self.access_log))?,
            per_service: at(
                "metrics.perService",
                per_service(self.metrics.unwrap_or_default().per_service),
            )?,
            node: Node {
                name: node_name(),
                zone: variable("NODE_ZONE").filter(|zone| !zone.is_empty()),
            },
            lease: variable("LEASE_NAME")
                .filter(|name| value::subdomain(name))
                .unwrap_or(default.lease),
            ..default
        })
    }
}

impl raw::Discovery {
    fn check(self, folder: &Path) -> Result<Discovery, Fault> {
        let files = match (self.files, self.kubernetes) {
            (Some(files), None) => files,
            (None, None) => {
                return Err(Fault::new(
                    "discovery",
                    "no source is set, expected files or kubernetes",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Fault::new(
                    "discovery",
                    "two sources are set, expected either files or kubernetes",
                ));
            }
            (None, Some(kubernetes)) => {
                let snapshot = self
                    .snapshot
                    .map(|text| folder.join(text).components().collect());
                let kubernetes = kubernetes.check(folder)?;
                return Ok(Discovery::Kubernetes(Kubernetes {
                    snapshot,
                    ..kubernetes
                }));
            }
        };
        if self.snapshot.is_some() {
            return Err(Fault::new(
                "discovery.snapshot",
                "a folder of manifests is on disk already, expected it only with kubernetes",
            ));
        }
        if files.path.is_empty() {
            return Err(Fault::new(
                "discovery.files.path",
                "empty, expected a folder of manifests",
            ));
        }
        let path: PathBuf = folder.join(&files.path).components().collect();
        std::fs::read_dir(&path).map_err(|error| {
            let what = format!(
                "{:?} cannot be read ({}), expected a folder of manifests",
                path,
                value::plain(&error)
            );
            Fault::new("discovery.files.path", what)
        })?;
        Ok(Discovery::Files { path })
    }
}

impl raw::Kubernetes {
    fn check(self, folder: &Path) -> Result<Kubernetes, Fault> {
        let mut seen = HashSet::new();
        let namespaces = items(
            "discovery.kubernetes.namespaces",
            self.namespaces.unwrap_or_default(),
            |text| {
                if !value::label(text) {
                    return Err(format!(
                        "{text:?} is not a namespace, expected one such as web"
                    ));
                }
                if seen.insert(text.to_owned()) {
                    Ok(text.to_owned())
                } else {
                    Err(format!("{text:?} is given twice, expected it once"))
                }
            },
        )?;
        let kubeconfig: Option<PathBuf> = self
            .kubeconfig
            .map(|text| folder.join(text).components().collect());
        if let Some(path) = &kubeconfig {
            std::fs::File::open(path).map_err(|error| {
                let what = format!(
                    "{:?} cannot be read ({}), expected a kubeconfig file",
                    path,
                    value::plain(&error)
                );
                Fault::new("discovery.kubernetes.kubeconfig", what)
            })?;
        }
        let pods = match self.pods.as_deref() {
            None | Some("all") => PodWatch::All,
            Some("none") => PodWatch::None,
            Some("node") => PodWatch::Node(node_name().ok_or_else(|| {
                let what = "node needs the node's name in the environment variable NODE_NAME, as \
                            the manifests in deploy/ set it; expected all or none without it";
                Fault::new("discovery.kubernetes.pods", what.to_owned())
            })?),
            Some(other) => {
                let what = format!("{other:?}, expected all, node or none");
                return Err(Fault::new("discovery.kubernetes.pods", what));
            }
        };
        Ok(Kubernetes {
            namespaces,
            kubeconfig,
            pods,
            ..Kubernetes::default()
        })
    }
}

/// The name of this node, as the manifests give it to the container.
fn node_name() -> Option<String> {
    variable("NODE_NAME").filter(|name| value::subdomain(name))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn workers(number: u64) -> Result<NonZeroUsize, Fault> {
    let number = at("workers", value::whole::<usize>(number, 1..=1024))?;
    Ok(NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN))
}

impl raw::Timeouts {
    fn check(self) -> Result<Timeouts, Fault> {
        let default = Timeouts::default();
        let read = |name: &str,
                    text: Option<raw::DurationText>,
                    default,
                    within: RangeInclusive<Duration>| match text {
            None => Ok(default),
            Some(text) => at(
                &format!("timeouts.{name}"),
                value::duration(&text.0, within),
            ),
        };
        let bound =
            |name: &str, text: Option<raw::DurationText>, within: RangeInclusive<Duration>| {
                let text = text.filter(|text| text.0 != "none");
                text.map(|text| read(name, Some(text), DAY, within))
                    .transpose()
            };
        Ok(Timeouts {
            connect: read(
                "connect",
                self.connect,
                default.connect,
                MILLISECOND..=MINUTE,
            )?,
            head: read("head", self.head, default.head, MILLISECOND..=10 * MINUTE)?,
            request: bound("request", self.request, MILLISECOND..=DAY)?,
            client_idle: read(
                "clientIdle",
                self.client_idle,
                default.client_idle,
                MILLISECOND..=30 * DAY,
            )?,
            tunnel_idle: bound("tunnelIdle", self.tunnel_idle, MILLISECOND..=30 * DAY)?,
            upstream_idle: read(
                "upstreamIdle",
                self.upstream_idle,
                default.upstream_idle,
                MILLISECOND..=DAY,
            )?,
            upstream_silence: read(
                "upstreamSilence",
                self.upstream_silence,
                default.upstream_silence,
                Duration::from_secs(1)..=60 * MINUTE,
            )?,
            hold: read("hold", self.hold, default.hold, value::HOLD)?,
            drain: read("drain", self.drain, default.drain, value::DRAIN)?,
            lame_duck: read(
                "lameDuck",
                self.lame_duck,
                default.lame_duck,
                Duration::ZERO..=10 * MINUTE,
            )?,
            shutdown: read(
                "shutdown",
                self.shutdown,
                default.shutdown,
                Duration::ZERO..=DAY,
            )?,
            udp_idle: read(
                "udpIdle",
                self.udp_idle,
                default.udp_idle,
                MILLISECOND..=DAY,
            )?,
        })
    }
}

impl raw::Limits {
    fn check(self) -> Result<Limits, Fault> {
        let default = Limits::default();
        let count =
            |name: &str, number: Option<u64>, default, within: RangeInclusive<u64>| match number {
                None => Ok(default),
                Some(number) => at(&format!("limits.{name}"), value::whole(number, within)),
            };
        let size = |name: &str,
                    text: Option<raw::SizeText>,
                    default,
                    within: RangeInclusive<usize>| match text {
            None => Ok(default),
            Some(text) => at(&format!("limits.{name}"), value::size(&text.0, within)),
        };
        Ok(Limits {
            connections: count(
                "connections",
                self.connections,
                default.connections,
                1..=1_000_000,
            )?,
            head_size: size(
                "headSize",
                self.head_size,
                default.head_size,
                1 << 10..=1 << 20,
            )?,
            headers: count(
                "headers",
                self.headers,
                default.headers,
                1..=MAX_HEADERS as u64,
            )?,
            replay_body: size(
                "replayBody",
                self.replay_body,
                default.replay_body,
                0..=16 << 20,
            )?,
            held: count("held", self.held, default.held, 0..=1_000_000)?,
            hold_timeout: match self.hold_timeout {
                None => default.hold_timeout,
                Some(text) => at("limits.holdTimeout", value::duration(&text.0, value::HOLD))?,
            },
            udp_sessions: count(
                "udpSessions",
                self.udp_sessions,
                default.udp_sessions,
                1..=1_000_000,
            )?,
        })
    }
}

impl raw::Retry {
    fn check(self) -> Result<Retry, Fault> {
        let default = Retry::default();
        let count = |name: &str, number: Option<u64>, default, within| match number {
            None => Ok(default),
            Some(number) => at(
                &format!("retry.{name}"),
                value::whole::<u32>(number, within),
            ),
        };
        Ok(Retry {
            attempts: count("attempts", self.attempts, default.attempts, value::ATTEMPTS)?,
            budget_percent: count(
                "budgetPercent",
                self.budget_percent,
                default.budget_percent,
                0..=100,
            )?,
            budget_floor: count(
                "budgetFloor",
                self.budget_floor,
                default.budget_floor,
                0..=10_000,
            )?,
            non_idempotent: match self.non_idempotent {
                None => default.non_idempotent,
                Some(raw::NonIdempotent::Never) => NonIdempotent::Never,
                Some(raw::NonIdempotent::IdempotencyKey) => NonIdempotent::IdempotencyKey,
                Some(raw::NonIdempotent::Always) => NonIdempotent::Always,
            },
        })
    }
}

fn per_service(text: Option<String>) -> Result<PerService, String> {
    match text.as_deref() {
        None | Some("all") => Ok(PerService::All),
        Some("counters") => Ok(PerService::Counters),
        Some("off" | "Off" | "OFF" | "false" | "no") => Ok(PerService::Off),
        Some(text) => Err(format!(
            "{text:?} is not known, expected all, counters or off"
        )),
    }
}

pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    let wrong = |_| {
        format!(
            "{text:?} is not a CIDR, expected one such as 10.0.0.0/8, or 10.0.0.5/32 for one address"
        )
    };
    text.parse().map_err(wrong)
}

pub(super) fn at<T>(path: &str, result: Result<T, String>) -> Result<T, Fault> {
    result.map_err(|what| Fault::new(path, what))
}

pub(super) fn items<T>(
    path: &str,
    texts: Vec<String>,
    mut read: impl FnMut(&str) -> Result<T, String>,
) -> Result<Vec<T>, Fault> {
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| at(&format!("{path}[{index}]"), read(text)))
        .collect()
}
