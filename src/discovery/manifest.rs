//! Reads Kubernetes objects, from manifests or from the API, into the few [`Object`]s that routing
//! needs.
//!
//! Invariant: defaults and nil rules are applied here and nowhere else. A value that the API server
//! would refuse is an error here too, with its line and field. Objects other than Service
//! and Pod of `v1`, EndpointSlice of `discovery.k8s.io/v1` and Ingress of `networking.k8s.io/v1` are
//! skipped (`passed_over.rs`), and fields that Ebbtide does not know are not read. Documents
//! are parsed one by one, so that a caller can keep the objects of an unchanged one. How documents
//! and lines are found is in `document.rs`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::settings::{Claim, Config, Node};
use crate::contract::name::PodRef;
use crate::contract::policy::Transport;
use crate::discovery::document::{
    Document, Error, Format, documents, field, line_of, own_words, value,
};
use crate::discovery::gateway::{self, GatewayKind};
use crate::discovery::ingress::{class, ingress};
use crate::discovery::invalid::{Invalid, object_name, port_number, seconds};
use crate::discovery::object::{
    Deletion, Hint, Hints, Object, PodObject, ServiceObject, ServicePortObject, SliceEndpoint,
    SliceObject,
};
use crate::discovery::passed_over::{PassedOver, version_of};
use crate::discovery::service_spec::{
    addresses, is_claimed, is_external_name, is_headless, traffic, unserved,
};

/// What a reader of objects must know beforehand.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    /// This node.
    pub node: Node,
    /// Which Services are claimed.
    pub claim: Claim,
    /// Whether Ingress objects are served.
    pub ingress: bool,
    /// Whether objects of the Gateway API are served.
    pub gateway: bool,
}

impl Reader {
    /// What the configuration says.
    pub fn of(config: &Config) -> Self {
        Self {
            node: config.node.clone(),
            claim: config.claim.clone(),
            ingress: config.ingress.is_some(),
            gateway: config.gateway.is_some(),
        }
    }
}

/// Reads all objects of a text, without regard to nodes. For `listed_at` see [`pod`].
///
/// # Errors
/// The first fault, with its line and field.
pub fn parse(
    text: &str,
    format: Format,
    listed_at: Option<SystemTime>,
) -> Result<Vec<Object>, Error> {
    let mut objects = Vec::new();
    for document in documents(text, format)? {
        objects.extend(parse_document(document, format, listed_at, &Reader::default())?.objects);
    }
    Ok(objects)
}

/// What one document has.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The objects; none for a kind that is not used.
    pub objects: Vec<Object>,
    /// The manifests without an object that were probably meant to have one.
    pub(super) passed_over: Vec<PassedOver>,
    /// The manifests without an object that have a pod template, such as Deployments.
    pub(super) pod_templates: usize,
}

/// Reads the objects of one document. For `listed_at` see [`pod`].
///
/// # Errors
/// The first fault, with its line and field.
pub fn parse_document(
    document: Document<'_>,
    format: Format,
    listed_at: Option<SystemTime>,
    reader: &Reader,
) -> Result<Parsed, Error> {
    let Some(mut whole) = value(document, format)?.filter(|value| !value.is_null()) else {
        return Ok(Parsed::default());
    };
    let Some(kind) = whole.get("kind").and_then(Value::as_str).map(str::to_owned) else {
        return Err(Error::new(
            document.line,
            "kind",
            "missing; a manifest names its apiVersion and kind",
        ));
    };
    let version = |manifest: &Value| manifest.get("apiVersion").cloned();
    let manifests: Vec<Manifest> = match (kind.strip_suffix("List"), whole.get_mut("items")) {
        (Some(of), Some(Value::Array(items))) => {
            let items = std::mem::take(items);
            // The items of a typed list need not repeat what the list says.
            let of_list = version(&whole).filter(|_| !of.is_empty());
            let manifest = |(i, item): (usize, Value)| Manifest {
                version: version(&item).or_else(|| of_list.clone()),
                kind: item
                    .get("kind")
                    .and_then(Value::as_str)
                    .unwrap_or(of)
                    .to_owned(),
                place: format!("items[{i}]."),
                fields: item,
            };
            items.into_iter().enumerate().map(manifest).collect()
        }
        _ => vec![Manifest {
            version: version(&whole),
            kind,
            place: String::new(),
            fields: whole,
        }],
    };
    let mut parsed = Parsed::default();
    for manifest in manifests {
        let object = manifest.object(listed_at, reader).map_err(|invalid| {
            let field = format!("{}{}", manifest.place, invalid.field);
            Error::new(line_of(document, format, &field), &field, &invalid.message)
        })?;
        if object.is_none() {
            tracing::debug!(
                kind = manifest.kind,
                line = document.line,
                "skipped a manifest of a kind that is not used"
            );
            parsed.passed_over.extend(manifest.passed_over(reader));
            let template = manifest.fields.pointer("/spec/template/spec");
            parsed.pod_templates += usize::from(template.is_some());
        }
        parsed.objects.extend(object);
    }
    Ok(parsed)
}

