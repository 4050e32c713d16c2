//! Rows for Ebbtide alone: the time from a change to the workers' snapshot, the cost of a pick, and
//! the cost of endpoints and Services.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ebbtide::contract::clock::millis;
use ebbtide::proxy::balancer::{self, Avoid, Cost, Origin};

use crate::guard::Guard;
use crate::load::Histogram;
use crate::measure;
use crate::peers::{Kind, free_address, get, service_manifest, slice_manifest, write_manifests};
use crate::results::Better::Less;
use crate::results::median;
use crate::rows::Bench;
use crate::scene::{self, Scene};

const GROUP: &str = "control";

/// Measures the group `control`.
pub fn run(bench: &mut Bench) -> anyhow::Result<()> {
    bench.progress.set_message("control");
    bench.results.note(GROUP, "The event rows call the library: a change is sent to a control thread, and the time ends when a thread that loads the snapshot like a worker sees the new one. The manifest rows measure a real process, from the rename of a file to the first response from another endpoint. They include the time until the file counts as complete.".to_owned());
    for endpoints in [10, 1_000, 10_000] {
        add(bench, &format!("pick of {endpoints}, ns"), pick(endpoints));
    }
    for endpoints in [100, 1_000, 10_000] {
        let (p50, p99) = event_to_snapshot(endpoints, if bench.quick { 20 } else { 200 });
        add(
            bench,
            &format!("{endpoints} endpoints: event to snapshot p50, µs"),
            p50,
        );
        add(
            bench,
            &format!("{endpoints} endpoints: event to snapshot p99, µs"),
            p99,
        );
    }
    for endpoints in [100, 1_000, 10_000] {
        let (p50, p99) = manifest_to_answer(bench, endpoints, if bench.quick { 4 } else { 20 })?;
        add(
            bench,
            &format!("{endpoints} endpoints: manifest to answer p50, ms"),
            p50,
        );
        add(
            bench,
            &format!("{endpoints} endpoints: manifest to answer p99, ms"),
            p99,
        );
    }
    for _ in 0..bench.rounds {
        let (empty, _) = start(bench, 0, 0)?;
        let (endpoints, took) = start(bench, 10_000, 1)?;
        add(
            bench,
            "10,000 endpoints in 100 slices: start until ready, ms",
            took,
        );
        add(
            bench,
            "private bytes an endpoint",
            (endpoints - empty) / 10_000.0,
        );
        let (services, _) = start(bench, 1_000, 1_000)?;
        add(
            bench,
            "private bytes a service of one endpoint",
            (services - empty) / 1_000.0,
        );
        bench.progress.inc(1);
    }
    Ok(())
}

fn add(bench: &mut Bench, row: &str, value: f64) {
    bench.results.add(GROUP, row, Less, Kind::Ebbtide, value);
}

/// Nanoseconds of one pick, including the lease and its return.
fn pick(endpoints: usize) -> f64 {
    let scene = Scene::of(endpoints);
    let (port, now) = (scene.port(), Instant::now());
    for (i, endpoint) in port.usable.iter().enumerate() {
        endpoint
            .latency()
            .record(Duration::from_micros(900 + i as u64 % 200), millis(now));
    }
    let from = Origin {
        client: std::net::Ipv4Addr::LOCALHOST.into(),
        scope: None,
    };
    let batch = |count: u32| {
        let begun = Instant::now();
        for _ in 0..count {
            drop(std::hint::black_box(balancer::pick(
                &port,
                Cost::Http,
                from,
                &Avoid::default(),
                now,
            )));
        }
        begun.elapsed().as_nanos() as f64 / f64::from(count)
    };
    batch(20_000);
    let batches: Vec<f64> = (0..9).map(|_| batch(20_000)).collect();
    median(&batches)
}

/// Microseconds from an event to the snapshot, median and p99, at 50 events a second.
fn event_to_snapshot(endpoints: usize, events: usize) -> (f64, f64) {
    let mut scene = Scene::of(endpoints);
    let (place, port) = (scene.place(), scene.port());
    let (stop, seen) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let epoch = Instant::now();
    // A worker that loads the snapshot without a pause, as a busy one does with each pick.
    let worker = std::thread::spawn({
        let (stop, seen) = (stop.clone(), seen.clone());
        move || {
            let mut last = port.clone();
            while !stop.load(Ordering::Relaxed) {
                if !place.has(&last) {
                    last = place.port().unwrap_or(last);
                    seen.store(epoch.elapsed().as_nanos() as u64, Ordering::Release);
                }
                std::hint::spin_loop();
            }
        }
    });
    let (events_in, mut events_out) = tokio::sync::mpsc::channel::<Vec<_>>(8);
    let control = std::thread::spawn(move || {
        while let Some(changes) = events_out.blocking_recv() {
            scene.apply(changes);
        }
    });
    let mut latencies = Histogram::default();
    for n in 0..events {
        std::thread::sleep(Duration::from_millis(20));
        let slice = scene::slice(0, scene::SLICE.min(endpoints), n % 2 == 0);
        seen.store(0, Ordering::Release);
        let sent = epoch.elapsed().as_nanos() as u64;
        if events_in.blocking_send(vec![slice]).is_err() {
            break;
        }
        let waited = Instant::now();
        while seen.load(Ordering::Acquire) == 0 && waited.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_micros(500));
        }
        latencies.record(Duration::from_nanos(
            seen.load(Ordering::Acquire).saturating_sub(sent),
        ));
    }
    stop.store(true, Ordering::Relaxed);
    drop(events_in);
    let _ = (worker.join(), control.join());
    (latencies.quantile(0.5), latencies.quantile(0.99))
}

