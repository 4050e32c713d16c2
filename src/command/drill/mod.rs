//! `ebbtide drill`: the demo on the user's own cluster. A sample application behind Ebbtide is
//! rolled under load, first through a NodePort as it is, then through one that Ebbtide serves, and then
//! by the cluster IP, if that is reached from here.
//!
//! Load, table and verdict are the demo's. The drill looks for all obstacles before it makes
//! anything. However it ends (an error, Ctrl-C, SIGTERM), it removes what it made and waits until
//! that is gone, or it names what is left.

pub mod run;
pub mod settings;

mod cluster;
mod deployed;
mod manifests;
mod reach;
