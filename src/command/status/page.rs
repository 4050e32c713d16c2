//! The state of the terminal page: what the proxy said last, which Services are shown in which order,
//! what is selected, and what each key changes.
//!
//! Invariant: the selection stays on its Service while the table changes around it. No IO is done here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::admin::history::{History, Latest, Traffic};
use crate::admin::report::{Drain, Drains, EndpointStatus, Service, Status};
use crate::admin::state::State;

/// How many Services' histories are asked for at the same time, however high the terminal is.
pub(super) const HISTORIES: usize = 200;
/// Characters of a filter. The name of a Service is at most 127 long.
const FILTER: usize = 127;

/// Histories by the Service's name.
pub(super) type Histories = HashMap<String, Arc<History>>;

/// What a proxy said in one turn.
pub(super) struct Picture {
    pub(super) status: Status,
    pub(super) drains: Drains,
    /// None from a proxy that keeps no history.
    pub(super) traffic: Option<Traffic>,
    pub(super) now: Timestamp,
}

/// One Service in the table: all of its ports together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    /// `namespace/name`, as the proxy says it. It is one line only where it is drawn.
    pub(super) name: String,
    /// What the last second brought.
    pub(super) latest: Option<Latest>,
    /// Endpoints that may get requests now, on every port. A pod behind two ports is one.
    pub(super) usable: usize,
    pub(super) endpoints: usize,
    /// Its running drains.
    pub(super) drains: usize,
}

/// What the table is sorted by. Services that are equal are in the order of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Order {
    #[default]
    Name,
    /// Most requests a second first.
    Requests,
    /// Highest 99th percentile first.
    P99,
    /// Failures of the last second first, then running drains, then endpoints that are not usable.
    Trouble,
}

/// The page. What is drawn follows from it alone.
pub(super) struct Page {
    /// Where the proxy is, as `--admin` says.
    pub(super) place: String,
    pub(super) picture: Option<Picture>,
    /// Since when the proxy does not answer, and how that shows.
    pub(super) away: Option<(Timestamp, String)>,
    pub(super) histories: Histories,
    pub(super) rows: Vec<Row>,
    /// Indices of the rows that pass the filter, in order.
    pub(super) shown: Vec<usize>,
    pub(super) order: Order,
    pub(super) filter: String,
    /// Whether keys go into the filter.
    pub(super) is_typing: bool,
    /// The Service whose detail is shown instead of the table.
    pub(super) detail: Option<String>,
    /// The place of the selection among the shown rows.
    pub(super) at: usize,
    /// The first shown row, or line of the detail, that is on the screen.
    pub(super) table: Scroll,
    pub(super) lines: Scroll,
    selected: Option<String>,
}

/// A part of a list that fits the screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Scroll {
    pub(super) first: usize,
    pub(super) height: usize,
}

impl Page {
    pub(super) fn new(place: String) -> Self {
        Self {
            place,
            picture: None,
            away: None,
            histories: Histories::new(),
            rows: Vec::new(),
            shown: Vec::new(),
            order: Order::default(),
            filter: String::new(),
            is_typing: false,
            detail: None,
            at: 0,
            table: Scroll::default(),
            lines: Scroll::default(),
            selected: None,
        }
    }

    /// The proxy answered.
    pub(super) fn take(&mut self, picture: Picture) {
        self.rows = rows(&picture);
        self.picture = Some(picture);
        self.away = None;
        self.arrange();
    }

    /// The proxy did not answer. The last picture stays.
    pub(super) fn lose(&mut self, now: Timestamp, error: String) {
        let since = self.away.take().map_or(now, |(since, _)| since);
        self.away = Some((since, error));
    }

    /// The Services whose histories are drawn now.
    pub(super) fn wanted(&self) -> Vec<String> {
        match &self.detail {
            Some(service) => vec![service.clone()],
            None => self
                .visible()
                .take(HISTORIES)
                .map(|row| row.name.clone())
                .collect(),
        }
    }

