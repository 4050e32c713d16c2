//! What is said of each object.
//!
//! Invariant: only what differs from what an object says already is written. What other controllers say of
//! a route stays.
//!
//! Source: <https://gateway-api.sigs.k8s.io/guides/implementers/>.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::contract::name::ObjectName;
use crate::discovery::gateway::{GatewayKind, GatewayObject};
use crate::discovery::route_spec::ParentRef;
use crate::routing::gateway::conditions::{Condition, Says, conditions};
use crate::routing::gateway::doors::Ours;
use crate::routing::gateway::facts::Facts;
use crate::routing::gateway::grants::GROUP;
use crate::routing::gateway::policies::Said;

/// What is to be said of objects.
#[derive(Debug)]
pub struct Statuses<'a> {
    now: &'a str,
    /// The statuses that differ from what the objects have.
    pub differ: BTreeMap<(GatewayKind, ObjectName), Value>,
}

/// A reference of a route to a Gateway of ours.
#[derive(Debug)]
pub struct Parent<'a> {
    /// The reference.
    pub reference: &'a ParentRef,
    /// Whether the route leads its clients on.
    pub accepted: Says,
    /// Whether all that the route names can be served.
    pub resolved: Says,
}

impl<'a> Statuses<'a> {
    /// Nothing is said yet.
    pub fn new(now: &'a str) -> Self {
        Self {
            now,
            differ: BTreeMap::new(),
        }
    }

    fn say(&mut self, object: &GatewayObject, status: Value) {
        if object.status != status {
            let key = (object.kind, object.name.clone());
            self.differ.insert(key, status);
        }
    }

