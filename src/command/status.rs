//! `ebbtide status`: reads the status and the drains of a running proxy and prints them as tables. With
//! `--watch` on a terminal they become a page that keys move (`status/watch.rs`).
//!
//! Text from the network is printed without its control characters. Formatting does no IO.

mod detail;
mod draw;
mod page;
#[cfg(test)]
mod sample;
mod spark;
mod watch;
mod words;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;

use crate::admin::report::{Drain, Drains, Status};
use crate::command::pages::Pages;
use crate::command::status::words::{doing, head, left};
use crate::text::{Columns, one_line, seconds, table};

/// Prints Services, endpoints and running drains of the proxy whose admin port is at `url`
/// (`http://HOST[:PORT]`, where the scheme may be left out). With `watch` it prints again each
/// second until it is interrupted, also while the proxy does not answer. If standard input and standard
/// output are a terminal, `watch` shows a page until `q` or Ctrl-C.
///
/// # Errors
/// A bad URL, no response, or a response that is not Ebbtide's; each error names the URL and the
/// cure. Standard output cannot be written.
pub fn status(url: &str, watch: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let pages = runtime.block_on(Pages::find(url))?;
    let at = pages.to_string();
    if !watch {
        let (status, drains) = runtime.block_on(ask(&pages))?;
        return print(&render(&at, &status, &drains, Timestamp::now()));
    }
    let start = match (io::stdout().is_terminal(), io::stdin().is_terminal()) {
        (true, true) => return watch::run(runtime, pages),
        // Nobody can press a key.
        (true, false) => CLEAR,
        (false, _) => "",
    };
    let mut away_since = None;
    loop {
        let text = match runtime.block_on(ask(&pages)) {
            Ok((status, drains)) => {
                away_since = None;
                render(&at, &status, &drains, Timestamp::now())
            }
            Err(error) => {
                let since = away_since.get_or_insert_with(Timestamp::now);
                format!("{} since {since:.0}\n", one_line(&format!("{error:#}")))
            }
        };
        print(&format!("{start}{text}\n"))?;
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Moves the cursor home and erases the terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Ends the process if the reader has closed standard output (`| head`); that is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.context("stdout"),
    }
}

async fn ask(pages: &Pages) -> anyhow::Result<(Status, Drains)> {
    Ok((
        pages.fetch("/api/v1/status").await?,
        pages.fetch("/api/v1/drains").await?,
    ))
}

fn render(at: &str, status: &Status, drains: &Drains, now: Timestamp) -> String {
    let mut text = head(at, status);
    let mut listeners = vec![row(["LISTENER", "ADDRESS", "SERVICE", "PROTOCOL", ""])];
    for l in &status.listeners {
        let bound = match &l.error {
            Some(error) => format!("not bound: {error}"),
            None if l.refuses => "refuses: no endpoint".to_owned(),
            None => String::new(),
        };
        listeners.push(row([
            &l.name,
            &l.address.to_string(),
            &format!("{}:{}", l.service, l.port),
            &l.protocol,
            &bound,
        ]));
    }
    text += &section(listeners, "no listener");

    let mut services = vec![row([
        "SERVICE",
        "ENDPOINT",
        "POD",
        "STATE",
        "IN FLIGHT",
        "IDLE",
    ])];
    for service in &status.services {
        let mut name = format!("{}/{}:{}", service.namespace, service.name, service.port);
        if service.endpoints.is_empty() {
            services.push(row([&name, "none", "", "", "", ""]));
        }
        for endpoint in &service.endpoints {
            let pod = endpoint.pod.as_deref().unwrap_or("-");
            let (in_flight, idle) = (endpoint.in_flight.to_string(), endpoint.idle.to_string());
            services.push(row([
                &name,
                &endpoint.address.to_string(),
                pod,
                &doing(endpoint, now),
                &in_flight,
                &idle,
            ]));
            name.clear();
        }
    }
    text += &section(services, "no service");

    let mut running = vec![row([
        "RUNNING DRAIN",
        "ENDPOINT",
        "POD",
        "WHY",
        "IN FLIGHT",
        "FINISHED",
        "REPLAYED",
        "ENDS",
    ])];
    for drain in &drains.running {
        running.push(row([
            &drain.service,
            &drain.address.to_string(),
            drain.pod.as_deref().unwrap_or("-"),
            &drain.trigger,
            &drain.in_flight.to_string(),
            &drain.finished.to_string(),
            &drain.replayed.to_string(),
            &left(drain.drain_deadline, now).unwrap_or_else(|| "when all is done".into()),
        ]));
    }
    text += &section(running, "no drain is running");

    let mut held = vec![row(["HELD POD", "FOR", "BY"])];
    for hold in drains.gate.iter().filter(|it| it.outcome.is_none()) {
        let time = Duration::try_from_secs_f64(hold.held_seconds).unwrap_or_default();
        held.push(row([&hold.pod, &seconds(time), &hold.by.join(", ")]));
    }
    // Most have no gate, and those who have one see a pod there for a moment.
    if held.len() > 1 {
        text += &section(held, "");
    }
    text + &last(drains.finished.first())
}

