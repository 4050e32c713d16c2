//! The loop of `ebbtide net`: takes rules from the proxy and writes them.
//!
//! Invariant: the table is removed only by an owner that was told to end, after its proxy is gone,
//! and by `--remove`. A crash of either process leaves rules that lead to the proxy of the node.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::command::net::kernel::Kernel;
use crate::command::net::obstacles::Obstacles;
use crate::command::net::owner::{self, Role};
use crate::command::net::sources::{self, Sources};
use crate::config::fault::Refused;
use crate::net::rules::{Answer, Message, Obstacle};
use crate::net::{netlink, socket};

/// Removes the tables.
///
/// # Errors
/// An `ebbtide net` runs on this node: it would write them again. The kernel's.
pub fn remove() -> anyhow::Result<()> {
    ensure!(
        !owner::has_owner(),
        "an ebbtide net runs on this node and would write the tables again; stop it first (it removes \
         them as it ends)"
    );
    remove_tables()
}

fn remove_tables() -> anyhow::Result<()> {
    netlink::remove()
        .and_then(|()| sources::remove())
        .context(CURE)
}

/// Writes what the proxy that connects to `path` wants, until SIGTERM or SIGINT. Then waits until
/// the proxy has let go, and removes the tables if no other process has taken them over. A second
/// signal ends it at once.
///
/// # Errors
/// [`Refused`]: the socket cannot be made, or the kernel refuses to be asked.
pub fn run(path: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = listen(path)?;
        netlink::list().map_err(|error| Refused::new("net", format!("{CURE}: {error}")))?;
        tracing::info!(socket = %path.display(), "waiting for the proxy");
        let result = serve(&listener).await;
        let _ = std::fs::remove_file(path);
        result
    })
}

/// The connection of a proxy. The newest is the one that counts: a proxy that was restarted may come
/// before the end of its old connection is seen.
struct Proxy {
    number: u64,
    answers: OwnedWriteHalf,
    /// Who it is.
    user: u32,
    /// What keeps clients away, as it was told.
    told: Option<Obstacle>,
}

/// What the task that reads a connection sends.
type Heard = (u64, Option<Message>);

async fn serve(listener: &UnixListener) -> anyhow::Result<()> {
    let (heard_in, mut heard) = mpsc::channel::<Heard>(16);
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let mut looks = interval(Duration::from_secs(1));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut node, mut role) = (Node::default(), Role::New);
    let (mut proxy, mut count, mut is_ending) = (None::<Proxy>, 0, false);
    loop {
        if is_ending && proxy.is_none() {
            if role.is_owner() && !role.has_heir() {
                remove_tables()?;
                tracing::info!("the tables are removed");
            }
            return Ok(());
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let Ok(user) = socket::peer_user(&stream) else {
                        continue;
                    };
                    count += 1;
                    let (reads, answers) = stream.into_split();
                    proxy = Some(Proxy { number: count, answers, user, told: None });
                    tokio::spawn(listen_to(count, reads, heard_in.clone()));
                    tracing::info!("the proxy is connected");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept the proxy");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some((number, message)) = heard.recv() => {
                let Some(from) = proxy.as_mut().filter(|it| it.number == number) else {
                    continue;
                };
                let answer = match message {
                    Some(Message::Sources(clients)) => {
                        let found = node.sources.answer(&clients, from.user, role.is_owner());
                        Answer::Sources(found)
                    }
                    Some(message) => take(message, &mut node, &mut role).await,
                    None => {
                        tracing::warn!("the proxy is gone; the rules stay, and lead to the next one of this node");
                        proxy = None;
                        continue;
                    }
                };
                if let Answer::Failed(error) = &answer {
                    tracing::error!(error, "the rules are not in force; trying again");
                }
                if from.say(&answer).await.is_err() {
                    proxy = None;
                }
            }
            has_given = role.changed() => {
                if has_given {
                    tracing::info!("a newer ebbtide net writes the table now");
                    node.kernel.stand_down();
                } else {
                    regain(&mut node, &mut role).await;
                }
            }
            _ = looks.tick() => {
                if matches!(role, Role::New) && node.kernel.knows() {
                    regain(&mut node, &mut role).await;
                }
                if role.is_owner()
                    && let Err(error) = node.kernel.look().and_then(|()| node.sources.look())
                {
                    tracing::error!(%error, "the table cannot be written; trying again");
                }
                let obstacle = node.obstacle(role.is_owner());
                if let Some(to) = proxy.as_mut()
                    && to.tell(obstacle).await.is_err()
                {
                    proxy = None;
                }
            }
            _ = terminate.recv() => if std::mem::replace(&mut is_ending, true) { return Ok(()) },
            _ = interrupt.recv() => if std::mem::replace(&mut is_ending, true) { return Ok(()) },
        }
    }
}

