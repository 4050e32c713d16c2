//! The rules of a route: which requests each is for, and what becomes of them.
//!
//! Source: <https://gateway-api.sigs.k8s.io/reference/spec/#httprouterule>.

use std::sync::Arc;
use std::time::Duration;

use crate::contract::backend::Backend;
use crate::contract::filters::{FieldChanges, Filters, NewPath, Redirect, Retry, Rewrite};
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol};
use crate::contract::route::{Rule, Wants};
use crate::discovery::gateway::{GatewayKind, GatewayObject};
use crate::discovery::object::BackendRef;
use crate::discovery::route_spec::{
    HeaderChanges, MethodMatch, NamedValue, PathChange, RouteBackend, RouteFilter, RouteMatch,
    RouteRule,
};
use crate::routing::gateway::conditions::Says;
use crate::routing::gateway::facts::{Facts, Known};

/// What becomes of the requests of a rule.
#[derive(Debug, PartialEq)]
pub struct Planned {
    /// The kind and name of the route.
    pub route: Arc<str>,
    /// What serves them, each with its share. `None`: it cannot be served.
    pub backends: Vec<(u32, Option<PlannedBackend>)>,
    /// What is done beside.
    pub filters: Option<Filters>,
    /// The TLS of its connections ends here. Else it is passed on.
    pub ends_tls: bool,
}

/// A Service port that serves a share of the requests.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedBackend {
    /// The Service port.
    pub to: BackendRef,
    /// What it speaks. `None`: as the Service says.
    pub protocol: Option<Protocol>,
    /// What is done for it alone.
    pub filters: Option<Arc<Filters>>,
    /// Whether BackendTLSPolicies count for its route.
    pub has_policies: bool,
    /// How one has TLS spoken with its endpoints. `None`: as the Service says.
    pub backend: Option<Arc<Backend>>,
}

impl PlannedBackend {
    /// The same for clients whose bytes are passed on as they are: no policy counts.
    pub fn passed_on(self) -> Self {
        Self {
            has_policies: false,
            backend: None,
            ..self
        }
    }
}

