//! A folder of manifests as the source of truth.
//!
//! inotify says which file to read and when. A file is read after its writer has closed it or it
//! was renamed into place, and never while it is written. A poll every 2 s finds what inotify
//! missed. Files that settle together make one [`Message::Changes`].
//!
//! Invariant: a broken, empty or unreadable file keeps its last good state in force, and a folder
//! that is gone keeps the state of all its files. Only a file that is gone for 20 ms takes its
//! objects with it. Files in sub-folders and hidden files (`.*`, so also ConfigMap's `..data`) are
//! not read themselves.

mod event;
mod file;
mod folder;
mod pending;
mod watcher;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval_at, sleep, sleep_until};

use crate::contract::authorities::{FoundAuthorities, Holder};
use crate::contract::name::ObjectName;
use crate::discovery::files::event::Event;
use crate::discovery::files::file::{Loaded, load};
use crate::discovery::files::folder::{File, Folder, Table};
use crate::discovery::files::pending::Pending;
use crate::discovery::files::watcher::Watcher;
use crate::discovery::manifest::Reader;
use crate::discovery::object::{Change, Kind, Object};
use crate::discovery::secret::{Contents, Found};
use crate::discovery::secrets::MISSING;
use crate::discovery::source::{Message, Problem};

/// A folder as [`read_folder`] has read it.
#[derive(Debug)]
pub struct FolderRead {
    /// The objects in force.
    pub objects: Vec<Object>,
    /// Its certificates and authorities.
    pub contents: Contents,
    /// What cannot be read.
    pub problems: Vec<Problem>,
    /// The manifests that are passed over, although they look like ones that are read: each with its
    /// file and the cure.
    pub passed_over: Vec<String>,
    /// How many manifests have a pod template, such as Deployments. They are not read.
    pub pod_templates: usize,
}

/// Reads the folder once, as [`watch`] does at its start.
pub fn read_folder(path: &Path, reader: &Reader) -> FolderRead {
    let mut folder = Folder::new(path);
    match folder.list() {
        Ok(names) => {
            for name in names.into_keys() {
                let loaded = load(
                    &folder.path.join(&name),
                    &[],
                    Some(SystemTime::now()),
                    reader,
                );
                folder.take(name, loaded);
            }
        }
        Err(error) => folder.lost(&error),
    }
    folder.refresh();
    let objects = folder.table.values().map(|object| Object::clone(object));
    let problems = folder.problems.into_iter().map(|(_, problem)| problem);
    let passed_over = folder.passed_over.into_keys();
    let documents = folder.files.values().filter_map(File::good);
    let templates = documents.flat_map(|it| it.iter().map(|it| it.pod_templates));
    FolderRead {
        objects: objects.collect(),
        contents: folder.contents,
        problems: problems.collect(),
        pod_templates: templates.sum(),
        passed_over: passed_over
            .map(|(file, why)| format!("{file}: {why}"))
            .collect(),
    }
}

/// Sends the folder's objects, then [`Message::Synced`], then every change, until `out` is closed.
///
/// `errors` counts by kind: `file`, `duplicate`, `folder`, `watch`. A folder that does not exist is
/// a problem, and the source waits for it. Cancellation-safe: the next call reads again what was
/// not sent.
pub async fn watch(
    path: PathBuf,
    reader: Reader,
    out: mpsc::Sender<Message>,
    errors: impl Fn(&'static str),
) {
    let mut folder = Folder::new(&path);
    folder.reader = reader;
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut watcher = Watcher::new(&folder.path, events);
    let mut pending = Pending {
        folder: true,
        ..Pending::default()
    };
    let mut poll = interval_at(tokio::time::Instant::now() + POLL, POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = pending.due();
        tokio::select! {
            () = out.closed() => return,
            Some(event) = inbox.recv() => folder.on_event(event, &mut pending),
            () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                if pass(&mut folder, &mut watcher, &mut pending, &mut inbox, &out, &errors).await.is_err() {
                    return;
                }
            }
            _ = poll.tick(), if due.is_none() => {
                folder.poll(watcher.sees(&folder.path), &mut pending);
                say(&folder.newly_passed_over());
            }
        }
    }
}

fn say(passed_over: &[&(String, String)]) {
    for (file, why) in passed_over.iter().take(SAID) {
        tracing::warn!(file, why, "a manifest is passed over");
    }
    let more = passed_over.len().saturating_sub(SAID);
    if more > 0 {
        tracing::warn!(
            more,
            "more manifests are passed over; the command check names them all"
        );
    }
}

