//! The last table of the API server on disk, for a restart while the API server is gone.
//!
//! The file holds the objects as the source has reported them: a line of JSON each, after a line
//! that says what the file is. It holds no secret: names, addresses and annotations of Ebbtide.
//!
//! Invariant: the file is whole or it is not used. It is written beside its place and renamed, only
//! after a first complete list, at most once in an interval and on a thread of its own, because a
//! disk may stall. A file that is damaged, of another version or of another API server is ignored.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::contract::name::ObjectName;
use crate::discovery::gateway::GatewayObject;
use crate::discovery::object::{
    Change, ClassObject, Deletion, IngressObject, Kind, Object, PodObject, ServiceObject,
    SliceObject,
};

/// A table that was read from disk.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) objects: Vec<Object>,
    /// When the source was last in order.
    pub(super) at: SystemTime,
}

/// The first line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// `table`.
    ebbtide: String,
    /// The version of the program. A pod's volume is not shared between versions.
    version: String,
    /// The address of the API server.
    server: String,
    /// Seconds since 1970.
    saved_at: u64,
    lines: usize,
    /// Of all other lines.
    hash: u64,
}

/// One object of the file.
#[derive(Serialize, Deserialize)]
enum Line {
    Service(ServiceObject),
    EndpointSlice(SliceObject),
    Pod(PodObject),
    Ingress(Box<IngressObject>),
    IngressClass(ClassObject),
    Gateway(GatewayObject),
}

/// Reads the table of this API server. `None`: there is no file yet.
///
/// # Errors
/// Why the file is not used, in one line.
pub(super) fn read(path: &Path, server: &str) -> Result<Option<Saved>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > LARGEST {
        return Err(format!("it has {length} bytes, expected at most {LARGEST}"));
    }
    // It may have grown since.
    let read = file.take(LARGEST).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    parse(&text, server).map(Some)
}

fn parse(text: &str, server: &str) -> Result<Saved, String> {
    let foreign = "it is not a table that Ebbtide has saved";
    let (first, rest) = text.split_once('\n').ok_or(foreign)?;
    let header: Header = serde_json::from_str(first).map_err(|_| foreign)?;
    if header.ebbtide != TABLE {
        return Err(foreign.to_owned());
    }
    if header.version != crate::VERSION {
        return Err(format!("version {} has saved it", header.version));
    }
    if header.server != server {
        return Err(format!("it is of API server {}", header.server));
    }
    if rest.lines().count() != header.lines || hash(rest) != header.hash {
        return Err("it is damaged".to_owned());
    }
    let objects = rest.lines().map(|line| {
        let line =
            serde_json::from_str(line).map_err(|error| format!("it is damaged ({error})"))?;
        Ok(match line {
            Line::Service(service) => Object::Service(service),
            Line::EndpointSlice(slice) => Object::EndpointSlice(slice),
            Line::Pod(pod) => Object::Pod(over(pod)),
            Line::Ingress(ingress) => Object::Ingress(ingress),
            Line::IngressClass(class) => Object::IngressClass(class),
            Line::Gateway(object) => Object::Gateway(Arc::new(object)),
        })
    });
    Ok(Saved {
        objects: objects.collect::<Result<_, String>>()?,
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(header.saved_at),
    })
}

/// A pod that terminated when it was saved has no time left: nothing of this process is in flight
/// on it.
fn over(pod: PodObject) -> PodObject {
    let deletion = pod.deletion.map(|deletion| Deletion {
        remaining: Some(Duration::ZERO),
        age: None,
        ..deletion
    });
    PodObject { deletion, ..pod }
}

/// Keeps the file up to date. Drop ends its thread.
pub(super) struct Keeper(Arc<Shared>);

struct Shared {
    path: PathBuf,
    server: String,
    every: Duration,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Each object's line.
    lines: BTreeMap<(Kind, ObjectName), Box<str>>,
    /// When the source was last in order. `None`: it has not sent a first table.
    in_order_at: Option<SystemTime>,
    /// Whether the lines differ from those of the file.
    changed: bool,
    ended: bool,
}

