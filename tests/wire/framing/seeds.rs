//! The seeds of the fuzz targets: the tables of requests and responses, with manifests and
//! configurations from the repository. `fuzz/run.sh` takes them from here. The test fails if a
//! target would have too few.

use std::path::{Path, PathBuf};

use super::{requests, responses};

/// A folder within the build's folder.
pub fn folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"))
        .join("fuzz-seeds")
}

#[test]
fn the_tables_are_the_fuzz_targets_seeds() {
    let folder = folder();
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    let mut put = |target: &'static str, parts: &[&[u8]]| {
        let count = counts.entry(target).or_default();
        *count += 1;
        std::fs::create_dir_all(folder.join(target)).unwrap();
        std::fs::write(
            folder.join(target).join(format!("seed-{count}")),
            parts.concat(),
        )
        .unwrap();
    };
    for case in requests::cases()
        .iter()
        .filter(|case| case.input.len() < 1024)
    {
        // The first byte selects the target's options: here, the listener that allows CONNECT.
        put(
            "request",
            &[&[if case.connect { 4 } else { 0 }], &case.input],
        );
        put("detection", &[&case.input]);
        let chunked = b"Transfer-Encoding: chunked\r\n\r\n";
        if let Some(at) = case
            .input
            .windows(chunked.len())
            .position(|part| part == chunked)
        {
            put("chunks", &[&[3], &case.input[at + chunked.len()..]]);
        }
    }
    for case in responses::cases()
        .iter()
        .filter(|case| case.input.len() < 1024)
    {
        let flags = match case.ask {
            responses::Ask::Get | responses::Ask::Upgrade => 0,
            responses::Ask::Head => 1,
            responses::Ask::Post => 2,
            responses::Ask::Connect => 3,
            responses::Ask::Old => 4,
        };
        put("response", &[&[flags], &case.input]);
    }
    for part in ["config", "tests/fixtures/config", "deploy"] {
        for text in texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join(part)) {
            put("config", &[&text]);
            put("manifest", &[&text]);
        }
    }
    for (flags, text) in HTTP2 {
        put("http2", &[&[flags], text.as_bytes()]);
    }
    for manifest in MANIFESTS {
        put("manifest", &[manifest.as_bytes()]);
    }
    for target in [
        "request",
        "response",
        "http2",
        "chunks",
        "detection",
        "config",
        "manifest",
    ] {
        assert!(counts[target] >= 10, "{target}: {counts:?}");
    }
}

/// Every small text file under `folder`.
fn texts(folder: &Path) -> Vec<Vec<u8>> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(self::texts(&path));
        } else {
            let text = std::fs::read(&path).unwrap();
            if text.len() < 6 << 10 {
                texts.push(text);
            }
        }
    }
    texts
}

/// Options, and requests of HTTP/2 as the target reads them.
const HTTP2: [(u8, &str); 12] = [
    (2, "GET / a.example\naccept: */*"),
    (0, "POST /x?y=1 a.example:8080\ncontent-length: 5"),
    (
        0,
        "POST /svc/Call a\nte: trailers\ncontent-type: application/grpc",
    ),
    (2, "GET / a\ncookie: a=1\nx: 1\ncookie: b=2"),
    (2, "GET / a\nhost: b"),
    (2, "GET / a\nhost: A"),
    (0, "CONNECT / a:443"),
    (1, "CONNECT /chat a:80\nsec-websocket-version: 13"),
    (
        6,
        "PUT /a%20b [::1]\nx-forwarded-for: 10.0.0.1\nforwarded: for=x",
    ),
    (0, "POST / a\ncontent-length: 5\ncontent-length: 6"),
    (
        0,
        "POST / a\ntransfer-encoding: chunked\nconnection: x\nx: 1",
    ),
    (2, "OPTIONS * a\nexpect: 100-continue\nidempotency-key: k"),
];

const MANIFESTS: &[&str] = &[
    r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "web", "name": "shop", "uid": "u",
"labels": {"service.kubernetes.io/service-proxy-name": "ebbtide"}, "annotations": {"ebbtide.dev/protocol": "http"}},
"spec": {"type": "NodePort", "ipFamilies": ["IPv6"], "ports": [{"name": "a", "port": 80, "nodePort": 30080, "targetPort": "x"}]}}"#,
    r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"namespace": "web", "name": "shop-1",
"generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"kubernetes.io/service-name": "shop"}},
"addressType": "IPv4", "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}],
"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": null, "terminating": false},
"targetRef": {"kind": "Pod", "namespace": "web", "name": "p", "uid": "v"}}]}"#,
    r#"{"kind": "List", "apiVersion": "v1", "items": [{"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "web",
"name": "p", "uid": "v", "deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30,
"labels": {"pod-template-hash": "h"}}, "spec": {"terminationGracePeriodSeconds": 5}}]}"#,
    "kind: PodList\napiVersion: v1\nitems:\n- metadata: {namespace: web, name: p, uid: w}\n---\n# nothing\n---\nkind: Secret\n",
];
