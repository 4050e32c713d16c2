//! The promises of `deploy/`, read from the manifests themselves: rights, probes, ports, update
//! order and grace periods. The kustomizations, the Helm chart, the image and the Dockerfile must
//! agree. No manifest is applied here: `tests/cluster` does that.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ebbtide::config::settings::Config;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Container, Namespace, PodSpec, Probe, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::IngressClass;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::binary::BINARY;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CLAIM: &str = "service.kubernetes.io/service-proxy-name";
const ADMIN_PORT: i32 = 9901;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

fn documents(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    all.into_iter()
        .filter(|document| !document.is_null())
        .collect()
}

/// The only object of this kind in a file.
fn object<T: DeserializeOwned>(path: &str, kind: &str) -> T {
    only(documents(&read(path)), kind)
}

fn only<T: DeserializeOwned>(all: Vec<Value>, kind: &str) -> T {
    let mut found = all.into_iter().filter(|document| document["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "two of kind {kind}");
    serde_json::from_value(first).unwrap()
}

fn daemon_set() -> DaemonSet {
    object("deploy/kustomize/daemonset/daemonset.yaml", "DaemonSet")
}

fn deployment() -> Deployment {
    object("deploy/kustomize/deployment/deployment.yaml", "Deployment")
}

/// The pods of the DaemonSet and of the Deployment, each with the text of its configuration.
fn pods() -> [(PodSpec, String); 2] {
    let (daemon_set, deployment) = (daemon_set(), deployment());
    [
        (
            daemon_set.spec.unwrap().template.spec.unwrap(),
            read("deploy/kustomize/daemonset/ebbtide.yaml"),
        ),
        (
            deployment.spec.unwrap().template.spec.unwrap(),
            read("deploy/kustomize/deployment/ebbtide.yaml"),
        ),
    ]
}

fn container(pod: &PodSpec) -> &Container {
    named(pod, "ebbtide").unwrap()
}

fn named<'a>(pod: &'a PodSpec, name: &str) -> Option<&'a Container> {
    pod.containers.iter().find(|it| it.name == name)
}

/// The configuration as Ebbtide reads it.
fn config(text: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ebbtide.yaml");
    std::fs::write(&file, text).unwrap();
    let config = Config::load(&file).unwrap();
    assert_eq!(config.discovery.source(), "kubernetes");
    config
}

/// Some servers silently drop a field that the API does not know. Here such a field is missing
/// after a round trip.
#[test]
fn the_api_knows_every_field_of_every_manifest() {
    fn known<T: DeserializeOwned + Serialize>(document: &Value) {
        let object: T = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(serde_json::to_value(&object).unwrap(), *document);
    }
    let files = [
        "base/namespace",
        "base/rbac",
        "daemonset/daemonset",
        "daemonset/gate",
        "deployment/deployment",
        "deployment/service",
        "secrets/rbac",
        "ingress/class",
        "ingress/rbac",
        "gateway/rbac",
    ];
    let mut count = 0;
    for document in files
        .iter()
        .flat_map(|file| documents(&read(&format!("deploy/kustomize/{file}.yaml"))))
    {
        match document["kind"].as_str().unwrap() {
            "Namespace" => known::<Namespace>(&document),
            "ServiceAccount" => known::<ServiceAccount>(&document),
            "ClusterRole" => known::<ClusterRole>(&document),
            "ClusterRoleBinding" => known::<ClusterRoleBinding>(&document),
            "Role" => known::<Role>(&document),
            "RoleBinding" => known::<RoleBinding>(&document),
            "DaemonSet" => known::<DaemonSet>(&document),
            "Deployment" => known::<Deployment>(&document),
            "PodDisruptionBudget" => known::<PodDisruptionBudget>(&document),
            "Service" => known::<Service>(&document),
            "IngressClass" => known::<IngressClass>(&document),
            other => panic!("{other}"),
        }
        count += 1;
    }
    assert_eq!(count, 20);
}

