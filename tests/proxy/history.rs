//! `/api/v1/history`, and the page that draws it, in a real browser: it loads, it updates, it draws
//! what the API says, and it works on a narrow screen and at 5,000 Services.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ebbtide::command::demo::client::Client;
use ebbtide::contract::endpoint::{Conditions, Endpoint, EndpointId};
use ebbtide::contract::name::{ObjectName, PodRef};
use ebbtide::contract::reason::{RetryReason, Trigger};
use serde_json::{Value, json};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::admin::{Fixture, key};
use crate::proxy::scripted::Scripted;
use crate::support::browser::Browser;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// A Service whose pods of the generation `old` give way to those of `new`.
struct Rollout {
    fixture: Fixture,
    old: Arc<Endpoint>,
    new: Arc<Endpoint>,
    second: u64,
    /// The wall clock at second 0.
    begun: SystemTime,
}

impl Rollout {
    async fn start() -> Self {
        Self::behind(Fixture::start().await)
    }

    fn behind(fixture: Fixture) -> Self {
        fixture.synced();
        let made = |id: u64, pod: &str, hash: &str| {
            let pod = PodRef {
                name: pod.into(),
                uid: format!("uid-{id}"),
            };
            let address = format!("10.1.0.{id}:8080").parse().unwrap();
            let notices = fixture.notices.0.clone();
            let (pod, hash) = (Some(Arc::new(pod)), Some(hash.into()));
            let endpoint = Endpoint::new(EndpointId(id), address, pod, hash, notices);
            endpoint.set_conditions(Conditions {
                ready: true,
                serving: true,
                terminating: false,
            });
            endpoint.set_out(false);
            endpoint
        };
        let (old, new) = (
            made(201, "shop-old-1", "5f6b7c8d9"),
            made(202, "shop-new-1", "7d9c5b6f4"),
        );
        fixture.publish(vec![(
            key("web", "shop", 80),
            vec![old.clone(), new.clone()],
        )]);
        Self {
            fixture,
            old,
            new,
            second: 0,
            begun: SystemTime::now(),
        }
    }

    /// One second with these many requests to the old and the new pod.
    fn second(&mut self, old: u64, new: u64, failed: u64) {
        let metrics = self.fixture.admin.metrics.service(&key("web", "shop", 80));
        for (endpoint, count) in [(&self.old, old), (&self.new, new)] {
            let counter = endpoint.tally.dispatched.of_worker(count as usize % 2);
            (0..count).for_each(|_| counter.inc());
        }
        for _ in 0..old + new {
            metrics.answered(200);
            metrics.request_duration.observe(0.004);
        }
        (0..failed).for_each(|_| metrics.failures.inc());
        self.second += 1;
        let admin = &self.fixture.admin;
        admin.history.sample(
            &admin.snapshot,
            self.second,
            self.begun + Duration::from_secs(self.second),
        );
    }

    /// A rollout of a minute: the old pod drains in its middle.
    fn roll(&mut self) {
        for n in 0..60 {
            let part = (n as u64).saturating_sub(20).min(20) * 6;
            if n == 30 {
                let metrics = self.fixture.admin.metrics.service(&key("web", "shop", 80));
                metrics.retried(RetryReason::Replay, true);
                metrics.held_released.inc();
                self.fixture.drain(
                    &self.old,
                    &key("web", "shop", 80),
                    Trigger::PodDeleted,
                    Duration::from_secs(30),
                );
                self.old
                    .tally
                    .finished
                    .store(14, std::sync::atomic::Ordering::Relaxed);
            }
            self.second(120 - part, part, u64::from(n == 31));
        }
    }

    async fn api(&self) -> Value {
        self.fixture.json("/api/v1/history?service=web/shop").await
    }

    fn url(&self) -> String {
        format!("http://{}/", self.fixture.address)
    }
}