    fn conditions(&self, ours: &[Condition<'_>], of: &GatewayObject, before: &Value) -> Value {
        conditions(ours, of.generation, before, self.now)
    }

    /// Says what is served of a GatewayClass.
    pub fn class(&mut self, class: &GatewayObject) {
        let accepted = Condition {
            kind: "Accepted",
            reason: "Accepted",
            says: &Ok(()),
        };
        let mut status = class.status.clone();
        let before = &class.status["conditions"];
        let features = FEATURES.iter().map(|name| json!({"name": name}));
        let conditions = self.conditions(&[accepted], class, before);
        if !status.is_object() {
            status = json!({});
        }
        status["conditions"] = conditions;
        status["supportedFeatures"] = features.collect();
        self.say(class, status);
    }

    /// Says what is served of a Gateway.
    pub fn gateway(&mut self, gateway: &Ours<'_>, facts: &Facts<'_>) {
        let object = gateway.object;
        let mut served = gateway.listeners.iter();
        let some_accepted = served.clone().any(|it| it.accepted.is_ok());
        let some_served = served.any(|it| it.is_served());
        let all_fine = gateway
            .listeners
            .iter()
            .all(|it| it.accepted.is_ok() && it.resolved.is_ok());
        let accepted = match &gateway.given.accepted {
            Ok(()) if !some_accepted => Err((
                "ListenersNotValid",
                "none of its listeners can be served".to_owned(),
            )),
            other => other.clone(),
        };
        let programmed = match (&accepted, &gateway.given.programmed) {
            (Err((_, what)), _) => Err(("Invalid", what.clone())),
            (Ok(()), Err(why)) => Err(why.clone()),
            (Ok(()), Ok(())) if !some_served => {
                Err(("Invalid", "none of its listeners is served".to_owned()))
            }
            (Ok(()), Ok(())) => Ok(()),
        };
        let before = &object.status["listeners"];
        let listeners: Vec<Value> = gateway
            .listeners
            .iter()
            .map(|found| {
                let kinds = found.kinds.iter();
                let kinds: Vec<_> = kinds
                    .map(|kind| json!({"group": GROUP, "kind": kind.names().0}))
                    .collect();
                let before = before.as_array().into_iter().flatten();
                let before = before
                    .into_iter()
                    .find(|it| it["name"] == *found.spec.name)
                    .map_or(&Value::Null, |it| &it["conditions"]);
                let is_programmed = match (found.is_served(), &programmed) {
                    (true, Ok(())) => Ok(()),
                    (true, Err((_, what))) => Err(("Invalid", what.clone())),
                    (false, _) => Err(("Invalid", "it is not served".to_owned())),
                };
                let says = [
                    ("Accepted", "Accepted", &found.accepted),
                    ("Programmed", "Programmed", &is_programmed),
                    ("ResolvedRefs", "ResolvedRefs", &found.resolved),
                ];
                let says = says.map(|(kind, reason, says)| Condition { kind, reason, says });
                let mut conditions = self.conditions(&says, object, before);
                let no_conflict = found.conflict.is_ok();
                // Its polarity is negative: it holds where something is wrong.
                if let (Err((reason, what)), Some(all)) =
                    (&found.conflict, conditions.as_array_mut())
                {
                    all.retain(|it| it["type"] != "Conflicted");
                    all.push(
                        json!({"type": "Conflicted", "status": "True", "reason": reason,
                        "message": what, "observedGeneration": object.generation,
                        "lastTransitionTime": self.now}),
                    );
                }
                if let Some(all) = conditions.as_array_mut().filter(|_| no_conflict) {
                    all.retain(|it| it["type"] != "Conflicted");
                }
                json!({
                    "name": found.spec.name, "supportedKinds": kinds,
                    "attachedRoutes": found.attached, "conditions": conditions,
                })
            })
            .collect();
        let reason = if all_fine {
            "Accepted"
        } else {
            "ListenersNotValid"
        };
        let says = [
            ("Accepted", reason, &accepted),
            ("Programmed", "Programmed", &programmed),
        ];
        let says = says.map(|(kind, reason, says)| Condition { kind, reason, says });
        let addresses = match facts.settings.addresses.is_empty() {
            true => facts.node.to_vec(),
            false => gateway.given.address.into_iter().collect(),
        };
        let addresses = addresses.iter().filter(|_| programmed.is_ok());
        let addresses: Vec<_> = addresses
            .map(|it| json!({"type": "IPAddress", "value": it}))
            .collect();
        let mut status = match object.status.is_object() {
            true => object.status.clone(),
            false => json!({}),
        };
        status["conditions"] = self.conditions(&says, object, &object.status["conditions"]);
        status["listeners"] = listeners.into();
        status["addresses"] = addresses.into();
        self.say(object, status);
    }

    /// Says what is served of a route. Without a parent of ours, what was said before is taken back.
    pub fn route(&mut self, route: &GatewayObject, parents: &[Parent<'_>], facts: &Facts<'_>) {
        let controller = &facts.settings.controller;
        let before = route.status["parents"].as_array();
        let before = before.map_or(&[][..], Vec::as_slice);
        let (own, foreign): (Vec<&Value>, Vec<&Value>) = before
            .iter()
            .partition(|it| it["controllerName"] == *controller);
        if parents.is_empty() && own.is_empty() {
            return;
        }
        let ours = parents.iter().map(|parent| {
            let reference = json!(parent.reference);
            let known = own.iter().find(|it| it["parentRef"] == reference);
            let says = [
                ("Accepted", "Accepted", &parent.accepted),
                ("ResolvedRefs", "ResolvedRefs", &parent.resolved),
            ];
            let says = says.map(|(kind, reason, says)| Condition { kind, reason, says });
            let before = known.map_or(&Value::Null, |it| &it["conditions"]);
            json!({
                "parentRef": reference, "controllerName": controller,
                "conditions": self.conditions(&says, route, before),
            })
        });
        let all: Vec<Value> = foreign.into_iter().cloned().chain(ours).collect();
        self.say(route, json!({"parents": all}));
    }

    /// Says for which Gateways a policy counts. Where none reaches it, what was said before is taken back.
    pub fn policy(&mut self, said: &Said<'_>, gateways: &[Ours<'_>], facts: &Facts<'_>) {
        let controller = &facts.settings.controller;
        let object = said.object;
        let before = object.status["ancestors"].as_array();
        let before = before.map_or(&[][..], Vec::as_slice);
        let (own, foreign): (Vec<&Value>, Vec<&Value>) = before
            .iter()
            .partition(|it| it["controllerName"] == *controller);
        if said.ancestors.is_empty() && own.is_empty() {
            return;
        }
        let ours = said.ancestors.iter().map(|(place, accepted, resolved)| {
            let gateway = &gateways[*place].object.name;
            let reference = json!({"group": GROUP, "kind": "Gateway",
                "namespace": gateway.namespace, "name": gateway.name});
            let known = own.iter().find(|it| it["ancestorRef"] == reference);
            let says = [
                ("Accepted", "Accepted", accepted),
                ("ResolvedRefs", "ResolvedRefs", resolved),
            ];
            let says = says.map(|(kind, reason, says)| Condition { kind, reason, says });
            let before = known.map_or(&Value::Null, |it| &it["conditions"]);
            json!({
                "ancestorRef": reference, "controllerName": controller,
                "conditions": self.conditions(&says, object, before),
            })
        });
        let all = foreign.into_iter().cloned().chain(ours);
        let all: Vec<Value> = all.take(MOST_ANCESTORS).collect();
        self.say(object, json!({"ancestors": all}));
    }
}

/// What a status says that does not hold, or is in conflict: one text for each.
pub fn faults(status: &Value) -> Vec<String> {
    let parts = ["listeners", "parents", "ancestors"].map(|it| status[it].as_array());
    let parts = parts.into_iter().flatten().flatten();
    let mut faults = Vec::new();
    for of in std::iter::once(status).chain(parts) {
        let name = of["name"].as_str().map(|it| format!("listener {it}: "));
        for it in of["conditions"].as_array().into_iter().flatten() {
            let is_fine = (it["type"] == "Conflicted") != (it["status"] == "True");
            let text = |key: &str| it[key].as_str().unwrap_or_default().to_owned();
            if !is_fine {
                let name = name.clone().unwrap_or_default();
                faults.push(format!("{name}{}: {}", text("reason"), text("message")));
            }
        }
    }
    faults.dedup();
    faults
}

/// As many as the API server takes.
const MOST_ANCESTORS: usize = 16;
/// What is supported, in the order of the letters, as the API wants it.
const FEATURES: [&str; 38] = [
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];
