//! `ebbtide check` against an API server: reads its objects as the source does, and finds out
//! whether its version, the granted rights and the claims are in order.
//!
//! Each object is read once. Nothing is watched, and nothing is changed.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::api::{Api, ListParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};

use crate::cluster::api::{self, said};
use crate::cluster::rights::{self, Right};
use crate::command::check::seen::Seen;
use crate::command::check::{named, nodes, standards};
use crate::config::settings::{Config, Kubernetes, ListenerConfig, Node};
use crate::contract::name::ObjectName;
use crate::discovery::ingress::{class, ingress};
use crate::discovery::manifest;
use crate::discovery::object::Object;
use crate::discovery::service_spec::is_claimed;
use crate::routing::classes::Classes;
use crate::text::one_line;

/// Reads from the API server all that a check needs.
///
/// # Errors
/// [`crate::config::fault::Refused`] if no API server is configured. A server that does not answer
/// is a problem in [`Seen`], not an error.
pub(super) fn read(
    config: &Config,
    wanted: &Kubernetes,
    claim: &[ObjectName],
) -> anyhow::Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let api_server = api::locate(&Kubernetes { silence: SILENCE, ..wanted.clone() }).await?;
        let subject = format!("API server {}", api_server.cluster_url);
        let (client, clock, _heard) = api::connect(api_server)?;
        let mut reader = Reader { client, config, wanted, claim, seen: Seen::default() };
        if let Err(error) = reader.read(&subject, || clock.now()).await {
            let cure = match error {
                kube::Error::Api(_) => "`kubectl` with the same kubeconfig shows more",
                _ => "check that discovery.kubernetes.kubeconfig (or else KUBECONFIG) is the right file, and that its server can be reached from here",
            };
            reader.seen.problem(&subject, format!("{}; {cure}", said(&error)));
        }
        Ok(reader.seen)
    })
}

struct Reader<'a> {
    client: Client,
    config: &'a Config,
    wanted: &'a Kubernetes,
    claim: &'a [ObjectName],
    seen: Seen,
}

