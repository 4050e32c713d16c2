//! The target of a request, and the host that it names (RFC 9112 section 3.2, RFC 3986 section 3.2).

use crate::wire::message::{Method, Reject};

/// A request target as it is forwarded (RFC 9112 section 3.2).
pub(super) struct Target<'a> {
    /// The authority of an absolute target or of CONNECT. It replaces `Host`.
    pub(super) authority: Option<Authority<'a>>,
    pub(super) prefix: &'static str,
    pub(super) rest: &'a str,
}

impl<'a> Target<'a> {
    pub(super) fn new(method: Method, raw: &'a str) -> Result<Self, Reject> {
        const BAD: Reject = Reject::bad("bad_target");
        // Only what can be read in two ways is refused. Some parsers end the target at a `#`, and
        // others do not. RFC 3986 excludes `"` and others, but every parser reads them alike.
        if !raw.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(BAD);
        }
        if method == Method::Connect {
            let (_, port) = raw.rsplit_once(':').ok_or(BAD)?;
            let fits = is_authority(raw.as_bytes()) && port.parse::<u16>().is_ok();
            let authority = Some(Authority {
                text: raw,
                default_port: ":443",
            });
            return fits
                .then_some(Target {
                    authority,
                    prefix: "",
                    rest: raw,
                })
                .ok_or(BAD);
        }
        if raw.starts_with('/') || raw == "*" && method == Method::Options {
            return Ok(Target {
                authority: None,
                prefix: "",
                rest: raw,
            });
        }
        let (scheme, rest) = raw.split_once("://").ok_or(BAD)?;
        let default_port = match scheme {
            s if s.eq_ignore_ascii_case("http") => ":80",
            s if s.eq_ignore_ascii_case("https") => ":443",
            _ => return Err(BAD),
        };
        let (text, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !is_authority(text.as_bytes()) {
            return Err(BAD);
        }
        let prefix = match (rest, method) {
            ("", Method::Options) => "*",
            _ if rest.starts_with('/') => "",
            _ => "/",
        };
        Ok(Target {
            authority: Some(Authority { text, default_port }),
            prefix,
            rest,
        })
    }
}

#[derive(Clone, Copy)]
pub(super) struct Authority<'a> {
    pub(super) text: &'a str,
    pub(super) default_port: &'static str,
}

impl Authority<'_> {
    pub(super) fn is(self, host: &[u8]) -> bool {
        let text = self.text.as_bytes();
        self.without_default_port(text)
            .eq_ignore_ascii_case(self.without_default_port(host))
    }

    fn without_default_port<'b>(&self, host: &'b [u8]) -> &'b [u8] {
        host.strip_suffix(self.default_port.as_bytes())
            .or_else(|| host.strip_suffix(b":"))
            .unwrap_or(host)
    }
}

/// Whether a text is `uri-host [":" port]` with a host (RFC 3986 section 3.2). Other parsers take
/// the first of two colons or the last one, and some read a comma as a list.
pub(super) fn is_authority(text: &[u8]) -> bool {
    let literal = text.first() == Some(&b'[');
    let end = if literal {
        text.iter().position(|&b| b == b']')
    } else {
        text.iter().position(|&b| b == b':')
    };
    let (host, port) = text.split_at(end.map_or(text.len(), |end| end + usize::from(literal)));
    let host = match host {
        [b'[', inner @ .., b']'] => inner,
        _ if literal => return false,
        name => name,
    };
    !host.is_empty()
        && host
            .iter()
            .all(|&b| HOST_BYTES[usize::from(b)] || literal && b == b':')
        && port
            .strip_prefix(b":")
            .map_or(port.is_empty(), |port| port.iter().all(u8::is_ascii_digit))
}

/// The bytes of a registered name (RFC 3986 section 3.2.2).
const HOST_BYTES: [bool; 256] = {
    let mut fits = [false; 256];
    let mut b = 0;
    while b < 128 {
        fits[b] = (b as u8).is_ascii_alphanumeric();
        b += 1;
    }
    let others = b"-._~%!$&'()*+;=";
    let mut i = 0;
    while i < others.len() {
        fits[others[i] as usize] = true;
        i += 1;
    }
    fits
};
