//! Changes of a canonical head on its way: its fields, its target and its host.
//!
//! Invariants: a canonical head stays one. A field that frames a message, carries a connection or names the
//! host is never changed as a field: two readers could take the message for different ones. Nor is
//! `Expect`, which the proxy has answered for. A name or a value that no field can have is left out.

use crate::wire::fields::{FieldKind, is_token, kind, write_line};

/// Changes of fields: `set`, then `add`, then `remove`. Names are compared without case.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes<'a> {
    /// Each takes the place of all fields of its name.
    pub set: &'a [(String, String)],
    /// Each comes behind the fields of its name.
    pub add: &'a [(String, String)],
    /// Names whose fields go.
    pub remove: &'a [String],
}

impl Changes<'_> {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Whether a request that has these changes asks for a condition of which an earlier attempt may have
    /// changed the outcome (contract 3.3).
    pub fn are_conditional(&self) -> bool {
        let mut names = self.set.iter().chain(self.add).map(|(name, _)| name);
        names.any(|name| kind(name) == FieldKind::Conditional)
    }

    /// Changes the head that begins at `from` and is the last thing in `bytes`.
    pub fn apply(&self, bytes: &mut Vec<u8>, from: usize) {
        if self.is_empty() {
            return;
        }
        let head = bytes.split_off(from);
        let mut lines = head.split_inclusive(|byte| *byte == b'\n');
        bytes.extend_from_slice(lines.next().unwrap_or_default());
        let is_removed = |name: &str| self.remove.iter().any(|it| it.eq_ignore_ascii_case(name));
        let is_set = |name: &str| self.set.iter().any(|(it, _)| it.eq_ignore_ascii_case(name));
        for line in lines.filter(|line| *line != b"\r\n") {
            let name = name_of(line);
            if !is_changeable(name) || !is_removed(name) && !is_set(name) {
                bytes.extend_from_slice(line);
            }
        }
        for (name, value) in self.set.iter().chain(self.add) {
            let fits = is_changeable(name) && is_token(name.as_bytes()) && is_value(value);
            if fits && !is_removed(name) {
                write_line(bytes, name, value.trim().as_bytes());
            }
        }
        bytes.extend_from_slice(b"\r\n");
    }
}

/// Gives a request head another target, another host, or both. They must be such as a head may have.
pub fn readdress(head: &mut Vec<u8>, target: Option<&str>, host: Option<&str>) {
    let before = std::mem::take(head);
    let mut lines = before.split_inclusive(|byte| *byte == b'\n');
    let mut words = lines.next().unwrap_or_default().split(|byte| *byte == b' ');
    let method = words.next().unwrap_or_default();
    let asked = words.next().unwrap_or_default();
    let version = words.next().unwrap_or_default();
    let target = target.map_or(asked, str::as_bytes);
    head.reserve(before.len() + target.len() + host.map_or(0, str::len));
    head.extend_from_slice(&[method, b" ", target, b" ", version].concat());
    for line in lines {
        match host {
            Some(host) if name_of(line).eq_ignore_ascii_case("host") => {
                write_line(head, "Host", host.as_bytes());
            }
            _ => head.extend_from_slice(line),
        }
    }
}

/// Whether [`Changes`] may change fields of this name.
pub fn is_changeable(name: &str) -> bool {
    match kind(name) {
        FieldKind::Host
        | FieldKind::ContentLength
        | FieldKind::TransferEncoding
        | FieldKind::Connection
        | FieldKind::HopByHop
        | FieldKind::Te
        | FieldKind::Upgrade
        | FieldKind::Trailer
        | FieldKind::Expect => false,
        // What an endpoint may read as `X-Forwarded-*` is the operator's to set, a length is not.
        FieldKind::Lookalike => name.as_bytes()[0].eq_ignore_ascii_case(&b'x'),
        _ => true,
    }
}

/// The name of a line of a canonical head.
fn name_of(line: &[u8]) -> &str {
    let colon = line.iter().position(|byte| *byte == b':');
    let name = &line[..colon.unwrap_or_default()];
    std::str::from_utf8(name).unwrap_or_default()
}

