//! What a BackendTLSPolicy asks for
//! (<https://gateway-api.sigs.k8s.io/reference/spec/#backendtlspolicyspec>).
//!
//! Invariant: as with the other objects of the Gateway API, it is what its author wrote. `options` are not
//! read: the API defines none.

use serde::{Deserialize, Serialize};

/// Of a BackendTLSPolicy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// The Services whose endpoints speak TLS.
    #[serde(default)]
    pub target_refs: Vec<PolicyTarget>,
    /// Whom they must be.
    pub validation: Validation,
}

/// A Service, or one of its ports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTarget {
    /// The group. Empty: that of the core.
    #[serde(default)]
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The name. The namespace is that of the policy.
    pub name: String,
    /// The name of a port. Absent: all ports.
    pub section_name: Option<String>,
}

/// Whom endpoints must be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Validation {
    /// The objects with the authorities of their certificates.
    #[serde(default)]
    pub ca_certificate_refs: Vec<AuthorityRef>,
    /// In their place: a set of authorities with a name, such as `System`.
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<String>,
    /// The name that is asked for, and that the certificates must have if no other is given.
    pub hostname: String,
    /// The names of which the certificates must have one.
    #[serde(default)]
    pub subject_alt_names: Vec<AlternativeName>,
}

/// An object with authorities. The namespace is that of the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuthorityRef {
    /// The group. Empty: that of the core.
    #[serde(default)]
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The name.
    pub name: String,
}

/// A name that a certificate may have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlternativeName {
    /// `Hostname` or `URI`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The host, which may begin with `*.`.
    pub hostname: Option<String>,
    /// The URI.
    pub uri: Option<String>,
}
