//! Routes: what serves a request, by its host, its path and more.
//!
//! Invariants: a table never changes, so a reader takes no lock. The rules for exactly the host of a
//! request come first, then those for the longest `*.` name that it fits, then those for every host,
//! then the default. Among the rules of one host, an exact path comes first, then the longest prefix of
//! whole elements. Among the rules of one path, one that wants a method comes first, then the one that
//! wants more fields, then more parameters, then the one that was added first. If no rule of a path fits,
//! the next shorter path is asked, and then the next host. A search takes as many steps as the names and
//! paths of the rules allow, however long those of the request are.
//!
//! Sources: <https://kubernetes.io/docs/concepts/services-networking/ingress/#path-types> and
//! <https://gateway-api.sigs.k8s.io/reference/spec/#httprouterule>. Paths and parameters are compared as
//! they were sent, without decoding.

use std::borrow::Cow;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

/// Which requests a rule is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The host, in lower case, which may begin with `*.`. `None`: every host.
    pub host: Option<String>,
    /// The path, which begins with `/`.
    pub path: String,
    /// Only this very path. Otherwise every path that begins with its elements.
    pub exact: bool,
    /// What else it asks of a request.
    #[serde(default)]
    pub wants: Wants,
}

/// What a rule asks of a request, beside its host and its path. All of it must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wants {
    /// The method.
    pub method: Option<String>,
    /// Fields and their values. Names are in lower case, each at most once. The lines of a field that
    /// comes several times are one value, joined by a comma.
    pub fields: Vec<(String, String)>,
    /// Parameters of the query and their values, each name at most once. The first of several counts.
    pub query: Vec<(String, String)>,
    /// The last element of the path: a method of gRPC, of whatever service.
    pub last: Option<String>,
}

/// What a request says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// Its `Host`, with or without a port.
    pub host: &'a str,
    /// Its target in the form of a path.
    pub target: &'a str,
    /// Its method.
    pub method: &'a str,
    /// Its field lines, each with the line feed at its end.
    pub fields: &'a [u8],
}

/// The rules that are in force.
#[derive(Debug, Clone)]
pub struct RouteTable<T> {
    hosts: FxHashMap<String, Paths<T>>,
    /// By the host without its first label.
    wildcards: FxHashMap<String, Paths<T>>,
    /// Bytes of the longest name of a wildcard.
    longest: usize,
    any: Paths<T>,
    /// How many rules were added.
    added: usize,
    /// A `*.` stands for any number of labels, as the Gateway API has it. Otherwise for one, as for an
    /// Ingress.
    pub deep: bool,
    /// Whether a host that nobody claims has an owner, too: a listener without a host of its own.
    pub rest_is_owned: bool,
    /// What gets the requests that no rule is for.
    pub default: Option<T>,
}

/// The rules of one host.
#[derive(Debug, Clone)]
struct Paths<T> {
    exact: FxHashMap<String, Fits<T>>,
    /// Without a slash at the end.
    prefixes: FxHashMap<String, Fits<T>>,
    /// Bytes of the longest prefix.
    longest: usize,
    /// Requests that no rule here is for have no rule at all.
    is_claimed: bool,
}

/// The rules of one path.
#[derive(Debug, Clone)]
struct Fits<T> {
    /// The rules that want something, by what they want values of. The first come first.
    wanting: Vec<Wanting<T>>,
    /// The rule that wants nothing else.
    plain: Option<T>,
}

/// Rules that want values of the same things.
#[derive(Debug, Clone)]
struct Wanting<T> {
    names: Names,
    /// By the values that are wanted, in the order of the names, each with a line feed behind it. With
    /// each target stands when its rule was added.
    by_values: FxHashMap<Vec<u8>, (usize, T)>,
}

/// What a rule wants values of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    method: bool,
    last: bool,
    fields: Vec<String>,
    query: Vec<String>,
}

impl<T> Default for RouteTable<T> {
    fn default() -> Self {
        Self {
            hosts: FxHashMap::default(),
            wildcards: FxHashMap::default(),
            longest: 0,
            any: Paths::default(),
            added: 0,
            deep: false,
            rest_is_owned: false,
            default: None,
        }
    }
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Self {
            exact: FxHashMap::default(),
            prefixes: FxHashMap::default(),
            longest: 0,
            is_claimed: false,
        }
    }
}

impl<T> Default for Fits<T> {
    fn default() -> Self {
        Self {
            wanting: Vec::new(),
            plain: None,
        }
    }
}