    /// The rows that are on the screen.
    pub(super) fn visible(&self) -> impl Iterator<Item = &Row> {
        let shown = self.shown.iter().skip(self.table.first);
        shown
            .take(self.table.height)
            .map(|&index| &self.rows[index])
    }

    /// The drains of a Service, running ones first, then the newest.
    pub(super) fn drains_of(&self, service: &str) -> impl Iterator<Item = &Drain> {
        let drains = self.picture.as_ref().map(|it| &it.drains);
        let all = drains
            .into_iter()
            .flat_map(|it| it.running.iter().chain(&it.finished));
        all.filter(move |drain| service_of(drain) == service)
    }

    /// The ports of a Service.
    pub(super) fn ports_of(&self, service: &str) -> impl Iterator<Item = &Service> {
        let all = self.picture.iter().flat_map(|it| &it.status.services);
        all.filter(move |it| {
            let name = service.split_once('/');
            name == Some((it.namespace.as_str(), it.name.as_str()))
        })
    }

    /// Gives the table as many rows as the screen has for it, and keeps the selection on the screen.
    pub(super) fn fit_table(&mut self, height: usize) {
        self.table.height = height;
        self.table.fit(self.shown.len());
        let highest = (self.at + 1).saturating_sub(height.max(1));
        self.table.first = self.table.first.clamp(highest, self.at);
    }

    /// What a key does. Returns whether it ends the page.
    pub(super) fn press(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return false;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return key.code == KeyCode::Char('c');
        }
        if self.is_typing && self.type_key(key.code) {
            return false;
        }
        match key.code {
            KeyCode::Char('q') => return true,
            KeyCode::Esc if self.detail.is_some() => self.detail = None,
            KeyCode::Esc => self.set_filter(String::new()),
            KeyCode::Enter if self.detail.is_none() => {
                self.detail.clone_from(&self.selected);
                self.lines.first = 0;
            }
            KeyCode::Char('/') if self.detail.is_none() => self.is_typing = true,
            KeyCode::Char('s') if self.detail.is_none() => {
                self.order = self.order.next();
                self.arrange();
            }
            code => self.go(code),
        }
        false
    }

    /// A key while the filter is typed. Returns whether it was one for the filter.
    fn type_key(&mut self, code: KeyCode) -> bool {
        let mut filter = self.filter.clone();
        match code {
            KeyCode::Char(letter) if filter.chars().count() < FILTER => filter.push(letter),
            KeyCode::Char(_) => {}
            KeyCode::Backspace => {
                self.is_typing = filter.pop().is_some();
            }
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                filter.clear();
            }
            _ => return false,
        }
        self.set_filter(filter);
        true
    }

    fn set_filter(&mut self, filter: String) {
        if filter != self.filter {
            self.filter = filter;
            self.arrange();
        }
    }

    /// Moves the selection, or the lines of the detail.
    fn go(&mut self, code: KeyCode) {
        let (from, page) = match self.detail {
            Some(_) => (self.lines.first, self.lines.height),
            None => (self.at, self.table.height),
        };
        let page = page.max(1);
        let to = match code {
            KeyCode::Up | KeyCode::Char('k') => from.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => from + 1,
            KeyCode::PageUp => from.saturating_sub(page),
            KeyCode::PageDown => from + page,
            KeyCode::Home => 0,
            KeyCode::End => usize::MAX / 2,
            _ => return,
        };
        if self.detail.is_some() {
            self.lines.first = to;
        } else {
            self.select(to);
        }
    }

    /// Selects the shown row at this place, or the last one.
    fn select(&mut self, at: usize) {
        self.at = at.min(self.shown.len().saturating_sub(1));
        let row = self.shown.get(self.at);
        self.selected = row.map(|&index| self.rows[index].name.clone());
    }

    /// Filters and sorts. The selection stays on its Service, or where it was if that has gone.
    fn arrange(&mut self) {
        let (rows, filter) = (&self.rows, self.filter.to_lowercase());
        self.shown = (0..rows.len())
            .filter(|&index| rows[index].name.to_lowercase().contains(&filter))
            .collect();
        // The rows are in the order of their names, and the sort is stable.
        match self.order {
            Order::Name => {}
            Order::Requests => self.shown.sort_by_key(|&it| Reverse(rows[it].requests())),
            Order::P99 => {
                let p99 = |it: usize| rows[it].latest.as_ref().and_then(|it| it.p99_ms);
                let p99 = |it: usize| p99(it).unwrap_or(-1.0);
                self.shown.sort_by(|&a, &b| p99(b).total_cmp(&p99(a)));
            }
            Order::Trouble => self.shown.sort_by_key(|&it| Reverse(rows[it].trouble())),
        }
        let selected = self.selected.as_ref();
        let found = self
            .shown
            .iter()
            .position(|&it| Some(&rows[it].name) == selected);
        self.select(found.unwrap_or(self.at));
    }
}

