//! The fault table: at every stage of connect, request and response, one endpoint fails, by FIN or
//! by reset. The signal of its end comes early, late, twice, never, or contradicts itself. Each row
//! runs with seeded orders.
//!
//! The promise: an idempotent request never fails if nothing of its response was passed on, and it
//! is cut visibly if something was. A request that is not idempotent never reaches two endpoints.
//! No response goes to another request. Nothing is dispatched to an endpoint whose drain has begun.
//!
//! The seed fixes the scene and its order. The proxy chooses which endpoint fails, and the threads
//! interleave freely. All endpoints behave alike.

mod actor;
mod ends;
mod stalled;
mod window;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::proxy::tcp::known;
use crate::proxy::wire::{End, Wire, field};
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};
use actor::{Actor, Manner, Scene, Stage, body_of, dechunked, upload_of};

macro_rules! rows {
    ($($row:ident: $stage:ident, $manner:ident;)*) => {
        $(#[tokio::test]
        async fn $row() {
            row(stringify!($row), Stage::$stage, Manner::$manner).await;
        })*
    };
}

rows! {
    before_connect: BeforeConnect, Reset;
    accepted_fin: Accepted, Fin;
    accepted_reset: Accepted, Reset;
    in_request_head_fin: InRequestHead, Fin;
    in_request_head_reset: InRequestHead, Reset;
    after_request_head_fin: AfterRequestHead, Fin;
    after_request_head_reset: AfterRequestHead, Reset;
    in_request_body_fin: InRequestBody, Fin;
    in_request_body_reset: InRequestBody, Reset;
    before_response_fin: BeforeResponse, Fin;
    before_response_reset: BeforeResponse, Reset;
    in_response_head_fin: InResponseHead, Fin;
    in_response_head_reset: InResponseHead, Reset;
    after_response_head_fin: AfterResponseHead, Fin;
    after_response_head_reset: AfterResponseHead, Reset;
    in_counted_body_fin: InCountedBody, Fin;
    in_counted_body_reset: InCountedBody, Reset;
    in_chunk_fin: InChunk, Fin;
    in_chunk_reset: InChunk, Reset;
    between_chunks_fin: BetweenChunks, Fin;
    between_chunks_reset: BetweenChunks, Reset;
    in_close_delimited_reset: InCloseDelimited, Reset;
    answered_twice: AnsweredTwice, Fin;
    after_response_fin: AfterResponse, Fin;
    after_response_reset: AfterResponse, Reset;
    on_reuse_fin: OnReuse, Fin;
    on_reuse_reset: OnReuse, Reset;
    silent_until_its_deadline: Silent, Reset;
}

/// When the proxy learns that the failing endpoint leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Never,
    Before,
    With,
    After,
    /// Terminating, ready once more, terminating.
    Twice,
    /// Its pod is deleted, but its slice lists it as ready.
    Contradictory,
    /// Its pod is deleted, and another pod has its address.
    Reused,
    /// The source breaks, and is whole again later.
    Gap,
}

/// A request and its result.
#[derive(Debug)]
struct Asked {
    id: String,
    repeatable: bool,
    got: Got,
}

#[derive(Debug)]
enum Got {
    /// The whole response to this very request, every byte.
    Right,
    /// Status and `x-ebbtide-reason` of a response that the proxy made.
    Own(String),
    /// Part of the response, then an end at which the framing shows that more was to come.
    Cut,
    /// The connection ended before the first byte.
    Nothing,
    Wrong(String),
}

#[derive(Debug, Default)]
struct Figures {
    seeds: u64,
    requests: u64,
    right: u64,
    cut: u64,
    once: u64,
    drained: u64,
    retries: f64,
}

/// The proxies that share a row's seeds.
const LANES: u64 = 6;
const SEEDS: u64 = 24;
const SEEDS_FULL: u64 = 1_000;

