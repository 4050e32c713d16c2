//! The endpoints: one single-threaded process that opens listening ports on request and answers as
//! fast as it can. It needs two system calls for a request, so that it is not the bottleneck.
//!
//! It reads commands from standard input and writes one line for each: `open` (returns the port),
//! `slow` (the same, but each response comes after 2 s), `close PORT` (closes the listener and all
//! its connections immediately, as when a process dies). It ends when its standard input ends.
//! `GET /count` returns the number of requests so far.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::guard;

/// The handle of the process. Dropping it kills the process.
pub struct Backend {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Backend {
    /// Starts the process on these cores.
    pub fn start(cores: &[usize]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["backend", &guard::list(cores)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the backend")?;
        let to = child.stdin.take().context("stdin")?;
        let from = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, to, from })
    }

    /// Opens endpoints that answer immediately.
    pub fn open(&mut self, count: usize) -> anyhow::Result<Vec<SocketAddr>> {
        (0..count).map(|_| self.open_one("open")).collect()
    }

    /// Opens endpoints that answer after 2 s.
    pub fn open_slow(&mut self, count: usize) -> anyhow::Result<Vec<SocketAddr>> {
        (0..count).map(|_| self.open_one("slow")).collect()
    }

    /// Closes endpoints with all their connections.
    pub fn close(&mut self, addresses: &[SocketAddr]) -> anyhow::Result<()> {
        addresses
            .iter()
            .try_for_each(|address| self.ask(&format!("close {}", address.port())).map(drop))
    }

    fn open_one(&mut self, word: &str) -> anyhow::Result<SocketAddr> {
        let port = self.ask(word)?;
        Ok(SocketAddr::from((
            [127, 0, 0, 1],
            port.parse()
                .with_context(|| format!("the backend returned: {port}"))?,
        )))
    }

    fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        writeln!(self.to, "{command}").context("the backend has ended")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The state that all connections share.
struct Site {
    small: Vec<u8>,
    middle: Vec<u8>,
    requests: Cell<u64>,
}

type Ports = RefCell<BTreeMap<u16, (JoinHandle<()>, Rc<RefCell<Vec<JoinHandle<()>>>>)>>;

/// The process `backend`.
pub fn main(cores: &[usize]) -> anyhow::Result<()> {
    guard::pin(cores)?;
    ebbtide::net::socket::raise_descriptor_limit();
    let site = Rc::new(Site {
        small: answer(1 << 10),
        middle: answer(1 << 20),
        requests: Cell::new(0),
    });
    let (commands_in, mut commands) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin()
            .lines()
            .map_while(Result::ok)
            .for_each(|line| drop(commands_in.send(line)));
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let ports = Ports::default();
        while let Some(command) = commands.recv().await {
            let (word, port) = command.split_once(' ').unwrap_or((&command, "0"));
            let port: u16 = port.parse()?;
            let answer = match word {
                "open" | "slow" => open(&site, &ports, word == "slow")?.to_string(),
                "close" => {
                    if let Some((listener, connections)) = ports.borrow_mut().remove(&port) {
                        listener.abort();
                        connections
                            .borrow_mut()
                            .drain(..)
                            .for_each(|connection| connection.abort());
                    }
                    // An aborted task is dropped when the runtime runs again.
                    tokio::task::yield_now().await;
                    port.to_string()
                }
                _ => "unknown command".to_owned(),
            };
            let mut out = std::io::stdout().lock();
            writeln!(out, "{answer}").and_then(|()| out.flush())?;
        }
        anyhow::Ok(())
    })
}

fn open(site: &Rc<Site>, ports: &Ports, slow: bool) -> anyhow::Result<u16> {
    let listener = ebbtide::net::socket::listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener = TcpListener::from_std(listener)?;
    let port = listener.local_addr()?.port();
    let connections = Rc::<RefCell<Vec<JoinHandle<()>>>>::default();
    let (site, opened) = (site.clone(), connections.clone());
    let accept = tokio::task::spawn_local(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let connection = tokio::task::spawn_local(serve(site.clone(), stream, port, slow));
            let mut opened = opened.borrow_mut();
            if opened.len() == opened.capacity() {
                opened.retain(|connection| !connection.is_finished());
            }
            opened.push(connection);
        }
    });
    ports.borrow_mut().insert(port, (accept, connections));
    Ok(port)
}

