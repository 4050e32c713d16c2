//! Kubernetes objects, as manifests or from the API, to the few [`Object`]s that routing needs.
//!
//! A text holds several documents, each one object or a list of them; documents are found first and parsed one by one,
//! so that a caller can keep what an unchanged one gave. Kinds other than Service, EndpointSlice and Pod are passed
//! over. What the API server would refuse is an error here too, with its line and field; defaults and nil rules are
//! applied here and nowhere else. Fields that Ebbtide does not know are not looked at.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::Value;

use crate::text::one_line;

use crate::contract::name::{ObjectName, PodRef};
use crate::discovery::object::{
    Deletion, Object, PodObject, ServiceObject, ServicePortObject, SliceEndpoint, SliceObject,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Yaml,
    Json,
}

/// One document of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document<'a> {
    /// Where it starts; the first line is 1.
    pub line: usize,
    pub text: &'a str,
}

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// In the whole text; the first is 1.
    pub line: usize,
    /// Path of the field, e.g. `spec.ports[0].port`; empty where the syntax is at fault.
    pub field: String,
    pub message: String,
}

/// A field whose value the API server would not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    pub field: String,
    pub message: String,
}

impl Error {
    /// Keys and values may hold anything.
    fn new(line: usize, field: &str, message: &str) -> Self {
        Self {
            line,
            field: one_line(field),
            message: one_line(message),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if !self.field.is_empty() {
            write!(f, ", {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All objects of a text. `listed_at`: see [`pod`].
pub fn parse(
    text: &str,
    format: Format,
    listed_at: Option<SystemTime>,
) -> Result<Vec<Object>, Error> {
    let mut objects = Vec::new();
    for document in documents(text, format)? {
        objects.extend(parse_document(document, format, listed_at)?);
    }
    Ok(objects)
}

/// The documents of a text that are more than comments.
pub fn documents(text: &str, format: Format) -> Result<Vec<Document<'_>>, Error> {
    match format {
        Format::Yaml => Ok(yaml_documents(text)),
        Format::Json => json_documents(text),
    }
}

/// The objects of one document; none for a kind that is not ours. `listed_at`: see [`pod`].
pub fn parse_document(
    document: Document<'_>,
    format: Format,
    listed_at: Option<SystemTime>,
) -> Result<Vec<Object>, Error> {
    let document_value = read(document, format, PhantomData::<Option<Value>>)?;
    let Some(mut whole) = document_value.filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let Some(kind) = whole.get("kind").and_then(Value::as_str).map(str::to_owned) else {
        return Err(Error::new(
            document.line,
            "kind",
            "missing; a manifest names its apiVersion and kind",
        ));
    };
    // Each manifest with its place in the document, as the prefix of a field's path.
    let manifests: Vec<(String, String, Value)> =
        match (kind.strip_suffix("List"), whole.get_mut("items")) {
            (Some(of), Some(Value::Array(items))) => {
                let kind_of = |item: &Value| match of {
                    "" => item
                        .get("kind")
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned(),
                    of => of.to_owned(),
                };
                let items = std::mem::take(items).into_iter().enumerate();
                items
                    .map(|(i, item)| (kind_of(&item), format!("items[{i}]."), item))
                    .collect()
            }
            _ => vec![(kind, String::new(), whole)],
        };
    let mut objects = Vec::new();
    for (kind, place, manifest) in manifests {
        let object = match kind.as_str() {
            "Service" => typed(manifest)
                .and_then(|it| service(&it))
                .map(Object::Service),
            "EndpointSlice" => typed(manifest)
                .and_then(|it| slice(&it))
                .map(Object::EndpointSlice),
            "Pod" => typed::<PodManifest>(manifest).and_then(|it| {
                let grace = it
                    .spec
                    .and_then(|spec| spec.termination_grace_period_seconds);
                pod(
                    &it.metadata,
                    Some(seconds(grace.unwrap_or(DEFAULT_GRACE))),
                    listed_at,
                )
                .map(Object::Pod)
            }),
            kind => {
                tracing::debug!(
                    kind,
                    line = document.line,
                    "passed over a manifest of a kind that is not used"
                );
                continue;
            }
        };
        objects.push(object.map_err(|invalid| {
            let field = format!("{place}{}", invalid.field);
            Error::new(line_of(document, format, &field), &field, &invalid.message)
        })?);
    }
    Ok(objects)
}

/// The API's own type of a manifest. Documents are read untyped first: a reader of each type from YAML, with its tracking
/// of lines, would be a third of the program's code.
fn typed<T: DeserializeOwned>(manifest: Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(manifest).map_err(|error| Invalid {
        field: field(error.path()),
        message: own_words(&error.inner().to_string()),
    })
}

/// What is read of a Pod: the API's own type would bring a reader for every kind of volume.
#[derive(Deserialize)]
struct PodManifest {
    metadata: ObjectMeta,
    spec: Option<PodManifestSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodManifestSpec {
    termination_grace_period_seconds: Option<i64>,
}

/// A v1 Service (<https://kubernetes.io/docs/reference/kubernetes-api/service-resources/service-v1/>).
pub fn service(service: &Service) -> Result<ServiceObject, Invalid> {
    let name = object_name(&service.metadata)?;
    let claimed = label(
        &service.metadata,
        "service.kubernetes.io/service-proxy-name",
    ) == Some("ebbtide");
    let default = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&default);
    let mut ports = Vec::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        if port.protocol.as_deref().unwrap_or("TCP") == "TCP" {
            ports.push(service_port(port, &format!("spec.ports[{i}]"))?);
        }
    }
    let first_family = spec
        .ip_families
        .iter()
        .flatten()
        .next()
        .map(|family| family == "IPv6");
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let annotations = service.metadata.annotations.iter().flatten();
    Ok(ServiceObject {
        name,
        uid: service.metadata.uid.clone(),
        claimed,
        external_name: spec.type_.as_deref() == Some("ExternalName"),
        ports,
        ipv6_first: first_family
            .unwrap_or_else(|| cluster_ip.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6())),
        annotations: annotations
            .filter(|(key, _)| key.starts_with("ebbtide.dev/"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        unserved: if claimed {
            unserved(service, spec)
        } else {
            Vec::new()
        },
    })
}

/// A discovery.k8s.io/v1 EndpointSlice, its nil rules applied
/// (<https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/>).
pub fn slice(slice: &EndpointSlice) -> Result<SliceObject, Invalid> {
    let name = object_name(&slice.metadata)?;
    let fqdn = slice.address_type == "FQDN";
    let ipv6 = slice.address_type == "IPv6";
    if !fqdn && !ipv6 && slice.address_type != "IPv4" {
        let message = format!(
            "expected IPv4, IPv6 or FQDN, found {:?}",
            slice.address_type
        );
        return Err(Invalid {
            field: "addressType".into(),
            message,
        });
    }
    let mut ports = Vec::new();
    for (i, port) in slice.ports.iter().flatten().enumerate() {
        if port.protocol.as_deref().unwrap_or("TCP") == "TCP"
            && let Some(number) = port.port
        {
            let number = port_number(number, || format!("ports[{i}].port"))?;
            ports.push((port.name.clone().unwrap_or_default(), number));
        }
    }
    let mut endpoints = Vec::new();
    if !fqdn {
        endpoints.reserve(slice.endpoints.len());
        for (i, endpoint) in slice.endpoints.iter().enumerate() {
            endpoints.push(slice_endpoint(endpoint, ipv6, i)?);
        }
    }
    Ok(SliceObject {
        name,
        service: label(&slice.metadata, "kubernetes.io/service-name").map(str::to_owned),
        ipv6,
        fqdn,
        created: slice
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        generation: slice.metadata.generation.unwrap_or(0),
        ports,
        endpoints,
    })
}

/// A Pod's metadata, with its grace period where the source shows the `spec`. `listed_at` is the source's own time
/// when the object came by a (re)list, so that what remains of its deletion can be told; `None` for a later event.
pub fn pod(
    metadata: &ObjectMeta,
    spec_grace: Option<Duration>,
    listed_at: Option<SystemTime>,
) -> Result<PodObject, Invalid> {
    let deletion = metadata.deletion_timestamp.as_ref().map(|end| {
        // `deletionTimestamp` is when the grace ends, not when the deletion was asked for.
        let end = SystemTime::from(end.0);
        let grace = metadata.deletion_grace_period_seconds.map(seconds);
        let asked = grace.and_then(|grace| end.checked_sub(grace));
        Deletion {
            grace,
            remaining: listed_at.map(|now| end.duration_since(now).unwrap_or_default()),
            age: listed_at
                .zip(asked)
                .map(|(now, asked)| now.duration_since(asked).unwrap_or_default()),
        }
    });
    Ok(PodObject {
        name: object_name(metadata)?,
        uid: metadata.uid.clone().unwrap_or_default(),
        template_hash: label(metadata, "pod-template-hash").map(str::to_owned),
        deletion,
        spec_grace,
    })
}

fn object_name(metadata: &ObjectMeta) -> Result<ObjectName, Invalid> {
    match metadata.name.as_deref() {
        None | Some("") => Err(Invalid {
            field: "metadata.name".into(),
            message: "missing".into(),
        }),
        Some(name) => {
            let name = ObjectName::new(metadata.namespace.as_deref().unwrap_or("default"), name);
            if name.to_string().contains(char::is_control) {
                return Err(Invalid {
                    field: "metadata".into(),
                    message: "a control character in its name".into(),
                });
            }
            Ok(name)
        }
    }
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn service_port(port: &ServicePort, field: &str) -> Result<ServicePortObject, Invalid> {
    let node_port = port.node_port.filter(|number| *number != 0);
    Ok(ServicePortObject {
        name: port.name.clone().filter(|name| !name.is_empty()),
        port: port_number(port.port, || format!("{field}.port"))?,
        node_port: node_port
            .map(|number| port_number(number, || format!("{field}.nodePort")))
            .transpose()?,
        target_port: match port.target_port {
            Some(IntOrString::Int(number)) => {
                Some(port_number(number, || format!("{field}.targetPort"))?)
            }
            _ => None,
        },
        app_protocol: port.app_protocol.clone(),
    })
}

fn slice_endpoint(endpoint: &Endpoint, ipv6: bool, i: usize) -> Result<SliceEndpoint, Invalid> {
    let invalid = |message| Invalid {
        field: format!("endpoints[{i}].addresses[0]"),
        message,
    };
    let Some(text) = endpoint.addresses.first() else {
        return Err(Invalid {
            field: format!("endpoints[{i}].addresses"),
            message: "missing or empty".into(),
        });
    };
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let address: IpAddr = text
        .parse()
        .map_err(|_| invalid(format!("expected an {family} address, found {text:?}")))?;
    if address.is_ipv6() != ipv6 {
        return Err(invalid(format!(
            "expected an {family} address, as addressType says, found {text}"
        )));
    }
    let conditions = endpoint.conditions.as_ref();
    let target = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = target.map(|target| PodRef {
        name: target.name.clone().unwrap_or_default(),
        uid: target.uid.clone().unwrap_or_default(),
    });
    Ok(SliceEndpoint {
        address,
        pod: pod
            .filter(|pod| !pod.name.is_empty() || !pod.uid.is_empty())
            .map(Arc::new),
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
    })
}

/// What kube-proxy did for this Service and nobody does once Ebbtide has claimed it.
fn unserved(service: &Service, spec: &ServiceSpec) -> Vec<String> {
    let mut fields = Vec::new();
    let mut name = |field: &str, value: &str| fields.push(format!("spec.{field}: {value}"));
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        if let Some(protocol) = port.protocol.as_deref().filter(|p| *p != "TCP") {
            name(&format!("ports[{i}].protocol"), protocol);
        }
    }
    if let Some(ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !ip.is_empty() && *ip != "None")
    {
        name("clusterIP", ip);
    }
    for (field, list) in [
        ("externalIPs", &spec.external_ips),
        (
            "loadBalancerSourceRanges",
            &spec.load_balancer_source_ranges,
        ),
    ] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            name(field, &list.join(", "));
        }
    }
    for (field, value, harmless) in [
        ("sessionAffinity", &spec.session_affinity, "None"),
        (
            "externalTrafficPolicy",
            &spec.external_traffic_policy,
            "Cluster",
        ),
        (
            "internalTrafficPolicy",
            &spec.internal_traffic_policy,
            "Cluster",
        ),
        ("trafficDistribution", &spec.traffic_distribution, ""),
    ] {
        if let Some(value) = value
            .as_deref()
            .filter(|value| !value.is_empty() && *value != harmless)
        {
            name(field, value);
        }
    }
    if let Some(port) = spec.health_check_node_port.filter(|port| *port != 0) {
        name("healthCheckNodePort", &port.to_string());
    }
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer
        .and_then(|balancer| balancer.ingress.as_ref())
        .into_iter()
        .flatten();
    for ip in ingress
        .filter(|it| it.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|it| it.ip.as_ref())
    {
        fields.push(format!("status.loadBalancer.ingress: {ip}"));
    }
    fields
}

fn port_number(number: i32, field: impl FnOnce() -> String) -> Result<u16, Invalid> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Invalid {
            field: field(),
            message: format!("expected a port from 1 to 65535, found {number}"),
        }),
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds.try_into().unwrap_or(0))
}

