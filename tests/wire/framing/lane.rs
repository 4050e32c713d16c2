//! A proxy before an endpoint that does not parse. The endpoint knows the bytes that it should
//! receive, compares them, and answers with the bytes of the case. Bytes that no case expects are
//! recorded as stray.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ebbtide::contract::endpoint::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::requests;
use super::responses::{self, After, Ask};
use super::{show, with};
use crate::support::folder::{Ep, Folder};
use crate::support::rig::Rig;

/// How the bytes of a case are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Whole,
    /// In two pieces, the second a millisecond later.
    SplitAt(usize),
    /// Byte by byte.
    Dribbled,
    /// Behind a good message in the same write.
    Behind,
    /// With a good request behind it in the same write.
    Before,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::SplitAt(_) => "split",
            Self::Dribbled => "dribbled",
            Self::Behind => "behind a good one",
            Self::Before => "before a good one",
        }
    }

    /// Every boundary. For more than 400 bytes: the first and last 40, and some between.
    fn all(length: usize) -> Vec<Self> {
        let mut ways = vec![Self::Whole, Self::Behind, Self::Before];
        if length <= 400 {
            ways.extend((1..length).map(Self::SplitAt));
            ways.push(Self::Dribbled);
        } else {
            let between = (40..length - 40).step_by(length / 16);
            ways.extend(
                (1..40)
                    .chain(between)
                    .chain(length - 40..length)
                    .map(Self::SplitAt),
            );
        }
        ways
    }

    fn pieces(self, bytes: &[u8]) -> Vec<Vec<u8>> {
        match self {
            Self::SplitAt(at) => vec![bytes[..at].to_vec(), bytes[at..].to_vec()],
            Self::Dribbled => bytes.iter().map(|byte| vec![*byte]).collect(),
            Self::Whole | Self::Behind | Self::Before => vec![bytes.to_vec()],
        }
    }
}

/// What was run, and what failed.
#[derive(Default)]
pub struct Tally {
    pub runs: usize,
    ways: BTreeMap<&'static str, usize>,
    /// (kind, what): `forwarded` and `refused` are wrong verdicts, and `differs` is anything else.
    wrong: Vec<(&'static str, String)>,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.runs += other.runs;
        for (way, runs) in other.ways {
            *self.ways.entry(way).or_default() += runs;
        }
        self.wrong.extend(other.wrong);
    }

    pub fn count(&self, kind: &str) -> usize {
        self.wrong.iter().filter(|(of, _)| *of == kind).count()
    }

    pub fn ways(&self) -> String {
        let ways: Vec<String> = self
            .ways
            .iter()
            .map(|(way, runs)| format!("{way} {runs}"))
            .collect();
        ways.join(", ")
    }

    pub fn assert_clean(&self) {
        // Shows one run of each case.
        let case = |what: &str| what.split(" (").next().unwrap_or_default().to_owned();
        let mut cases = BTreeMap::new();
        for (kind, what) in &self.wrong {
            cases
                .entry(case(what))
                .or_insert_with(|| format!("{kind}: {what}"));
        }
        let first: Vec<String> = cases.into_values().take(40).collect();
        assert!(
            self.wrong.is_empty(),
            "{} wrong, the first:\n{}",
            self.wrong.len(),
            first.join("\n")
        );
        assert!(self.runs > 1_000, "only {} runs", self.runs);
    }
}

/// The time for one run. A busy machine may take seconds for a millisecond of work. Only a run that
/// never ends fails.
const PATIENCE: Duration = Duration::from_secs(180);
/// The most that is read together with a head.
const HEAD_MAX: usize = 16 << 10;
const GET: &[u8] = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
const GET_SEEN: &[u8] = b"GET /good HTTP/1.1\r\nHost: a\r\n{x}\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A request that the endpoint should receive, and its response.
#[derive(Clone, Default)]
struct Expected {
    bytes: Vec<u8>,
    /// Empty if the request has no end, or ends in another way.
    answer: Vec<Vec<u8>>,
    fin: bool,
    /// From then on everything is echoed.
    echo: bool,
    /// The endpoint receives only a beginning of `bytes`.
    partial: bool,
}

