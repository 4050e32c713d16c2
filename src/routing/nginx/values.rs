//! The values of ingress-nginx's annotations, as nginx and its controller read them: pure functions.
//!
//! Errors are words that follow the name of the annotation.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::value;
use crate::contract::filters::{NewPath, Redirect};

pub(super) fn is_true(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err(format!(": expected true or false, found {value:?}")),
    }
}

pub(super) fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    let number = value.parse();
    number.map_err(|_| format!(": expected a number, found {value:?}"))
}

/// Seconds, with or without their unit.
pub(super) fn seconds(value: &str) -> Result<Duration, String> {
    let seconds: u64 = number(value.trim_end_matches('s'))?;
    Ok(Duration::from_secs(seconds))
}

/// A size as nginx writes it. `None`: no bound.
pub(super) fn body_size(value: &str) -> Result<Option<u64>, String> {
    let lower = value.to_ascii_lowercase();
    let (digits, unit) = match lower.strip_suffix(['k', 'm', 'g']) {
        Some(digits) => (digits, lower.as_bytes()[lower.len() - 1]),
        None => (lower.as_str(), b' '),
    };
    let shift = match unit {
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        _ => 0,
    };
    let size = digits.trim().parse::<u64>().ok();
    let size = size.and_then(|it| it.checked_mul(1 << shift));
    let wrong = || format!(": expected a size such as 8m, found {value:?}");
    Ok(Some(size.ok_or_else(wrong)?).filter(|size| *size > 0))
}

pub(super) fn ranges(value: &str) -> Result<Vec<IpNet>, String> {
    let texts = value.split(',').map(str::trim).filter(|it| !it.is_empty());
    let range = |text: &str| {
        let range = text.parse::<IpNet>().ok();
        let range = range.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        range.ok_or_else(|| format!(": {text:?} is not a range such as 10.0.0.0/8"))
    };
    let ranges: Vec<IpNet> = texts.map(range).collect::<Result<_, _>>()?;
    match ranges.is_empty() {
        true => Err(": expected ranges such as 10.0.0.0/8".to_owned()),
        false => Ok(ranges),
    }
}

/// No client has this address.
pub(super) fn nobody() -> Vec<IpNet> {
    "255.255.255.255/32".parse().into_iter().collect()
}

/// Reads where requests are redirected: a URL, which may end with `$request_uri`.
pub(super) fn redirect(value: &str, status: u16) -> Result<Redirect, String> {
    let wrong = || format!(": expected a URL such as https://shop.example.com, found {value:?}");
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Err(format!(
            ": expected 301, 302, 303, 307 or 308, found {status}"
        ));
    }
    let (scheme, rest) = value.split_once("://").ok_or_else(wrong)?;
    let (url, keeps) = match rest.strip_suffix("$request_uri") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let (authority, path) = match url.split_once('/') {
        Some((authority, path)) => (authority, format!("/{path}")),
        None => (url, "/".to_owned()),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong())?)),
        None => (authority, None),
    };
    if !matches!(scheme, "http" | "https") || !value::host(host) || path.contains(['$', '?']) {
        return Err(wrong());
    }
    Ok(Redirect {
        scheme: Some(scheme.to_owned()),
        host: Some(host.to_owned()),
        path: (!keeps).then_some(NewPath::Full(path)),
        port,
        status,
        keeps_port: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_urls() {
        let read = |url: &str| redirect(url, 301).ok();
        let expected = |host: &str, path: Option<&str>, port| {
            Some(Redirect {
                scheme: Some("https".to_owned()),
                host: Some(host.to_owned()),
                path: path.map(|it| NewPath::Full(it.to_owned())),
                port,
                status: 301,
                keeps_port: false,
            })
        };
        assert_eq!(
            read("https://a.example"),
            expected("a.example", Some("/"), None)
        );
        assert_eq!(
            read("https://a.example:8443/b"),
            expected("a.example", Some("/b"), Some(8443))
        );
        assert_eq!(
            read("https://a.example$request_uri"),
            expected("a.example", None, None)
        );
        for bad in [
            "a.example",
            "ftp://a",
            "https://$host/",
            "https://a:b",
            "https://a/b?c",
            "://",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert!(redirect("https://a", 200).is_err());
    }
}
