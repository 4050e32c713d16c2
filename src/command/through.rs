//! The admin pages of a pod, asked for by the API server: nobody needs a way to the pod's own port.
//!
//! Source: <https://kubernetes.io/docs/tasks/access-application-cluster/access-cluster-services/>.

use std::fmt;

use anyhow::{Context, bail};
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{ListParams, ObjectMeta, PartialObjectMeta};
use serde::de::DeserializeOwned;

use crate::cluster::api::{self, objects, said};
use crate::config::fault::Refused;
use crate::config::settings::Kubernetes;
use crate::config::value;
use crate::contract::name::ObjectName;

/// A pod, and the API server that asks it.
pub(super) struct Through {
    client: Client,
    pod: ObjectName,
    port: u16,
}

impl Through {
    /// `place` is `pod/NAMESPACE/NAME[:PORT]`, or anything else for the first ready pod of a deployed Ebbtide.
    ///
    /// # Errors
    /// No such place, no API server, or no such pod.
    pub(super) async fn find(place: &str) -> anyhow::Result<Self> {
        let named = place.strip_prefix("pod/").map(parse).transpose()?;
        let (client, _, _) = api::connect(api::locate(&Kubernetes::default()).await?)?;
        let (pod, port) = match named {
            Some(named) => named,
            None => (first(&client).await?, PORT),
        };
        Ok(Self { client, pod, port })
    }

    /// The JSON of a page.
    ///
    /// # Errors
    /// The API server refuses, the pod does not answer, or the response is not Ebbtide's.
    pub(super) async fn fetch<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let ObjectName { namespace, name } = &self.pod;
        let port = self.port;
        let url = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy{path}");
        let text = self
            .client
            .request_text(Request::get(url).body(Vec::new())?);
        let text = text.await.map_err(|error| {
            let what = said(&error);
            anyhow::anyhow!(
                "no response from {self}: {what} (it needs get of pods/proxy in {namespace})"
            )
        })?;
        serde_json::from_str(&text).with_context(|| {
            format!(
                "the response of {self} is not Ebbtide's; is {port} the port of its admin.address?"
            )
        })
    }
}

impl fmt::Display for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod/{}:{}", self.pod, self.port)
    }
}

fn parse(text: &str) -> Result<(ObjectName, u16), Refused> {
    let read = || {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().ok()?),
            None => (text, PORT),
        };
        let (namespace, name) = name.split_once('/')?;
        let fits = value::subdomain(namespace) && value::subdomain(name);
        fits.then(|| (ObjectName::new(namespace, name), port))
    };
    read().ok_or_else(|| {
        let what = "expected pod/NAMESPACE/NAME, or pod/NAMESPACE/NAME:PORT";
        Refused::new("--admin", format!("{what}, found \"pod/{text}\""))
    })
}

/// The first pod of a deployed Ebbtide that is not being deleted, by its name.
async fn first(client: &Client) -> anyhow::Result<ObjectName> {
    let pods = objects::<Pod>(client, None);
    let labelled = ListParams::default().labels(LABEL);
    let found = pods.list_metadata(&labelled).await.map_err(|error| {
        anyhow::anyhow!(
            "pods with {LABEL} cannot be listed: {} (it needs list of pods in all namespaces; or name one: --admin pod/NAMESPACE/NAME)",
            said(&error)
        )
    })?;
    let is_there = |it: &PartialObjectMeta<Pod>| it.metadata.deletion_timestamp.is_none();
    let mut names: Vec<_> = found
        .into_iter()
        .filter(is_there)
        .filter_map(|it| name(it.metadata))
        .collect();
    names.sort();
    match names.into_iter().next() {
        Some(name) => Ok(name),
        None => bail!(
            "no pod has {LABEL}; is Ebbtide deployed in this cluster? Or name a pod: --admin pod/NAMESPACE/NAME"
        ),
    }
}

fn name(metadata: ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(metadata.namespace?, metadata.name?))
}

/// What every pod of `deploy/` has.
const LABEL: &str = "app.kubernetes.io/name=ebbtide";
/// The port of `admin.address` in `deploy/`.
const PORT: u16 = 9901;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_with_its_namespace() {
        let pod = ObjectName::new("ebbtide-system", "ebbtide-x");
        assert_eq!(
            parse("ebbtide-system/ebbtide-x").unwrap(),
            (pod.clone(), 9901)
        );
        assert_eq!(parse("ebbtide-system/ebbtide-x:99").unwrap(), (pod, 99));
        for bad in [
            "ebbtide-x",
            "a/b:x",
            "a/b:99999",
            "a/../b",
            "a/",
            "/b",
            "a/b?x=1",
        ] {
            let error = format!("{:#}", parse(bad).unwrap_err());
            assert!(
                error.contains("expected pod/NAMESPACE/NAME"),
                "{bad}: {error}"
            );
        }
    }
}