impl Row {
    fn requests(&self) -> u64 {
        self.latest.as_ref().map_or(0, |it| it.requests)
    }

    fn trouble(&self) -> (u32, usize, usize) {
        let failures = self.latest.as_ref().map_or(0, |it| it.failures);
        (failures, self.drains, self.endpoints - self.usable)
    }
}

impl Order {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Requests,
            Self::Requests => Self::P99,
            Self::P99 => Self::Trouble,
            Self::Trouble => Self::Name,
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Requests => "requests/s",
            Self::P99 => "p99",
            Self::Trouble => "trouble",
        }
    }
}

impl Scroll {
    /// Keeps a list of `length` on the screen: nothing empty is shown below its end if it fills the screen.
    pub(super) fn fit(&mut self, length: usize) {
        self.first = self.first.min(length.saturating_sub(self.height));
    }
}

/// A row for each Service that has a port in the table, or traffic or a drain that goes on after it has
/// left.
fn rows(picture: &Picture) -> Vec<Row> {
    let mut rows = BTreeMap::new();
    let ports = &picture.status.services;
    // The ports of a Service stand together.
    for ports in ports.chunk_by(|a, b| (&a.namespace, &a.name) == (&b.namespace, &b.name)) {
        let name = format!("{}/{}", ports[0].namespace, ports[0].name);
        let mut all = HashMap::new();
        for endpoint in ports.iter().flat_map(|it| &it.endpoints) {
            *all.entry(place(endpoint)).or_insert(true) &= is_usable(endpoint.state);
        }
        let row = row(&mut rows, &name);
        row.usable += all.values().filter(|it| **it).count();
        row.endpoints += all.len();
    }
    for latest in picture.traffic.iter().flat_map(|it| &it.services) {
        row(&mut rows, &latest.service).latest = Some(latest.clone());
    }
    for drain in &picture.drains.running {
        row(&mut rows, service_of(drain)).drains += 1;
    }
    rows.into_values().collect()
}

fn row<'a>(rows: &'a mut BTreeMap<String, Row>, name: &str) -> &'a mut Row {
    rows.entry(name.to_owned()).or_insert_with_key(|name| Row {
        name: name.clone(),
        ..Row::default()
    })
}

/// The pod of an endpoint, whatever its port is; without a pod, the address. A new pod of an old name
/// has another IP address.
fn place(endpoint: &EndpointStatus) -> (Option<&str>, IpAddr, u16) {
    let (pod, ip) = (endpoint.pod.as_deref(), endpoint.address.ip());
    let port = if pod.is_some() {
        0
    } else {
        endpoint.address.port()
    };
    (pod, ip, port)
}

fn is_usable(state: State) -> bool {
    matches!(state, State::Ready | State::Serving | State::Joining)
}

/// `namespace/name` of a drain's `namespace/name:port`.
fn service_of(drain: &Drain) -> &str {
    let service = drain.service.rsplit_once(':');
    service.map_or(&*drain.service, |(service, _)| service)
}

#[cfg(test)]
mod tests;
