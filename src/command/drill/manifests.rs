//! The objects that a drill makes in a cluster: the sample application and one or two Services in
//! front of it. Each carries the label by which a drill recognises its own objects.

use serde_json::{Value, json};

/// Kinds and names, in the order of removal: the Services first, so that no client reaches the pods
/// when they end.
pub(super) const MADE: [(Resource, &str); 3] = [
    (Resource::Service, PLAIN),
    (Resource::Service, NAME),
    (Resource::Deployment, NAME),
];

/// The kind of an object that a drill makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    /// v1 Service.
    Service,
    /// apps/v1 Deployment.
    Deployment,
}

impl Resource {
    /// The kind as manifests spell it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Deployment => "Deployment",
        }
    }
}

/// The Deployment of the sample application. It exits at SIGTERM. A readiness probe is all that it
/// does for a rollout. It may run where Pod Security is `restricted`.
pub(super) fn deployment(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(NAME),
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": selector()},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": selector()},
                "spec": {
                    "automountServiceAccountToken": false,
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 10901, "runAsGroup": 10901,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "app",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "args": ["sample-app", "--listen", format!("0.0.0.0:{PORT}")],
                        "ports": [{"name": "http", "containerPort": PORT}],
                        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
                        "resources": {
                            "requests": {"cpu": "50m", "memory": "16Mi"},
                            "limits": {"memory": "64Mi"},
                        },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                },
            },
        },
    })
}

/// The Service that the Ebbtide of this name claims. Without `node_port` the API server chooses one.
pub(super) fn claimed(proxy_name: &str, node_port: Option<u16>) -> Value {
    let mut service = service(NAME);
    service["metadata"]["labels"][CLAIM] = json!(proxy_name);
    if let Some(port) = node_port {
        service["spec"]["ports"][0]["nodePort"] = json!(port);
    }
    service
}

/// The same Service without the claim. kube-proxy, or its replacement, serves it.
pub(super) fn plain() -> Value {
    service(PLAIN)
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(name),
        "spec": {
            "type": "NodePort",
            "selector": selector(),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}],
        },
    })
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "labels": {MANAGED_BY: MANAGER, "app.kubernetes.io/name": NAME}})
}

fn selector() -> Value {
    json!({"app.kubernetes.io/name": NAME, MANAGED_BY: MANAGER})
}

/// The patch that makes the Deployment replace its pods, as `kubectl rollout restart` does.
pub(super) fn update(at: &str) -> Value {
    json!({"spec": {"template": {"metadata": {"annotations": {"ebbtide.dev/drilled-at": at}}}}})
}

/// The name of the Deployment and of the claimed Service.
pub(super) const NAME: &str = "ebbtide-drill";
/// The name of the Service without a claim.
pub(super) const PLAIN: &str = "ebbtide-drill-plain";
/// The label by which a drill recognises its own objects.
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of that label.
pub(super) const MANAGER: &str = "ebbtide-drill";
/// The number of pods.
pub(super) const REPLICAS: usize = 3;
const CLAIM: &str = "service.kubernetes.io/service-proxy-name";
const PORT: u16 = 8080;

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::Service;

    #[test]
    fn everything_is_labelled_and_the_services_select_the_pods() {
        let deployment: Deployment = serde_json::from_value(deployment("img:1")).unwrap();
        let template = deployment.spec.clone().unwrap().template;
        let labels = template.metadata.unwrap().labels.unwrap();
        assert_eq!(
            deployment.spec.unwrap().selector.match_labels.as_ref(),
            Some(&labels)
        );
        let pod = template.spec.unwrap();
        let app = &pod.containers[0];
        assert_eq!(app.image.as_deref(), Some("img:1"));
        assert_eq!(
            app.args.as_ref().unwrap()[..],
            ["sample-app", "--listen", "0.0.0.0:8080"]
        );
        assert!(
            app.lifecycle.is_none(),
            "a preStop hook would hide what the drill shows"
        );
        assert!(
            app.readiness_probe.is_some()
                && pod.security_context.unwrap().run_as_non_root == Some(true)
        );

        let mut names = vec![(Resource::Deployment, deployment.metadata.name.unwrap())];
        assert_eq!(deployment.metadata.labels.unwrap()[MANAGED_BY], MANAGER);
        for (value, claim) in [(claimed("mine", None), Some("mine")), (plain(), None)] {
            let service: Service = serde_json::from_value(value).unwrap();
            let spec = service.spec.unwrap();
            assert_eq!(spec.selector, Some(labels.clone()));
            assert_eq!(
                (spec.type_.as_deref(), spec.ports.unwrap()[0].node_port),
                (Some("NodePort"), None)
            );
            let of = service.metadata.labels.unwrap();
            assert_eq!(
                (of[MANAGED_BY].as_str(), of.get(CLAIM).map(String::as_str)),
                (MANAGER, claim)
            );
            names.push((Resource::Service, service.metadata.name.unwrap()));
        }
        names.reverse();
        let made = MADE.map(|(kind, name)| (kind, name.to_owned()));
        assert_eq!(
            made[..],
            names[..],
            "all objects are removed, in the reverse order"
        );
        assert_eq!(
            claimed("ebbtide", Some(30123))["spec"]["ports"][0]["nodePort"],
            30123
        );
    }
}
