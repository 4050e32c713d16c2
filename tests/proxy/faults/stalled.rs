//! A reader of the log that has stopped, and a source that is never silent. Neither delays a drain,
//! a client or a signal.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use ebbtide::command::demo::client::{self, Response};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::proxy::tcp::{Station, passes};
use crate::support::binary::BINARY;
use crate::support::folder::{Ep, Folder};
use crate::support::wait::eventually;

async fn page(admin: SocketAddr, path: &str) -> Option<Response> {
    client::get(admin, path, Duration::from_secs(10)).await.ok()
}

async fn drains(admin: SocketAddr) -> usize {
    let Some(answer) = page(admin, "/api/v1/drains").await else {
        return 0;
    };
    let all: Value = serde_json::from_slice(&answer.body).unwrap();
    let finished = |it: &&Value| it["outcome"] == "drained";
    let lists = all.as_object().unwrap().values();
    let records = lists.filter_map(Value::as_array).flatten();
    records.filter(finished).count()
}

#[tokio::test]
async fn neither_a_stalled_reader_of_the_log_nor_a_busy_source_delays_a_drain_or_a_signal() {
    let mut a = Station::start().await;
    let folder = Folder::new();
    folder.service(&[("ebbtide.dev/join-check", "off")]);
    folder.endpoints(&[a.ep("a")]);
    let free: Vec<TcpListener> = (0..2)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let [web, admin] = [0, 1].map(|at: usize| free[at].local_addr().unwrap());
    drop(free);
    let file = folder.path().join("ebbtide.yaml");
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\nadmin: {{address: '{admin}'}}\nworkers: 2\n\
         listeners: [{{name: web, address: '{web}', service: web/shop, port: 80, protocol: tcp}}]\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut process = tokio::process::Command::new(BINARY)
        .args(["run", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        // Nobody reads this pipe, and it holds 64 KiB.
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("ready", async || {
        page(admin, "/readyz")
            .await
            .is_some_and(|it| it.status == 200)
    })
    .await;
    let mut client = TcpStream::connect(web).await.unwrap();
    let connected = async {
        tokio::io::AsyncWriteExt::write_all(&mut client, b"!")
            .await
            .unwrap();
        a.next().await.0
    };
    let mut endpoint = connected.await;

    let work = async {
        for round in 1..=ROUNDS {
            let mut all = vec![a.ep("a")];
            all.extend((0..EACH).map(|number| {
                let address = SocketAddr::from(([127, 0, 1, number], 1000 + round as u16));
                Ep::new(&format!("r{round}-{number}"), address)
            }));
            folder.endpoints(&all);
            // Until all are served: an endpoint that was never served is not drained.
            eventually("the endpoints", async || {
                let status = page(admin, "/api/v1/status").await.unwrap();
                let text = status.text().into_owned();
                (0..EACH).all(|number| text.contains(&format!("127.0.1.{number}:{}", 1000 + round)))
            })
            .await;
            folder.endpoints(&all[..1]);
            let count = round * usize::from(EACH);
            eventually("the drains", async || drains(admin).await >= count).await;
            passes(&mut client, &mut endpoint, b"up").await;
            passes(&mut endpoint, &mut client, b"down").await;
        }
    };
    let busy = async {
        let address = SocketAddr::from(([127, 0, 2, 1], 1));
        let mut other = Ep::new("busy", address);
        loop {
            other.ready = !other.ready;
            folder.write("busy.json", &other.slice_of("shop", ""));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = busy => {}
    }
    let live = page(admin, "/livez").await.unwrap();
    assert_eq!(live.status, 200, "{}", live.text());
    drop((client, endpoint));
    let pid = Pid::from_raw(process.id().unwrap() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    eventually("the end of the process", async || {
        process.try_wait().unwrap().is_some()
    })
    .await;
}

/// Together more receipts than the pipe holds.
const ROUNDS: usize = 25;
const EACH: u8 = 20;
