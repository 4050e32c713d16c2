//! One file, read and parsed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::discovery::manifest::{self, Format};
use crate::discovery::object::Object;

/// One document with what it gave, so that it need not be parsed again while its text stays.
pub(super) struct Document {
    pub(super) text: String,
    pub(super) objects: Vec<Arc<Object>>,
}

/// Enough of a file's metadata to see that it is another, or another's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

pub(super) enum Loaded {
    Gone,
    /// It changed while it was read.
    Changing(Stamp),
    Good(Stamp, Vec<Document>),
    Bad(Option<Stamp>, String),
}

impl Stamp {
    /// Being truncated by a writer that opens it, most likely: the size is zero from the start of that, and inotify
    /// tells only at its end, which on ext4 may wait for the disk.
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

/// Reads and parses one file. Documents whose text was in `old` are taken from there. Blocks.
pub(super) fn load(path: &Path, old: &[Document], listed_at: Option<SystemTime>) -> Loaded {
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
    let parsed = manifest::documents(&text, format).and_then(|documents| {
        let known: HashMap<&str, &Document> = old
            .iter()
            .map(|document| (document.text.as_str(), document))
            .collect();
        let parse = |document: manifest::Document<'_>| {
            let objects = match known.get(document.text) {
                Some(known) => known.objects.clone(),
                None => {
                    let objects = manifest::parse_document(document, format, listed_at)?;
                    objects.into_iter().map(Arc::new).collect()
                }
            };
            Ok(Document {
                text: document.text.to_owned(),
                objects,
            })
        };
        documents
            .into_iter()
            .map(parse)
            .collect::<Result<Vec<_>, _>>()
    });
    match parsed {
        Ok(documents) if documents.is_empty() => {
            bad("empty: no manifest in it; write one, or remove the file".into())
        }
        Ok(documents) => Loaded::Good(stamp, documents),
        Err(error) => bad(error.to_string()),
    }
}

/// `None` for a file that is not a manifest by its name.
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

/// How long a file must be empty before that is held to be its content.
const EMPTY: Duration = Duration::from_secs(1);