/// What the API server gives a Pod that names no `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;

/// `---` and `...` at the start of a line end a document wherever they stand (YAML 1.2.2, section 9.1.2), so text
/// can be cut there without parsing it.
fn yaml_documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut start = (1, 0);
    let mut offset = 0;
    let mut push = |(line, from): (usize, usize), to: usize| {
        let text = text.get(from..to).unwrap_or_default();
        let is_content = |l: &str| {
            !l.is_empty() && !l.starts_with('#') && !l.starts_with('%') && l != "---" && l != "..."
        };
        if text.lines().map(str::trim).any(is_content) {
            documents.push(Document { line, text });
        }
    };
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let marker = |m: &str| {
            line.strip_prefix(m)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        let (line_number, next) = (i + 1, offset + line.len());
        if marker("---") {
            push(start, offset);
            start = (line_number, offset);
        } else if marker("...") {
            push(start, offset);
            start = (line_number + 1, next);
        }
        offset = next;
    }
    push(start, offset);
    documents
}

fn json_documents(text: &str) -> Result<Vec<Document<'_>>, Error> {
    let mut documents = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let mut from = 0;
    while let Some(document) = stream.next() {
        document.map_err(|error| json_error(&error, 1, String::new()))?;
        let to = stream.byte_offset();
        let gap = text.get(from..to).unwrap_or_default();
        from += gap.len() - gap.trim_start().len();
        let line = 1 + text.get(..from).unwrap_or_default().matches('\n').count();
        documents.push(Document {
            line,
            text: text.get(from..to).unwrap_or_default(),
        });
        from = to;
    }
    Ok(documents)
}

