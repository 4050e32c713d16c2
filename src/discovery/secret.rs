//! Secrets with certificates (type `kubernetes.io/tls`), and Secrets and ConfigMaps with authorities
//! (key `ca.crt`), from manifests or from the API.
//!
//! Invariant: nothing of a Secret leaves this file but a [`Certificate`], which shows its key to
//! nobody, and authorities, which are public. Secrets are no objects of the table: they are in no saved
//! table and on no page.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::contract::authorities::{FoundAuthorities, Holder, HolderKind};
use crate::contract::certificate::{Certificate, roots_of};
use crate::contract::name::ObjectName;
use crate::discovery::document::{Document, Error, Format, value};

/// What is known of a Secret: its certificate, or why it has none.
pub type Found = Result<Arc<Certificate>, String>;

/// Reads a Secret (<https://kubernetes.io/docs/concepts/configuration/secret/#tls-secrets>).
///
/// # Errors
/// Why it gives no certificate, without its contents.
pub fn certificate(secret: &Secret) -> Found {
    let of_type = secret.type_.as_deref().unwrap_or("Opaque");
    if of_type != TYPE {
        return Err(format!("its type is {of_type}, expected {TYPE}"));
    }
    let part = |name| part(secret.string_data.as_ref(), secret.data.as_ref(), name);
    Certificate::read(part("tls.crt")?, part("tls.key")?).map(Arc::new)
}

/// Reads the authorities in a Secret of any type, where cert-manager puts them, too.
///
/// # Errors
/// Why it gives none, without its contents.
pub fn in_secret(secret: &Secret) -> FoundAuthorities {
    authorities(secret.string_data.as_ref(), secret.data.as_ref())
}

/// Reads the authorities in a ConfigMap.
///
/// # Errors
/// Why it gives none.
pub fn in_config_map(map: &ConfigMap) -> FoundAuthorities {
    authorities(map.data.as_ref(), map.binary_data.as_ref())
}

fn authorities(text: Option<&Text>, bytes: Option<&Bytes>) -> FoundAuthorities {
    let pem = part(text, bytes, AUTHORITIES)?;
    roots_of(pem).map_err(|what| format!("{AUTHORITIES}: {what}"))?;
    let text = str::from_utf8(pem).map_err(|_| format!("{AUTHORITIES}: it is no text"))?;
    Ok(text.into())
}

type Text = BTreeMap<String, String>;
type Bytes = BTreeMap<String, ByteString>;

/// Text comes before bytes, as the API server does it when it stores a Secret.
fn part<'a>(
    text: Option<&'a Text>,
    bytes: Option<&'a Bytes>,
    key: &str,
) -> Result<&'a [u8], String> {
    let text = text.and_then(|it| it.get(key)).map(String::as_bytes);
    let bytes = || bytes.and_then(|it| it.get(key)).map(|it| it.0.as_slice());
    text.or_else(bytes)
        .ok_or_else(|| format!("it has no {key}"))
}

/// What manifests hold beside the objects of the table.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Secrets with certificates.
    pub certificates: BTreeMap<ObjectName, Found>,
    /// Secrets and ConfigMaps with authorities.
    pub authorities: BTreeMap<Holder, FoundAuthorities>,
}

/// What a document of manifests holds beside the objects of the table.
///
/// # Errors
/// The document is no YAML or JSON.
pub(super) fn contents(document: Document<'_>, format: Format) -> Result<Contents, Error> {
    let mut found = Contents::default();
    // Few documents hold such an object, and each is read once more for it.
    let has = |word: &str| document.text.contains(word);
    if !(has("Secret") || has("ConfigMap")) || !(has(TYPE) || has(AUTHORITIES)) {
        return Ok(found);
    }
    let whole = value(document, format)?.unwrap_or_default();
    let all = match whole.get("items") {
        Some(Value::Array(items)) => items.as_slice(),
        _ => std::slice::from_ref(&whole),
    };
    let kind = whole["kind"].as_str().unwrap_or_default();
    for manifest in all {
        let is_secret = manifest["kind"] == "Secret" || kind == "SecretList";
        let is_map = manifest["kind"] == "ConfigMap" || kind == "ConfigMapList";
        if !is_secret && !is_map {
            continue;
        }
        let text = |field: &str| manifest["metadata"][field].as_str();
        let namespace = text("namespace").unwrap_or("default");
        let name = ObjectName::new(namespace, text("name").unwrap_or_default());
        let of = ["stringData", "data", "binaryData"];
        if of.iter().any(|it| manifest[*it].get(AUTHORITIES).is_some()) {
            let (kind, authorities) = match is_secret {
                true => (
                    HolderKind::Secret,
                    read(manifest).and_then(|it| in_secret(&it)),
                ),
                false => (
                    HolderKind::ConfigMap,
                    read(manifest).and_then(|it| in_config_map(&it)),
                ),
            };
            let name = name.clone();
            found.authorities.insert(Holder { kind, name }, authorities);
        }
        if is_secret && manifest["type"] == TYPE {
            let certificate = read(manifest).and_then(|it| certificate(&it));
            found.certificates.insert(name, certificate);
        }
    }
    Ok(found)
}

fn read<K: DeserializeOwned>(manifest: &Value) -> Result<K, String> {
    let read = serde_json::from_value(manifest.clone());
    // serde's own words may hold what it has read.
    read.map_err(|_| "its data is not base64 text by name".to_owned())
}