#[test]
fn the_daemon_set_uses_every_nodes_network() {
    let daemon_set = daemon_set();
    assert_eq!(daemon_set.metadata.name.as_deref(), Some("ebbtide"));
    assert_eq!(
        daemon_set.metadata.namespace.as_deref(),
        Some("ebbtide-system")
    );
    let pod = daemon_set.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.dns_policy.as_deref(), Some("ClusterFirstWithHostNet"));
    assert_eq!(
        pod.priority_class_name.as_deref(),
        Some("system-node-critical")
    );
    assert_eq!(
        serde_json::to_value(&pod.tolerations).unwrap(),
        json!([{"operator": "Exists"}])
    );
    assert_eq!(
        serde_json::to_value(&pod.node_selector).unwrap(),
        json!({"kubernetes.io/os": "linux"})
    );
    let container = container(&pod);
    assert_eq!(container.image.as_deref(), Some("ebbtide:dev"));
    assert_eq!(container.image_pull_policy.as_deref(), Some("IfNotPresent"));
    // hostNetwork is not allowed by the baseline level.
    let namespace: Namespace = object("deploy/kustomize/base/namespace.yaml", "Namespace");
    assert_eq!(namespace.metadata.name.as_deref(), Some("ebbtide-system"));
    assert_eq!(
        namespace.metadata.labels.unwrap()["pod-security.kubernetes.io/enforce"],
        "privileged"
    );
}

/// With hostNetwork, a declared port is a hostPort. The scheduler would then never put the surge
/// pod beside the old one.
#[test]
fn the_next_pod_comes_before_the_old_one_goes() {
    let spec = daemon_set().spec.unwrap();
    let strategy = spec.update_strategy.unwrap();
    assert_eq!(strategy.type_.as_deref(), Some("RollingUpdate"));
    let rolling = strategy.rolling_update.unwrap();
    let share = IntOrString::String("10%".to_owned());
    assert_eq!(
        (rolling.max_surge, rolling.max_unavailable),
        (Some(share), Some(IntOrString::Int(0)))
    );
    assert!(spec.min_ready_seconds > Some(0));
    let rolling = deployment()
        .spec
        .unwrap()
        .strategy
        .unwrap()
        .rolling_update
        .unwrap();
    assert_eq!(
        (rolling.max_surge, rolling.max_unavailable),
        (Some(IntOrString::Int(1)), Some(IntOrString::Int(0)))
    );
    for (pod, _) in pods() {
        assert!(pod.containers.iter().all(|it| it.ports.is_none()));
    }
}

#[test]
fn the_grace_covers_lame_duck_and_shutdown() {
    for (pod, text) in pods() {
        let timeouts = config(&text).timeouts;
        assert!(
            timeouts.lame_duck >= Duration::from_secs(10),
            "{timeouts:?}"
        );
        let grace = Duration::from_secs(
            pod.termination_grace_period_seconds
                .unwrap()
                .try_into()
                .unwrap(),
        );
        assert!(
            grace > timeouts.lame_duck + timeouts.shutdown + Duration::from_secs(1),
            "{grace:?} for {timeouts:?}"
        );
    }
}

#[test]
fn the_pods_have_no_privilege() {
    for (pod, _) in pods() {
        let context = pod.security_context.as_ref().unwrap();
        assert_eq!(context.run_as_non_root, Some(true));
        assert_eq!(
            (context.run_as_user, context.run_as_group),
            (Some(10_901), Some(10_901))
        );
        assert_eq!(
            context.seccomp_profile.as_ref().unwrap().type_,
            "RuntimeDefault"
        );
        assert_eq!((pod.host_pid, pod.host_ipc), (None, None));
        let volumes = pod.volumes.as_ref().unwrap();
        assert!(
            volumes
                .iter()
                .all(|volume| volume.config_map.is_some() || volume.empty_dir.is_some()),
            "{volumes:?}"
        );
        let expected = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        });
        assert_eq!(
            serde_json::to_value(&container(&pod).security_context).unwrap(),
            expected
        );
        // One capability, for the process that writes the kernel's table.
        let net = named(&pod, "net");
        assert_eq!(net.is_some(), pod.host_network == Some(true));
        assert_eq!(pod.containers.len(), 1 + usize::from(net.is_some()));
        if let Some(net) = net {
            let expected = json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": false,
                "runAsUser": 0, "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            });
            assert_eq!(
                serde_json::to_value(&net.security_context).unwrap(),
                expected
            );
            assert_eq!(net.image, container(&pod).image);
            // Both find the socket. Its group is that of the proxy.
            let mounts = |it: &Container| -> Vec<Value> {
                let all = it.volume_mounts.iter().flatten();
                let run = all.filter(|it| it.name == "run");
                run.map(|it| serde_json::to_value(it).unwrap()).collect()
            };
            assert_eq!(mounts(net), mounts(container(&pod)));
            assert_eq!(
                mounts(net),
                [json!({"name": "run", "mountPath": "/run/ebbtide"})]
            );
            assert_eq!(context.fs_group, context.run_as_group);
        }
    }
}

