//! What instances say to each other: that pods leave, and what each still has of them. JSON, and a
//! signature where a key is set.
//!
//! Invariant: a signature is for one path, one body and one moment. A repeated one says again that a pod
//! leaves, which does no more than the first time.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use crate::gate::log::Has;

/// That these pods leave, by their UIDs. What does the receiver have of them?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leaving {
    pub(super) pods: Vec<String>,
}

/// What an instance has of each pod, in the order of the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answers {
    pub(super) pods: Vec<Has>,
}

/// Where pods that leave are told.
pub(super) const LEAVING: &str = "/api/v1/gate";
/// The field with the signature.
pub(super) const SIGNATURE: &str = "ebbtide-signature";
/// The most pods of a message.
pub(super) const MOST: usize = 256;
/// The longest body of a message.
pub(super) const LONGEST: usize = 64 << 10;

/// The signature of a request: the moment in milliseconds since 1970, and an HMAC-SHA256 (RFC 2104).
pub(super) fn sign(key: &[u8], path: &str, body: &[u8], now: SystemTime) -> String {
    let at = millis(now);
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, key),
        &signed(at, path, body),
    );
    let hex = tag.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("{at}.{}", hex.collect::<String>())
}

/// Whether a signature is good, and not older than [`FRESH`] or that much ahead.
pub(super) fn is_signed(
    key: &[u8],
    path: &str,
    body: &[u8],
    signature: &str,
    now: SystemTime,
) -> bool {
    let parts = signature.split_once('.');
    let Some((at, hex)) = parts.and_then(|(at, hex)| Some((at.parse().ok()?, hex))) else {
        return false;
    };
    let tag = hex.as_bytes().chunks(2).map(|two| {
        let two = std::str::from_utf8(two).ok()?;
        u8::from_str_radix(two, 16).ok()
    });
    let Some(tag) = tag.collect::<Option<Vec<u8>>>() else {
        return false;
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    millis(now).abs_diff(at) <= FRESH && hmac::verify(&key, &signed(at, path, body), &tag).is_ok()
}

fn signed(at: u64, path: &str, body: &[u8]) -> Vec<u8> {
    [format!("{at}\n{path}\n").as_bytes(), body].concat()
}

fn millis(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How far the clocks of two nodes may differ, with the time on the way, in milliseconds.
const FRESH: u64 = 30_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_signature_is_for_one_key_path_body_and_time() {
        let (key, now) = (b"0123456789abcdef", SystemTime::now());
        let signature = sign(key, LEAVING, b"{}", now);
        let good = |key: &[u8], path, body: &[u8], signature: &str, now| {
            is_signed(key, path, body, signature, now)
        };
        assert!(good(key, LEAVING, b"{}", &signature, now));
        assert!(good(
            key,
            LEAVING,
            b"{}",
            &signature,
            now + Duration::from_secs(29)
        ));
        assert!(!good(
            key,
            LEAVING,
            b"{}",
            &signature,
            now + Duration::from_secs(31)
        ));
        assert!(!good(
            key,
            LEAVING,
            b"{}",
            &signature,
            now - Duration::from_secs(31)
        ));
        assert!(!good(b"0123456789abcdeF", LEAVING, b"{}", &signature, now));
        assert!(!good(key, "/", b"{}", &signature, now));
        assert!(!good(key, LEAVING, b"{ }", &signature, now));
        let at = signature.split_once('.').unwrap().0;
        for bad in [
            "",
            ".",
            "1",
            "a.b",
            &format!("{at}."),
            &format!("{at}.zz"),
            &format!("{at}.é"),
        ] {
            assert!(!good(key, LEAVING, b"{}", bad, now), "{bad}");
        }
    }
}
