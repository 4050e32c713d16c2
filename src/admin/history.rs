//! The JSON of `/api/v1/history`: what the rings of [`crate::observe::history`] hold, with the
//! drains, the gate's holds and the start of this process as spans and marks beside them.
//!
//! The commands and the page read it back; see `report.rs` for what may change.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::admin::held::Held;
use crate::admin::report::{Admin, Drain, Drains};
use crate::config::value;
use crate::contract::name::ObjectName;
use crate::observe::ring::{Second, WINDOW};
use crate::text::timestamp;

/// The question of `/api/v1/history`.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    /// `namespace/name`; none: the last second of all Services with traffic.
    service: Option<String>,
}

/// The last 15 minutes of a Service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// `namespace/name`.
    pub service: String,
    /// When the last second ended.
    pub end: Timestamp,
    /// The requests of each generation of pods.
    pub generations: Vec<Generation>,
    /// Requests that Ebbtide had to fail, for each second.
    pub failures: Vec<u32>,
    /// Requests that were replayed.
    pub replayed: Vec<u32>,
    /// Requests and connections that began to be held.
    pub held: Vec<u32>,
    /// The median of the response times in milliseconds; none: no response.
    pub p50_ms: Vec<Option<f64>>,
    /// The 99th percentile.
    pub p99_ms: Vec<Option<f64>>,
    /// The drains of the time, running ones first.
    pub drains: Vec<Drain>,
    /// The gate's holds of the time.
    pub gate: Vec<Held>,
    /// When processes of Ebbtide started in the time: this one, if it did.
    pub restarts: Vec<Timestamp>,
}

/// What the pods of one generation got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Generation {
    /// The pods' `pod-template-hash`; empty: they have none.
    pub name: String,
    /// Requests and TCP connections that were sent to them, for each second.
    pub requests: Vec<u32>,
}

/// The last second of all Services with traffic in the last 15 minutes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// One entry for each, by name.
    pub services: Vec<Latest>,
}

/// The last second of one Service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Latest {
    /// `namespace/name`.
    pub service: String,
    /// Requests and TCP connections that were sent to its pods.
    pub requests: u64,
    /// Requests that Ebbtide had to fail.
    pub failures: u32,
    /// The 99th percentile of the response times in milliseconds; none: no response.
    pub p99_ms: Option<f64>,
}

/// Answers the question.
pub(super) fn answer(admin: &Admin, wanted: Wanted) -> Response {
    let Some(text) = wanted.service else {
        return Json(Traffic::of(admin)).into_response();
    };
    let Ok(service) = value::service(&text) else {
        let what = "service: expected NAMESPACE/NAME\n";
        return (StatusCode::BAD_REQUEST, what).into_response();
    };
    match History::of(admin, &service) {
        Some(history) => Json(history).into_response(),
        None => {
            let what = "service: no Service of this name is served here\n";
            (StatusCode::NOT_FOUND, what).into_response()
        }
    }
}

impl Traffic {
    fn of(admin: &Admin) -> Self {
        let services = admin.history.last_seconds().into_iter();
        let services = services.map(|(service, requests, last)| Latest {
            service: service.to_string(),
            requests,
            failures: last.failures,
            p99_ms: last.latency.map(|[_, p99]| milliseconds(p99)),
        });
        Self {
            services: services.collect(),
        }
    }
}

impl History {
    /// `None`: the Service has no port in the table and had no traffic.
    fn of(admin: &Admin, service: &ObjectName) -> Option<Self> {
        let ports = admin.snapshot.ports_of(service);
        let series = admin.history.of(service);
        if ports.is_empty() && series.is_none() {
            return None;
        }
        let (end, generations, seconds) = series.map_or_else(
            || (SystemTime::now(), Vec::new(), Vec::new()),
            |it| (it.end, it.generations, it.seconds),
        );
        let end = timestamp(end);
        let since = end - Duration::from_secs(WINDOW as u64);
        let prefix = format!("{service}:");
        let Drains {
            running,
            finished,
            gate,
            ..
        } = Drains::of(admin);
        let drains = running.into_iter().chain(finished).filter(|drain| {
            drain.service.starts_with(&prefix) && drain.ended_at.is_none_or(|at| at >= since)
        });
        let drains: Vec<Drain> = drains.collect();
        let endpoints = ports.iter().flat_map(|port| port.all.iter());
        let pods = endpoints.filter_map(|it| it.pod.as_ref().map(|pod| pod.name.as_str()));
        let gone = drains.iter().filter_map(|drain| drain.pod.as_deref());
        let pods: HashSet<String> = pods
            .chain(gone)
            .map(|pod| format!("{}/{pod}", service.namespace))
            .collect();
        let gate = gate
            .into_iter()
            .filter(|it| pods.contains(&it.pod) && it.started_at >= since);
        let started = timestamp(SystemTime::now()) - admin.started.elapsed();
        let count = |number: fn(&Second) -> u32| seconds.iter().map(number).collect();
        let latency = |place: usize| {
            let all = seconds.iter();
            all.map(|it| it.latency.map(|it| milliseconds(it[place])))
                .collect()
        };
        Some(Self {
            service: service.to_string(),
            end,
            failures: count(|it| it.failures),
            replayed: count(|it| it.replayed),
            held: count(|it| it.held),
            p50_ms: latency(0),
            p99_ms: latency(1),
            gate: gate.collect(),
            restarts: Some(started)
                .filter(|at| *at >= since)
                .into_iter()
                .collect(),
            drains,
            generations: generations
                .into_iter()
                .map(|(name, requests)| Generation {
                    name: name.to_string(),
                    requests,
                })
                .collect(),
        })
    }
}

/// Milliseconds with three digits that count: the ring keeps no more.
fn milliseconds(seconds: f64) -> f64 {
    let ms = seconds * 1e3;
    let scale = 10f64.powf(2.0 - ms.max(1e-3).log10().floor());
    (ms * scale).round() / scale
}
