//! Single values: durations, sizes, numbers, addresses and names, each inside its bounds.
//!
//! Invariant: an error continues a field's path and says what was expected. The bounds that
//! annotations share with the file are here once.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::contract::name::ObjectName;

/// One millisecond.
pub const MILLISECOND: Duration = Duration::from_millis(1);
/// One minute.
pub const MINUTE: Duration = Duration::from_secs(60);
/// 24 hours.
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// The bounds of a hold time.
pub const HOLD: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
/// The bounds of a drain time.
pub const DRAIN: RangeInclusive<Duration> = Duration::ZERO..=DAY;
/// The bounds of the tries of one request.
pub const ATTEMPTS: RangeInclusive<u64> = 1..=10;

/// Reads a duration such as `250ms`, `10s` or `5m`.
///
/// # Errors
/// The text is not a duration, or the duration is out of range.
pub fn duration(text: &str, within: RangeInclusive<Duration>) -> Result<Duration, String> {
    let span = format!(
        "{} to {}",
        humantime::format_duration(*within.start()),
        humantime::format_duration(*within.end())
    );
    let duration = humantime::parse_duration(text).map_err(|_| {
        let examples = examples(&within);
        format!("{text:?} is not a duration, expected one from {span}{examples}")
    })?;
    if within.contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("{text:?} is out of range, expected {span}"))
    }
}

/// Examples of a duration, for an error. Only durations that are accepted.
fn examples(within: &RangeInclusive<Duration>) -> String {
    let all = [("250ms", 250), ("10s", 10_000), ("5m", 300_000)];
    let fit = |(_, millis): &(&str, u64)| within.contains(&Duration::from_millis(*millis));
    let fit: Vec<&str> = all.into_iter().filter(fit).map(|(text, _)| text).collect();
    match fit.split_last() {
        None => String::new(),
        Some((last, [])) => format!(" such as {last}"),
        Some((last, first)) => format!(" such as {} or {last}", first.join(", ")),
    }
}

/// Reads which address endpoints see: `client` (`true`) or `node`.
///
/// # Errors
/// It is another word.
pub fn keeps_source(text: &str) -> Result<bool, String> {
    match text {
        "client" => Ok(true),
        "node" => Ok(false),
        _ => Err(format!("{text:?} is not known, expected client or node")),
    }
}

/// Whether this is the name of a server, which may begin with `*.` (RFC 1123 section 2.1).
pub fn host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    name.parse::<std::net::IpAddr>().is_err() && subdomain(&name.to_ascii_lowercase())
}

/// Reads a size in bytes: `16KiB`, `1MiB`, or a plain number.
///
/// # Errors
/// The text is not a size, or the size is out of range.
pub fn size(text: &str, within: RangeInclusive<usize>) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: Option<usize> = match text[digits.len()..].trim_start() {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let (Ok(number), Some(unit)) = (digits.parse::<usize>(), unit) else {
        return Err(format!(
            "{text:?} is not a size, expected one from {} to {} such as 16KiB, or plain bytes",
            bytes(*within.start()),
            bytes(*within.end())
        ));
    };
    match number.checked_mul(unit) {
        Some(bytes) if within.contains(&bytes) => Ok(bytes),
        _ => Err(format!(
            "{text:?} is out of range, expected {} to {}",
            bytes(*within.start()),
            bytes(*within.end())
        )),
    }
}

fn bytes(count: usize) -> String {
    match count {
        0 => "0".into(),
        n if n.is_multiple_of(1 << 20) => format!("{}MiB", n >> 20),
        n if n.is_multiple_of(1 << 10) => format!("{}KiB", n >> 10),
        n => n.to_string(),
    }
}

/// Checks a whole number and converts it to the integer type of its field.
///
/// # Errors
/// The number is out of range.
pub fn whole<T: TryFrom<u64>>(number: u64, within: RangeInclusive<u64>) -> Result<T, String> {
    match T::try_from(number) {
        Ok(value) if within.contains(&number) => Ok(value),
        _ => Err(format!(
            "{number} is out of range, expected {} to {}",
            within.start(),
            within.end()
        )),
    }
}

/// Reads `IP:port` or `[IPv6]:port`. Names are not resolved, because a listener must not depend on
/// DNS.
///
/// # Errors
/// The text is not an address.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{text:?} is not an address, expected IP:PORT such as 127.0.0.1:8080 or '[::]:8080'{}",
            address_hint(text)
        )
    })
}

/// What to write for a text that is nearly an address.
fn address_hint(text: &str) -> String {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let is_number = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match (host, port.parse::<u16>()) {
        _ if text.parse::<IpAddr>().is_ok() => "; the port is missing".into(),
        ("localhost", Ok(port)) => format!("; names are not looked up, write 127.0.0.1:{port}"),
        ("" | "*", Ok(port)) => {
            format!("; write 0.0.0.0:{port} for all IPv4 addresses of this host")
        }
        (host, Ok(_)) if subdomain(host) && host.parse::<IpAddr>().is_err() => {
            "; names are not looked up, write the address".into()
        }
        (_, Err(_)) if is_number => "; a port is 65535 at most".into(),
        _ => String::new(),
    }
}

/// What to write for the name of a protocol that is known elsewhere. Follows an error.
pub fn protocol_hint(text: &str) -> &'static str {
    match text.to_ascii_lowercase().as_str() {
        "https" | "tls" | "ssl" | "wss" => {
            "; write http where the proxy ends TLS, and tcp where it passes TLS on"
        }
        "grpc" | "http2" | "http/2" | "h2" => "; write h2c, or http where the proxy ends TLS",
        "ws" | "websocket" | "http1" | "http/1.1" => "; write http",
        _ => "",
    }
}

