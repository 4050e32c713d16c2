//! A worker's thread: its runtime, its mailbox and its timers.
//!
//! Invariant: the loop here never waits for a connection. It acts on a message, or once a
//! second, and both are short.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::settings::Config;
use crate::contract::policy::Transport;
use crate::net::turns;
use crate::proxy::shared::{Shared, Spare, WorkerCommand};
use crate::proxy::worker::Worker;
use crate::proxy::{accept, session, udp};

/// Runs a worker until its mailbox closes; blocks the thread.
pub fn run(
    index: usize,
    shared: Arc<Shared>,
    config: Arc<Config>,
    mailbox: mpsc::UnboundedReceiver<WorkerCommand>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(31)
        .on_thread_park(turns::idle)
        .build_local(tokio::runtime::LocalOptions::default())?;
    let worker = Rc::new(Worker::new(index, shared, &config));
    runtime.block_on(worker.serve(mailbox));
    Ok(())
}

impl Worker {
    async fn serve(self: Rc<Self>, mut mailbox: mpsc::UnboundedReceiver<WorkerCommand>) {
        for queue in [
            &self.tiny_chunks,
            &self.bulk,
            &self.accepts,
            &self.unanswered,
            &self.handshakes,
            &self.datagrams,
        ] {
            let queue = queue.clone();
            tokio::task::spawn_local(async move { queue.serve().await });
        }
        tokio::task::spawn_local(self.clone().give_up_silent());
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = mailbox.recv() => match command {
                    Some(WorkerCommand::Exit) | None => {
                        // An idle connection and the worker's part of its endpoint refer to each
                        // other. Without this neither would ever be dropped.
                        self.drop_idle(Spare::All);
                        return;
                    }
                    Some(command) => self.execute(command),
                },
                _ = second.tick() => self.sweep(),
            }
        }
    }

    fn execute(self: &Rc<Self>, command: WorkerCommand) {
        match command {
            WorkerCommand::Config(config) => {
                *self.config.borrow_mut() = Rc::new(Config::clone(&config))
            }
            WorkerCommand::Listen(spec, listening) => {
                let mut listeners = self.listeners.borrow_mut();
                let stop = listeners.entry(spec.id).or_default().clone();
                let worker = self.clone();
                match spec.transport() {
                    Transport::Tcp => {
                        tokio::task::spawn_local(accept::serve(worker, spec, listening, stop));
                    }
                    Transport::Udp => {
                        tokio::task::spawn_local(udp::serve::serve(worker, spec, listening, stop));
                    }
                }
            }
            WorkerCommand::Unlisten(id) => {
                if let Some(stop) = self.listeners.borrow_mut().remove(&id) {
                    stop.cancel();
                }
                self.routes.borrow_mut().remove(&id);
            }
            WorkerCommand::Connection(accepted) => session::start(self, accepted),
            WorkerCommand::Left(endpoints) => self.drop_idle_of(&endpoints),
            WorkerCommand::Drained(leaving) => {
                if let Some(local) = self.locals.borrow().get(&leaving.0.id) {
                    local.drop_idle();
                }
            }
            WorkerCommand::Adopt(adopted) => session::adopt(self, *adopted),
            WorkerCommand::AdoptSession(adopted, held) => {
                udp::handed::adopt(self, *adopted, held);
            }
            WorkerCommand::ShowDoors(show) => {
                accept::show_doors(self, &show);
                udp::handed::show_doors(self, &show);
            }
            WorkerCommand::Claimed(key) => udp::handed::let_go(self, &key),
            WorkerCommand::HandOver => {
                tokio::task::spawn_local(self.clone().offer_all());
            }
            WorkerCommand::Closing => self.goodbye.notify_waiters(),
            WorkerCommand::Cut => {
                self.cut.set(true);
                self.locals
                    .borrow()
                    .values()
                    .for_each(|local| local.force.cancel());
            }
            WorkerCommand::DropIdle(which) => drop(self.drop_idle(which)),
            WorkerCommand::Exit => {}
        }
    }
}
