//! What `ebbtide drill` is asked for, and why it may refuse.

use crate::config::fault::Refused;
use std::time::Duration;

use crate::command::demo::load_time;
use crate::command::drill::namespace;

/// What is drilled.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Where the sample application is put
    #[arg(long, short, value_name = "NS", value_parser = namespace)]
    pub namespace: String,
    /// How long the load runs in each phase
    #[arg(long = "for", value_name = "DURATION", default_value = "20s", value_parser = load_time)]
    pub load: Duration,
    /// Ebbtide's image, which has the sample application [default: that of the DaemonSet ebbtide-system/ebbtide]
    #[arg(long)]
    pub image: Option<String>,
    /// Where Ebbtide is reached, if not at a node's InternalIP; a PORT from 30000 to 32767 becomes the nodePort
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// Leave out the same load through a NodePort as it is
    #[arg(long)]
    pub without_comparison: bool,
    /// Do not remove what was made
    #[arg(long)]
    pub keep: bool,
}

/// A drill that cannot be held. Nothing has been made.
pub(super) fn refused(what: impl Into<String>) -> Refused {
    Refused::new("drill", what)
}