impl<T> RouteTable<T> {
    /// Adds a rule.
    pub fn add(&mut self, rule: &Rule, target: T) {
        self.added += 1;
        let added = self.added;
        let paths = self.paths_of(rule.host.as_deref());
        let fits = match rule.exact {
            true => paths.exact.entry(rule.path.clone()),
            false => {
                let prefix = rule.path.trim_end_matches('/');
                paths.longest = paths.longest.max(prefix.len());
                paths.prefixes.entry(prefix.to_owned())
            }
        };
        fits.or_default().add(&rule.wants, added, target);
    }

    /// Gives a host, which may begin with `*.`, to the rules that are added for it and for more specific
    /// ones: its requests go by no rule of a less specific host, nor to the default. So the listeners of a
    /// Gateway are kept apart: each claims its host. A rule of a listener for a host that a more specific
    /// listener has must not be added.
    pub fn claim(&mut self, host: &str) {
        self.paths_of(Some(host)).is_claimed = true;
    }

    fn paths_of(&mut self, host: Option<&str>) -> &mut Paths<T> {
        match host.map(|it| (it, it.strip_prefix("*."))) {
            None => &mut self.any,
            Some((_, Some(parent))) => {
                self.longest = self.longest.max(parent.len());
                self.wildcards.entry(parent.to_owned()).or_default()
            }
            Some((host, None)) => self.hosts.entry(host.to_owned()).or_default(),
        }
    }

    /// What serves a request of which only this `Host` and this target are known.
    pub fn find(&self, host: &str, target: &str) -> Option<&T> {
        self.search(&Asked {
            host,
            target,
            ..Asked::default()
        })
    }

    /// What serves a request.
    pub fn search(&self, asked: &Asked<'_>) -> Option<&T> {
        let host = bare(asked.host);
        for paths in self.named(&host) {
            let found = paths.find(asked);
            if found.is_some() || paths.is_claimed {
                return found;
            }
        }
        self.any.find(asked).or(self.default.as_ref())
    }

    /// Whether a request for a host has come by a connection to a host of another owner: the client has
    /// taken the connection for one that serves both, as a certificate for both allows (RFC 9110 section
    /// 15.5.20). `connected` is the name of the client's TLS handshake.
    pub fn is_misdirected(&self, connected: &str, host: &str) -> bool {
        let host = bare(host);
        if connected.eq_ignore_ascii_case(&host) {
            return false;
        }
        match (self.owner(&bare(connected)), self.owner(&host)) {
            (Some(one), Some(other)) => !std::ptr::eq(one, other),
            _ => false,
        }
    }

    /// Whose rules a host goes by, if somebody has claimed it.
    fn owner(&self, host: &str) -> Option<&Paths<T>> {
        let claimed = self.named(host).find(|it| it.is_claimed);
        claimed.or(self.rest_is_owned.then_some(&self.any))
    }

    /// The rules that name a host, the most specific first.
    fn named(&self, host: &str) -> impl Iterator<Item = &Paths<T>> {
        let exact = self.hosts.get(host).into_iter();
        exact.chain(self.wildcards_of(host))
    }

    /// The rules of the wildcards that a host fits, the longest first.
    fn wildcards_of(&self, host: &str) -> impl Iterator<Item = &Paths<T>> {
        // No longer end of a host can be the name of a wildcard.
        let (from, most) = match self.deep {
            true => (host.len().saturating_sub(self.longest + 1), usize::MAX),
            false => (0, 1),
        };
        let dots = (from..host.len()).filter(move |at| host.as_bytes()[*at] == b'.');
        let names = dots.take(most).map(move |dot| &host[dot + 1..]);
        let names = names.filter(|name| name.len() <= self.longest);
        names.filter_map(|name| self.wildcards.get(name))
    }
}

