//! What the annotations of an Ingress ask for: a pure function of the Ingress.
//!
//! Invariants: what is not served is named. An annotation that protects, and that is not served or cannot
//! be read, closes its Ingress: every request is answered with 403.
//!
//! Source: <https://kubernetes.github.io/ingress-nginx/user-guide/nginx-configuration/annotations/>.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::contract::filters::{Filters, NewPath, Rewrite};
use crate::contract::policy::Protocol;
use crate::contract::route::Rule;
use crate::routing::nginx::cors;
use crate::routing::nginx::values::{
    body_size, is_true, nobody, number, ranges, redirect, seconds,
};

/// What the annotations of an Ingress ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// What is done with every request.
    pub filters: Filters,
    /// `ssl-redirect`: whether requests without TLS are redirected, where the Ingress has TLS.
    pub redirects_to_tls: bool,
    /// `force-ssl-redirect`: also where it has none.
    pub always_redirects_to_tls: bool,
    /// `rewrite-target`.
    rewrite: Option<String>,
    /// `use-regex`.
    is_regex: bool,
    /// `app-root`: where requests for `/` are redirected.
    pub app_root: Option<String>,
    /// `canary`.
    pub canary: Option<Canary>,
    /// `backend-protocol`, where endpoints speak HTTP/2 without being asked.
    pub protocol: Option<Protocol>,
    /// `backend-protocol`: endpoints speak TLS.
    pub wants_tls: bool,
    /// What is not served, in words.
    pub unserved: Vec<String>,
    /// What is served in another way than by nginx, in words.
    pub differs: Vec<String>,
}

/// A share of the requests of another Ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// `canary-weight` of `total`.
    pub weight: u32,
    /// `canary-weight-total`.
    pub total: u32,
    /// `canary-by-header`, in lower case.
    pub header: Option<String>,
    /// `canary-by-header-value`. `None`: `always` and `never` decide.
    pub value: Option<String>,
}