/// One manifest of a document.
struct Manifest {
    /// Its own `apiVersion`, or that of its typed list.
    version: Option<Value>,
    kind: String,
    /// Its place in the document, as the prefix of a field's path.
    place: String,
    fields: Value,
}

impl Manifest {
    /// The object; `None` for one that routing does not need. `apiVersion` and `kind` decide
    /// together, because other API groups have a `Service`, too (Knative, Config Connector).
    fn object(
        &self,
        listed_at: Option<SystemTime>,
        reader: &Reader,
    ) -> Result<Option<Object>, Invalid> {
        let Some(wanted) = version_of(&self.kind) else {
            let version = self.version.as_ref().and_then(Value::as_str);
            return match version.and_then(|version| GatewayKind::of(version, &self.kind)) {
                Some(kind) => Ok(Some(self.gateway(kind)?)),
                None => Ok(None),
            };
        };
        match &self.version {
            Some(Value::String(version)) if version == wanted => {}
            Some(Value::String(version)) if reader.ingress && OLD_INGRESS.contains(&&**version) => {
                return Err(Invalid {
                    field: "apiVersion".to_owned(),
                    message: format!("expected {wanted} for kind {}, found {version}", self.kind),
                });
            }
            Some(Value::String(version)) if !version.is_empty() => return Ok(None),
            found => {
                let found = match found {
                    None => "none".to_owned(),
                    Some(found) => found.to_string(),
                };
                return Err(Invalid {
                    field: "apiVersion".to_owned(),
                    message: format!("expected {wanted} for kind {}, found {found}", self.kind),
                });
            }
        }
        let object = match self.kind.as_str() {
            "Service" => Object::Service(service(&self.typed()?, &reader.claim)?),
            "EndpointSlice" => Object::EndpointSlice(slice(&self.typed()?, &reader.node)?),
            "Ingress" => Object::Ingress(Box::new(ingress(&self.typed()?)?)),
            "IngressClass" => Object::IngressClass(class(&self.typed()?)?),
            _ => {
                let PodManifest { metadata, spec } = self.typed()?;
                let grace = spec.and_then(|spec| spec.termination_grace_period_seconds);
                let grace = seconds(grace.unwrap_or(DEFAULT_GRACE));
                Object::Pod(pod(&metadata, Some(grace), listed_at)?)
            }
        };
        Ok(Some(object))
    }

    fn passed_over(&self, reader: &Reader) -> Option<PassedOver> {
        let version = self.version.as_ref().and_then(Value::as_str);
        let served = (reader.ingress, reader.gateway);
        PassedOver::of(version, &self.kind, &self.fields, served)
    }

    /// Reads an object of the Gateway API.
    fn gateway(&self, kind: GatewayKind) -> Result<Object, Invalid> {
        let PodManifest { metadata, .. } = self.typed()?;
        let object = gateway::read(kind, &metadata, &self.fields)?;
        Ok(Object::Gateway(Arc::new(object)))
    }

    /// Reads the manifest into the API's own type. Documents are read as untyped fields first,
    /// because a reader for each type from YAML, which tracks lines, would be a third of the
    /// program's code.
    fn typed<T: DeserializeOwned>(&self) -> Result<T, Invalid> {
        serde_path_to_error::deserialize(&self.fields).map_err(|error| Invalid {
            field: field(error.path()),
            message: own_words(&error.inner().to_string()),
        })
    }
}

/// The fields of a Pod that are read. The API's own type would add a reader for every kind of
/// volume.
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

