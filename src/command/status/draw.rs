//! Draws the terminal page: the head, the table of Services or the detail of one, and the keys.
//!
//! Invariant: each text from the network is drawn as one line without control characters. Any size of
//! terminal is drawn, and of the table only the rows that are on the screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row as Cells, Table};

use crate::admin::history::History;
use crate::command::status::page::{Page, Row};
use crate::command::status::spark::{self, milliseconds, requests};
use crate::command::status::{detail, words};
use crate::text::{grouped, one_line};

/// The seconds of a history that a row sums up.
const SPAN: usize = 300;
/// Columns of numbers: the heading, the width, and how soon it goes when the terminal is narrow.
const NUMBERS: [(&str, u16, u8); 7] = [
    ("REQ/S", 9, 0),
    ("FAILED", 7, 3),
    ("REPLAYED", 8, 5),
    ("HELD", 7, 6),
    ("P99", 8, 4),
    ("USABLE", 9, 1),
    ("DRAINS", 6, 2),
];
/// The chart's heading and least width.
const CHART: (&str, u16) = ("REQ/S, 5 MIN", 12);
const GAP: u16 = 2;

/// Draws the page. Keeps in it how many rows the screen has.
pub(super) fn draw(frame: &mut Frame, page: &mut Page) {
    let head = head(page);
    // However much is wrong, most of the screen is for the Services.
    let most = (frame.area().height / 3).max(1);
    let height = most.min(head.len() as u16);
    let parts = [
        Constraint::Length(height),
        Constraint::Min(0),
        Constraint::Length(1),
    ];
    let [above, middle, below] = Layout::vertical(parts).areas(frame.area());
    frame.render_widget(Paragraph::new(cut(head, height)), above);
    match page.detail.clone() {
        Some(service) => detail::draw(frame, middle, page, &service),
        None => table(frame, middle, page),
    }
    frame.render_widget(Paragraph::new(foot(page)), below);
}

fn head(page: &Page) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some((since, error)) = &page.away {
        let text = format!("away since {since:.0}: {}", one_line(error));
        lines.push(Line::from(text).bold().fg(Color::Red));
    }
    let Some(picture) = &page.picture else {
        if lines.is_empty() {
            lines.push(Line::from(format!("{} is asked", one_line(&page.place))));
        }
        return lines;
    };
    let text = words::head(&one_line(&page.place), &picture.status);
    let text = text + &words::holds(&picture.drains);
    let style = if page.away.is_some() {
        Style::new().dim()
    } else {
        Style::new()
    };
    lines.extend(
        text.lines()
            .map(|line| Line::styled(line.to_owned(), style)),
    );
    for listener in &picture.status.listeners {
        if let Some(error) = &listener.error {
            let text = format!("listener {}: not bound: {error}", listener.name);
            lines.push(Line::from(one_line(&text)));
        }
    }
    lines
}

/// As many lines as there is place for; the last one says how many there are besides.
fn cut(mut lines: Vec<Line<'static>>, height: u16) -> Vec<Line<'static>> {
    let (height, all) = (usize::from(height), lines.len());
    if all > height && height > 1 {
        lines.truncate(height - 1);
        let more = all + 1 - height;
        lines.push(Line::from(format!("  and {more} lines more: ebbtide status")).dim());
    }
    lines
}

fn foot(page: &Page) -> Line<'static> {
    if page.is_typing {
        return Line::from(format!("/{}_  Enter keep  Esc all", one_line(&page.filter))).bold();
    }
    if page.detail.is_some() {
        return Line::from("Esc back  ↑↓ move  q end").dim();
    }
    let (shown, all) = (page.shown.len(), page.rows.len());
    let count = match (page.filter.is_empty(), all) {
        (true, 1) => "1 Service".to_owned(),
        (true, _) => format!("{} Services", grouped(all as u64)),
        (false, _) => format!(
            "{} of {} Services with {}",
            grouped(shown as u64),
            grouped(all as u64),
            one_line(&page.filter)
        ),
    };
    let order = page.order.words();
    Line::from(format!(
        "{count}, by {order}  s order  / filter  Enter detail  q end"
    ))
    .dim()
}

