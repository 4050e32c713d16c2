//! `deploy/monitoring` beside the program: the alerts fire as their tests say, each has its runbook, and
//! neither alerts nor dashboard name a metric or a label that the program does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use ebbtide::contract::name::ObjectName;
use ebbtide::contract::policy::Transport;
use ebbtide::observe::metrics::Metrics;
use serde_json::Value;

use super::deploy::{rendered, tool};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    let path = Path::new(ROOT).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn alerts() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&read("deploy/monitoring/alerts.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap().clone());
    let rules: Vec<Value> = rules.collect();
    assert!(rules.len() > 8, "{}", rules.len());
    rules
}

fn name(alert: &Value) -> &str {
    alert["alert"].as_str().unwrap()
}

/// All series that the program can show: each name with its labels, and each label's values.
fn series() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let metrics = Metrics::new().unwrap();
    for transport in [Transport::Tcp, Transport::Udp] {
        let port = ObjectName::new("web", "nginx").port_over(transport, 80);
        let service = metrics.service(&port);
        service.answered(200);
        service.handshakes[0].inc();
        service.grpc[0].inc();
        service.datagrams[0].inc();
    }
    metrics.discovery_errors.with_label_values(&["file"]).inc();
    metrics.gate.show("clear");
    let mut found: BTreeMap<String, BTreeMap<_, BTreeSet<_>>> = BTreeMap::new();
    for line in metrics.render().unwrap().lines() {
        if line.starts_with('#') {
            continue;
        }
        let (name, labels) = line
            .split_once('{')
            .unwrap_or((line.split(' ').next().unwrap(), ""));
        let of = found.entry(name.to_owned()).or_default();
        let labels = labels.split('}').next().unwrap();
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once('=').unwrap();
            let values = of.entry(label.to_owned()).or_default();
            values.insert(value.trim_matches('"').to_owned());
        }
    }
    found
}

/// Prometheus gives these to each series that it scrapes.
const OF_THE_SCRAPE: [&str; 2] = ["job", "instance"];

/// What an expression names that the program does not have.
fn faults(expression: &str) -> Vec<String> {
    let (known, none) = (series(), BTreeMap::new());
    let mut wrong = Vec::new();
    let mut labels = BTreeSet::from(OF_THE_SCRAPE);
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut metrics = 0;
    // Each word, with what follows it.
    let mut rest = expression;
    while let Some(begin) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let word_on = &rest[begin..];
        let end = word_on.find(|c| !is_word(c)).unwrap_or(word_on.len());
        let (word, after) = word_on.split_at(end);
        rest = after;
        let selector = after.strip_prefix('{').and_then(|it| it.split_once('}'));
        let is_metric = word.starts_with("ebbtide_") || word.starts_with("process_");
        let is_up = word == "up" && selector.is_some();
        if !is_metric && !is_up {
            // A function, a keyword or a unit.
            continue;
        }
        metrics += 1;
        let has = known.get(word).unwrap_or(&none);
        if word != "up" && !known.contains_key(word) {
            wrong.push(format!("no metric {word}"));
        }
        labels.extend(has.keys().map(String::as_str));
        let Some((selector, behind)) = selector else {
            continue;
        };
        rest = behind;
        for matcher in selector.split(", ") {
            let (label, value) = matcher.split_once(['=', '!']).unwrap();
            let value = value.trim_matches(['=', '~', '"']);
            if OF_THE_SCRAPE.contains(&label) {
                continue;
            }
            let Some(values) = has.get(label) else {
                wrong.push(format!("{word} has no label {label}"));
                continue;
            };
            // Names and ports are any; all other labels have a closed set of values.
            if value.starts_with('$') || ["namespace", "service", "port"].contains(&label) {
                continue;
            }
            for value in value.split('|').filter(|value| !values.contains(*value)) {
                wrong.push(format!("{word} is never with {label}={value}"));
            }
        }
    }
    if metrics == 0 {
        wrong.push("no metric at all".to_owned());
    }
    for list in ["by (", "on (", "group_left ("] {
        for part in expression.split(list).skip(1) {
            let names = part.split(')').next().unwrap().split(", ");
            for name in names.filter(|name| !labels.contains(name)) {
                wrong.push(format!("{list}{name}): no metric here has it"));
            }
        }
    }
    wrong
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    for (good, bad) in [
        ("ebbtide_held", "ebbtide_holds"),
        (
            "ebbtide_endpoints{state=\"draining\"}",
            "ebbtide_endpoints{state=\"drained\"}",
        ),
        (
            "ebbtide_held_total{outcome=~\"expired|refused\"}",
            "ebbtide_held_total{outcome=~\"expired|full\"}",
        ),
        (
            "sum by (namespace, service) (ebbtide_held)",
            "sum by (pod) (ebbtide_held)",
        ),
        ("up{job=\"x\"}", "up{pod=\"x\"}"),
        ("a / process_open_fds", "a / process_fds"),
        (
            "ebbtide_drain_reaction_seconds_bucket",
            "sum by (le) (ebbtide_held)",
        ),
    ] {
        assert!(faults(good).is_empty(), "{good}: {:?}", faults(good));
        assert_eq!(faults(bad).len(), 1, "{bad}: {:?}", faults(bad));
    }
}

