use super::*;
use crate::command::status::sample::{drain, page, picture, press, type_text};

fn shown(page: &Page) -> Vec<&str> {
    let rows = page.shown.iter().map(|&it| &*page.rows[it].name);
    rows.collect()
}

fn selected(page: &Page) -> &str {
    shown(page)[page.at]
}

const FOUR: [(&str, u64); 4] = [("a/one", 5), ("a/two", 7), ("b/one", 9), ("b/two", 1)];

#[test]
fn keys_move_the_selection_and_stop_at_both_ends() {
    let services: Vec<String> = (0..100).map(|it| format!("a/s{it:03}")).collect();
    let services: Vec<(&str, u64)> = services.iter().map(|it| (&**it, 1)).collect();
    let mut page = page(&services);
    for (key, at, first) in [
        (KeyCode::Up, 0, 0),
        (KeyCode::Down, 1, 0),
        (KeyCode::Char('j'), 2, 0),
        (KeyCode::Char('k'), 1, 0),
        (KeyCode::PageDown, 11, 2),
        (KeyCode::PageDown, 21, 12),
        (KeyCode::PageUp, 11, 11),
        (KeyCode::End, 99, 90),
        (KeyCode::Down, 99, 90),
        (KeyCode::Up, 98, 90),
        (KeyCode::Home, 0, 0),
    ] {
        press(&mut page, &[key]);
        page.fit_table(10);
        assert_eq!((page.at, page.table.first), (at, first), "{key:?}");
    }
    // A terminal that has become small, and one that has become high.
    press(&mut page, &[KeyCode::End]);
    for (height, first) in [(1, 99), (0, 99), (30, 70), (200, 0)] {
        page.fit_table(height);
        assert_eq!(page.table.first, first, "{height}");
    }
}

#[test]
fn the_selection_stays_on_its_service_while_the_table_changes() {
    let mut page = page(&FOUR);
    press(&mut page, &[KeyCode::Down, KeyCode::Down]);
    assert_eq!(selected(&page), "b/one");
    page.take(picture(&[("a/new", 1), ("a/one", 1), ("b/one", 9)]));
    assert_eq!(selected(&page), "b/one");
    type_text(&mut page, "s");
    assert_eq!((page.order, selected(&page)), (Order::Requests, "b/one"));
    // It has gone: the Service in its place is selected, at last the last one.
    page.take(picture(&[("a/new", 1), ("a/one", 5)]));
    assert_eq!(selected(&page), "a/one");
    page.take(picture(&[("a/new", 1)]));
    assert_eq!(selected(&page), "a/new");
    page.take(picture(&[]));
    assert!(page.shown.is_empty());
    press(&mut page, &[KeyCode::Down, KeyCode::Enter]);
    assert_eq!(page.detail, None);
}

#[test]
fn a_filter_is_typed_kept_and_taken_back() {
    let mut page = page(&FOUR);
    type_text(&mut page, "/ONE");
    assert!(page.is_typing);
    assert_eq!(shown(&page), ["a/one", "b/one"]);
    // Letters that are keys elsewhere are letters here, and arrows still move.
    press(&mut page, &[KeyCode::Down]);
    assert_eq!(selected(&page), "b/one");
    type_text(&mut page, "qs");
    assert_eq!((shown(&page).len(), page.order), (0, Order::Name));
    press(
        &mut page,
        &[KeyCode::Backspace, KeyCode::Backspace, KeyCode::Enter],
    );
    assert!(!page.is_typing);
    page.take(picture(&FOUR));
    assert_eq!(shown(&page), ["a/one", "b/one"]);
    press(&mut page, &[KeyCode::Esc]);
    assert_eq!(shown(&page).len(), 4);
    type_text(&mut page, "/two");
    press(&mut page, &[KeyCode::Esc]);
    assert_eq!((page.is_typing, shown(&page).len()), (false, 4));
    // The last Backspace leaves the filter.
    type_text(&mut page, "/t");
    press(&mut page, &[KeyCode::Backspace, KeyCode::Backspace]);
    assert!(!page.is_typing);
    type_text(&mut page, "/");
    type_text(&mut page, &"x".repeat(1000));
    assert_eq!(page.filter.len(), FILTER);
}

#[test]
fn the_order_goes_by_name_requests_p99_and_trouble() {
    let mut page = page(&[]);
    let mut now = picture(&FOUR);
    let traffic = &mut now.traffic.as_mut().unwrap().services;
    traffic[0].p99_ms = None;
    traffic[3].p99_ms = Some(700.0);
    traffic[1].failures = 3;
    now.drains.running = vec![drain("b/two", None)];
    now.status.services[2].endpoints[1].state = State::Ready;
    page.take(now);
    for (order, names) in [
        (Order::Name, ["a/one", "a/two", "b/one", "b/two"]),
        (Order::Requests, ["b/one", "a/two", "a/one", "b/two"]),
        (Order::P99, ["b/two", "a/two", "b/one", "a/one"]),
        (Order::Trouble, ["a/two", "b/two", "a/one", "b/one"]),
        (Order::Name, ["a/one", "a/two", "b/one", "b/two"]),
    ] {
        assert_eq!((page.order, shown(&page)), (order, names.to_vec()));
        type_text(&mut page, "s");
    }
}

