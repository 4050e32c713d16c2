//! A worker's share of a UDP listener: takes datagrams in, until the listener is closed.
//!
//! Invariant: a flood of datagrams takes turns with everything else on this worker.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::contract::listener::ListenerSpec;
use crate::net::datagrams::{Arrival, Datagrams};
use crate::proxy::accept::Accepting;
use crate::proxy::claims::Key;
use crate::proxy::shared::Listening;
use crate::proxy::udp::forward::take_in;
use crate::proxy::udp::handed::{give_all, name};
use crate::proxy::udp::sessions::Door;
use crate::proxy::worker::Worker;

/// Serves until `stop`, but not before `may_read`. In a shutdown it goes on for as long as the sessions
/// that it has then, or until the shutdown's grace is over. Otherwise another Service may have the address
/// next, so all ends.
pub async fn serve(
    worker: Rc<Worker>,
    spec: Arc<ListenerSpec>,
    listening: Listening,
    stop: CancellationToken,
) {
    let _accepting = Accepting::of(&spec);
    let may_read = listening.may_read;
    let is_read = Cell::new(may_read.is_none());
    let door = match Datagrams::watch(listening.socket.into()) {
        Ok(socket) => Rc::new(Door {
            spec,
            socket,
            is_read,
        }),
        Err(error) => {
            return tracing::error!(listener = spec.name, %error, "cannot watch the UDP socket");
        }
    };
    worker.udp.open(door.clone());
    if let Some(may_read) = may_read {
        tokio::select! {
            () = may_read.cancelled() => door.is_read.set(true),
            () = stop.cancelled() => {
                // Else the other process would be told that this one reads.
                may_read.cancel();
                return worker.udp.close(door.spec.id);
            }
        }
    }
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = take_all_in(&worker, &door) => return worker.udp.close(door.spec.id),
    }
    if worker.shared.closing.load(Ordering::Relaxed) {
        let begun = Instant::now();
        tokio::select! {
            () = take_all_in(&worker, &door) => {}
            () = give_all(&worker, &door) => {}
        }
        if is_left_to_another(&worker, &door).await {
            last_sessions(&worker, &door, begun).await;
        } else {
            tokio::select! {
                () = take_all_in(&worker, &door) => {}
                () = last_sessions(&worker, &door, begun) => {}
            }
            take_the_rest(&worker, &door).await;
        }
    }
    worker.udp.close(door.spec.id);
}

/// Leaves the socket to the process that replaces this one, if that has it, too, with the sessions that
/// have begun since they were given away: nothing is read meanwhile.
async fn is_left_to_another(worker: &Rc<Worker>, door: &Rc<Door>) -> bool {
    give_all(worker, door).await;
    worker.shared.doors.release(name(worker, door)).await
}

/// Takes datagrams in. Returns if the socket fails.
async fn take_all_in(worker: &Rc<Worker>, door: &Rc<Door>) {
    loop {
        if let Err(error) = door.socket.readable().await {
            return tracing::error!(listener = door.spec.name, %error, "the UDP socket failed");
        }
        worker.datagrams.turn().await;
        take_some_in(worker, door, Datagrams::try_recv, BURST);
    }
}

/// Takes in what `recv` gives, up to `most` datagrams. Returns how many it was.
fn take_some_in(worker: &Rc<Worker>, door: &Rc<Door>, recv: Recv, most: usize) -> usize {
    for taken_in in 0..most {
        let taken = worker.udp.with_buffer(|buffer| {
            let arrival = recv(&door.socket, buffer)?;
            let key = Key {
                listener: door.spec.id,
                client: arrival.peer,
                asked: arrival.asked,
            };
            // As kube-proxy does, without a word.
            if !door.spec.admits(arrival.peer.ip()) {
                return Ok(());
            }
            take_in(worker, door, key, &buffer[..arrival.len]);
            io::Result::Ok(())
        });
        // Any other error is of one datagram, or of one that was sent before.
        if taken.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return taken_in;
        }
    }
    most
}

/// What has come before the socket closes reaches its endpoints. What comes from now on goes to the sockets
/// of the process that replaces this one.
async fn take_the_rest(worker: &Rc<Worker>, door: &Rc<Door>) {
    if !worker.has_heir() || door.socket.turn_away().is_err() {
        return;
    }
    take_some_in(worker, door, Datagrams::recv_now, REST);
    // Sessions that have begun meanwhile are owed their answers.
    give_all(worker, door).await;
    // The kernel may have chosen this socket for a datagram just before, and queued it just now.
    tokio::time::sleep(UNDER_WAY).await;
    if take_some_in(worker, door, Datagrams::recv_now, REST) > 0 {
        give_all(worker, door).await;
    }
}

/// Returns when every session has ended that was there at `begun`, except those that were handed over. New
/// clients are served meanwhile, and have no claim to more: the process that replaces this one serves
/// them.
async fn last_sessions(worker: &Rc<Worker>, door: &Rc<Door>, begun: Instant) {
    let left = || {
        let sessions = worker.udp.of_listener(door.spec.id);
        sessions
            .iter()
            .any(|session| session.since <= begun && !session.is_handed.get())
    };
    for session in worker.udp.of_listener(door.spec.id) {
        session.notify();
    }
    while left() && !worker.cut.get() {
        tokio::time::sleep(LOOK).await;
    }
}

/// How a datagram is taken from the socket.
type Recv = fn(&Datagrams, &mut [u8]) -> io::Result<Arrival>;

/// How many datagrams are taken in one turn.
const BURST: usize = 32;
/// How many datagrams are taken when the socket closes: more than its queue has room for.
const REST: usize = 4096;
/// How long the kernel may take to queue a datagram for the socket that it has chosen.
const UNDER_WAY: Duration = Duration::from_millis(2);
/// How often to look whether the last session has ended.
const LOOK: Duration = Duration::from_millis(50);
