//! What is done with the requests of a route, beside passing them on.
//!
//! Source: <https://gateway-api.sigs.k8s.io/reference/spec/#httprouterule>.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What is done with a request and its answer, beside passing them on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// Fields of the request.
    pub request: FieldChanges,
    /// Fields of the answer.
    pub response: FieldChanges,
    /// The request is answered with a redirect.
    pub redirect: Option<Redirect>,
    /// A request without TLS is answered with a redirect to the same place with TLS.
    pub wants_tls: bool,
    /// The request gets another host or path.
    pub rewrite: Option<Rewrite>,
    /// All attempts together may take this long. Zero: as long as they like.
    pub request_timeout: Option<Duration>,
    /// One attempt may take this long. Zero: as long as it likes.
    pub attempt_timeout: Option<Duration>,
    /// Which answers are asked for again.
    pub retry: Option<Retry>,
    /// The most bytes of a request body. A longer one is answered with 413.
    pub body_size: Option<u64>,
    /// Which pages of other origins may read the answers.
    pub cors: Option<Cors>,
    /// Who may ask; others get 403. Empty: everybody.
    pub source_ranges: Vec<IpNet>,
}

impl Filters {
    /// Whether a client of this canonical address may ask.
    pub fn admits(&self, client: IpAddr) -> bool {
        let ranges = &self.source_ranges;
        ranges.is_empty() || ranges.iter().any(|it| it.contains(&client))
    }
}

/// Changes of fields, in the order of these lists. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChanges {
    /// Replace all fields of the name.
    pub set: Vec<(String, String)>,
    /// Add to the fields of the name.
    pub add: Vec<(String, String)>,
    /// Take all fields of the name away.
    pub remove: Vec<String>,
}

/// A redirect. What is `None` is as in the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// The host, without a port.
    pub host: Option<String>,
    /// The path.
    pub path: Option<NewPath>,
    /// The port. `None`: that of `scheme` if there is one, else that of the listener.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// Where nothing else says so, the port is that of the request's `Host`, as with ingress-nginx.
    #[serde(default)]
    pub keeps_port: bool,
}

/// Which pages of other origins may read the answers
/// (<https://gateway-api.sigs.k8s.io/reference/spec/#httpcorsfilter>).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// As `https://shop.example`, `https://*.example` or `*`.
    #[serde(rename = "allowOrigins")]
    pub origins: Vec<String>,
    /// Methods, or `*`.
    #[serde(rename = "allowMethods")]
    pub methods: Vec<String>,
    /// Names of a request's fields, or `*`.
    #[serde(rename = "allowHeaders")]
    pub headers: Vec<String>,
    /// Names of an answer's fields, or `*`.
    #[serde(rename = "exposeHeaders")]
    pub expose: Vec<String>,
    /// Cookies and logins may come along.
    #[serde(rename = "allowCredentials")]
    pub credentials: bool,
    /// How long a browser may keep what it was told, in seconds.
    #[serde(default = "max_age")]
    pub max_age: u32,
    /// A `*` in an origin stands for one label, as with ingress-nginx. Otherwise for any number of them.
    #[serde(skip)]
    pub one_label: bool,
}

/// The API's default.
fn max_age() -> u32 {
    5
}

/// Another host or path for the endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// The host.
    pub host: Option<String>,
    /// The path.
    pub path: Option<NewPath>,
}

/// A path in place of that of the request. The query stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewPath {
    /// In place of all of it.
    Full(String),
    /// In place of the prefix by which the rule was found.
    Prefix {
        /// The prefix of the rule.
        of: String,
        /// What takes its place.
        to: String,
    },
}

/// Answers after which another endpoint is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Their statuses.
    pub codes: Vec<u16>,
    /// How many further attempts there may be. `None`: the Service's own limit.
    pub attempts: Option<u32>,
    /// The least time before each of them.
    pub backoff: Option<Duration>,
}