const NO_JOIN: &[(&str, &str)] = &[("ebbtide.dev/join-check", "off")];

/// Milliseconds, median and p99, from a manifest's rename to the first response of a new endpoint.
fn manifest_to_answer(
    bench: &mut Bench,
    endpoints: usize,
    changes: usize,
) -> anyhow::Result<(f64, f64)> {
    let folder = tempfile::tempdir()?;
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    let pair = bench.backend.open(2)?;
    // The other endpoints are not ready. They are in the table and get no request.
    write_table(&manifests, "rest", endpoints, 1, false)?;
    write_manifests(&manifests, &pair[..1], &[], NO_JOIN)?;
    let (listen, _guard) = run_ebbtide(bench, folder.path())?;
    wait_until(|| get(listen, "/who").is_ok())?;
    let mut latencies = Histogram::default();
    for n in 0..changes {
        let now = &pair[(n + 1) % 2..][..1];
        let begun = Instant::now();
        write_manifests(&manifests, now, &[], NO_JOIN)?;
        let port = now[0].port().to_string();
        wait_until(|| get(listen, "/who").is_ok_and(|who| who == port))?;
        latencies.record(begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((
        latencies.quantile(0.5) / 1e3,
        latencies.quantile(0.99) / 1e3,
    ))
}

/// Starts a process with this many endpoints. Returns its private bytes, and the milliseconds from
/// its start until it is ready.
fn start(bench: &Bench, endpoints: usize, services: usize) -> anyhow::Result<(f64, f64)> {
    let folder = tempfile::tempdir()?;
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    write_table(&manifests, "shop", endpoints, services, true)?;
    let admin = free_address()?;
    let begun = Instant::now();
    let guard = spawn(bench, folder.path(), free_address()?, admin)?;
    wait_until(|| get(admin, "/readyz").is_ok())?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    std::thread::sleep(Duration::from_millis(300));
    Ok((measure::private_bytes(&guard.pids()) as f64, took))
}

/// Writes endpoints in slices of a hundred, or of fewer if there are more Services; one file for
/// each slice. No request is ever sent to these endpoints: they are on loopback, and nothing
/// connects to them.
fn write_table(
    folder: &Path,
    name: &str,
    endpoints: usize,
    services: usize,
    ready: bool,
) -> anyhow::Result<()> {
    let per_slice = if services > 1 {
        endpoints / services
    } else {
        100
    };
    for n in 0..services {
        let service = if services > 1 {
            format!("{name}-{n}")
        } else {
            name.to_owned()
        };
        let service = if ready { service } else { "shop".to_owned() };
        if ready {
            let manifest = service_manifest(&service, NO_JOIN).to_string();
            std::fs::write(folder.join(format!("{service}.service.json")), manifest)?;
        }
        for first in
            (n * endpoints / services..(n + 1) * endpoints / services).step_by(per_slice.max(1))
        {
            let last = (first + per_slice).min((n + 1) * endpoints / services);
            let address = |n: usize| SocketAddr::from((Ipv4Addr::from(0x7f01_0000 + n as u32), 9));
            let mut slice = slice_manifest(
                &service,
                &(first..last).map(address).collect::<Vec<_>>(),
                false,
            );
            if !ready {
                for endpoint in slice["endpoints"].as_array_mut().context("endpoints")? {
                    endpoint["conditions"] =
                        serde_json::json!({"ready": false, "serving": false, "terminating": false});
                }
            }
            std::fs::write(
                folder.join(format!("{name}-{first:05}.json")),
                slice.to_string(),
            )?;
        }
    }
    Ok(())
}

fn run_ebbtide(bench: &Bench, folder: &Path) -> anyhow::Result<(SocketAddr, Guard)> {
    let listen = free_address()?;
    let guard = spawn(bench, folder, listen, free_address()?)?;
    Ok((listen, guard))
}

fn spawn(
    bench: &Bench,
    folder: &Path,
    listen: SocketAddr,
    admin: SocketAddr,
) -> anyhow::Result<Guard> {
    let config = include_str!("ebbtide.yaml")
        .replace("@FOLDER@", &folder.display().to_string())
        .replace("@LISTEN@", &listen.to_string())
        .replace("@PROTOCOL@", "http")
        .replace("127.0.0.1:0", &admin.to_string());
    let file = folder.join("ebbtide.yaml");
    std::fs::write(&file, config)?;
    let arguments = [
        "run".to_owned(),
        "--config".to_owned(),
        file.display().to_string(),
    ];
    Guard::start(
        &bench.cores.proxy,
        Path::new(env!("CARGO_BIN_EXE_ebbtide")),
        &arguments,
        &folder.join("log"),
    )
}

fn wait_until(mut done: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > Duration::from_secs(30) {
            bail!("the expected state did not come within 30 s");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
