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
        let lower;
        let mut host = without_port(asked.host);
        if host.bytes().any(|it| it.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            host = &lower;
        }
        let named = self.hosts.get(host).into_iter();
        for paths in named.chain(self.wildcards_of(host)) {
            let found = paths.find(asked);
            if found.is_some() || paths.is_claimed {
                return found;
            }
        }
        self.any.find(asked).or(self.default.as_ref())
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

/// Most values that rules want are shorter together.
const VALUES: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    /// The documentation's own words, without a thought for speed: the place of the rule that serves.
    fn naive(rules: &[Rule], claims: &[&str], deep: bool, asked: &Asked<'_>) -> Option<usize> {
        let elements = |path: &str| -> Vec<String> {
            let path = path.trim_end_matches('/');
            path.split('/').map(str::to_owned).collect()
        };
        let host_rank = |wanted: Option<&str>| match wanted {
            None => Some((0, 0)),
            Some(wanted) if wanted == asked.host => Some((2, 0)),
            Some(wanted) => {
                let parent = wanted.strip_prefix("*.")?;
                let label = asked.host.strip_suffix(parent)?.strip_suffix('.')?;
                (deep || !label.contains('.')).then_some((1, parent.len()))
            }
        };
        let claimed = claims.iter().filter_map(|it| host_rank(Some(it))).max();
        let (path, query) = asked.target.split_once('?').unwrap_or((asked.target, ""));
        let lines = std::str::from_utf8(asked.fields).unwrap();
        let rank = |rule: &Rule| {
            let host = host_rank(rule.host.as_deref()).filter(|it| Some(*it) >= claimed)?;
            let (wanted, parts) = (elements(&rule.path), elements(path));
            let fits = match rule.exact {
                true => rule.path == path,
                false => parts.len() >= wanted.len() && parts[..wanted.len()] == wanted,
            };
            let wants = &rule.wants;
            let has_field = |(name, value): &(String, String)| {
                let lines = lines.lines().filter_map(|line| line.split_once(": "));
                let of_name = lines.filter(|(it, _)| it.to_lowercase() == *name);
                of_name.map(|it| it.1).collect::<Vec<_>>().join(",") == *value
            };
            let has_pair = |(name, value): &(String, String)| {
                let begins = format!("{name}=");
                query.split('&').find_map(|it| it.strip_prefix(&begins)) == Some(value)
            };
            let fits = fits
                && wants.method.as_ref().is_none_or(|it| it == asked.method)
                && wants
                    .last
                    .as_ref()
                    .is_none_or(|it| path.split('/').next_back() == Some(it))
                && wants.fields.iter().all(has_field)
                && wants.query.iter().all(has_pair);
            let method = wants.method.is_some() || wants.last.is_some();
            let wants = (method, wants.fields.len(), wants.query.len());
            fits.then_some((host, rule.exact, wanted.len(), wants))
        };
        let ranked = rules.iter().enumerate();
        let ranked = ranked.filter_map(|(place, rule)| Some((rank(rule)?, place)));
        let best = ranked.max_by_key(|(rank, place)| (*rank, std::cmp::Reverse(*place)));
        best.map(|(_, place)| place)
    }

    fn table(rules: &[Rule]) -> RouteTable<usize> {
        let mut table = RouteTable::default();
        for (place, rule) in rules.iter().enumerate() {
            table.add(rule, place);
        }
        table
    }

    fn pairs(all: &'static [(&str, &str)]) -> impl Strategy<Value = Vec<(String, String)>> {
        proptest::sample::subsequence(all, 0..=2).prop_map(|some| {
            let owned = some
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()));
            let mut owned: Vec<_> = owned.collect();
            owned.dedup_by(|next, first| next.0 == first.0);
            owned
        })
    }

    /// In half of all rules it wants nothing.
    fn wants() -> impl Strategy<Value = Wants> {
        let some = |all: &'static [&str]| proptest::option::weighted(0.3, select(all));
        let fields = pairs(&[("x", "1"), ("x", "2"), ("x", "1,2"), ("y", "1")]);
        let query = pairs(&[("q", "1"), ("q", "2"), ("r", "1")]);
        let wants = (some(&["GET", "POST"]), fields, query, some(&["a", "b"]));
        let wants = wants.prop_map(|(method, fields, query, last)| Wants {
            method: method.map(str::to_owned),
            last: last.map(str::to_owned),
            fields,
            query,
        });
        prop_oneof![Just(Wants::default()), wants]
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let host = select(vec![
            None,
            Some("a.x"),
            Some("b.x"),
            Some("*.x"),
            Some("*.a.x"),
        ]);
        let path = "((/[ab]{0,2}){1,4}/?|(/a){1,2})";
        let rule = (host, path, any::<bool>(), wants());
        let rule = rule.prop_map(|(host, path, exact, wants)| Rule {
            host: host.map(str::to_owned),
            path,
            exact,
            wants,
        });
        proptest::collection::vec(rule, 0..16)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

        #[test]
        fn a_table_finds_what_the_documentation_says(
            rules in rules(),
            claims in proptest::sample::subsequence(vec!["a.x", "*.x", "*.a.x"], 0..=2),
            deep in any::<bool>(),
            host in "(a\\.x|b\\.x|c\\.a\\.x|d\\.c\\.a\\.x|x|d\\.x)",
            target in "((/[ab]{0,2}){1,6}/{0,2}|(/a){1,3})(\\?(q=[12])?(&r=1)?(&q=1)?)?",
            method in "(GET|POST|PUT)",
            fields in "(X: 1\r\n)?(x: 2\r\n)?(Y: 1\r\n)?(xy: 1\r\n)?",
        ) {
            let mut table = table(&rules);
            table.deep = deep;
            claims.iter().for_each(|host| table.claim(host));
            let (host, target, method) = (&*host, &*target, &*method);
            let asked = Asked { host, target, method, fields: fields.as_bytes() };
            let found = table.search(&asked).copied();
            prop_assert_eq!(found, naive(&rules, &claims, deep, &asked));
        }
    }

    /// The order that the Gateway API gives to the rules that a request fits, the first one first.
    #[test]
    fn rules_count_in_the_order_of_the_gateway_api() {
        let rule = |host: Option<&str>, path: &str, exact, wants: &[&str]| {
            let mut rule = Rule {
                host: host.map(str::to_owned),
                path: path.to_owned(),
                exact,
                ..Rule::default()
            };
            for want in wants {
                let pair = (want.to_string(), "1".to_owned());
                match *want {
                    "GET" => rule.wants.method = Some("GET".to_owned()),
                    "q" => rule.wants.query.push(pair),
                    _ => rule.wants.fields.push(pair),
                }
            }
            rule
        };
        let mut rules = vec![
            rule(Some("b.a.x"), "/a/b", true, &[]),
            rule(Some("b.a.x"), "/a/b", false, &["GET"]),
            rule(Some("b.a.x"), "/a/b", false, &["x", "y"]),
            rule(Some("b.a.x"), "/a/b", false, &["x", "q"]),
            rule(Some("b.a.x"), "/a/b", false, &["x"]),
            rule(Some("b.a.x"), "/a/b", false, &["y"]),
            rule(Some("b.a.x"), "/a/b", false, &["q"]),
            rule(Some("b.a.x"), "/a/b", false, &[]),
            rule(Some("b.a.x"), "/a", false, &["GET", "x", "y", "q"]),
            rule(Some("*.a.x"), "/", false, &[]),
            rule(Some("*.x"), "/a/b", true, &["GET"]),
            rule(None, "/a/b", true, &["GET"]),
        ];
        let asked = Asked {
            host: "b.a.x",
            target: "/a/b?q=1",
            method: "GET",
            fields: b"x: 1\r\ny: 1\r\n",
        };
        let first = |rules: &[Rule]| {
            let mut table = table(rules);
            table.deep = true;
            *table.search(&asked).unwrap()
        };
        let mut unsure = Vec::new();
        while let Some(rule) = rules.first().cloned() {
            assert_eq!(first(&rules), 0, "{rule:?}");
            // Of equals alone, the one that was added first counts.
            let backwards: Vec<_> = rules.iter().rev().cloned().collect();
            if first(&backwards) != rules.len() - 1 {
                unsure.push(rule);
            }
            rules.remove(0);
        }
        let ties: Vec<_> = unsure.iter().map(|rule| &rule.wants.fields[..]).collect();
        assert_eq!(ties, [[("x".to_owned(), "1".to_owned())]]);
    }

    #[test]
    fn a_claimed_host_goes_by_no_rule_of_a_less_specific_one() {
        let rule = |host: Option<&str>, path: &str| Rule {
            host: host.map(str::to_owned),
            path: path.to_owned(),
            ..Rule::default()
        };
        let rules = [
            rule(Some("a.b.x"), "/own"),
            rule(Some("*.x"), "/wild"),
            rule(None, "/any"),
        ];
        let mut table = table(&rules);
        (table.deep, table.default) = (true, Some(9));
        let found = |table: &RouteTable<usize>| {
            ["/own", "/wild", "/any", "/none"].map(|path| table.find("a.b.x", path).copied())
        };
        assert_eq!(found(&table), [Some(0), Some(1), Some(2), Some(9)]);
        table.claim("*.x");
        assert_eq!(found(&table), [Some(0), Some(1), None, None]);
        table.claim("a.b.x");
        assert_eq!(found(&table), [Some(0), None, None, None]);
        assert_eq!(table.find("y", "/any"), Some(&2));
    }

    #[test]
    fn a_wildcard_is_for_one_label_or_for_any_number() {
        let rule = |host: &str| Rule {
            host: Some(host.to_owned()),
            path: "/".to_owned(),
            ..Rule::default()
        };
        let mut table = table(&[rule("*.x"), rule("*.b.x")]);
        let found = |table: &RouteTable<usize>| {
            ["x", "a.x", "a.b.x", "a.c.x", "d.a.b.x"].map(|host| table.find(host, "/").copied())
        };
        assert_eq!(found(&table), [None, Some(0), Some(1), None, None]);
        table.deep = true;
        assert_eq!(found(&table), [None, Some(0), Some(1), Some(0), Some(1)]);
        // No host makes a search longer than the rules do.
        assert_eq!(table.find(&"a.".repeat(8 << 10), "/"), None);
        assert_eq!(table.find(&("a.".repeat(8 << 10) + "x"), "/"), Some(&0));
    }

    #[test]
    fn hosts_are_compared_without_case_port_and_last_dot() {
        let rule = |host: &str| Rule {
            host: Some(host.to_owned()),
            path: "/".to_owned(),
            ..Rule::default()
        };
        let table = table(&[rule("a.x"), rule("*.x"), rule("[::1]")]);
        for (host, found) in [
            ("A.x", Some(0)),
            ("a.X:8080", Some(0)),
            ("a.x.", Some(0)),
            ("b.x:80", Some(1)),
            ("c.b.x", None),
            ("x", None),
            (".x", Some(1)),
            ("", None),
            (":", None),
            ("[::1]", Some(2)),
            ("[::1]:80", Some(2)),
        ] {
            assert_eq!(table.find(host, "/").copied(), found, "{host:?}");
        }
    }

    #[test]
    fn the_query_is_no_part_of_a_path_and_the_default_gets_the_rest() {
        let rule = |path: &str, exact| Rule {
            host: None,
            path: path.to_owned(),
            exact,
            ..Rule::default()
        };
        let mut table = table(&[rule("/a", true), rule("/ä/b", false)]);
        assert_eq!(table.find("x", "/a?b=/c"), Some(&0));
        assert_eq!(table.find("x", "/ä/b/ü?b"), Some(&1));
        assert_eq!(table.find("x", "/äöü"), None);
        assert_eq!(table.find("x", "*"), None);
        table.default = Some(7);
        assert_eq!(table.find("x", "/äöü/äöü"), Some(&7));
        assert_eq!(table.find("x", ""), Some(&7));
    }

    /// For gRPC: its method comes before any number of fields, as in a GRPCRoute.
    #[test]
    fn the_last_element_of_a_path_counts_as_a_method() {
        let mut rules = [Rule::default(), Rule::default()];
        rules[0].wants.fields = vec![("x".to_owned(), "1".to_owned())];
        rules[1].wants.last = Some("Get".to_owned());
        let table = table(&rules.map(|rule| Rule {
            path: "/".to_owned(),
            ..rule
        }));
        let found = |target: &str| {
            let fields = b"x: 1\r\n";
            let asked = Asked {
                target,
                fields,
                ..Asked::default()
            };
            table.search(&asked).copied()
        };
        assert_eq!(found("/shop.Cart/Get?a"), Some(1));
        assert_eq!(found("/shop.Cart/GetAll"), Some(0));
    }

    /// A value that holds the beginning of another is not taken for it.
    #[test]
    fn values_of_several_wants_are_kept_apart() {
        let wants = |pairs: &[(&str, &str)]| Rule {
            path: "/".to_owned(),
            wants: Wants {
                fields: pairs
                    .iter()
                    .map(|(a, b)| (a.to_string(), b.to_string()))
                    .collect(),
                ..Wants::default()
            },
            ..Rule::default()
        };
        let table = table(&[
            wants(&[("x", "ab"), ("y", "c")]),
            wants(&[("y", "bc"), ("x", "a")]),
        ]);
        let found = |fields: &str| {
            let asked = Asked {
                target: "/",
                fields: fields.as_bytes(),
                ..Asked::default()
            };
            table.search(&asked).copied()
        };
        assert_eq!(found("x: ab\r\nY:c\r\n"), Some(0));
        assert_eq!(found("x:  a \r\ny: bc\r\n"), Some(1));
        assert_eq!(found("x: abc\r\ny: \r\n"), None);
        assert_eq!(found("x: ab\r\n"), None);
    }
}
