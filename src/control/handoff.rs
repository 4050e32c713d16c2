//! Connections pass from the process that ends to the one that replaces it: both sides of the talk.
//!
//! Invariants: a connection has one owner. The new process says that it takes one before it reads or
//! writes anything of it, and lets go of it if it cannot say so. The old process lets go when it has
//! heard that. If it hears nothing, it first makes sure that nothing can be said any more.
//!
//! A process that serves keeps a name open, made of its admin port, at which its predecessor asks. It
//! takes the name as soon as its predecessor gives it free, which is when that is told to end. Where
//! nobody has the name, a process ends as without a successor.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::control::command::{Command, Proposal};
use crate::control::doors;
use crate::net::handoff::{Channel, Doorway, read_file};
use crate::proxy::heir::{Adopted, Heir, Offer, Offered};
use crate::proxy::shared::{Shared, WorkerCommand};

/// This process's part in both talks.
pub struct Handoff {
    taker: Taker,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
enum State {
    /// Not yet ready to serve.
    Starts,
    /// The name is waited for, or is this process's.
    Takes(Option<Arc<Doorway>>),
    /// This process ends.
    Gives,
}

/// The first message: what the process that takes understands.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    /// The newest form of an [`Offer`] that it knows.
    version: u32,
    /// The oldest.
    oldest: u32,
}

/// The answer to an offer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    /// It is the other process's connection now.
    Taken,
    /// It stays with this process, and why.
    Refused(String),
}

impl Handoff {
    /// Nothing is said yet. `port` is that of the admin address, which a process takes over from its
    /// predecessor, too.
    pub fn new(port: u16, commands: mpsc::UnboundedSender<Command>, shared: Arc<Shared>) -> Self {
        Self {
            taker: Taker {
                name: doors::name(port),
                commands,
                shared,
            },
            state: Arc::new(Mutex::new(State::Starts)),
        }
    }

    /// Takes over from a predecessor from now on. A second call has no effect.
    pub(super) fn take(&self) {
        let mut state = lock(&self.state);
        if !matches!(*state, State::Starts) {
            return;
        }
        *state = State::Takes(None);
        let (taker, shown) = (self.taker.clone(), self.state.clone());
        start("take-over", move || taker.run(&shown));
    }

    /// This process ends: gives the name free, and looks for a successor until it has ended.
    pub(super) fn give(&self) {
        if let State::Takes(Some(door)) = std::mem::replace(&mut *lock(&self.state), State::Gives) {
            door.close();
        }
        let taker = self.taker.clone();
        start("hand-over", move || give_all(&taker.name, &taker.commands));
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.into());
    if let Err(error) = thread.spawn(run) {
        tracing::warn!(%error, "the {name} thread cannot run; no connection is handed over");
    }
}

/// What both sides need. Its methods are the side of the new process.
#[derive(Clone)]
struct Taker {
    name: String,
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
}

impl Taker {
    /// Waits for the name, then for predecessors. Ends when this process is told to end.
    fn run(&self, state: &Mutex<State>) {
        let door = loop {
            if !matches!(*lock(state), State::Takes(_)) || self.commands.is_closed() {
                return;
            }
            match Doorway::open(&self.name) {
                Ok(door) => break Arc::new(door),
                // The predecessor still serves.
                Err(error) if error.kind() == ErrorKind::AddrInUse => std::thread::sleep(LOOK),
                Err(error) => {
                    return tracing::warn!(name = self.name, %error, "no connection can be taken over");
                }
            }
        };
        match &mut *lock(state) {
            State::Takes(shown) => *shown = Some(door.clone()),
            _ => return,
        }
        while let Ok(channel) = door.accept() {
            let taker = self.clone();
            // A predecessor that stands still must not keep another one waiting.
            start("take-over", move || match taker.talk(&channel) {
                // It has only asked for sockets.
                Ok(None) => {}
                Ok(Some(taken)) => {
                    tracing::info!(
                        taken,
                        "the process that this one replaces has handed its clients over"
                    );
                }
                Err(error) => tracing::warn!(%error, "the hand-over has broken off"),
            });
        }
    }

