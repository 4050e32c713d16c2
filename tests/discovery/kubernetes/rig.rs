//! Shared by the scenarios: a proxy in this process whose kubeconfig names the scenario's API
//! server, objects for that server, and waits for their effect. Drop checks that the server has no
//! complaint, so a test need not check that itself.

use std::cell::Cell;
use std::time::Duration;

use ebbtide::app::{self, Running};
use ebbtide::command::demo::client::Client;
use ebbtide::config::settings::{Config, Discovery, PodWatch};
use ebbtide::contract::name::ObjectName;
use ebbtide::contract::snapshot::Port;
use ebbtide::routing::drains::Record;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::api::{Api, Kind};
use crate::support::manifests::{self, endpoint, uid_of};
use crate::support::pods;
use crate::support::wait::eventually;

/// An explicit listener `web` for Service `web/shop`.
pub const WEB: &str =
    "listeners: [{name: web, address: '127.0.0.1:0', service: web/shop, port: 80}]";

/// A proxy in this process. Drop shuts it down without grace, so that a failed test leaves nothing
/// behind.
pub struct Rig {
    pub api: Api,
    folder: TempDir,
    running: Option<Running>,
    times: Times,
    barriers: Cell<usize>,
}

/// Times of the source that are no fields of the configuration file.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub silence: Duration,
    pub patience: Duration,
    pub pods_patience: Duration,
    /// The node whose pods alone are watched.
    pub node: Option<&'static str>,
}

impl Default for Times {
    /// No test waits that long.
    fn default() -> Self {
        let (silence, patience) = (Duration::from_secs(75), Duration::from_secs(3_600));
        Self {
            silence,
            patience,
            pods_patience: patience,
            node: None,
        }
    }
}

impl Times {
    /// The first table waits for no namespace that cannot be listed.
    pub fn impatient() -> Self {
        let patience = Duration::from_millis(200);
        Self {
            patience,
            pods_patience: patience,
            ..Self::default()
        }
    }
}

/// How a user reaches the API server.
pub fn kubeconfig(api: &Api) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
         clusters: [{{name: it, cluster: {{server: 'http://{}'}}}}]\n\
         users: [{{name: it, user: {{token: secret}}}}]\n\
         contexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n",
        api.address
    )
}

impl Rig {
    /// A proxy with listener `web`, once it is ready.
    pub async fn start(api: &Api) -> Self {
        let rig = Self::launch(api, "", WEB);
        rig.ready().await;
        rig
    }

    /// `more` is YAML at the end of the configuration. `source` is YAML of fields of
    /// `discovery.kubernetes`, and after a `|` of fields of `discovery`.
    pub fn launch(api: &Api, source: &str, more: &str) -> Self {
        Self::with_times(api, source, more, Times::default())
    }

