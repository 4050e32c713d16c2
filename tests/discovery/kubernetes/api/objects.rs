//! Objects, selectors and paths, as the API has them, and the forms of its answers.

use axum::body::Body;
use futures::stream;
use hyper::Response;
use serde_json::{Value, json};

use super::{CLAIM, Kind};

/// The version of the Gateway API's objects.
pub const GATEWAYS: &str = "gateway.networking.k8s.io/v1";

/// Sets or removes the label of a claim.
pub(super) fn set_label(slice: &mut Value, claim: Value) {
    let Some(labels) = slice["metadata"]["labels"].as_object_mut() else {
        return;
    };
    match claim {
        Value::Null => _ = labels.remove(CLAIM),
        claim => _ = labels.insert(CLAIM.to_owned(), claim),
    }
}

pub(super) fn kind_of(object: &Value) -> Kind {
    match object["kind"].as_str().unwrap() {
        "Service" => Kind::Services,
        "EndpointSlice" => Kind::Slices,
        "Pod" => Kind::Pods,
        "Secret" => Kind::Secrets,
        "ConfigMap" => Kind::ConfigMaps,
        "Ingress" => Kind::Ingresses,
        "IngressClass" => Kind::Classes,
        "GatewayClass" => Kind::GatewayClasses,
        "Gateway" => Kind::Gateways,
        "HTTPRoute" => Kind::HttpRoutes,
        "BackendTLSPolicy" => Kind::Policies,
        other => panic!("{other}"),
    }
}

pub(super) fn key_of(kind: Kind, object: &Value) -> (Kind, String, String) {
    let part = |name: &str| {
        object["metadata"][name]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (kind, part("namespace"), part("name"))
}

/// An object as the real server shows it: items of a typed list have no type, and a Pod is only its
/// metadata.
pub(super) fn shown(kind: Kind, object: &Value, listed: bool) -> Value {
    let mut object = object.clone();
    match kind {
        Kind::Pods => json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"].take(),
        }),
        _ => {
            if let Some(fields) = object.as_object_mut().filter(|_| listed) {
                fields.remove("apiVersion");
                fields.remove("kind");
            }
            object
        }
    }
}

pub(super) fn bookmark(kind: Kind, version: &str) -> Value {
    let (api_version, of) = match kind {
        Kind::Services => ("v1", "Service"),
        Kind::Slices => ("discovery.k8s.io/v1", "EndpointSlice"),
        Kind::Pods => ("meta.k8s.io/v1", "PartialObjectMetadata"),
        Kind::Secrets => ("v1", "Secret"),
        Kind::ConfigMaps => ("v1", "ConfigMap"),
        Kind::Ingresses => ("networking.k8s.io/v1", "Ingress"),
        Kind::Classes => ("networking.k8s.io/v1", "IngressClass"),
        Kind::GatewayClasses => (GATEWAYS, "GatewayClass"),
        Kind::Gateways => (GATEWAYS, "Gateway"),
        Kind::HttpRoutes => (GATEWAYS, "HTTPRoute"),
        Kind::Policies => (GATEWAYS, "BackendTLSPolicy"),
    };
    let metadata = json!({"resourceVersion": version});
    let object = json!({"apiVersion": api_version, "kind": of, "metadata": metadata});
    json!({"type": "BOOKMARK", "object": object})
}

/// Whether a selector selects an object: `label=value`, `label in (a,b)`, `label`,
/// `metadata.name=x`, `spec.nodeName=x` or `!label`, and after a last comma `label!=value`.
pub(super) fn selects(selector: &str, object: &Value) -> bool {
    if let Some((not, value)) = selector.split_once("!=") {
        let (selector, label) = not.rsplit_once(',').unwrap();
        return object["metadata"]["labels"][label] != value && selects(selector, object);
    }
    if let Some(label) = selector.strip_prefix('!') {
        return object["metadata"]["labels"][label].is_null();
    }
    let (name, values) = match selector.split_once(" in (") {
        Some((name, set)) => (name, set.trim_end_matches(')').split(',').collect()),
        None => match selector.split_once('=') {
            Some((name, value)) => (name, vec![value]),
            None => (selector, Vec::new()),
        },
    };
    let found = match name {
        "metadata.name" => &object["metadata"]["name"],
        "spec.nodeName" => &object["spec"]["nodeName"],
        label => &object["metadata"]["labels"][label],
    };
    let is_any = values.is_empty() && !found.is_null();
    is_any || found.as_str().is_some_and(|found| values.contains(&found))
}

/// A value of a query without its escapes.
pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'+', after) => (b' ', after),
            (b'%', [a, b, after @ ..]) => {
                let digits = String::from_utf8(vec![*a, *b]).unwrap();
                (u8::from_str_radix(&digits, 16).unwrap(), after)
            }
            (byte, after) => (*byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).unwrap()
}

/// The kind and the namespace that a path names.
pub(super) fn place(path: &str) -> Option<(Kind, Option<String>)> {
    let (group, rest) = match path.strip_prefix("/api/v1/") {
        Some(rest) => ("", rest),
        None => path.strip_prefix("/apis/")?.split_once(".k8s.io/v1/")?,
    };
    let (namespace, resource) = match rest.strip_prefix("namespaces/") {
        Some(rest) => rest
            .split_once('/')
            .map(|(namespace, resource)| (Some(namespace.to_owned()), resource))?,
        None => (None, rest),
    };
    let kind = match (group, resource) {
        ("", "services") => Kind::Services,
        ("", "pods") => Kind::Pods,
        ("", "secrets") => Kind::Secrets,
        ("", "configmaps") => Kind::ConfigMaps,
        ("discovery", "endpointslices") => Kind::Slices,
        ("networking", "ingresses") => Kind::Ingresses,
        ("networking", "ingressclasses") => Kind::Classes,
        ("gateway.networking", "gatewayclasses") => Kind::GatewayClasses,
        ("gateway.networking", "gateways") => Kind::Gateways,
        ("gateway.networking", "httproutes") => Kind::HttpRoutes,
        ("gateway.networking", "backendtlspolicies") => Kind::Policies,
        _ => return None,
    };
    Some((kind, namespace))
}

pub(super) fn answer(code: u16, body: &Value) -> Response<Body> {
    let response = Response::builder()
        .status(code)
        .header("content-type", "application/json");
    response.body(Body::from(body.to_string())).unwrap()
}

pub(super) fn status(code: u16, message: &str) -> Response<Body> {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code,
    });
    answer(code, &body)
}

pub(super) fn gone() -> Value {
    let object = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": "too old resource version: 1 (100)", "reason": "Expired", "code": 410,
    });
    json!({"type": "ERROR", "object": object})
}

pub(super) async fn half(whole: Response<Body>) -> Response<Body> {
    let (head, body) = whole.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let pieces = [
        Ok(bytes.slice(..bytes.len() / 2)),
        Err(std::io::Error::other("as ordered")),
    ];
    Response::from_parts(head, Body::from_stream(stream::iter(pieces)))
}