impl Reader<'_> {
    async fn read(&mut self, subject: &str, now: impl Fn() -> SystemTime) -> kube::Result<()> {
        let version = self.client.apiserver_version().await?;
        let missing = self.missing_rights().await?;
        let heading = format!(
            "{subject} ({}), as {}",
            version.git_version,
            self.user().await
        );
        self.seen.heading = one_line(&heading) + "\n";
        if let Some(error) = too_old(&version) {
            self.seen.problem(subject, error);
        }
        let mut refused = BTreeSet::new();
        for right in missing {
            let without = match &*right.resource {
                "ingresses/status" | "leases" => {
                    Some("the status of Ingress objects then does not say where they are served")
                }
                it if it.ends_with("/status") => {
                    Some("its objects then do not say what of them is served")
                }
                "events" => Some("`kubectl get events` then does not show what Ebbtide does"),
                "nodes" => Some(
                    "zone hints of slices then count only with NODE_ZONE, and pods are known only by services.podCIDRs",
                ),
                _ => None,
            };
            if let Some(without) = without {
                self.seen
                    .warnings
                    .push(format!("RBAC: may not {right}: {without}; {GRANT}"));
                continue;
            }
            self.seen
                .problem(&format!("RBAC: may not {right}"), GRANT.to_owned());
            if right.has("list") {
                refused.insert(right.resource.clone());
            }
        }
        self.namespaces().await?;
        if refused.contains("services") {
            return Ok(());
        }
        let mut services = Vec::new();
        for namespace in scopes(self.wanted) {
            services.extend(list::<Service>(&self.client, namespace).await?);
        }
        self.seen.warnings.extend(claims(self.config, &services));
        self.seen.take(
            "Service",
            services.iter().map(|it| {
                (
                    it.name_any(),
                    manifest::service(it, &self.config.claim).map(Object::Service),
                )
            }),
        );
        self.seen.claim(self.claim);
        if self.config.ingress.is_some() && !refused.contains("ingresses") {
            let mut ingresses = Vec::new();
            for namespace in scopes(self.wanted) {
                ingresses.extend(list::<Ingress>(&self.client, namespace).await?);
            }
            let read = |it: &_| ingress(it).map(|it| Object::Ingress(Box::new(it)));
            self.seen.take(
                "Ingress",
                ingresses.iter().map(|it| (it.name_any(), read(it))),
            );
        }
        if self.config.ingress.is_some()
            && self.wanted.namespaces.is_empty()
            && !refused.contains("ingressclasses")
        {
            let all: Api<IngressClass> = Api::all(self.client.clone());
            let all = all.list(&ListParams::default()).await?.items;
            let read = |it: &_| class(it).map(Object::IngressClass);
            self.seen.take(
                "IngressClass",
                all.iter().map(|it| (it.name_any(), read(it))),
            );
        }
        if self.config.gateway.is_some() {
            let scopes = scopes(self.wanted);
            standards::read(&self.client, &scopes, &refused, &mut self.seen).await?;
        }
        if self.config.addresses.is_some() && self.seen.has_claims() {
            self.seen
                .warnings
                .extend(nodes::unserved(&self.client).await?);
        }
        for namespace in &self.watched_namespaces() {
            if !refused.contains("pods") {
                let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
                let pods = pods.list_metadata(&ListParams::default()).await?.items;
                let read = |it: &_| manifest::pod(it, None, Some(now())).map(Object::Pod);
                self.seen.take(
                    "Pod",
                    pods.iter().map(|it| (it.name_any(), read(&it.metadata))),
                );
            }
            if !refused.contains("endpointslices") {
                let slices = list::<EndpointSlice>(&self.client, Some(namespace)).await?;
                let read =
                    |it: &_| manifest::slice(it, &Node::default()).map(Object::EndpointSlice);
                self.seen.take(
                    "EndpointSlice",
                    slices.iter().map(|it| (it.name_any(), read(it))),
                );
            }
        }
        named::read(&self.client, self.config, &mut self.seen).await
    }

    async fn missing_rights(&self) -> kube::Result<Vec<Right>> {
        let mut wanted = Vec::new();
        for namespace in scopes(self.wanted) {
            wanted.push(Right::new("get list watch", "services", namespace));
            for resource in ["endpointslices.discovery.k8s.io", "pods"] {
                wanted.push(Right::new("list watch", resource, namespace));
            }
            if self.config.ingress.is_some() {
                let ingresses = "ingresses.networking.k8s.io";
                wanted.push(Right::new("list watch", ingresses, namespace));
                wanted.push(Right::new(
                    "patch",
                    "ingresses/status.networking.k8s.io",
                    namespace,
                ));
            }
            wanted.push(Right::new("create", "events.events.k8s.io", namespace));
        }
        if self.config.gateway.is_some() {
            wanted.extend(standards::rights(&scopes(self.wanted)));
        }
        // A Role, as configured namespaces need it, cannot have it.
        if self.wanted.namespaces.is_empty() {
            wanted.push(Right::new("get", "nodes", None));
            if self.config.ingress.is_some() {
                let classes = "ingressclasses.networking.k8s.io";
                wanted.push(Right::new("list watch", classes, None));
            }
        }
        if self.config.ingress.is_some() || self.config.gateway.is_some() {
            let (leases, own) = (
                "leases.coordination.k8s.io",
                self.client.default_namespace(),
            );
            wanted.push(Right::new("create", leases, Some(own)));
            let lease = Right::new("get update", leases, Some(own));
            wanted.push(lease.of(&self.config.lease));
        }
        rights::missing(&self.client, wanted).await
    }

    /// The user of our credentials. API servers report it since 1.28.
    async fn user(&self) -> String {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = reviews
            .create(&PostParams::default(), &SelfSubjectReview::default())
            .await;
        let name = review
            .ok()
            .and_then(|review| review.status?.user_info?.username);
        name.unwrap_or_else(|| "a user whose name it does not report".to_owned())
    }

    /// Warns of namespaces that certainly do not exist. A refusal (403) is no warning, because
    /// Ebbtide itself does not need the right to read a namespace.
    async fn namespaces(&mut self) -> kube::Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let of_listeners = self
            .config
            .listeners
            .iter()
            .flat_map(ListenerConfig::services)
            .map(|service| &service.namespace);
        for name in self
            .wanted
            .namespaces
            .iter()
            .chain(of_listeners)
            .collect::<BTreeSet<_>>()
        {
            match api.get_metadata_opt(name).await {
                Ok(None) => self.seen.warnings.push(format!(
                    "namespace {name} does not exist; create or correct it"
                )),
                Err(kube::Error::Api(status)) if status.code == 403 => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// The namespaces whose endpoints a running proxy would watch.
    fn watched_namespaces(&self) -> BTreeSet<String> {
        let ingress = self.config.ingress.as_ref();
        let classes = ingress.map(|it| Classes::of(it, self.seen.classes()));
        let classes = classes.unwrap_or_default();
        let claimed = self.seen.objects.iter().filter_map(|object| match object {
            Object::Service(service) if service.claimed => Some(&service.name.namespace),
            Object::Ingress(ingress) if classes.have(ingress) => Some(&ingress.name.namespace),
            _ => None,
        });
        let led = self.seen.gateways().flat_map(standards::namespaces);
        claimed
            .chain(led)
            .chain(
                self.config
                    .listeners
                    .iter()
                    .flat_map(ListenerConfig::services)
                    .map(|service| &service.namespace),
            )
            .cloned()
            .collect()
    }
}

fn scopes(wanted: &Kubernetes) -> Vec<Option<&str>> {
    match wanted.namespaces.as_slice() {
        [] => vec![None],
        some => some
            .iter()
            .map(|namespace| Some(namespace.as_str()))
            .collect(),
    }
}

async fn list<K>(client: &Client, namespace: Option<&str>) -> kube::Result<Vec<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug,
    K: serde::de::DeserializeOwned,
{
    Ok(api::objects(client, namespace)
        .list(&ListParams::default())
        .await?
        .items)
}

/// The problem with a version before [`OLDEST`]. Some providers write the minor version as `35+`.
fn too_old(version: &Info) -> Option<String> {
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().ok();
    let is_older = (number(&version.major)?, number(&version.minor)?) < OLDEST;
    is_older.then(|| {
        format!(
            "version {} is too old; upgrade it to {}.{}, the first whose EndpointSlices always say which endpoints \
             terminate, and whether they still serve",
            version.git_version, OLDEST.0, OLDEST.1
        )
    })
}

/// Warns of listeners that serve what kube-proxy or another proxy serves too. The merge does not
/// know this, because it looks only at Services that are claimed for Ebbtide.
fn claims(config: &Config, services: &[Service]) -> Vec<String> {
    let mut warnings = Vec::new();
    for service in services {
        let (name, spec) = (
            format!(
                "{}/{}",
                service.namespace().unwrap_or_default(),
                service.name_any()
            ),
            &service.spec,
        );
        let owner = service
            .labels()
            .get("service.kubernetes.io/service-proxy-name")
            .map(String::as_str);
        let (ours, is_ours) = (&config.claim.proxy_name, is_claimed(service, &config.claim));
        for listener in &config.listeners {
            if let Some(owner) =
                owner.filter(|owner| owner != ours && listener.service.to_string() == name)
            {
                warnings.push(format!(
                    "listener {}: {name} is claimed for {owner} (service-proxy-name), and both serve it; remove the \
                     listener, or label the Service {ours}",
                    listener.name
                ));
            }
            let ports = spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            let is_taken = ports
                .filter(|port| {
                    let protocol = port.protocol.as_deref().unwrap_or("TCP");
                    protocol == listener.transport().to_string()
                })
                .filter_map(|port| port.node_port)
                .any(|port| port == i32::from(listener.address.port()));
            if is_taken && !is_ours && listener.address.port() != 0 {
                warnings.push(format!(
                    "listener {}: {} is also a nodePort of {name}, and {} takes its connections before they reach \
                     a socket; choose another port, or claim that Service",
                    listener.name,
                    listener.address,
                    owner.unwrap_or("kube-proxy")
                ));
            }
        }
    }
    warnings
}

const GRANT: &str = "grant it as deploy/kustomize/base/rbac.yaml does";
/// `serving` and `terminating` are stable since this version (KEP-1672). A cluster before it could
/// lack them. All else that Ebbtide uses is older: discovery.k8s.io/v1 came with 1.21,
/// events.k8s.io/v1 with 1.19.
const OLDEST: (u32, u32) = (1, 26);
/// Shorter than the source's, because a check has no watch that may be silent for long.
const SILENCE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Discovery;
    use crate::contract::policy::PortRef;

    #[test]
    fn versions_before_1_26_are_too_old_in_each_spelling() {
        let version = |major: &str, minor: &str| {
            too_old(&Info {
                major: major.into(),
                minor: minor.into(),
                git_version: "v".into(),
                ..Info::default()
            })
        };
        for (major, minor) in [("1", "26"), ("1", "35+"), ("2", "0"), ("", "")] {
            assert_eq!(version(major, minor), None, "{major}.{minor}");
        }
        for (major, minor) in [("1", "25"), ("1", "9+")] {
            assert!(
                version(major, minor)
                    .unwrap()
                    .contains("upgrade it to 1.26"),
                "{major}.{minor}"
            );
        }
    }

    #[test]
    fn a_listener_for_a_service_that_another_proxy_serves_is_a_warning() {
        let listener = |name: &str, port, service: &str| ListenerConfig {
            name: name.into(),
            address: ([0, 0, 0, 0], port).into(),
            service: ObjectName::new("web", service),
            port: PortRef::Number(80),
            protocol: None,
            proxy_protocol: false,
            allow_connect: false,
            sni: Vec::new(),
            source_ranges: Vec::new(),
            scope: None,
            health_check: false,
            routes: None,
            tls: None,
        };
        let mut config = Config::new(Discovery::Kubernetes(Kubernetes::default()));
        config.listeners = vec![
            listener("a", 8080, "cilium"),
            listener("b", 30080, "ours"),
            listener("c", 0, "ours"),
        ];
        let service = |name: &str, owner: Option<&str>, node_port: Option<i32>| -> Service {
            let labels = owner.map(
                |owner| serde_json::json!({"service.kubernetes.io/service-proxy-name": owner}),
            );
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name, "namespace": "web", "labels": labels},
                "spec": {"ports": [{"port": 80, "nodePort": node_port}]},
            }))
            .unwrap()
        };
        let ours = service("ours", Some("ebbtide"), Some(30080));
        assert_eq!(
            claims(&config, &[ours, service("other", None, Some(30081))]),
            [""; 0]
        );
        let warnings = claims(
            &config,
            &[
                service("cilium", Some("cilium"), Some(0)),
                service("plain", None, Some(30080)),
            ],
        );
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[0]
                .starts_with("listener a: web/cilium is claimed for cilium (service-proxy-name)"),
            "{warnings:?}"
        );
        assert!(warnings[1].starts_with(
            "listener b: 0.0.0.0:30080 is also a nodePort of web/plain, and kube-proxy takes"
        ));
    }
}
