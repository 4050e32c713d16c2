//! The arguments of the `ebbtide` command, and the configuration that `ebbtide proxy` builds from
//! its arguments.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ebbtide::command::receipt;
use ebbtide::config::settings::{Config, Discovery, ListenerConfig};
use ebbtide::config::{fault, value};
use ebbtide::contract::name::ObjectName;
use ebbtide::contract::policy::{PortRef, Protocol};
use ebbtide::net::socket;

/// A connection-draining proxy for TCP, UDP, HTTP and gRPC: rollouts cost no client a request or its
/// connection
#[derive(Debug, Parser)]
#[command(version = ebbtide::VERSION, after_help = START, propagate_version = true)]
pub(crate) struct Cli {
    /// The subcommand with its arguments.
    #[command(subcommand)]
    pub command: Command,
}

const START: &str = "\
Start here:
  ebbtide demo                                    shows a rolling update with and without Ebbtide
  ebbtide proxy --listen 127.0.0.1:8080 --to 127.0.0.1:8081,127.0.0.1:8082
  ebbtide check --config config/standalone.yaml   shows what would be served, and what is wrong
  ebbtide run --config config/standalone.yaml
  ebbtide drill --namespace default               runs the demo on your own cluster

Completions for bash, zsh and fish are in the folder completions of a release; its packages install them.

Exit codes: 0 clean, 1 failed at work, 2 refused to start.";

const LOG: &str = "\
Environment:
  EBBTIDE_LOG   what the log on standard error has: a level or a filter such as debug or
                info,ebbtide=trace; the default is info";