/// The seeds of a row: few, many (`EBBTIDE_FULL`) or one (`EBBTIDE_SEED`).
fn seeds() -> std::ops::Range<u64> {
    let one: Option<u64> = std::env::var("EBBTIDE_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let full = std::env::var_os("EBBTIDE_FULL").is_some();
    one.map_or(0..if full { SEEDS_FULL } else { SEEDS }, |seed| {
        seed..seed + 1
    })
}

async fn row(name: &str, stage: Stage, manner: Manner) {
    let seeds = seeds();
    let lanes = (0..LANES).map(|lane| {
        lane_of(
            name,
            stage,
            manner,
            seeds.clone().filter(move |s| s % LANES == lane),
        )
    });
    let mut sum = Figures::default();
    for figures in futures::future::join_all(lanes).await {
        sum.seeds += figures.seeds;
        sum.requests += figures.requests;
        sum.right += figures.right;
        sum.cut += figures.cut;
        sum.once += figures.once;
        sum.drained += figures.drained;
        sum.retries += figures.retries;
    }
    let Figures {
        seeds,
        requests,
        right,
        cut,
        once,
        drained,
        retries,
    } = sum;
    println!(
        "FIGURE faults {name}: {seeds} seeds, {requests} requests, {right} answered, {retries} retries, {cut} cut in \
         their answer, {once} not idempotent and lost, {drained} drains: 0 failed, 0 twice, 0 wrong, 0 after a drain began"
    );
}

async fn lane_of(
    name: &str,
    stage: Stage,
    manner: Manner,
    seeds: impl Iterator<Item = u64>,
) -> Figures {
    let mut sum = Figures::default();
    let mut seeds = seeds.peekable();
    if seeds.peek().is_none() {
        return sum;
    }
    // A silent endpoint is cut soon. All other rows have the time that a busy machine needs.
    let drain = if stage == Stage::Silent {
        "200ms"
    } else {
        "30s"
    };
    let more = "retry: {attempts: 3, budgetFloor: 10000}\ntimeouts: {hold: 1m, head: 1m, drain: ";
    let rig = Rig::start(&format!("{more}{drain}}}")).await;
    for seed in seeds {
        let play = AssertUnwindSafe(play(&rig, stage, manner, seed, &mut sum))
            .catch_unwind()
            .await;
        if let Err(panic) = play {
            println!("run it again: EBBTIDE_SEED={seed} cargo test --test proxy faults::{name}");
            std::panic::resume_unwind(panic);
        }
    }
    sum.retries = rig.metric("ebbtide_retries_total", "");
    sum
}

/// One seed: a scene, its two clients, the failure and the signals of it, and the requests
/// afterwards.
async fn play(rig: &Rig, stage: Stage, manner: Manner, seed: u64, sum: &mut Figures) {
    let mut rng = Rng::with_seed(seed);
    let pods = stage != Stage::Silent && rng.bool();
    let signal = match rng.u32(..if pods { 8 } else { 6 }) {
        // Only the drain ends a silence.
        _ if stage == Stage::Silent => {
            [Signal::Before, Signal::With, Signal::After][rng.usize(..3)]
        }
        0 => Signal::Never,
        1 => Signal::Before,
        2 => Signal::With,
        3 => Signal::After,
        4 => Signal::Twice,
        5 => Signal::Gap,
        6 => Signal::Contradictory,
        _ => Signal::Reused,
    };
    let dies = stage == Stage::BeforeConnect
        || stage != Stage::Silent && signal != Signal::Reused && rng.bool();
    let count = rng.usize(1..4);
    let length = [60, 300, 5_000, 20_000, 120_000][rng.usize(..5)];
    let scene = Arc::new(Scene {
        stage,
        manner,
        pause: Duration::from_millis([0, 0, 1, 10][rng.usize(..4)]),
        length,
        sent: rng.usize(1..length),
        armed: AtomicBool::new(false),
        struck: watch::Sender::new(None),
        go: CancellationToken::new(),
        over: CancellationToken::new(),
        seen: Default::default(),
    });
    let mut actors = Vec::new();
    for number in 0..count {
        actors.push(Actor::start(&scene, number));
    }
    let mut files = Files {
        rig,
        seed,
        pods,
        slices: Vec::new(),
    };
    (0..count).for_each(|number| files.join(number, &actors[number]));
    files.write();
    let open = |actor: &Actor| known(rig, actor.address).is_some_and(|endpoint| endpoint.is_open());
    eventually("the endpoints", async || actors.iter().all(open)).await;

    let mut clients = [Client::new(rig, seed, 0), Client::new(rig, seed, 1)];
    // A kept connection would not meet a failure of connect.
    let warm = stage == Stage::OnReuse || stage != Stage::Accepted && rng.bool();
    if warm {
        for client in &mut clients {
            let asked = client.ask(&["GET"], &mut rng).await;
            judge(&scene, &asked, sum, Allowed::NOTHING);
        }
    }
    let mut struck = scene.struck.subscribe();
    let victim = rng.usize(..count);
    if stage == Stage::BeforeConnect {
        actors[victim].die();
        scene.struck.send_replace(Some(victim));
    }
    scene.armed.store(true, Ordering::SeqCst);
    let kinds: [&[&str]; 6] = [
        &["GET"],
        &["PUT"],
        &["POST"],
        &["GET", "GET"],
        &["GET", "POST"],
        &["POST", "GET"],
    ];
    // At least one request with a body, where the body is cut.
    let first = if stage == Stage::InRequestBody {
        kinds[1 + rng.usize(..2)]
    } else {
        kinds[rng.usize(..6)]
    };
    let (first, second) = match (stage, kinds[rng.usize(..6)]) {
        // One request at a time: if the next request were already sent, a stray response could not
        // be distinguished from its own.
        (Stage::AnsweredTwice, _) => (&first[..1], &[][..]),
        (_, second) => (first, second),
    };
    let mut rngs = [rng.fork(), rng.fork()];
    let [a, b] = &mut clients;
    let [rng_a, rng_b] = &mut rngs;
    let asking = async { tokio::join!(a.ask(first, rng_a), b.ask(second, rng_b)) };
    let failing = async {
        // `OnReuse` fails only if a request meets a kept connection. The second round below makes
        // sure that one does.
        let struck = async { *struck.wait_for(Option::is_some).await.unwrap() };
        let hit = match stage {
            Stage::OnReuse => tokio::time::timeout(Duration::from_millis(100), struck)
                .await
                .ok()
                .flatten(),
            _ => soon("the failure", struck).await,
        };
        fail(&scene, &mut files, &mut actors, hit, signal, dies, &mut rng).await
    };
    let ((asked_a, asked_b), fallen) = tokio::join!(asking, failing);
    if stage == Stage::AnsweredTwice {
        soon("the stray response", scene.over.cancelled()).await;
    }
    let begun = [
        Stage::AfterResponseHead,
        Stage::InCountedBody,
        Stage::InChunk,
        Stage::BetweenChunks,
        Stage::InCloseDelimited,
    ];
    let allowed = Allowed {
        cut: begun.contains(&stage),
        // Where nothing was written nothing can be lost, except on a kept connection.
        lost: stage != Stage::BeforeConnect || warm,
    };
    judge(&scene, &asked_a, sum, allowed);
    judge(&scene, &asked_b, sum, allowed);
    scene.armed.store(false, Ordering::SeqCst);
    scene.go.cancel();

    if let Some(Fallen {
        actor,
        endpoint,
        connections,
    }) = &fallen
    {
        eventually("its drain begins", async || endpoint.is_draining()).await;
        sum.drained += 1;
        let after = ask_on(&mut clients, &mut rngs[0], &scene, sum).await;
        for id in after {
            let late = |seen: &actor::Seen| seen.actor == *actor && seen.connection < *connections;
            assert!(
                !scene.seen(&id).iter().any(late),
                "{id} was dispatched after the drain of {actor} began"
            );
        }
    } else {
        ask_on(&mut clients, &mut rngs[0], &scene, sum).await;
    }
    files.clean().await;
    eventually("the drains are over", async || {
        rig.running().admin.drains.running() == 0
    })
    .await;
    sum.seeds += 1;
}

/// The endpoint that failed after the proxy learned that it leaves, and its number of connections
/// before that.
struct Fallen {
    actor: usize,
    endpoint: Arc<ebbtide::contract::endpoint::Endpoint>,
    connections: usize,
}

/// Sends the signals in their order, lets the endpoint fail, and adds a new endpoint where none
/// would be left.
async fn fail(
    scene: &Arc<Scene>,
    files: &mut Files<'_>,
    actors: &mut Vec<Actor>,
    hit: Option<usize>,
    signal: Signal,
    dies: bool,
    rng: &mut Rng,
) -> Option<Fallen> {
    let Some(hit) = hit else {
        scene.go.cancel();
        return None;
    };
    let rig = files.rig;
    let endpoint = known(rig, actors[hit].address).unwrap();
    let connections = actors[hit]
        .scripted
        .as_ref()
        .map_or(usize::MAX, |scripted| scripted.accepted());
    let others = actors.len() > 1;
    let wait = Duration::from_millis(rng.u64(0..20));
    match signal {
        Signal::Never => {}
        Signal::Before => {
            files.write_state(hit, "terminating");
            let known = async || endpoint.conditions().terminating || endpoint.is_draining();
            eventually("the signal", known).await;
        }
        Signal::With | Signal::Twice => files.write_state(hit, "terminating"),
        Signal::Contradictory => files.delete_pod(hit),
        Signal::Gap => files.garble(hit),
        Signal::After | Signal::Reused => {}
    }
    scene.go.cancel();
    if dies {
        if scene.stage != Stage::BeforeConnect {
            soon("the failure's end", scene.over.cancelled()).await;
        }
        actors[hit].die();
    }
    tokio::time::sleep(wait).await;
    match signal {
        Signal::After | Signal::Gap => files.write_state(hit, "terminating"),
        Signal::Twice => {
            files.write_state(hit, "ready");
            tokio::time::sleep(wait).await;
            files.write_state(hit, "terminating");
        }
        Signal::Reused => files.replace_pod(hit),
        Signal::Never | Signal::Before | Signal::With | Signal::Contradictory => {}
    }
    if !others {
        actors.push(Actor::start(scene, actors.len()));
        files.join(actors.len() - 1, &actors[actors.len() - 1]);
        files.write();
    }
    (signal != Signal::Never).then_some(Fallen {
        actor: hit,
        endpoint,
        connections,
    })
}

/// What the requests of a row may lose.
#[derive(Clone, Copy)]
struct Allowed {
    /// A visible cut of a response that had begun.
    cut: bool,
    /// A request that is not idempotent.
    lost: bool,
}

impl Allowed {
    const NOTHING: Self = Self {
        cut: false,
        lost: false,
    };
}

fn judge(scene: &Scene, asked: &[Asked], sum: &mut Figures, allowed: Allowed) {
    let mut behind_a_cut = false;
    for Asked {
        id,
        repeatable,
        got,
    } in asked
    {
        sum.requests += 1;
        let seen = scene.seen(id);
        assert!(
            *repeatable || seen.len() <= 1,
            "{id} is not idempotent and was sent twice: {seen:?}"
        );
        match got {
            Got::Right => {
                sum.right += 1;
                assert!(
                    !seen.is_empty(),
                    "{id} was answered by an endpoint that is not in the scene"
                );
            }
            Got::Cut if allowed.cut => {
                sum.cut += 1;
                behind_a_cut = true;
            }
            Got::Own(answer) if !repeatable && allowed.lost && answer.starts_with("502 ") => {
                sum.once += 1;
                // Of a chunked upload whose end has not come, the proxy announces the close. What
                // the client has sent behind it is for the client to send again.
                behind_a_cut |= answer.ends_with(CLOSES);
            }
            Got::Nothing if behind_a_cut => {}
            Got::Own(what) | Got::Wrong(what) => {
                panic!("{id}, repeatable {repeatable}: {what:?}, seen {seen:?}")
            }
            Got::Cut | Got::Nothing => {
                panic!("{id}, repeatable {repeatable}: {got:?}, seen {seen:?}")
            }
        }
    }
}

/// After the failure every request is answered, on the same connections where they were not cut.
/// Returns the requests.
async fn ask_on(
    clients: &mut [Client<'_>; 2],
    rng: &mut Rng,
    scene: &Scene,
    sum: &mut Figures,
) -> Vec<String> {
    let mut ids = Vec::new();
    for client in clients {
        for _ in 0..2 {
            let asked = client.ask(&["GET"], rng).await;
            judge(scene, &asked, sum, Allowed::NOTHING);
            ids.extend(asked.into_iter().map(|asked| asked.id));
        }
    }
    ids
}

/// A keep-alive client whose requests all differ.
struct Client<'a> {
    rig: &'a Rig,
    wire: Option<Wire>,
    name: String,
    asked: usize,
}

impl<'a> Client<'a> {
    fn new(rig: &'a Rig, seed: u64, number: usize) -> Self {
        Self {
            rig,
            wire: None,
            name: format!("s{seed}c{number}"),
            asked: 0,
        }
    }

    /// Sends these requests together and reads their responses. Opens a new connection only if the
    /// last one was cut.
    async fn ask(&mut self, methods: &[&str], rng: &mut Rng) -> Vec<Asked> {
        if methods.is_empty() {
            return Vec::new();
        }
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::connect(self.rig).await,
        };
        let mut bytes = Vec::new();
        let mut ids = Vec::new();
        for method in methods {
            let id = format!("{}n{}", self.name, self.asked);
            self.asked += 1;
            bytes.extend(request(method, &id, rng));
            ids.push((id, *method));
        }
        // In two parts, so that an endpoint can fail in the middle of a body.
        let at = rng.usize(bytes.len() / 2..bytes.len());
        wire.send(&bytes[..at]).await;
        tokio::time::sleep(Duration::from_millis(rng.u64(0..4))).await;
        wire.send(&bytes[at..]).await;
        let mut asked = Vec::new();
        let mut keeps = true;
        for (id, method) in ids {
            let (got, kept) = if keeps {
                read(&mut wire, &id).await
            } else {
                (Got::Nothing, false)
            };
            keeps = kept;
            asked.push(Asked {
                id,
                repeatable: method != "POST",
                got,
            });
        }
        self.wire = keeps.then_some(wire);
        asked
    }
}