#[tokio::test]
async fn the_history_tells_what_each_generation_got() {
    let mut rollout = Rollout::start().await;
    assert_eq!(
        rollout.api().await["generations"],
        json!([]),
        "a Service without traffic"
    );
    rollout.second(3, 0, 0);
    rollout.second(2, 5, 1);
    rollout.fixture.drain(
        &rollout.old,
        &key("web", "shop", 80),
        Trigger::PodDeleted,
        Duration::from_secs(30),
    );
    rollout.second += 1; // a second that nobody sampled
    rollout.second(0, 7, 0);
    let history = rollout.api().await;
    let generations = json!([
        {"name": "5f6b7c8d9", "requests": [3, 2, 0, 0]},
        {"name": "7d9c5b6f4", "requests": [0, 5, 0, 7]},
    ]);
    assert_eq!(history["generations"], generations);
    assert_eq!(history["failures"], json!([0, 1, 0, 0]));
    let p99 = history["p99Ms"].as_array().unwrap();
    assert!(
        p99[2].is_null() && p99[3].as_f64().is_some_and(|ms| (2.5..5.2).contains(&ms)),
        "{p99:?}"
    );
    assert_eq!(history["drains"][0]["pod"], "shop-old-1");
    assert_eq!(
        history["restarts"].as_array().unwrap().len(),
        1,
        "this process started within the time"
    );

    // What an endpoint got in the second in which it left the table is not lost.
    rollout.old.note_dispatch(0);
    rollout.second(1, 7, 0);
    rollout.old.tally.dispatched.of_worker(0).inc();
    rollout
        .fixture
        .publish(vec![(key("web", "shop", 80), vec![rollout.new.clone()])]);
    rollout.second(0, 7, 0);
    let old = &rollout.api().await["generations"][0];
    assert_eq!(old["requests"], json!([3, 2, 0, 0, 1, 1]));

    let all = rollout.fixture.json("/api/v1/history").await;
    let latest = json!({"service": "web/shop", "requests": 8, "failures": 0, "p99Ms": p99[3]});
    assert_eq!(all, json!({"services": [latest]}));
    for (path, status) in [
        ("?service=web/none", 404),
        ("?service=shop", 400),
        ("?service=", 400),
    ] {
        let answer = rollout.fixture.get(&format!("/api/v1/history{path}")).await;
        assert_eq!(answer.status, status, "{path}");
    }
}

