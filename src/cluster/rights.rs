//! What the API server allows this process to do, asked before it is done.
//!
//! Rights are asked by SelfSubjectAccessReview. Which rights a command needs is decided by the
//! command.

use std::fmt;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec as Spec,
};
use kube::api::{Api, PostParams};
use kube::{Client, Error};

/// Verbs on one resource, in one namespace or cluster-wide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    verbs: Vec<&'static str>,
    group: String,
    /// The plural name of the resource without its group, for example `endpointslices` or
    /// `ingresses/status`.
    pub resource: String,
    /// `None`: all namespaces, or a resource without namespaces.
    namespace: Option<String>,
    /// One object. `None`: all.
    name: Option<String>,
}

impl Right {
    /// Makes a right. `verbs` is separated by spaces. `resource` is written as for kubectl:
    /// `endpointslices.discovery.k8s.io`.
    pub fn new(verbs: &'static str, resource: &str, namespace: Option<&str>) -> Self {
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        Self {
            verbs: verbs.split(' ').collect(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: None,
        }
    }

    /// The same right, on one object only.
    pub fn of(self, name: &str) -> Self {
        let name = Some(name.to_owned());
        Self { name, ..self }
    }

    /// Whether this right includes a verb.
    pub fn has(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(
            f,
            "{} {}{dot}{}",
            self.verbs.join(", "),
            self.resource,
            self.group
        )?;
        if let Some(name) = &self.name {
            write!(f, " named {name}")?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => f.write_str(" cluster-wide"),
        }
    }
}

/// The rights that this process lacks, each with only the missing verbs.
///
/// # Errors
/// The API server did not answer a review.
pub async fn missing(client: &Client, rights: Vec<Right>) -> Result<Vec<Right>, Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for right in rights {
        let mut verbs = Vec::new();
        for &verb in &right.verbs {
            let (resource, subresource) = match right.resource.split_once('/') {
                Some((resource, subresource)) => (resource, Some(subresource)),
                None => (&*right.resource, None),
            };
            let attributes = ResourceAttributes {
                verb: Some(verb.into()),
                group: Some(right.group.clone()),
                resource: Some(resource.into()),
                subresource: subresource.map(str::to_owned),
                namespace: right.namespace.clone(),
                name: right.name.clone(),
                ..ResourceAttributes::default()
            };
            let spec = Spec {
                resource_attributes: Some(attributes),
                ..Spec::default()
            };
            let review = SelfSubjectAccessReview {
                spec,
                ..SelfSubjectAccessReview::default()
            };
            let answer = reviews.create(&PostParams::default(), &review).await?;
            if !answer.status.is_some_and(|status| status.allowed) {
                verbs.push(verb);
            }
        }
        if !verbs.is_empty() {
            missing.push(Right { verbs, ..right });
        }
    }
    Ok(missing)
}
