//! The way to `ebbtide net`: the rules that are wanted, and a task that tells them to it.
//!
//! Invariant: the control thread never waits for it. What has changed is collected per address, so
//! what waits is never more than there are addresses, however long nobody listens.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::cluster::event::{Event, Reason, Subject};
use crate::cluster::events::Events;
use crate::config::settings::{Config, Discovery};
use crate::contract::policy::Scope;
use crate::contract::source::{Client, Sources};
use crate::net::rules::{Answer, Message, Obstacle, Rules, Transport};
use crate::net::{self, source::Side};
use crate::observe::health::{Health, NetState};

/// The rules that are wanted. The control thread writes them, and [`run`] reads them.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    rules: Rules,
    /// What differs from what was told.
    dirty: BTreeSet<(Transport, SocketAddr)>,
    /// The first rules are complete.
    is_open: bool,
    /// Nothing is served any more, and whether that was told.
    is_closed: bool,
    has_let_go: bool,
}

impl Outbox {
    /// Leads an address to `to`, or to nowhere.
    pub fn set(&self, at: (Transport, SocketAddr), to: Option<SocketAddr>) {
        let mut state = self.lock();
        let before = match to {
            Some(to) => state.rules.insert(at, to),
            None => state.rules.remove(&at),
        };
        if before != to {
            state.dirty.insert(at);
            self.changed.notify_one();
        }
    }

    /// Tells the rules from now on: the first ones are complete.
    pub fn open(&self) {
        if !std::mem::replace(&mut self.lock().is_open, true) {
            self.changed.notify_one();
        }
    }

    /// Lets go: this process serves no new connection. The connection stays open until the process
    /// ends, because the kernel needs the table for the connections that are left.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to say next on a connection; `None`: nothing.
    fn next(&self, is_first: bool) -> Option<Message> {
        let mut state = self.lock();
        if !state.is_open {
            return None;
        }
        let dirty = std::mem::take(&mut state.dirty);
        if state.is_closed {
            let has_told = std::mem::replace(&mut state.has_let_go, true);
            return (is_first || !has_told).then_some(Message::All(Vec::new()));
        }
        let rules = &state.rules;
        if is_first {
            let all = rules
                .iter()
                .map(|((transport, at), to)| (*transport, *at, *to));
            return Some(Message::All(all.collect()));
        }
        let changes = dirty
            .into_iter()
            .map(|at| (at.0, at.1, rules.get(&at).copied()));
        let changes: Vec<_> = changes.collect();
        (!changes.is_empty()).then_some(Message::Change(changes))
    }
}