/// Whether a text may be a field's value (RFC 9110 section 5.5).
fn is_value(text: &str) -> bool {
    let fits = |byte: u8| byte >= b' ' && byte != 0x7f || byte == b'\t';
    text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = all.iter().map(|(a, b)| (a.to_string(), b.to_string()));
        owned.collect()
    }

    fn changed(head: &str, set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> String {
        let (set, add) = (pairs(set), pairs(add));
        let remove: Vec<_> = remove.iter().map(|it| it.to_string()).collect();
        let changes = Changes {
            set: &set,
            add: &add,
            remove: &remove,
        };
        let mut bytes = [b"before", head.as_bytes()].concat();
        changes.apply(&mut bytes, 6);
        let text = String::from_utf8(bytes).unwrap();
        text.strip_prefix("before").unwrap().to_owned()
    }

    const HEAD: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-b: 2\r\nX-a: 3\r\n\r\n";

    #[test]
    fn fields_are_set_added_and_removed() {
        for (set, add, remove, lines) in [
            (&[][..], &[][..], &[][..], "X-A: 1\r\nx-b: 2\r\nX-a: 3\r\n"),
            (&[("x-a", "9")], &[], &[], "x-b: 2\r\nx-a: 9\r\n"),
            (
                &[("x-c", "9")],
                &[],
                &[],
                "X-A: 1\r\nx-b: 2\r\nX-a: 3\r\nx-c: 9\r\n",
            ),
            (
                &[],
                &[("x-b", "9, 8")],
                &[],
                "X-A: 1\r\nx-b: 2\r\nX-a: 3\r\nx-b: 9, 8\r\n",
            ),
            (&[], &[], &["x-a", "x-c"], "x-b: 2\r\n"),
            (
                &[("x-b", "9")],
                &[("x-b", "8")],
                &["X-A"],
                "x-b: 9\r\nx-b: 8\r\n",
            ),
            (&[("x-b", "9")], &[], &["x-a", "X-B"], ""),
        ] {
            let expected = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
            assert_eq!(
                changed(HEAD, set, add, remove),
                expected,
                "{set:?} {add:?} {remove:?}"
            );
        }
    }

    #[test]
    fn what_frames_a_message_or_carries_a_connection_is_never_changed() {
        let names = [
            "Host",
            "content-length",
            "Content_Length",
            "Transfer-Encoding",
            "transfer.encoding",
            "Connection",
            "Proxy-Connection",
            "Keep-Alive",
            "HTTP2-Settings",
            "TE",
            "Upgrade",
            "Trailer",
            "Expect",
        ];
        for name in names {
            let head = format!("GET / HTTP/1.1\r\n{name}: 1\r\n\r\n");
            let (lower, upper) = (name.to_lowercase(), name.to_uppercase());
            let pair = [(&*upper, "2")];
            assert_eq!(changed(&head, &pair, &pair, &[&lower]), head, "{name}");
            assert_eq!(changed(&head, &pair, &[], &[]), head, "{name}");
            assert_eq!(changed(HEAD, &pair, &pair, &[]), HEAD, "{name}");
        }
        assert!(is_changeable("x_forwarded_for"));
    }

    #[test]
    fn no_change_breaks_out_of_its_line() {
        for (name, value) in [
            ("x", "a\r\nb: c"),
            ("x", "a\nb"),
            ("x", "\0"),
            ("x", "\u{7f}"),
            ("x: y\r\nz", "a"),
            ("x y", "a"),
            ("", "a"),
        ] {
            let pair = [(name, value)];
            assert_eq!(changed(HEAD, &pair, &pair, &[]), HEAD, "{pair:?}");
        }
        let head = "HTTP/1.1 200 OK\r\n\r\n";
        let expected = "HTTP/1.1 200 OK\r\nx: ü\t!\r\n\r\n";
        assert_eq!(changed(head, &[("x", " ü\t! ")], &[], &[]), expected);
    }

    #[test]
    fn a_condition_makes_a_request_conditional() {
        let of = |name| {
            let pairs = pairs(&[(name, "1")]);
            let [set, add] = [true, false].map(|is_set| Changes {
                set: if is_set { &pairs } else { &[] },
                add: if is_set { &[] } else { &pairs },
                remove: &[],
            });
            assert_eq!(set.are_conditional(), add.are_conditional());
            set.are_conditional()
        };
        assert!(of("If-Match"));
        assert!(!of("x-a"));
    }

    #[test]
    fn a_request_gets_another_target_and_another_host() {
        let rest = "X-A: 1\r\nx-b: 2\r\nX-a: 3\r\n\r\n";
        for (target, host, begins) in [
            (None, None, "GET / HTTP/1.1\r\nHost: a\r\n"),
            (Some("/b?c"), None, "GET /b?c HTTP/1.1\r\nHost: a\r\n"),
            (None, Some("b.x"), "GET / HTTP/1.1\r\nHost: b.x\r\n"),
            (Some("/b"), Some("b"), "GET /b HTTP/1.1\r\nHost: b\r\n"),
        ] {
            let mut head = HEAD.as_bytes().to_vec();
            readdress(&mut head, target, host);
            assert_eq!(String::from_utf8(head).unwrap(), format!("{begins}{rest}"));
        }
    }
}