/// The subcommands. Their doc comments are the texts of --help.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the proxy with a configuration file
    ///
    /// SIGHUP reads the file again. SIGTERM and SIGINT begin a shutdown: the proxy stops accepting,
    /// lets clients finish, and ends with exit code 0. A second one, a second or more after the
    /// first, ends the process immediately.
    #[command(after_help = LOG)]
    Run {
        /// Configuration file (YAML; `ebbtide schema` describes it)
        #[arg(long, short, value_name = "FILE", default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Run the proxy without a file: one listener, fixed endpoints
    #[command(after_help = LOG)]
    Proxy(Proxy),
    /// Validate configuration and manifests (or the cluster), and print what would be served
    ///
    /// Starts nothing and changes nothing. Of a cluster it also reports whether the version, the
    /// granted rights and the claims are in order. The exit code is 2 if the configuration, a
    /// manifest or the cluster is broken, and 0 otherwise. Warnings do not change it. Pod templates, as
    /// in a Deployment, are not read: neither preStop hooks nor grace periods nor probes.
    Check {
        /// Configuration file
        #[arg(long, short, value_name = "FILE", default_value = DEFAULT_FILE)]
        config: PathBuf,
        /// Show what would be served, and what would be lost, if this Service were claimed
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = value::service)]
        claim: Vec<ObjectName>,
        /// Show for each Ingress of ingress-nginx what would differ if Ebbtide served it
        #[arg(long, value_name = "CONTROLLER")]
        migrate: Option<Controller>,
    },
    /// Show on this machine what Ebbtide does: a sample application, load and a rolling update
    ///
    /// First through a balancer that learns of a leaving endpoint one second late, then through
    /// Ebbtide. Nothing else is needed. The exit code is 0 only if Ebbtide failed no request and
    /// lost no client socket.
    Demo {
        /// How long the load runs in each phase
        #[arg(long = "for", value_name = "DURATION", default_value = "20s", value_parser = ebbtide::command::demo::load::load_time)]
        load: Duration,
        /// Keep rolling until Ctrl-C, and print the address of the status page
        #[arg(long)]
        stay: bool,
        /// Write the result as one page that can be sent: timelines, table, versions, machine
        #[arg(long, value_name = "FILE.html")]
        report: Option<PathBuf>,
    },
    /// Run the demo on your own cluster: sample application, load and rolling updates
    ///
    /// First through a NodePort as it is, then through one that Ebbtide serves. Needs a kubeconfig
    /// (or a service account) that may create Deployments and Services in the namespace and list
    /// nodes. Needs network access to the nodes' addresses. All objects that it makes carry the
    /// label app.kubernetes.io/managed-by=ebbtide-drill. They are removed, however the drill ends.
    /// The exit code is 0 only if Ebbtide failed no request and lost no client socket.
    Drill(ebbtide::command::drill::settings::Settings),
    /// Lead the addresses of Services (cluster IPs, external IPs) on this node to its proxy
    ///
    /// Runs beside a proxy whose configuration says services.addresses: on, takes the addresses from
    /// it over a socket, and writes them to the kernel's table `ebbtide` (nf_tables), and what lets
    /// endpoints see their clients to the table `ebbtide-sources`. Needs root's
    /// CAP_NET_ADMIN and the node's network, and listens on no port. SIGTERM waits until the proxy
    /// has let go, and then removes the table, unless a newer `ebbtide net` has taken it over.
    Net {
        /// The socket to which the proxy connects
        #[arg(long, value_name = "PATH", default_value = NET_SOCKET)]
        socket: PathBuf,
        /// Remove the table that a process has left behind, and end
        #[arg(long)]
        remove: bool,
    },
    /// Wait until every instance has let go of a pod
    ///
    /// For scripts and pipelines, instead of a sleep: the exit code is 0 when no instance dispatches
    /// anything to the pod and nothing is in flight on it, and 1 after the timeout, with a line for each
    /// instance that still has it. Asks one instance, which asks the others if its configuration has a
    /// section `gate`.
    Wait {
        /// The pod: pod/NAME
        #[arg(long, value_name = "pod/NAME", value_parser = pod)]
        drained: String,
        /// The pod's namespace
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// How long to wait at most
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
        timeout: Duration,
        #[command(flatten)]
        admin: Admin,
    },
    /// Print Services, endpoints and running drains of a running proxy
    ///
    /// With --watch on a terminal, a page shows the Services with their traffic. Its keys: arrows,
    /// PgUp, PgDn, Home, End, j and k select; Enter shows one Service, Esc goes back; / filters by name;
    /// s changes the order; q or Ctrl-C ends.
    Status {
        #[command(flatten)]
        admin: Admin,
        /// Show a page on a terminal; elsewhere, print again each second, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
    },
    /// Print the last rollouts of a Service: what they took, and what they cost its clients
    ///
    /// Reads the receipts of one instance, newest first: of its clients only. An instance keeps the
    /// last 100 of all Services, and writes one 15 s after a rollout's last drain.
    Receipt {
        /// The Service
        #[arg(value_name = "NAMESPACE/NAME", value_parser = value::service)]
        service: ObjectName,
        /// The form of the output: table or json
        #[arg(
            long,
            short,
            value_name = "FORM",
            default_value = "table",
            hide_possible_values = true
        )]
        output: receipt::Form,
        #[command(flatten)]
        admin: Admin,
    },
    /// Print the JSON Schema of the configuration file
    Schema,
    /// The demo's application process
    #[command(hide = true)]
    SampleApp(ebbtide::command::demo::sample::Args),
}

/// Whose Ingress objects `check --migrate` looks at.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Controller {
    Nginx,
}

const NET_SOCKET: &str = "/run/ebbtide/net.sock";
const DEFAULT_FILE: &str = "/etc/ebbtide/ebbtide.yaml";

/// Which instance is asked.
#[derive(Debug, Args)]
pub(crate) struct Admin {
    /// The instance: the URL of its admin pages, pod/NAMESPACE/NAME, or cluster
    ///
    /// A pod is asked through the API server, by the kubeconfig, and `cluster` is any pod of a deployed
    /// Ebbtide. As `kubectl ebbtide`, the default is cluster.
    #[arg(long, value_name = "PLACE", default_value = default_admin())]
    pub admin: String,
}

/// As a plugin of kubectl, the program speaks with the cluster.
fn default_admin() -> &'static str {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default();
    match name.to_string_lossy().starts_with("kubectl-ebbtide") {
        true => "cluster",
        false => "http://127.0.0.1:9901",
    }
}

