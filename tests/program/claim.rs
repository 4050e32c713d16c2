//! `ebbtide check --claim`: what a claim of a Service would change, before it is claimed.

use std::process::Command;

use serde_json::json;

use crate::support::binary::BINARY;

/// The exit code and both outputs of a check of one unclaimed Service.
fn check(services: &str, claim: &str) -> (Option<i32>, String, String) {
    check_all(services, Some(claim))
}

/// The same without `--claim`, if there is none.
fn check_all(services: &str, claim: Option<&str>) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "web", "name": "shop"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalIPs": ["203.0.113.9"],
            "loadBalancerSourceRanges": ["10.0.0.0/8"], "trafficDistribution": "PreferClose",
            "ports": [
                {"name": "web", "port": 80, "nodePort": 30080},
                {"name": "voice", "port": 5060, "protocol": "SCTP"},
            ],
        },
    });
    std::fs::write(manifests.join("service.json"), service.to_string()).unwrap();
    let config = format!(
        "discovery: {{files: {{path: manifests}}}}\nnodePorts: {{addresses: [0.0.0.0]}}\n{services}"
    );
    std::fs::write(folder.path().join("ebbtide.yaml"), config).unwrap();
    let output = Command::new(BINARY)
        .args(["check", "--config"])
        .arg(folder.path().join("ebbtide.yaml"))
        .args(claim.map(|claim| ["--claim", claim]).into_iter().flatten())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_claim_shows_what_would_be_served_and_what_would_be_lost() {
    let on = "services: {addresses: on, nodeAddresses: [192.0.2.1]}";
    let (code, out, err) = check(on, "web/shop");
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let row = |name: &str, address: &str| {
        let mut lines = out.lines();
        lines.any(|line| line.split_whitespace().take(2).eq([name, address]))
    };
    assert!(row("(nodePort)", "0.0.0.0:30080"), "{out}");
    assert!(row("(address)", "10.96.0.7:80"), "{out}");
    assert!(row("(address)", "203.0.113.9:80"), "{out}");
    let lost = |out: &str| -> Vec<String> {
        let warnings = out
            .lines()
            .filter(|line| line.contains("is not served, and"));
        let fields = warnings.map(|line| line.split(": ").nth(2).unwrap().to_owned());
        fields.collect()
    };
    assert_eq!(lost(&out), ["spec.ports[1].protocol"]);

    let (_, out, _) = check("", "web/shop");
    let all = [
        "spec.ports[1].protocol",
        "spec.clusterIP",
        "spec.externalIPs",
        "spec.loadBalancerSourceRanges",
    ];
    assert_eq!(lost(&out), all);
    assert!(!out.contains("(address)"), "{out}");
}

#[test]
fn with_all_a_service_needs_no_label() {
    let (code, out, err) = check("services: {claim: all}", "web/shop");
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let own = "services.claim: all claims the cluster IPs of all Services, and nobody serves them";
    assert!(out.contains(own), "{out}");
    let all = "services: {claim: all, addresses: on, nodeAddresses: [192.0.2.1]}";
    let (code, out, err) = check_all(all, None);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(
        out.contains("10.96.0.7:80") && out.contains("0.0.0.0:30080"),
        "{out}"
    );
    assert!(!out.contains(own));
    let lost = "web/shop: spec.ports[1].protocol: SCTP is not served\n";
    assert!(out.contains(lost), "there is no kube-proxy: {out}");
    let (_, out, _) = check_all("services: {proxyName: edge}", None);
    assert!(!out.contains("30080"), "{out}");
}

#[test]
fn a_service_that_does_not_exist_cannot_be_claimed() {
    let (code, _, err) = check("", "web/shoop");
    assert_eq!(code, Some(2));
    assert!(
        err.contains("--claim: there is no Service web/shoop"),
        "{err}"
    );
    let (code, _, err) = check("", "shop");
    assert_eq!(code, Some(2));
    assert!(err.contains("expected namespace/name"), "{err}");
}
