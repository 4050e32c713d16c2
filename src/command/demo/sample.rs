//! `ebbtide sample-app`: an application that shuts down badly, with routes for tests.
//!
//! It has no signal handler on purpose. SIGTERM ends it immediately, in the middle of its work, and
//! its idle keep-alive connections end with it. As process 1 of a container it has a handler that
//! does the same, because a signal without a handler does not reach process 1. To find out what it
//! had received before it ended, use `--count-file`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get, post};
use serde::Deserialize;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::io::ReaderStream;

use crate::command::demo::child;

/// Arguments of the hidden subcommand.
#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)]
pub struct Args {
    /// Where to listen; port 0 takes any free port.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The version that responses carry.
    #[arg(long, default_value = "v1")]
    version: String,
    /// How long the process waits before it listens, like a slow application.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    listen_after: Duration,
    /// Echo bytes instead of speaking HTTP.
    #[arg(long)]
    tcp: bool,
    /// With --tcp: the bytes that the server sends first.
    #[arg(long, default_value = "")]
    greet: String,
    /// A file that gets a line `<key> <method>` for each HTTP request that arrives, before the
    /// request is processed.
    #[arg(long)]
    count_file: Option<PathBuf>,
    /// The process that this one ends with.
    #[arg(long)]
    parent: Option<u32>,
    /// Become `ebbtide <arguments>` instead. The demo uses this, so that all its processes end with
    /// it.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "ARGUMENTS")]
    exec: Vec<String>,
}

/// Runs until it is killed. Prints `listening ADDRESS` on standard output when it accepts
/// connections.
///
/// # Errors
/// The address cannot be bound, the count file cannot be opened, or the parent has ended.
pub fn main(args: Args) -> anyhow::Result<()> {
    if let Some(parent) = args.parent {
        child::die_with(parent)?;
    }
    if !args.exec.is_empty() {
        return Err(child::become_ebbtide(&args.exec));
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    if std::process::id() == 1 {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            terminate.recv().await;
            std::process::exit(128 + 15);
        });
    }
    let count_file = args
        .count_file
        .as_ref()
        .map(|path| File::options().append(true).create(true).open(path));
    let count_file = count_file.transpose().context("--count-file")?;
    tokio::time::sleep(args.listen_after).await;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    // Standard output may be closed. That is no reason to end.
    let _ = writeln!(std::io::stdout(), "listening {}", listener.local_addr()?);
    if args.tcp {
        return echo_bytes(listener, args.greet).await;
    }
    let app = Arc::new(App {
        version: args.version,
        counts: Mutex::default(),
        count_file,
    });
    let routes = Router::new()
        .route("/", get(root))
        .route("/slow", any(slow))
        .route("/count/{key}", any(count))
        .route("/counts", get(counts))
        .route("/bytes", get(bytes))
        .route("/echo", post(echo))
        .route("/status/{code}", any(status))
        .layer(axum::middleware::from_fn_with_state(app.clone(), note))
        .with_state(app);
    axum::serve(listener, routes).await?;
    Ok(())
}

struct App {
    version: String,
    counts: Mutex<BTreeMap<String, u64>>,
    count_file: Option<File>,
}

#[derive(Deserialize)]
struct Delay {
    #[serde(default)]
    ms: u64,
}

impl Delay {
    async fn pass(&self) {
        tokio::time::sleep(Duration::from_millis(self.ms)).await;
    }
}

/// Writes the line into the count file, with one `write` and O_APPEND. So neither a SIGKILL nor
/// another process can split it.
async fn note(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Some(mut file) = app.count_file.as_ref() {
        let path = request.uri().path();
        let line = format!(
            "{} {}\n",
            path.strip_prefix("/count/").unwrap_or(path),
            request.method()
        );
        if let Err(error) = file.write_all(line.as_bytes()) {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
    }
    next.run(request).await
}

async fn root(State(app): State<Arc<App>>) -> String {
    format!("{} {}\n", app.version, std::process::id())
}

async fn slow(
    State(app): State<Arc<App>>,
    Query(delay): Query<Delay>,
    request: Request,
) -> Result<String, StatusCode> {
    whole_body(request).await?;
    delay.pass().await;
    Ok(app.version.clone())
}

async fn count(
    State(app): State<Arc<App>>,
    Path(key): Path<String>,
    Query(delay): Query<Delay>,
    request: Request,
) -> Result<String, StatusCode> {
    let now = {
        let mut counts = app.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        *count += 1;
        *count
    };
    whole_body(request).await?;
    delay.pass().await;
    Ok(format!("{now}\n"))
}

async fn counts(State(app): State<Arc<App>>) -> Json<BTreeMap<String, u64>> {
    Json(
        app.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone(),
    )
}

#[derive(Deserialize)]
struct Transfer {
    n: u64,
    /// 1: a chunked body; otherwise a body with Content-Length.
    #[serde(default)]
    chunked: u8,
    /// A pause in milliseconds after half of the bytes.
    #[serde(default)]
    pause: u64,
}

async fn bytes(Query(transfer): Query<Transfer>) -> impl IntoResponse {
    let (ours, theirs) = tokio::io::duplex(PIECE.len());
    let counted =
        (transfer.chunked == 0).then(|| [(header::CONTENT_LENGTH, transfer.n.to_string())]);
    tokio::spawn(write_bytes(ours, transfer));
    (counted, Body::from_stream(ReaderStream::new(theirs)))
}

/// Byte `i` of the body is `PIECE[i % PIECE.len()]`. Ends when the client's connection ends.
async fn write_bytes(mut to: DuplexStream, transfer: Transfer) -> std::io::Result<()> {
    let mut sent = 0;
    while sent < transfer.n {
        let stop = if sent < transfer.n / 2 {
            transfer.n / 2
        } else {
            transfer.n
        };
        let start = (sent % PIECE.len() as u64) as usize;
        let length = (stop - sent).min((PIECE.len() - start) as u64);
        to.write_all(&PIECE[start..start + length as usize]).await?;
        sent += length;
        if sent == transfer.n / 2 {
            tokio::time::sleep(Duration::from_millis(transfer.pause)).await;
        }
    }
    Ok(())
}

async fn echo(request: Request) -> Result<Bytes, StatusCode> {
    whole_body(request).await
}

async fn status(Path(code): Path<u16>, request: Request) -> Result<StatusCode, StatusCode> {
    whole_body(request).await?;
    StatusCode::from_u16(code).map_err(|_| StatusCode::BAD_REQUEST)
}

async fn whole_body(request: Request) -> Result<Bytes, StatusCode> {
    axum::body::to_bytes(request.into_body(), BODY_MAX)
        .await
        .map_err(|_| StatusCode::BAD_REQUEST)
}

async fn echo_bytes(listener: TcpListener, greet: String) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo_connection(stream, greet.clone()));
    }
}

/// Echoes bytes. After the client's FIN, sends a FIN when the last byte was sent back.
async fn echo_connection(mut stream: TcpStream, greet: String) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(greet.as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// The largest request body in bytes.
const BODY_MAX: usize = 256 << 20;

/// The bytes that `/bytes` repeats. The length is not a power of two, so a reader that loses or
/// doubles a buffer gets wrong bytes.
const PIECE: [u8; 9973] = {
    let mut piece = [0; 9973];
    let mut i = 0;
    while i < piece.len() {
        piece[i] = b'a' + (i % 26) as u8;
        i += 1;
    }
    piece
};
