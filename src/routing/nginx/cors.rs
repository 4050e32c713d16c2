//! The CORS keys of ingress-nginx: which pages of other origins may read the answers.
//!
//! Invariant: a key that cannot be read permits no origin that another key does not name. An origin that is
//! none is left out. Another value that cannot be read is nginx's default, as with nginx.
//!
//! Source: <https://kubernetes.github.io/ingress-nginx/user-guide/nginx-configuration/annotations/#enable-cors>.

use std::collections::BTreeMap;

use crate::contract::filters::Cors;
use crate::routing::nginx::values::{is_true, number};

/// What these annotations permit, where `enable-cors` is true.
pub(super) fn of(all: &BTreeMap<String, String>) -> Cors {
    let text = |key: &str| all.get(key).map(|it| it.trim());
    let list = |key: &str, default: &str| {
        let own = text(key).filter(|it| check(key, it).is_ok());
        words(own.unwrap_or(default)).map(str::to_owned).collect()
    };
    let named = text("cors-allow-origin").unwrap_or("*");
    let origins: Vec<String> = match words(named).any(|it| it == "*") {
        true => vec!["*".to_owned()],
        false => words(named)
            .filter(|it| is_origin(it))
            .map(str::to_owned)
            .collect(),
    };
    let credentials = text("cors-allow-credentials").and_then(|it| is_true(it).ok());
    let max_age = text("cors-max-age").and_then(|it| seconds(it).ok());
    Cors {
        methods: list("cors-allow-methods", METHODS),
        headers: list("cors-allow-headers", HEADERS),
        expose: list("cors-expose-headers", ""),
        // To every origin, nginx says `*`. With that, no browser lets a page use a login.
        credentials: credentials.unwrap_or(true) && origins != ["*"],
        max_age: max_age.unwrap_or(MAX_AGE),
        one_label: true,
        origins,
    }
}

/// Looks whether one of these annotations can be read.
///
/// # Errors
/// What is wrong with it, in words that follow its name.
pub(super) fn check(key: &str, value: &str) -> Result<(), String> {
    let is_name = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_');
    let (fits, expected) = match key {
        "cors-allow-origin" => {
            let wrong = words(value).find(|it| !is_origin(it));
            return match (wrong, words(value).next()) {
                (None, Some(_)) => Ok(()),
                (wrong, _) => Err(format!(
                    ": {:?} is no origin such as https://shop.example, so no page has it",
                    wrong.unwrap_or_default()
                )),
            };
        }
        "cors-allow-credentials" => return is_true(value).map(drop),
        "cors-max-age" => return seconds(value).map(drop),
        "cors-allow-methods" => (
            value
                .bytes()
                .all(|it| it.is_ascii_alphabetic() || is_between(it)),
            "methods such as GET, POST",
        ),
        "cors-allow-headers" => (
            value.bytes().all(|it| is_name(it) || is_between(it)),
            "names of fields such as Authorization, X-Shop",
        ),
        _ => (
            words(value).all(|it| it == "*" || it.bytes().all(is_name)),
            "names of fields such as X-Shop, or *",
        ),
    };
    match fits && words(value).next().is_some() {
        true => Ok(()),
        false => Err(format!(
            ": expected {expected}, found {value:?}; nginx's default counts"
        )),
    }
}

fn words(value: &str) -> impl Iterator<Item = &str> {
    let words = value.split(|it: char| it.is_ascii() && is_between(it as u8));
    words.filter(|it| !it.is_empty())
}

fn is_between(byte: u8) -> bool {
    byte == b',' || byte.is_ascii_whitespace()
}

/// Seconds. Below zero, a browser keeps nothing, as with zero.
fn seconds(value: &str) -> Result<u32, String> {
    let seconds: i32 = number(value)?;
    Ok(u32::try_from(seconds).unwrap_or(0))
}