fn last(drain: Option<&Drain>) -> String {
    let Some(drain) = drain else {
        return String::new();
    };
    let ended = drain
        .ended_at
        .map_or(String::new(), |at| format!(" at {at:.0}"));
    let line = format!(
        "last drain: {} {} {}{ended}, {} finished, {} replayed, {} forced",
        drain.service,
        drain
            .pod
            .clone()
            .unwrap_or_else(|| drain.address.to_string()),
        drain.outcome.as_deref().unwrap_or("ended"),
        drain.finished,
        drain.replayed,
        drain.forced
    );
    format!("\n{}\n", one_line(&line))
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

/// A table with its heading, or the line `nothing` if there is no row below the heading.
fn section(rows: Vec<Vec<String>>, nothing: &str) -> String {
    if rows.len() > 1 {
        format!("\n{}", table(&rows, Columns::Words))
    } else {
        format!("\n{nothing}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::report::EndpointStatus;
    use crate::admin::state::State;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn endpoint(address: &str, pod: Option<&str>, state: State) -> EndpointStatus {
        EndpointStatus {
            address: address.parse().unwrap(),
            pod: pod.map(str::to_owned),
            ready: state == State::Ready,
            serving: true,
            terminating: state == State::Draining,
            in_flight: 3,
            idle: 12,
            drain_deadline: (state == State::Draining).then(|| at("2026-01-01T00:00:42.7Z")),
            state,
        }
    }

    fn sample() -> Status {
        serde_json::from_value(serde_json::json!({
            "version": "0.1.0 (1a2b3c4)", "uptimeSeconds": 3_725,
            "discovery": {"source": "files", "synced": true, "ageSeconds": 0},
            "listeners": [], "services": [],
        }))
        .unwrap()
    }

    fn none() -> Drains {
        Drains {
            running: Vec::new(),
            finished: Vec::new(),
            rollouts: Vec::new(),
            gate: Vec::new(),
        }
    }

    #[test]
    fn pods_that_the_gate_holds_are_shown_and_by_whom() {
        let hold = |pod: &str, outcome: Option<&str>| {
            serde_json::json!({"pod": pod, "startedAt": "2026-01-01T00:00:00Z", "heldSeconds": 3.2,
                "outcome": outcome, "by": ["192.0.2.2:9902: 2 in flight", "\u{1b}this instance: 1 in flight"]})
        };
        let gate = [
            hold("web/shop-1", None),
            hold("web/shop-2", Some("released")),
        ];
        let drains = serde_json::from_value(
            serde_json::json!({"running": [], "finished": [], "gate": gate}),
        )
        .unwrap();
        let place = "http://127.0.0.1:9901";
        let text = render(place, &sample(), &drains, at("2026-01-01T00:00:00Z"));
        insta::assert_snapshot!(text, @r"
        ebbtide 0.1.0 (1a2b3c4) at http://127.0.0.1:9901, up 1h 2m 5s
        source files: in order

        no listener

        no service

        no drain is running

        HELD POD    FOR  BY
        web/shop-1  3s   192.0.2.2:9902: 2 in flight,  this instance: 1 in flight
        ");
    }

    #[test]
    fn a_proxy_without_listeners_and_services_says_so() {
        let place = "http://127.0.0.1:9901";
        let text = render(place, &sample(), &none(), at("2026-01-01T00:00:00Z"));
        insta::assert_snapshot!(text, @r"
        ebbtide 0.1.0 (1a2b3c4) at http://127.0.0.1:9901, up 1h 2m 5s
        source files: in order

        no listener

        no service

        no drain is running
        ");
    }

    #[test]
    fn listeners_endpoints_and_drains_are_shown_as_tables() {
        let mut status = sample();
        status.discovery.age_seconds = 65;
        status.obstacle = Some("a firewall of this node keeps pods away".into());
        status.discovery.problems = serde_json::from_value(serde_json::json!([
            {"subject": "manifests/a.yaml", "error": "line 3: not \u{1b}[31mYAML", "since": "2026-01-01T00:00:00Z"}
        ]))
        .unwrap();
        status.listeners = serde_json::from_value(serde_json::json!([
            {"name": "web", "address": "127.0.0.1:8080", "service": "web/shop", "port": "http", "protocol": "auto"},
            {"name": "db", "address": "[::]:5432", "service": "data/postgres", "port": "5432", "protocol": "tcp",
             "error": "address in use"},
        ]))
        .unwrap();
        status.services = serde_json::from_value(serde_json::json!([
            {"namespace": "data", "name": "postgres", "port": 5432, "endpoints": []},
            {"namespace": "web", "name": "shop", "port": 80, "endpoints": [
                endpoint("10.0.0.1:8080", Some("shop-1"), State::Ready),
                endpoint("10.0.0.2:8080", None, State::Draining),
            ]},
        ]))
        .unwrap();
        let drain = serde_json::json!({
            "service": "web/shop:80", "address": "10.0.0.2:8080", "pod": null, "startedAt": "2026-01-01T00:00:12Z",
            "trigger": "podDeleted", "endedAt": null, "outcome": null, "finished": 4, "replayed": 1, "forced": 0,
            "idleClosed": 2, "inFlight": 3, "drainDeadline": "2026-01-01T00:00:42.7Z",
        });
        let mut ended = drain.clone();
        ended["endedAt"] = "2026-01-01T00:00:09Z".into();
        ended["outcome"] = "forced".into();
        let drains =
            serde_json::from_value(serde_json::json!({"running": [drain], "finished": [ended]}))
                .unwrap();
        let text = render(
            "http://[::1]:9901",
            &status,
            &drains,
            at("2026-01-01T00:00:30Z"),
        );
        insta::assert_snapshot!(text, @r"
        ebbtide 0.1.0 (1a2b3c4) at http://[::1]:9901, up 1h 2m 5s
        source files: not in order for 1m 5s, the last good table is in force
          manifests/a.yaml: line 3: not  [31mYAML
        addresses of Services: a firewall of this node keeps pods away

        LISTENER  ADDRESS         SERVICE             PROTOCOL
        web       127.0.0.1:8080  web/shop:http       auto
        db        [::]:5432       data/postgres:5432  tcp       not bound: address in use

        SERVICE             ENDPOINT       POD     STATE               IN FLIGHT  IDLE
        data/postgres:5432  none
        web/shop:80         10.0.0.1:8080  shop-1  ready               3          12
                            10.0.0.2:8080  -       draining, 12s left  3          12

        RUNNING DRAIN  ENDPOINT       POD  WHY         IN FLIGHT  FINISHED  REPLAYED  ENDS
        web/shop:80    10.0.0.2:8080  -    podDeleted  3          4         1         12s left

        last drain: web/shop:80 10.0.0.2:8080 forced at 2026-01-01T00:00:09Z, 4 finished, 1 replayed, 0 forced
        ");
    }
}
