//! A second, minimal reader of heads, for the fuzz targets only: lines end with CRLF, a name ends
//! at the first colon. It must read what is forwarded as the same single message.

/// A head as this reader understands it.
pub struct Head<'a> {
    /// The start line.
    pub start: &'a [u8],
    /// Names and values, without the blanks around a value.
    pub fields: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Head<'a> {
    /// Reads a head that ends in an empty line. Panics if it has no such form.
    pub fn read(head: &'a [u8]) -> Self {
        let text = head
            .strip_suffix(b"\r\n\r\n")
            .expect("the head ends in an empty line");
        let mut lines = lines(text);
        let start = lines.next().expect("the head has a start line");
        let field = |line: &'a [u8]| {
            let colon = line
                .iter()
                .position(|&b| b == b':')
                .expect("each line has a colon");
            (&line[..colon], line[colon + 1..].trim_ascii())
        };
        Self {
            start,
            fields: lines.map(field).collect(),
        }
    }

    /// Panics unless the head is canonical: one space behind each colon and no other blank around a
    /// value, no control byte, no field of one hop.
    pub fn assert_canonical(&self, head: &[u8]) {
        let mut again = [self.start, b"\r\n"].concat();
        for (name, value) in &self.fields {
            assert!(
                !name.is_empty()
                    && name
                        .iter()
                        .all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(b))
            );
            again.extend([name, b": ".as_slice(), value, b"\r\n"].concat());
        }
        again.extend(b"\r\n");
        assert_eq!(
            again.escape_ascii().to_string(),
            head.escape_ascii().to_string()
        );
        let text = self
            .fields
            .iter()
            .flat_map(|(_, value)| *value)
            .chain(self.start);
        assert!(
            text.copied().all(|b| b == b'\t' || b >= b' ' && b != 0x7f),
            "a control byte"
        );
        for hop in ["keep-alive", "proxy-connection"] {
            assert_eq!(self.all(hop).len(), 0, "{hop} is for one hop only");
        }
        // The proxy's own, for the next hop: RFC 9110, section 10.1.4.
        let (te, connection) = (self.all("te"), self.all("connection").join(&b", "[..]));
        assert!(te.is_empty() || te == [b"trailers"]);
        let named = connection
            .split(|&b| b == b',')
            .any(|option| option.trim_ascii() == b"TE");
        assert_eq!(named, !te.is_empty(), "Connection names TE");
    }

    /// The values of all fields with this name.
    pub fn all(&self, name: &str) -> Vec<&'a [u8]> {
        let named = self
            .fields
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| *value).collect()
    }

    /// The Content-Length, and whether the body is chunked. Panics if there are two of them.
    pub fn framing(&self) -> (Option<u64>, bool) {
        let (length, coding) = (self.all("content-length"), self.all("transfer-encoding"));
        assert!(
            length.len() + coding.len() <= 1,
            "two fields say where the body ends"
        );
        assert!(coding.iter().all(|coding| *coding == b"chunked"));
        let number = length.first().map(|digits| {
            assert!(!digits.is_empty() && digits.iter().all(u8::is_ascii_digit));
            std::str::from_utf8(digits)
                .unwrap()
                .parse()
                .expect("the length fits 64 bits")
        });
        (number, !coding.is_empty())
    }

    /// Panics unless all fields except those named in `ours` stand in `from` in the same order, so
    /// the proxy has invented none.
    pub fn assert_taken_from(&self, from: &Head, ours: &[&str]) {
        let mut there = from.fields.iter();
        for field in &self.fields {
            if !ours
                .iter()
                .any(|name| field.0.eq_ignore_ascii_case(name.as_bytes()))
            {
                assert!(
                    there.any(|other| other == field),
                    "{}",
                    field.0.escape_ascii()
                );
            }
        }
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = text.windows(2).position(|pair| pair == b"\r\n");
        rest = end.map(|end| &text[end + 2..]);
        Some(&text[..end.unwrap_or(text.len())])
    })
}
