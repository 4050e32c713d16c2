//! The objects of the Gateway API, as far as Ebbtide reads them
//! (<https://gateway-api.sigs.k8s.io/reference/spec/>).
//!
//! Invariant: an object is what its author wrote. What of it can be served, and what is said of the rest,
//! is decided in `routing/gateway`, since that depends on other objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::core::{ApiResource, GroupVersionKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contract::name::ObjectName;
use crate::discovery::invalid::{Invalid, object_name};
use crate::discovery::policy_spec::PolicySpec;
use crate::discovery::route_spec::{ObjectRef, RouteSpec};

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GatewayKind {
    /// A Namespace, of which Gateways ask for labels.
    Namespace,
    /// A GatewayClass.
    GatewayClass,
    /// A ReferenceGrant.
    ReferenceGrant,
    /// A Gateway.
    Gateway,
    /// An HTTPRoute.
    HttpRoute,
    /// A GRPCRoute.
    GrpcRoute,
    /// A TLSRoute.
    TlsRoute,
    /// A TCPRoute.
    TcpRoute,
    /// A UDPRoute.
    UdpRoute,
    /// A BackendTLSPolicy.
    BackendTlsPolicy,
}

impl GatewayKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Namespace,
        Self::GatewayClass,
        Self::ReferenceGrant,
        Self::Gateway,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::UdpRoute,
        Self::BackendTlsPolicy,
    ];

    /// Its name in a manifest, and its name in the plural in a path of the API.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Namespace => ("Namespace", "namespaces"),
            Self::GatewayClass => ("GatewayClass", "gatewayclasses"),
            Self::ReferenceGrant => ("ReferenceGrant", "referencegrants"),
            Self::Gateway => ("Gateway", "gateways"),
            Self::HttpRoute => ("HTTPRoute", "httproutes"),
            Self::GrpcRoute => ("GRPCRoute", "grpcroutes"),
            Self::TlsRoute => ("TLSRoute", "tlsroutes"),
            Self::TcpRoute => ("TCPRoute", "tcproutes"),
            Self::UdpRoute => ("UDPRoute", "udproutes"),
            Self::BackendTlsPolicy => ("BackendTLSPolicy", "backendtlspolicies"),
        }
    }

    /// The kind of this name in this version of the API (`apiVersion`). What is read of a kind is the same in
    /// its versions before `v1`.
    pub fn of(version: &str, name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        let kind = all.find(|kind| kind.names().0 == name)?;
        let is_older = || kind != Self::Namespace && BEFORE_V1.contains(&version);
        (kind.version() == version || is_older()).then_some(kind)
    }

    /// Its `apiVersion`.
    pub fn version(self) -> &'static str {
        match self {
            Self::Namespace => "v1",
            _ => "gateway.networking.k8s.io/v1",
        }
    }

    /// Whether it is in no namespace.
    pub fn is_of_the_cluster(self) -> bool {
        matches!(self, Self::Namespace | Self::GatewayClass)
    }

    /// Where the API server has its objects.
    pub fn resource(self) -> ApiResource {
        let (kind, plural) = self.names();
        let (group, version) = self.version().split_once('/').unwrap_or(("", "v1"));
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }
}

const BEFORE_V1: [&str; 3] = [
    "gateway.networking.k8s.io/v1beta1",
    "gateway.networking.k8s.io/v1alpha3",
    "gateway.networking.k8s.io/v1alpha2",
];

/// One object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayObject {
    /// Its kind.
    pub kind: GatewayKind,
    /// Namespace and name. The namespace of what is in none is empty.
    pub name: ObjectName,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub version: Option<String>,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 if absent. Older objects come first.
    pub created: i64,
    /// What is asked for.
    pub spec: Spec,
    /// What is said of it now.
    pub status: Value,
}

/// What an object asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Spec {
    /// The labels of a Namespace.
    Namespace(BTreeMap<String, String>),
    /// Of a GatewayClass.
    Class(ClassSpec),
    /// Of a ReferenceGrant.
    Grant(GrantSpec),
    /// Of a Gateway.
    Gateway(GatewaySpec),
    /// Of a route of any kind.
    Route(RouteSpec),
    /// Of a BackendTLSPolicy.
    Policy(PolicySpec),
}