impl<T> Paths<T> {
    fn find(&self, asked: &Asked<'_>) -> Option<&T> {
        let path = asked.path();
        let exact = self.exact.get(path).and_then(|fits| fits.find(asked));
        if exact.is_some() || self.prefixes.is_empty() {
            return exact;
        }
        let mut rest = path.trim_end_matches('/');
        if rest.len() > self.longest {
            // No longer part can be a prefix. What is cut off must begin with a slash.
            let mut end = self.longest;
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            rest = match rest.as_bytes()[end] {
                b'/' => &rest[..end],
                _ => &rest[..rest[..end].rfind('/').unwrap_or(0)],
            };
        }
        loop {
            let prefix = self.prefixes.get(rest);
            if let Some(found) = prefix.and_then(|fits| fits.find(asked)) {
                return Some(found);
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }
}

impl<T> Fits<T> {
    fn add(&mut self, wants: &Wants, added: usize, target: T) {
        let (names, values) = Names::of(wants);
        if values.is_empty() {
            self.plain.get_or_insert(target);
            return;
        }
        let same = self.wanting.iter().position(|it| it.names == names);
        let at = same.unwrap_or_else(|| {
            let before = |it: &Wanting<T>| it.names.rank() >= names.rank();
            let at = self.wanting.partition_point(before);
            let by_values = FxHashMap::default();
            self.wanting.insert(at, Wanting { names, by_values });
            at
        });
        let by_values = &mut self.wanting[at].by_values;
        by_values.entry(values).or_insert((added, target));
    }

    fn find(&self, asked: &Asked<'_>) -> Option<&T> {
        if self.wanting.is_empty() {
            return self.plain.as_ref();
        }
        let mut first: Option<(_, usize, &T)> = None;
        let mut values = Vec::with_capacity(VALUES);
        for Wanting { names, by_values } in &self.wanting {
            if first.is_some_and(|(rank, ..)| rank != names.rank()) {
                break;
            }
            values.clear();
            if names.read(asked, &mut values)
                && let Some((added, target)) = by_values.get(&values)
                && first.is_none_or(|(_, before, _)| added < &before)
            {
                first = Some((names.rank(), *added, target));
            }
        }
        first.map(|(.., target)| target).or(self.plain.as_ref())
    }
}

impl Names {
    /// What a rule wants values of, and these values.
    fn of(wants: &Wants) -> (Self, Vec<u8>) {
        let sorted = |pairs: &[(String, String)]| {
            let mut pairs = pairs.to_vec();
            pairs.sort_by(|one, other| one.0.cmp(&other.0));
            pairs.dedup_by(|next, first| next.0 == first.0);
            pairs.into_iter().unzip::<_, _, Vec<_>, Vec<_>>()
        };
        let (fields, field_values) = sorted(&wants.fields);
        let (query, query_values) = sorted(&wants.query);
        let names = Self {
            method: wants.method.is_some(),
            last: wants.last.is_some(),
            fields,
            query,
        };
        let mut values = Vec::new();
        let single = wants.method.iter().chain(&wants.last);
        for value in single.chain(&field_values).chain(&query_values) {
            end_value(&mut values, value.as_bytes());
        }
        (names, values)
    }

    /// Of two rules for one path, the one with the greater rank comes first.
    fn rank(&self) -> (bool, usize, usize) {
        let method = self.method || self.last;
        (method, self.fields.len(), self.query.len())
    }

    /// Reads the values of a request. Returns `false` if it has not all of them.
    fn read(&self, asked: &Asked<'_>, values: &mut Vec<u8>) -> bool {
        if self.method {
            end_value(values, asked.method.as_bytes());
        }
        if self.last {
            let (_, last) = asked.path().rsplit_once('/').unwrap_or_default();
            end_value(values, last.as_bytes());
        }
        let mut fields = self.fields.iter();
        if !fields.all(|name| read_field(asked.fields, name, values)) {
            return false;
        }
        let (_, query) = asked.target.split_once('?').unwrap_or_default();
        self.query.iter().all(|name| {
            let mut pairs = query
                .split('&')
                .map(|it| it.split_once('=').unwrap_or((it, "")));
            let found = pairs.find(|(key, _)| key == name);
            found.is_some_and(|(_, value)| {
                end_value(values, value.as_bytes());
                true
            })
        })
    }
}

/// No value has a line feed.
fn end_value(values: &mut Vec<u8>, value: &[u8]) {
    values.extend_from_slice(value);
    values.push(b'\n');
}

/// Reads the value of a field, and returns whether there is one.
fn read_field(mut lines: &[u8], name: &str, values: &mut Vec<u8>) -> bool {
    let mut found = false;
    while let Some(end) = memchr::memchr(b'\n', lines) {
        let (line, rest) = lines.split_at(end + 1);
        lines = rest;
        let Some((b':', value)) = line
            .get(name.len())
            .map(|it| (*it, &line[name.len() + 1..]))
        else {
            continue;
        };
        if line[..name.len()].eq_ignore_ascii_case(name.as_bytes()) {
            if found {
                values.pop();
                values.push(b',');
            }
            found = true;
            end_value(values, value.trim_ascii());
        }
    }
    found
}

impl<'a> Asked<'a> {
    fn path(&self) -> &'a str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// The host of a `Host` field (RFC 9110 section 7.2). A dot at its end means the same name.
pub fn without_port(host: &str) -> &str {
    let name = match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// The same in lower case, as the hosts of rules are.
fn bare(host: &str) -> Cow<'_, str> {
    let name = without_port(host);
    match name.bytes().any(|it| it.is_ascii_uppercase()) {
        true => name.to_ascii_lowercase().into(),
        false => name.into(),
    }
}

/// Most values that rules want are shorter together.
const VALUES: usize = 64;

#[cfg(test)]
mod tests;
