//! Host and path routes: what serves a request.
//!
//! Invariants: a table never changes, so a reader takes no lock. The rules for exactly the host of a
//! request come first, then those for `*.` and the host without its first label, then those for every
//! host, then the default. Among the rules of one host, an exact path comes first, then the longest
//! prefix of whole elements. Of two rules for the same requests, the one that was added first counts.
//! A search takes as many steps as the longest prefix of the host has elements, whatever is asked.
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/ingress/#path-types>. An element is
//! compared as it was sent, without decoding.

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
    /// Fields and their values. Names are in lower case, each at most once.
    pub fields: Vec<(String, String)>,
    /// Parameters of the query and their values, each name at most once.
    pub query: Vec<(String, String)>,
    /// The last element of the path: a method of gRPC, of whatever service.
    pub last: Option<String>,
}

/// The rules that are in force.
#[derive(Debug, Clone)]
pub struct RouteTable<T> {
    hosts: FxHashMap<String, Paths<T>>,
    /// By the host without its first label.
    wildcards: FxHashMap<String, Paths<T>>,
    any: Paths<T>,
    /// What gets the requests that no rule is for.
    pub default: Option<T>,
}

/// The rules of one host.
#[derive(Debug, Clone)]
struct Paths<T> {
    exact: FxHashMap<String, T>,
    /// Without a slash at the end.
    prefixes: FxHashMap<String, T>,
    /// Bytes of the longest prefix.
    longest: usize,
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Self {
            exact: FxHashMap::default(),
            prefixes: FxHashMap::default(),
            longest: 0,
        }
    }
}

impl<T> Default for RouteTable<T> {
    fn default() -> Self {
        Self {
            hosts: FxHashMap::default(),
            wildcards: FxHashMap::default(),
            any: Paths::default(),
            default: None,
        }
    }
}

impl<T> RouteTable<T> {
    /// Adds a rule.
    pub fn add(&mut self, rule: &Rule, target: T) {
        let paths = match rule.host.as_deref().map(|it| (it, it.strip_prefix("*."))) {
            None => &mut self.any,
            Some((_, Some(parent))) => self.wildcards.entry(parent.to_owned()).or_default(),
            Some((host, None)) => self.hosts.entry(host.to_owned()).or_default(),
        };
        if rule.exact {
            paths.exact.entry(rule.path.clone()).or_insert(target);
            return;
        }
        let prefix = rule.path.trim_end_matches('/');
        paths.longest = paths.longest.max(prefix.len());
        paths.prefixes.entry(prefix.to_owned()).or_insert(target);
    }

    /// What serves a request for this `Host` and this target in the form of a path.
    pub fn find(&self, host: &str, target: &str) -> Option<&T> {
        let path = target.split('?').next().unwrap_or_default();
        let lower;
        let mut host = without_port(host);
        if host.bytes().any(|it| it.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            host = &lower;
        }
        let parent = || host.split_once('.').map(|(_, parent)| parent);
        let named = self.hosts.get(host).and_then(|it| it.find(path));
        let named = named.or_else(|| self.wildcards.get(parent()?)?.find(path));
        let named = named.or_else(|| self.any.find(path));
        named.or(self.default.as_ref())
    }
}

impl<T> Paths<T> {
    fn find(&self, path: &str) -> Option<&T> {
        if let Some(exact) = self.exact.get(path) {
            return Some(exact);
        }
        if self.prefixes.is_empty() {
            return None;
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
            if let Some(found) = self.prefixes.get(rest) {
                return Some(found);
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }
}

/// The host of a `Host` field (RFC 9110 section 7.2). A dot at its end means the same name.
fn without_port(host: &str) -> &str {
    let name = match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The documentation's own words, without a thought for speed: the place of the rule that serves.
    fn naive(rules: &[Rule], host: &str, path: &str) -> Option<usize> {
        let elements = |path: &str| -> Vec<String> {
            let path = path.trim_end_matches('/');
            path.split('/').map(str::to_owned).collect()
        };
        let rank = |rule: &Rule| {
            let host = match rule.host.as_deref() {
                None => 0,
                Some(wanted) if wanted == host => 2,
                Some(wanted) => {
                    let (_, parent) = host.split_once('.')?;
                    (wanted.strip_prefix("*.")? == parent).then_some(1)?
                }
            };
            let (wanted, asked) = (elements(&rule.path), elements(path));
            let fits = match rule.exact {
                true => rule.path == path,
                false => asked.len() >= wanted.len() && asked[..wanted.len()] == wanted,
            };
            fits.then_some((host, rule.exact, wanted.len()))
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

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let host = proptest::option::of(prop_oneof![
            Just("a.x".to_owned()),
            Just("b.x".to_owned()),
            Just("*.x".to_owned()),
            Just("*.a.x".to_owned()),
        ]);
        let rule = (host, "(/[ab]{0,2}){1,4}/?", any::<bool>());
        let rule = rule.prop_map(|(host, path, exact)| Rule {
            host,
            path,
            exact,
            ..Rule::default()
        });
        proptest::collection::vec(rule, 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn a_table_finds_what_the_documentation_says(
            rules in rules(),
            host in "(a\\.x|b\\.x|c\\.a\\.x|x|d\\.x)",
            path in "(/[ab]{0,2}){1,6}/{0,2}",
        ) {
            let found = table(&rules).find(&host, &path).copied();
            prop_assert_eq!(found, naive(&rules, &host, &path));
        }
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
}