/// Reads `namespace/name` of a Service. Both are DNS labels
/// (<https://kubernetes.io/docs/concepts/overview/working-with-objects/names/>).
///
/// # Errors
/// The text does not name a Service.
pub fn service(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if label(namespace) && label(name) => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err(format!(
            "{text:?} does not name a Service, expected namespace/name such as web/nginx-svc"
        )),
    }
}

/// Reads `namespace/name` of a Secret.
///
/// # Errors
/// The text does not name a Secret.
pub fn secret(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if label(namespace) && subdomain(name) => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err(format!(
            "{text:?} does not name a Secret, expected namespace/name such as web/shop-tls"
        )),
    }
}

/// Whether a text is a DNS label: 1 to 63 of `a-z`, `0-9` and `-`, with no `-` at either end.
pub fn label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether a text is a DNS subdomain, as names of nodes are: up to 253 bytes, labels between dots.
pub fn subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(label)
}

/// Reads `off` or one other word. YAML 1.2 reads `off` as a word, and YAML 1.1 reads it as `false`,
/// so a tool may have rewritten it.
pub(super) fn off_or(on: &str, text: Option<String>) -> Result<bool, String> {
    match text.as_deref() {
        None | Some("off" | "Off" | "OFF" | "false" | "no") => Ok(false),
        Some(text) if text == on || (on == "on" && is_yes(text)) => Ok(true),
        Some(text) => Err(format!("{text:?} is not known, expected off or {on}")),
    }
}

/// What YAML 1.1 writes for `on`.
fn is_yes(text: &str) -> bool {
    matches!(text, "On" | "ON" | "true" | "yes")
}

/// The text of an I/O error without Rust's `(os error 2)`.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_is_inside_its_bounds() {
        assert_eq!(duration("250ms", HOLD), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5m", HOLD), Ok(Duration::from_secs(300)));
        assert_eq!(duration("0s", HOLD), Ok(Duration::ZERO));
        for bad in [
            "",
            "10",
            "s",
            "-1s",
            "11m",
            "none",
            "1e9s",
            "99999999999999999999h",
        ] {
            assert!(
                duration(bad, HOLD).unwrap_err().contains(", expected"),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_examples_of_a_duration_are_inside_its_bounds() {
        let s = Duration::from_secs;
        for (within, expected) in [
            (Duration::ZERO..=s(600), "such as 250ms, 10s or 5m"),
            (s(1)..=s(3600), "such as 10s or 5m"),
            (s(1)..=s(60), "such as 10s"),
        ] {
            let error = duration("1", within).unwrap_err();
            assert!(error.ends_with(expected), "{error}");
        }
        let error = duration("1", s(1)..=s(2)).unwrap_err();
        assert!(error.ends_with("expected one from 1s to 2s"), "{error}");
    }

    #[test]
    fn a_size_is_bytes_kib_or_mib_inside_its_bounds() {
        let any = 0..=usize::MAX;
        for (text, expected) in [
            ("0", 0),
            ("16384", 16384),
            ("16KiB", 16384),
            ("1 MiB", 1 << 20),
            ("7B", 7),
        ] {
            assert_eq!(size(text, any.clone()), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "KiB",
            "16kb",
            "16Kib",
            "-1",
            "1.5MiB",
            "18446744073709551615KiB",
            "16KiBé",
            "é",
            "17179869184GiB",
        ] {
            assert!(
                size(bad, any.clone()).unwrap_err().contains(", expected"),
                "{bad}"
            );
        }
        for text in ["2MiB", "2GiB"] {
            assert_eq!(
                size(text, 1024..=1 << 20),
                Err(format!("{text:?} is out of range, expected 1KiB to 1MiB"))
            );
        }
        assert!(
            size("16kb", 1024..=1 << 20)
                .unwrap_err()
                .contains("from 1KiB to 1MiB")
        );
    }

    #[test]
    fn what_is_nearly_an_address_or_a_protocol_gets_a_hint() {
        for (text, hint) in [
            ("localhost:8080", "write 127.0.0.1:8080"),
            (":8080", "write 0.0.0.0:8080"),
            ("*:8080", "write 0.0.0.0:8080"),
            ("8080", "write 0.0.0.0:8080"),
            ("web.example.com:80", "write the address"),
            ("127.0.0.1", "the port is missing"),
            ("::1", "the port is missing"),
            ("127.0.0.1:80000", "65535 at most"),
        ] {
            let error = address(text).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
        for text in ["", ":", "a b:80", "127.0.0.1:", "127.0.0.1:x"] {
            let error = address(text).unwrap_err();
            assert!(error.ends_with("'[::]:8080'"), "{error}");
        }
        assert_eq!(
            protocol_hint("gRPC"),
            "; write h2c, or http where the proxy ends TLS"
        );
        assert_eq!(protocol_hint("sctp"), "");
    }

    #[test]
    fn a_service_is_two_dns_labels() {
        assert_eq!(
            service("web/nginx-svc"),
            Ok(ObjectName::new("web", "nginx-svc"))
        );
        for bad in [
            "", "web", "/", "web/", "/a", "a/b/c", "Web/a", "a/-b", "a/b_c",
        ] {
            assert!(service(bad).is_err(), "{bad}");
        }
    }
}
