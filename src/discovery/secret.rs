//! Secrets with certificates (type `kubernetes.io/tls`), from manifests or from the API.
//!
//! Invariant: nothing of a Secret leaves this file but a [`Certificate`], which shows its key to
//! nobody. Secrets are no objects of the table: they are in no saved table and on no page.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use crate::contract::certificate::Certificate;
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
    let part = |name: &str| {
        let data = secret.data.iter().flatten();
        let data = data.map(|(key, bytes)| (key, bytes.0.as_slice()));
        // As the API server does it when it stores the Secret.
        let text = secret.string_data.iter().flatten();
        let text = text.map(|(key, text)| (key, text.as_bytes()));
        let found = text.chain(data).find(|(key, _)| *key == name);
        found
            .map(|(_, bytes)| bytes)
            .ok_or_else(|| format!("it has no {name}"))
    };
    Certificate::read(part("tls.crt")?, part("tls.key")?).map(Arc::new)
}

/// The Secrets with certificates in a document of manifests.
///
/// # Errors
/// The document is no YAML or JSON.
pub(super) fn secrets(
    document: Document<'_>,
    format: Format,
) -> Result<BTreeMap<ObjectName, Found>, Error> {
    let mut found = BTreeMap::new();
    // Few documents hold one, and each is read once more for it.
    if !document.text.contains("Secret") || !document.text.contains(TYPE) {
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
        if !is_secret || manifest["type"] != TYPE {
            continue;
        }
        let text = |field: &str| manifest["metadata"][field].as_str();
        let namespace = text("namespace").unwrap_or("default");
        let name = ObjectName::new(namespace, text("name").unwrap_or_default());
        let secret = serde_json::from_value::<Secret>(manifest.clone());
        // serde's own words may hold what it has read.
        let secret = secret.map_err(|_| "its data is not base64 text by name".to_owned());
        found.insert(name, secret.and_then(|it| certificate(&it)));
    }
    Ok(found)
}

/// The only type of Secrets that is read.
const TYPE: &str = "kubernetes.io/tls";

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

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
            found.extend(secrets(document, Format::Yaml).unwrap());
        }
        let names: Vec<String> = found.keys().map(ObjectName::to_string).collect();
        assert_eq!(names, ["default/d", "web/a", "web/b"]);
        let wrong = found.remove(&ObjectName::new("default", "d")).unwrap();
        assert_eq!(wrong.unwrap_err(), "its data is not base64 text by name");
        assert!(found.values().all(Result::is_ok), "{found:?}");
    }
}
