//! The folder: the last good state of each file, the objects in force, and the problems.
//!
//! Invariant: of two files with the same object, the first by name gives the object. A file with an
//! error keeps its last good objects in force.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::contract::name::ObjectName;
use crate::discovery::files::event::{Event, Seen};
use crate::discovery::files::file::{Document, Loaded, Stamp, format_of};
use crate::discovery::files::pending::Pending;
use crate::discovery::manifest::Reader;
use crate::discovery::object::{Kind, Object};
use crate::discovery::passed_over;
use crate::discovery::secret::Contents;
use crate::discovery::source::Problem;
use crate::text::one_line;

pub(super) type Table = BTreeMap<(Kind, ObjectName), Arc<Object>>;

/// The objects in force, and the file of each.
pub(super) struct Folder {
    /// The folder's absolute path.
    pub(super) path: PathBuf,
    pub(super) reader: Reader,
    pub(super) files: BTreeMap<OsString, File>,
    /// Files that seem to be gone. Their objects stay for a moment, but the same objects in other
    /// files replace them.
    pub(super) leaving: BTreeSet<OsString>,
    pub(super) table: Table,
    /// Certificates and authorities. Of two objects with one name, the one of the first file counts.
    pub(super) contents: Contents,
    /// The problems, each with the kind that the metric counts.
    pub(super) problems: Vec<(&'static str, Problem)>,
    /// The manifests that are passed over: file, why, and the polls that have seen it.
    pub(super) passed_over: BTreeMap<(String, String), u8>,
    /// Why the folder cannot be read.
    pub(super) lost: Option<String>,
    /// Why the folder cannot be watched.
    pub(super) blind: Option<String>,
    /// Files that differed at the last poll.
    suspects: HashMap<OsString, Option<Stamp>>,
    /// Whether the first complete read has been sent.
    pub(super) synced: bool,
}

pub(super) struct File {
    stamp: Option<Stamp>,
    /// The last good state.
    good: Option<Arc<[Document]>>,
    pub(super) error: Option<String>,
}

impl File {
    /// The documents of its last good state.
    pub(super) fn good(&self) -> Option<&[Document]> {
        self.good.as_deref()
    }
}

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            reader: Reader::default(),
            files: BTreeMap::new(),
            leaving: BTreeSet::new(),
            table: Table::new(),
            contents: Contents::default(),
            problems: Vec::new(),
            passed_over: BTreeMap::new(),
            lost: None,
            blind: None,
            suspects: HashMap::new(),
            synced: false,
        }
    }

    /// Notes in `pending` what an event asks for. It reads the disk only to distinguish a new link
    /// from a new file.
    pub(super) fn on_event(&self, event: Event, pending: &mut Pending) {
        match event.what {
            Seen::Writing(name) => {
                pending.ready.remove(&name);
                pending.removals.remove(&name);
                pending.writing.insert(name);
                return;
            }
            Seen::Closed(name) => {
                pending.writing.remove(&name);
                pending.removals.remove(&name);
                pending.ready.insert(name);
            }
            Seen::Created(name) => {
                pending.removals.remove(&name);
                // A link is never closed. A regular file will be.
                let metadata = fs::symlink_metadata(self.path.join(&name));
                if !metadata.is_ok_and(|it| it.is_symlink() || it.nlink() > 1) {
                    return;
                }
                pending.ready.insert(name);
            }
            Seen::Gone(name) => {
                pending.writing.remove(&name);
                pending.ready.remove(&name);
                pending.removes(name, event.at);
            }
            Seen::Touched(name) => {
                let is_broken = self
                    .files
                    .get(&name)
                    .is_some_and(|file| file.error.is_some());
                if !is_broken || pending.writing.contains(&name) {
                    return;
                }
                pending.ready.insert(name);
            }
            Seen::Swapped => pending.swapped = true,
            Seen::Folder => pending.folder = true,
            Seen::Overflow => pending.overflow = true,
        }
        pending.first.get_or_insert(event.at);
        pending.last = Some(event.at);
    }

    /// The manifests in the folder now. A file has no stamp if its metadata cannot be read.
    pub(super) fn list(&self) -> io::Result<BTreeMap<OsString, Option<Stamp>>> {
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if format_of(&name).is_none() {
                continue;
            }
            match fs::metadata(self.path.join(&name)) {
                Ok(metadata) if metadata.is_file() => {
                    _ = names.insert(name, Some(Stamp::of(&metadata)))
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    _ = names.insert(name, None)
                }
                _ => {}
            }
        }
        Ok(names)
    }

    pub(super) fn lost(&mut self, error: &io::Error) {
        let state = if self.synced {
            "the last state stays in force until it is back"
        } else {
            "Ebbtide waits for it"
        };
        self.lost = Some(format!("the folder cannot be read: {error}; {state}"));
    }

    /// Compares the whole folder with what is known. Files that are new or differ are read. Missing
    /// files are removed: without a pause if a ConfigMap was swapped, because a swap is one step.
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

    /// Finds what inotify missed. `watched` says whether inotify watches this very folder. A file
    /// that differs without an event is read when it has not changed for one poll.
    pub(super) fn poll(&mut self, watched: bool, pending: &mut Pending) {
        if self.lost.is_some() || !watched {
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

    /// The stamp of a file when it was read. The outer `None`: the file is not known.
    fn stamp(&self, name: &OsStr) -> Option<Option<Stamp>> {
        self.files.get(name).map(|file| file.stamp)
    }

    pub(super) fn good(&self, name: &OsStr) -> Arc<[Document]> {
        self.files
            .get(name)
            .and_then(|file| file.good.clone())
            .unwrap_or_default()
    }

    pub(super) fn take(&mut self, name: OsString, loaded: Loaded) {
        let good = self.files.get(&name).and_then(|file| file.good.clone());
        let file = match loaded {
            Loaded::Gone => {
                self.files.remove(&name);
                return;
            }
            Loaded::Good(stamp, documents) => File {
                stamp: Some(stamp),
                good: Some(documents),
                error: None,
            },
            Loaded::Changing(stamp) => File {
                stamp: Some(stamp),
                good,
                error: Some("is being written".into()),
            },
            Loaded::Bad(stamp, error) => File {
                stamp,
                good,
                error: Some(error),
            },
        };
        self.files.insert(name, file);
    }

    /// Makes the table and the problems from the files.
    pub(super) fn refresh(&mut self) {
        let mut problems = Vec::new();
        let mut problem = |kind: &'static str, subject: String, error: String| {
            let mut problem = Problem::new(&subject, &error, SystemTime::now());
            if let Some((_, old)) = self
                .problems
                .iter()
                .find(|(_, old)| old.subject == problem.subject)
            {
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
        let (leaving, staying): (Vec<_>, Vec<_>) = self
            .files
            .iter()
            .partition(|(name, _)| self.leaving.contains(*name));
        for (name, file) in staying {
            if let Some(error) = &file.error {
                let state = match file.good {
                    Some(_) => {
                        "the last good state of this file stays in force until it is corrected"
                    }
                    None => "nothing of this file is in force until it is corrected",
                };
                problem(
                    "file",
                    self.path.join(name).display().to_string(),
                    format!("{error}; {state}"),
                );
            }
            for object in file
                .good
                .iter()
                .flat_map(|documents| documents.iter())
                .flat_map(|d| &d.objects)
            {
                let key = (object.kind(), object.name().clone());
                if let Some(owner) = owners.get(&key) {
                    let place = if *owner == name {
                        "in this file twice".to_owned()
                    } else {
                        format!("in {} too", owner.display())
                    };
                    let error = format!(
                        "{} {} is {place}, and the first is in force; remove one",
                        key.0, key.1
                    );
                    problem(
                        "duplicate",
                        self.path.join(name).display().to_string(),
                        error,
                    );
                } else {
                    owners.insert(key.clone(), name);
                    table.insert(key, object.clone());
                }
            }
        }
        for (_, file) in leaving {
            for object in file
                .good
                .iter()
                .flat_map(|documents| documents.iter())
                .flat_map(|d| &d.objects)
            {
                table
                    .entry((object.kind(), object.name().clone()))
                    .or_insert_with(|| object.clone());
            }
        }
        (self.table, self.problems) = (table, problems);
        let documents = self.files.values().filter_map(|file| file.good.as_ref());
        self.contents = Contents::default();
        for held in documents.flat_map(|it| it.iter()).map(|it| &it.contents) {
            for (name, found) in &held.certificates {
                let place = self.contents.certificates.entry(name.clone());
                place.or_insert_with(|| found.clone());
            }
            for (holder, found) in &held.authorities {
                let place = self.contents.authorities.entry(holder.clone());
                place.or_insert_with(|| found.clone());
            }
        }
        self.note_passed_over();
    }

    /// Finds the manifests that are passed over. While a file has never been good, it may have what
    /// the others lack, so they are not looked at.
    fn note_passed_over(&mut self) {
        if self.files.values().any(|file| file.good.is_none()) {
            return;
        }
        let files = self.files.iter();
        let documents = files.filter_map(|(name, file)| Some((name, file.good.as_ref()?)));
        let documents = documents.flat_map(|(name, it)| it.iter().map(move |it| (name, it)));
        let objects = documents
            .clone()
            .flat_map(|(name, it)| it.objects.iter().map(move |object| (name, &**object)));
        let noted =
            documents.flat_map(|(name, it)| it.passed_over.iter().map(move |note| (name, note)));
        let found = passed_over::all(objects, noted).into_iter();
        let found: Vec<_> = found
            .map(|(name, why)| (one_line(&self.path.join(name).display().to_string()), why))
            .collect();
        let before = std::mem::take(&mut self.passed_over);
        let polls = |note: &_| before.get(note).copied().unwrap_or(0);
        self.passed_over = found
            .into_iter()
            .map(|it| (it.clone(), polls(&it)))
            .collect();
    }

    /// The manifests that are passed over at a second poll, each once: a Service may be written a
    /// moment after its slices.
    pub(super) fn newly_passed_over(&mut self) -> Vec<&(String, String)> {
        let mut new = Vec::new();
        for (note, polls) in &mut self.passed_over {
            *polls = polls.saturating_add(1);
            if *polls == 2 {
                new.push(note);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::discovery::files::file::load;

    fn after(events: &[(u64, Seen)]) -> (Pending, Instant) {
        let (mut pending, start) = (Pending::default(), Instant::now());
        for (at, what) in events {
            let what = match what {
                Seen::Closed(name) => Seen::Closed(name.clone()),
                Seen::Writing(name) => Seen::Writing(name.clone()),
                Seen::Gone(name) => Seen::Gone(name.clone()),
                _ => Seen::Swapped,
            };
            let event = Event {
                what,
                at: start + Duration::from_millis(*at),
            };
            Folder::new(Path::new("/nowhere")).on_event(event, &mut pending);
        }
        (pending, start)
    }

    fn due_ms(events: &[(u64, Seen)]) -> Option<u128> {
        let (pending, start) = after(events);
        pending.due().map(|due| (due - start).as_millis())
    }

    #[test]
    fn a_batch_is_due_after_quiet_and_at_most_15_ms_after_its_first_event() {
        let closed = |name: &str| Seen::Closed(name.into());
        assert_eq!(due_ms(&[]), None);
        assert_eq!(due_ms(&[(0, closed("a")), (2, closed("b"))]), Some(5));
        let stream: Vec<_> = (0..20).map(|at| (at * 2, closed("a"))).collect();
        assert_eq!(due_ms(&stream), Some(15));
    }

    #[test]
    fn a_file_written_again_after_its_close_waits_for_the_next() {
        let (closed, writing) = (|| Seen::Closed("a".into()), || Seen::Writing("a".into()));
        assert_eq!(due_ms(&[(0, closed()), (1, writing())]), None);
        assert_eq!(
            due_ms(&[(0, closed()), (1, writing()), (9, closed())]),
            Some(12)
        );
    }

    #[test]
    fn what_is_passed_over_is_said_at_its_second_poll_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let mut seen = Folder::new(folder.path());
        let read = |seen: &mut Folder, name: &str| {
            let good = seen.good(name.as_ref());
            let loaded = load(&seen.path.join(name), &good, None, &Reader::default());
            seen.take(name.into(), loaded);
            seen.refresh();
        };
        let said = |seen: &mut Folder| {
            let new = seen.newly_passed_over().into_iter();
            new.map(|(file, why)| format!("{file}: {why}"))
                .collect::<Vec<_>>()
        };
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: app}\n";
        write("a.yaml", &service.replace("Service", "Sevice"));
        read(&mut seen, "a.yaml");
        assert_eq!(said(&mut seen), [""; 0], "it may be corrected at once");
        write("b.yaml", "kind: 5\n");
        read(&mut seen, "b.yaml");
        let expected = "a.yaml: Sevice default/app: there is no kind Sevice, did you mean Service?";
        assert!(matches!(&said(&mut seen)[..], [it] if it.ends_with(expected)));
        write("b.yaml", service);
        read(&mut seen, "b.yaml");
        write("a.yaml", &service.replace("Service", "Sevice #"));
        read(&mut seen, "a.yaml");
        for _ in 0..300 {
            assert_eq!(said(&mut seen), [""; 0], "it was said");
        }
        write("a.yaml", service);
        read(&mut seen, "a.yaml");
        assert!(seen.passed_over.is_empty());
    }

    #[test]
    fn a_removal_is_believed_after_20_ms_of_quiet_unless_the_file_returns() {
        let gone = |name: &str| Seen::Gone(name.into());
        assert_eq!(due_ms(&[(0, gone("a"))]), Some(20));
        assert_eq!(
            due_ms(&[(0, gone("a")), (15, gone("b"))]),
            Some(35),
            "a folder's removal begins with its files"
        );
        let slow: Vec<_> = (0..20).map(|n| (n * 15, gone(&n.to_string()))).collect();
        assert_eq!(due_ms(&slow), Some(100));
        assert_eq!(
            due_ms(&[(0, gone("a")), (9, Seen::Closed("a".into()))]),
            Some(12)
        );
        let (pending, _) = after(&[(0, gone("a")), (9, Seen::Writing("a".into()))]);
        assert_eq!((pending.due(), pending.removals.len()), (None, 0));
    }
}