/// Tells the rules to the `ebbtide net` at `path`, and connects again after each end, until the
/// outbox is closed. Then it only keeps the connection.
pub async fn run(outbox: Arc<Outbox>, sources: Arc<Sources>, path: PathBuf, mut reports: Reports) {
    loop {
        let ended = talk(&outbox, &sources, &path, &mut reports).await;
        sources.set_open(false);
        let health = &reports.health;
        let error = match ended {
            Ok(()) => return,
            Err(_) if outbox.lock().is_closed => return,
            Err(error) => format!("{}: {error}", path.display()),
        };
        let state = NetState::Away(error.clone());
        let mut is_new = false;
        health.update(|health| {
            is_new = health.net.as_ref() != Some(&state);
            health.net = Some(state);
            health.obstacle = None;
        });
        if is_new {
            tracing::warn!(
                error,
                "ebbtide net cannot be told which addresses to serve; the rules that it has written \
                 stay; trying again"
            );
        }
        let _ = timeout(AGAIN, outbox.changed.notified()).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Where it is told what `ebbtide net` says.
pub struct Reports {
    health: Arc<Health>,
    events: Events,
    /// Whom an Event is about; `None`: there is none.
    node: Option<String>,
    /// When the last Event was posted.
    posted: Option<Instant>,
}

impl Reports {
    /// The state behind the pages, and the queue of Events. With configured namespaces, a Role allows
    /// no Event on a node.
    pub fn new(health: Arc<Health>, events: Events, config: &Config) -> Self {
        let may_post = match &config.discovery {
            Discovery::Kubernetes(wanted) => wanted.namespaces.is_empty(),
            _ => false,
        };
        Self {
            health,
            events,
            node: config.node.name.clone().filter(|_| may_post),
            posted: None,
        }
    }

    /// Notes what keeps clients away. Something certain is an Event, which the API server keeps for an
    /// hour by default: so it is posted again after that.
    fn note(&mut self, obstacle: Option<Obstacle>) {
        let is_due = self.posted.is_none_or(|at| at.elapsed() > KEPT);
        if let (Some(it), Some(node), true) = (&obstacle, &self.node, is_due)
            && it.is_certain
        {
            self.posted = Some(Instant::now());
            self.events.post(Event {
                subject: Subject::Node(node.clone()),
                reason: Reason::ClientsBlocked,
                about: None,
                note: it.words.clone(),
            });
        }
        self.health.update(|health| health.obstacle = obstacle);
    }
}

/// One connection, until its end.
async fn talk(
    outbox: &Outbox,
    sources: &Sources,
    path: &Path,
    reports: &mut Reports,
) -> io::Result<()> {
    let stream = UnixStream::connect(path).await?;
    sources.set_open(true);
    let (reads, mut writes) = stream.into_split();
    let mut answers = BufReader::new(reads).lines();
    let mut is_first = true;
    let mut asked = Vec::new();
    'next: loop {
        // Clients wait for their shadows, so these come first. But nobody gives some before it knows
        // the rules.
        let question = match is_first {
            true => None,
            false => ask_for(sources, &mut asked),
        };
        let Some(message) = question.or_else(|| outbox.next(is_first)) else {
            tokio::select! {
                () = outbox.changed.notified() => {}
                () = sources.asked() => {}
                // Unasked, it says only what keeps clients away. All else is its end.
                line = answers.next_line() => match parse(line?)? {
                    Answer::Obstacle(obstacle) => reports.note(obstacle),
                    _ => return Err(io::ErrorKind::ConnectionReset.into()),
                },
            }
            continue;
        };
        is_first = false;
        let mut line = serde_json::to_vec(&message)?;
        line.push(b'\n');
        timeout(PATIENCE, writes.write_all(&line)).await??;
        let state = loop {
            match parse(timeout(PATIENCE, answers.next_line()).await??)? {
                Answer::Applied => break NetState::Serves,
                Answer::Kept => break NetState::Waits,
                Answer::Failed(error) => break NetState::Away(error),
                Answer::Obstacle(obstacle) => reports.note(obstacle),
                Answer::Sources(shadows) => {
                    for (client, shadow) in asked.drain(..).zip(shadows) {
                        sources.answer(client, shadow);
                    }
                    continue 'next;
                }
            }
        };
        let has_failed = matches!(state, NetState::Away(_));
        reports.health.update(|health| health.net = Some(state));
        if has_failed {
            // It tries again by itself. What it answers to everything says how that went.
            let _ = timeout(AGAIN, outbox.changed.notified()).await;
            is_first = true;
        }
    }
}

fn parse(line: Option<String>) -> io::Result<Answer> {
    let line = line.ok_or(io::ErrorKind::ConnectionReset)?;
    Ok(serde_json::from_str(&line)?)
}

/// The question for the shadows of clients that have come since, whom `asked` holds then.
fn ask_for(sources: &Sources, asked: &mut Vec<Client>) -> Option<Message> {
    *asked = sources.take_asked();
    let of = |(address, scope): &Client| net::source::Client {
        address: *address,
        side: match scope {
            Scope::Internal | Scope::Inside => Side::Inside,
            Scope::External => Side::Outside,
        },
    };
    (!asked.is_empty()).then(|| Message::Sources(asked.iter().map(of).collect()))
}

/// How long an API server keeps an Event at least.
const KEPT: Duration = Duration::from_secs(3_600);
/// The time between two tries.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two tries at least, however much changes.
const PAUSE: Duration = Duration::from_millis(100);
/// How long writing the rules of 10,000 Services may take on a busy node.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> (Transport, SocketAddr) {
        (
            Transport::Tcp,
            SocketAddr::new("10.96.0.1".parse().unwrap(), port),
        )
    }

    #[test]
    fn what_is_told_is_everything_first_and_then_the_last_word_on_each_address() {
        let outbox = Outbox::default();
        let to = |port| Some(SocketAddr::new("192.0.2.1".parse().unwrap(), port));
        outbox.set(at(80), to(15001));
        assert_eq!(outbox.next(true), None, "the first rules are not complete");
        outbox.open();
        let all = Message::All(vec![(Transport::Tcp, at(80).1, to(15001).unwrap())]);
        assert_eq!(outbox.next(true), Some(all.clone()));
        assert_eq!(outbox.next(false), None);
        outbox.set(at(80), to(15001));
        assert_eq!(outbox.next(false), None, "the same again");
        outbox.set(at(80), to(9));
        outbox.set(at(81), to(15001));
        outbox.set(at(81), None);
        let change = vec![
            (Transport::Tcp, at(80).1, to(9)),
            (Transport::Tcp, at(81).1, None),
        ];
        assert_eq!(outbox.next(false), Some(Message::Change(change)));
        // A new connection hears everything, and nothing twice.
        outbox.set(at(80), to(15001));
        assert_eq!(outbox.next(true), Some(all));
        assert_eq!(outbox.next(false), None);
        outbox.close();
        assert_eq!(outbox.next(false), Some(Message::All(Vec::new())));
        outbox.set(at(80), None);
        assert_eq!(outbox.next(false), None, "it has let go");
    }
}
