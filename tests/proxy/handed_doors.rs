//! Both processes accept from the same sockets of TCP listeners: a connection in a socket's queue is
//! served by the one that is there (contract 1.14).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::proxy::handed::{App, Place, ends_well, get, loses};
use crate::support::process::Process;
use crate::support::wait::eventually;

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
    let (app, place) = (
        App::start().await,
        Place::new("timeouts: {lameDuck: 10m, shutdown: 10m}"),
    );
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
    for _ in 0..3 {
        let next = place.process(&app).await;
        process.proxy.signal(Signal::TERM);
        ends_well(&mut process).await;
        process = next;
    }
    is_over.store(true, Ordering::SeqCst);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
}