/// Of a GatewayClass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassSpec {
    /// Who serves its Gateways.
    pub controller_name: String,
}

/// Of a ReferenceGrant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrantSpec {
    /// Who may refer.
    pub from: Vec<GrantFrom>,
    /// To what in the grant's namespace.
    pub to: Vec<GrantTo>,
}

/// Who may refer to objects of another namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrantFrom {
    /// The group of the kind.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
}

/// What may be referred to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrantTo {
    /// The group of the kind.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The one object. `None`: all of the kind.
    pub name: Option<String>,
}

/// Of a Gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// The name of its class.
    pub gateway_class_name: String,
    /// Where clients come in.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// The addresses that it wants.
    #[serde(default)]
    pub addresses: Vec<WantedAddress>,
}

/// An address that a Gateway wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WantedAddress {
    /// `IPAddress`, `Hostname` or a name of an implementation.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The address. Absent: any.
    #[serde(default)]
    pub value: Option<String>,
}

/// Where clients come in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name in the Gateway.
    pub name: String,
    /// The hosts that are served, which may begin with `*.`. Absent: all.
    pub hostname: Option<String>,
    /// The port.
    pub port: u16,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP` or `UDP`.
    pub protocol: String,
    /// How TLS ends.
    pub tls: Option<ListenerTls>,
    /// Which routes may lead clients on.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// How TLS ends at a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTls {
    /// `Terminate` or `Passthrough`. Absent: `Terminate`.
    pub mode: Option<String>,
    /// The certificates.
    #[serde(default)]
    pub certificate_refs: Vec<ObjectRef>,
}

/// Which routes may lead the clients of a listener on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AllowedRoutes {
    /// Those of which namespaces. Absent: of the Gateway's own.
    pub namespaces: Option<AllowedNamespaces>,
    /// Of which kinds. Empty: of those that fit the protocol.
    #[serde(default)]
    pub kinds: Vec<RouteKind>,
}

/// Whose routes are allowed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AllowedNamespaces {
    /// `Same`, `All`, `Selector` or `None`. Absent: `Same`.
    pub from: Option<String>,
    /// The labels of the namespaces.
    pub selector: Option<LabelSelector>,
}

/// A kind of route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteKind {
    /// The group. Absent: `gateway.networking.k8s.io`.
    pub group: Option<String>,
    /// The kind.
    pub kind: String,
}

/// Reads an object of the API server's or a file's fields.
///
/// # Errors
/// The API server would refuse a field.
pub fn read(
    kind: GatewayKind,
    metadata: &ObjectMeta,
    fields: &Value,
) -> Result<GatewayObject, Invalid> {
    let mut name = object_name(metadata)?;
    if kind.is_of_the_cluster() {
        name.namespace = Default::default();
    }
    let spec = fields.get("spec").unwrap_or(&Value::Null);
    let spec = match kind {
        GatewayKind::Namespace => Spec::Namespace(metadata.labels.clone().unwrap_or_default()),
        GatewayKind::GatewayClass => Spec::Class(typed(spec)?),
        GatewayKind::ReferenceGrant => Spec::Grant(typed(spec)?),
        GatewayKind::Gateway => Spec::Gateway(typed(spec)?),
        GatewayKind::BackendTlsPolicy => Spec::Policy(typed(spec)?),
        _ => Spec::Route(typed(spec)?),
    };
    let created = metadata.creation_timestamp.as_ref();
    let status = match kind {
        GatewayKind::Namespace => Value::Null,
        _ => fields.get("status").cloned().unwrap_or_default(),
    };
    Ok(GatewayObject {
        kind,
        name,
        generation: metadata.generation.unwrap_or_default(),
        version: metadata.resource_version.clone(),
        created: created.map_or(0, |time| time.0.as_second()),
        spec,
        status,
    })
}

fn typed<T: DeserializeOwned>(spec: &Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(spec).map_err(|error| Invalid {
        field: format!("spec.{}", error.path()),
        message: error.inner().to_string(),
    })
}