/// The endpoint's side.
#[derive(Default)]
struct Desk {
    expected: VecDeque<Expected>,
    /// For each request that arrived whole: the number of its connection.
    served_on: Vec<usize>,
    /// Responses that have been written whole.
    answered: usize,
    /// The bytes of connections that ended in the middle of a request.
    truncated: Vec<Vec<u8>>,
    stray: Vec<Vec<u8>>,
}

pub struct Lane {
    rig: Rig,
    desk: Rc<RefCell<Desk>>,
    endpoint: tokio::task::JoinHandle<()>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.endpoint.abort();
    }
}

impl Lane {
    /// Call this within a `LocalSet`.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let desk = Rc::<RefCell<Desk>>::default();
        let to = desk.clone();
        let endpoint = tokio::task::spawn_local(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                tokio::task::spawn_local(serve(stream, number, to.clone()));
            }
        });
        let folder = Folder::new();
        folder.endpoints(&[Ep::new("a", address)]);
        let listener = "address: '127.0.0.1:0', service: web/shop, port: 80, protocol: http";
        // The head timeout is not tested here, so a client that sends byte by byte gets more time.
        let text = format!(
            "discovery: {{files: {{path: manifests}}}}\ntimeouts: {{head: 10m}}\n\
             listeners: [{{name: web, {listener}}}, {{name: connect, {listener}, allowConnect: true}}]\n\
             admin: {{address: '127.0.0.1:0'}}\nworkers: 1\nretry: {{attempts: 1}}\n"
        );
        let rig = Rig::run(folder, &text).await;
        rig.usable(1).await;
        Self {
            rig,
            desk,
            endpoint,
        }
    }

    fn address(&self, connect: bool) -> std::net::SocketAddr {
        self.rig
            .running()
            .listener(if connect { "connect" } else { "web" })
            .unwrap()
    }

    /// The bytes with the placeholders for the proxy's own fields filled in.
    fn fill(&self, bytes: &[u8], connect: bool) -> Vec<u8> {
        let y = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n";
        let bytes = with(
            bytes,
            "{x}",
            format!("{y}X-Forwarded-Host: a\r\n").as_bytes(),
        );
        // The listener's address is the configured one: port 0.
        let bytes = with(&bytes, "{l}", self.address(connect).to_string().as_bytes());
        with(&bytes, "{y}", y.as_bytes())
    }

    fn expect(&self, expected: Expected) {
        self.desk.borrow_mut().expected.push_back(expected);
    }

    fn expect_good(&self) {
        self.expect(Expected {
            bytes: self.fill(GET_SEEN, false),
            answer: vec![OK.to_vec()],
            ..Expected::default()
        });
    }

    pub fn nothing_stray(&self, tally: &mut Tally) {
        for bytes in &self.desk.borrow().stray {
            tally.wrong.push((
                "forwarded",
                format!("bytes that no case expects: {}", show(bytes)),
            ));
        }
    }

    /// Runs one request in every way.
    pub async fn request(&mut self, case: &requests::Case, tally: &mut Tally) {
        for way in Way::all(case.input.len()) {
            let abandoned = matches!(case.verdict, requests::Verdict::Abandoned { .. });
            if way == Way::Before && abandoned {
                // The request behind it would be taken for the rest of this one.
                continue;
            }
            tally.runs += 1;
            *tally.ways.entry(way.name()).or_default() += 1;
            let run = tokio::time::timeout(PATIENCE, self.one_request(case, way)).await;
            let stuck = run.is_err();
            if let Err((kind, what)) =
                run.unwrap_or(Err(("differs", "nothing more arrives".into())))
            {
                let what = format!(
                    "{} ({}), {way:?}, of {}: {what}",
                    case.name,
                    case.rule,
                    show(&case.input)
                );
                // Bytes at the endpoint are the more serious fault, whichever was noticed first.
                let reached = !self.desk.borrow().stray.is_empty() && kind != "refused";
                tally
                    .wrong
                    .push((if reached { "forwarded" } else { kind }, what));
                *self.desk.borrow_mut() = Desk::default();
            }
            if stuck {
                return;
            }
        }
    }

    async fn one_request(
        &mut self,
        case: &requests::Case,
        way: Way,
    ) -> Result<(), (&'static str, String)> {
        use requests::Verdict::{Abandoned, Cut, Forwarded, Refused};
        let mut client = Client::connect(self.address(case.connect)).await;
        if way == Way::Behind {
            self.expect_good();
        }
        let partial = |within: &[u8]| Expected {
            bytes: self.fill(within, case.connect),
            partial: true,
            ..Expected::default()
        };
        let head = case.input.starts_with(b"HEAD ");
        let answer = if head {
            &ANSWER[..ANSWER.len() - 2]
        } else {
            ANSWER
        };
        match &case.verdict {
            Forwarded { bytes, .. } => self.expect(Expected {
                bytes: self.fill(bytes, case.connect),
                answer: vec![answer.to_vec()],
                ..Expected::default()
            }),
            Cut { within, .. } | Abandoned { within } => self.expect(partial(within)),
            Refused { .. } => {}
        }
        if way == Way::Before && matches!(case.verdict, Forwarded { keeps: true, .. }) {
            self.expect_good();
        }
        let mut pieces = way.pieces(&case.input);
        match way {
            Way::Behind => pieces[0] = [GET, &pieces[0]].concat(),
            Way::Before => pieces[0].extend_from_slice(GET),
            _ => {}
        }
        self.forget_dispatches();
        client.send(&pieces).await;
        if matches!(case.verdict, Abandoned { .. }) {
            let _ = client.stream.shutdown().await;
        }
        if way == Way::Behind {
            let got = client.take(OK.len()).await;
            differs("the good request's response", &got, OK)?;
        }
        match case.verdict {
            Forwarded { keeps, .. } => {
                let old = case
                    .input
                    .split(|b| *b == b'\n')
                    .any(|line| line.ends_with(b" HTTP/1.0\r"));
                let said: &[u8] = match (old, keeps) {
                    (_, false) => b"\r\nConnection: close\r\n\r\n",
                    (true, true) => b"\r\nConnection: keep-alive\r\n\r\n",
                    (false, true) => b"\r\n\r\n",
                };
                let wanted = with(answer, "\r\n\r\n", said);
                let got = client.take(wanted.len()).await;
                if got != wanted {
                    return Err(("refused", self.what_came(&got)));
                }
                if way == Way::Before && keeps {
                    differs(
                        "the response to the good request behind",
                        &client.take(OK.len()).await,
                        OK,
                    )?;
                }
                if keeps {
                    self.expect_good();
                    client.send(&[GET.to_vec()]).await;
                    differs(
                        "the response to the next request",
                        &client.take(OK.len()).await,
                        OK,
                    )?;
                } else {
                    differs("after the last response", &client.rest().await.0, b"")?;
                }
            }
            Refused { status, reason } => client.refusal(status, reason).await?,
            Cut { reason, .. } => {
                client.refusal(400, reason).await?;
                let at_once =
                    !matches!(way, Way::SplitAt(_) | Way::Dribbled) && pieces[0].len() <= HEAD_MAX;
                // A fault that was found before an endpoint was chosen has reached no endpoint.
                if at_once || !self.has_dispatched() {
                    self.desk.borrow_mut().expected.pop_front();
                } else {
                    self.truncation().await?;
                }
            }
            Abandoned { .. } => {
                differs("to a client that left", &client.rest().await.0, b"")?;
                self.truncation().await?;
            }
        }
        self.nothing_left()
    }

    fn forget_dispatches(&self) {
        self.endpoints(|endpoint| endpoint.tally.last_dispatch_ms.store(0, Ordering::Relaxed));
    }

    fn has_dispatched(&self) -> bool {
        let mut any = false;
        self.endpoints(|endpoint| {
            any |= endpoint.tally.last_dispatch_ms.load(Ordering::Relaxed) > 0
        });
        any
    }

    fn endpoints(&self, each: impl FnMut(&Arc<Endpoint>)) {
        let snapshot = self.rig.running().admin.snapshot.load();
        snapshot
            .ports
            .values()
            .flat_map(|port| port.usable.iter())
            .for_each(each);
    }

    /// Waits until the endpoint's connection has ended in the middle of the request. The endpoint
    /// must have received only a beginning of it.
    async fn truncation(&self) -> Result<(), (&'static str, String)> {
        let ended = async {
            while self.desk.borrow().truncated.is_empty() && self.desk.borrow().stray.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        ended.await;
        let mut desk = self.desk.borrow_mut();
        let Some(got) = desk.truncated.pop() else {
            return Ok(());
        };
        let within = desk.expected.pop_front().unwrap().bytes;
        let head = within.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        if within.starts_with(&got) && got.len() >= head {
            Ok(())
        } else {
            Err(("forwarded", format!("the endpoint received {}", show(&got))))
        }
    }

    fn nothing_left(&self) -> Result<(), (&'static str, String)> {
        let desk = self.desk.borrow();
        if let Some(stray) = desk.stray.first() {
            return Err((
                "forwarded",
                format!("the endpoint received {}", show(stray)),
            ));
        }
        match desk.expected.front() {
            Some(expected) => Err((
                "refused",
                format!("the endpoint never received {}", show(&expected.bytes)),
            )),
            None => Ok(()),
        }
    }

    fn what_came(&self, got: &[u8]) -> String {
        let stray = self.desk.borrow().stray.first().map(|stray| show(stray));
        format!(
            "the client received {}, the endpoint {}",
            show(got),
            stray.unwrap_or_default()
        )
    }

    /// Runs one response in every way.
    pub async fn response(&mut self, case: &responses::Case, tally: &mut Tally) {
        for way in Way::all(case.input.len()) {
            // A request that may be sent again is given up only after its loss might have been
            // explained, which takes a second each.
            let waits = matches!(case.verdict, responses::Verdict::Cut(_, "upstream_lost"))
                && case.ask == Ask::Get;
            // Bytes behind a response are cases of their own.
            if way == Way::Before || waits && !matches!(way, Way::Whole | Way::Behind) {
                continue;
            }
            tally.runs += 1;
            *tally.ways.entry(way.name()).or_default() += 1;
            let run = tokio::time::timeout(PATIENCE, self.one_response(case, way)).await;
            let stuck = run.is_err();
            if let Err((kind, what)) =
                run.unwrap_or(Err(("differs", "nothing more arrives".into())))
            {
                let what = format!(
                    "{} ({}), {way:?}, of {}: {what}",
                    case.name,
                    case.rule,
                    show(&case.input)
                );
                tally.wrong.push((kind, what));
                *self.desk.borrow_mut() = Desk::default();
            }
            if stuck {
                return;
            }
        }
    }

    async fn one_response(
        &mut self,
        case: &responses::Case,
        way: Way,
    ) -> Result<(), (&'static str, String)> {
        use responses::Verdict::{Chunked, Cut, Passed, Refused, Tunnel};
        let (ask, seen): (&[u8], &[u8]) = match case.ask {
            Ask::Get => (
                b"GET /r HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /r HTTP/1.1\r\nHost: a\r\n{x}\r\n",
            ),
            Ask::Post => (
                b"POST /r HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
                b"POST /r HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n{x}\r\n",
            ),
            Ask::Head => (
                b"HEAD /r HTTP/1.1\r\nHost: a\r\n\r\n",
                b"HEAD /r HTTP/1.1\r\nHost: a\r\n{x}\r\n",
            ),
            Ask::Old => (
                b"GET /r HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
                b"GET /r HTTP/1.1\r\nHost: a\r\n{x}\r\n",
            ),
            Ask::Upgrade => (
                b"GET /r HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: w\r\n\r\n",
                b"GET /r HTTP/1.1\r\nHost: a\r\nUpgrade: w\r\n{x}Connection: upgrade\r\n\r\n",
            ),
            Ask::Connect => (
                b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
                b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n{y}X-Forwarded-Host: a:443\r\n\r\n",
            ),
        };
        let mut client = Client::connect(self.address(case.ask == Ask::Connect)).await;
        if way == Way::Behind {
            self.expect_good();
        }
        self.desk.borrow_mut().served_on.clear();
        self.desk.borrow_mut().answered = 0;
        let pieces = way.pieces(&case.input);
        let tunnel = matches!(case.verdict, Tunnel(_));
        self.expect(Expected {
            bytes: self.fill(seen, false),
            answer: pieces,
            fin: case.fin,
            echo: tunnel,
            partial: false,
        });
        client
            .send(&[if way == Way::Behind {
                [GET, ask].concat()
            } else {
                ask.to_vec()
            }])
            .await;
        if way == Way::Behind {
            differs(
                "the good request's response",
                &client.take(OK.len()).await,
                OK,
            )?;
        }
        let after = match &case.verdict {
            Passed(after, wanted) => {
                let got = client.take(wanted.len()).await;
                if got != *wanted {
                    return Err(("refused", format!("the client received {}", show(&got))));
                }
                *after
            }
            Chunked(after, head, payload) => {
                let got = client.take(head.len()).await;
                if got != *head {
                    return Err(("refused", format!("the client received {}", show(&got))));
                }
                let got = client
                    .chunks()
                    .await
                    .ok_or(("differs", "no chunks, or no end".into()))?;
                differs("the payload", &got, payload)?;
                *after
            }
            Refused(reason) => {
                let got = client.answer(case.ask == Ask::Head).await;
                check_answer(&got, 502, reason)?;
                if case.ask == Ask::Old {
                    After::Closed
                } else {
                    After::Dropped
                }
            }
            Cut(within, reason) => {
                let (got, cut) = client.cut(within).await?;
                if !cut {
                    check_answer(&got, 502, reason)?;
                }
                if cut { After::Closed } else { After::Dropped }
            }
            Tunnel(wanted) => {
                differs(
                    "the tunnel's head",
                    &client.take(wanted.len()).await,
                    wanted,
                )?;
                let said: &[u8] = b"\0\r\n\r\nGET / HTTP/1.1\r\nHost : x\r\n\r\n";
                client.send(&[said.to_vec()]).await;
                differs("the echo", &client.take(said.len()).await, said)?;
                return self.nothing_left();
            }
        };
        match after {
            After::Closed => {
                if matches!(case.verdict, Passed(..)) {
                    differs("after the last response", &client.rest().await.0, b"")?;
                }
            }
            After::Kept | After::Dropped => {
                let connect = case.ask == Ask::Connect;
                // Bytes that arrive after the next request was sent would count as its response. So
                // this waits until all bytes have been written.
                let answers = if way == Way::Behind { 2 } else { 1 };
                while self.desk.borrow().answered < answers {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                self.expect_good();
                client.send(&[GET.to_vec()]).await;
                differs(
                    "the response to the next request",
                    &client.take(OK.len()).await,
                    OK,
                )?;
                let served_on = self.desk.borrow().served_on.clone();
                let [.., of_case, of_next] = served_on[..] else {
                    return Err(("differs", format!("served on {served_on:?}")));
                };
                if (of_case == of_next) != (after == After::Kept) && !connect {
                    return Err((
                        "differs",
                        format!("the endpoint's connection: {after:?} is expected, {served_on:?}"),
                    ));
                }
            }
        }
        self.nothing_left()
    }
}

/// Serves one connection at the endpoint.
async fn serve(mut stream: TcpStream, number: usize, desk: Rc<RefCell<Desk>>) {
    let _ = stream.set_nodelay(true);
    let mut got = Vec::new();
    loop {
        let read = stream.read_buf(&mut got).await;
        if !matches!(read, Ok(1..)) {
            if !got.is_empty() {
                desk.borrow_mut().truncated.push(got);
            }
            return;
        }
        loop {
            let front = desk.borrow().expected.front().cloned().unwrap_or_default();
            let whole = !front.partial && !front.bytes.is_empty() && got.starts_with(&front.bytes);
            if !whole && !got.is_empty() && !front.bytes.starts_with(&got) {
                return desk.borrow_mut().stray.push(got);
            }
            if !whole {
                break;
            }
            got.drain(..front.bytes.len());
            {
                let mut desk = desk.borrow_mut();
                desk.expected.pop_front();
                desk.served_on.push(number);
            }
            write_apart(&mut stream, &front.answer).await;
            desk.borrow_mut().answered += 1;
            if front.fin {
                return;
            }
            if front.echo {
                return echo(stream, got).await;
            }
        }
    }
}

/// Echoes everything.
async fn echo(mut stream: TcpStream, mut got: Vec<u8>) {
    loop {
        if stream.write_all(&got).await.is_err() {
            return;
        }
        got.clear();
        if !matches!(stream.read_buf(&mut got).await, Ok(1..)) {
            return;
        }
    }
}

/// Writes each piece so that it is most likely read alone.
async fn write_apart(stream: &mut TcpStream, pieces: &[Vec<u8>]) {
    for (i, piece) in pieces.iter().enumerate() {
        if i > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Errors are ignored: the test looks at what the other side then sends.
        let _ = stream.write_all(piece).await;
    }
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: std::net::SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Sends no more once a response has arrived. How long the proxy waits for the rest of a
    /// refused message is not tested here.
    async fn send(&mut self, pieces: &[Vec<u8>]) {
        for (i, piece) in pieces.iter().enumerate() {
            if i > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if self.stream.try_read_buf(&mut self.buffer).is_ok() {
                    return;
                }
            }
            let _ = self.stream.write_all(piece).await;
        }
    }

    /// Reads once. `Err` at the end, with whether the end was a reset.
    async fn fill(&mut self) -> Result<(), bool> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(1..) => Ok(()),
            Ok(_) => Err(false),
            Err(_) => Err(true),
        }
    }

    /// Reads this many bytes, or fewer at an end. A response of the proxy's own ends it, too,
    /// because it may be shorter.
    async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length
            && !self
                .buffer
                .windows(18)
                .any(|w| w == b"\r\nx-ebbtide-reason")
        {
            if self.fill().await.is_err() {
                break;
            }
        }
        let rest = self.buffer.split_off(length.min(self.buffer.len()));
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Reads everything up to the end. Returns also whether the end was a reset.
    async fn rest(&mut self) -> (Vec<u8>, bool) {
        let reset = loop {
            if let Err(reset) = self.fill().await {
                break reset;
            }
        };
        (std::mem::take(&mut self.buffer), reset)
    }

    /// A head and its counted body, if it has one.
    async fn answer(&mut self, head_only: bool) -> Vec<u8> {
        loop {
            if let Some(head) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&self.buffer[..head]).into_owned();
                let length = text
                    .split("Content-Length: ")
                    .nth(1)
                    .and_then(|l| l.split("\r\n").next()?.parse().ok());
                let length: usize = if head_only { 0 } else { length.unwrap_or(0) };
                if self.buffer.len() >= head + 4 + length || self.fill().await.is_err() {
                    let all = std::mem::take(&mut self.buffer);
                    return all;
                }
                continue;
            }
            if self.fill().await.is_err() {
                return std::mem::take(&mut self.buffer);
            }
        }
    }

    /// A response of the proxy's own, after which the connection ends.
    async fn refusal(&mut self, status: u16, reason: &str) -> Result<(), (&'static str, String)> {
        let (got, reset) = self.rest().await;
        check_answer(&got, status, reason)?;
        let text = String::from_utf8_lossy(&got);
        if reset || !text.contains("\r\nConnection: close\r\n") {
            return Err((
                "differs",
                format!("ended by reset: {reset}, after {text:?}"),
            ));
        }
        Ok(())
    }

    /// A beginning of `within` and an end that shows that it is cut, or, if nothing of it was
    /// forwarded, a response of the proxy's own.
    async fn cut(&mut self, within: &[u8]) -> Result<(Vec<u8>, bool), (&'static str, String)> {
        loop {
            let own = self
                .buffer
                .windows(18)
                .position(|w| w == b"\r\nx-ebbtide-reason");
            if let Some(at) = own {
                // Interim heads may come before it.
                let start = self.buffer[..at]
                    .windows(9)
                    .rposition(|w| w == b"HTTP/1.1 ")
                    .unwrap_or(0);
                if !within.starts_with(&self.buffer[..start]) {
                    return Err((
                        "forwarded",
                        format!("the client received {}", show(&self.buffer)),
                    ));
                }
                self.buffer.drain(..start);
                return Ok((self.answer(false).await, false));
            }
            if let Err(reset) = self.fill().await {
                let got = std::mem::take(&mut self.buffer);
                return match (reset || shows_a_cut(&got)) && within.starts_with(&got) {
                    true => Ok((got, true)),
                    false => Err((
                        "forwarded",
                        format!("reset: {reset}, the client received {}", show(&got)),
                    )),
                };
            }
        }
    }

    /// The payload of chunks up to and including the last chunk.
    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut payload = Vec::new();
        loop {
            let end = loop {
                if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                    break end;
                }
                self.fill().await.ok()?;
            };
            let size =
                usize::from_str_radix(std::str::from_utf8(&self.buffer[..end]).ok()?, 16).ok()?;
            while self.buffer.len() < end + 2 + size + 2 {
                self.fill().await.ok()?;
            }
            let rest = self.buffer.split_off(end + 2 + size + 2);
            let chunk = std::mem::replace(&mut self.buffer, rest);
            if !chunk.ends_with(b"\r\n") {
                return None;
            }
            if size == 0 {
                return Some(payload);
            }
            payload.extend_from_slice(&chunk[end + 2..end + 2 + size]);
        }
    }
}

