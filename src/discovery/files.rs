//! A folder of manifests as the source of truth.
//!
//! inotify tells which file to read, and when: a file is read once its writer has closed it (or it was renamed into
//! place), never while it is written. A poll every two seconds finds what inotify missed. A file that is broken, empty
//! or unreadable keeps the last good state of that file in force, a folder that is gone that of all of them; only a
//! file that is gone for 20 ms takes its objects with it. All that settles together is one
//! [`Message::Changes`]. Files in sub-folders and hidden ones (`.*`, so also ConfigMap's `..data`) are not read
//! themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval_at, sleep, sleep_until};

use super::manifest::{self, Format};
use super::{Change, Kind, Message, Object, ObjectName, Problem};

/// Reads the folder once, as [`watch`] would at its start.
pub fn read_folder(path: &Path) -> (Vec<Object>, Vec<Problem>) {
    let mut folder = Folder::new(path);
    match folder.list() {
        Ok(names) => {
            for name in names.into_keys() {
                let loaded = load(&folder.path.join(&name), &[], Some(SystemTime::now()));
                folder.take(name, loaded);
            }
        }
        Err(error) => folder.lost(&error),
    }
    folder.refresh();
    let objects = folder.table.values().map(|object| Object::clone(object)).collect();
    (objects, folder.problems.into_iter().map(|(_, problem)| problem).collect())
}

/// Sends the folder's objects, then [`Message::Synced`], then every change, until `out` is closed. `errors` counts by
/// kind: `file`, `duplicate`, `folder`, `watch`. A folder that does not exist is a problem, and waited for.
/// Cancellation-safe: what was not sent is read again by the next call.
pub async fn watch(path: PathBuf, out: mpsc::Sender<Message>, errors: impl Fn(&'static str)) {
    let mut folder = Folder::new(&path);
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut eyes = Eyes::new(&folder.path, events);
    let mut pending = Pending { folder: true, ..Pending::default() };
    let mut poll = interval_at(tokio::time::Instant::now() + POLL, POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = pending.due();
        tokio::select! {
            () = out.closed() => return,
            Some(event) = inbox.recv() => pending.take(event, &folder),
            () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                if pass(&mut folder, &mut eyes, &mut pending, &mut inbox, &out, &errors).await.is_err() {
                    return;
                }
            }
            _ = poll.tick(), if due.is_none() => folder.poll(&eyes, &mut pending),
        }
    }
}

