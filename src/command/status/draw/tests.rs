use std::sync::Arc;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;
use ratatui::style::Modifier;
use serde_json::{Value, json};

use super::*;
use crate::command::status::sample::{drain, page, picture, press, type_text};

fn terminal(page: &mut Page, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, page)).unwrap();
    terminal
}

fn drawn(page: &mut Page, width: u16, height: u16) -> String {
    let text = terminal(page, width, height).backend().to_string();
    let lines = text.lines().map(|line| line.trim_matches('"').trim_end());
    lines.map(|line| format!("{line}\n")).collect()
}

/// A minute in which the load rose, with three failures.
fn history(service: &str) -> Arc<History> {
    let seconds = |number: fn(u64) -> Value| (0..60).map(number).collect::<Vec<_>>();
    let history = serde_json::from_value(json!({
        "service": service, "end": "2026-01-01T00:00:30Z",
        "generations": [{"name": "a", "requests": seconds(|it| json!(it * 20))},
            {"name": "b", "requests": seconds(|it| json!(60 - it))}],
        "failures": seconds(|it| json!(if it > 56 { 1 } else { 0 })),
        "replayed": seconds(|it| json!(it % 2)), "held": seconds(|_| json!(0)),
        "p50Ms": seconds(|_| json!(1.0)), "p99Ms": seconds(|it| if it == 9 { json!(null) } else { json!(12.5) }),
        "drains": [], "gate": [], "restarts": [],
    }));
    Arc::new(history.unwrap())
}

fn shop() -> Page {
    let mut page = page(&[("data/postgres", 0), ("web/shop", 1_200)]);
    let mut now = picture(&[("data/postgres", 0), ("web/shop", 1_200)]);
    now.drains.running = vec![drain("web/shop", None)];
    now.drains.finished = vec![
        drain("web/shop", Some("forced")),
        drain("web/shop2", Some("drained")),
    ];
    page.take(now);
    page.histories
        .insert("web/shop".to_owned(), history("web/shop"));
    page
}