#[test]
fn alerts_and_dashboard_name_only_what_the_program_has() {
    let mut wrong = BTreeMap::new();
    for alert in alerts() {
        let found = faults(alert["expr"].as_str().unwrap());
        wrong.insert(name(&alert).to_owned(), found);
    }
    let dashboard: Value = serde_json::from_str(&read("deploy/monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut places, mut drawn) = (BTreeSet::new(), BTreeSet::new(), 0);
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id");
        let place = panel["gridPos"].to_string();
        assert!(places.insert(place), "{title}: its place");
        for target in panel["targets"].as_array().into_iter().flatten() {
            drawn += 1;
            let found = faults(target["expr"].as_str().unwrap());
            wrong.insert(format!("panel {title}, {}", target["refId"]), found);
        }
    }
    assert!(drawn > 20, "{drawn}");
    assert_eq!(panels[0]["title"], "Rollouts", "people look there first");
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        wrong.insert(
            annotation["name"].to_string(),
            faults(annotation["expr"].as_str().unwrap()),
        );
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else {
            continue;
        };
        // label_values(SERIES, LABEL) shows the values of one label.
        let inner = query.strip_prefix("label_values(").unwrap();
        let (series, label) = inner.trim_end_matches(')').rsplit_once(", ").unwrap();
        wrong.insert(
            query.to_owned(),
            faults(&format!("sum by ({label}) ({series})")),
        );
    }
    wrong.retain(|_, found| !found.is_empty());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_alert_says_what_is_wrong_and_has_its_runbook() {
    let page = read("docs/runbooks.md");
    let mut named = BTreeSet::new();
    for alert in alerts() {
        let name = name(&alert).to_owned();
        let severity = alert["labels"]["severity"].as_str().unwrap_or_default();
        assert!(
            ["critical", "warning"].contains(&severity),
            "{name}: severity"
        );
        let summary = alert["annotations"]["summary"].as_str().unwrap_or_default();
        assert!(summary.ends_with('.'), "{name}: summary");
        let anchor = name.to_lowercase();
        assert_eq!(
            alert["annotations"]["runbook_url"],
            format!("docs/runbooks.md#{anchor}"),
            "{name}"
        );
        assert!(named.insert(name), "two alerts of one name");
    }
    let mut parts = BTreeSet::new();
    for part in page.split("\n## ").skip(1) {
        let (heading, text) = part.split_once('\n').unwrap();
        for word in ["**Cause**", "**Check**", "**Cure**"] {
            assert!(text.contains(word), "{heading} lacks {word}");
        }
        parts.insert(heading.to_owned());
    }
    assert_eq!(parts, named, "docs/runbooks.md beside the alerts");
}

#[test]
fn each_alert_fires_when_it_should_and_only_then() {
    let tests: Value = serde_saphyr::from_str(&read("deploy/monitoring/alerts_test.yaml")).unwrap();
    let (mut fires, mut rests) = (BTreeSet::new(), BTreeSet::new());
    for test in tests["tests"].as_array().unwrap() {
        let looks = test["alert_rule_test"].as_array().unwrap();
        for look in looks {
            let name = look["alertname"].as_str().unwrap();
            let expected = look["exp_alerts"].as_array().unwrap();
            let side = if expected.is_empty() {
                &mut rests
            } else {
                &mut fires
            };
            side.insert(name.to_owned());
        }
    }
    let all: BTreeSet<String> = alerts().iter().map(|it| name(it).to_owned()).collect();
    assert_eq!((&fires, &rests), (&all, &all), "each has both tests");

    for (kind, file) in [("check", "alerts.yaml"), ("test", "alerts_test.yaml")] {
        let mut promtool = Command::new("promtool");
        promtool.args([kind, "rules", file]);
        promtool.current_dir(Path::new(ROOT).join("deploy/monitoring"));
        let Ok(output) = promtool.output() else {
            return println!(
                "SKIPPED: each_alert_fires_when_it_should_and_only_then: promtool is not installed (Debian package prometheus)"
            );
        };
        assert!(output.status.success(), "{kind} {file}: {output:?}");
    }
}

/// A kustomization cannot put a file into a field, so there are two files.
#[test]
fn the_operators_rules_are_the_same() {
    let plain: Value = serde_saphyr::from_str(&read("deploy/monitoring/alerts.yaml")).unwrap();
    let rule = read("deploy/monitoring/prometheusrule.yaml");
    let rule: Value = serde_saphyr::from_str(&rule).unwrap();
    assert_eq!(rule["kind"], "PrometheusRule");
    assert!(
        rule["spec"] == plain,
        "the spec of deploy/monitoring/prometheusrule.yaml has to be what alerts.yaml says"
    );
    // Without this, `namespace` and `service` would be those of Ebbtide's own pods.
    let monitors = [
        ("deploy/kustomize/podmonitor/podmonitor.yaml", 1),
        ("deploy/helm/ebbtide/templates/monitors.yaml", 2),
    ];
    for (file, count) in monitors {
        assert_eq!(
            read(file).matches("honorLabels: true").count(),
            count,
            "{file}"
        );
    }
}

#[test]
fn the_kustomization_has_the_rules_and_the_dashboard() {
    let Some(kubectl) = tool("kubectl") else {
        return println!(
            "SKIPPED: the_kustomization_has_the_rules_and_the_dashboard: kubectl is not installed"
        );
    };
    let all = rendered(&kubectl, &["kustomize", "deploy/monitoring"]);
    let kinds: BTreeSet<&str> = all.iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ConfigMap", "PrometheusRule"].into());
    let map = all.iter().find(|it| it["kind"] == "ConfigMap").unwrap();
    let labels = &map["metadata"]["labels"];
    assert_eq!(
        labels["grafana_dashboard"], "1",
        "Grafana's sidecar looks for it"
    );
    assert_eq!(
        map["data"]["ebbtide.json"],
        read("deploy/monitoring/dashboard.json")
    );
}

/// The chart has links to the same files.
#[test]
fn the_chart_has_the_rules_and_the_dashboard_if_they_are_wanted() {
    let Some(helm) = tool("helm") else {
        return println!(
            "SKIPPED: the_chart_has_the_rules_and_the_dashboard_if_they_are_wanted: helm is not installed"
        );
    };
    let chart = [
        "template",
        "it",
        "deploy/helm/ebbtide",
        "--kube-version=1.35.0",
    ];
    let extras = |all: Vec<Value>| -> Vec<Value> {
        let is_extra =
            |it: &Value| it["kind"] == "PrometheusRule" || !it["data"]["ebbtide.json"].is_null();
        all.into_iter().filter(is_extra).collect()
    };
    assert!(extras(rendered(&helm, &chart)).is_empty());
    let on = ["--set=prometheusRule.enabled=true,dashboard.enabled=true"];
    let all = extras(rendered(&helm, &[&chart[..], &on].concat()));
    assert_eq!(all.len(), 2, "{all:?}");
    let rule = all
        .iter()
        .find(|it| it["kind"] == "PrometheusRule")
        .unwrap();
    let plain: Value = serde_saphyr::from_str(&read("deploy/monitoring/alerts.yaml")).unwrap();
    assert!(rule["spec"] == plain, "{rule}");
    let map = all.iter().find(|it| it["kind"] == "ConfigMap").unwrap();
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let shown = map["data"]["ebbtide.json"].as_str().unwrap();
    assert_eq!(
        shown.trim(),
        read("deploy/monitoring/dashboard.json").trim()
    );
}

/// `promtool` reads rules only, so each query of the dashboard becomes one.
#[test]
fn prometheus_can_read_each_query_of_the_dashboard() {
    let dashboard: Value = serde_json::from_str(&read("deploy/monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|it| it["targets"].as_array().into_iter().flatten());
    let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter();
    let rules = targets.chain(annotations).enumerate().map(|(n, it)| {
        let query = it["expr"].as_str().unwrap();
        let query = query.replace("$__rate_interval", "5m");
        serde_json::json!({"record": format!("query_{n}"), "expr": query})
    });
    let rules: Vec<Value> = rules.collect();
    assert!(rules.len() > 20, "{}", rules.len());
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    let groups = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    std::fs::write(file.path(), groups.to_string()).unwrap();
    let mut promtool = Command::new("promtool");
    let Ok(output) = promtool.args(["check", "rules"]).arg(file.path()).output() else {
        return println!(
            "SKIPPED: prometheus_can_read_each_query_of_the_dashboard: promtool is not installed (Debian package prometheus)"
        );
    };
    assert!(output.status.success(), "{output:?}");
}
