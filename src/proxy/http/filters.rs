//! What the filters of a route make of a request's target, and where its redirects lead.
//!
//! Invariant: whatever a filter says, the result is a target or a `Location` without spaces, control bytes
//! and a second query. Everything here is a pure function.
//!
//! Source: <https://gateway-api.sigs.k8s.io/reference/spec/#httproutefilter>.

use crate::contract::filters::{NewPath, Redirect};
use crate::contract::route::without_port;

/// Where a client has asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) is_https: bool,
    /// The `Host`, with or without a port.
    pub(super) host: &'a str,
    /// The port of the listener.
    pub(super) port: u16,
    pub(super) target: &'a str,
}

/// The target with another path. A target that is none of a path stays as it is.
pub(super) fn new_target(target: &str, path: &NewPath) -> String {
    let (old, query) = match target.find('?') {
        Some(at) => target.split_at(at),
        None => (target, ""),
    };
    if !old.starts_with('/') {
        return target.to_owned();
    }
    let mut new = String::with_capacity(target.len());
    match path {
        NewPath::Full(path) => append_path(&mut new, path),
        NewPath::Prefix { of, to } => {
            let Some(rest) = old.strip_prefix(of.trim_end_matches('/')) else {
                return target.to_owned();
            };
            let to = if rest.is_empty() {
                to
            } else {
                to.trim_end_matches('/')
            };
            append_path(&mut new, to);
            new += rest;
        }
    }
    if !new.starts_with('/') {
        new.insert(0, '/');
    }
    new + query
}

/// Where a redirect leads: an absolute URI. Its port is left out where the scheme implies it.
pub(super) fn location(redirect: &Redirect, here: &Place<'_>) -> String {
    let own = if here.is_https { "https" } else { "http" };
    let scheme = redirect.scheme.as_deref().unwrap_or(own);
    let host = redirect.host.as_deref().unwrap_or(without_port(here.host));
    let implied = match scheme {
        "http" => 80,
        "https" => 443,
        _ => 0,
    };
    let port = redirect.port.unwrap_or(match &redirect.scheme {
        Some(_) if implied > 0 => implied,
        _ if redirect.keeps_port => port_of(here.host).unwrap_or(implied),
        _ => here.port,
    });
    let target = match &redirect.path {
        Some(path) => new_target(here.target, path),
        None if here.target.starts_with('/') => here.target.to_owned(),
        // `OPTIONS *` is for the whole server.
        None => "/".to_owned(),
    };
    match port == implied {
        true => format!("{scheme}://{host}{target}"),
        false => format!("{scheme}://{host}:{port}{target}"),
    }
}

/// The port of a `Host` field, if it names one.
fn port_of(host: &str) -> Option<u16> {
    let (name, port) = host.rsplit_once(':')?;
    port.parse()
        .ok()
        .filter(|_| !name.is_empty() && !port.contains(']'))
}

/// Whether a redirect leads to where the client has asked: it would ask there for ever.
pub(super) fn leads_back(redirect: &Redirect, here: &Place<'_>) -> bool {
    let own = if here.is_https { "https" } else { "http" };
    let host = without_port(here.host);
    redirect.scheme.as_deref().is_none_or(|it| it == own)
        && redirect
            .host
            .as_deref()
            .is_none_or(|it| it.eq_ignore_ascii_case(host))
        && redirect.port.is_none_or(|it| it == here.port)
        && redirect
            .path
            .as_ref()
            .is_none_or(|it| new_target(here.target, it) == here.target)
}

