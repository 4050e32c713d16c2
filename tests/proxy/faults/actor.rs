//! An endpoint that serves well until it must fail, at the stage that the scene sets. Only one
//! endpoint of a scene fails, and only once. Each request that reaches an endpoint is recorded, so
//! that the scene can count where it ran.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::proxy::scripted::Scripted;
use crate::proxy::wire::{Wire, field};

/// The stage of the request (or connection) at which the endpoint fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It no longer listens.
    BeforeConnect,
    /// It has accepted the connection and read nothing.
    Accepted,
    InRequestHead,
    AfterRequestHead,
    InRequestBody,
    BeforeResponse,
    InResponseHead,
    AfterResponseHead,
    InCountedBody,
    InChunk,
    BetweenChunks,
    InCloseDelimited,
    /// It sends another response behind the right one, and keeps the connection.
    AnsweredTwice,
    /// After a whole response that promised to keep the connection.
    AfterResponse,
    /// It kept the connection after a response, and fails the next request on it.
    OnReuse,
    /// It reads the request and sends nothing, not even a FIN.
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Fin,
    Reset,
}

/// What all endpoints of a seed share.
pub struct Scene {
    pub stage: Stage,
    pub manner: Manner,
    /// The pause between the last byte and the end.
    pub pause: Duration,
    /// The length of the response that is cut, and how much of it is sent.
    pub length: usize,
    pub sent: usize,
    /// One failure is still to come, for the first endpoint that reaches the stage.
    pub armed: AtomicBool,
    /// The endpoint that failed.
    pub struck: watch::Sender<Option<usize>>,
    /// The chosen endpoint may go on to fail.
    pub go: CancellationToken,
    /// It has failed.
    pub over: CancellationToken,
    pub seen: Mutex<Vec<Seen>>,
}

/// A request that has reached an endpoint, whole or in part.
#[derive(Debug, Clone)]
pub struct Seen {
    pub id: String,
    pub actor: usize,
    pub connection: usize,
}

impl Scene {
    fn sees(&self, line: &[u8], actor: usize, connection: usize) -> String {
        let line = String::from_utf8_lossy(line).into_owned();
        let id = line.split(['/', ' ']).nth(2).unwrap_or_default().to_owned();
        self.seen.lock().unwrap().push(Seen {
            id: id.clone(),
            actor,
            connection,
        });
        id
    }

    pub fn seen(&self, id: &str) -> Vec<Seen> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| seen.id == id)
            .cloned()
            .collect()
    }

    /// Whether an endpoint must fail here and now. Returns only once the scene allows the failure.
    async fn strikes(&self, here: Stage, actor: usize) -> bool {
        if self.stage != here || !self.armed.swap(false, Ordering::SeqCst) {
            return false;
        }
        self.struck.send_replace(Some(actor));
        self.go.cancelled().await;
        true
    }

    /// Ends the connection, after what was sent.
    async fn fail(&self, mut wire: Wire) {
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        match self.manner {
            Manner::Fin => {
                let _ = wire.stream.shutdown().await;
                self.over.cancel();
                // Unread bytes would turn the FIN into a reset.
                while wire.fill().await {}
            }
            Manner::Reset => {
                SockRef::from(&wire.stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                drop(wire);
                self.over.cancel();
            }
        }
    }
}

pub struct Actor {
    pub scripted: Option<Scripted>,
    pub address: std::net::SocketAddr,
    /// Ends every connection of the endpoint.
    ends: CancellationToken,
    /// Keeps the port after the endpoint stops listening. Otherwise an endpoint of another seed
    /// could get the port and answer in its place.
    _port: TcpSocket,
}

impl Actor {
    pub fn start(scene: &Arc<Scene>, number: usize) -> Self {
        let ends = CancellationToken::new();
        let (scene, ended) = (scene.clone(), ends.clone());
        let [listening, port] = [(); 2].map(|()| TcpSocket::new_v4().unwrap());
        listening.set_reuseport(true).unwrap();
        port.set_reuseport(true).unwrap();
        listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        port.bind(listening.local_addr().unwrap()).unwrap();
        let scripted = Scripted::on(listening.listen(128).unwrap(), move |stream, connection| {
            let (scene, ended) = (scene.clone(), ended.clone());
            async move {
                tokio::select! {
                    () = converse(scene, stream, number, connection) => {}
                    () = ended.cancelled() => {}
                }
            }
        });
        Self {
            address: scripted.address,
            scripted: Some(scripted),
            ends,
            _port: port,
        }
    }

    /// The process is gone: connects are refused, and open connections end.
    pub fn die(&mut self) {
        self.scripted = None;
        self.ends.cancel();
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.ends.cancel();
    }
}

/// A body of this length. No part of it can be taken for another response's body.
pub fn body_of(id: &str, length: usize) -> Vec<u8> {
    let end = format!("#end-of-{id}");
    let mut body: Vec<u8> = format!("{id};")
        .bytes()
        .cycle()
        .take(length.saturating_sub(end.len()))
        .collect();
    body.extend(end.bytes());
    body
}

/// The body that a request carries.
pub fn upload_of(id: &str, length: usize) -> Vec<u8> {
    body_of(&format!("up-{id}"), length)
}