/// Something that is not supported, as a reason and a message.
type Unsupported = (&'static str, String);

/// Rules, in the order in which they count.
pub type Rules = Vec<(Rule, Arc<Planned>)>;

/// The rules of a route for one host (`None`: every host).
pub fn rules(
    kind: GatewayKind,
    host: Option<&String>,
    rule: &RouteRule,
    planned: impl Fn(Option<Filters>) -> Planned,
) -> Result<Rules, Unsupported> {
    if rule.session_persistence.is_some() {
        return Err(unsupported("sessionPersistence", "it"));
    }
    let any = RouteMatch {
        path: None,
        headers: Vec::new(),
        query_params: Vec::new(),
        method: None,
    };
    let all = match rule.matches.is_empty() {
        true => std::slice::from_ref(&any),
        false => &rule.matches[..],
    };
    let made = all.iter().map(|it| {
        let mut made = match kind {
            GatewayKind::GrpcRoute => of_grpc(it)?,
            _ => of_http(it)?,
        };
        made.host = host.cloned();
        made.wants.fields = named(&it.headers, true)?;
        made.wants.query = named(&it.query_params, false)?;
        let prefix = (!made.exact).then_some(made.path.as_str());
        let filters = filters(&rule.filters, prefix)?;
        let filters = with_times(filters, rule)?;
        Ok((made, Arc::new(planned(filters))))
    });
    made.collect()
}

fn of_http(it: &RouteMatch) -> Result<Rule, Unsupported> {
    let path = it.path.as_ref();
    let kind = path
        .and_then(|it| it.kind.as_deref())
        .unwrap_or("PathPrefix");
    if !matches!(kind, "Exact" | "PathPrefix") {
        return Err(unsupported("a path of type", kind));
    }
    let value = path.and_then(|it| it.value.as_deref()).unwrap_or("/");
    if !value.starts_with('/') {
        return Err((
            "UnsupportedValue",
            format!("path {value:?} does not begin with /"),
        ));
    }
    let method = match &it.method {
        None => None,
        Some(MethodMatch::Http(method)) if METHODS.contains(&&**method) => Some(method.clone()),
        Some(MethodMatch::Http(method)) => return Err(unsupported("the method", method)),
        Some(MethodMatch::Grpc { .. }) => return Err(unsupported("a method of", "gRPC")),
    };
    Ok(Rule {
        path: value.to_owned(),
        exact: kind == "Exact",
        wants: Wants {
            method,
            ..Wants::default()
        },
        ..Rule::default()
    })
}

fn of_grpc(it: &RouteMatch) -> Result<Rule, Unsupported> {
    let (kind, service, method) = match &it.method {
        None => (&None, &None, &None),
        Some(MethodMatch::Grpc {
            kind,
            service,
            method,
        }) => (kind, service, method),
        Some(MethodMatch::Http(_)) => return Err(unsupported("a method of", "HTTP")),
    };
    if kind.as_deref().is_some_and(|it| it != "Exact") {
        return Err(unsupported("a method of type", "RegularExpression"));
    }
    let path = match (service, method) {
        (Some(service), Some(method)) => format!("/{service}/{method}"),
        (Some(service), None) => format!("/{service}"),
        (None, _) => "/".to_owned(),
    };
    Ok(Rule {
        path,
        exact: service.is_some() && method.is_some(),
        wants: Wants {
            last: method.clone().filter(|_| service.is_none()),
            ..Wants::default()
        },
        ..Rule::default()
    })
}

/// Names and values that must all fit. Of two with one name, the first counts.
fn named(all: &[NamedValue], are_fields: bool) -> Result<Vec<(String, String)>, Unsupported> {
    let mut named: Vec<(String, String)> = Vec::new();
    for it in all {
        if let Some(kind) = it.kind.as_deref().filter(|it| *it != "Exact") {
            return Err(unsupported("a value of type", kind));
        }
        let name = match are_fields {
            true => it.name.to_ascii_lowercase(),
            false => it.name.clone(),
        };
        if !named.iter().any(|(known, _)| *known == name) {
            named.push((name, it.value.clone()));
        }
    }
    Ok(named)
}

/// What filters ask for. `prefix` is the one by which their rule is found.
pub fn filters(all: &[RouteFilter], prefix: Option<&str>) -> Result<Option<Filters>, Unsupported> {
    let mut made = Filters::default();
    for it in all {
        match (
            it.kind.as_str(),
            &it.request_header_modifier,
            &it.response_header_modifier,
        ) {
            ("RequestHeaderModifier", Some(changes), _) => made.request = field_changes(changes),
            ("ResponseHeaderModifier", _, Some(changes)) => made.response = field_changes(changes),
            ("RequestRedirect", ..) if let Some(it) = &it.request_redirect => {
                let status = it.status_code.unwrap_or(302);
                if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                    return Err(unsupported("a redirect of status", &status.to_string()));
                }
                made.redirect = Some(Redirect {
                    scheme: it.scheme.clone(),
                    host: it.hostname.clone(),
                    path: new_path(it.path.as_ref(), prefix)?,
                    port: it.port,
                    status,
                    keeps_port: false,
                });
            }
            ("URLRewrite", ..) if let Some(it) = &it.url_rewrite => {
                made.rewrite = Some(Rewrite {
                    host: it.hostname.clone(),
                    path: new_path(it.path.as_ref(), prefix)?,
                });
            }
            ("CORS", ..) if it.cors.is_some() => made.cors.clone_from(&it.cors),
            (known, ..) if FILTERS.contains(&known) => {
                return Err(unsupported(
                    "without its own field, a filter of type",
                    known,
                ));
            }
            (other, ..) => return Err(unsupported("a filter of type", other)),
        }
    }
    if made.redirect.is_some() && made.rewrite.is_some() {
        let what = "of RequestRedirect and URLRewrite, a rule has one at most";
        return Err(("IncompatibleFilters", what.to_owned()));
    }
    Ok((made != Filters::default()).then_some(made))
}

fn new_path(it: Option<&PathChange>, prefix: Option<&str>) -> Result<Option<NewPath>, Unsupported> {
    let Some(it) = it else {
        return Ok(None);
    };
    let path = match (
        it.kind.as_str(),
        &it.replace_full_path,
        &it.replace_prefix_match,
        prefix,
    ) {
        ("ReplaceFullPath", Some(path), ..) => NewPath::Full(path.clone()),
        ("ReplacePrefixMatch", _, Some(to), Some(of)) => NewPath::Prefix {
            of: of.to_owned(),
            to: to.clone(),
        },
        (kind, ..) => return Err(unsupported("for this match, a path of type", kind)),
    };
    Ok(Some(path))
}

