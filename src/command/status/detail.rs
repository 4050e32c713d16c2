//! Draws one Service: its last 15 minutes as charts, its endpoints, and its drains.

use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Sparkline};

use crate::admin::report::Drain;
use crate::command::status::page::Page;
use crate::command::status::spark::{self, milliseconds, requests};
use crate::command::status::words::{doing, left};
use crate::text::{Columns, grouped, one_line, table};

/// Lines of the charts, and the least height at which they are shown.
const CHARTS: u16 = 5;
const LEAST: u16 = 3 * CHARTS;
const P99: &str = "p99";

/// Draws the detail of `service`. Keeps in the page how many of its lines the screen has.
pub(super) fn draw(frame: &mut Frame, area: Rect, page: &mut Page, service: &str) {
    let charts_height = if area.height < LEAST { 0 } else { CHARTS };
    let parts = [
        Constraint::Length(1),
        Constraint::Length(charts_height),
        Constraint::Min(0),
    ];
    let [title, above, below] = Layout::vertical(parts).areas(area);
    let name = Line::from(one_line(service)).bold();
    frame.render_widget(Paragraph::new(name), title);
    if charts_height > 0 {
        charts(frame, above, page, service);
    }
    let lines = lines(page, service);
    page.lines.height = usize::from(below.height);
    page.lines.fit(lines.len());
    let lines = lines.into_iter().skip(page.lines.first);
    let lines = lines.take(page.lines.height).map(Line::from);
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), below);
}

fn charts(frame: &mut Frame, area: Rect, page: &Page, service: &str) {
    let Some(history) = page.histories.get(service) else {
        return;
    };
    let requests = requests(history);
    let failures: Vec<u64> = history.failures.iter().map(|&it| u64::from(it)).collect();
    let p99 = history.p99_ms.iter();
    // In microseconds: a chart is of whole numbers. A second without a response is 0.
    let p99: Vec<u64> = p99.map(|it| it.map_or(0, |ms| (ms * 1e3) as u64)).collect();
    let places = Layout::horizontal([Constraint::Fill(1); 3]).spacing(2);
    let places: [Rect; 3] = places.areas(area);
    let all = [
        ("requests/s", requests, Color::Cyan),
        ("failures", failures, Color::Red),
        (P99, p99, Color::Cyan),
    ];
    for ((name, values, colour), place) in all.into_iter().zip(places) {
        let text = |value: Option<u64>| match value.unwrap_or(0) {
            0 if name == P99 => "-".to_owned(),
            micros if name == P99 => milliseconds(micros as f64 / 1e3),
            count => grouped(count),
        };
        let now = text(values.last().copied());
        let most = text(values.iter().copied().max());
        let heading = format!("{name} {now}, most {most}");
        let parts = [Constraint::Length(1), Constraint::Min(0)];
        let [above, below] = Layout::vertical(parts).areas(place);
        frame.render_widget(Paragraph::new(heading), above);
        let width = usize::from(below.width);
        let mut cells = spark::cells(&values, history.end.as_second(), width);
        // Now is at the right.
        let missing = width - cells.len();
        cells.splice(0..0, std::iter::repeat_n(0, missing));
        let chart = Sparkline::default()
            .data(cells)
            .style(Style::new().fg(colour));
        // The last line stays empty.
        let below = Rect {
            height: below.height.saturating_sub(1),
            ..below
        };
        frame.render_widget(chart, below);
    }
}

/// The endpoints and the drains as lines.
fn lines(page: &Page, service: &str) -> Vec<String> {
    let now = page.picture.as_ref().map_or(Timestamp::MIN, |it| it.now);
    let mut endpoints = vec![row([
        "ENDPOINT",
        "POD",
        "PORT",
        "STATE",
        "IN FLIGHT",
        "IDLE",
    ])];
    for port in page.ports_of(service) {
        for endpoint in &port.endpoints {
            endpoints.push(row([
                &endpoint.address.to_string(),
                endpoint.pod.as_deref().unwrap_or("-"),
                &port.port.to_string(),
                &doing(endpoint, now),
                &endpoint.in_flight.to_string(),
                &endpoint.idle.to_string(),
            ]));
        }
    }
    let mut drains = vec![row([
        "DRAIN", "ENDPOINT", "POD", "BEGAN", "FINISHED", "REPLAYED", "CUT",
    ])];
    for drain in page.drains_of(service) {
        drains.push(row([
            &state(drain, now),
            &drain.address.to_string(),
            drain.pod.as_deref().unwrap_or("-"),
            &format!("{:.0}", drain.started_at),
            &drain.finished.to_string(),
            &drain.replayed.to_string(),
            &drain.forced.to_string(),
        ]));
    }
    let mut lines = part(endpoints, "no endpoint");
    lines.push(String::new());
    lines.extend(part(drains, "no drain"));
    lines
}

fn state(drain: &Drain, now: Timestamp) -> String {
    match (&drain.outcome, left(drain.drain_deadline, now)) {
        (Some(outcome), _) => outcome.clone(),
        (None, _) if drain.ended_at.is_some() => "ended".to_owned(),
        (None, Some(left)) => format!("runs, {left}"),
        (None, None) => "runs".to_owned(),
    }
}

fn part(rows: Vec<Vec<String>>, nothing: &str) -> Vec<String> {
    if rows.len() > 1 {
        let text = table(&rows, Columns::Words);
        text.lines().map(str::to_owned).collect()
    } else {
        vec![nothing.to_owned()]
    }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}