/// Whether this can be the origin of a page, of all hosts one label below a domain, or of every page.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else {
        return matches!(text, "*" | "null");
    };
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().is_ok()),
        None => (authority, true),
    };
    let host = host.strip_prefix("*.").unwrap_or(host);
    let is_part = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'.');
    !scheme.is_empty()
        && scheme.bytes().all(|it| it.is_ascii_lowercase())
        && !host.is_empty()
        && host.bytes().all(is_part)
        && port
}

const METHODS: &str = "GET, PUT, POST, DELETE, PATCH, OPTIONS";
const HEADERS: &str = "DNT, Keep-Alive, User-Agent, X-Requested-With, If-Modified-Since, Cache-Control, \
                       Content-Type, Range, Authorization";
/// 20 days.
const MAX_AGE: u32 = 1_728_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(all: &[(&str, &str)]) -> Cors {
        let all = all.iter();
        let all = all.map(|(key, value)| (format!("cors-{key}"), (*value).to_owned()));
        of(&all.collect())
    }

    #[test]
    fn what_is_absent_is_as_with_nginx() {
        let all = cors(&[]);
        assert_eq!(all.origins, ["*"]);
        assert_eq!(all.methods.join(", "), METHODS);
        assert_eq!(all.headers.len(), 9);
        assert_eq!(all.expose, [""; 0]);
        assert_eq!(all.max_age, 1_728_000);
        assert!(!all.credentials, "a page of any origin gets no login");
        assert!(cors(&[("allow-origin", "https://a.x")]).credentials);
    }

    #[test]
    fn each_key_says_what_it_says_to_nginx() {
        let all = cors(&[
            ("allow-origin", "https://a.x:4443, http://*.b.x,app://c"),
            ("allow-methods", "PUT,get"),
            ("allow-headers", "X-A, x_b"),
            ("expose-headers", "*, X-C"),
            ("allow-credentials", "false"),
            ("max-age", "600"),
        ]);
        let expected = Cors {
            origins: ["https://a.x:4443", "http://*.b.x", "app://c"]
                .map(str::to_owned)
                .into(),
            methods: ["PUT", "get"].map(str::to_owned).into(),
            headers: ["X-A", "x_b"].map(str::to_owned).into(),
            expose: ["*", "X-C"].map(str::to_owned).into(),
            credentials: false,
            max_age: 600,
            one_label: true,
        };
        assert_eq!(all, expected);
        assert_eq!(cors(&[("allow-origin", "https://a.x, *")]).origins, ["*"]);
        assert_eq!(cors(&[("max-age", "-1")]).max_age, 0);
    }

    #[test]
    fn what_cannot_be_read_permits_no_origin_and_is_named() {
        for wrong in [
            "",
            "a.x",
            "https://",
            "https://a.x/b",
            "https://a*.x",
            "https://a.x:b",
            "*.a.x",
            "https://a\u{7}b",
            "Https://ü",
        ] {
            assert!(check("cors-allow-origin", wrong).is_err(), "{wrong:?}");
            let origins = cors(&[("allow-origin", wrong)]).origins;
            assert_eq!(origins, [""; 0], "{wrong:?}");
        }
        let some = cors(&[("allow-origin", "https://a.x, b.x, null")]);
        assert_eq!(some.origins, ["https://a.x", "null"]);
        for (key, wrong) in [
            ("allow-methods", "GET;PUT"),
            ("allow-methods", ""),
            ("allow-headers", "X-A: b"),
            ("allow-headers", "*"),
            ("expose-headers", "X-A\u{e4}"),
            ("allow-credentials", "yes"),
            ("max-age", "1h"),
            ("max-age", "99999999999"),
        ] {
            let named = check(&format!("cors-{key}"), wrong).unwrap_err();
            assert!(named.contains(&format!("{wrong:?}")), "{named}");
            assert_eq!(cors(&[(key, wrong)]), cors(&[]), "{key}: {wrong:?}");
        }
    }
}