    /// Takes what one predecessor offers. Returns how many connections that were; `None`: it was a
    /// successor.
    fn talk(&self, channel: &Channel) -> io::Result<Option<usize>> {
        let hello = Hello {
            version: VERSION,
            oldest: VERSION,
        };
        channel.send(&serde_json::to_vec(&hello)?, &[])?;
        let mut taken = 0;
        while let Some(received) = channel.receive()? {
            if let Some(transports) = doors::asked(&received.bytes) {
                if let Err(error) = doors::give(channel, &self.shared, transports) {
                    tracing::debug!(%error, "a successor has ended, which shared the listening sockets");
                }
                return Ok(None);
            }
            let answer = match self.propose(received.bytes, received.descriptors) {
                Ok(adopted) => {
                    taken += 1;
                    let taken = serde_json::to_vec(&Answer::Taken)?;
                    if let Offer::Session(_) = adopted.offer {
                        // Both processes have it. It must be known here before its next datagram comes.
                        self.shared.give_session(adopted);
                        channel.send(&taken, &[])?;
                        continue;
                    }
                    channel.send(&taken, &[])?;
                    self.shared.give_least(WorkerCommand::Adopt(adopted));
                    continue;
                }
                Err(why) => Answer::Refused(why),
            };
            channel.send(&serde_json::to_vec(&answer)?, &[])?;
        }
        Ok(Some(taken))
    }