/// Appends a path, with what a path may not have encoded (RFC 3986 section 3.3).
fn append_path(out: &mut String, path: &str) {
    for byte in path.bytes() {
        match byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'"' | b'<' | b'>') {
            true => out.push(char::from(byte)),
            false => *out += &format!("%{byte:02X}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(of: &str, to: &str) -> NewPath {
        let (of, to) = (of.to_owned(), to.to_owned());
        NewPath::Prefix { of, to }
    }

    /// The table of the Gateway API at `replacePrefixMatch`, and more.
    #[test]
    fn a_prefix_is_replaced_by_whole_elements() {
        for (target, of, to, new) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/foo", "/xyz/", "/xyz/"),
            ("/foo?a=/foo", "/foo", "/xyz", "/xyz?a=/foo"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/a", "/", "/xyz", "/xyz/a"),
            ("/foo/a", "/foo", "xyz", "/xyz/a"),
            ("/other", "/foo", "/xyz", "/other"),
            ("*", "/", "/xyz", "*"),
            ("a.example:443", "/", "/xyz", "a.example:443"),
        ] {
            assert_eq!(
                new_target(target, &prefix(of, to)),
                new,
                "{target} {of} {to}"
            );
        }
    }

    #[test]
    fn a_whole_path_is_replaced_and_the_query_stays() {
        for (target, to, new) in [
            ("/foo/bar?a", "/x", "/x?a"),
            ("/foo", "", "/"),
            ("/foo", "x", "/x"),
            ("/foo?a", "/a b?c#d\r\nü", "/a%20b%3Fc%23d%0D%0A%C3%BC?a"),
            ("*", "/x", "*"),
        ] {
            let path = NewPath::Full(to.to_owned());
            assert_eq!(new_target(target, &path), new, "{target} {to}");
        }
    }

    fn redirect(scheme: &str, host: &str, port: u16) -> Redirect {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Redirect {
            scheme: text(scheme),
            host: text(host),
            port: (port > 0).then_some(port),
            path: None,
            keeps_port: false,
            status: 302,
        }
    }

    #[test]
    fn a_redirect_names_the_port_that_the_gateway_api_says() {
        let place = |is_https, port| Place {
            is_https,
            host: "a.example:1234",
            port,
            target: "/x?y",
        };
        for (is_https, own, scheme, host, port, expected) in [
            (false, 80, "", "", 0, "http://a.example/x?y"),
            (false, 80, "", "b.x", 0, "http://b.x/x?y"),
            (false, 80, "", "", 8080, "http://a.example:8080/x?y"),
            (false, 80, "https", "", 0, "https://a.example/x?y"),
            (false, 80, "https", "", 443, "https://a.example/x?y"),
            (false, 80, "https", "", 8443, "https://a.example:8443/x?y"),
            (false, 8080, "", "", 0, "http://a.example:8080/x?y"),
            (false, 8080, "", "", 80, "http://a.example/x?y"),
            (false, 8080, "https", "", 0, "https://a.example/x?y"),
            (false, 8080, "http", "", 0, "http://a.example/x?y"),
            (true, 443, "", "", 0, "https://a.example/x?y"),
            (true, 443, "http", "", 0, "http://a.example/x?y"),
            (true, 443, "http", "", 8080, "http://a.example:8080/x?y"),
            (true, 443, "", "", 80, "https://a.example:80/x?y"),
            (true, 8443, "", "", 0, "https://a.example:8443/x?y"),
        ] {
            let redirect = redirect(scheme, host, port);
            let got = location(&redirect, &place(is_https, own));
            assert_eq!(got, expected, "{is_https} {own} {redirect:?}");
        }
        let mut whole = place(false, 80);
        (whole.host, whole.target) = ("[::1]:80", "*");
        assert_eq!(location(&redirect("", "", 0), &whole), "http://[::1]/");
        let mut other = redirect("", "", 0);
        other.path = Some(prefix("/x", "/z"));
        let got = location(&other, &place(false, 80));
        assert_eq!(got, "http://a.example/z?y");
    }

    #[test]
    fn a_redirect_that_leads_back_is_noticed() {
        let here = Place {
            is_https: true,
            host: "a.example:8443",
            port: 443,
            target: "/x?y",
        };
        for (scheme, host, port, back) in [
            ("https", "", 0, true),
            ("http", "", 0, false),
            ("https", "A.example", 443, true),
            ("https", "b.example", 0, false),
            ("https", "", 444, false),
            ("", "", 0, true),
        ] {
            let mut redirect = redirect(scheme, host, port);
            assert_eq!(leads_back(&redirect, &here), back, "{redirect:?}");
            redirect.path = Some(NewPath::Full("/z".to_owned()));
            assert!(!leads_back(&redirect, &here), "{redirect:?}");
            redirect.path = Some(NewPath::Full("/x".to_owned()));
            assert_eq!(leads_back(&redirect, &here), back, "{redirect:?}");
        }
    }
}