    pub fn with_times(api: &Api, source: &str, more: &str, times: Times) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig(api)).unwrap();
        let mut rig = Self {
            api: api.clone(),
            folder,
            running: None,
            times,
            barriers: Cell::new(0),
        };
        let config = rig.config(source, more);
        rig.running = Some(app::start(config).unwrap());
        rig
    }

    fn config(&self, source: &str, more: &str) -> Config {
        let file = self.folder.path().join("ebbtide.yaml");
        // What belongs beside `kubernetes` follows a `|`.
        let (source, beside) = source.split_once('|').unwrap_or((source, ""));
        let text = format!(
            "discovery: {{kubernetes: {{kubeconfig: kubeconfig, {source}}}, {beside}}}\n\
             admin: {{address: '127.0.0.1:0'}}\nworkers: 1\n{more}\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut config = Config::load(&file).unwrap();
        if let Discovery::Kubernetes(kubernetes) = &mut config.discovery {
            kubernetes.silence = self.times.silence;
            kubernetes.patience = self.times.patience;
            kubernetes.pods_patience = self.times.pods_patience;
            kubernetes.save_every = Duration::from_millis(50);
            if let Some(node) = self.times.node {
                kubernetes.pods = PodWatch::Node(node.to_owned());
                config.node.name = Some(node.to_owned());
            }
        }
        config
    }

    pub fn reload(&self, source: &str, more: &str) {
        self.running().reload(self.config(source, more));
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub async fn ready(&self) {
        eventually("ready", async || self.readyz().await.0 == 200).await;
    }

    /// The status code and the line of `/readyz`.
    pub async fn readyz(&self) -> (u16, String) {
        let mut client = Client::connect(self.running().admin_address).await.unwrap();
        let response = client.exchange("GET", "/readyz", "", b"").await.unwrap();
        (response.status, response.text().trim_end().to_owned())
    }

    /// `ebbtide_namespaces_failed`, as it is scraped.
    pub async fn failed_namespaces(&self) -> String {
        let mut client = Client::connect(self.running().admin_address).await.unwrap();
        let response = client.exchange("GET", "/metrics", "", b"").await.unwrap();
        let text = response.text();
        let mut lines = text.lines();
        let value = lines.find_map(|it| it.strip_prefix("ebbtide_namespaces_failed "));
        value.unwrap().to_owned()
    }

    /// Waits until `/readyz` reports no problem.
    pub async fn clean(&self) {
        eventually("ready and nothing else", async || {
            self.readyz().await == (200, "ready".into())
        })
        .await;
    }

    pub fn port(&self, service: &str) -> Option<std::sync::Arc<Port>> {
        let (namespace, name) = service.split_once('/').unwrap_or(("web", service));
        let key = ObjectName::new(namespace, name).port(80);
        self.running()
            .admin
            .snapshot
            .load()
            .ports
            .get(&key)
            .cloned()
    }

    /// The usable endpoints of a Service of `web`: the last number of each address, in order.
    pub fn usable(&self, service: &str) -> Vec<u8> {
        let port = self.port(service);
        let usable = port.iter().flat_map(|port| port.usable.iter());
        let mut usable: Vec<u8> = usable.map(|endpoint| last_of(endpoint.address)).collect();
        usable.sort_unstable();
        usable
    }

    /// Waits until the usable endpoints of `web/shop` are these.
    pub async fn shop(&self, usable: &[u8]) {
        let what = format!("{usable:?} usable");
        eventually(&what, async || {
            self.usable("shop") == usable && self.running().is_settled()
        })
        .await;
    }

    /// The drained endpoints of `web/shop`: the last number of each address, in order.
    pub fn drained(&self) -> Vec<u8> {
        let mut drained: Vec<u8> = self
            .drains()
            .iter()
            .map(|record| last_of(record.address))
            .collect();
        drained.sort_unstable();
        drained
    }

    pub fn drains(&self) -> Vec<Record> {
        let records = self.running().admin.drains.records();
        records
            .into_iter()
            .filter(|record| record.service.service == ObjectName::new("web", "shop"))
            .collect()
    }

    pub fn errors(&self, kind: &str) -> u64 {
        self.running()
            .admin
            .metrics
            .discovery_errors
            .with_label_values(&[kind])
            .get()
    }

    /// Waits until everything that was reported so far of Services, and of these kinds, has taken
    /// effect: a barrier object that was reported later has.
    pub async fn barrier(&self, kinds: &[Kind]) {
        let number = self.barriers.get() + 1;
        self.barriers.set(number);
        let name = format!("barrier-{number}");
        let slices = kinds.contains(&Kind::Slices);
        let pods = kinds.contains(&Kind::Pods);
        assert!(slices || !pods);
        if pods {
            self.api.apply(&pod(&name));
        }
        if slices {
            self.api.apply(&slice(&name, &name, &[ready(200, &name)]));
        }
        self.api.apply(&claimed(service(&name)));
        eventually("a Service after all others", async || {
            self.port(&name).is_some()
        })
        .await;
        if slices {
            eventually("an endpoint after all others", async || {
                !self.usable(&name).is_empty()
            })
            .await;
            self.named_slices(number).await;
            if pods {
                self.api.apply(&deleting(pod(&name), &self.api, 30, 30));
                eventually("a Pod after all others", async || {
                    self.usable(&name).is_empty()
                })
                .await;
                self.api.delete(Kind::Pods, "web", &name);
            }
            self.api.delete(Kind::Slices, "web", &name);
        }
        self.api.delete(Kind::Services, "web", &name);
    }

    /// Waits until everything that was reported so far of the slices of `web/shop` has taken effect,
    /// which are watched apart. An endpoint that was never ready comes and goes for that.
    async fn named_slices(&self, number: usize) {
        if self.port("shop").is_none() {
            return;
        }
        let name = format!("barrier-of-shop-{number}");
        let unready = endpoint("10.0.0.201", Some(&name), [false, false, false]);
        self.api.apply(&slice(&name, "shop", &[unready]));
        eventually(
            "an endpoint of the named Service after all others",
            async || {
                let port = self.port("shop");
                port.is_none_or(|port| port.all.iter().any(|it| last_of(it.address) == 201))
            },
        )
        .await;
        self.api.delete(Kind::Slices, "web", &name);
    }

    /// Counts a request on the endpoint of `web/shop` with this last number, as a worker does when
    /// the request ends during the drain.
    pub fn count_request(&self, last: u8) {
        let port = self.port("shop").unwrap();
        let endpoint = port.all.iter().find(|it| last_of(it.address) == last);
        let finished = &endpoint.unwrap().tally.finished;
        finished.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        port.metrics.requests[0].inc();
    }

    pub async fn settled(&self) {
        self.barrier(&[Kind::Slices, Kind::Pods]).await;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.shutdown();
            running.shutdown();
            running.wait();
        }
        if !std::thread::panicking() {
            assert_eq!(self.api.complaints(), Vec::<String>::new());
        }
    }
}