    fn propose(&self, bytes: Vec<u8>, mut sockets: Vec<OwnedFd>) -> Result<Box<Adopted>, String> {
        let offer: Offer = serde_json::from_slice(&bytes).map_err(|it| it.to_string())?;
        let owed = offer.owed().ok_or("no length")?;
        let owed = match sockets.len().checked_sub(offer.sockets()) {
            Some(0) if owed == 0 => Vec::new(),
            Some(1) => match sockets.pop() {
                Some(file) => read_file(file, owed).map_err(|it| it.to_string())?,
                None => return Err("no file".into()),
            },
            _ => return Err("wrong descriptors".into()),
        };
        let (answer, answered) = oneshot::channel();
        let proposal = Proposal {
            offer,
            sockets,
            owed,
            answer,
        };
        let _ = self.commands.send(Command::Adopt(Box::new(proposal)));
        match answered.blocking_recv() {
            Ok(answer) => answer.map_err(str::to_owned),
            Err(_) => Err("the process has ended".into()),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The side of the old process: looks for a successor until the control loop has ended.
fn give_all(name: &str, commands: &mpsc::UnboundedSender<Command>) {
    let mut said = String::new();
    while !commands.is_closed() {
        let mut pause = LOOK;
        match Channel::connect(name).and_then(|channel| give_to(&channel, commands)) {
            Ok(given) => return tracing::info!(given, "client connections handed over"),
            // There is none, or none that is ready.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => {
                let error = error.to_string();
                if error != said {
                    tracing::warn!(
                        error,
                        "the hand-over of client connections has broken off; those that are left stay here"
                    );
                }
                (said, pause) = (error, AGAIN);
            }
        }
        std::thread::sleep(pause);
    }
}

/// Offers to one successor what the workers give. Returns how many connections it has taken.
fn give_to(channel: &Channel, commands: &mpsc::UnboundedSender<Command>) -> io::Result<usize> {
    channel.set_patience(Some(PATIENCE))?;
    let hello = channel.receive()?.ok_or(ErrorKind::UnexpectedEof)?;
    let hello: Hello = serde_json::from_slice(&hello.bytes)?;
    if !(hello.oldest..=hello.version).contains(&VERSION) {
        let (theirs, oldest) = (hello.version, hello.oldest);
        return Err(io::Error::other(format!(
            "it understands forms {oldest} to {theirs}, and this process speaks {VERSION}"
        )));
    }
    let (heir, mut offered) = Heir::new();
    let _ = commands.send(Command::HandOver(heir));
    let mut given = 0;
    loop {
        let asked = offered.next(AT_ONCE);
        if asked.is_empty() {
            return Ok(given);
        }
        given += give_some(channel, asked)?;
    }
}

/// Offers these, then hears of each. After an error, those of which nothing was heard stay here.
fn give_some(channel: &Channel, asked: Vec<Offered>) -> io::Result<usize> {
    let mut broken = None;
    let mut sent = Vec::with_capacity(asked.len());
    for it in asked {
        let descriptors: Vec<_> = it.descriptors.iter().map(AsFd::as_fd).collect();
        let bytes = serde_json::to_vec(&it.offer).map_err(io::Error::from);
        if let Err(error) = bytes.and_then(|bytes| channel.send(&bytes, &descriptors)) {
            broken = Some(error);
            break;
        }
        sent.push(it);
    }
    let mut given = 0;
    for it in sent {
        if broken.is_some() {
            // Whatever has not been said by now can never be said.
            channel.stop_receiving();
        }
        let mut heard = channel.receive();
        if let Err(error) = heard {
            // The kernel tells an error before what has arrived, and once.
            broken = broken.or(Some(error));
            channel.stop_receiving();
            heard = channel.receive();
        }
        match heard.map(|it| it.map(|it| serde_json::from_slice(&it.bytes))) {
            Ok(Some(Ok(Answer::Taken))) => {
                given += 1;
                let _ = it.taken.send(true);
            }
            Ok(Some(Ok(Answer::Refused(why)))) => {
                tracing::debug!(why, offer = ?it.offer, "a connection stays here");
                let _ = it.taken.send(false);
            }
            Ok(Some(Err(error))) => broken = broken.or(Some(error.into())),
            Ok(None) => broken = broken.or(Some(ErrorKind::UnexpectedEof.into())),
            Err(error) => broken = broken.or(Some(error)),
        }
    }
    match broken {
        None => Ok(given),
        Some(error) => Err(error),
    }
}

/// The form of what is said. It changes with what an [`Offer`] means, not with fields that older
/// processes refuse anyway.
const VERSION: u32 = 1;
/// How often a process looks for the name or for its successor.
const LOOK: Duration = Duration::from_millis(20);
/// How soon a successor is asked again with which the talk has broken off.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a successor may take for an answer. Its control loop may be busy with a large table.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many connections are offered before the first answer is waited for. Their messages fit into the
/// socket's buffer.
const AT_ONCE: usize = 32;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::Read;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::contract::name::ObjectName;
    use crate::net::stream::Stream;
    use crate::proxy::heir::{Door, HttpClient, UdpSession};

    /// What a successor does with what it is offered.
    #[derive(Clone, Copy)]
    enum Act {
        Take,
        Refuse,
        Garbage,
        Die,
        /// It takes it, and has no time to say so.
        TakeAndDie,
    }

    /// A successor that follows a script: which connections it owns in the end, by their ports. It lets go
    /// of what it could not answer, as [`Taker::talk`] does.
    fn successor(door: &Doorway, script: Vec<Act>) -> HashSet<u16> {
        let channel = door.accept().unwrap();
        let hello = br#"{"version":1,"oldest":1}"#;
        let mut owned = HashSet::new();
        if channel.send(hello, &[]).is_err() {
            return owned;
        }
        for act in script {
            let Ok(Some(received)) = channel.receive() else {
                break;
            };
            let offer: Offer = serde_json::from_slice(&received.bytes).unwrap();
            let port = match offer {
                Offer::Http(it) => it.door.client.port(),
                Offer::Session(it) => it.door.client.port(),
                Offer::Pair(_) => panic!(),
            };
            let (answer, is_last): (&[u8], bool) = match act {
                Act::Take => (br#""taken""#, false),
                Act::TakeAndDie => (br#""taken""#, true),
                Act::Refuse => (br#"{"refused":"no"}"#, false),
                Act::Garbage => (b"?", false),
                Act::Die => break,
            };
            let said = channel.send(answer, &[]).is_ok();
            if said && matches!(act, Act::Take | Act::TakeAndDie) {
                owned.insert(port);
            }
            if is_last {
                break;
            }
        }
        owned
    }

    /// Offers `count` connections, and a UDP session after each, to that successor. Returns the ports of those
    /// that it has, by what this side was told, the clients and the UDP endpoints.
    async fn offer_all(
        heir: &Heir,
        listener: &TcpListener,
        count: usize,
    ) -> (HashSet<u16>, Vec<TcpStream>, Vec<UdpSocket>) {
        let (mut clients, mut endpoints) = (Vec::new(), Vec::new());
        let mut offers = Vec::new();
        let mut sessions = Vec::new();
        for _ in 0..count {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, peer) = listener.accept().unwrap();
            socket.set_nonblocking(true).unwrap();
            clients.push(client);
            let offer = Offer::Http(HttpClient {
                door: Door {
                    listener: peer,
                    name: "web".into(),
                    client: peer,
                },
                neighbour: peer.ip(),
                is_new: true,
                is_unanswered: true,
                unread: 0,
            });
            offers.push(async move {
                let stream = Stream::accepted(socket.into()).unwrap();
                let taken = heir.offer(offer, &[&stream], &[]).await;
                (taken == Some(true)).then_some(peer.port())
            });
            let (endpoint, socket, it) = session(peer);
            endpoints.push(endpoint);
            let client = it.door.client.port();
            sessions.push(async move {
                let offer = Offer::Session(Box::new(it));
                let taken = heir.offer_sockets(offer, vec![socket.into()], &[]).await;
                (taken == Some(true)).then_some(client)
            });
        }
        let offers = futures::future::join_all(offers);
        let sessions = futures::future::join_all(sessions);
        let (told, sessions) = futures::future::join(offers, sessions).await;
        let told = told.into_iter().chain(sessions).flatten().collect();
        (told, clients, endpoints)
    }

    /// A UDP endpoint, a socket to it, and what is said of the session. The endpoint's
    /// address stands for the client's, too.
    fn session(listener: SocketAddr) -> (UdpSocket, UdpSocket, UdpSession) {
        let endpoint = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(endpoint.local_addr().unwrap()).unwrap();
        endpoint.connect(socket.local_addr().unwrap()).unwrap();
        let it = UdpSession {
            door: Door {
                listener,
                name: "dns".into(),
                client: endpoint.local_addr().unwrap(),
            },
            asked: None,
            service: ObjectName::new("web", "shop"),
            port: 53,
            endpoint: endpoint.local_addr().unwrap(),
            pod: None,
            is_named: false,
            still_ms: 0,
        };
        (endpoint, socket, it)
    }

    /// In a thousand orders of answers and deaths: both sides agree on who has each connection, and nobody
    /// keeps a descriptor of what is nobody's.
    #[test]
    fn every_connection_has_one_owner_whoever_dies_and_when() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for seed in 0..1_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let name = format!("ebbtide-test-{}-{seed}", std::process::id());
            let door = Doorway::open(&name).unwrap();
            let count = random.usize(1..24);
            let script: Vec<Act> = (0..2 * count)
                .map(|_| match random.u8(0..40) {
                    0 => Act::Die,
                    1 => Act::TakeAndDie,
                    2 => Act::Garbage,
                    3..20 => Act::Refuse,
                    _ => Act::Take,
                })
                .collect();
            let there = std::thread::spawn(move || successor(&door, script));
            let (commands, mut told) = mpsc::unbounded_channel();
            let giving = std::thread::spawn(move || {
                let _ = give_to(&Channel::connect(&name).unwrap(), &commands);
            });
            let Some(Command::HandOver(heir)) = told.blocking_recv() else {
                panic!("seed {seed}: no successor");
            };
            let (told, clients, endpoints) = runtime.block_on(offer_all(&heir, &listener, count));
            drop(heir);
            giving.join().unwrap();
            assert_eq!(told, there.join().unwrap(), "seed {seed}");
            for mut client in clients {
                client
                    .set_read_timeout(Some(Duration::from_secs(60)))
                    .unwrap();
                let end = client.read(&mut [0]).map_err(|it| it.kind());
                assert!(
                    matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)),
                    "seed {seed}: {end:?}"
                );
            }
            for endpoint in endpoints {
                // The kernel refuses what goes to a socket that nobody has.
                let _ = endpoint.send(b"?");
                endpoint
                    .set_read_timeout(Some(Duration::from_secs(60)))
                    .unwrap();
                let end = endpoint.recv(&mut [0]).map_err(|it| it.kind());
                assert_eq!(end, Err(ErrorKind::ConnectionRefused), "seed {seed}");
            }
        }
    }
}