fn request(method: &str, id: &str, rng: &mut Rng) -> Vec<u8> {
    let head = format!("{method} /{id} HTTP/1.1\r\nHost: a\r\n");
    if method == "GET" {
        return format!("{head}\r\n").into();
    }
    let body = upload_of(id, [40, 2_000, 50_000][rng.usize(..3)]);
    if rng.bool() {
        return [
            format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(),
            &body,
        ]
        .concat();
    }
    let (one, two) = body.split_at(rng.usize(1..body.len()));
    let chunk =
        |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let head = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    [head.as_bytes(), &chunk(one), &chunk(two), b"0\r\n\r\n"].concat()
}

/// The end of [`Got::Own`] where the response announces the connection's end.
const CLOSES: &str = ", closes";

/// Reads one response. Returns also whether the connection stays open after it.
async fn read(wire: &mut Wire, id: &str) -> (Got, bool) {
    let Some(head) = wire.head().await else {
        let end = wire.end.unwrap_or(End::Fin);
        return match (wire.buffer.is_empty(), end) {
            (true, _) => (Got::Nothing, false),
            // No client takes the beginning of a head for a response.
            (false, End::Reset | End::Fin) => (Got::Cut, false),
        };
    };
    let body = if head.contains("\r\nTransfer-Encoding: chunked\r\n") {
        chunks(wire).await.map(|raw| dechunked(&raw))
    } else {
        let length = field(&head, "Content-Length").and_then(|length| length.parse().ok());
        wire.take(length.unwrap_or(0)).await
    };
    let keeps = field(&head, "Connection") != Some("close");
    if let Some(reason) = field(&head, "x-ebbtide-reason").or(field(&head, "X-Ebbtide-Reason")) {
        let closes = if keeps { "" } else { CLOSES };
        return (
            Got::Own(format!("{} {reason}{closes}", &head[9..12])),
            keeps,
        );
    }
    let echo = field(&head, "X-Id");
    if echo != Some(id)
        || !head.starts_with("HTTP/1.1 200 ")
        || field(&head, "X-Sound") != Some("true")
    {
        return (Got::Wrong(head), false);
    }
    match (body, wire.end) {
        (Some(body), _)
            if body == body_of(id, body.len())
                && body.ends_with(format!("#end-of-{id}").as_bytes()) =>
        {
            (Got::Right, keeps)
        }
        // The framing tells, also if it is a FIN.
        (None, _) => (Got::Cut, false),
        (Some(body), _) => (
            Got::Wrong(String::from_utf8_lossy(&body).into_owned()),
            false,
        ),
    }
}