/// Reads a document; an error carries the field's path.
fn read<T, S>(document: Document<'_>, format: Format, seed: S) -> Result<T, Error>
where
    S: for<'de> DeserializeSeed<'de, Value = T>,
{
    let mut track = serde_path_to_error::Track::new();
    match format {
        Format::Json => {
            let mut json = serde_json::Deserializer::from_str(document.text);
            let read = seed.deserialize(serde_path_to_error::Deserializer::new(
                &mut json, &mut track,
            ));
            read.map_err(|error| json_error(&error, document.line, field(&track.path())))
        }
        Format::Yaml => {
            // The limits on aliases stay; those on the mere size of a text that is in memory already do not.
            let budget = serde_saphyr::budget! { max_events: usize::MAX, max_nodes: usize::MAX };
            let options = serde_saphyr::options! { budget: budget, with_snippet: false };
            let read = serde_saphyr::with_deserializer_from_str_with_options(
                document.text,
                options,
                |yaml| seed.deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track)),
            );
            read.map_err(|error| {
                let line = error
                    .location()
                    .map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
                let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
                Error::new(
                    document.line - 1 + line.max(1),
                    &field(&track.path()),
                    &own_words(&message),
                )
            })
        }
    }
}

fn json_error(error: &serde_json::Error, first_line: usize, field: String) -> Error {
    Error::new(
        first_line - 1 + error.line().max(1),
        &field,
        &own_words(&error.to_string()),
    )
}