/// Handles one settled batch: looks at the folder, reads files, sends changes. An error means that
/// `out` is closed.
async fn pass(
    folder: &mut Folder,
    watcher: &mut Watcher,
    pending: &mut Pending,
    inbox: &mut mpsc::UnboundedReceiver<Event>,
    out: &mpsc::Sender<Message>,
    errors: &impl Fn(&'static str),
) -> Result<(), mpsc::error::SendError<Message>> {
    let received = pending.first.take().unwrap_or_else(Instant::now);
    let relist = std::mem::take(&mut pending.folder);
    if relist {
        let watched = watcher.watched;
        folder.blind = watcher.attach();
        if watcher.watched != watched {
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
        // The files are gone because the folder is.
        pending.folder = true;
        pending.removals.clear();
        return Ok(());
    }
    let names: Vec<OsString> = std::mem::take(&mut pending.ready)
        .into_iter()
        .chain(gone.iter().cloned())
        .collect();
    let listed_at = (relist || !folder.synced).then(SystemTime::now);
    let work: Vec<_> = names
        .into_iter()
        .map(|name| (folder.path.join(&name), folder.good(&name), name))
        .collect();
    let reader = folder.reader.clone();
    let reading = tokio::task::spawn_blocking(move || {
        work.into_iter()
            .map(|(path, old, name)| (name, load(&path, &old, listed_at, &reader)))
            .collect::<Vec<_>>()
    });
    let loaded = reading.await.unwrap_or_else(|error| {
        tracing::error!(%error, "the task that reads the manifests failed");
        Vec::new()
    });
    // A writer that began during the read may have shown half a file. Its events arrive within
    // moments.
    sleep(VERIFY).await;
    watcher.catch_up();
    while let Ok(event) = inbox.try_recv() {
        folder.on_event(event, pending);
    }
    let again = |pending: &Pending, name: &OsString| {
        pending.writing.contains(name) || pending.ready.contains(name)
    };
    if pending.swapped || swapped && loaded.iter().any(|(name, _)| again(pending, name)) {
        // A ConfigMap is being swapped. The files that were read may be a mixture of old and new.
        pending.swapped = true;
        let names = loaded
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| !pending.writing.contains(name));
        pending.ready.extend(names.collect::<Vec<_>>());
        return Ok(());
    }
    for (name, loaded) in loaded {
        match loaded {
            _ if again(pending, &name) => {}
            Loaded::Changing(_) => pending.reads_again(name),
            // The events of its writer follow. If the file stays empty, the poll finds it.
            Loaded::Bad(Some(stamp), _) if stamp.is_freshly_empty() => {}
            Loaded::Gone if !swapped && !gone.contains(&name) => {
                pending.removes(name, Instant::now())
            }
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
    let contents = std::mem::take(&mut folder.contents);
    folder.refresh();
    // Before the Services that name them.
    for tell in [certificates, authorities] {
        for message in tell(&contents, &folder.contents) {
            out.send(message).await?;
        }
    }
    if folder.lost.is_none() && !folder.synced {
        out.send(Message::Changes {
            received,
            changes: whole(&folder.table),
        })
        .await?;
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
            tracing::warn!(
                subject = problem.subject,
                error = problem.error,
                "manifests have a problem"
            );
            errors(kind);
        }
        let is_well = |old: &Problem| {
            folder
                .problems
                .iter()
                .all(|(_, new)| new.subject != old.subject)
        };
        for (_, problem) in before.1.iter().filter(|(_, old)| is_well(old)) {
            tracing::info!(subject = problem.subject, "manifests are in order again");
        }
        out.send(Message::Problems(
            folder
                .problems
                .iter()
                .map(|(_, problem)| problem.clone())
                .collect(),
        ))
        .await?;
    }
    Ok(())
}

fn whole(table: &Table) -> Vec<Change> {
    let of = |kind| {
        table
            .values()
            .filter(|o| o.kind() == kind)
            .map(|object| Object::clone(object))
            .collect()
    };
    Kind::all()
        .map(|kind| Change::Replace {
            kind,
            namespace: None,
            objects: of(kind),
        })
        .collect()
}

/// The Secrets that have changed or are gone.
fn certificates(before: &Contents, after: &Contents) -> Vec<Message> {
    let (before, after) = (&before.certificates, &after.certificates);
    let is_same = |old: &Found, new: &Found| match (old, new) {
        (Ok(old), Ok(new)) => Arc::ptr_eq(old, new),
        (Err(old), Err(new)) => old == new,
        _ => false,
    };
    let new = after.iter().filter(|(name, new)| {
        let old = before.get(*name);
        old.is_none_or(|old| !is_same(old, new))
    });
    let new = new.map(|(name, found)| (name, found.clone()));
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let gone = gone.map(|name| (name, Err(MISSING.to_owned())));
    let message = |(secret, found): (&ObjectName, Found)| Message::Certificate {
        secret: secret.clone(),
        found,
    };
    new.chain(gone).map(message).collect()
}

/// The objects with authorities that have changed or are gone.
fn authorities(before: &Contents, after: &Contents) -> Vec<Message> {
    let (before, after) = (&before.authorities, &after.authorities);
    let new = after
        .iter()
        .filter(|(it, new)| before.get(*it) != Some(*new));
    let new = new.map(|(holder, found)| (holder, found.clone()));
    let gone = before.keys().filter(|it| !after.contains_key(*it));
    let gone = gone.map(|holder| (holder, Err(NOWHERE.to_owned())));
    let message = |(holder, found): (&Holder, FoundAuthorities)| Message::Authorities {
        holder: holder.clone(),
        found: Some(found),
    };
    new.chain(gone).map(message).collect()
}

/// What is said of an object with authorities that no manifest has (any more).
pub const NOWHERE: &str = "no manifest has it with the key ca.crt";

fn difference(before: &Table, after: &Table) -> Vec<Change> {
    let differs = |key, new: &Arc<Object>| {
        before
            .get(key)
            .is_none_or(|old| !Arc::ptr_eq(old, new) && old != new)
    };
    let mut changes = Vec::new();
    for kind in Kind::all() {
        let new = after
            .iter()
            .filter(|(key, object)| key.0 == kind && differs(*key, object));
        changes.extend(new.map(|(_, object)| Change::Apply(Object::clone(object))));
    }
    for kind in Kind::all().rev() {
        let gone = before
            .keys()
            .filter(|key| key.0 == kind && !after.contains_key(*key));
        changes.extend(gone.map(|(kind, name)| Change::Remove(*kind, name.clone())));
    }
    changes
}

/// The time from reading a file to believing it. The event of a write that was read by half arrives
/// within this time.
const VERIFY: Duration = Duration::from_millis(2);

/// The manifests that are passed over and named at one poll. Many have one cause.
const SAID: usize = 20;

/// The time between two polls of the folder.
const POLL: Duration = Duration::from_secs(2);