#[test]
fn rbac_grants_what_ebbtide_requests_and_no_more() {
    let role: ClusterRole = object("deploy/kustomize/base/rbac.yaml", "ClusterRole");
    let expected = json!([
        {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    ]);
    assert_eq!(serde_json::to_value(role.rules).unwrap(), expected);
    let binding: ClusterRoleBinding =
        object("deploy/kustomize/base/rbac.yaml", "ClusterRoleBinding");
    assert_eq!(binding.role_ref.name, "ebbtide");
    let subject =
        json!([{"kind": "ServiceAccount", "name": "ebbtide", "namespace": "ebbtide-system"}]);
    assert_eq!(serde_json::to_value(binding.subjects).unwrap(), subject);
    for (pod, _) in pods() {
        assert_eq!(pod.service_account_name.as_deref(), Some("ebbtide"));
    }
}

/// The figures of one run stand in benches/README.md. The request is enough for the table that
/// deploy/README.md names.
#[test]
fn the_memory_that_is_requested_covers_what_was_measured() {
    let readme = read("benches/README.md");
    let figure = |name: &str| -> f64 {
        let row = readme.lines().find(|line| line.starts_with(name)).unwrap();
        let cell = row[name.len()..].trim_start_matches([' ', '|']);
        let number = cell.split([' ', '|']).next().unwrap();
        number.replace(',', "").parse().unwrap()
    };
    let per_connection = f64::max(
        figure("| idle memory of a TCP pair, bytes |"),
        figure("| idle memory of an HTTP client, bytes |"),
    );
    for (pod, text) in pods() {
        let requests = container(&pod)
            .resources
            .as_ref()
            .unwrap()
            .requests
            .as_ref();
        let request = &requests.unwrap()["memory"].0;
        let mebibytes: f64 = request.strip_suffix("Mi").unwrap().parse().unwrap();
        let connections = config(&text).limits.connections;
        let needed = connections as f64 * per_connection
            + 1_000.0 * figure("| private bytes a service of one endpoint |")
            + 10_000.0 * figure("| private bytes an endpoint |")
            + f64::from(16 << 20);
        let requested = mebibytes * 1_048_576.0;
        assert!(needed < requested, "{needed} of {requested} bytes");
    }
}

#[test]
fn probes_use_the_admin_port() {
    for (pod, text) in pods() {
        let admin = config(&text).admin;
        // Prometheus and load balancers connect to the pod's address.
        assert!(
            admin.ip().is_unspecified() && i32::from(admin.port()) == ADMIN_PORT,
            "{admin}"
        );
        // On the node's network the process listens on the node's loopback, so the probes use it.
        // In a pod's network the kubelet is outside, so the probes use the pod's address.
        let host = pod.host_network.map(|_| "127.0.0.1");
        let asks = |probe: &Option<Probe>, path: &str| {
            let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
            assert_eq!(get.path.as_deref(), Some(path));
            assert_eq!(
                (get.host.as_deref(), &get.port),
                (host, &IntOrString::Int(ADMIN_PORT))
            );
        };
        asks(&container(&pod).liveness_probe, "/livez");
        asks(&container(&pod).readiness_probe, "/readyz");
    }
}

#[test]
fn the_daemon_set_and_the_deployment_listen_where_they_should() {
    let [(_, daemon_set), (_, deployment)] = pods().map(|(pod, text)| (pod, config(&text)));
    assert_eq!(daemon_set.node_port_addresses.len(), 2);
    let addresses = daemon_set.addresses.unwrap();
    assert_eq!(addresses.socket, Path::new("/run/ebbtide/net.sock"));
    assert_eq!(deployment.addresses, None);
    let gate: Service = object("deploy/kustomize/daemonset/gate.yaml", "Service");
    let settings = daemon_set.gate.unwrap();
    let name = settings.service.unwrap();
    assert_eq!(gate.metadata.name, Some(name.name));
    assert_eq!(gate.metadata.namespace, Some(name.namespace));
    let spec = gate.spec.unwrap();
    assert_eq!(spec.cluster_ip.as_deref(), Some("None"));
    assert_eq!(spec.ports.unwrap()[0].port, i32::from(settings.port));
    assert_eq!(deployment.gate, None);
    assert!(daemon_set.listeners.is_empty());
    assert!(deployment.node_port_addresses.is_empty());
    let service: Service = object("deploy/kustomize/deployment/service.yaml", "Service");
    assert!(
        !service.metadata.labels.unwrap().contains_key(CLAIM),
        "the Service cannot claim itself"
    );
    let spec = service.spec.unwrap();
    assert_eq!(spec.type_.as_deref(), Some("LoadBalancer"));
    let reached: Vec<IntOrString> = spec
        .ports
        .unwrap()
        .into_iter()
        .map(|port| port.target_port.unwrap())
        .collect();
    let bound: Vec<u16> = deployment
        .listeners
        .iter()
        .map(|listener| listener.address.port())
        .collect();
    assert!(bound.iter().all(|port| *port >= 1024), "{bound:?}");
    assert_eq!(
        reached,
        bound
            .into_iter()
            .map(|port| IntOrString::Int(port.into()))
            .collect::<Vec<_>>()
    );
}

/// The kind PodMonitor is unknown where the Prometheus Operator is not installed, and one unknown
/// object fails the whole apply.
#[test]
fn the_pod_monitor_is_an_extra() {
    let default = read("deploy/kustomize/kustomization.yaml")
        + &read("deploy/kustomize/daemonset/kustomization.yaml");
    assert!(!default.contains("monitor"));
    let monitor: Value = object("deploy/kustomize/podmonitor/podmonitor.yaml", "PodMonitor");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(endpoint["path"], "/metrics");
    assert_eq!(
        endpoint["relabelings"][0]["replacement"],
        format!("$1:{ADMIN_PORT}")
    );
    let labels =
        serde_json::to_value(daemon_set().spec.unwrap().template.metadata.unwrap().labels).unwrap();
    assert_eq!(monitor["spec"]["selector"]["matchLabels"], labels);
}

#[test]
fn without_kube_proxy_the_claim_differs_and_the_api_server_has_its_own_address() {
    let mut ours = config(&read("deploy/kustomize/claim-all/ebbtide.yaml"));
    assert!(std::mem::take(&mut ours.claim.all));
    assert_eq!(
        ours,
        config(&read("deploy/kustomize/daemonset/ebbtide.yaml"))
    );
    let patch: Value = object("deploy/kustomize/claim-all/api-server.yaml", "DaemonSet");
    let pod = &patch["spec"]["template"]["spec"];
    let names = pod["containers"][0]["env"].as_array().unwrap().iter();
    let names: Vec<&Value> = names.map(|variable| &variable["name"]).collect();
    assert_eq!(
        names,
        ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"]
    );
    assert_eq!(
        pod["dnsPolicy"], "Default",
        "the cluster's DNS is a Service"
    );
}

#[test]
fn image_dockerfile_and_manifests_agree() {
    let (image, dockerfile) = (read("deploy/image.py"), read("Dockerfile"));
    for (in_image, in_dockerfile) in [
        ("UID = 10901", "USER 10901:10901"),
        (
            r#""Entrypoint": ["/ebbtide"]"#,
            r#"ENTRYPOINT ["/ebbtide"]"#,
        ),
        (r#""Cmd": ["run"]"#, r#"CMD ["run"]"#),
        (r#""tmp/": (0o1777"#, "mkdir -m 1777 /image/tmp"),
        (
            ":Ebbtide:/:/sbin/nologin",
            "ebbtide:x:10901:10901:Ebbtide:/:/sbin/nologin",
        ),
    ] {
        assert!(image.contains(in_image), "image.py: {in_image}");
        assert!(
            dockerfile.contains(in_dockerfile),
            "Dockerfile: {in_dockerfile}"
        );
    }
}

/// The tests' own binary needs a loader that the image does not have.
#[test]
fn an_image_of_a_dynamic_binary_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("image.tar");
    let script = Path::new(ROOT).join("deploy/image.py");
    let Ok(output) = Command::new("python3")
        .arg(script)
        .arg(BINARY)
        .arg(&out)
        .output()
    else {
        return println!(
            "SKIPPED: an_image_of_a_dynamic_binary_is_refused: python3 is not installed"
        );
    };
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("not static") && said.lines().count() == 1,
        "{said}"
    );
    assert!(!out.exists());
}

/// A tool from the path, or else from where `make cluster` keeps its tools.
pub(super) fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push(home.join(".cache/ebbtide-lab/bin"));
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

pub(super) fn rendered(program: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    documents(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn kustomize_renders_each_way() {
    let Some(kubectl) = tool("kubectl") else {
        return println!("SKIPPED: kustomize_renders_each_way: kubectl is not installed");
    };
    let common = [
        "ClusterRole",
        "ClusterRoleBinding",
        "ConfigMap",
        "Namespace",
        "ServiceAccount",
    ];
    for (folder, more) in [
        ("deploy/kustomize", &["DaemonSet", "Service"][..]),
        ("deploy/kustomize/claim-all", &["DaemonSet", "Service"]),
        (
            "deploy/kustomize/podmonitor",
            &["DaemonSet", "PodMonitor", "Service"],
        ),
        (
            "deploy/kustomize/deployment",
            &["Deployment", "PodDisruptionBudget", "Service"],
        ),
    ] {
        let all = rendered(&kubectl, &["kustomize", folder]);
        let mut kinds: Vec<&str> = all
            .iter()
            .map(|object| object["kind"].as_str().unwrap())
            .collect();
        kinds.sort_unstable();
        let mut expected = [&common, more].concat();
        expected.sort_unstable();
        assert_eq!(kinds, expected, "{folder}");
        let map: Value = only(all, "ConfigMap");
        // The name that the pods mount.
        assert_eq!(
            map["metadata"],
            json!({
                "labels": {"app.kubernetes.io/name": "ebbtide"}, "name": "ebbtide", "namespace": "ebbtide-system",
            })
        );
        config(map["data"]["ebbtide.yaml"].as_str().unwrap());
    }
}

#[test]
fn the_chart_renders_the_same() {
    let Some(helm) = tool("helm") else {
        return println!("SKIPPED: the_chart_renders_the_same: helm is not installed");
    };
    let listeners = r#"config.listeners=[{"name":"web","address":"0.0.0.0:8080","service":"default/web","port":"http"}]"#;
    for (kind, folder) in [("DaemonSet", "daemonset"), ("Deployment", "deployment")] {
        let chosen = format!("kind={kind}");
        let mut arguments = vec![
            "template",
            "ebbtide",
            "deploy/helm/ebbtide",
            "--namespace",
            "ebbtide-system",
        ];
        // A helm that was built from source assumes a very old cluster.
        arguments.extend(["--kube-version", "1.35.0", "--set", &chosen]);
        if kind == "Deployment" {
            arguments.extend(["--set-json", listeners]);
        }
        let chart = rendered(&helm, &arguments);
        let read_kustomize =
            |file: &str| documents(&read(&format!("deploy/kustomize/{file}.yaml")));
        let mut ours: Value = only(read_kustomize(&format!("{folder}/{folder}")), kind);
        let mut theirs: Value = only(chart.clone(), kind);
        for workload in [&mut ours, &mut theirs] {
            // The chart's selector also holds the release.
            for constraint in workload["spec"]["template"]["spec"]["topologySpreadConstraints"]
                .as_array_mut()
                .into_iter()
                .flatten()
            {
                constraint["labelSelector"].take();
            }
            for part in [
                &["metadata"][..],
                &["spec", "selector"],
                &["spec", "template", "metadata"],
            ] {
                let part = part
                    .iter()
                    .fold(&mut *workload, |value, key| &mut value[*key]);
                assert!(part.is_object());
                part.take();
            }
        }
        assert_eq!(theirs, ours);

        let [ours, theirs]: [ClusterRole; 2] =
            [read_kustomize("base/rbac"), chart.clone()].map(|all| only(all, "ClusterRole"));
        assert_eq!(theirs.rules, ours.rules);

        let map: Value = only(chart.clone(), "ConfigMap");
        let [ours, theirs] = [
            &read(&format!("deploy/kustomize/{folder}/ebbtide.yaml")),
            map["data"]["ebbtide.yaml"].as_str().unwrap(),
        ]
        .map(config);
        assert_eq!(theirs, ours);

        if kind == "DaemonSet" {
            let [ours, theirs]: [Service; 2] =
                [read_kustomize("daemonset/gate"), chart.clone()].map(|all| only(all, "Service"));
            assert_eq!(theirs.metadata.name, ours.metadata.name);
            assert_eq!(theirs.spec.unwrap().ports, ours.spec.unwrap().ports);
        }
        if kind == "Deployment" {
            let [mut ours, mut theirs]: [Service; 2] =
                [read_kustomize("deployment/service"), chart].map(|all| only(all, "Service"));
            for service in [&mut ours, &mut theirs] {
                service.spec.as_mut().unwrap().selector = None;
            }
            assert_eq!(theirs.spec, ours.spec);
        }
    }
}

/// An API server without the kind would refuse the whole apply, and pods change only where that is asked
/// for.
#[test]
fn the_policy_of_the_gate_is_an_extra_and_calls_the_gates_port() {
    for file in [
        "kustomization",
        "daemonset/kustomization",
        "base/kustomization",
    ] {
        let text = read(&format!("deploy/kustomize/{file}.yaml"));
        assert!(
            !text.contains("../gate") && !text.contains("policy"),
            "{file}"
        );
    }
    let values: Value = only_document("deploy/helm/ebbtide/values.yaml");
    assert_eq!(values["gatePolicy"]["enabled"], false);
    let chart = read("deploy/helm/ebbtide/templates/gate.yaml");
    let policy = read("deploy/kustomize/gate/policy.yaml");
    let [policy_object, binding] = documents(&policy).try_into().unwrap();
    assert_eq!(
        binding["spec"]["policyName"],
        policy_object["metadata"]["name"]
    );
    assert_eq!(policy_object["spec"]["failurePolicy"], "Ignore");
    let settings = config(&read("deploy/kustomize/daemonset/ebbtide.yaml"))
        .gate
        .unwrap();
    assert!(policy.contains(&format!("httpGet{{port: {}}}", settings.port)));
    // The chart has the same expressions.
    let mut compared = 0;
    for line in policy
        .lines()
        .filter(|line| line.contains("object.") || line.contains("Object."))
    {
        let line = line.replace("9902", "{{ .Values.config.gate.port | default 9902 }}");
        assert!(chart.contains(line.trim()), "{line}");
        compared += 1;
    }
    assert!(compared > 8, "{compared} lines");
}

fn only_document(path: &str) -> Value {
    documents(&read(path)).pop().unwrap()
}

#[test]
fn only_the_secrets_that_listeners_name_may_be_read() {
    let file = "deploy/kustomize/secrets/rbac.yaml";
    let role: Role = object(file, "Role");
    let read = |resource: &str, names: &[&str]| {
        json!({"apiGroups": [""], "resources": [resource], "resourceNames": names,
            "verbs": ["get", "list", "watch"]})
    };
    let expected = json!([
        read("secrets", &["web-tls"]),
        read("configmaps", &["web-ca"])
    ]);
    assert_eq!(serde_json::to_value(&role.rules).unwrap(), expected);
    let binding: RoleBinding = object(file, "RoleBinding");
    assert_eq!(binding.role_ref.name, "ebbtide-certificates");
    let Some(helm) = tool("helm") else {
        return println!(
            "SKIPPED: only_the_secrets_that_listeners_name_may_be_read: helm is not installed"
        );
    };
    let listener = |name: &str, secrets: &[&str]| {
        json!({"name": name, "address": "0.0.0.0:8443", "service": "default/web", "port": "http",
            "tls": {"secrets": secrets}})
    };
    let listeners = json!([
        listener("a", &["default/web-tls", "shop/one"]),
        listener("b", &["default/web-tls", "shop/two"]),
        {"name": "c", "address": "0.0.0.0:8080", "service": "default/web", "port": "http"},
    ]);
    let listeners = format!("config.listeners={listeners}");
    let mut arguments = vec!["template", "ebbtide", "deploy/helm/ebbtide"];
    arguments.extend(["--namespace", "ebbtide-system", "--kube-version", "1.35.0"]);
    arguments.extend(["--set", "kind=Deployment", "--set-json", &listeners]);
    let authorities =
        r#"backendTls={"secrets": ["shop/ca", "shop/two"], "configMaps": ["shop/ca", "blog/ca"]}"#;
    arguments.extend(["--set-json", authorities]);
    let all = rendered(&helm, &arguments);
    let of = |kind: &str| -> Vec<Value> {
        let found = all.iter().filter(|it| it["kind"] == kind);
        found.cloned().collect()
    };
    let allowed = of("Role")
        .into_iter()
        .map(|role| (role["metadata"]["namespace"].clone(), role["rules"].clone()));
    let of_shop = [
        read("secrets", &["one", "two", "ca"]),
        read("configmaps", &["ca"]),
    ];
    let expected = [
        (json!("blog"), json!([read("configmaps", &["ca"])])),
        (json!("default"), json!([read("secrets", &["web-tls"])])),
        (json!("shop"), json!(of_shop)),
    ];
    assert_eq!(allowed.collect::<Vec<_>>(), expected);
    for binding in of("RoleBinding") {
        assert_eq!(binding["roleRef"]["name"], "ebbtide-certificates");
    }
}

/// What rules allow to do with objects of a group.
fn on_group(group: &str, rules: &Value) -> BTreeSet<(String, String)> {
    let rules = rules.as_array().unwrap().iter();
    let rules = rules.filter(|it| it["apiGroups"][0] == group);
    let each = rules.flat_map(|rule| {
        let resources = rule["resources"].as_array().unwrap().iter();
        resources.map(|it| (it.to_string(), rule["verbs"].to_string()))
    });
    each.collect()
}

/// With `config.ingress`, the chart grants what `deploy/kustomize/ingress` grants, under its own names.
#[test]
fn the_chart_serves_ingress_objects_where_that_is_configured() {
    let kustomize = documents(&read("deploy/kustomize/ingress/rbac.yaml"));
    let of_kind = |all: &[Value], kind: &str| -> Vec<Value> {
        let found = all.iter().filter(|it| it["kind"] == kind);
        found.cloned().collect()
    };
    let election = &of_kind(&kustomize, "Role")[0];
    assert_eq!(election["metadata"]["namespace"], "ebbtide-system");
    assert_eq!(election["rules"][1]["resourceNames"], json!(["ebbtide"]));
    let granted = &of_kind(&kustomize, "ClusterRole")[0]["rules"];
    assert_eq!(
        granted[1],
        json!({"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["patch"]})
    );
    let Some(helm) = tool("helm") else {
        return println!("SKIPPED: the rest: helm is not installed");
    };
    for kind in ["DaemonSet", "Deployment"] {
        let mut arguments = vec!["template", "ebbtide", "deploy/helm/ebbtide"];
        arguments.extend(["--namespace", "edge", "--kube-version", "1.35.0", "--set"]);
        let kind = format!("kind={kind}");
        arguments.extend([&kind, "--set-json", r#"config.ingress={"class": "edge"}"#]);
        arguments.extend([
            "--set-json",
            r#"ingressClass={"default": true, "secrets": ["shop/tls"]}"#,
        ]);
        arguments.extend(["--set", "fullnameOverride=edge"]);
        let all = rendered(&helm, &arguments);
        let class = &of_kind(&all, "IngressClass")[0];
        assert_eq!(class["metadata"]["name"], "edge");
        assert_eq!(class["spec"]["controller"], "ebbtide.dev/ingress");
        let roles = of_kind(&all, "Role");
        let role = |name: &str| {
            roles
                .iter()
                .find(|it| it["metadata"]["name"] == name)
                .unwrap()
        };
        let mut expected = election["rules"].clone();
        expected[1]["resourceNames"] = json!(["edge"]);
        assert_eq!(role("edge-election")["rules"], expected);
        assert_eq!(role("edge-election")["metadata"]["namespace"], "edge");
        assert_eq!(role("edge-certificates")["metadata"]["namespace"], "shop");
        let rules = of_kind(&all, "ClusterRole")[0]["rules"].clone();
        let group = "networking.k8s.io";
        assert_eq!(on_group(group, &rules), on_group(group, granted));
        let kind = kind.trim_start_matches("kind=");
        let workload = &of_kind(&all, kind)[0];
        let env = &workload["spec"]["template"]["spec"]["containers"][0]["env"];
        let lease = env
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["name"] == "LEASE_NAME");
        assert_eq!(lease.unwrap()["value"], "edge");
    }
}

/// With `config.gateway`, the chart grants what `deploy/kustomize/gateway` grants, under its own names. With
/// namespaces, all but what is of the whole cluster is granted in these.
#[test]
fn the_chart_serves_gateways_where_that_is_configured() {
    let group = "gateway.networking.k8s.io";
    let kustomize = documents(&read("deploy/kustomize/gateway/rbac.yaml"));
    let of_kind = |all: &[Value], kind: &str| -> Vec<Value> {
        let found = all.iter().filter(|it| it["kind"] == kind);
        found.cloned().collect()
    };
    let granted = &of_kind(&kustomize, "ClusterRole")[0]["rules"];
    let election = &of_kind(&kustomize, "Role")[0]["rules"];
    let ours: Value = only(
        documents(&read("deploy/kustomize/gateway/class.yaml")),
        "GatewayClass",
    );
    let Some(helm) = tool("helm") else {
        return println!("SKIPPED: the rest: helm is not installed");
    };
    let render = |sets: &[&str]| {
        let mut arguments = vec!["template", "edge", "deploy/helm/ebbtide"];
        arguments.extend(["--namespace", "edge", "--kube-version", "1.35.0"]);
        arguments.extend(["--set", "fullnameOverride=edge"]);
        arguments.extend(sets.iter().flat_map(|it| ["--set-json", it]));
        rendered(&helm, &arguments)
    };
    let gateway = r#"config.gateway={"addresses": ["192.0.2.0/28"]}"#;
    let namespaces = r#"config.discovery.kubernetes.namespaces=["shop"]"#;
    assert!(of_kind(&render(&[]), "GatewayClass").is_empty());
    for (sets, roles) in [(&[gateway][..], 2), (&[gateway, namespaces], 1)] {
        let all = render(sets);
        let class = &of_kind(&all, "GatewayClass")[0];
        assert_eq!(class["metadata"]["name"], ours["metadata"]["name"]);
        assert_eq!(class["spec"], ours["spec"]);
        let of_cluster = of_kind(&all, "ClusterRole");
        assert_eq!(of_cluster.len(), roles);
        let in_namespace = of_kind(&all, "Role");
        let in_namespace = in_namespace
            .iter()
            .filter(|it| it["metadata"]["namespace"] == "shop");
        let rights = of_cluster.iter().chain(in_namespace);
        let rights: BTreeSet<_> = rights
            .flat_map(|it| on_group(group, &it["rules"]))
            .collect();
        assert_eq!(rights, on_group(group, granted));
        let own = of_cluster
            .iter()
            .find(|it| it["metadata"]["name"] == "edge-gateway")
            .unwrap();
        let all_rules = own["rules"].as_array().unwrap();
        assert_eq!(all_rules.last(), granted.as_array().unwrap().last());
        let mut expected = election.clone();
        expected[1]["resourceNames"] = json!(["edge"]);
        let elects = of_kind(&all, "Role");
        let elects = elects
            .iter()
            .find(|it| it["metadata"]["name"] == "edge-election")
            .unwrap();
        assert_eq!(elects["rules"], expected);
    }
    let all = render(&[
        gateway,
        r#"gatewayClass={"create": false, "secrets": ["shop/tls"]}"#,
    ]);
    assert!(of_kind(&all, "GatewayClass").is_empty());
    let roles = of_kind(&all, "Role");
    let reads = roles
        .iter()
        .find(|it| it["metadata"]["name"] == "edge-certificates")
        .unwrap();
    assert_eq!(reads["metadata"]["namespace"], "shop");
    assert_eq!(reads["rules"][0]["resourceNames"], json!(["tls"]));
}

#[test]
fn the_chart_refuses_what_cannot_work() {
    let Some(helm) = tool("helm") else {
        return println!("SKIPPED: the_chart_refuses_what_cannot_work: helm is not installed");
    };
    let claim = format!("service.labels.{}=ebbtide", CLAIM.replace('.', r"\."));
    for (set, said) in [
        ("toleration=x", "toleration"),
        ("kind=StatefulSet", "kind"),
        ("image.digest=latest", "digest"),
        ("config.services.claim=all", "apiServer.host"),
        (claim.as_str(), "cannot claim"),
    ] {
        let mut command = Command::new(&helm);
        command.args([
            "template",
            "ebbtide",
            "deploy/helm/ebbtide",
            "--kube-version",
            "1.35.0",
        ]);
        if set == claim {
            command.args(["--set", "kind=Deployment"]);
        }
        let output = command
            .args(["--set", set])
            .current_dir(ROOT)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && error.contains(said),
            "{set}: {error}"
        );
    }
}
