//! A real `ebbtide run` as a child process. It is started with a configuration, its log says where
//! it listens, and its admin pages are read.
//!
//! Nothing here calls the proxy's code, so a test of this process tests what a user gets.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::command::demo::child;
use crate::command::demo::client::{self, Response};
use crate::command::demo::manifests::{NAMESPACE, SERVICE};

/// A running proxy. Dropping it kills the process; [`Proxy::stop`] ends it cleanly.
pub struct Proxy {
    /// The bound addresses, by listener name.
    pub listeners: BTreeMap<String, SocketAddr>,
    /// The address of the admin pages.
    pub admin: SocketAddr,
    process: Child,
    log: watch::Receiver<Log>,
}

/// What the process has logged so far.
#[derive(Debug, Default)]
struct Log {
    lines: VecDeque<String>,
    listeners: BTreeMap<String, SocketAddr>,
    admin: Option<SocketAddr>,
    ended: bool,
}

/// A configuration with one listener `web` on a free port for a fleet's Service. `more` is YAML
/// that is added at the end.
pub fn config(manifests: &Path, more: &str) -> String {
    format!(
        "discovery: {{files: {{path: '{}'}}}}\n\
         listeners: [{{name: web, address: '127.0.0.1:0', service: {NAMESPACE}/{SERVICE}, port: http}}]\n\
         admin: {{address: '127.0.0.1:0'}}\n{more}",
        manifests.display().to_string().replace('\'', "''")
    )
}

impl Proxy {
    /// Writes `config` to `ebbtide.yaml` in `folder`, starts the proxy, and waits until it is ready
    /// and has logged the addresses of all `listeners`.
    ///
    /// # Errors
    /// The process ends, or is not ready within 20 s. The error holds its last log lines.
    pub async fn start(
        binary: &Path,
        folder: &Path,
        config: &str,
        listeners: &[&str],
    ) -> anyhow::Result<Self> {
        let file = folder.join("ebbtide.yaml");
        std::fs::write(&file, config)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = child::ebbtide(binary);
        command.args(["run", "--config"]).arg(&file);
        // A log level in the user's environment must not hide the lines that are read here.
        command
            .env("EBBTIDE_LOG", "info")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = command.spawn().context("cannot start ebbtide run")?;
        let stderr = process.stderr.take().context("no stderr")?;
        let (sender, mut log) = watch::channel(Log::default());
        tokio::spawn(follow(stderr, sender));
        let ready = timeout(START, ready(&mut log, listeners)).await;
        let ready = ready.unwrap_or_else(|_| Err(anyhow::anyhow!("not ready after {START:?}")));
        let (listeners, admin) = ready.map_err(|error| {
            anyhow::anyhow!(
                "ebbtide run did not start: {error}; its last log lines:\n{}",
                log.borrow().tail()
            )
        })?;
        Ok(Self {
            listeners,
            admin,
            process,
            log,
        })
    }

    /// The address of the listener `web`, which [`config`] has.
    ///
    /// # Errors
    /// There is no such listener.
    pub fn web(&self) -> anyhow::Result<SocketAddr> {
        self.listeners
            .get("web")
            .copied()
            .context("there is no listener `web`")
    }

    /// Reads an admin page.
    ///
    /// # Errors
    /// There is no response within 5 s.
    pub async fn page(&self, path: &str) -> anyhow::Result<Response> {
        page(self.admin, path).await
    }

    /// The sum of a metric's samples whose labels satisfy `wanted`. It gets the labels as text,
    /// such as `reason="replay",outcome="ok"`.
    ///
    /// # Errors
    /// There is no response within 5 s.
    pub async fn metric(&self, name: &str, wanted: impl Fn(&str) -> bool) -> anyhow::Result<f64> {
        Ok(sum(&self.page("/metrics").await?.text(), name, wanted))
    }

    /// The process's id; none after it was waited for.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        child::signal(&self.process, signal);
    }

    /// Waits for the end of the process. Cancellation safe.
    ///
    /// # Errors
    /// The kernel does not report the process's end.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.process.wait().await?)
    }

    /// Sends SIGTERM, then waits for the end of the process.
    ///
    /// # Errors
    /// The process has not ended after `patience`. It is killed then.
    pub async fn stop(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM);
        match timeout(patience, self.process.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => {
                self.process.kill().await?;
                bail!(
                    "ebbtide run did not end within {patience:?} of SIGTERM; its last log lines:\n{}",
                    self.log_tail()
                )
            }
        }
    }

    /// The last 50 lines that the process has logged.
    pub fn log_tail(&self) -> String {
        self.log.borrow().tail()
    }
}

