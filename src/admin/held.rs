//! The JSON about the gate: the pods that it holds and has held, and who has a pod now.
//!
//! `ebbtide wait` reads these types back, perhaps from a proxy of another version; see
//! `report.rs`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::contract::name::ObjectName;
use crate::contract::snapshot::Published;
use crate::gate::log::{Has as Leases, Hold, Holder};
use crate::gate::look::{Look, Looks, own};
use crate::text::timestamp;

/// A pod that the gate holds, or has held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// `namespace/name`.
    pub pod: String,
    /// When its call arrived.
    pub started_at: Timestamp,
    /// How long it was held, up to now.
    pub held_seconds: f64,
    /// How it ended; none while it is held.
    pub outcome: Option<String>,
    /// Who had something of it last, or did not answer.
    pub by: Vec<String>,
}

/// The response of `/api/v1/gate/NAMESPACE/POD`: what each instance has of the pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instances {
    /// This one first.
    pub instances: Vec<Has>,
}

/// What an instance has of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Has {
    /// The address of its gate; none: this instance.
    pub address: Option<String>,
    /// Whether it has answered.
    pub answers: bool,
    /// Whether it may still dispatch to the pod.
    pub open: bool,
    /// Exchanges and connections in flight.
    pub in_flight: u64,
}

impl From<Hold> for Held {
    fn from(hold: Hold) -> Self {
        let left = hold
            .holders
            .iter()
            .filter(|it| it.has.is_none_or(|has| !has.is_nothing()));
        Self {
            pod: hold.pod.to_string(),
            started_at: timestamp(hold.started_at),
            held_seconds: hold.held.as_secs_f64(),
            outcome: hold.outcome.map(|it| it.as_str().to_owned()),
            by: left.map(Holder::words).collect(),
        }
    }
}

impl From<Holder> for Has {
    fn from(Holder { peer, has }: Holder) -> Self {
        let Leases { open, in_flight } = has.unwrap_or_default();
        Self {
            address: peer.map(|it| it.to_string()),
            answers: has.is_some(),
            open,
            in_flight,
        }
    }
}

/// Asks every instance. Without a gate, this one is all that is known.
pub(super) async fn instances(
    snapshot: &Published,
    looks: Option<&Looks>,
    pod: ObjectName,
) -> Response {
    let Some(looks) = looks else {
        let this = Holder {
            peer: None,
            has: Some(own(snapshot, &pod)),
        };
        let instances = vec![this.into()];
        return Json(Instances { instances }).into_response();
    };
    let (answer, answered) = oneshot::channel();
    if looks.try_send(Look { pod, answer }).is_err() {
        let busy = "too many questions at once; ask again\n";
        return (StatusCode::SERVICE_UNAVAILABLE, busy).into_response();
    }
    match answered.await {
        Ok(found) => {
            let instances = found.into_iter().map(Has::from).collect();
            Json(Instances { instances }).into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the gate has ended\n").into_response(),
    }
}