/// Serves one connection. Any error ends the connection.
async fn serve(site: Rc<Site>, mut stream: TcpStream, port: u16, slow: bool) {
    let _ = exchanges(&site, &mut stream, port, slow).await;
}

async fn exchanges(
    site: &Site,
    stream: &mut TcpStream,
    port: u16,
    slow: bool,
) -> std::io::Result<()> {
    let mut unread = Vec::new();
    let mut buf = [0; 4096];
    loop {
        let head = loop {
            if let Some(at) = unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut buf).await? {
                0 => return Ok(()),
                n => unread.extend_from_slice(&buf[..n]),
            }
        };
        let rest = (unread.len() - head) as u64;
        let body = content_length(&unread[..head]);
        let path = unread
            .split(|byte| *byte == b' ')
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        let closes = body == 0 && closing(&unread[..head]);
        unread.drain(..head + rest.min(body) as usize);
        discard(stream, body - rest.min(body)).await?;
        if slow || path == b"/slow" {
            tokio::time::sleep(SLOW).await;
        }
        if path == b"/count" {
            let count = site.requests.get().to_string();
            stream
                .write_all(
                    format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{count}",
                        count.len()
                    )
                    .as_bytes(),
                )
                .await?;
            return stream.shutdown().await;
        }
        site.requests.set(site.requests.get() + 1);
        match path.as_slice() {
            _ if slow => stream.write_all(&marked(&site.small)).await?,
            b"/who" => {
                let who = port.to_string();
                stream
                    .write_all(
                        format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{who}",
                            who.len()
                        )
                        .as_bytes(),
                    )
                    .await?;
            }
            b"/1m" => stream.write_all(&site.middle).await?,
            b"/64m" => {
                stream.write_all(head_of(64 << 20).as_bytes()).await?;
                for _ in 0..64 {
                    stream
                        .write_all(&site.middle[site.middle.len() - (1 << 20)..])
                        .await?;
                }
            }
            _ => stream.write_all(&site.small).await?,
        }
        if closes {
            return stream.shutdown().await;
        }
    }
}

/// Takes bytes from a socket without copying them out of the kernel (MSG_TRUNC, tcp(7)), so that
/// the receiver is not the bottleneck.
pub async fn discard(stream: &TcpStream, mut count: u64) -> std::io::Result<()> {
    let mut buf = vec![0; if count > 0 { 1 << 20 } else { 0 }];
    while count > 0 {
        stream.readable().await?;
        let want = count.min(buf.len() as u64) as usize;
        match stream.try_io(Interest::READABLE, || {
            Ok(recv(stream, &mut buf[..want], RecvFlags::TRUNC)?.1)
        }) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => count -= n as u64,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The Content-Length of a head; 0 if it has none.
pub fn content_length(head: &[u8]) -> u64 {
    let value = |line: &[u8]| {
        let (name, value) = line.split_at_checked(15)?;
        let value = std::str::from_utf8(value).ok()?;
        if name.eq_ignore_ascii_case(b"content-length:") {
            value.trim().parse().ok()
        } else {
            None
        }
    };
    head.split(|byte| *byte == b'\n')
        .find_map(value)
        .unwrap_or(0)
}

fn closing(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n')
        .any(|line| line.trim_ascii().eq_ignore_ascii_case(b"connection: close"))
}

fn head_of(body: usize) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nServer: compare\r\nDate: Mon, 03 Feb 2025 10:00:00 GMT\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {body}\r\n\r\n"
    )
}

fn answer(body: usize) -> Vec<u8> {
    let mut answer = head_of(body).into_bytes();
    answer.resize(answer.len() + body, b'x');
    answer
}

/// The response of a slow endpoint. The load recognises it by its last byte.
fn marked(answer: &[u8]) -> Vec<u8> {
    let mut answer = answer.to_vec();
    if let Some(last) = answer.last_mut() {
        *last = b's';
    }
    answer
}

/// The delay of a slow endpoint.
const SLOW: Duration = Duration::from_secs(2);
