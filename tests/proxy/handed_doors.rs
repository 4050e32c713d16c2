//! Both processes accept from the same sockets of TCP listeners: a connection in a socket's queue is
//! served by the one that is there (contract 1.14).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::proxy::handed::{App, Place, ends_well, get, loses};
use crate::support::process::Process;
use crate::support::wait::eventually;

/// The state of such a socket in /proc/net/tcp.
const LISTEN: &str = "0A";

/// New clients, so many that each socket of the listener gets some.
async fn are_served(web: SocketAddr) {
    for _ in 0..60 {
        let mut client = TcpStream::connect(web).await.unwrap();
        assert!(get(&mut client, "/").await.ends_with("ok"));
    }
}

/// Returns when no thread of the process runs any more.
async fn is_stopped(process: &Process) {
    process.proxy.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", process.proxy.pid().unwrap());
    eventually("it stops", async || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        stat.rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('T')
    })
    .await;
}

#[tokio::test]
async fn a_new_process_that_stands_still_or_dies_costs_no_client_that_connects() {
    let (app, place) = (App::start().await, Place::new(""));
    let old = place.process(&app).await;
    let new = place.process(&app).await;
    is_stopped(&new).await;
    are_served(place.web).await;
    new.proxy.signal(Signal::KILL);
    are_served(place.web).await;
    drop(new);
    // The sockets are still there for the next one.
    let next = place.process(&app).await;
    is_stopped(&old).await;
    are_served(place.web).await;
    old.proxy.signal(Signal::KILL);
    are_served(place.web).await;
    drop(next);
}

/// A process that closes its listener does not close it for the other one.
#[tokio::test]
async fn a_listener_that_the_new_process_removes_goes_on_in_the_old_one() {
    let (app, place) = (App::start().await, Place::new(""));
    let _old = place.process(&app).await;
    let new = place.process(&app).await;
    loses(&new, place.web, &place.text).await;
    are_served(place.web).await;
}

/// Before, each that came to a socket while it closed waited for a second.
#[tokio::test]
async fn clients_that_connect_without_a_pause_are_served_through_three_replacements() {
    are_served_through([2; 4]).await;
}

/// A socket that no worker of the new process had would close with the clients in its queue.
#[tokio::test]
async fn so_are_they_by_processes_with_fewer_workers_and_with_more() {
    are_served_through([3, 1, 2, 1, 3]).await;
}

/// The sockets that listen at an address, by their inodes.
fn listening(at: SocketAddr) -> BTreeSet<String> {
    let all = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = all
        .lines()
        .map(|row| row.split_whitespace().collect::<Vec<_>>());
    let port = format!(":{:04X}", at.port());
    let rows = rows.filter(|row| row[1].ends_with(&port) && row[3] == LISTEN);
    rows.map(|row| row[9].to_owned()).collect()
}

/// Clients connect without a pause while a process with each number of workers replaces the one before.
async fn are_served_through<const N: usize>(workers: [usize; N]) {
    let app = App::start().await;
    let mut place = Place::new("timeouts: {lameDuck: 10m, shutdown: 10m}");
    let text = place.text.clone();
    let have = |place: &mut Place, n: usize| {
        place.text = text.replace("workers: 2", &format!("workers: {n}"));
        assert!(place.text.contains(&format!("workers: {n}")));
    };
    have(&mut place, workers[0]);
    let mut process = place.process(&app).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (web, is_over) = (place.web, is_over.clone());
            tokio::spawn(async move {
                let mut served = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let mut client = TcpStream::connect(web).await.unwrap();
                    assert!(get(&mut client, "/").await.ends_with("ok"));
                    served += 1;
                }
                served
            })
        })
        .collect();
    let mut sockets = listening(place.web);
    assert_eq!(sockets.len(), workers[0]);
    for n in &workers[1..] {
        have(&mut place, *n);
        let next = place.process(&app).await;
        process.proxy.signal(Signal::TERM);
        ends_well(&mut process).await;
        process = next;
        let now = listening(place.web);
        assert!(sockets.is_subset(&now), "{sockets:?} before, {now:?} after");
        assert!(now.len() >= *n, "each of {n} workers has one: {now:?}");
        sockets = now;
    }
    is_over.store(true, Ordering::SeqCst);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
}
