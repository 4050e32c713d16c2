//! The folder: the last good state of each file, what of it is in force, and what is wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::contract::name::ObjectName;
use crate::discovery::files::file::{Document, Loaded, Stamp, format_of};
use crate::discovery::files::pending::Pending;
use crate::discovery::files::watcher::Eyes;
use crate::discovery::object::{Kind, Object};
use crate::discovery::source::Problem;

pub(super) type Table = BTreeMap<(Kind, ObjectName), Arc<Object>>;

/// What is in force, and which file it is from.
pub(super) struct Folder {
    /// Absolute.
    pub(super) path: PathBuf,
    pub(super) files: BTreeMap<OsString, File>,
    /// Files that seem to be gone; their objects stay a moment, but give way to the same ones elsewhere.
    pub(super) leaving: BTreeSet<OsString>,
    pub(super) table: Table,
    /// With the kind that is counted.
    pub(super) problems: Vec<(&'static str, Problem)>,
    /// Why the folder cannot be read.
    pub(super) lost: Option<String>,
    /// Why it cannot be watched.
    pub(super) blind: Option<String>,
    /// Files that differed at the last poll.
    suspects: HashMap<OsString, Option<Stamp>>,
    /// The first complete read has been sent.
    pub(super) synced: bool,
}

pub(super) struct File {
    stamp: Option<Stamp>,
    /// The last good state.
    good: Option<Arc<Vec<Document>>>,
    pub(super) error: Option<String>,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            files: BTreeMap::new(),
            leaving: BTreeSet::new(),
            table: Table::new(),
            problems: Vec::new(),
            lost: None,
            blind: None,
            suspects: HashMap::new(),
            synced: false,
        }
    }

    /// The manifests that are there now; no stamp where the metadata cannot be read.
    pub(super) fn list(&self) -> io::Result<BTreeMap<OsString, Option<Stamp>>> {
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if format_of(&name).is_none() {
                continue;
            }
            match fs::metadata(self.path.join(&name)) {
                Ok(metadata) if metadata.is_file() => _ = names.insert(name, Some(Stamp::of(&metadata))),
                Err(error) if error.kind() != io::ErrorKind::NotFound => _ = names.insert(name, None),
                _ => {}
            }
        }
        Ok(names)
    }

    pub(super) fn lost(&mut self, error: &io::Error) {
        let state = if self.synced { "the last state stays in force until it is back" } else { "it is waited for" };
        self.lost = Some(format!("the folder cannot be read: {error}; {state}"));
    }

    /// Compares the whole folder: what is new or differs is to be read, what is missing is to go (at once where
    /// a ConfigMap was swapped, since that is one step).
    pub(super) fn look(&mut self, pending: &mut Pending, swapped: bool) {
        let names = match self.list() {
            Ok(names) => names,
            Err(error) => {
                pending.removals.clear();
                return self.lost(&error);
            }
        };
        self.lost = None;
        for name in self.files.keys() {
            if names.contains_key(name) || pending.writing.contains(name) {
                continue;
            }
            if swapped {
                pending.ready.insert(name.clone());
            } else if !pending.removals.contains_key(name) {
                pending.removes(name.clone(), Instant::now());
            }
        }
        for (name, stamp) in names {
            if self.stamp(&name) != Some(stamp) && !pending.writing.contains(&name) {
                pending.ready.insert(name);
            }
        }
    }

    /// The safety net under inotify. A file that differs without an event is read when it has stayed so for a poll.
    pub(super) fn poll(&mut self, eyes: &Eyes, pending: &mut Pending) {
        if self.lost.is_some() || !eyes.see(&self.path) {
            pending.folder = true;
            return;
        }
        let Ok(names) = self.list() else {
            pending.folder = true;
            return;
        };
        for name in self.files.keys().filter(|name| !names.contains_key(*name)) {
            pending.removes(name.clone(), Instant::now());
        }
        let before = std::mem::take(&mut self.suspects);
        for (name, stamp) in names {
            if self.stamp(&name) == Some(stamp) || pending.writing.contains(&name) {
                continue;
            }
            if before.get(&name) == Some(&stamp) {
                pending.ready.insert(name);
            } else {
                self.suspects.insert(name, stamp);
            }
        }
    }

    /// The outer `None`: not known at all.
    fn stamp(&self, name: &OsStr) -> Option<Option<Stamp>> {
        self.files.get(name).map(|file| file.stamp)
    }

    pub(super) fn good(&self, name: &OsStr) -> Arc<Vec<Document>> {
        self.files.get(name).and_then(|file| file.good.clone()).unwrap_or_default()
    }

    pub(super) fn take(&mut self, name: OsString, loaded: Loaded) {
        let good = self.files.get(&name).and_then(|file| file.good.clone());
        let file = match loaded {
            Loaded::Gone => {
                self.files.remove(&name);
                return;
            }
            Loaded::Good(stamp, documents) => File { stamp: Some(stamp), good: Some(Arc::new(documents)), error: None },
            Loaded::Changing(stamp) => File { stamp: Some(stamp), good, error: Some("is being written".into()) },
            Loaded::Bad(stamp, error) => File { stamp, good, error: Some(error) },
        };
        self.files.insert(name, file);
    }

    /// Makes the table and the problems anew from the files.
    pub(super) fn refresh(&mut self) {
        let mut problems = Vec::new();
        let mut problem = |kind: &'static str, subject: String, error: String| {
            let mut problem = Problem::new(&subject, &error, SystemTime::now());
            if let Some((_, old)) = self.problems.iter().find(|(_, old)| old.subject == problem.subject) {
                problem.since = old.since;
            }
            problems.push((kind, problem));
        };
        let folder = || self.path.display().to_string();
        for (kind, error) in [("folder", &self.lost), ("watch", &self.blind)] {
            if let Some(error) = error {
                problem(kind, folder(), error.clone());
            }
        }
        let mut table = Table::new();
        let mut owners: HashMap<(Kind, ObjectName), &OsStr> = HashMap::new();
        let (leaving, staying): (Vec<_>, Vec<_>) =
            self.files.iter().partition(|(name, _)| self.leaving.contains(*name));
        for (name, file) in staying {
            if let Some(error) = &file.error {
                let state = match file.good {
                    Some(_) => "the last good state of this file stays in force until it is corrected",
                    None => "nothing of this file is in force until it is corrected",
                };
                problem("file", self.path.join(name).display().to_string(), format!("{error}; {state}"));
            }
            for object in file.good.iter().flat_map(|documents| documents.iter()).flat_map(|d| &d.objects) {
                let key = (object.kind(), object.name().clone());
                if let Some(owner) = owners.get(&key) {
                    let place =
                        if *owner == name { "twice in it".to_owned() } else { format!("in {} too", owner.display()) };
                    let error = format!("{} {} is {place}, and the first is in force; remove one", key.0, key.1);
                    problem("duplicate", self.path.join(name).display().to_string(), error);
                } else {
                    owners.insert(key.clone(), name);
                    table.insert(key, object.clone());
                }
            }
        }
        for (_, file) in leaving {
            for object in file.good.iter().flat_map(|documents| documents.iter()).flat_map(|d| &d.objects) {
                table.entry((object.kind(), object.name().clone())).or_insert_with(|| object.clone());
            }
        }
        (self.table, self.problems) = (table, problems);
    }
}