fn table(frame: &mut Frame, area: Rect, page: &mut Page) {
    page.fit_table(usize::from(area.height.saturating_sub(1)));
    let names: Vec<String> = page.visible().map(|row| one_line(&row.name)).collect();
    let longest = names.iter().map(|name| name.chars().count()).max();
    let name = longest.unwrap_or(0).clamp(20, 60) as u16;
    let columns = columns(area.width, name);
    let taken = columns.iter().map(|&column| NUMBERS[column].1 + GAP).sum();
    let rest = area.width.saturating_sub(taken);
    // The name has what it needs, and the chart what is left, if that is enough for one.
    let left = rest.saturating_sub(name + GAP).min(60);
    let (name, chart) = match left >= CHART.1 {
        true => (name, Some(left)),
        false => (rest, None),
    };

    let mut widths = vec![Constraint::Length(name)];
    let mut heading = vec![Cell::from("SERVICE")];
    for &column in &columns {
        widths.push(Constraint::Length(NUMBERS[column].1));
        heading.push(right(NUMBERS[column].0.to_owned(), Style::new()));
    }
    if let Some(chart) = chart {
        widths.push(Constraint::Length(chart));
        heading.push(right(CHART.0.to_owned(), Style::new()));
    }

    let selected = page.at - page.table.first.min(page.at);
    let rows = page.visible().zip(names).enumerate();
    let rows: Vec<Cells> = rows
        .map(|(index, (row, name))| {
            let history = page.histories.get(&row.name).map(|it| &**it);
            let numbers = numbers(row, history);
            let mut cells = vec![Cell::from(name)];
            for &column in &columns {
                let (text, style) = &numbers[column];
                cells.push(right(text.clone(), *style));
            }
            if let (Some(chart), Some(history)) = (chart, history) {
                let (chart, end) = (usize::from(chart), history.end.as_second());
                let line = spark::cells(last(&requests(history)), end, chart);
                cells.push(Cell::from(spark::line(&line, chart)).cyan());
            }
            let cells = Cells::new(cells);
            if index == selected {
                cells.reversed()
            } else {
                cells
            }
        })
        .collect();
    if rows.is_empty() && page.picture.is_some() {
        let text = "no Service";
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let table = Table::new(rows, widths)
        .header(Cells::new(heading).bold())
        .column_spacing(GAP);
    frame.render_widget(table, area);
}

/// The columns of numbers that a terminal of this width has place for, beside a name.
fn columns(width: u16, name: u16) -> Vec<usize> {
    let mut columns: Vec<usize> = (0..NUMBERS.len()).collect();
    while columns.iter().map(|&it| NUMBERS[it].1 + GAP).sum::<u16>() + name.min(30) > width {
        let Some(goes) = columns.iter().copied().max_by_key(|&it| NUMBERS[it].2) else {
            break;
        };
        columns.retain(|&it| it != goes);
    }
    columns
}

/// The text of each of [`NUMBERS`].
fn numbers(row: &Row, history: Option<&History>) -> [(String, Style); 7] {
    let (plain, bad, moves) = (
        Style::new(),
        Style::new().fg(Color::Red),
        Style::new().fg(Color::Yellow),
    );
    let sum = |list: fn(&History) -> &[u32]| {
        let sum = history.map(|it| last(list(it)).iter().map(|&it| u64::from(it)).sum());
        let text = sum.map_or(String::new(), grouped);
        (text, sum.unwrap_or(0) > 0)
    };
    let style = |(text, some), style| (text, if some { style } else { plain });
    let latest = row.latest.as_ref();
    let p99 = latest.and_then(|it| it.p99_ms);
    let usable = format!("{}/{}", row.usable, row.endpoints);
    [
        (grouped(latest.map_or(0, |it| it.requests)), plain),
        style(sum(|it| &it.failures), bad),
        style(sum(|it| &it.replayed), moves),
        style(sum(|it| &it.held), moves),
        (p99.map_or("-".to_owned(), milliseconds), plain),
        style((usable, row.usable == 0), bad),
        style((row.drains.to_string(), row.drains > 0), moves),
    ]
}

fn last<T>(seconds: &[T]) -> &[T] {
    &seconds[seconds.len().saturating_sub(SPAN)..]
}

fn right(text: String, style: Style) -> Cell<'static> {
    Cell::from(Text::from(text).right_aligned()).style(style)
}

#[cfg(test)]
mod tests;
