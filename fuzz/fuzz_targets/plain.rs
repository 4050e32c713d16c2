//! The plainest reader of a head that there is, and ours alone: lines end with CRLF, a name ends at the first colon. What is
//! forwarded must be one message to it too, and the same one.

/// A start line and fields, values without the blanks around them.
pub struct Head<'a> {
    pub start: &'a [u8],
    pub fields: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Head<'a> {
    pub fn read(head: &'a [u8]) -> Self {
        let text = head.strip_suffix(b"\r\n\r\n").expect("an empty line at the end");
        let mut lines = lines(text);
        let start = lines.next().expect("a start line");
        let field = |line: &'a [u8]| {
            let colon = line.iter().position(|&b| b == b':').expect("a colon in each line");
            (&line[..colon], line[colon + 1..].trim_ascii())
        };
        Self { start, fields: lines.map(field).collect() }
    }

    /// As we write them: one space behind the colon, none elsewhere, no byte that ends or hides anything.
    pub fn assert_canonical(&self, head: &[u8]) {
        let mut again = [self.start, b"\r\n"].concat();
        for (name, value) in &self.fields {
            assert!(
                !name.is_empty() && name.iter().all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(b))
            );
            again.extend([name, b": ".as_slice(), value, b"\r\n"].concat());
        }
        again.extend(b"\r\n");
        assert_eq!(again.escape_ascii().to_string(), head.escape_ascii().to_string());
        let text = self.fields.iter().flat_map(|(_, value)| *value).chain(self.start);
        assert!(text.copied().all(|b| b == b'\t' || b >= b' ' && b != 0x7f), "a control byte");
        for hop in ["te", "keep-alive", "proxy-connection"] {
            assert_eq!(self.all(hop).len(), 0, "{hop} is of one hop");
        }
    }

    /// The values of every field of this name.
    pub fn all(&self, name: &str) -> Vec<&'a [u8]> {
        let named = self.fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| *value).collect()
    }

    /// Its length, and whether it is chunked: never both, neither twice.
    pub fn framing(&self) -> (Option<u64>, bool) {
        let (length, coding) = (self.all("content-length"), self.all("transfer-encoding"));
        assert!(length.len() + coding.len() <= 1, "two ways to tell the end");
        assert!(coding.iter().all(|coding| *coding == b"chunked"));
        let number = length.first().map(|digits| {
            assert!(!digits.is_empty() && digits.iter().all(u8::is_ascii_digit));
            std::str::from_utf8(digits).unwrap().parse().expect("a number that fits")
        });
        (number, !coding.is_empty())
    }

    /// Whether all fields but those of `ours` stand in `from`, in their order: none is made up.
    pub fn assert_taken_from(&self, from: &Head, ours: &[&str]) {
        let mut there = from.fields.iter();
        for field in &self.fields {
            if !ours.iter().any(|name| field.0.eq_ignore_ascii_case(name.as_bytes())) {
                assert!(there.any(|other| other == field), "{}", field.0.escape_ascii());
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
