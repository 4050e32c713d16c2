//! What the routes of the Gateway API ask for
//! (<https://gateway-api.sigs.k8s.io/reference/spec/#httproutespec>).
//!
//! Invariant: one type holds routes of every kind. A kind leaves out what it does not have.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contract::filters::Cors;

/// Of a route of any kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// The Gateways whose clients it leads on.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// The hosts, which may begin with `*.`. Empty: all of the listener.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// The rules.
    #[serde(default)]
    pub rules: Vec<RouteRule>,
}

/// A Gateway, and which of its listeners.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// The group. Absent: `gateway.networking.k8s.io`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The kind. Absent: Gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The namespace. Absent: that of the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// The listener. Absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// The port of the listener. Absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A rule of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRule {
    /// The requests that it is for: those that fit one of these. Empty: all.
    #[serde(default)]
    pub matches: Vec<RouteMatch>,
    /// What is done beside.
    #[serde(default)]
    pub filters: Vec<RouteFilter>,
    /// What serves them.
    #[serde(default)]
    pub backend_refs: Vec<RouteBackend>,
    /// How long they may take.
    pub timeouts: Option<RouteTimeouts>,
    /// Which answers are asked for again.
    pub retry: Option<RouteRetry>,
    /// That a client stays with its endpoint. It is not served.
    pub session_persistence: Option<Value>,
}

/// Requests that a rule is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    /// The path.
    pub path: Option<TypedValue>,
    /// Fields. All must fit.
    #[serde(default)]
    pub headers: Vec<NamedValue>,
    /// Parameters of the query. All must fit.
    #[serde(default)]
    pub query_params: Vec<NamedValue>,
    /// The method.
    pub method: Option<MethodMatch>,
}

/// A method of HTTP, or one of gRPC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MethodMatch {
    /// As GET.
    Http(String),
    /// A method of a service.
    Grpc {
        /// `Exact` or `RegularExpression`. Absent: `Exact`.
        #[serde(rename = "type")]
        kind: Option<String>,
        /// The service. Absent: all.
        service: Option<String>,
        /// The method. Absent: all.
        method: Option<String>,
    },
}

/// A value, and how it is compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TypedValue {
    /// `Exact`, `PathPrefix` or `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The value.
    pub value: Option<String>,
}

/// A name with a value, and how that is compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedValue {
    /// `Exact` or `RegularExpression`. Absent: `Exact`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// What serves requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteBackend {
    /// The object.
    #[serde(flatten)]
    pub to: ObjectRef,
    /// Its port.
    pub port: Option<u16>,
    /// Its share. Absent: 1.
    pub weight: Option<u32>,
    /// What is done beside, for this backend alone.
    #[serde(default)]
    pub filters: Vec<RouteFilter>,
}

/// What is done beside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteFilter {
    /// Which of the fields counts.
    #[serde(rename = "type")]
    pub kind: String,
    /// Changes fields of the request.
    pub request_header_modifier: Option<HeaderChanges>,
    /// Changes fields of the answer.
    pub response_header_modifier: Option<HeaderChanges>,
    /// Redirects.
    pub request_redirect: Option<RedirectFilter>,
    /// Gives the request another host or path.
    #[serde(rename = "urlRewrite")]
    pub url_rewrite: Option<RewriteFilter>,
    /// Lets pages of other origins read the answers.
    pub cors: Option<Cors>,
}

/// Changes of fields.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HeaderChanges {
    /// Replaces.
    #[serde(default)]
    pub set: Vec<NamedValue>,
    /// Adds.
    #[serde(default)]
    pub add: Vec<NamedValue>,
    /// Takes away.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A redirect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedirectFilter {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathChange>,
    /// The port.
    pub port: Option<u16>,
    /// Absent: 302.
    pub status_code: Option<u16>,
}

/// Another host or path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewriteFilter {
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathChange>,
}

/// Another path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathChange {
    /// Which of the fields counts.
    #[serde(rename = "type")]
    pub kind: String,
    /// In place of the whole path.
    pub replace_full_path: Option<String>,
    /// In place of the prefix.
    pub replace_prefix_match: Option<String>,
}

/// How long requests may take, as `10s` or `1m30s`
/// (<https://gateway-api.sigs.k8s.io/geps/gep-2257/>).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTimeouts {
    /// All attempts together.
    pub request: Option<String>,
    /// One attempt.
    pub backend_request: Option<String>,
}

/// Which answers are asked for again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteRetry {
    /// Their statuses.
    #[serde(default)]
    pub codes: Vec<u16>,
    /// How often.
    pub attempts: Option<u32>,
    /// The least time in between.
    pub backoff: Option<String>,
}

/// Names another object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// The group. Absent: that of the core.
    pub group: Option<String>,
    /// The kind. Absent: Secret for a certificate, Service for a backend.
    pub kind: Option<String>,
    /// The name.
    pub name: String,
    /// The namespace. Absent: that of the object which refers.
    pub namespace: Option<String>,
}