fn last_of(address: std::net::SocketAddr) -> u8 {
    match address.ip() {
        std::net::IpAddr::V4(v4) => v4.octets()[3],
        std::net::IpAddr::V6(v6) => v6.octets()[15],
    }
}

/// A Service in `web` with port 80. Its endpoints join without a join check.
pub fn service(name: &str) -> Value {
    let mut service = manifests::service(name, json!({"ebbtide.dev/join-check": "off"}));
    service["metadata"]["uid"] = uid_of(name).into();
    service["spec"]["type"] = "NodePort".into();
    service["spec"]["selector"] = json!({"app": name});
    service["spec"]["ports"][0]["targetPort"] = 8080.into();
    service
}

pub fn claimed(mut service: Value) -> Value {
    service["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "ebbtide"});
    service
}

/// The same object in namespace `namespace`.
pub fn within(namespace: &str, mut object: Value) -> Value {
    object["metadata"]["namespace"] = namespace.into();
    object
}

/// A slice of type IPv4, whatever addresses its endpoints have.
pub fn slice(name: &str, service: &str, endpoints: &[Value]) -> Value {
    let mut slice = manifests::slice(name, service, ("", 8080), endpoints);
    slice["addressType"] = "IPv4".into();
    slice["metadata"]["uid"] = uid_of(name).into();
    slice["metadata"]["generation"] = 1.into();
    slice
}

pub fn ready(last: u8, pod: &str) -> Value {
    endpoint(&format!("10.0.0.{last}"), Some(pod), [true, true, false])
}

pub fn terminating(last: u8, pod: &str) -> Value {
    endpoint(&format!("10.0.0.{last}"), Some(pod), [false, true, true])
}

pub fn pod(name: &str) -> Value {
    let mut pod = pods::pod(name, "1");
    pod["spec"] = json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "app"}]});
    pod
}

/// A pod that is being deleted. `left` seconds of its grace remain, by the server's clock.
pub fn deleting(mut pod: Value, api: &Api, left: i64, grace: i64) -> Value {
    pod["metadata"]["deletionTimestamp"] = api.time(left).into();
    pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    pod
}

/// Service `shop` and one slice `s` of endpoints 1 to `count`, each with its Pod `p1`, ….
pub async fn shop(count: u8) -> Api {
    let api = Api::start().await;
    api.apply(&service("shop"));
    let endpoints: Vec<Value> = (1..=count).map(|n| ready(n, &format!("p{n}"))).collect();
    (1..=count).for_each(|n| api.apply(&pod(&format!("p{n}"))));
    api.apply(&slice("s", "shop", &endpoints));
    api
}
