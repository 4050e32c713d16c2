//! Nodes whose clients do not reach a claimed Service: kube-proxy has let go of it on every node, and
//! no Ebbtide is ready there, or a firewall stands before it.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use crate::cluster::event::{CONTROLLER, Reason};
use crate::text::one_line;

/// Warns of such nodes. Who may not list nodes and pods gets no warning: the proxy does not need these
/// rights.
///
/// # Errors
/// The API server's, except a refusal.
pub(super) async fn unserved(client: &Client) -> kube::Result<Vec<String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::all(client.clone());
    let (all, ours) = (ListParams::default(), ListParams::default().labels(OURS));
    let (nodes, pods) = match tokio::try_join!(nodes.list(&all), pods.list(&ours)) {
        Ok((nodes, pods)) => (nodes.items, pods.items),
        Err(kube::Error::Api(status)) if status.code == 403 => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // A node that is not ready serves nobody anyway.
    let is_up = |node: &&Node| {
        let conditions = node
            .status
            .iter()
            .flat_map(|it| it.conditions.iter().flatten());
        says_ready(conditions.map(|it| (&*it.type_, &*it.status)))
    };
    let names: Vec<String> = nodes
        .iter()
        .filter(is_up)
        .map(ResourceExt::name_any)
        .collect();
    let mut found = warnings(&names, &pods);
    found.extend(blocked(&names, &events(client).await?));
    Ok(found)
}

/// The Events by which an Ebbtide says that clients of its node are kept away. The API server keeps
/// them for an hour by default.
async fn events(client: &Client) -> kube::Result<Vec<Event>> {
    let of_nodes: Api<Event> = Api::namespaced(client.clone(), "default");
    let reason = format!("reason={}", Reason::ClientsBlocked.as_str());
    match of_nodes.list(&ListParams::default().fields(&reason)).await {
        Ok(events) => Ok(events.items),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn blocked(nodes: &[String], events: &[Event]) -> Vec<String> {
    let mut by_node = BTreeMap::new();
    for event in events {
        let node = event.regarding.as_ref().and_then(|it| it.name.as_deref());
        let is_ours = event.reporting_controller.as_deref() == Some(CONTROLLER);
        if let Some(node) = node.filter(|it| is_ours && nodes.iter().any(|node| node == it)) {
            by_node.insert(node, event);
        }
    }
    let shown = by_node.iter().take(SHOWN).map(|(node, event)| {
        let at = event
            .event_time
            .as_ref()
            .map(|it| format!(" at {:.0}", it.0));
        let at = at.unwrap_or_default();
        let note = one_line(event.note.as_deref().unwrap_or_default());
        format!("node {node} reported{at}: {note}")
    });
    let more = by_node.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("{more} more nodes reported the like"));
    shown.chain(more).collect()
}

fn warnings(nodes: &[String], pods: &[Pod]) -> Vec<String> {
    if pods.is_empty() {
        return vec![format!(
            "no Ebbtide runs in this cluster (no pod has the label {OURS}), and kube-proxy lets go of what is \
             claimed; deploy it before you claim"
        )];
    }
    let mut by_node: HashMap<&str, Vec<&Pod>> = HashMap::new();
    for pod in pods {
        let node = pod.spec.as_ref().and_then(|it| it.node_name.as_deref());
        by_node
            .entry(node.unwrap_or_default())
            .or_default()
            .push(pod);
    }
    let unserved = nodes.iter().filter_map(|node| {
        let here = by_node.get(node.as_str()).map_or(&[][..], Vec::as_slice);
        let why = match here {
            [] => "no pod of Ebbtide is there; does the DaemonSet tolerate its taints?".to_owned(),
            pods if pods.iter().any(|pod| is_ready(pod)) => return None,
            [pod, ..] => format!("{} is not ready: {}", pod.name_any(), reason(pod)),
        };
        Some((node, why))
    });
    let unserved: Vec<_> = unserved.collect();
    let shown = unserved.iter().take(SHOWN).map(|(node, why)| {
        format!("node {node}: its clients do not reach claimed Services: {why}")
    });
    let more = unserved.len().saturating_sub(SHOWN);
    let more = (more > 0)
        .then(|| format!("{more} more nodes whose clients do not reach claimed Services"));
    shown.chain(more).collect()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|it| it.conditions.iter().flatten());
    says_ready(conditions.map(|it| (&*it.type_, &*it.status)))
}

