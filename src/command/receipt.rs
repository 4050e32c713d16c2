//! `ebbtide receipt`: prints the last rollouts of a Service, as the proxy's receipts tell them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use serde::Serialize;

use crate::admin::report::{Drains, Rollout, Status};
use crate::command::pages::Pages;
use crate::contract::name::ObjectName;
use crate::text::{Columns, near, one_line, seconds, table};

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// A table for people.
    Table,
    /// The fields of `/api/v1/drains`.
    Json,
}

/// The output as JSON.
#[derive(Serialize)]
struct Receipts<'a> {
    service: String,
    rollouts: Vec<&'a Rollout>,
}

/// The last rollouts of the Service, newest first, as text that is ready to print. `url` is the
/// admin address of one instance.
///
/// # Errors
/// A bad URL, no response, or a response that is not Ebbtide's; the instance serves no such Service.
pub fn receipt(url: &str, service: &ObjectName, form: Form) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let pages = runtime.block_on(Pages::find(url))?;
    let drains: Drains = runtime.block_on(pages.fetch("/api/v1/drains"))?;
    let name = service.to_string();
    if drains.rollouts.iter().all(|it| it.service != name) {
        let status: Status = runtime.block_on(pages.fetch("/api/v1/status"))?;
        let served = status.services.iter();
        let served = served
            .map(|it| format!("{}/{}", it.namespace, it.name))
            .collect();
        is_served(&name, &served)?;
    }
    render(&drains.rollouts, service, form)
}

/// Refuses a Service that is none of those that are served.
fn is_served(name: &str, served: &BTreeSet<String>) -> anyhow::Result<()> {
    if served.contains(name) {
        return Ok(());
    }
    let all = || served.iter().map(String::as_str);
    let own = |it: &str| it.rsplit('/').next() == name.rsplit('/').next();
    let meant = all().find(|it| own(it)).or_else(|| near(name, all()));
    let some: Vec<&str> = all().take(NAMED).collect();
    let hint = match (meant, served.len().saturating_sub(some.len())) {
        (Some(meant), _) => format!("did you mean {meant}?"),
        (None, _) if some.is_empty() => "it serves none".to_owned(),
        (None, 0) => format!("it serves {}", some.join(", ")),
        (None, more) => format!("it serves {} and {more} more", some.join(", ")),
    };
    bail!(
        "this instance serves no Service {name}; {}",
        one_line(&hint)
    )
}

/// The Services that are named where none is meant.
const NAMED: usize = 10;

fn render(rollouts: &[Rollout], service: &ObjectName, form: Form) -> anyhow::Result<String> {
    let name = service.to_string();
    let rollouts: Vec<&Rollout> = rollouts.iter().filter(|it| it.service == name).collect();
    if form == Form::Json {
        let service = name;
        let receipts = Receipts { service, rollouts };
        return Ok(serde_json::to_string_pretty(&receipts)? + "\n");
    }
    if rollouts.is_empty() {
        return Ok(format!(
            "no rollout of {name} yet; a receipt is written 15 s after the last drain\n"
        ));
    }
    let head = [
        "ENDED", "TOOK", "GONE", "COME", "REQUESTS", "FAILED", "REPLAYED", "HELD", "CUT", "KEPT",
        "LOST",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(rollouts.iter().map(|it| row(it)));
    let mut text = table(&rows, Columns::Numbers);
    for rollout in rollouts.iter().filter(|it| !it.routes.is_empty()) {
        let routes = one_line(&rollout.routes.join(", "));
        writeln!(text, "routes at {:.0}: {routes}", rollout.ended_at)?;
    }
    Ok(text)
}

fn row(rollout: &Rollout) -> Vec<String> {
    let Rollout {
        started_at,
        ended_at,
        ..
    } = rollout;
    let numbers = [
        u64::from(rollout.pods_gone),
        u64::from(rollout.pods_come),
        rollout.requests,
        rollout.failures,
        rollout.replayed,
        rollout.held,
        rollout.forced,
        rollout.connections_kept,
        rollout.connections_lost,
    ];
    let head = [format!("{ended_at:.0}"), took(*started_at, *ended_at)];
    let numbers = numbers.iter().map(u64::to_string);
    head.into_iter().chain(numbers).collect()
}

fn took(from: Timestamp, to: Timestamp) -> String {
    seconds(Duration::try_from(to.duration_since(from)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollouts() -> Vec<Rollout> {
        let rollout = |service: &str, requests: u64| {
            serde_json::from_value(serde_json::json!({
                "service": service, "startedAt": "2026-01-01T00:00:00Z", "endedAt": "2026-01-01T00:01:05Z",
                "podsGone": 3, "podsCome": 4, "requests": requests, "failures": 0, "replayed": 2, "held": 1,
                "forced": 0, "connectionsKept": 8, "connectionsLost": 0, "sessionsKept": 0, "sessionsMoved": 0,
                "datagramsRefused": 0, "datagramsLost": 0, "routes": ["HTTPRoute web/\u{1b}[31mshop"],
            }))
            .unwrap()
        };
        vec![rollout("web/shop", 12_345), rollout("web/shop-2", 7)]
    }

    #[test]
    fn the_rollouts_of_one_service_are_a_table() {
        let shop = ObjectName::new("web", "shop");
        let text = render(&rollouts(), &shop, Form::Table).unwrap();
        insta::assert_snapshot!(text, @r"
        ENDED                   TOOK   GONE   COME   REQUESTS   FAILED   REPLAYED   HELD   CUT   KEPT   LOST
        2026-01-01T00:01:05Z   1m 5s      3      4      12345        0          2      1     0      8      0
        routes at 2026-01-01T00:01:05Z: HTTPRoute web/ [31mshop
        ");
        let none = render(&rollouts(), &ObjectName::new("web", "sho"), Form::Table).unwrap();
        assert!(none.starts_with("no rollout of web/sho yet"), "{none}");
    }

    #[test]
    fn a_service_that_is_not_served_is_refused_and_one_that_is_near_is_named() {
        let served = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
        let said = |name: &str, names: &[&str]| {
            is_served(name, &served(names)).map_err(|error| error.to_string())
        };
        assert_eq!(said("web/shop", &["web/shop"]), Ok(()));
        for (name, names, hint) in [
            (
                "web/shpo",
                &["web/cart", "web/shop"][..],
                "; did you mean web/shop?",
            ),
            ("shop/shop", &["web/shop"], "; did you mean web/shop?"),
            (
                "web/other",
                &["web/cart", "web/shop"],
                "; it serves web/cart, web/shop",
            ),
            ("web/shop", &[], "; it serves none"),
        ] {
            let error = said(name, names).unwrap_err();
            assert!(
                error.ends_with(&format!("no Service {name}{hint}")),
                "{error}"
            );
        }
        let many: Vec<String> = (0..13).map(|n| format!("web/a-long-name-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(said("web/x", &many).unwrap_err().ends_with(" and 3 more"));
    }

    #[test]
    fn the_json_has_the_fields_of_the_admin_api() {
        let shop = ObjectName::new("web", "shop");
        let text = render(&rollouts(), &shop, Form::Json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["service"], "web/shop");
        assert_eq!(
            json["rollouts"][0],
            serde_json::to_value(&rollouts()[0]).unwrap()
        );
        assert_eq!(json["rollouts"].as_array().unwrap().len(), 1);
        let none = render(&[], &shop, Form::Json).unwrap();
        assert!(none.contains("\"rollouts\": []"), "{none}");
    }
}