/// An endpoint that answers each request.
async fn answering() -> Scripted {
    Scripted::start(|mut stream: TcpStream, _| async move {
        let (mut bytes, answer) = ([0; 4096], b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        while let Ok(1..) = stream.read(&mut bytes).await {
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// The real proxy, its real thread and real sockets: each request of a keep-alive client counts
/// once, and so does each TCP connection.
#[tokio::test]
async fn the_proxy_counts_each_dispatch_for_the_generation_that_got_it() {
    for (protocol, expected) in [("http", [5, 7]), ("tcp", [2, 3])] {
        let rig = Rig::with_protocol(protocol, "").await;
        let (old, new) = (answering().await, answering().await);
        rig.pod("a", "v1", None);
        rig.pod("b", "v2", None);
        for (name, app, requests, connections) in [("a", &old, 5, 2), ("b", &new, 7, 3)] {
            rig.endpoints(&[Ep::new(name, app.address).of_pod()]);
            eventually("only this endpoint", async || {
                let ports = rig.running().admin.snapshot.load().ports;
                let usable = ports.values().flat_map(|port| port.usable.iter());
                usable.map(|it| it.address).eq([app.address]) && rig.running().is_settled()
            })
            .await;
            let mut clients = Vec::new();
            for _ in 0..connections {
                clients.push(Client::connect(rig.web()).await.unwrap());
            }
            for number in 0..requests {
                let client = &mut clients[number % connections];
                let answer = soon("a response", client.exchange("GET", "/", "", b"")).await;
                assert_eq!(answer.unwrap().status, 200);
            }
        }
        let history = &rig.running().admin.history;
        let sums = || -> Vec<(String, u32)> {
            let series = history.of(&ObjectName::new("web", "shop"));
            let generations = series.map(|it| it.generations).unwrap_or_default();
            let generations = generations.into_iter();
            generations
                .map(|(name, counts)| (name.to_string(), counts.iter().sum()))
                .collect()
        };
        let expected = [
            ("v1".to_owned(), expected[0]),
            ("v2".to_owned(), expected[1]),
        ];
        eventually("both generations", async || {
            let all: u32 = sums().iter().map(|(_, sum)| sum).sum();
            all >= expected[0].1 + expected[1].1
        })
        .await;
        assert_eq!(sums(), expected, "{protocol}");
    }
}

/// 5,000 Services with traffic in each second: the bytes that docs/reference.md states.
#[tokio::test]
async fn the_memory_of_5000_services_with_traffic_is_bounded() {
    let fixture = Fixture::start().await;
    let keys: Vec<_> = (0..5_000)
        .map(|n| key("web", &format!("s{n}"), 80))
        .collect();
    fixture.publish(keys.iter().map(|key| (key.clone(), Vec::new())).collect());
    let metrics: Vec<_> = keys
        .iter()
        .map(|key| fixture.admin.metrics.service(key))
        .collect();
    for second in 1..20 {
        for metrics in &metrics {
            metrics.answered(200);
            metrics.request_duration.observe(0.01);
        }
        fixture
            .admin
            .history
            .sample(&fixture.admin.snapshot, second, SystemTime::now());
    }
    assert_eq!(fixture.admin.history.last_seconds().len(), 5_000);
    let each = fixture.admin.history.bytes() / 5_000;
    assert!((1..=700).contains(&each), "{each} bytes for 20 seconds");
    fixture.publish(keys.iter().map(|key| (key.clone(), Vec::new())).collect());
    fixture
        .admin
        .history
        .sample(&fixture.admin.snapshot, 2_000, SystemTime::now());
    assert_eq!(
        fixture.admin.history.bytes(),
        0,
        "nothing is left after 15 quiet minutes"
    );
}

#[tokio::test]
async fn a_browser_draws_what_the_api_says_and_updates_it() {
    let mut rollout = Rollout::start().await;
    rollout.roll();
    let Some(mut browser) = Browser::open(&rollout.url()).await else {
        println!(
            "SKIPPED: a_browser_draws_what_the_api_says_and_updates_it: chromium is not installed"
        );
        return;
    };
    browser.screen(1280, 1000, "light").await;
    browser
        .until("document.querySelectorAll('#requests .generation').length === 2")
        .await;
    let api = rollout.api().await;
    // The height of the stacked column of each second, read from the picture's geometry.
    let drawn = "(() => { const shapes = [...document.querySelectorAll('#requests .generation')]; \
        const rows = Array.from({ length: 100 }, (_, y) => y + .5), hit = (x, y) => shapes.map(s => s.isPointInFill(new DOMPoint(x, y))); \
        return Array.from({ length: 60 }, (_, i) => { const hits = rows.map(y => hit(i + .5, y)); const all = f => hits.filter(f).length; \
        return [all(([old]) => old), all(([, fresh]) => fresh), all(([old, fresh]) => old && fresh)]; }); })()";
    let drawn = browser.value(drawn).await;
    // 120 requests at most, so the picture is 200 high.
    for second in 0..60 {
        assert_eq!(
            drawn[second][2], 0,
            "second {second}: one lies upon the other"
        );
        for generation in 0..2 {
            let said = api["generations"][generation]["requests"][second]
                .as_f64()
                .unwrap();
            let shown = drawn[second][generation].as_f64().unwrap();
            assert!(
                (said / 2.0 - shown).abs() <= 1.0,
                "second {second}: {said} are drawn as {shown} of 100"
            );
        }
    }
    let text = async |browser: &mut Browser, id: &str| {
        browser
            .value(&format!("document.getElementById('{id}').textContent"))
            .await
            .as_str()
            .unwrap()
            .to_owned()
    };
    let sum = text(&mut browser, "chart-sum").await;
    assert!(
        sum.contains("7,200 requests · 1 failed · 1 replayed · 1 held · Ebbtide started"),
        "{sum}"
    );
    let legend = text(&mut browser, "legend").await;
    assert_eq!(legend, "5f6b7c8d9: 0/s7d9c5b6f4: 120/s");
    let rows = text(&mut browser, "span-rows").await;
    assert!(rows.contains("shop-old-1") && rows.contains("14"), "{rows}");
    let minutes = "[...document.querySelectorAll('#minutes tr')].reduce((sum, tr) => sum + Number(tr.cells[2].textContent.replaceAll(',', '')), 0)";
    assert_eq!(
        browser.value(minutes).await,
        7_200,
        "the table for screen readers has the same numbers"
    );
    let shapes = "['.event.failed', '.event.replayed', '.event.held', '.span', '.line.p50', '.mark'].map(s => document.querySelectorAll('.plot ' + s).length > 0)";
    assert_eq!(
        browser.value(shapes).await,
        json!([true, true, true, true, true, true])
    );

    // It updates by itself.
    rollout.second(0, 77, 0);
    browser
        .until("document.getElementById('legend').textContent.includes(': 77/s')")
        .await;

    // The keyboard reads single seconds.
    browser
        .value("document.getElementById('plot').focus()")
        .await;
    browser.press("ArrowLeft").await;
    browser
        .until("document.getElementById('readout').textContent.includes('7d9c5b6f4 120')")
        .await;
    browser.press("ArrowRight").await;
    browser
        .until("document.getElementById('readout').textContent.includes('7d9c5b6f4 77')")
        .await;
    let tree = browser
        .call("Accessibility.getFullAXTree", json!({}))
        .await
        .to_string()
        .to_lowercase();
    for name in [
        "the last 15 minutes web/shop",
        "the same as tables",
        "timeline of web/shop",
    ] {
        assert!(tree.contains(name), "a screen reader finds no {name:?}");
    }

    // Light and dark differ, and nothing is wider than a narrow screen.
    let colours = "[document.body, document.querySelector('.g1')].map(it => getComputedStyle(it)).map(it => it.backgroundColor + it.color).join()";
    let light = browser.value(colours).await;
    browser.screen(320, 700, "dark").await;
    assert_ne!(browser.value(colours).await, light);
    assert_eq!(
        browser.value("document.documentElement.scrollWidth").await,
        320
    );
    browser
        .value("document.getElementById('as-table').open = true")
        .await;
    assert_eq!(
        browser.value("document.documentElement.scrollWidth").await,
        320
    );
    let loaded = browser.value("performance.getEntriesByType('resource').map(it => new URL(it.name).origin).every(it => it === location.origin)").await;
    assert_eq!(loaded, true, "nothing comes from outside");
}

#[tokio::test]
async fn a_browser_searches_and_sorts_5000_services() {
    let fixture = Fixture::start().await;
    fixture.synced();
    let keys: Vec<_> = (0..5_000)
        .map(|n| key("web", &format!("shop-{n:04}"), 80))
        .collect();
    fixture.publish(keys.iter().map(|key| (key.clone(), Vec::new())).collect());
    let busy = fixture.admin.metrics.service(&keys[4_321]);
    let failing = fixture.admin.metrics.service(&keys[1_234]);
    busy.answered(200);
    busy.request_duration.observe(0.2);
    failing.answered(502);
    failing.failures.inc();
    fixture
        .admin
        .history
        .sample(&fixture.admin.snapshot, 1, SystemTime::now());
    let Some(mut browser) = Browser::open(&format!("http://{}/", fixture.address)).await else {
        println!("SKIPPED: a_browser_searches_and_sorts_5000_services: chromium is not installed");
        return;
    };
    browser.screen(320, 700, "light").await;
    browser
        .until("document.querySelectorAll('#services article').length === 30")
        .await;
    assert_eq!(
        browser.value("document.documentElement.scrollWidth").await,
        320
    );
    let set = |id: &str, text: &str, event: &str| {
        format!(
            "(it => {{ it.value = '{text}'; it.dispatchEvent(new Event('{event}')); }})(document.getElementById('{id}'))"
        )
    };
    let first = "document.querySelector('#services h3').textContent";
    assert_eq!(browser.value(first).await, "web/shop-0000");
    for (order, service) in [
        ("p99", "web/shop-4321"),
        ("failures", "web/shop-1234"),
        ("name", "web/shop-0000"),
    ] {
        browser.value(&set("sort", order, "change")).await;
        assert_eq!(browser.value(first).await, service, "{order}");
    }
    browser.value(&set("search", "SHOP-43", "input")).await;
    assert_eq!(
        browser
            .value("document.getElementById('found').textContent")
            .await,
        "100 of 5,000 Service ports"
    );
    assert_eq!(browser.value(first).await, "web/shop-4300");
    browser
        .value("document.getElementById('services-more').click()")
        .await;
    assert_eq!(
        browser
            .value("document.querySelectorAll('#services article').length")
            .await,
        60
    );
    browser.value(&set("search", "no such", "input")).await;
    assert_eq!(
        browser
            .value("document.querySelectorAll('#services article').length")
            .await,
        0
    );
}

/// The pictures of docs/reference.md. `make pictures` runs this.
#[tokio::test]
#[ignore = "makes pictures to look at and asserts nothing: `make pictures`"]
async fn pictures_of_a_rollout() {
    let folder = std::path::PathBuf::from(
        std::env::var("EBBTIDE_SHOTS").expect("EBBTIDE_SHOTS names a folder"),
    );
    std::fs::create_dir_all(&folder).unwrap();
    let an_hour_ago = Instant::now().checked_sub(Duration::from_secs(3_600));
    let fixture = Fixture::started_at(an_hour_ago.unwrap()).await;
    let mut rollout = Rollout::behind(fixture);
    // The drain begins now, which is to be second 90 of the picture.
    rollout.begun -= Duration::from_secs(90);
    for _ in 0..60 {
        rollout.second(120, 0, 0);
    }
    rollout.roll();
    let mut browser = Browser::open(&rollout.url()).await.expect("chromium");
    browser
        .until("document.querySelectorAll('#requests .generation').length === 2")
        .await;
    for scheme in ["light", "dark"] {
        browser.screen(1100, 780, scheme).await;
        std::fs::write(
            folder.join(format!("rollout-{scheme}.png")),
            browser.picture().await,
        )
        .unwrap();
    }
}