/// Reads a v1 Service
/// (<https://kubernetes.io/docs/reference/kubernetes-api/service-resources/service-v1/>).
///
/// # Errors
/// The API server would refuse a field.
pub fn service(service: &Service, claim: &Claim) -> Result<ServiceObject, Invalid> {
    let name = object_name(&service.metadata)?;
    let default = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&default);
    // With room for all, none is left over: these lists are kept for as long as the object.
    let mut ports = Vec::with_capacity(spec.ports.as_ref().map_or(0, Vec::len));
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        if let Some(transport) = transport(port.protocol.as_deref()) {
            ports.push(service_port(port, transport, &format!("spec.ports[{i}]"))?);
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
    let mut source_ranges = Vec::new();
    for (i, text) in spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .enumerate()
    {
        source_ranges.push(text.trim().parse().map_err(|_| Invalid {
            field: format!("spec.loadBalancerSourceRanges[{i}]"),
            message: format!("expected a CIDR such as 10.0.0.0/8, found {text:?}"),
        })?);
    }
    Ok(ServiceObject {
        name,
        uid: service.metadata.uid.clone(),
        claimed: is_claimed(service, claim),
        external_name: is_external_name(spec),
        headless: is_headless(spec),
        ports,
        ipv6_first: first_family
            .unwrap_or_else(|| cluster_ip.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6())),
        annotations: annotations
            .filter(|(key, _)| key.starts_with("ebbtide.dev/"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        unserved: unserved(spec),
        addresses: addresses(service, spec),
        source_ranges,
        traffic: traffic(service, spec)?,
    })
}

/// Reads a discovery.k8s.io/v1 EndpointSlice and applies the nil rules of its conditions. `node` is
/// this node
/// (<https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/>).
///
/// # Errors
/// The API server would refuse a field.
pub fn slice(slice: &EndpointSlice, node: &Node) -> Result<SliceObject, Invalid> {
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
    let (mut ports, mut udp_ports) = (Vec::new(), Vec::new());
    for (i, port) in slice.ports.iter().flatten().enumerate() {
        if let Some(number) = port.port
            && let Some(transport) = transport(port.protocol.as_deref())
        {
            let number = port_number(number, || format!("ports[{i}].port"))?;
            let ports = match transport {
                Transport::Tcp => &mut ports,
                Transport::Udp => &mut udp_ports,
            };
            ports.push((port.name.clone().unwrap_or_default(), number));
        }
    }
    ports.shrink_to_fit();
    udp_ports.shrink_to_fit();
    let mut endpoints = Vec::new();
    if !fqdn {
        endpoints.reserve_exact(slice.endpoints.len());
        for (i, endpoint) in slice.endpoints.iter().enumerate() {
            endpoints.push(slice_endpoint(endpoint, ipv6, i, node)?);
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
        udp_ports,
    })
}

/// Reads a Pod's metadata. `spec_grace` is its grace period, if the source shows the `spec`.
/// `listed_at` is the source's own time if the object came by a list or relist, so that the time
/// left of its deletion can be computed. It is `None` for a later event.
///
/// # Errors
/// The API server would refuse a field.
pub fn pod(
    metadata: &ObjectMeta,
    spec_grace: Option<Duration>,
    listed_at: Option<SystemTime>,
) -> Result<PodObject, Invalid> {
    let deletion = metadata.deletion_timestamp.as_ref().map(|end| {
        // `deletionTimestamp` is the end of the grace period, not the time of the request to
        // delete.
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

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// The transport that a port's `protocol` names. `None` for one that is not served, such as SCTP.
fn transport(protocol: Option<&str>) -> Option<Transport> {
    match protocol {
        None | Some("TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some(_) => None,
    }
}

fn service_port(
    port: &ServicePort,
    transport: Transport,
    field: &str,
) -> Result<ServicePortObject, Invalid> {
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
        transport,
    })
}

fn slice_endpoint(
    endpoint: &Endpoint,
    ipv6: bool,
    i: usize,
    node: &Node,
) -> Result<SliceEndpoint, Invalid> {
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
    let condition = |which: fn(&EndpointConditions) -> Option<bool>| conditions.and_then(which);
    let ready = condition(|it| it.ready).unwrap_or(true);
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
        ready,
        // A Service with `publishNotReadyAddresses` wants traffic whatever its pods say of themselves.
        // Its slices say `ready`, and `serving` as the pods do.
        serving: ready || condition(|it| it.serving).unwrap_or(true),
        terminating: condition(|it| it.terminating).unwrap_or(false),
        local: node.name.is_some() && endpoint.node_name == node.name,
        hints: hints(endpoint, node),
    })
}

/// Nobody but this node reads which other nodes and zones an endpoint is for.
fn hints(endpoint: &Endpoint, node: &Node) -> Hints {
    let hint = |names: &mut dyn Iterator<Item = &String>, here: &Option<String>| {
        names.fold(Hint::None, |before, name| {
            match Some(name) == here.as_ref() {
                true => Hint::Here,
                false => before.max(Hint::Elsewhere),
            }
        })
    };
    let hints = endpoint.hints.iter();
    let nodes = hints.clone().flat_map(|it| it.for_nodes.iter().flatten());
    let zones = hints.flat_map(|it| it.for_zones.iter().flatten());
    Hints {
        node: hint(&mut nodes.map(|it| &it.name), &node.name),
        zone: hint(&mut zones.map(|it| &it.name), &node.zone),
    }
}

/// Versions of Ingress and IngressClass that Kubernetes 1.22 removed.
const OLD_INGRESS: [&str; 2] = ["networking.k8s.io/v1beta1", "extensions/v1beta1"];

/// Seconds of grace that the API server gives a Pod without `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;

#[cfg(test)]
mod tests;