impl Keeper {
    /// Keeps `path`, and writes it at most once in `every`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(path: PathBuf, server: String, every: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            path,
            server,
            every,
            state: Mutex::default(),
            ended: Condvar::new(),
        });
        let keeper = Self(shared.clone());
        let thread = std::thread::Builder::new().name("saved-table".into());
        thread.spawn(move || shared.write_for_ever())?;
        Ok(keeper)
    }

    /// Takes in what the source sends.
    pub(super) fn note(&self, changes: &[Change]) {
        let mut state = self.0.lock();
        state.changed |= !changes.is_empty();
        for change in changes {
            match change {
                Change::Apply(object) => state.put(object),
                Change::Remove(kind, name) => _ = state.lines.remove(&(*kind, name.clone())),
                Change::Forget { namespace } => state
                    .lines
                    .retain(|(kind, name), _| *kind != Kind::Pod || name.namespace != *namespace),
                // The source of an API server sends none.
                Change::Replace { .. } => {}
            }
        }
    }

    /// Notes that a first table was sent. `at`: when the source was in order, if it is not now.
    pub(super) fn sent(&self, in_order: bool, at: Option<SystemTime>) {
        let mut state = self.0.lock();
        if in_order {
            state.in_order_at = Some(SystemTime::now());
        } else if state.in_order_at.is_none() {
            state.in_order_at = Some(at.unwrap_or_else(SystemTime::now));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.ended.notify_all();
    }
}

impl State {
    fn put(&mut self, object: &Object) {
        let line = match object {
            Object::Service(it) => Line::Service(it.clone()),
            Object::EndpointSlice(it) => Line::EndpointSlice(it.clone()),
            Object::Pod(it) => Line::Pod(it.clone()),
            Object::Ingress(it) => Line::Ingress(it.clone()),
            Object::IngressClass(it) => Line::IngressClass(it.clone()),
            Object::Gateway(it) => Line::Gateway(GatewayObject::clone(it)),
        };
        // Nothing of an object can fail to become text.
        if let Ok(line) = serde_json::to_string(&line) {
            let key = (object.kind(), object.name().clone());
            self.lines.insert(key, line.into());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_for_ever(&self) {
        let (mut failed, mut written) = (false, Instant::now());
        loop {
            let state = self.lock();
            let waited = self
                .ended
                .wait_timeout_while(state, self.every, |state| !state.ended);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return;
            }
            // A table that does not change gets a new age now and then.
            let is_due = state.changed || written.elapsed() > REFRESH;
            let Some(at) = state.in_order_at.filter(|_| is_due) else {
                continue;
            };
            state.changed = false;
            let text = self.text(&state, at);
            drop(state);
            written = Instant::now();
            let result = match text.len() as u64 {
                ..=LARGEST => self.write(&text),
                _ => Err(io::Error::other("the table is too large")),
            };
            if let Err(error) = &result
                && !failed
            {
                let path = self.path.display();
                tracing::warn!(%path, %error, "cannot save the table; a restart without the API server will have none");
            }
            failed = result.is_err();
            self.lock().changed |= failed;
        }
    }

    fn text(&self, state: &State, at: SystemTime) -> String {
        let mut rest = String::new();
        for line in state.lines.values() {
            rest += line;
            rest.push('\n');
        }
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let header = Header {
            ebbtide: TABLE.to_owned(),
            version: crate::VERSION.to_owned(),
            server: self.server.clone(),
            saved_at: since.unwrap_or_default().as_secs(),
            lines: state.lines.len(),
            hash: hash(&rest),
        };
        let first = serde_json::to_string(&header).unwrap_or_default();
        format!("{first}\n{rest}")
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&beside)?;
        file.write_all(text.as_bytes())?;
        // Without it, a node that loses power could keep the new name with half the content.
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)
    }
}

/// The same text has the same hash for the same version of the program.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    hasher.finish()
}

const TABLE: &str = "table";
/// The largest file, in bytes. 100,000 endpoints take about 30 MB.
const LARGEST: u64 = 256 << 20;
/// How often a table that does not change is written again.
const REFRESH: Duration = Duration::from_secs(60);