impl Keys {
    /// Reads annotations, without the prefix of their names.
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        let mut keys = Self {
            redirects_to_tls: true,
            ..Self::default()
        };
        let mut closed = false;
        for (key, value) in annotations {
            if let Err(what) = keys.take(key, value.trim(), annotations) {
                let protects = PROTECTS.iter().any(|it| key.starts_with(it));
                let and = if protects { CLOSED } else { "" };
                keys.unserved.push(format!("{PREFIX}{key}{what}{and}"));
                closed |= protects;
            }
        }
        if closed {
            keys.filters.source_ranges = nobody();
        }
        keys
    }

    /// Takes in one annotation.
    ///
    /// # Errors
    /// What is wrong with it, in words that follow its name.
    fn take(
        &mut self,
        key: &str,
        value: &str,
        all: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        match key {
            "ssl-redirect" => self.redirects_to_tls = is_true(value)?,
            "force-ssl-redirect" => self.always_redirects_to_tls = is_true(value)?,
            "rewrite-target" => self.rewrite = Some(value.to_owned()).filter(|it| !it.is_empty()),
            "use-regex" => self.is_regex = is_true(value)?,
            "proxy-body-size" => self.filters.body_size = body_size(value)?,
            "whitelist-source-range" | "allowlist-source-range" => {
                self.filters.source_ranges = ranges(value)?;
            }
            "proxy-connect-timeout" => self.connect_timeout(key, value)?,
            "proxy-read-timeout" | "proxy-send-timeout" => self.idle_timeout(key, value)?,
            "proxy-next-upstream" => self.next_upstream(key, value)?,
            "proxy-next-upstream-tries" => {
                let tries: u32 = number(value)?;
                let retry = self.filters.retry.get_or_insert_default();
                // 0: as many as there are endpoints.
                retry.attempts = tries.checked_sub(1);
            }
            "backend-protocol" => self.backend_protocol(value)?,
            "permanent-redirect" => {
                let status = match all.get("permanent-redirect-code") {
                    Some(code) => number(code)
                        .map_err(|_| ": permanent-redirect-code is not a status".to_owned())?,
                    None => 301,
                };
                self.filters.redirect = Some(redirect(value, status)?);
            }
            "temporal-redirect" if !all.contains_key("permanent-redirect") => {
                self.filters.redirect = Some(redirect(value, 302)?);
            }
            "permanent-redirect-code" if all.contains_key("permanent-redirect") => {}
            "app-root" if value.starts_with('/') => self.app_root = Some(value.to_owned()),
            "app-root" => return Err(format!(": expected a path, found {value:?}")),
            "canary" if is_true(value)? => {
                let (canary, wrong) = Canary::of(all);
                self.canary = Some(canary);
                return wrong;
            }
            "canary" => {}
            "canary-weight"
            | "canary-weight-total"
            | "canary-by-header"
            | "canary-by-header-value" => {}
            "enable-cors" if is_true(value)? => {
                self.filters.cors = Some(cors::of(all));
                self.differs.push(format!(
                    "{PREFIX}{key}: only what a browser asks before a request is answered here, 204; nginx \
                     answers every OPTIONS of a permitted origin"
                ));
            }
            "enable-cors" => {}
            "cors-allow-origin"
            | "cors-allow-methods"
            | "cors-allow-headers"
            | "cors-expose-headers"
            | "cors-allow-credentials"
            | "cors-max-age" => cors::check(key, value)?,
            // Here nothing of the kind is on.
            "enable-global-auth" | "enable-modsecurity" | "enable-owasp-core-rules"
                if value == "false" => {}
            "affinity" | "session-cookie-name" => return Err(AFFINITY.to_owned()),
            _ => return Err(" is not served".to_owned()),
        }
        Ok(())
    }

    fn connect_timeout(&mut self, key: &str, value: &str) -> Result<(), String> {
        seconds(value)?;
        self.differs.push(format!(
            "{PREFIX}{key}: a connect that is not answered within 100 ms is raced by one to another endpoint; \
             timeouts.connect bounds each, for every Service"
        ));
        Ok(())
    }

    /// nginx bounds the time between two pieces. Here an endpoint that is alive is never cut for being
    /// slow (contract 1.12), so every bound that nginx allows is kept, and no shorter one is.
    fn idle_timeout(&mut self, key: &str, value: &str) -> Result<(), String> {
        if seconds(value)? < NGINX_TIMEOUT {
            return Err(
                " is not served: an endpoint that is alive is not cut for being slow; timeouts.request \
                 bounds a request"
                    .to_owned(),
            );
        }
        self.differs.push(format!(
            "{PREFIX}{key}: there is no bound between two pieces of an answer or a request"
        ));
        Ok(())
    }

    fn next_upstream(&mut self, key: &str, value: &str) -> Result<(), String> {
        let (mut codes, mut wrong) = (Vec::new(), Ok(()));
        for word in value.split_whitespace() {
            let what = match word {
                // Always, as far as the method allows it.
                "error" | "timeout" | "invalid_header" => continue,
                "off" => {
                    ": off is not served: what is lost before its answer has begun is asked for again; \
                     ebbtide.dev/retry-attempts: \"1\" on the Service ends that"
                        .to_owned()
                }
                "non_idempotent" => {
                    ": non_idempotent is not served; set ebbtide.dev/retry-non-idempotent: always on the \
                     Service"
                        .to_owned()
                }
                word => match word.strip_prefix("http_").map(str::parse) {
                    Some(Ok(code)) if (400..600).contains(&code) => {
                        codes.push(code);
                        continue;
                    }
                    _ => format!(": {word:?} is not known"),
                },
            };
            wrong = wrong.and(Err(what));
        }
        if !codes.is_empty() {
            self.filters.retry.get_or_insert_default().codes = codes;
        }
        self.differs.push(format!(
            "{PREFIX}{key}: a request that is lost before its answer has begun is always asked for again, if \
             its method is idempotent"
        ));
        wrong
    }

    fn backend_protocol(&mut self, value: &str) -> Result<(), String> {
        match value.to_ascii_uppercase().as_str() {
            "HTTP" | "AUTO_HTTP" => {}
            "GRPC" => self.protocol = Some(Protocol::Http2),
            "HTTPS" => self.wants_tls = true,
            "GRPCS" => (self.wants_tls, self.protocol) = (true, Some(Protocol::Http2)),
            _ => return Err(format!(": {value} is not served")),
        }
        Ok(())
    }

    /// A rule as these annotations change it, and what is done with its requests. `None`: it is a
    /// regular expression that is not served.
    pub fn apply<'a>(&self, rule: &'a Rule) -> Option<(Cow<'a, Rule>, Filters)> {
        let mut filters = self.filters.clone();
        let is_literal = !rule.path.contains(REGEX);
        let Some(target) = &self.rewrite else {
            return (is_literal || !self.is_regex).then_some((Cow::Borrowed(rule), filters));
        };
        if is_literal && !target.contains('$') {
            let path = Some(NewPath::Full(target.clone()));
            filters.rewrite = Some(Rewrite { host: None, path });
            return Some((Cow::Borrowed(rule), filters));
        }
        let (prefix, rest) = STRIPPED.iter().find_map(|(end, rest)| {
            let prefix = rule.path.strip_suffix(end)?;
            (!prefix.contains(REGEX)).then_some((prefix, rest))
        })?;
        let to = target.strip_suffix(rest).filter(|it| !it.contains('$'))?;
        let path = if prefix.is_empty() { "/" } else { prefix };
        filters.rewrite = Some(Rewrite {
            host: None,
            path: Some(NewPath::Prefix {
                of: path.to_owned(),
                to: to.to_owned(),
            }),
        });
        let rule = Rule {
            path: path.to_owned(),
            exact: false,
            ..rule.clone()
        };
        Some((Cow::Owned(rule), filters))
    }
}

