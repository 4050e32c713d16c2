//! Arguments of the `ebbtide` command, and the configuration that `ebbtide proxy` makes of its own.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ebbtide::config::settings::{Config, Discovery, ListenerConfig};
use ebbtide::config::{fault, value};
use ebbtide::contract::name::ObjectName;
use ebbtide::contract::policy::{PortRef, Protocol};

/// A Layer-4 connection-draining proxy: rollouts that cost no client a request or its connection.
#[derive(Debug, Parser)]
#[command(version = ebbtide::VERSION, after_help = START, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const START: &str = "\
Start here:
  ebbtide demo                                             watch a rolling update with and without Ebbtide
  ebbtide proxy --listen 127.0.0.1:8080 --to 127.0.0.1:8081,127.0.0.1:8082
  ebbtide check --config config/standalone.yaml            what would be served, and what is wrong
  ebbtide run --config config/standalone.yaml
  ebbtide drill --namespace default                        the demo on your own cluster

Exit codes: 0 clean, 1 failed at work, 2 refused to start.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy by a configuration file
    ///
    /// SIGHUP re-reads the file; SIGTERM and SIGINT stop accepting, let clients finish and end with exit code 0; a
    /// second one ends at once.
    Run {
        /// Configuration file (YAML; `ebbtide schema` describes it)
        #[arg(long, short, value_name = "FILE", default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Run the proxy without a file: one listener, fixed endpoints
    Proxy(Proxy),
    /// Validate configuration and manifests (or the cluster), and print what would be served
    ///
    /// Nothing is started or changed. Of a cluster it also tells whether its version, our rights and the claims are in
    /// order. Exit code 0, or 2 if the configuration, a manifest or the cluster is broken; warnings leave it at 0.
    Check {
        /// Configuration file
        #[arg(long, short, value_name = "FILE", default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Show on this machine what Ebbtide is for: sample application, load and a rolling update
    ///
    /// First through a balancer that learns of a leaving endpoint one second late, then through Ebbtide. Needs nothing
    /// else. Exit code 0 only if Ebbtide failed no request and lost no client socket.
    Demo {
        /// How long the load runs in each phase
        #[arg(long = "for", value_name = "DURATION", default_value = "20s", value_parser = ebbtide::command::demo::load::load_time)]
        load: Duration,
        /// Keep rolling until Ctrl-C and print the status page's address
        #[arg(long)]
        stay: bool,
    },
    /// The demo on your own cluster: sample application behind Ebbtide, load, rolling updates, receipt
    ///
    /// First through a NodePort as it is, then through one that Ebbtide serves. Needs a kubeconfig (or a service account)
    /// that may create Deployments and Services in the namespace and list nodes, and a way to the nodes' addresses. What
    /// it makes is labelled app.kubernetes.io/managed-by=ebbtide-drill, and is removed however it ends. Exit code 0 only if
    /// Ebbtide failed no request and lost no client socket.
    Drill(ebbtide::command::drill::settings::Settings),
    /// Print services, endpoints and running drains of a running proxy
    Status {
        /// Where its admin pages are
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9901")]
        admin: String,
        /// Print again as things change, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
    },
    /// Print the JSON Schema of the configuration file
    Schema,
    /// The demo's application process
    #[command(hide = true)]
    SampleApp(ebbtide::command::demo::sample::Args),
}

const DEFAULT_FILE: &str = "/etc/ebbtide/ebbtide.yaml";

#[derive(Debug, Args)]
pub struct Proxy {
    /// Where clients connect; port 0: any free port
    #[arg(long, value_name = "ADDR", value_parser = value::address)]
    listen: SocketAddr,
    /// The endpoints, separated by commas
    #[arg(long, value_name = "ADDR,…", required = true, value_delimiter = ',', value_parser = value::address)]
    to: Vec<SocketAddr>,
    /// What clients speak: auto, http or tcp
    #[arg(long, default_value = "auto", value_parser = protocol)]
    protocol: Protocol,
    /// Where the admin pages are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901", value_parser = value::address)]
    admin: SocketAddr,
}

impl Proxy {
    /// One listener `proxy` for port 80 of the Service `default/proxy`; all else as a file's defaults.
    pub fn config(self) -> Result<Config, fault::Error> {
        let refused = |path: &str, what: String| fault::Error {
            file: "proxy".into(),
            line: None,
            path: path.to_owned(),
            what,
        };
        if self.listen.port() != 0 && self.listen == self.admin {
            let what = format!(
                "{} is the address of --admin too, expected one of its own",
                self.listen
            );
            return Err(refused("--listen", what));
        }
        for (index, to) in self.to.iter().enumerate() {
            if to.port() == 0 {
                return Err(refused(
                    "--to",
                    format!("{to} has port 0, expected the endpoint's own"),
                ));
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
            }],
            admin: self.admin,
            ..Config::new(Discovery::Static { to: self.to })
        })
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    Protocol::parse(text).ok_or_else(|| "expected auto, http or tcp".to_owned())
}

/// Writes to standard output; a reader that has gone away (`| head`) is no error.
pub fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