#[test]
fn the_table_has_a_row_for_each_service() {
    insta::assert_snapshot!(drawn(&mut shop(), 130, 8), @r"
    ebbtide 0.1.0 (1a2b3c4) at http://127.0.0.1:9901, up 1h 2m 5s
    source files: in order
    SERVICE                   REQ/S   FAILED  REPLAYED     HELD       P99     USABLE  DRAINS                              REQ/S, 5 MIN
    data/postgres                 0                               12.5 ms        1/2       0
    web/shop                  1,200        3        30        0   12.5 ms        1/2       1           ▁▁▁▂▂▂▂▃▃▃▃▄▄▄▅▅▅▅▆▆▆▆▇▇▇▇█████


    2 Services, by name  s order  / filter  Enter detail  q end
    ");
}

#[test]
fn a_narrow_terminal_leaves_columns_out() {
    insta::assert_snapshot!(drawn(&mut shop(), 60, 6), @r"
    ebbtide 0.1.0 (1a2b3c4) at http://127.0.0.1:9901, up 1h 2m 5
    source files: in order
    SERVICE                    REQ/S   FAILED     USABLE  DRAINS
    data/postgres                  0                 1/2       0
    web/shop                   1,200        3        1/2       1
    2 Services, by name  s order  / filter  Enter detail  q end
    ");
}

#[test]
fn the_detail_shows_charts_endpoints_and_drains_of_its_service_alone() {
    let mut page = shop();
    press(&mut page, &[KeyCode::Down, KeyCode::Enter]);
    insta::assert_snapshot!(drawn(&mut page, 100, 24), @r"
    ebbtide 0.1.0 (1a2b3c4) at http://127.0.0.1:9901, up 1h 2m 5s
    source files: in order
    web/shop
    requests/s 1,181, most 1,181      failures 1, most 1                p99 12.5 ms, most 12.5 ms
                          ▁▂▂▃▄▅▆▆▇█                                ██   ███████████████████████████████
                ▁▂▃▄▄▅▆▇▇███████████                                ██   ███████████████████████████████
     ▁▁▂▃▄▅▅▆▇██████████████████████                                ██   ███████████████████████████████

    ENDPOINT       POD  PORT  STATE               IN FLIGHT  IDLE
    10.0.0.1:8080  -    80    ready               3          12
    10.0.0.2:8080  -    80    draining, 12s left  3          12

    DRAIN           ENDPOINT       POD     BEGAN                 FINISHED  REPLAYED  CUT
    runs, 12s left  10.0.0.2:8080  shop-2  2026-01-01T00:00:12Z  4         1         2
    forced          10.0.0.2:8080  shop-2  2026-01-01T00:00:12Z  4         1         2








    Esc back  ↑↓ move  q end
    ");
}

#[test]
fn what_is_wrong_stands_above_and_never_takes_the_whole_screen() {
    let mut page = shop();
    let status = &mut page.picture.as_mut().unwrap().status;
    let problem = |it: u32| json!({"subject": format!("{it}.yaml"), "error": "no\n\u{1b}[31mYAML", "since": "2026-01-01T00:00:00Z"});
    status.discovery.problems = serde_json::from_value((0..40).map(problem).collect()).unwrap();
    page.lose(
        "2026-01-01T00:01:00Z".parse().unwrap(),
        "refused\u{7}".to_owned(),
    );
    insta::assert_snapshot!(drawn(&mut page, 90, 15), @r"
    away since 2026-01-01T00:01:00Z: refused
    ebbtide 0.1.0 (1a2b3c4) at http://127.0.0.1:9901, up 1h 2m 5s
    source files: not in order for 0s, the last good table is in force
      0.yaml: no  [31mYAML
      and 39 lines more: ebbtide status
    SERVICE                     REQ/S   FAILED  REPLAYED     HELD       P99     USABLE  DRAINS
    data/postgres                   0                               12.5 ms        1/2       0
    web/shop                    1,200        3        30        0   12.5 ms        1/2       1






    2 Services, by name  s order  / filter  Enter detail  q end
    ");
}

#[test]
fn no_control_character_reaches_the_screen() {
    let evil = "web/s\u{1b}[2Jh\u{9b}o\rp";
    let mut page = page(&[(evil, 1)]);
    page.place = "http://\u{1b}host".to_owned();
    page.filter = "\u{1b}".to_owned();
    let mut now = picture(&[(evil, 1)]);
    now.status.listeners =
        serde_json::from_value(json!([{"name": "a\u{1b}", "address": "127.0.0.1:1",
        "service": "web/shop", "port": "80", "protocol": "tcp", "error": "in\u{1b}use"}]))
        .unwrap();
    now.drains.running = vec![drain(evil, Some("a\u{1b}b"))];
    now.drains.running[0].pod = Some("p\u{1b}q".to_owned());
    page.take(now);
    let table = drawn(&mut page, 100, 20);
    assert!(
        table.contains("web/s [2Jh o p") && table.contains("in use"),
        "{table}"
    );
    page.filter.clear();
    page.take(picture(&[(evil, 1)]));
    press(&mut page, &[KeyCode::Enter]);
    let detail = drawn(&mut page, 100, 20);
    for text in [table, detail] {
        assert!(
            !text.replace('\n', "").contains(char::is_control),
            "{text:?}"
        );
    }
}

#[test]
fn each_size_of_terminal_is_drawn() {
    let mut page = shop();
    for keys in ["", "/sh", "\r\r"] {
        type_text(&mut page, keys.trim());
        let enters = keys.chars().filter(|&it| it == '\r');
        press(
            &mut page,
            &enters.map(|_| KeyCode::Enter).collect::<Vec<_>>(),
        );
        for width in (0..16).chain([20, 40, 80, 300]) {
            for height in (0..12).chain([18, 50]) {
                terminal(&mut page, width, height);
            }
        }
    }
    assert_eq!(page.detail.as_deref(), Some("web/shop"));
    insta::assert_snapshot!(drawn(&mut shop(), 20, 5), @r"
    ebbtide 0.1.0 (1a2b3
    SERVICE
    data/postgres
    web/shop
    2 Services, by name
    ");
}

#[test]
fn of_5000_services_only_the_visible_rows_are_drawn() {
    let names: Vec<String> = (0..5000).map(|it| format!("web/shop-{it:04}")).collect();
    let services: Vec<(&str, u64)> = names.iter().map(|it| (&**it, 1)).collect();
    let mut page = page(&services);
    press(&mut page, &[KeyCode::End]);
    let text = drawn(&mut page, 80, 10);
    assert!(
        text.contains("web/shop-4999") && text.contains("5,000 Services"),
        "{text}"
    );
    assert_eq!(page.wanted().len(), page.table.height);
    // The last row is the selected one.
    let terminal = terminal(&mut page, 80, 10);
    let is_selected = |y| terminal.backend().buffer()[(0, y)].modifier == Modifier::REVERSED;
    assert_eq!((0..10).filter(|&y| is_selected(y)).collect::<Vec<_>>(), [8]);
    type_text(&mut page, "/4321");
    let text = drawn(&mut page, 80, 10);
    assert!(
        text.contains("web/shop-4321") && !text.contains("4999"),
        "{text}"
    );
}

#[test]
fn pods_that_the_gate_holds_now_are_named() {
    let mut page = shop();
    let mut now = picture(&[("web/shop", 1)]);
    let hold = |pod: &str, outcome: Option<&str>| {
        json!({"pod": pod, "startedAt": "2026-01-01T00:00:27Z", "heldSeconds": 3.2, "outcome": outcome,
            "by": ["192.0.2.2:9902: 2 in flight\u{1b}"]})
    };
    let gate = json!([
        hold("web/shop-1", None),
        hold("web/shop-2", Some("released"))
    ]);
    now.drains.gate = serde_json::from_value(gate).unwrap();
    page.take(now);
    let text = drawn(&mut page, 100, 12);
    let line = "gate: holds web/shop-1 for 3s, waits for 192.0.2.2:9902: 2 in flight\n";
    assert!(text.contains(line) && !text.contains("shop-2"), "{text}");
}
