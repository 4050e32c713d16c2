//! The access log's name of a route.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::proxy::ask::raw;
use crate::proxy::h2::app::{App, Call, Version};
use crate::proxy::ingress::add;
use crate::support::binary::BINARY;
use crate::support::folder::Folder;
use crate::support::wait::eventually;

/// Ends at drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_access_log_names_the_route_of_a_request() {
    let app = App::start(Version::H1, |call: Call| async move { call.reply.say("a") }).await;
    let folder = Folder::new();
    add(&folder, "a", app.address);
    let backend = json!({"service": {"name": "a", "port": {"number": 80}}});
    let nowhere = json!({"service": {"name": "none", "port": {"number": 80}}});
    let path = |path: &str, to: &Value| json!({"path": path, "pathType": "Prefix", "backend": to});
    let paths = [path("/a", &backend), path("/none", &nowhere)];
    folder.write(
        "ingress.json",
        &json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "all", "namespace": "web"},
            "spec": {"ingressClassName": "ebbtide", "rules": [{"http": {"paths": paths}}]},
        }),
    );
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let door: SocketAddr = free.local_addr().unwrap();
    drop(free);
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\naccessLog: json\nadmin: {{address: '127.0.0.1:0'}}\n\
         ingress: {{addresses: [127.0.0.1], httpPort: {}, httpsPort: 0}}\n",
        door.port()
    );
    let (config, log) = (
        folder.path().join("ebbtide.yaml"),
        folder.path().join("access"),
    );
    std::fs::write(&config, text).unwrap();
    let process = Command::new(BINARY)
        .args(["run", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&log).unwrap())
        .stderr(Stdio::null())
        .spawn();
    let _running = Running(process.unwrap());
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    eventually("an answer", async || {
        let open = tokio::net::TcpStream::connect(door).await.is_ok();
        open && raw(door, get("/a").as_bytes()).await.0.contains(" 200 ")
    })
    .await;
    raw(door, get("/none").as_bytes()).await;
    raw(door, get("/other").as_bytes()).await;
    let line = |target: &str| {
        let text = std::fs::read_to_string(&log).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut lines = lines.filter(|line| line["target"] == target);
        lines.next_back()
    };
    eventually("a line for each request", async || line("/other").is_some()).await;
    let route = |target: &str| line(target).unwrap()["route"].clone();
    assert_eq!(route("/a"), "Ingress web/all");
    assert_eq!(route("/none"), "Ingress web/all");
    assert_eq!(route("/other"), Value::Null);
    assert!(
        line("/a").unwrap()["listener"]
            .as_str()
            .unwrap()
            .starts_with("ingress-http@")
    );
    assert_eq!(line("/a").unwrap()["service"], "web/a:80");
}