fn field_changes(it: &HeaderChanges) -> FieldChanges {
    let pairs = |all: &[NamedValue]| {
        let pairs = all.iter();
        let pairs = pairs.map(|it| (it.name.to_ascii_lowercase(), it.value.clone()));
        pairs.collect()
    };
    FieldChanges {
        set: pairs(&it.set),
        add: pairs(&it.add),
        remove: it.remove.iter().map(|it| it.to_ascii_lowercase()).collect(),
    }
}

fn with_times(filters: Option<Filters>, rule: &RouteRule) -> Result<Option<Filters>, Unsupported> {
    let (times, retry) = (rule.timeouts.as_ref(), rule.retry.as_ref());
    if times.is_none() && retry.is_none() {
        return Ok(filters);
    }
    let mut made = filters.unwrap_or_default();
    made.request_timeout = time(times.and_then(|it| it.request.as_ref()))?;
    made.attempt_timeout = time(times.and_then(|it| it.backend_request.as_ref()))?;
    made.retry = retry
        .map(|it| {
            Ok(Retry {
                codes: it.codes.clone(),
                attempts: it.attempts,
                backoff: time(it.backoff.as_ref())?,
            })
        })
        .transpose()?;
    Ok(Some(made))
}

fn time(text: Option<&String>) -> Result<Option<Duration>, Unsupported> {
    let read = |text: &String| {
        let what = |_| {
            (
                "UnsupportedValue",
                format!("{text:?} is no time such as 10s"),
            )
        };
        humantime::parse_duration(text).map_err(what)
    };
    text.map(read).transpose()
}

const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];
const FILTERS: [&str; 5] = [
    "CORS",
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestRedirect",
    "URLRewrite",
];

fn unsupported(what: &str, value: &str) -> Unsupported {
    (
        "UnsupportedValue",
        format!("{what} {value} is not supported"),
    )
}

/// The Service port that a route names, or why it cannot be served.
pub fn backend(
    route: &GatewayObject,
    it: &RouteBackend,
    facts: &Facts<'_>,
) -> Result<BackendRef, (&'static str, String)> {
    let kind = it.to.kind.as_deref().unwrap_or("Service");
    if kind != "Service" || it.to.group.as_deref().is_some_and(|it| !it.is_empty()) {
        return Err((
            "InvalidKind",
            format!("{kind} {} is no Service", it.to.name),
        ));
    }
    let own = &route.name.namespace;
    let service = ObjectName::new(it.to.namespace.as_ref().unwrap_or(own), &*it.to.name);
    if !facts.grants.permit(route.kind, own, "Service", &service) {
        let what = format!(
            "no ReferenceGrant in {} permits it to use Service {service}",
            service.namespace
        );
        return Err(("RefNotPermitted", what));
    }
    let Some(port) = it.port else {
        return Err((
            "UnsupportedValue",
            format!("Service {service} is named without a port"),
        ));
    };
    let is_udp = route.kind == GatewayKind::UdpRoute;
    match (facts.service)(&service, port, is_udp) {
        Known::Missing(what) => Err(("BackendNotFound", what)),
        Known::Unknown | Known::Is(()) => Ok(BackendRef {
            service,
            port: PortRef::Number(port),
        }),
    }
}

/// What a route's endpoints speak, where the Service does not decide.
pub fn protocol(kind: GatewayKind) -> Option<Protocol> {
    match kind {
        GatewayKind::GrpcRoute => Some(Protocol::Http2),
        GatewayKind::TlsRoute | GatewayKind::TcpRoute => Some(Protocol::Tcp),
        GatewayKind::UdpRoute => Some(Protocol::Udp),
        _ => None,
    }
}

/// What is said of a route whose backends are these. The first that cannot be served counts.
pub fn resolved(backends: &[Result<BackendRef, (&'static str, String)>]) -> Says {
    match backends.iter().find_map(|it| it.as_ref().err()) {
        Some(why) => Err(why.clone()),
        None => Ok(()),
    }
}
