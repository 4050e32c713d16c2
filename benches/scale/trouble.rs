//! What may delay a drain: a busy source, slow pages, other Services. Each trouble goes on until it
//! is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::{Lab, Plan, get};

/// A row of the table of reactions.
pub struct Scene {
    pub name: &'static str,
    pub plan: Plan,
    /// The reaction that is wanted, in milliseconds.
    pub wanted_ms: f64,
    pub troubles: &'static [Trouble],
}

/// One kind of trouble.
#[derive(Clone, Copy)]
pub enum Trouble {
    /// 300 events a second about pods that have not changed.
    Events,
    /// 8 readers of `/api/v1/status`, without a pause.
    Readers,
    /// `/metrics` is read each second.
    Scrapes,
    /// 50 Services are deleted at once, each second.
    Deletions,
}

/// Troubles under way.
pub struct Under {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// The rows. `size` is the number of Services in those with many.
pub fn scenes(size: usize) -> Vec<Scene> {
    let plan = |services| Plan {
        services,
        shop: SHOP,
        silent: 0,
        log_stalls: false,
    };
    let row = |name, plan, troubles| Scene {
        name,
        plan,
        wanted_ms: 10.0,
        troubles,
    };
    let silent = size * 5 / 3;
    vec![
        Scene {
            wanted_ms: 1.0,
            ..row("quiet, 10 Services", plan(10), &[])
        },
        Scene {
            wanted_ms: 1.0,
            ..row("quiet", plan(size), &[])
        },
        row(
            "300 pod events/s that change nothing",
            plan(size),
            &[Trouble::Events],
        ),
        row(
            "8 readers of `/api/v1/status`, 10,000 endpoints",
            Plan {
                shop: size * 10 / 3,
                ..plan(10)
            },
            &[Trouble::Readers],
        ),
        row(
            "`/metrics` read each second",
            plan(size),
            &[Trouble::Scrapes],
        ),
        row(
            "5,000 endpoints of another Service do not answer",
            Plan { silent, ..plan(10) },
            &[],
        ),
        row(
            "50 Services deleted at once, each second",
            plan(size),
            &[Trouble::Deletions],
        ),
        row(
            "nobody reads the log",
            Plan {
                log_stalls: true,
                ..plan(10)
            },
            &[],
        ),
        row(
            "all of them together",
            Plan {
                shop: size * 10 / 3,
                silent,
                log_stalls: true,
                ..plan(size)
            },
            &[
                Trouble::Events,
                Trouble::Readers,
                Trouble::Scrapes,
                Trouble::Deletions,
            ],
        ),
    ]
}

impl Under {
    /// Starts the troubles.
    pub fn start(lab: &Arc<Lab>, troubles: &[Trouble]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut spawn = |every: Duration, step: Box<dyn Fn(usize) + Send>| {
            let stop = stop.clone();
            threads.push(std::thread::spawn(move || {
                let mut due = Instant::now();
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    step(n);
                    due += every;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            }));
        };
        for trouble in troubles {
            let (lab, admin) = (lab.clone(), lab.admin);
            let page = move |path: &'static str| Box::new(move |_| drop(get(admin, path)));
            match trouble {
                Trouble::Events => spawn(
                    Duration::from_micros(3_333),
                    // The first pods of the Service are the ones that are deleted.
                    Box::new(move |n| lab.touch_shop_pod(lab.plan.shop - 1 - n % 100)),
                ),
                Trouble::Readers => {
                    (0..8).for_each(|_| spawn(Duration::ZERO, page("/api/v1/status")));
                }
                Trouble::Scrapes => spawn(Duration::from_secs(1), page("/metrics")),
                Trouble::Deletions => spawn(
                    Duration::from_secs(1),
                    Box::new(move |_| lab.delete_services(50)),
                ),
            }
        }
        Self { stop, threads }
    }

    /// Ends the troubles.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .for_each(|thread| drop(thread.join()));
    }
}

/// Endpoints of the Service whose pods are deleted.
pub const SHOP: usize = 500;
