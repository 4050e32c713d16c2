//! Documents of a YAML or JSON text: where each begins, how it is read, and on which line a field
//! stands.
//!
//! Invariant: an error has the line in the whole text and the path of the field. Documents are
//! found without parsing YAML, so a caller can keep the objects of a document that has not changed.
//! What the fields mean is in `manifest.rs`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;

use crate::text::one_line;

/// The syntax of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2: documents are separated by `---`.
    Yaml,
    /// JSON: documents follow each other.
    Json,
}

/// One document of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document<'a> {
    /// The line on which the document starts. The first line is 1.
    pub line: usize,
    /// The text of the document.
    pub text: &'a str,
}

/// Why a text is not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// The line in the whole text. The first line is 1.
    pub line: usize,
    /// The path of the field, for example `spec.ports[0].port`. Empty if the syntax is at fault.
    pub field: String,
    /// What is wrong, one line.
    pub message: String,
}

impl Error {
    /// Makes an error. Control characters become spaces, because keys and values may contain
    /// anything.
    pub(super) fn new(line: usize, field: &str, message: &str) -> Self {
        Self {
            line,
            field: one_line(field),
            message: one_line(message),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if !self.field.is_empty() {
            write!(f, ", {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The documents of a text, without those that have only comments.
///
/// # Errors
/// A JSON text breaks JSON's syntax. YAML is not parsed here.
pub fn documents(text: &str, format: Format) -> Result<Vec<Document<'_>>, Error> {
    match format {
        Format::Yaml => Ok(yaml_documents(text)),
        Format::Json => json_documents(text),
    }
}

/// Cuts a YAML text into documents. `---` and `...` at the start of a line end a document wherever
/// they stand (YAML 1.2.2, section 9.1.2), so the text is cut without parsing it.
fn yaml_documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut start = (1, 0);
    let mut offset = 0;
    let mut push = |(line, from): (usize, usize), to: usize| {
        let text = text.get(from..to).unwrap_or_default();
        let is_content = |l: &str| {
            !l.is_empty() && !l.starts_with('#') && !l.starts_with('%') && l != "---" && l != "..."
        };
        if text.lines().map(str::trim).any(is_content) {
            documents.push(Document { line, text });
        }
    };
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let marker = |m: &str| {
            line.strip_prefix(m)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        let (line_number, next) = (i + 1, offset + line.len());
        if marker("---") {
            push(start, offset);
            start = (line_number, offset);
        } else if marker("...") {
            push(start, offset);
            start = (line_number + 1, next);
        }
        offset = next;
    }
    push(start, offset);
    documents
}

fn json_documents(text: &str) -> Result<Vec<Document<'_>>, Error> {
    let mut documents = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let mut from = 0;
    while let Some(document) = stream.next() {
        document.map_err(|error| json_error(&error, 1, String::new()))?;
        let to = stream.byte_offset();
        let gap = text.get(from..to).unwrap_or_default();
        from += gap.len() - gap.trim_start().len();
        let line = 1 + text.get(..from).unwrap_or_default().matches('\n').count();
        documents.push(Document {
            line,
            text: text.get(from..to).unwrap_or_default(),
        });
        from = to;
    }
    Ok(documents)
}

/// Reads a document as untyped fields; `None` for an empty document.
///
/// # Errors
/// The text is not YAML or JSON, or breaks the parser's limits.
pub(super) fn value(document: Document<'_>, format: Format) -> Result<Option<Value>, Error> {
    read(document, format, PhantomData::<Option<Value>>)
}

/// Reads a document. An error has the path of the field.
fn read<T, S>(document: Document<'_>, format: Format, seed: S) -> Result<T, Error>
where
    S: for<'de> DeserializeSeed<'de, Value = T>,
{
    let mut track = serde_path_to_error::Track::new();
    match format {
        Format::Json => {
            let mut json = serde_json::Deserializer::from_str(document.text);
            let read = seed.deserialize(serde_path_to_error::Deserializer::new(
                &mut json, &mut track,
            ));
            read.map_err(|error| json_error(&error, document.line, field(&track.path())))
        }
        Format::Yaml => {
            // The limits on aliases stay in force. The limits on size are lifted, because the text
            // is in memory already.
            let budget = serde_saphyr::budget! { max_events: usize::MAX, max_nodes: usize::MAX };
            let options = serde_saphyr::options! { budget: budget, with_snippet: false };
            let read = serde_saphyr::with_deserializer_from_str_with_options(
                document.text,
                options,
                |yaml| seed.deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track)),
            );
            read.map_err(|error| {
                let line = error
                    .location()
                    .map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
                let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
                Error::new(
                    document.line - 1 + line.max(1),
                    &field(&track.path()),
                    &own_words(&message),
                )
            })
        }
    }
}

fn json_error(error: &serde_json::Error, first_line: usize, field: String) -> Error {
    Error::new(
        first_line - 1 + error.line().max(1),
        &field,
        &own_words(&error.to_string()),
    )
}

/// The path of a field as errors show it; empty for the root or an unknown place.
pub(super) fn field(path: &serde_path_to_error::Path) -> String {
    let path = path.to_string();
    if path == "." || path.contains('?') {
        String::new()
    } else {
        path
    }
}

/// The line of a field that was read but is not valid. If the field is missing, the document's
/// first line.
pub(super) fn line_of(document: Document<'_>, format: Format, field: &str) -> usize {
    read(document, format, Find(field))
        .err()
        .map_or(document.line, |found| found.line)
}

/// The part of a field's path below `key`; `None` if the path does not go through `key`. A key may
/// contain dots.
fn below<'a>(field: &'a str, key: &str) -> Option<&'a str> {
    let rest = field.strip_prefix('.').unwrap_or(field).strip_prefix(key)?;
    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
}