type Bound = (BTreeMap<String, SocketAddr>, SocketAddr);

async fn ready(log: &mut watch::Receiver<Log>, listeners: &[&str]) -> anyhow::Result<Bound> {
    let all = |log: &Log| {
        log.admin.is_some()
            && listeners
                .iter()
                .all(|name| log.listeners.contains_key(*name))
    };
    let (bound, admin, ended) = {
        let log = log
            .wait_for(|log| all(log) || log.ended)
            .await
            .context("its log ended")?;
        (log.listeners.clone(), log.admin, log.ended)
    };
    let (Some(admin), false) = (admin, ended) else {
        bail!("it ended before it listened")
    };
    while page(admin, "/readyz")
        .await
        .map_or(true, |response| response.status != 200)
    {
        if log.borrow().ended {
            bail!("it ended before it was ready");
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok((bound, admin))
}

/// Reads the log to its end, so that the process never waits until a line is read.
async fn follow(stderr: ChildStderr, log: watch::Sender<Log>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.send_modify(|log| log.take(line));
    }
    log.send_modify(|log| log.ended = true);
}

impl Log {
    fn take(&mut self, line: String) {
        if let Ok(entry) = serde_json::from_str::<Value>(&line) {
            let field = |name: &str| entry.get(name)?.as_str();
            let address = field("address").and_then(|address| address.parse().ok());
            match (field("message"), address) {
                (Some("listening"), Some(address)) => {
                    self.listeners
                        .insert(field("listener").unwrap_or_default().to_owned(), address);
                }
                (Some("admin listening"), Some(address)) => self.admin = Some(address),
                _ => {}
            }
        }
        if self.lines.len() == TAIL {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn tail(&self) -> String {
        self.lines
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Reads a page of an admin server within 5 s.
pub(crate) async fn page(admin: SocketAddr, path: &str) -> anyhow::Result<Response> {
    client::get(admin, path, PAGE)
        .await
        .with_context(|| format!("cannot read http://{admin}{path}"))
}

/// The sum of the samples of one metric in the Prometheus text format, as [`Proxy::metric`].
pub(crate) fn sum(text: &str, name: &str, wanted: impl Fn(&str) -> bool) -> f64 {
    let sample = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let labels = match labels {
            "" => "",
            _ => labels.strip_prefix('{')?.strip_suffix('}')?,
        };
        if wanted(labels) {
            value.parse::<f64>().ok()
        } else {
            None
        }
    };
    text.lines().filter_map(sample).sum()
}

/// How long the process may take to become ready.
const START: Duration = Duration::from_secs(20);
/// How long a page may take.
const PAGE: Duration = Duration::from_secs(5);
/// Log lines that are kept for error messages.
const TAIL: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_added_by_name_and_labels() {
        let text = "# TYPE a counter\na{reason=\"replay\",outcome=\"ok\"} 3\na{reason=\"connect\",outcome=\"ok\"} 4\n\
                    a_total{reason=\"replay\"} 50\nb 7\n";
        assert_eq!(sum(text, "a", |_| true), 7.0);
        assert_eq!(
            sum(text, "a", |labels| labels.contains("reason=\"replay\"")),
            3.0
        );
        assert_eq!(sum(text, "b", |_| true), 7.0);
        assert_eq!(sum(text, "c", |_| true), 0.0);
    }

    #[test]
    fn bound_addresses_are_read_from_the_log() {
        let mut log = Log::default();
        for line in [
            r#"{"level":"INFO","message":"listening","listener":"web","address":"127.0.0.1:8080"}"#,
            r#"{"level":"INFO","message":"admin listening","address":"127.0.0.1:9901"}"#,
            "not JSON at all",
        ] {
            log.take(line.to_owned());
        }
        assert_eq!(
            log.listeners.get("web"),
            Some(&SocketAddr::from(([127, 0, 0, 1], 8080)))
        );
        assert_eq!(log.admin, Some(SocketAddr::from(([127, 0, 0, 1], 9901))));
        assert!(log.tail().ends_with("not JSON at all"));
    }
}