/// Whether the framing of the last response shows that something is missing.
fn shows_a_cut(got: &[u8]) -> bool {
    let text = String::from_utf8_lossy(got);
    let Some(last) = text.rfind("HTTP/1.1 ") else {
        return false;
    };
    let Some((head, body)) = text[last..].split_once("\r\n\r\n") else {
        return false;
    };
    match head.split_once("\r\nContent-Length: ") {
        Some((_, rest)) => {
            let length = rest.split("\r\n").next().unwrap_or_default();
            length.parse::<usize>().is_ok_and(|n| body.len() < n)
        }
        None if head.contains("\r\nTransfer-Encoding: chunked") => {
            let is_last = |at: usize| at == 0 || body[..at].ends_with("\r\n");
            let ends = body.match_indices("0\r\n").any(|(at, _)| is_last(at));
            !(ends && body.ends_with("\r\n\r\n"))
        }
        None => false,
    }
}

fn check_answer(got: &[u8], status: u16, reason: &str) -> Result<(), (&'static str, String)> {
    let text = String::from_utf8_lossy(got);
    let own = text.contains("\r\nx-ebbtide-reason: ");
    let right = text.starts_with(&format!("HTTP/1.1 {status} "))
        && text.contains(&format!("\r\nx-ebbtide-reason: {reason}\r\n"))
        && text.matches("HTTP/1.1 ").count() == 1;
    match (right, own) {
        (true, _) => Ok(()),
        (false, true) => Err((
            "differs",
            format!("{status} {reason} is expected, the client received {text:?}"),
        )),
        (false, false) => Err(("forwarded", format!("the client received {text:?}"))),
    }
}

fn differs(what: &str, got: &[u8], wanted: &[u8]) -> Result<(), (&'static str, String)> {
    if got == wanted {
        Ok(())
    } else {
        Err((
            "differs",
            format!("{what}: {}, not {}", show(got), show(wanted)),
        ))
    }
}
