//! The arguments of `ebbtide drill`, and the error of a drill that cannot begin.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::demo::load::load_time;
use crate::config::fault::Refused;
use crate::config::value;

/// The arguments of a drill.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// The namespace for the sample application
    #[arg(long, short, value_name = "NS", value_parser = namespace)]
    pub namespace: String,
    /// How long the load runs in each phase
    #[arg(long = "for", value_name = "DURATION", default_value = "20s", value_parser = load_time)]
    pub load: Duration,
    /// Ebbtide's image, which holds the sample application [default: that of the DaemonSet
    /// ebbtide-system/ebbtide]
    #[arg(long)]
    pub image: Option<String>,
    /// Where Ebbtide is reached, if not at a node's InternalIP; a PORT from 30000 to 32767 becomes
    /// the nodePort
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// The name by which Services are claimed [default: services.proxyName of the DaemonSet's
    /// ConfigMap, or else ebbtide]
    #[arg(long, value_name = "NAME")]
    pub proxy_name: Option<String>,
    /// Leave out the load through a NodePort as it is
    #[arg(long)]
    pub without_comparison: bool,
    /// Write the result as one page that can be sent: timelines, table, versions, machine
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Do not remove what the drill made
    #[arg(long)]
    pub keep: bool,
}

/// The error of a drill that cannot begin. Nothing was made yet.
pub(super) fn refused(what: impl Into<String>) -> Refused {
    Refused::new("drill", what)
}

fn namespace(text: &str) -> Result<String, String> {
    if value::label(text) {
        Ok(text.to_owned())
    } else {
        Err("expected the name of a namespace such as default".to_owned())
    }
}