/// The payload of a chunked body without trailers.
pub fn dechunked(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = raw.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(&String::from_utf8_lossy(&raw[..at]), 16).unwrap_or(0);
        let Some(chunk) = raw.get(at + 2..at + 2 + size) else {
            break;
        };
        body.extend(chunk);
        raw = raw.get(at + 4 + size..).unwrap_or_default();
    }
    body
}

async fn converse(scene: Arc<Scene>, stream: TcpStream, actor: usize, connection: usize) {
    // Join checks send nothing.
    let mut line = [0; 256];
    let Ok(n @ 1..) = stream.peek(&mut line).await else {
        return;
    };
    if scene.strikes(Stage::Accepted, actor).await {
        scene.sees(&line[..n], actor, connection);
        return scene.fail(Wire::new(stream)).await;
    }
    let mut wire = Wire::new(stream);
    for turn in 0.. {
        let Some(line) = wire.until("\r\n").await else {
            return;
        };
        let id = scene.sees(&line, actor, connection);
        if scene.strikes(Stage::InRequestHead, actor).await
            || turn > 0 && scene.strikes(Stage::OnReuse, actor).await
        {
            return scene.fail(wire).await;
        }
        let Some(head) = wire.head().await else {
            return;
        };
        let counted =
            field(&head, "Content-Length").and_then(|length| length.parse::<usize>().ok());
        let chunked = head.contains("Transfer-Encoding: chunked");
        let has_body = chunked || counted.is_some_and(|length| length > 0);
        if scene.strikes(Stage::AfterRequestHead, actor).await {
            return scene.fail(wire).await;
        }
        let mut upload = Vec::new();
        if has_body && scene.stage == Stage::InRequestBody {
            let Some(first) = wire.take(1).await else {
                return;
            };
            upload = first;
            if scene.strikes(Stage::InRequestBody, actor).await {
                return scene.fail(wire).await;
            }
        }
        let rest = match (chunked, counted) {
            (true, _) => wire.until("\r\n0\r\n\r\n").await,
            (false, Some(length)) => wire.take(length - upload.len()).await,
            (false, None) => Some(Vec::new()),
        };
        let Some(rest) = rest else { return };
        upload.extend(rest);
        let upload = if chunked { dechunked(&upload) } else { upload };
        let sound = !has_body || upload == upload_of(&id, upload.len());
        for stage in [Stage::BeforeResponse, Stage::Silent] {
            if scene.strikes(stage, actor).await {
                if stage == Stage::Silent {
                    while wire.fill().await {}
                }
                return scene.fail(wire).await;
            }
        }
        if answer(&scene, &mut wire, &id, actor, sound).await {
            return scene.fail(wire).await;
        }
        if scene.strikes(Stage::AfterResponse, actor).await {
            return scene.fail(wire).await;
        }
    }
}

/// Sends a response, or as much of it as the stage allows. Returns true if the endpoint must fail
/// then.
async fn answer(scene: &Scene, wire: &mut Wire, id: &str, actor: usize, sound: bool) -> bool {
    let common =
        format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nX-Actor: {actor}\r\nX-Sound: {sound}\r\n");
    let counted = |length: usize| format!("{common}Content-Length: {length}\r\n\r\n");
    let (length, body) = (scene.length, body_of(id, scene.length));
    let sent = scene.sent.clamp(1, body.len() - 1);
    let chunk =
        |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let chunked = format!("{common}Transfer-Encoding: chunked\r\n\r\n");
    let part: Option<Vec<u8>> = match scene.stage {
        Stage::InResponseHead => Some(common.as_bytes()[..sent.min(common.len() - 1)].to_vec()),
        Stage::AfterResponseHead => Some(counted(length).into()),
        Stage::InCountedBody => Some([counted(length).as_bytes(), &body[..sent]].concat()),
        Stage::InChunk => {
            let chunk = chunk(&body);
            Some([chunked.as_bytes(), &chunk[..sent]].concat())
        }
        Stage::BetweenChunks => Some([chunked.as_bytes(), &chunk(&body[..sent])].concat()),
        Stage::InCloseDelimited => {
            Some([format!("{common}\r\n").as_bytes(), &body[..sent]].concat())
        }
        _ => None,
    };
    if let Some(part) = part
        && scene.strikes(scene.stage, actor).await
    {
        wire.send(part).await;
        return true;
    }
    // Later requests meet both framings.
    let whole = if id.ends_with(['1', '3', '5']) {
        [
            chunked.as_bytes(),
            &chunk(&body[..sent]),
            &chunk(&body[sent..]),
            b"0\r\n\r\n",
        ]
        .concat()
    } else {
        [counted(length).as_bytes(), &body].concat()
    };
    let twice = scene.strikes(Stage::AnsweredTwice, actor).await;
    wire.send(whole).await;
    if twice {
        // A pause, so that the stray response most likely arrives after the right one has been
        // read.
        tokio::time::sleep(Duration::from_millis(2)).await;
        wire.send("HTTP/1.1 200 OK\r\nX-Id: nobody\r\nContent-Length: 5\r\n\r\nstray")
            .await;
        scene.over.cancel();
    }
    false
}
