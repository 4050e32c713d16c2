//! The lines of contract 1 and 3 as properties of a step. A property looks at what happened, never
//! at how the model decided it. `Tick` is taken only when nothing is left to do at that moment, and
//! `Over` only at the end.

use crate::contract::{
    Action, Contract, End, GRACE, HOLD, NEW, OLD, Place, SLACK, Signal, Source, Stage, State,
};

pub struct Step<'a> {
    pub model: &'a Contract,
    pub before: &'a State,
    pub action: Action,
    pub after: &'a State,
}

/// A property's name, and the function that returns whether a step breaks it.
pub type Line = (&'static str, fn(&Step) -> bool);

pub const LINES: &[Line] = &[
    ("1.1: no lease once begin_drain has returned", |s| {
        s.entered()
            .any(|(p, e)| s.before.proxies[p].views[e].draining)
    }),
    ("1.1: drained is reported without a lease", |s| {
        match s.action {
            Action::Report(p, e) => s.leases(p, e) > 0,
            _ => false,
        }
    }),
    ("1.1: drained is reported once", |s| {
        s.views(|_, _, v| v.reports > 1)
    }),
    ("1.1: each drain is reported", |s| {
        s.is_over()
            && s.views(|p, e, v| s.after.proxies[p].knows_end(e) && !(v.draining && v.reports > 0))
    }),
    ("1.2: published before it is drained", |s| match s.action {
        // A worker that a leaving endpoint refuses then reads a snapshot without that endpoint.
        Action::Enter(r, e) => {
            let view = &s.before.proxies[s.model.proxy_of(r)].views[e];
            view.draining && view.place != Place::Nowhere
        }
        _ => false,
    }),
    (
        "1.3: idle connections are closed immediately, and none is kept later",
        |s| s.is_settled() && s.views(|_, _, v| v.idle && (v.draining || v.out)),
    ),
    ("1.4: requests in flight run until the deadline", |s| {
        s.requests().any(|r| match s.before.requests[r].stage {
            Stage::Sent(e) | Stage::Begun(e) => {
                let given_up = s.action == Action::Lose(r);
                let deadline_since = s.before.proxies[s.model.proxy_of(r)].views[e].deadline_since;
                let over = deadline_since.is_some_and(|at| s.before.now >= at + GRACE + SLACK);
                given_up && s.before.up[e] && !over
            }
            _ => false,
        })
    }),
    ("1.4: requests in flight end at the first deadline", |s| {
        let over = |at: u8| s.before.now >= at + GRACE + SLACK;
        s.is_settled()
            && s.requests().any(|r| {
                let view = |e: usize| &s.before.proxies[s.model.proxy_of(r)].views[e];
                s.before
                    .lease(r)
                    .is_some_and(|e| view(e).deadline_since.is_some_and(over))
            })
    }),
    ("1.4: no dispatch to an endpoint that is being cut", |s| {
        s.entered()
            .any(|(p, e)| s.before.proxies[p].views[e].forced)
    }),
    ("1.5: a client's connection outlives a drain", |s| {
        s.requests().any(|r| !s.after.requests[r].client_open)
    }),
    ("1.6: a repeatable request is replayed", |s| {
        s.ended(End::Lost).any(|r| {
            s.model.is_idempotent(r) && !s.before.requests[r].passed && s.after.requests[r].runs > 0
        })
    }),
    ("1.6: a truncated response never ends cleanly", |s| {
        s.ended(End::Truncated).next().is_some()
    }),
    ("1.7: termination is one-way", |s| {
        s.is_settled()
            && s.views(|p, e, v| v.place == Place::Usable && s.after.proxies[p].knows_end(e))
    }),
    ("1.7: removal is not a drain", |s| {
        s.views(|p, e, v| v.draining && !s.after.proxies[p].knows_end(e))
    }),
    ("1.7: an endpoint that is listed again serves again", |s| {
        s.is_settled()
            && s.views(|p, e, v| {
                let fit = v.listed && v.ready && v.joined && !s.after.proxies[p].knows_end(e);
                fit && v.place != Place::Usable
            })
    }),
    ("1.8: connected to once before the first dispatch", |s| {
        s.entered()
            .any(|(p, e)| !s.before.proxies[p].views[e].joined)
    }),
    ("1.8: a failed connect costs the client nothing", |s| {
        s.ended(End::Lost)
            .any(|r| s.after.requests[r].runs == 0 && s.refused_now(r))
    }),
    ("1.8: a failed connect ejects", |s| {
        s.entered()
            .any(|(p, e)| s.before.proxies[p].views[e].refused)
    }),
    ("1.9: the last resort's drain is deferred", |s| {
        s.drained_now().any(|(p, e)| {
            let view = &s.before.proxies[p].views[e];
            let in_time = view.deadline.is_none_or(|at| s.before.now < at);
            view.listed && view.joined && in_time && !s.before.proxies[p].serves(1 - e)
        })
    }),
    (
        "1.9: the last resort drains when another endpoint is usable",
        |s| {
            s.is_settled()
                && s.views(|p, e, v| {
                    v.place == Place::LastResort && s.after.proxies[p].serves(1 - e)
                })
        },
    ),
    ("1.9: the last resort serves", |s| {
        s.is_settled()
            && s.held().any(|p| {
                (OLD..=NEW)
                    .any(|e| s.after.proxies[p].serves(e) && s.place(p, e) == Place::LastResort)
            })
    }),
    ("1.9: no dispatch to an endpoint that is not ready", |s| {
        s.entered().any(|(p, e)| {
            let proxy = &s.before.proxies[p];
            // The endpoint is out and does not terminate, and the worker has seen no older snapshot
            // either.
            !proxy.knows_end(e)
                && !proxy.views[e].listed
                && proxy.views[e].place == Place::LastResort
        })
    }),
    ("1.9: the queue of held requests is bounded", |s| {
        (0..s.model.bounds.proxies).any(|p| s.model.held(s.after, p) > s.model.bounds.places)
    }),
    ("1.9: a request is held before it is refused", |s| {
        s.ended(End::Expired)
            .any(|r| s.before.requests[r].stage != Stage::Held)
    }),
    (
        "1.9: a held request is refused only after the hold time",
        |s| {
            s.ended(End::Expired).any(|r| {
                s.before.requests[r]
                    .since
                    .is_some_and(|since| s.before.now < since + HOLD)
            })
        },
    ),
    (
        "1.9: a held request goes to the first usable endpoint",
        |s| {
            s.is_settled()
                && s.held().any(|p| {
                    (OLD..=NEW)
                        .any(|e| s.after.proxies[p].serves(e) && s.place(p, e) == Place::Usable)
                })
        },
    ),
    ("1.9: no request is held longer than the hold time", |s| {
        s.is_settled()
            && s.requests().any(|r| {
                let request = &s.before.requests[r];
                request.stage == Stage::Held
                    && request
                        .since
                        .is_some_and(|since| s.before.now >= since + HOLD)
            })
    }),
    ("1.10: without the source, the last table serves", |s| {
        let known_good = |p: usize| {
            let proxy = &s.before.proxies[p];
            let silent = !proxy.knows_end(OLD) && !proxy.has_received(Signal::Removed);
            silent && s.before.up[OLD] && !proxy.views[OLD].refused
        };
        s.is_settled() && s.before.source == Source::Down && s.held().any(known_good)
    }),
    ("3.3: a POST runs once", |s| {
        s.requests()
            .any(|r| !s.model.is_idempotent(r) && s.after.requests[r].runs > 1)
    }),
    ("3.3: a POST goes out on an open connection", |s| {
        s.ended(End::Lost)
            .any(|r| s.after.requests[r].runs == 0 && !s.refused_now(r))
    }),
    (
        "3.4: nothing is replayed after a byte of the response was passed on",
        |s| {
            s.requests()
                .any(|r| s.before.requests[r].passed && s.after.requests[r].stage == Stage::Looking)
        },
    ),
    ("every request ends", |s| {
        s.is_over()
            && s.requests().any(|r| {
                !matches!(
                    s.after.requests[r].stage,
                    Stage::New | Stage::Done(_) | Stage::Past
                )
            })
    }),
];

impl Step<'_> {
    fn is_over(&self) -> bool {
        self.action == Action::Over
    }

    /// Nothing is left to do at this moment.
    fn is_settled(&self) -> bool {
        matches!(self.action, Action::Tick | Action::Over)
    }

    fn requests(&self) -> impl Iterator<Item = usize> {
        0..self.model.bounds.requests.len()
    }

    /// Whether, after the step, `is` holds for any endpoint of any proxy.
    fn views(&self, is: impl Fn(usize, usize, &crate::contract::View) -> bool) -> bool {
        (0..self.model.bounds.proxies)
            .any(|p| (OLD..=NEW).any(|e| is(p, e, &self.after.proxies[p].views[e])))
    }

    fn place(&self, proxy: usize, endpoint: usize) -> Place {
        self.after.proxies[proxy].views[endpoint].place
    }

    /// Proxies that hold a request.
    fn held(&self) -> impl Iterator<Item = usize> {
        self.requests()
            .filter(|r| self.before.requests[*r].stage == Stage::Held)
            .map(|r| self.model.proxy_of(r))
    }

    fn leases(&self, proxy: usize, endpoint: usize) -> usize {
        let mine = self.requests().filter(|r| self.model.proxy_of(*r) == proxy);
        mine.filter(|r| self.after.lease(*r) == Some(endpoint))
            .count()
    }

    /// Leases that this step has granted, as proxy and endpoint.
    fn entered(&self) -> impl Iterator<Item = (usize, usize)> {
        let new = self.requests().filter(|r| self.before.lease(*r).is_none());
        new.filter_map(|r| Some((self.model.proxy_of(r), self.after.lease(r)?)))
    }

    fn drained_now(&self) -> impl Iterator<Item = (usize, usize)> {
        let all = (0..self.model.bounds.proxies).flat_map(|p| [(p, OLD), (p, NEW)]);
        all.filter(|(p, e)| {
            !self.before.proxies[*p].views[*e].draining && self.after.proxies[*p].views[*e].draining
        })
    }

    /// Requests that this step has ended in this way.
    fn ended(&self, end: End) -> impl Iterator<Item = usize> {
        self.requests().filter(move |r| {
            self.before.requests[*r].stage != self.after.requests[*r].stage
                && self.after.requests[*r].stage == Stage::Done(end)
        })
    }

    fn refused_now(&self, request: usize) -> bool {
        match self.before.lease(request) {
            Some(e) => {
                let p = self.model.proxy_of(request);
                !self.before.proxies[p].views[e].refused && self.after.proxies[p].views[e].refused
            }
            None => false,
        }
    }
}