async fn chunks(wire: &mut Wire) -> Option<Vec<u8>> {
    let mut raw = Vec::new();
    loop {
        let line = wire.until("\r\n").await?;
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim_end(), 16).ok()?;
        raw.extend(line);
        raw.extend(wire.take(size + 2).await?);
        if size == 0 {
            return Some(raw);
        }
    }
}

/// The manifests of a seed.
struct Files<'a> {
    rig: &'a Rig,
    seed: u64,
    pods: bool,
    slices: Vec<Ep>,
}

impl Files<'_> {
    fn name(&self, number: usize) -> String {
        format!("s{}-{number}", self.seed)
    }

    fn join(&mut self, number: usize, actor: &Actor) {
        let name = self.name(number);
        let mut ep = Ep::new(&name, actor.address);
        if self.pods {
            self.rig.pod(&name, &number.to_string(), None);
            ep = ep.of_pod();
        }
        self.slices.push(ep);
    }

    fn write(&self) {
        self.rig.endpoints(&self.slices);
    }

    fn write_state(&mut self, number: usize, what: &str) {
        let ep = &mut self.slices[number];
        let ready = what == "ready";
        (ep.ready, ep.serving, ep.terminating) = (ready, true, !ready);
        self.write();
    }

    fn delete_pod(&self, number: usize) {
        self.rig
            .pod(&self.name(number), &number.to_string(), Some(30));
    }

    fn replace_pod(&mut self, number: usize) {
        self.delete_pod(number);
        let name = format!("{}-again", self.name(number));
        self.rig.pod(&name, "again", None);
        self.slices[number].name = name;
        self.write();
    }

    /// Breaks the endpoint's manifest.
    fn garble(&self, number: usize) {
        let file = format!("slice-{}.json", self.name(number));
        std::fs::write(self.rig.manifests().join(file), "{\"apiVersion\": ").unwrap();
    }

    /// Removes all manifests of this seed.
    async fn clean(&self) {
        self.rig.endpoints(&[]);
        for entry in std::fs::read_dir(self.rig.manifests()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("pod-") {
                self.rig.remove(&name);
            }
        }
        self.rig.usable(0).await;
    }
}