/// One settled batch: looks, reads, sends. An error means that `out` is closed.
async fn pass(
    folder: &mut Folder,
    eyes: &mut Eyes,
    pending: &mut Pending,
    inbox: &mut mpsc::UnboundedReceiver<Event>,
    out: &mpsc::Sender<Message>,
    errors: &impl Fn(&'static str),
) -> Result<(), mpsc::error::SendError<Message>> {
    let received = pending.first.take().unwrap_or_else(Instant::now);
    let relist = std::mem::take(&mut pending.folder);
    if relist {
        let watched = eyes.watched;
        folder.blind = eyes.attach();
        if eyes.watched != watched {
            pending.writing.clear();
        }
    }
    let swapped = std::mem::take(&mut pending.swapped);
    if relist || swapped || pending.overflow {
        if std::mem::take(&mut pending.overflow) {
            pending.writing.clear();
        }
        folder.look(pending, swapped);
    }
    let gone = pending.due_removals();
    if !gone.is_empty() && !folder.path.is_dir() {
        // The files went because the folder did.
        pending.folder = true;
        pending.removals.clear();
        return Ok(());
    }
    let names: Vec<OsString> = std::mem::take(&mut pending.ready).into_iter().chain(gone.iter().cloned()).collect();
    let listed_at = (relist || !folder.synced).then(SystemTime::now);
    let work: Vec<_> = names.into_iter().map(|name| (folder.path.join(&name), folder.good(&name), name)).collect();
    let reading = tokio::task::spawn_blocking(move || {
        work.into_iter().map(|(path, old, name)| (name, load(&path, &old, listed_at))).collect::<Vec<_>>()
    });
    let loaded = reading.await.unwrap_or_else(|error| {
        tracing::error!(%error, "reading the manifests failed");
        Vec::new()
    });
    // A writer that began meanwhile may have shown us half a file; its events are here within moments.
    sleep(VERIFY).await;
    eyes.catch_up();
    while let Ok(event) = inbox.try_recv() {
        pending.take(event, folder);
    }
    let again = |pending: &Pending, name: &OsString| pending.writing.contains(name) || pending.ready.contains(name);
    if pending.swapped || swapped && loaded.iter().any(|(name, _)| again(pending, name)) {
        // A ConfigMap is being swapped under us, and what was read may be some of the old and some of the new.
        pending.swapped = true;
        let names = loaded.into_iter().map(|(name, _)| name).filter(|name| !pending.writing.contains(name));
        pending.ready.extend(names.collect::<Vec<_>>());
        return Ok(());
    }
    for (name, loaded) in loaded {
        match loaded {
            _ if again(pending, &name) => {}
            Loaded::Changing(_) => pending.reads_again(name),
            // Its writer's events follow; if it stays empty, the poll finds it.
            Loaded::Bad(Some(stamp), _) if stamp.is_freshly_empty() => {}
            Loaded::Gone if !swapped && !gone.contains(&name) => pending.removes(name, Instant::now()),
            loaded => folder.take(name, loaded),
        }
    }
    folder.leaving = pending.removals.keys().cloned().collect();
    publish(folder, received, out, errors).await
}

async fn publish(
    folder: &mut Folder,
    received: Instant,
    out: &mpsc::Sender<Message>,
    errors: &impl Fn(&'static str),
) -> Result<(), mpsc::error::SendError<Message>> {
    let before = (std::mem::take(&mut folder.table), folder.problems.clone());
    folder.refresh();
    if folder.lost.is_none() && !folder.synced {
        out.send(Message::Changes { received, changes: whole(&folder.table) }).await?;
        out.send(Message::Synced).await?;
        folder.synced = true;
    } else {
        let changes = difference(&before.0, &folder.table);
        if !changes.is_empty() {
            out.send(Message::Changes { received, changes }).await?;
        }
    }
    if folder.problems != before.1 {
        for (kind, problem) in folder.problems.iter().filter(|p| !before.1.contains(p)) {
            tracing::warn!(subject = problem.subject, error = problem.error, "manifests");
            errors(kind);
        }
        let is_well = |old: &Problem| folder.problems.iter().all(|(_, new)| new.subject != old.subject);
        for (_, problem) in before.1.iter().filter(|(_, old)| is_well(old)) {
            tracing::info!(subject = problem.subject, "manifests in order again");
        }
        out.send(Message::Problems(folder.problems.iter().map(|(_, problem)| problem.clone()).collect())).await?;
    }
    Ok(())
}

type Table = BTreeMap<(Kind, ObjectName), Arc<Object>>;

/// What is in force, and which file it is from.
struct Folder {
    /// Absolute.
    path: PathBuf,
    files: BTreeMap<OsString, File>,
    /// Files that seem to be gone; their objects stay a moment, but give way to the same ones elsewhere.
    leaving: BTreeSet<OsString>,
    table: Table,
    /// With the kind that is counted.
    problems: Vec<(&'static str, Problem)>,
    /// Why the folder cannot be read.
    lost: Option<String>,
    /// Why it cannot be watched.
    blind: Option<String>,
    /// Files that differed at the last poll.
    suspects: HashMap<OsString, Option<Stamp>>,
    /// The first complete read has been sent.
    synced: bool,
}

struct File {
    stamp: Option<Stamp>,
    /// The last good state.
    good: Option<Arc<Vec<Document>>>,
    error: Option<String>,
}

/// One document with what it gave, so that it need not be parsed again while its text stays.
struct Document {
    text: String,
    objects: Vec<Arc<Object>>,
}

/// Enough of a file's metadata to see that it is another, or another's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

enum Loaded {
    Gone,
    /// It changed while it was read.
    Changing(Stamp),
    Good(Stamp, Vec<Document>),
    Bad(Option<Stamp>, String),
}

impl Folder {
    fn new(path: &Path) -> Self {
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
    fn list(&self) -> io::Result<BTreeMap<OsString, Option<Stamp>>> {
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

    fn lost(&mut self, error: &io::Error) {
        let state = if self.synced { "the last state stays in force until it is back" } else { "it is waited for" };
        self.lost = Some(format!("the folder cannot be read: {error}; {state}"));
    }

    /// Compares the whole folder: what is new or differs is to be read, what is missing is to go (at once where
    /// a ConfigMap was swapped, since that is one step).
    fn look(&mut self, pending: &mut Pending, swapped: bool) {
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
    fn poll(&mut self, eyes: &Eyes, pending: &mut Pending) {
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

    fn good(&self, name: &OsStr) -> Arc<Vec<Document>> {
        self.files.get(name).and_then(|file| file.good.clone()).unwrap_or_default()
    }

    fn take(&mut self, name: OsString, loaded: Loaded) {
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
    fn refresh(&mut self) {
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

impl Stamp {
    /// Being truncated by a writer that opens it, most likely: the size is zero from the start of that, and inotify
    /// tells only at its end, which on ext4 may wait for the disk.
    fn is_freshly_empty(&self) -> bool {
        let (seconds, nanos) = self.modified;
        let modified = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        let age = SystemTime::UNIX_EPOCH.checked_add(modified).and_then(|at| at.elapsed().ok());
        self.size == 0 && age.is_some_and(|age| age < EMPTY)
    }

    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads and parses one file. Documents whose text was in `old` are taken from there. Blocks.
fn load(path: &Path, old: &[Document], listed_at: Option<SystemTime>) -> Loaded {
    let Some(format) = path.file_name().and_then(format_of) else { return Loaded::Gone };
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
            let line = 1 + error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count();
            return bad(format!("line {line}: not UTF-8 text"));
        }
    };
    let parsed = manifest::documents(&text, format).and_then(|documents| {
        let known: HashMap<&str, &Document> = old.iter().map(|document| (document.text.as_str(), document)).collect();
        let parse = |document: manifest::Document<'_>| {
            let objects = match known.get(document.text) {
                Some(known) => known.objects.clone(),
                None => {
                    let objects = manifest::parse_document(document, format, listed_at)?;
                    objects.into_iter().map(Arc::new).collect()
                }
            };
            Ok(Document { text: document.text.to_owned(), objects })
        };
        documents.into_iter().map(parse).collect::<Result<Vec<_>, _>>()
    });
    match parsed {
        Ok(documents) if documents.is_empty() => bad("empty: no manifest in it; write one, or remove the file".into()),
        Ok(documents) => Loaded::Good(stamp, documents),
        Err(error) => bad(error.to_string()),
    }
}

/// `None` for a file that is not a manifest by its name.
fn format_of(name: &OsStr) -> Option<Format> {
    if name.as_encoded_bytes().starts_with(b".") {
        return None;
    }
    match Path::new(name).extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

/// In the order in which a reader of the changes one by one would be misled the least: a pod before the slices that
/// name it, and the reverse for removals.
const ORDER: [Kind; 3] = [Kind::Pod, Kind::Service, Kind::EndpointSlice];

fn whole(table: &Table) -> Vec<Change> {
    let of = |kind| table.values().filter(|o| o.kind() == kind).map(|object| Object::clone(object)).collect();
    ORDER.map(|kind| Change::Replace { kind, namespace: None, objects: of(kind) }).into()
}

fn difference(before: &Table, after: &Table) -> Vec<Change> {
    let differs = |key, new: &Arc<Object>| before.get(key).is_none_or(|old| !Arc::ptr_eq(old, new) && old != new);
    let mut changes = Vec::new();
    for kind in ORDER {
        let new = after.iter().filter(|(key, object)| key.0 == kind && differs(*key, object));
        changes.extend(new.map(|(_, object)| Change::Apply(Object::clone(object))));
    }
    for kind in ORDER.into_iter().rev() {
        let gone = before.keys().filter(|key| key.0 == kind && !after.contains_key(*key));
        changes.extend(gone.map(|(kind, name)| Change::Remove(*kind, name.clone())));
    }
    changes
}

/// What inotify told.
#[derive(Debug)]
struct Event {
    what: What,
    at: Instant,
}

#[derive(Debug, PartialEq)]
enum What {
    /// Closed by its writer, or renamed into place.
    Closed(OsString),
    /// Written to, not closed yet.
    Writing(OsString),
    Created(OsString),
    Gone(OsString),
    /// Its metadata changed, which may have made it readable.
    Touched(OsString),
    /// A ConfigMap's `..data` was replaced.
    Swapped,
    /// The folder itself came, went, or became another.
    Folder,
    /// Events were lost.
    Overflow,
}

/// What is to be done at the next pass, and when that is.
#[derive(Debug, Default)]
struct Pending {
    /// To be read.
    ready: BTreeSet<OsString>,
    /// Between a write and its close: not to be read.
    writing: HashSet<OsString>,
    /// Gone since; believed after [`REMOVAL`] of quiet.
    removals: BTreeMap<OsString, Instant>,
    swapped: bool,
    folder: bool,
    overflow: bool,
    /// Arrival of the first and the last event of the batch.
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Pending {
    fn take(&mut self, event: Event, folder: &Folder) {
        match event.what {
            What::Writing(name) => {
                self.ready.remove(&name);
                self.removals.remove(&name);
                self.writing.insert(name);
                return;
            }
            What::Closed(name) => {
                self.writing.remove(&name);
                self.removals.remove(&name);
                self.ready.insert(name);
            }
            What::Created(name) => {
                self.removals.remove(&name);
                // Links are never closed; a regular file will be.
                let metadata = fs::symlink_metadata(folder.path.join(&name));
                if !metadata.is_ok_and(|it| it.is_symlink() || it.nlink() > 1) {
                    return;
                }
                self.ready.insert(name);
            }
            What::Gone(name) => {
                self.writing.remove(&name);
                self.ready.remove(&name);
                self.removes(name, event.at);
            }
            What::Touched(name) => {
                let is_broken = folder.files.get(&name).is_some_and(|file| file.error.is_some());
                if !is_broken || self.writing.contains(&name) {
                    return;
                }
                self.ready.insert(name);
            }
            What::Swapped => self.swapped = true,
            What::Folder => self.folder = true,
            What::Overflow => self.overflow = true,
        }
        self.first.get_or_insert(event.at);
        self.last = Some(event.at);
    }

    fn reads_again(&mut self, name: OsString) {
        self.ready.insert(name);
        self.first.get_or_insert_with(Instant::now);
        self.last = Some(Instant::now());
    }

    fn removes(&mut self, name: OsString, at: Instant) {
        self.removals.insert(name, at);
        self.first.get_or_insert(at);
    }

    /// When the next pass is due; `None` while there is nothing to do.
    fn due(&self) -> Option<Instant> {
        if self.ready.is_empty() && !self.swapped && !self.folder && !self.overflow {
            return self.removals_due();
        }
        let settled = self.last.map(|at| at + SETTLE).zip(self.first.map(|at| at + SETTLE_AT_MOST));
        Some(settled.map_or_else(Instant::now, |(settled, at_most)| settled.min(at_most)))
    }

    /// Removals wait for each other: a folder's removal begins with that of its files.
    fn removals_due(&self) -> Option<Instant> {
        let quiet = *self.removals.values().max()? + REMOVAL;
        let at_most = *self.removals.values().min()? + REMOVAL_AT_MOST;
        Some(quiet.min(at_most))
    }

    fn due_removals(&mut self) -> BTreeSet<OsString> {
        if self.removals_due().is_none_or(|due| Instant::now() < due) {
            return BTreeSet::new();
        }
        std::mem::take(&mut self.removals).into_keys().collect()
    }
}

/// The inotify side: watches the folder, and where its path can come to mean another folder, its parent too.
struct Eyes {
    path: PathBuf,
    watcher: Result<RecommendedWatcher, notify::Error>,
    /// Device and inode of the folder that is watched.
    watched: Option<(u64, u64)>,
    parent_watched: bool,
}

impl Eyes {
    fn new(path: &Path, events: mpsc::UnboundedSender<Event>) -> Self {
        let folder = path.to_owned();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let what = event.map_or(Some(What::Overflow), |event| what(&event, &folder));
            if let Some(what) = what {
                // The receiver is gone only when the watch has ended.
                let _ = events.send(Event { what, at: Instant::now() });
            }
        });
        Self { path: path.to_owned(), watcher, watched: None, parent_watched: false }
    }

    /// Whether the folder at this path is the one that is watched, as far as it can be watched at all.
    fn see(&self, path: &Path) -> bool {
        self.watcher.is_err() || self.watched.is_some() && identity(path) == self.watched
    }

    /// Returns when the watcher has told what the kernel had told it: its thread may be behind on a busy machine. It
    /// answers a question between two rounds of events, so the second answer comes after a whole one.
    fn catch_up(&mut self) {
        for _ in 0..2 {
            if let Ok(watcher) = &mut self.watcher {
                let _ = watcher.configure(notify::Config::default());
            }
        }
    }

    /// Watches the folder as it stands now. Answers why it cannot.
    fn attach(&mut self) -> Option<String> {
        let cannot = |error: &dyn std::fmt::Display| {
            let cure = "raise fs.inotify.max_user_instances and max_user_watches";
            Some(format!("the folder cannot be watched: {error}; changes take up to 4 s to be seen; {cure}"))
        };
        let watcher = match &mut self.watcher {
            Ok(watcher) => watcher,
            Err(error) => return cannot(error),
        };
        // Not being watched (any more) is what unwatch complains of.
        let _ = watcher.unwatch(&self.path);
        self.watched = None;
        let needs_parent = !fs::symlink_metadata(&self.path).is_ok_and(|it| it.is_dir());
        if let Some(parent) = self.path.parent()
            && needs_parent != self.parent_watched
        {
            if needs_parent {
                self.parent_watched = watcher.watch(parent, RecursiveMode::NonRecursive).is_ok();
            } else {
                let _ = watcher.unwatch(parent);
                self.parent_watched = false;
            }
        }
        match watcher.watch(&self.path, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched = identity(&self.path);
                None
            }
            // That it is not there is said by whoever reads it.
            Err(_) if identity(&self.path).is_none() => None,
            Err(error) => cannot(&error),
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn what(event: &notify::Event, folder: &Path) -> Option<What> {
    if event.need_rescan() {
        return Some(What::Overflow);
    }
    let path = event.paths.first()?;
    let came_or_went = match event.kind {
        EventKind::Create(_) | EventKind::Remove(_) => true,
        EventKind::Modify(ModifyKind::Name(mode)) => mode != RenameMode::Both,
        _ => false,
    };
    if path == folder {
        return came_or_went.then_some(What::Folder);
    }
    let name = path.file_name()?;
    let dotted = name.as_encoded_bytes().starts_with(b"..");
    if path.parent() != Some(folder) {
        // In the parent: a ConfigMap's swap may move the folder's target.
        return (dotted && came_or_went).then_some(What::Folder);
    }
    if dotted {
        return came_or_went.then_some(What::Swapped);
    }
    format_of(name)?;
    let name = name.to_owned();
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(What::Closed(name)),
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(What::Closed(name)),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => Some(What::Gone(name)),
        EventKind::Modify(ModifyKind::Data(_)) => Some(What::Writing(name)),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(What::Touched(name)),
        EventKind::Create(_) => Some(What::Created(name)),
        _ => None,
    }
}

/// A batch is complete when this long has passed without another event …
const SETTLE: Duration = Duration::from_millis(3);

/// … or this long since its first.
const SETTLE_AT_MOST: Duration = Duration::from_millis(15);

/// How long a file must be gone: editors remove and write anew, and removing a folder begins with its files.
const REMOVAL: Duration = Duration::from_millis(20);

/// How long a file must be empty before that is held to be its content.
const EMPTY: Duration = Duration::from_secs(1);

const REMOVAL_AT_MOST: Duration = Duration::from_millis(100);

/// From reading a file to believing it: the time in which the event of a write that we read half of arrives.
const VERIFY: Duration = Duration::from_millis(2);

const POLL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn told(events: &[(u64, What)]) -> (Pending, Instant) {
        let (mut pending, start) = (Pending::default(), Instant::now());
        for (at, what) in events {
            let what = match what {
                What::Closed(name) => What::Closed(name.clone()),
                What::Writing(name) => What::Writing(name.clone()),
                What::Gone(name) => What::Gone(name.clone()),
                _ => What::Swapped,
            };
            let event = Event { what, at: start + Duration::from_millis(*at) };
            pending.take(event, &Folder::new(Path::new("/nowhere")));
        }
        (pending, start)
    }

    fn due_ms(events: &[(u64, What)]) -> Option<u128> {
        let (pending, start) = told(events);
        pending.due().map(|due| (due - start).as_millis())
    }

    #[test]
    fn a_batch_settles_but_not_for_ever() {
        let closed = |name: &str| What::Closed(name.into());
        assert_eq!(due_ms(&[]), None);
        assert_eq!(due_ms(&[(0, closed("a")), (2, closed("b"))]), Some(5));
        let stream: Vec<_> = (0..20).map(|at| (at * 2, closed("a"))).collect();
        assert_eq!(due_ms(&stream), Some(15));
    }

    #[test]
    fn a_file_written_again_after_its_close_waits_for_the_next() {
        let (closed, writing) = (|| What::Closed("a".into()), || What::Writing("a".into()));
        assert_eq!(due_ms(&[(0, closed()), (1, writing())]), None);
        assert_eq!(due_ms(&[(0, closed()), (1, writing()), (9, closed())]), Some(12));
    }

    #[test]
    fn a_removal_is_believed_after_20_ms_of_quiet_unless_the_file_returns() {
        let gone = |name: &str| What::Gone(name.into());
        assert_eq!(due_ms(&[(0, gone("a"))]), Some(20));
        assert_eq!(due_ms(&[(0, gone("a")), (15, gone("b"))]), Some(35), "a folder's removal begins with its files");
        let slow: Vec<_> = (0..20).map(|n| (n * 15, gone(&n.to_string()))).collect();
        assert_eq!(due_ms(&slow), Some(100));
        assert_eq!(due_ms(&[(0, gone("a")), (9, What::Closed("a".into()))]), Some(12));
        let (pending, _) = told(&[(0, gone("a")), (9, What::Writing("a".into()))]);
        assert_eq!((pending.due(), pending.removals.len()), (None, 0));
    }
}
