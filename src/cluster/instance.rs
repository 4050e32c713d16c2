//! The name of this process among the instances of a cluster.

/// The pod's name, else the host's. The manifests set `POD_NAME`: a pod with the node's network has the
/// node's host name. Empty if neither is known.
pub(super) fn instance() -> String {
    let name = std::env::var("POD_NAME").ok();
    let name = name.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    name.unwrap_or_default().trim().to_owned()
}