/// Walks to a field and fails there, because only an error has a line.
struct Find<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.0.is_empty() {
            return Err(A::Error::custom("found"));
        }
        while let Some(key) = map.next_key::<String>()? {
            match below(self.0, &key) {
                Some(rest) => map.next_value_seed(Find(rest))?,
                None => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let step = self
            .0
            .strip_prefix('[')
            .and_then(|field| field.split_once(']'));
        let Some((at, rest)) = step else {
            return Err(A::Error::custom("found"));
        };
        for _ in 0..at.parse().unwrap_or(0usize) {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Find(rest))?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// A parser's message without its line. The parser counts lines from the document's start, and
/// errors here count from the text's start.
pub(super) fn own_words(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.rsplit_once(" at line ") {
        Some((message, _)) => message.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, format: Format) -> Vec<(usize, &str)> {
        let documents = documents(text, format).unwrap();
        documents.iter().map(|it| (it.line, it.text)).collect()
    }

    #[test]
    fn yaml_is_cut_at_markers_and_json_after_each_value() {
        assert_eq!(
            found(
                "# one\na: 1\n---\n# nothing\n--- # two\nb: ---\n...\nc: 3\n",
                Format::Yaml
            ),
            [
                (1, "# one\na: 1\n"),
                (5, "--- # two\nb: ---\n"),
                (8, "c: 3\n")
            ]
        );
        assert_eq!(
            found("{\"a\":\n1}\n\n [2]", Format::Json),
            [(1, "{\"a\":\n1}"), (4, "[2]")]
        );
        assert_eq!(documents("{\n\"a\":}", Format::Json).unwrap_err().line, 2);
    }

    #[test]
    fn a_field_is_found_on_its_line_and_an_absent_one_on_its_document_s() {
        let yaml = Document {
            line: 10,
            text: "a.b:\n  c:\n  - d: 1\n  - d: 2\n    e: 3\n",
        };
        let json = Document {
            line: 10,
            text: "{\"a.b\":\n{\"c\": [\n{\"d\": 1},\n{\"d\": 2,\n\"e\": 3}]}}",
        };
        for (document, format) in [(yaml, Format::Yaml), (json, Format::Json)] {
            assert_eq!(line_of(document, format, "a.b.c[1].e"), 14);
            assert_eq!(line_of(document, format, "a.b.c[0].e"), 10, "absent");
        }
    }
}
