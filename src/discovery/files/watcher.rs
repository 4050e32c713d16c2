//! The inotify side: watches the folder and turns the kernel's events into [`Event`]s.
//!
//! Invariant: after [`Watcher::attach`] the watched folder is the one at the path, or the caller
//! knows why not. The poll in `folder.rs` covers what a watch misses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::discovery::files::event::{Event, Seen};
use crate::discovery::files::file::format_of;

/// A watch of the folder. If the folder's path can come to mean another folder (a link), its parent
/// is watched too.
pub(super) struct Watcher {
    path: PathBuf,
    watcher: Result<RecommendedWatcher, notify::Error>,
    /// Device and inode of the watched folder.
    pub(super) watched: Option<(u64, u64)>,
    parent_watched: bool,
}

impl Watcher {
    pub(super) fn new(path: &Path, events: mpsc::UnboundedSender<Event>) -> Self {
        let folder = path.to_owned();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let what = event.map_or(Some(Seen::Overflow), |event| what(&event, &folder));
            if let Some(what) = what {
                // The receiver is gone only when the watch has ended.
                let _ = events.send(Event {
                    what,
                    at: Instant::now(),
                });
            }
        });
        Self {
            path: path.to_owned(),
            watcher,
            watched: None,
            parent_watched: false,
        }
    }

    /// Whether the folder at this path is the watched one. True if nothing can be watched at all.
    pub(super) fn sees(&self, path: &Path) -> bool {
        self.watcher.is_err() || self.watched.is_some() && identity(path) == self.watched
    }

    /// Returns when the watcher has passed on all events that the kernel had for it; its thread may
    /// be behind on a busy machine. The thread answers a configuration request between two rounds
    /// of events, so the second answer comes after a complete round.
    pub(super) fn catch_up(&mut self) {
        for _ in 0..2 {
            if let Ok(watcher) = &mut self.watcher {
                let _ = watcher.configure(notify::Config::default());
            }
        }
    }

    /// Watches the folder that is at the path now. Returns the reason if that is not possible.
    pub(super) fn attach(&mut self) -> Option<String> {
        let cannot = |error: &dyn std::fmt::Display| {
            let cure = "raise fs.inotify.max_user_instances and max_user_watches";
            Some(format!(
                "the folder cannot be watched: {error}; a change takes up to 4 s to take effect; {cure}"
            ))
        };
        let watcher = match &mut self.watcher {
            Ok(watcher) => watcher,
            Err(error) => return cannot(error),
        };
        // `unwatch` fails if the folder is not watched (any more).
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
            // The reader of the folder reports that the folder is missing.
            Err(_) if identity(&self.path).is_none() => None,
            Err(error) => cannot(&error),
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

fn what(event: &notify::Event, folder: &Path) -> Option<Seen> {
    if event.need_rescan() {
        return Some(Seen::Overflow);
    }
    let path = event.paths.first()?;
    let came_or_went = match event.kind {
        EventKind::Create(_) | EventKind::Remove(_) => true,
        EventKind::Modify(ModifyKind::Name(mode)) => mode != RenameMode::Both,
        _ => false,
    };
    if path == folder {
        return came_or_went.then_some(Seen::Folder);
    }
    let name = path.file_name()?;
    let dotted = name.as_encoded_bytes().starts_with(b"..");
    if path.parent() != Some(folder) {
        // The event is in the parent. A ConfigMap's swap may move the folder that the path means.
        return (dotted && came_or_went).then_some(Seen::Folder);
    }
    if dotted {
        return came_or_went.then_some(Seen::Swapped);
    }
    format_of(name)?;
    let name = name.to_owned();
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Seen::Closed(name)),
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(Seen::Closed(name)),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
            Some(Seen::Gone(name))
        }
        EventKind::Modify(ModifyKind::Data(_)) => Some(Seen::Writing(name)),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(Seen::Touched(name)),
        EventKind::Create(_) => Some(Seen::Created(name)),
        _ => None,
    }
}
