//! Pages for the tests of the terminal page.

use ratatui::crossterm::event::KeyCode;
use serde_json::{Value, json};

use crate::admin::report::Drain;
use crate::command::status::page::{Page, Picture};

/// A picture of a proxy with these Services, each with its requests a second.
pub(super) fn picture(services: &[(&str, u64)]) -> Picture {
    let names = services
        .iter()
        .map(|(name, _)| name.split_once('/').unwrap());
    let ports: Vec<Value> = names
        .map(|(namespace, name)| {
            json!({"namespace": namespace, "name": name, "port": 80, "endpoints": [
                endpoint("10.0.0.1:8080", "ready"), endpoint("10.0.0.2:8080", "draining")]})
        })
        .collect();
    let traffic: Vec<Value> = services
        .iter()
        .map(|(name, requests)| {
            json!({"service": name, "requests": requests, "failures": 0, "p99Ms": 12.5})
        })
        .collect();
    read(json!({
        "status": {
            "version": "0.1.0 (1a2b3c4)", "uptimeSeconds": 3_725, "services": ports, "listeners": [],
            "discovery": {"source": "files", "synced": true, "ageSeconds": 0},
        },
        "drains": {"running": [], "finished": []},
        "traffic": {"services": traffic},
    }))
}

fn read(mut all: Value) -> Picture {
    Picture {
        status: serde_json::from_value(all["status"].take()).unwrap(),
        drains: serde_json::from_value(all["drains"].take()).unwrap(),
        traffic: serde_json::from_value(all["traffic"].take()).unwrap(),
        now: "2026-01-01T00:00:30Z".parse().unwrap(),
    }
}

fn endpoint(address: &str, state: &str) -> Value {
    json!({"address": address, "pod": null, "ready": true, "serving": true, "terminating": false,
        "inFlight": 3, "idle": 12, "state": state, "drainDeadline": "2026-01-01T00:00:42.7Z"})
}

pub(super) fn drain(service: &str, outcome: Option<&str>) -> Drain {
    let ended = outcome.map(|_| "2026-01-01T00:00:20Z");
    serde_json::from_value(json!({
        "service": format!("{service}:80"), "address": "10.0.0.2:8080", "pod": "shop-2",
        "startedAt": "2026-01-01T00:00:12Z", "trigger": "podDeleted", "endedAt": ended, "outcome": outcome,
        "finished": 4, "replayed": 1, "forced": 2, "idleClosed": 2, "inFlight": 3,
        "drainDeadline": "2026-01-01T00:00:42.7Z",
    }))
    .unwrap()
}

pub(super) fn page(services: &[(&str, u64)]) -> Page {
    let mut page = Page::new("http://127.0.0.1:9901".to_owned());
    page.take(picture(services));
    page.fit_table(10);
    page
}

pub(super) fn press(page: &mut Page, keys: &[KeyCode]) {
    for &key in keys {
        assert!(!page.press(key.into()), "{key:?} ended the page");
    }
}

pub(super) fn type_text(page: &mut Page, text: &str) {
    press(page, &text.chars().map(KeyCode::Char).collect::<Vec<_>>());
}