#[test]
fn a_row_is_a_service_with_all_of_its_ports_and_what_is_left_of_it() {
    let mut now = picture(&[("a/one", 5), ("a/one", 5)]);
    now.status.services[1].endpoints[1].state = State::NotAnswering;
    now.drains.running = vec![drain("a/one", None), drain("a/gone", None)];
    let rows = rows(&now);
    let [gone, one] = &rows[..] else {
        panic!("{rows:?}");
    };
    assert_eq!((gone.endpoints, gone.drains), (0, 1));
    assert_eq!((one.usable, one.endpoints, one.drains), (1, 2, 1));
}

#[test]
fn only_what_is_drawn_is_wanted() {
    let services: Vec<String> = (0..5000).map(|it| format!("a/s{it:04}")).collect();
    let services: Vec<(&str, u64)> = services.iter().map(|it| (&**it, 1)).collect();
    let mut page = page(&services);
    assert_eq!(page.wanted().len(), 10);
    press(&mut page, &[KeyCode::End]);
    page.fit_table(3);
    assert_eq!(page.wanted(), ["a/s4997", "a/s4998", "a/s4999"]);
    page.fit_table(3000);
    assert_eq!(page.wanted().len(), HISTORIES);
    press(&mut page, &[KeyCode::Enter]);
    assert_eq!(page.wanted(), ["a/s4999"]);
}

#[test]
fn the_detail_opens_moves_and_goes_back_to_its_row() {
    let mut page = page(&FOUR);
    press(&mut page, &[KeyCode::Down, KeyCode::Enter]);
    assert_eq!(page.detail.as_deref(), Some("a/two"));
    // The keys of the table are not for the detail.
    type_text(&mut page, "s/jj");
    assert_eq!((page.order, page.is_typing), (Order::Name, false));
    assert_eq!((page.lines.first, page.at), (2, 1));
    page.take(picture(&[("b/one", 1)]));
    assert_eq!(page.detail.as_deref(), Some("a/two"));
    press(&mut page, &[KeyCode::Esc]);
    assert_eq!((page.detail.as_deref(), selected(&page)), (None, "b/one"));
}

#[test]
fn q_and_control_c_end_the_page_wherever_it_is() {
    let end = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    let mut page = page(&FOUR);
    assert!(page.press(KeyCode::Char('q').into()) && page.press(end));
    type_text(&mut page, "/q");
    assert!(page.press(end));
    press(&mut page, &[KeyCode::Esc, KeyCode::Enter]);
    assert!(page.press(KeyCode::Char('q').into()) && page.press(end));
    // Other keys with Control are no letters, and a key that is let go is no second one.
    assert!(!page.press(KeyEvent::new(KeyCode::Char('q'), KeyModifiers::CONTROL)));
    let mut up = KeyEvent::from(KeyCode::Char('q'));
    up.kind = KeyEventKind::Release;
    assert!(!page.press(up));
}

#[test]
fn a_proxy_that_is_away_keeps_its_picture_and_since_when() {
    let mut page = page(&FOUR);
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    page.lose(at("2026-01-01T00:00:31Z"), "no response".to_owned());
    page.lose(at("2026-01-01T00:00:32Z"), "refused".to_owned());
    let away = page.away.clone().unwrap();
    assert_eq!(away, (at("2026-01-01T00:00:31Z"), "refused".to_owned()));
    assert_eq!(shown(&page).len(), 4);
    page.take(picture(&FOUR));
    assert_eq!(page.away, None);
}

#[test]
fn a_pod_behind_two_ports_is_one_endpoint_and_usable_only_on_both() {
    let mut two = picture(&[("a/one", 1)]);
    let port = &mut two.status.services[0];
    for (endpoint, pod) in port.endpoints.iter_mut().zip(["p", "q"]) {
        endpoint.pod = Some(pod.to_owned());
    }
    port.endpoints[1].state = State::Ready;
    let mut second = port.clone();
    second.port = 90;
    for endpoint in &mut second.endpoints {
        endpoint.address.set_port(9090);
    }
    second.endpoints[1].state = State::Joining;
    let counts = |page: &Page| (page.rows[0].usable, page.rows[0].endpoints);
    let mut page = page(&[]);
    two.status.services.push(second);
    page.take(two);
    assert_eq!(counts(&page), (2, 2));
    let picture = page.picture.as_mut().unwrap();
    picture.status.services[1].endpoints[1].state = State::NotAnswering;
    let picture = page.picture.take().unwrap();
    page.take(picture);
    assert_eq!(counts(&page), (1, 2));
    // Without a pod, another port of one address is another endpoint.
    let mut picture = page.picture.take().unwrap();
    let ports = picture.status.services.iter_mut();
    ports
        .flat_map(|it| &mut it.endpoints)
        .for_each(|it| it.pod = None);
    page.take(picture);
    assert_eq!(counts(&page), (3, 4));
}
