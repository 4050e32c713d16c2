//! The annotation `ebbtide.dev/backend-tls`: how a Service's endpoints are spoken to over TLS.
//!
//! Invariant: of one text, with the same authorities, there is one [`Backend`] at a time. So sessions with endpoints are resumed,
//! however often the Service changes, or a BackendTLSPolicy that names it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use serde::Deserialize;

use crate::contract::authorities::{FoundAuthorities, Holder, HolderKind};
use crate::contract::backend::Backend;

/// The name of the annotation.
pub const BACKEND_TLS: &str = "ebbtide.dev/backend-tls";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Fields {
    /// The authorities that endpoints are verified by, PEM.
    ca: Option<String>,
    /// In place of `ca`: the Secret of the Service's namespace that has them.
    ca_secret: Option<String>,
    /// In place of `ca`: the ConfigMap of the Service's namespace that has them.
    ca_config_map: Option<String>,
    /// The name that is asked for and verified.
    hostname: Option<String>,
    /// Endpoints are not verified.
    #[serde(default)]
    insecure: bool,
}

/// Whether a port of this `appProtocol` is spoken to over TLS.
pub(super) fn concerns(app_protocol: Option<&str>) -> bool {
    let name = app_protocol.unwrap_or_default().to_ascii_lowercase();
    matches!(name.as_str(), "https" | "tls" | "wss" | "kubernetes.io/wss")
}

/// The object that the annotation names for its authorities. `None` also if it cannot be read.
pub fn holder(annotations: &BTreeMap<String, String>, namespace: &str) -> Option<Holder> {
    let fields: Fields = serde_json::from_str(annotations.get(BACKEND_TLS)?).ok()?;
    let (kind, name) = match (fields.ca_secret, fields.ca_config_map) {
        (Some(name), None) => (HolderKind::Secret, name),
        (None, Some(name)) => (HolderKind::ConfigMap, name),
        _ => return None,
    };
    Holder::of(kind, namespace, &name)
}

/// Reads the annotation, and says what is wrong with it. One that cannot be read refuses every
/// endpoint. `found` is what is known of the object that it names.
pub(super) fn read(text: &str, found: Option<&FoundAuthorities>) -> (Arc<Backend>, Option<String>) {
    // Policies have texts of their own.
    let whole = match found {
        Some(Ok(more)) => format!("annotation\n{text}\n{more}"),
        Some(Err(more)) => format!("annotation\n{text}\n{more}"),
        None => format!("annotation\n{text}"),
    };
    match one_of(&whole, || parse(text, &whole, found)) {
        Ok(backend) => (backend, None),
        Err(wrong) => (Arc::new(Backend::unreadable(&whole)), Some(wrong)),
    }
}

/// The only one of this text at a time. `make` is asked for it if there is none.
///
/// # Errors
/// Those of `make`.
pub fn one_of(
    whole: &str,
    make: impl FnOnce() -> Result<Backend, String>,
) -> Result<Arc<Backend>, String> {
    static KNOWN: LazyLock<Mutex<HashMap<String, Weak<Backend>>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(backend) = known.get(whole).and_then(Weak::upgrade) {
        return Ok(backend);
    }
    known.retain(|_, backend| backend.strong_count() > 0);
    let backend = Arc::new(make()?);
    known.insert(whole.to_owned(), Arc::downgrade(&backend));
    Ok(backend)
}