/// The arguments of `ebbtide proxy`.
#[derive(Debug, Args)]
pub(crate) struct Proxy {
    /// Where clients connect; port 0: any free port
    #[arg(long, value_name = "ADDR", value_parser = value::address)]
    listen: SocketAddr,
    /// The endpoints, separated by commas
    #[arg(long, value_name = "ADDR,…", required = true, value_delimiter = ',', value_parser = value::address)]
    to: Vec<SocketAddr>,
    /// The protocol: auto, http, h2c or tcp
    #[arg(long, default_value = "auto", value_parser = protocol)]
    protocol: Protocol,
    /// Where the admin pages are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901", value_parser = value::address)]
    admin: SocketAddr,
}

impl Proxy {
    /// A configuration with one listener `proxy` for port 80 of the Service `default/proxy`. All
    /// other fields have the defaults of a file.
    ///
    /// # Errors
    /// Two addresses are the same, another program listens on one, an endpoint has port 0, or the
    /// proxy itself would be its endpoint.
    pub(crate) fn config(self) -> Result<Config, fault::Error> {
        let refused = |path: &str, what: String| fault::Error {
            file: "proxy".into(),
            line: None,
            path: path.to_owned(),
            what,
        };
        if self.listen.port() != 0 && self.listen == self.admin {
            let what = format!(
                "{} is also the address of --admin, expected another address",
                self.listen
            );
            return Err(refused("--listen", what));
        }
        for (flag, own) in [("--listen", self.listen), ("--admin", self.admin)] {
            if socket::is_listened_on(own) {
                let what = format!(
                    "another program listens on {own} already, expected a free address (`ebbtide \
                     run` can replace a running process)"
                );
                return Err(refused(flag, what));
            }
        }
        for (index, to) in self.to.iter().enumerate() {
            if to.port() == 0 {
                return Err(refused(
                    "--to",
                    format!("{to} has port 0, expected the endpoint's port"),
                ));
            }
            for (flag, own) in [("--listen", self.listen), ("--admin", self.admin)] {
                if reaches(own, *to) {
                    let what = format!(
                        "{to} is where this proxy listens ({flag} {own}), expected an endpoint's \
                         address"
                    );
                    return Err(refused("--to", what));
                }
            }
            if self.to[..index].contains(to) {
                return Err(refused(
                    "--to",
                    format!("{to} is given twice, expected it once"),
                ));
            }
        }
        Ok(Config {
            listeners: vec![ListenerConfig {
                name: "proxy".to_owned(),
                address: self.listen,
                service: ObjectName::new("default", "proxy"),
                port: PortRef::Number(80),
                protocol: Some(self.protocol),
                proxy_protocol: false,
                allow_connect: false,
                sni: Vec::new(),
                source_ranges: Vec::new(),
                scope: None,
                health_check: false,
                routes: None,
                tls: None,
            }],
            admin: self.admin,
            ..Config::new(Discovery::Static { to: self.to })
        })
    }
}

/// Whether a connection to `to` arrives at the socket that listens on `listen`.
fn reaches(listen: SocketAddr, to: SocketAddr) -> bool {
    let family = |ip: IpAddr| ip.to_canonical().is_ipv4();
    let (own, ip) = (listen.ip(), to.ip().to_canonical());
    if listen.port() != to.port() || family(own) != family(ip) {
        return false;
    }
    // Linux connects to the loopback address if it is asked for the unspecified one.
    let loopback = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    // Only an address of this machine can be bound.
    let local = || loopback(ip) || UdpSocket::bind((ip, 0)).is_ok();
    own == ip || own.is_unspecified() && local() || ip.is_unspecified() && own.is_loopback()
}

/// The name of `pod/NAME`.
fn pod(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("pod/").or(text.strip_prefix("pods/"));
    let name = name.filter(|name| value::subdomain(name));
    name.map(str::to_owned)
        .ok_or_else(|| "expected pod/NAME".to_owned())
}

fn protocol(text: &str) -> Result<Protocol, String> {
    Protocol::parse(text).ok_or_else(|| {
        format!(
            "expected auto, http, h2c or tcp{}",
            value::protocol_hint(text)
        )
    })
}

/// Writes to standard output. A closed pipe (`| head`) is no error.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