fn says_ready<'a>(mut conditions: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
    conditions.any(|it| it == ("Ready", "True"))
}

/// What the kubelet says of the first container that is not ready.
fn reason(pod: &Pod) -> String {
    let containers = pod
        .status
        .iter()
        .flat_map(|it| it.container_statuses.iter().flatten());
    let Some(container) = containers.clone().find(|it| !it.ready) else {
        return "the kubelet says nothing of it yet".to_owned();
    };
    let state = container.state.clone().unwrap_or_default();
    let waits = state.waiting.map(|it| (it.reason, it.message));
    let ended = state.terminated.map(|it| (it.reason, it.message));
    let said = waits.or(ended).map(|(reason, message)| {
        let both = reason.into_iter().chain(message);
        both.collect::<Vec<_>>().join(": ")
    });
    let said = said.unwrap_or_else(|| "it runs, and /readyz says why it is not ready".to_owned());
    format!("container {}: {}", container.name, one_line(&said))
}

/// The label of Ebbtide's pods in `deploy/`.
const OURS: &str = "app.kubernetes.io/name=ebbtide";
/// Many nodes have one cause.
const SHOWN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(node: &str, ready: bool, state: Value) -> Pod {
        let status = json!({
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            "containerStatuses": [
                {"name": "ebbtide", "ready": true, "image": "", "imageID": "", "restartCount": 0},
                {"name": "net", "ready": ready, "image": "", "imageID": "", "restartCount": 0, "state": state},
            ],
        });
        let pod = json!({"metadata": {"name": format!("ebbtide-{node}")}, "spec": {"nodeName": node, "containers": []}, "status": status});
        serde_json::from_value(pod).unwrap()
    }

    fn nodes(count: usize) -> Vec<String> {
        (1..=count).map(|n| format!("n{n}")).collect()
    }

    #[test]
    fn a_node_without_a_ready_ebbtide_is_named_with_the_reason() {
        let crash = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off\n40s"}});
        let pods = [
            pod("n1", true, json!({})),
            // A surge: one of two is enough.
            pod("n2", false, json!({})),
            pod("n2", true, json!({})),
            pod("n3", false, crash),
            pod("n4", false, json!({"running": {}})),
        ];
        let found = warnings(&nodes(5), &pods);
        let expected = [
            "node n3: its clients do not reach claimed Services: ebbtide-n3 is not ready: container net: \
             CrashLoopBackOff: back-off 40s",
            "node n4: its clients do not reach claimed Services: ebbtide-n4 is not ready: container net: it runs, \
             and /readyz says why it is not ready",
            "node n5: its clients do not reach claimed Services: no pod of Ebbtide is there; does the DaemonSet \
             tolerate its taints?",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_node_whose_firewall_keeps_clients_away_is_named_as_its_ebbtide_says_it() {
        let event = |node: &str, controller: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {"name": "e", "namespace": "default"}, "note": "a firewall\nof this node",
                "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": controller,
                "regarding": {"kind": "Node", "name": node},
            }))
            .unwrap()
        };
        let events = [
            event("n1", CONTROLLER),
            event("n2", "other"),
            event("gone", CONTROLLER),
        ];
        let expected = "node n1 reported at 2026-01-01T00:00:00Z: a firewall of this node";
        assert_eq!(blocked(&nodes(2), &events), [expected]);
        let many: Vec<Event> = nodes(9)
            .iter()
            .map(|node| event(node, CONTROLLER))
            .collect();
        let found = blocked(&nodes(9), &many);
        assert_eq!(found.len(), SHOWN + 1);
        assert_eq!(found[SHOWN], "4 more nodes reported the like");
    }

    #[test]
    fn many_nodes_are_counted_and_no_ebbtide_at_all_is_one_warning() {
        let found = warnings(&nodes(1_000), &[pod("n1", true, json!({}))]);
        assert_eq!(found.len(), SHOWN + 1);
        assert_eq!(
            found[SHOWN],
            "994 more nodes whose clients do not reach claimed Services"
        );
        let found = warnings(&nodes(3), &[]);
        assert!(found.len() == 1 && found[0].starts_with("no Ebbtide runs in this cluster"));
    }
}