fn field(path: &serde_path_to_error::Path) -> String {
    let path = path.to_string();
    if path == "." || path.contains('?') {
        String::new()
    } else {
        path
    }
}

/// The line of a field that was read but is not valid; the document's where the field is missing.
fn line_of(document: Document<'_>, format: Format, field: &str) -> usize {
    read(document, format, Find(field))
        .err()
        .map_or(document.line, |found| found.line)
}

/// What of a field's path lies below a key, which may hold dots itself.
fn below<'a>(field: &'a str, key: &str) -> Option<&'a str> {
    let rest = field.strip_prefix('.').unwrap_or(field).strip_prefix(key)?;
    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
}

/// Walks to a field and fails there, since it is an error that carries a line.
struct Find<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.0.is_empty() {
            return Err(A::Error::custom("found"));
        }
        while let Some(key) = map.next_key::<String>()? {
            match below(self.0, &key) {
                Some(rest) => map.next_value_seed(Find(rest))?,
                None => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let step = self
            .0
            .strip_prefix('[')
            .and_then(|field| field.split_once(']'));
        let Some((at, rest)) = step else {
            return Err(A::Error::custom("found"));
        };
        for _ in 0..at.parse().unwrap_or(0usize) {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Find(rest))?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// A parser's message without its own place, which counts from the document's start and not from the file's.
fn own_words(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.rsplit_once(" at line ") {
        Some((message, _)) => message.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests;
