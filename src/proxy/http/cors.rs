//! What a CORS filter makes of a request from a page of another origin.
//!
//! Invariant: without a permitted origin, no field is added. Everything here is a pure function.
//!
//! Source: <https://fetch.spec.whatwg.org/#http-cors-protocol>, and
//! <https://gateway-api.sigs.k8s.io/reference/spec/#httpcorsfilter>.

use crate::contract::filters::Cors;

/// The field that permits cookies and logins.
pub(super) const CREDENTIALS: &str = "access-control-allow-credentials";

/// What a browser asks before the request itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preflight<'a> {
    /// The method of the request.
    pub(super) method: &'a str,
    /// The names of its fields.
    pub(super) fields: Option<&'a str>,
}

/// The fields of the answer to a page of this origin.
pub(super) fn fields(
    cors: &Cors,
    origin: &str,
    preflight: Option<Preflight<'_>>,
) -> Vec<(String, String)> {
    let mut origins = cors.origins.iter();
    if !origins.any(|it| permits(it, origin, cors.one_label)) {
        return Vec::new();
    }
    let mut fields = Vec::new();
    let mut say = |name: &str, value: &str| fields.push((name.to_owned(), value.to_owned()));
    say("access-control-allow-origin", origin);
    if cors.credentials {
        say(CREDENTIALS, "true");
    }
    // With credentials, a browser takes `*` for a name.
    let exposed = Some(cors.expose.join(", "));
    if let Some(exposed) = exposed.filter(|it| !it.is_empty() && (it != "*" || !cors.credentials)) {
        say("access-control-expose-headers", &exposed);
    }
    if let Some(asked) = preflight {
        let lists = [
            (
                "access-control-allow-methods",
                &cors.methods,
                Some(asked.method),
            ),
            ("access-control-allow-headers", &cors.headers, asked.fields),
        ];
        for (name, list, asked) in lists {
            match list.as_slice() {
                [] => {}
                [all] if all == "*" => asked.into_iter().for_each(|it| say(name, it)),
                some => say(name, &some.join(", ")),
            }
        }
        say("access-control-max-age", &cors.max_age.to_string());
    }
    fields
}

/// Whether an origin is one of `permitted`, in which `*` stands for all hosts, or all hosts of a domain. With
/// `one_label` they are one label below it.
fn permits(permitted: &str, origin: &str, one_label: bool) -> bool {
    if permitted == "*" || permitted == "null" && origin == "null" {
        return true;
    }
    let (Some((scheme, host, port)), Some(asked)) = (parts(permitted), parts(origin)) else {
        return false;
    };
    let is_host = match host.strip_prefix('*') {
        // The domain itself has no label to the left.
        Some(domain) => {
            let begin = asked.1.len().checked_sub(domain.len());
            begin.is_some_and(|at| {
                let (label, end) = asked.1.split_at_checked(at).unwrap_or_default();
                !label.is_empty()
                    && end.eq_ignore_ascii_case(domain)
                    && !(one_label && label.contains('.'))
            })
        }
        None => host.eq_ignore_ascii_case(asked.1),
    };
    is_host && scheme.eq_ignore_ascii_case(asked.0) && port == asked.2
}

/// The scheme, the host and the port of an origin. A port that the scheme implies counts as named. Schemes
/// of programs, such as `app`, imply none: 0.
fn parts(origin: &str) -> Option<(&str, &str, u16)> {
    let (scheme, rest) = origin.split_once("://")?;
    let implied = match scheme {
        "http" => 80,
        "https" => 443,
        _ => 0,
    };
    let colon = rest.rfind(':').filter(|at| !rest[*at..].contains(']'));
    match colon {
        Some(at) => Some((scheme, &rest[..at], rest[at + 1..].parse().ok()?)),
        None => Some((scheme, rest, implied)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_permitted_as_the_gateway_api_says() {
        for (permitted, origin, expected) in [
            ("*", "https://a.example:1", true),
            ("*", "null", true),
            ("https://a.example", "https://a.example", true),
            ("https://a.example", "https://A.example:443", true),
            ("https://a.example", "https://a.example:444", false),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://b.a.example", false),
            ("https://a.example", "null", false),
            ("https://*.a.example", "https://b.a.example", true),
            ("https://*.a.example", "https://c.b.A.example", true),
            ("https://*.a.example", "https://a.example", false),
            ("https://*.a.example", "https://.a.example", false),
            ("https://*.a.example", "https://evila.example", false),
            ("https://*.a.example:8443", "https://b.a.example:8443", true),
            ("https://*.a.example:8443", "https://b.a.example", false),
            ("http://*", "http://anything", true),
            ("http://*", "https://anything", false),
            ("http://[::1]:80", "http://[::1]", true),
            ("https://*.a.example", "https://ü.a.example", true),
            ("https://*.aexample", "https://üexample", false),
        ] {
            assert_eq!(
                permits(permitted, origin, false),
                expected,
                "{permitted} {origin}"
            );
        }
    }

    #[test]
    fn an_origin_is_permitted_as_ingress_nginx_says() {
        for (permitted, origin, expected) in [
            ("https://*.a.example", "https://b.a.example", true),
            ("https://*.a.example", "https://c.b.a.example", false),
            ("https://*.a.example", "https://a.example", false),
            ("app://a", "app://A", true),
            ("app://a", "https://a", false),
            ("app://a", "app://a:1", false),
            ("null", "null", true),
            ("null", "https://null", false),
            ("https://a", "null", false),
        ] {
            assert_eq!(
                permits(permitted, origin, true),
                expected,
                "{permitted} {origin}"
            );
        }
    }

    #[test]
    fn nothing_is_said_to_a_stranger_and_no_wildcard_with_credentials() {
        let all = || vec!["*".to_owned()];
        let mut cors = Cors {
            origins: vec!["https://a.example".to_owned()],
            methods: all(),
            headers: all(),
            expose: all(),
            credentials: true,
            max_age: 7,
            one_label: false,
        };
        let asked = Preflight {
            method: "PUT",
            fields: Some("x-a, x-b"),
        };
        assert!(fields(&cors, "https://b.example", Some(asked)).is_empty());
        let said = fields(&cors, "https://a.example", Some(asked));
        assert!(
            said.iter().all(|(_, value)| !value.contains('*')),
            "{said:?}"
        );
        let value = |said: &[(String, String)], name: &str| {
            let name = format!("access-control-{name}");
            let found = said.iter().find(|(it, _)| *it == name);
            found.map(|(_, value)| value.clone())
        };
        assert_eq!(value(&said, "allow-methods").unwrap(), "PUT");
        assert_eq!(value(&said, "allow-headers").unwrap(), "x-a, x-b");
        assert_eq!(value(&said, "max-age").unwrap(), "7");
        cors.methods = vec!["GET".to_owned(), "PUT".to_owned()];
        let asked = Preflight {
            fields: None,
            ..asked
        };
        let said = fields(&cors, "https://a.example", Some(asked));
        assert_eq!(value(&said, "allow-methods").unwrap(), "GET, PUT");
        assert_eq!(value(&said, "allow-headers"), None);
        let said = fields(&cors, "https://a.example", None);
        assert_eq!(value(&said, "allow-credentials").unwrap(), "true");
        assert_eq!(value(&said, "allow-methods"), None);
    }
}
