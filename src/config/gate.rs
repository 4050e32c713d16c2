//! The gate's section, checked, and how its key is read.
//!
//! Invariant: the key could be read when the configuration was checked. Later changes of the file are
//! seen in `gate/run.rs`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::config::checked::{at, items};
use crate::config::claimed::bound;
use crate::config::fault::Fault;
use crate::config::raw;
use crate::config::settings::Gate;
use crate::config::value;

impl raw::Gate {
    /// `nodes` are this node's own addresses, `taken` the ports of this process on them.
    pub(super) fn check(
        self,
        folder: &Path,
        nodes: &[IpAddr],
        of_api_server: bool,
        taken: [Option<u16>; 2],
    ) -> Result<Gate, Fault> {
        let addresses = match self.addresses {
            Some(texts) => bound("gate.addresses", Some(texts))?,
            None => nodes.to_vec(),
        };
        let port = self.port.unwrap_or(PORT);
        if port == 0 || taken.contains(&Some(port)) {
            let what = format!(
                "{port} is 0, or the port of admin.address or services.port, expected another one from 1 to 65535"
            );
            return Err(Fault::new("gate.port", what));
        }
        let service = self.service.as_deref().map(value::service).transpose();
        let service = at("gate.service", service)?;
        if service.is_some() && !of_api_server {
            let what = "the instances of a Service are asked of the API server, expected it only with \
                        discovery.kubernetes; name the others in gate.peers";
            return Err(Fault::new("gate.service", what));
        }
        let peers = items("gate.peers", self.peers.unwrap_or_default(), value::address)?;
        let key = self
            .key
            .map(|text| folder.join(text).components().collect::<PathBuf>());
        if let Some(path) = &key {
            at("gate.key", read_key(path))?;
        }
        Ok(Gate {
            addresses,
            port,
            service,
            peers,
            key,
        })
    }
}

/// Reads the key that all instances share. Space around it does not count.
///
/// # Errors
/// The file, and what is wrong.
pub fn read_key(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(path).map_err(|error| {
        let why = value::plain(&error);
        format!("{path:?} cannot be read ({why}), expected a file of at least {SHORTEST} bytes")
    })?;
    let key = bytes.trim_ascii();
    if key.len() < SHORTEST {
        return Err(format!(
            "{path:?} holds {} bytes, expected at least {SHORTEST}, such as from `openssl rand -hex 32`",
            key.len()
        ));
    }
    Ok(key.to_vec())
}

/// The port of pods' `preStop` calls.
const PORT: u16 = 9902;
/// A shorter key could be guessed.
const SHORTEST: usize = 16;