/// What this process knows of the node's tables.
#[derive(Default)]
struct Node {
    kernel: Kernel,
    sources: Sources,
    obstacles: Obstacles,
}

impl Node {
    /// What keeps clients from the proxy. Only the owner of the table says it.
    fn obstacle(&mut self, is_owner: bool) -> Option<Obstacle> {
        if !is_owner {
            self.obstacles = Obstacles::default();
            return None;
        }
        self.obstacles.look(self.kernel.wanted())
    }

    /// This process has become the owner.
    fn write_all(&mut self) -> io::Result<()> {
        self.kernel.write_all()?;
        self.sources.take_over()
    }
}

/// Takes a message in, and writes it if this process is the owner, or can become it.
async fn take(message: Message, node: &mut Node, role: &mut Role) -> Answer {
    let kernel = &mut node.kernel;
    let is_first = matches!(message, Message::All(_));
    // The proxy lets go, and another process of the node still has one: that one shall serve.
    if matches!(&message, Message::All(all) if all.is_empty()) && role.has_heir() {
        kernel.let_go();
        *role = Role::New;
        return Answer::Kept;
    }
    let steps = match kernel.take(message) {
        Ok(steps) => steps,
        Err(error) => return Answer::Failed(error),
    };
    let result = match role {
        // The first message of a connection: what was written may be long ago.
        Role::Owner(..) if is_first => kernel.write(&steps).and_then(|()| kernel.look()),
        Role::Owner(..) => kernel.write(&steps),
        Role::Waits(..) => return Answer::Kept,
        Role::New => match role.take().await {
            Ok(()) => node.write_all(),
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => Answer::Applied,
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// Becomes the owner after the end of the one that was waited for, or after a failure.
async fn regain(node: &mut Node, role: &mut Role) {
    let is_new = matches!(role, Role::New);
    let result = match is_new {
        true => role.take().await.map(|()| true),
        false => role.take_back().await,
    };
    match result {
        Ok(true) => {
            tracing::info!("this process writes the table now");
            if let Err(error) = node.write_all() {
                tracing::error!(%error, "the table cannot be written; trying again");
            }
        }
        Ok(false) => {}
        Err(error) => {
            tracing::error!(%error, "cannot become the one that writes the table; trying again");
            *role = Role::New;
        }
    }
}

impl Proxy {
    /// Tells what keeps clients away, if that is new.
    async fn tell(&mut self, obstacle: Option<Obstacle>) -> io::Result<()> {
        if self.told == obstacle {
            return Ok(());
        }
        self.told.clone_from(&obstacle);
        self.say(&Answer::Obstacle(obstacle)).await
    }

    async fn say(&mut self, answer: &Answer) -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        // A proxy that does not read its answers is not served any longer.
        timeout(Duration::from_secs(5), self.answers.write_all(&line)).await?
    }
}

/// Reads the messages of one connection until its end.
async fn listen_to(number: u64, reads: OwnedReadHalf, heard: mpsc::Sender<Heard>) {
    let mut reads = BufReader::new(reads);
    loop {
        let mut line = Vec::new();
        let read = (&mut reads)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
            .await;
        let message = match read {
            Ok(1..) if line.ends_with(b"\n") => match serde_json::from_slice(&line) {
                Ok(message) => Some(message),
                Err(error) => {
                    tracing::error!(%error, "the proxy has sent what is no message; are both of one version?");
                    None
                }
            },
            _ => None,
        };
        let ends = message.is_none();
        if heard.send((number, message)).await.is_err() || ends {
            return;
        }
    }
}

/// Makes the socket. Its folder's group may use it: where the proxy is another user, the folder is
/// of its group.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let refused = |what: String| Refused::new("--socket", format!("{}: {what}", path.display()));
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(
                    refused("another ebbtide net listens here; stop it first".into()).into(),
                );
            }
            std::fs::remove_file(path).map_err(|error| refused(error.to_string()))?;
        }
        Ok(_) => return Err(refused("this is no socket; choose another path".into()).into()),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|error| {
        refused(format!(
            "{error}; is its folder there, and may this process write to it?"
        ))
    })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(|error| refused(error.to_string()))?;
    Ok(listener)
}

/// The rules of 200,000 addresses.
const LONGEST_LINE: u64 = 32 << 20;
const CURE: &str = "the kernel's nf_tables cannot be used; the process needs CAP_NET_ADMIN, and the \
                    kernel the modules nf_tables and nft_chain_nat";