impl Canary {
    /// With what is wrong with it: a weight that cannot be read is 0, as with nginx.
    fn of(all: &BTreeMap<String, String>) -> (Self, Result<(), String>) {
        let mut wrong = Ok(());
        let mut read = |key: &str, default, instead| match all.get(key) {
            Some(text) => number(text.trim()).unwrap_or_else(|what| {
                wrong = Err(format!(": {key}{what}"));
                instead
            }),
            None => default,
        };
        let (weight, total) = (
            read("canary-weight", 0, 0),
            read("canary-weight-total", 100, 100),
        );
        let header = all.get("canary-by-header");
        let canary = Self {
            weight: weight.min(total),
            total,
            header: header.map(|it| it.trim().to_ascii_lowercase()),
            value: all.get("canary-by-header-value").cloned(),
        };
        (canary, wrong)
    }
}

/// What all of these annotations begin with.
pub const PREFIX: &str = "nginx.ingress.kubernetes.io/";
/// Annotations without which others could ask.
const PROTECTS: &[&str] = &[
    "auth-",
    "allowlist-source-range",
    "whitelist-source-range",
    "denylist-source-range",
    "enable-global-auth",
    "enable-modsecurity",
    "enable-owasp",
    "modsecurity-",
    "satisfy",
];
const CLOSED: &str = ", and it protects: every request of this Ingress is answered with 403";
const AFFINITY: &str = " is not served: requests go to any endpoint";
/// What makes a path a regular expression.
const REGEX: [char; 12] = ['(', ')', '[', ']', '{', '}', '*', '+', '?', '|', '^', '$'];
/// The ends of regular expressions that stand for the rest of a path, and how a target ends that keeps it.
const STRIPPED: &[(&str, &str)] = &[
    ("(/|$)(.*)", "$2"),
    ("(/|$)(.*)$", "$2"),
    ("/(.*)", "$1"),
    ("/(.*)$", "$1"),
    ("/?(.*)", "$1"),
];
/// As long as nginx waits by default.
const NGINX_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::filters::Retry;

    fn keys(all: &[(&str, &str)]) -> Keys {
        let all = all
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Keys::of(&all.collect())
    }

    fn unserved(all: &[(&str, &str)]) -> Vec<String> {
        let all = keys(all).unserved;
        all.into_iter()
            .map(|it| it.strip_prefix(PREFIX).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn what_protects_and_is_not_served_closes_the_ingress() {
        for (key, value) in [
            ("auth-url", "http://auth"),
            ("auth-type", "basic"),
            ("denylist-source-range", "10.0.0.0/8"),
            ("whitelist-source-range", "10.0.0.0/8, ten"),
            ("allowlist-source-range", ""),
        ] {
            let keys = keys(&[(key, value)]);
            assert_eq!(keys.filters.source_ranges, nobody(), "{key}");
            assert!(keys.unserved[0].ends_with("403"), "{:?}", keys.unserved);
        }
        let good = keys(&[("whitelist-source-range", "10.0.0.0/8,192.0.2.1")]);
        let texts = good.filters.source_ranges.iter().map(ToString::to_string);
        assert_eq!(texts.collect::<Vec<_>>(), ["10.0.0.0/8", "192.0.2.1/32"]);
        assert_eq!(keys(&[("server-snippet", "x")]).filters, Filters::default());
    }

    /// The names are those of the documentation: a list of its table, its text and its risks.
    #[test]
    fn each_documented_annotation_counts_or_is_named() {
        let names = include_str!("../../../tests/fixtures/nginx/annotations.txt").lines();
        // Without these, others say nothing to nginx either.
        let parents = [
            ("canary", "true"),
            ("canary-by-header", "x"),
            ("enable-cors", "true"),
        ];
        let mut count = 0;
        for name in names {
            count += 1;
            let mut parents = parents.to_vec();
            if name == "permanent-redirect-code" {
                parents.push(("permanent-redirect", "https://a.example"));
            }
            parents.retain(|(parent, _)| *parent != name);
            for value in ["?", "on", "true", ""] {
                let without = keys(&parents);
                let with = keys(&[&parents[..], &[(name, value)]].concat());
                let texts = with.unserved.iter().chain(&with.differs);
                let is_named = texts
                    .filter(|it| !without.differs.contains(it))
                    .any(|it| it.contains(name));
                // An empty target rewrites nothing, with nginx too.
                let is_nothing = value.is_empty() && name == "rewrite-target";
                let counts = with.filters != without.filters
                    || with.canary != without.canary
                    || with.is_regex
                    || with.rewrite.is_some()
                    || with.always_redirects_to_tls;
                // On is the default. To pages of any origin, a login is never permitted.
                let on = ["ssl-redirect", "cors-allow-credentials"];
                let is_default = on.contains(&name) && value == "true";
                assert!(
                    is_named || counts || is_default || is_nothing,
                    "{name}: {value:?}"
                );
            }
        }
        assert!(count > 140, "{count}");
    }

    #[test]
    fn every_annotation_that_is_not_served_is_named() {
        assert_eq!(
            unserved(&[
                ("affinity", "cookie"),
                ("proxy-body-size", "8x"),
                ("proxy-buffering", "on"),
                ("proxy-connect-timeout", "5"),
                ("proxy-next-upstream", "error timeout"),
                ("proxy-read-timeout", "3600"),
                ("proxy-send-timeout", "5s"),
                ("ssl-redirect", "maybe"),
            ]),
            [
                "affinity is not served: requests go to any endpoint",
                "proxy-body-size: expected a size such as 8m, found \"8x\"",
                "proxy-buffering is not served",
                "proxy-send-timeout is not served: an endpoint that is alive is not cut for being slow; \
                 timeouts.request bounds a request",
                "ssl-redirect: expected true or false, found \"maybe\"",
            ]
        );
        assert_eq!(keys(&[("proxy-read-timeout", "3600")]).differs.len(), 1);
    }

    /// A canary whose weight has a typo must not become the whole application.
    #[test]
    fn a_canary_of_a_weight_that_cannot_be_read_gets_nothing() {
        for weight in ["5%", "-1", "x"] {
            let wanted = [("canary", "true"), ("canary-weight", weight)];
            let keys = keys(&wanted);
            assert_eq!(keys.canary.map(|it| it.weight), Some(0), "{weight}");
            assert!(keys.unserved[0].contains("canary-weight"), "{weight}");
        }
    }

    #[test]
    fn what_is_not_on_is_not_missed() {
        let off = [
            ("enable-modsecurity", "false"),
            ("enable-global-auth", "false"),
        ];
        assert_eq!(unserved(&off), [""; 0]);
        // It names whom a limit spares.
        let spared = keys(&[("limit-whitelist", "10.0.0.0/8")]);
        assert_eq!(spared.filters, Filters::default());
        assert_eq!(spared.unserved.len(), 1);
    }

    #[test]
    fn sizes_and_retries_are_those_of_nginx() {
        let size = |text| keys(&[("proxy-body-size", text)]).filters.body_size;
        assert_eq!(size("8m"), Some(8 << 20));
        assert_eq!(size("1024"), Some(1024));
        assert_eq!(size("2G"), Some(2 << 30));
        assert_eq!(size("0"), None);
        let wanted = [
            ("proxy-next-upstream", "error http_503 http_504"),
            ("proxy-next-upstream-tries", "3"),
        ];
        let expected = Retry {
            codes: vec![503, 504],
            attempts: Some(2),
            backoff: None,
        };
        assert_eq!(keys(&wanted).filters.retry, Some(expected));
        // What of it is not served does not void the rest.
        let partly = keys(&[("proxy-next-upstream", "error non_idempotent http_503")]);
        assert_eq!(partly.filters.retry.unwrap().codes, [503]);
        assert_eq!(partly.unserved.len(), 1);
        let unbounded = keys(&[("proxy-next-upstream-tries", "0")]);
        assert_eq!(unbounded.filters.retry, Some(Retry::default()));
        assert_eq!(
            keys(&[("proxy-next-upstream", "error")]).filters.retry,
            None
        );
    }

    #[test]
    fn paths_are_rewritten_as_a_whole_or_by_their_prefix() {
        let rewritten = |path: &str, all: &[(&str, &str)]| {
            let rule = Rule {
                path: path.to_owned(),
                ..Rule::default()
            };
            let keys = keys(all);
            let (rule, filters) = keys.apply(&rule)?;
            Some((rule.path.clone(), filters.rewrite.and_then(|it| it.path)))
        };
        let some = |path: &str, to| Some((path.to_owned(), Some(to)));
        let full = |to: &str| NewPath::Full(to.to_owned());
        let prefix = |of: &str, to: &str| NewPath::Prefix {
            of: of.to_owned(),
            to: to.to_owned(),
        };
        let to = |target| [("rewrite-target", target), ("use-regex", "true")];
        assert_eq!(rewritten("/a", &to("/")), some("/a", full("/")));
        assert_eq!(
            rewritten("/a(/|$)(.*)", &to("/$2")),
            some("/a", prefix("/a", "/"))
        );
        assert_eq!(
            rewritten("/a/(.*)", &to("/b/$1")),
            some("/a", prefix("/a", "/b/"))
        );
        assert_eq!(
            rewritten("/(.*)", &to("/b/$1")),
            some("/", prefix("/", "/b/"))
        );
        assert_eq!(rewritten("/a/([0-9]+)/(.*)", &to("/$1")), None);
        assert_eq!(rewritten("/a(/|$)(.*)", &to("/$1")), None);
        assert_eq!(rewritten("/a(/|$)(.*)", &to("/$1/$2")), None);
        assert_eq!(
            rewritten("/a", &[("use-regex", "true")]),
            Some(("/a".to_owned(), None))
        );
        assert_eq!(rewritten("/a.*", &[("use-regex", "true")]), None);
        assert_eq!(rewritten("/a.*", &[]), Some(("/a.*".to_owned(), None)));
    }
}
