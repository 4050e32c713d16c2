//! The annotation `ebbtide.dev/backend-tls`: how a Service's endpoints are spoken to over TLS.
//!
//! Invariant: of one text there is one [`Backend`] at a time. So sessions with endpoints are resumed,
//! however often the Service changes.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use serde::Deserialize;

use crate::contract::backend::Backend;

/// The name of the annotation.
pub(super) const BACKEND_TLS: &str = "ebbtide.dev/backend-tls";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    /// The authorities that endpoints are verified by, PEM.
    ca: Option<String>,
    /// The name that is asked for and verified.
    hostname: Option<String>,
    /// Endpoints are not verified.
    #[serde(default)]
    insecure: bool,
}

/// Whether the annotation concerns a port of this `appProtocol`.
pub(super) fn concerns(app_protocol: Option<&str>) -> bool {
    let name = app_protocol.unwrap_or_default().to_ascii_lowercase();
    matches!(name.as_str(), "https" | "tls" | "wss" | "kubernetes.io/wss")
}

/// Reads the annotation, and says what is wrong with it. One that cannot be read refuses every
/// endpoint.
pub(super) fn read(text: &str) -> (Arc<Backend>, Option<String>) {
    static KNOWN: LazyLock<Mutex<HashMap<String, Weak<Backend>>>> = LazyLock::new(Mutex::default);
    let (made, wrong) = {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = known.get(text).and_then(Weak::upgrade) {
            return (backend, None);
        }
        known.retain(|_, backend| backend.strong_count() > 0);
        match parse(text) {
            Ok(backend) => {
                let backend = Arc::new(backend);
                known.insert(text.to_owned(), Arc::downgrade(&backend));
                (backend, None)
            }
            Err(wrong) => (Arc::new(Backend::unreadable(text)), Some(wrong)),
        }
    };
    (made, wrong)
}

fn parse(text: &str) -> Result<Backend, String> {
    let expected = r#"expected JSON such as {"hostname": "shop.example", "ca": "PEM"}"#;
    let Fields {
        ca,
        hostname,
        insecure,
    } = serde_json::from_str(text).map_err(|error| format!("{error}, {expected}"))?;
    match (insecure, ca, hostname) {
        (true, None, hostname) => Backend::insecure(text, hostname.as_deref()),
        (false, Some(ca), Some(hostname)) => Backend::verified(text, &ca, &hostname),
        (true, Some(_), _) => Err("insecure verifies nothing, expected it without ca".to_owned()),
        (false, None, _) => Err(format!("ca is missing, {expected}")),
        (false, _, None) => Err(format!("hostname is missing, {expected}")),
    }
}