fn parse(text: &str, whole: &str, found: Option<&FoundAuthorities>) -> Result<Backend, String> {
    let expected = r#"expected JSON such as {"hostname": "shop.example", "caSecret": "NAME"}"#;
    let fields: Fields =
        serde_json::from_str(text).map_err(|error| format!("{error}, {expected}"))?;
    let Fields {
        ca,
        ca_secret,
        ca_config_map,
        hostname,
        insecure,
    } = fields;
    let named = [("caSecret", &ca_secret), ("caConfigMap", &ca_config_map)];
    let mut named = named
        .into_iter()
        .filter_map(|(field, it)| Some((field, it.as_ref()?)));
    let (first, second) = (named.next(), named.next());
    let ways = [ca.is_some(), first.is_some(), second.is_some(), insecure];
    match ways.iter().filter(|is_given| **is_given).count() {
        1 => {}
        0 => {
            return Err(format!(
                "ca, caSecret or caConfigMap is missing, {expected}"
            ));
        }
        _ => {
            let what = "ca, caSecret, caConfigMap and insecure exclude each other, expected one";
            return Err(what.to_owned());
        }
    }
    if insecure {
        return Backend::insecure(whole, hostname.as_deref());
    }
    let hostname = hostname.ok_or_else(|| format!("hostname is missing, {expected}"))?;
    match (first, found) {
        (Some((field, name)), _) if Holder::of(HolderKind::Secret, "", name).is_none() => {
            Err(format!("{field}: no object can have the name {name:?}"))
        }
        (Some(_), Some(Ok(pem))) => Backend::verified(whole, pem, &hostname),
        // What is wrong with it is said by who looks for it.
        (Some(_), Some(Err(why))) => Backend::unverifiable(whole, &hostname, Some(why)),
        (Some(_), None) => Backend::unverifiable(whole, &hostname, None),
        (None, _) => Backend::verified(whole, &ca.unwrap_or_default(), &hostname),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem() -> String {
        let made = rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap();
        made.cert.pem()
    }

    #[test]
    fn one_way_to_verify_is_expected_with_a_name() {
        for (text, expected) in [
            (
                r#"{"hostname": "a"}"#,
                "ca, caSecret or caConfigMap is missing",
            ),
            (r#"{"caSecret": "ca"}"#, "hostname is missing"),
            (
                r#"{"hostname": "a", "caSecret": "ca", "caConfigMap": "ca"}"#,
                "exclude each other",
            ),
            (
                r#"{"hostname": "a", "caSecret": "ca", "ca": ""}"#,
                "exclude each other",
            ),
            (
                r#"{"insecure": true, "caSecret": "ca"}"#,
                "exclude each other",
            ),
            (
                r#"{"hostname": "a", "caSecret": "a/b"}"#,
                "caSecret: no object can have the name",
            ),
            (
                r#"{"hostname": "a", "caConfigMap": "a,b=c"}"#,
                "caConfigMap: no object can have",
            ),
            (r#"{"hostname": "a b", "caSecret": "ca"}"#, "hostname: "),
        ] {
            let (backend, wrong) = read(text, None);
            let wrong = wrong.unwrap();
            assert!(wrong.contains(expected), "{text}: {wrong}");
            assert!(!backend.waits && backend.session([127, 0, 0, 1].into(), false).is_err());
            let annotations = BTreeMap::from([(BACKEND_TLS.to_owned(), text.to_owned())]);
            let is_bad_name = expected.contains("no object can");
            assert!(
                !is_bad_name || holder(&annotations, "web").is_none(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_backend_waits_for_its_authorities_and_there_is_one_of_each() {
        let text = r#"{"hostname": "a", "caSecret": "ca"}"#;
        let (waiting, wrong) = read(text, None);
        assert!(waiting.waits && wrong.is_none());
        let (missing, wrong) = read(text, Some(&Err("Secret web/ca: gone".to_owned())));
        assert!(!missing.waits && wrong.is_none());
        let refused = missing.session([127, 0, 0, 1].into(), false).err();
        assert_eq!(refused.as_deref(), Some("Secret web/ca: gone"));
        let (one, other) = (Ok(pem().into()), Ok(pem().into()));
        let (good, wrong) = read(text, Some(&one));
        assert!(!good.waits && wrong.is_none());
        assert!(good.session([127, 0, 0, 1].into(), false).is_ok());
        assert!(Arc::ptr_eq(&good, &read(text, Some(&one)).0));
        assert_ne!(good, read(text, Some(&other)).0);
        assert_ne!(good, waiting);
    }
}