/// The key with authorities.
const AUTHORITIES: &str = "ca.crt";
/// The only type of Secrets whose certificate is read.
const TYPE: &str = "kubernetes.io/tls";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::discovery::document::documents;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_secret_gives_its_certificate_or_says_why_not() {
        let (certificate, key) = pair();
        let secret = |of: &str, parts: &[(&str, &str)]| Secret {
            type_: Some(of.to_owned()),
            data: Some(
                parts
                    .iter()
                    .map(|(name, text)| ((*name).to_owned(), ByteString(text.as_bytes().into())))
                    .collect(),
            ),
            ..Secret::default()
        };
        let whole = [("tls.crt", certificate.as_str()), ("tls.key", key.as_str())];
        let read = |of: &str, parts: &[(&str, &str)]| super::certificate(&secret(of, parts));
        assert_eq!(read(TYPE, &whole).unwrap().names(), ["a.example"]);
        for (of, parts, expected) in [
            (
                "Opaque",
                &whole[..],
                "its type is Opaque, expected kubernetes.io/tls",
            ),
            (TYPE, &whole[..1], "it has no tls.key"),
            (TYPE, &whole[1..], "it has no tls.crt"),
        ] {
            assert_eq!(read(of, parts).unwrap_err(), expected);
        }
        let other = pair().1;
        let torn = [
            ("tls.crt", certificate.as_str()),
            ("tls.key", other.as_str()),
        ];
        assert!(read(TYPE, &torn).unwrap_err().contains("does not belong"));
    }

    #[test]
    fn secrets_of_any_type_and_config_maps_give_authorities_or_say_why_not() {
        let pem = pair().0;
        let mut text = String::new();
        for (kind, name, data) in [
            ("Secret", "text", json!({"stringData": {"ca.crt": pem}})),
            (
                "Secret",
                "bytes",
                json!({"data": {"ca.crt": ByteString(pem.clone().into_bytes())}, "type": TYPE}),
            ),
            ("ConfigMap", "text", json!({"data": {"ca.crt": pem}})),
            (
                "ConfigMap",
                "bytes",
                json!({"binaryData": {"ca.crt": ByteString(pem.clone().into_bytes())}}),
            ),
            ("ConfigMap", "broken", json!({"data": {"ca.crt": "no PEM"}})),
            ("Secret", "clear", json!({"data": {"ca.crt": pem}})),
            ("ConfigMap", "other", json!({"data": {"root.crt": pem}})),
            ("Deployment", "else", json!({"data": {"ca.crt": pem}})),
        ] {
            let mut manifest =
                json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
            let fields = data.as_object().unwrap().clone();
            manifest.as_object_mut().unwrap().extend(fields);
            text += &format!("---\n{manifest}\n");
        }
        let mut found = BTreeMap::new();
        for document in documents(&text, Format::Yaml).unwrap() {
            found.extend(contents(document, Format::Yaml).unwrap().authorities);
        }
        let of = |holder: &Holder| holder.to_string().replace("default/", "");
        let good = found
            .iter()
            .filter(|(_, found)| found.as_deref() == Ok(&*pem));
        let good: Vec<_> = good.map(|(holder, _)| of(holder)).collect();
        assert_eq!(
            good,
            [
                "Secret bytes",
                "Secret text",
                "ConfigMap bytes",
                "ConfigMap text"
            ]
        );
        let bad = found
            .iter()
            .filter_map(|(it, found)| Some((of(it), found.as_ref().err()?)));
        let bad: Vec<_> = bad.collect();
        assert_eq!(bad.len(), 2, "{bad:?}");
        assert_eq!(bad[0].0, "Secret clear");
        assert_eq!(bad[0].1, "its data is not base64 text by name");
        assert_eq!(bad[1].0, "ConfigMap broken");
        assert!(bad[1].1.starts_with("ca.crt: "), "{bad:?}");
    }

    #[test]
    fn manifests_hold_secrets_alone_and_in_lists_and_those_of_other_types_are_not_read() {
        let (certificate, key) = pair();
        let indented = |text: &str| text.replace('\n', "\n      ");
        let tls = format!(
            "kind: Secret\n  apiVersion: v1\n  type: kubernetes.io/tls\n  metadata: {{name: a, namespace: web}}\n  \
             stringData:\n    tls.crt: |\n      {}\n    tls.key: |\n      {}\n",
            indented(&certificate),
            indented(&key)
        );
        let text = format!(
            "{}---\nkind: List\napiVersion: v1\nitems:\n- {}- {{kind: Secret, type: Opaque, metadata: {{name: c}}}}\n\
             - {{kind: Secret, type: kubernetes.io/tls, metadata: {{name: d}}, data: {{tls.crt: '***'}}}}\n",
            tls.replace("\n  ", "\n"),
            tls.replace("name: a", "name: b")
        );
        let mut found = BTreeMap::new();
        for document in documents(&text, Format::Yaml).unwrap() {
            found.extend(contents(document, Format::Yaml).unwrap().certificates);
        }
        let names: Vec<String> = found.keys().map(ObjectName::to_string).collect();
        assert_eq!(names, ["default/d", "web/a", "web/b"]);
        let wrong = found.remove(&ObjectName::new("default", "d")).unwrap();
        assert_eq!(wrong.unwrap_err(), "its data is not base64 text by name");
        assert!(found.values().all(Result::is_ok), "{found:?}");
    }
}
