//! One file, read and parsed.
//!
//! Invariant: a file that changes during the read is not used. When a file is read is decided in
//! `pending.rs`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use crate::discovery::document::{self, Format, documents};
use crate::discovery::manifest::{Reader, parse_document};
use crate::discovery::object::Object;
use crate::discovery::passed_over::PassedOver;
use crate::discovery::secret::{Contents, contents};

/// One document with its objects, so that it is not parsed again while its text is the same.
#[derive(Clone)]
pub(super) struct Document {
    text: Digest,
    pub(super) objects: Box<[Arc<Object>]>,
    pub(super) contents: Contents,
    pub(super) passed_over: Box<[PassedOver]>,
    pub(super) pod_templates: usize,
}

/// The digest of a text, which stands for it. The texts of a large folder are a tenth of all memory.
type Digest = [u8; SHA256_OUTPUT_LEN];

/// The metadata that shows whether a file, or its content, is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

pub(super) enum Loaded {
    Gone,
    /// The file changed while it was read.
    Changing(Stamp),
    Good(Stamp, Arc<[Document]>),
    Bad(Option<Stamp>, String),
}

impl Stamp {
    /// Whether a writer has most likely just opened the file and truncated it. The size is zero
    /// from the start of that. inotify reports it only at its end, which on ext4 may wait for the
    /// disk.
    pub(super) fn is_freshly_empty(&self) -> bool {
        let (seconds, nanos) = self.modified;
        let modified = Duration::new(
            u64::try_from(seconds).unwrap_or(0),
            u32::try_from(nanos).unwrap_or(0),
        );
        let age = SystemTime::UNIX_EPOCH
            .checked_add(modified)
            .and_then(|at| at.elapsed().ok());
        self.size == 0 && age.is_some_and(|age| age < EMPTY)
    }

    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads and parses one file. Documents with a text that is in `old` are taken from there. Blocks.
pub(super) fn load(
    path: &Path,
    old: &[Document],
    listed_at: Option<SystemTime>,
    reader: &Reader,
) -> Loaded {
    let Some(format) = path.file_name().and_then(format_of) else {
        return Loaded::Gone;
    };
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Loaded::Gone,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::Gone,
        Err(error) => return Loaded::Bad(None, format!("cannot be read: {error}")),
    };
    let stamp = Stamp::of(&metadata);
    let bad = |error: String| Loaded::Bad(Some(stamp), error);
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::Gone,
        Err(error) => return bad(format!("cannot be read: {error}")),
    };
    if fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata)) != Some(stamp) {
        return Loaded::Changing(stamp);
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = 1 + error
                .as_bytes()
                .iter()
                .take(good)
                .filter(|byte| **byte == b'\n')
                .count();
            return bad(format!("line {line}: not UTF-8 text"));
        }
    };
    let parsed = documents(&text, format).and_then(|documents| {
        let known: HashMap<&Digest, &Document> = old
            .iter()
            .map(|document| (&document.text, document))
            .collect();
        let parse = |document: document::Document<'_>| {
            let text = digest_of(document.text);
            Ok(match known.get(&text) {
                Some(known) => Document::clone(known),
                None => {
                    let parsed = parse_document(document, format, listed_at, reader)?;
                    Document {
                        text,
                        objects: parsed.objects.into_iter().map(Arc::new).collect(),
                        contents: contents(document, format)?,
                        passed_over: parsed.passed_over.into(),
                        pod_templates: parsed.pod_templates,
                    }
                }
            })
        };
        documents
            .into_iter()
            .map(parse)
            .collect::<Result<Arc<[_]>, _>>()
    });
    match parsed {
        Ok(documents) if documents.is_empty() => {
            bad("empty: no manifest in it; write one, or remove the file".into())
        }
        Ok(documents) => Loaded::Good(stamp, documents),
        Err(error) => bad(error.to_string()),
    }
}

fn digest_of(text: &str) -> Digest {
    let mut all = [0; SHA256_OUTPUT_LEN];
    all.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    all
}

/// The format of a manifest by its file name; `None` for any other file.
pub(super) fn format_of(name: &OsStr) -> Option<Format> {
    if name.as_encoded_bytes().starts_with(b".") {
        return None;
    }
    match Path::new(name).extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

/// An empty file is believed only after it has stayed empty this long.
const EMPTY: Duration = Duration::from_secs(1);
