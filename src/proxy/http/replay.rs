//! The rules of contract 3: which requests may run twice (RFC 9110 section 9.2.2), and what follows
//! when an attempt is lost.
//!
//! Invariant: everything here is a pure function of what its caller knows. The budget and the
//! endpoints are looked at in [`crate::proxy::http::attempts`].

use crate::contract::policy::NonIdempotent;
use crate::wire::message::{Method, Request};

/// What is known of an attempt whose connection ended, broke or was cut before the whole response
/// was there.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// A byte of a final response has reached the client.
    pub passed: bool,
    /// Every request byte received so far can be sent again.
    pub whole: bool,
    /// The request may run twice, see [`is_repeatable`].
    pub repeatable: bool,
    /// A byte of the request was written to the lost connection.
    pub wrote: bool,
    /// The connection was cut at the drain deadline.
    pub forced: bool,
    /// The connection was a reused one and ended before anything of a response came.
    pub stale: bool,
    /// The grace of this process's shutdown is over.
    pub shutdown: bool,
    /// The client is no longer there.
    pub client_gone: bool,
    /// The client has ended its direction, and the endpoint was told.
    pub client_ended: bool,
}

/// What the earlier attempts of a request, and its endpoint, say of a loss.
#[derive(Debug, Clone, Copy)]
pub struct Past {
    /// The attempt had asked for a fresh connection.
    pub fresh: bool,
    /// The endpoint has lost this request before.
    pub tried: bool,
    /// Discovery reports that the endpoint leaves.
    pub announced: bool,
}

/// What follows a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The request is not sent again.
    GiveUp(GiveUp),
    /// The connection was stale: the request goes out on a fresh one. That is no attempt, and the
    /// endpoint does not count as tried (contract 3.5).
    Stale,
    /// A replay that is free, because discovery explains the loss (contract 3.7).
    Free,
    /// A replay that counts, so the policy's attempts and the budget must allow it (contract 3.7).
    Charged,
}

/// Why a lost request is not sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// The response has begun (contract 3.4).
    Passed,
    /// The replay buffer does not hold the body (contract 3.2).
    NotKept,
    /// The request may run only once, and may have run (contract 3.3).
    Once,
    /// The grace of this process's shutdown is over.
    Shutdown,
    /// The client is no longer there (contract 3.7).
    ClientGone,
    /// The endpoint ended the exchange after it had learnt that the client sends no more. It stays,
    /// so that was the application's decision (contract 4.4).
    ClientEnded,
    /// The policy allows no more attempts (contract 3.7).
    Attempts,
    /// The budget is spent (contract 3.7).
    Budget,
    /// The request's own deadline has passed.
    Deadline,
}

/// Decides what follows a loss.
pub fn judge(loss: &Loss, past: Past) -> Verdict {
    // Where a response has begun, there is nothing to replay, and the client has most likely left.
    if loss.client_ended && !loss.forced && (loss.passed || !past.announced) {
        return Verdict::GiveUp(GiveUp::ClientEnded);
    }
    if loss.passed {
        return Verdict::GiveUp(GiveUp::Passed);
    }
    if !loss.whole {
        return Verdict::GiveUp(GiveUp::NotKept);
    }
    if loss.wrote && !loss.repeatable {
        return Verdict::GiveUp(GiveUp::Once);
    }
    if loss.shutdown {
        return Verdict::GiveUp(GiveUp::Shutdown);
    }
    if loss.client_gone {
        return Verdict::GiveUp(GiveUp::ClientGone);
    }
    if loss.stale && !past.fresh {
        return Verdict::Stale;
    }
    // One loss of each endpoint is free, and no more: an endpoint that leaves and answers no
    // request must not be asked without end.
    if !past.tried && (loss.forced || past.announced) {
        Verdict::Free
    } else {
        Verdict::Charged
    }
}

/// Whether a request that may have run may be sent again (contract 3.2 and 3.3).
pub fn is_repeatable(request: &Request, policy: NonIdempotent) -> bool {
    let opted_in = match policy {
        NonIdempotent::Never => false,
        NonIdempotent::IdempotencyKey => request.idempotency_key,
        NonIdempotent::Always => true,
    };
    // A conditional PUT or DELETE that ran has changed what its condition asks.
    let changes_condition =
        matches!(request.method, Method::Put | Method::Delete) && request.conditional;
    opted_in || (request.method.is_idempotent() && !changes_condition)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{Framing, Version};

    fn request(method: Method, conditional: bool, idempotency_key: bool) -> Request {
        Request {
            method,
            version: Version::H11,
            framing: Framing::None,
            keep_alive: true,
            upgrade: false,
            expect_continue: false,
            conditional,
            idempotency_key,
            binds: false,
            consumed: 0,
        }
    }

    #[test]
    fn idempotent_methods_are_repeatable_and_no_others() {
        for method in [
            Method::Get,
            Method::Head,
            Method::Options,
            Method::Trace,
            Method::Put,
            Method::Delete,
        ] {
            assert!(
                is_repeatable(&request(method, false, false), NonIdempotent::Never),
                "{method:?}"
            );
        }
        for method in [Method::Post, Method::Patch, Method::Connect, Method::Other] {
            assert!(
                !is_repeatable(&request(method, false, false), NonIdempotent::Never),
                "{method:?}"
            );
            assert!(
                !is_repeatable(&request(method, false, true), NonIdempotent::Never),
                "{method:?}"
            );
        }
    }

    /// RFC 9110 section 13.1: the attempt that was lost may have changed what the condition asks.
    #[test]
    fn a_conditional_change_is_not_repeatable_a_conditional_read_is() {
        for (method, repeatable) in [
            (Method::Put, false),
            (Method::Delete, false),
            (Method::Get, true),
            (Method::Head, true),
        ] {
            assert_eq!(
                is_repeatable(&request(method, true, false), NonIdempotent::Never),
                repeatable,
                "{method:?}"
            );
        }
    }

    /// A GET whose fresh connection broke after it was written.
    const GET: Loss = Loss {
        passed: false,
        whole: true,
        repeatable: true,
        wrote: true,
        forced: false,
        stale: false,
        shutdown: false,
        client_gone: false,
        client_ended: false,
    };

    const POST: Loss = Loss {
        repeatable: false,
        ..GET
    };

    /// The first attempt, on an endpoint that stays.
    const FIRST: Past = Past {
        fresh: false,
        tried: false,
        announced: false,
    };

    #[test]
    fn what_follows_a_loss_is_decided_by_the_contract() {
        use Verdict::{Charged, Free, Stale};
        let no = Verdict::GiveUp;
        let leaving = Past {
            announced: true,
            ..FIRST
        };
        let ended = Loss {
            client_ended: true,
            ..GET
        };
        let table = [
            ("3.2 a GET that was written", GET, FIRST, Charged),
            (
                "3.2 its body is no longer kept",
                Loss {
                    whole: false,
                    ..GET
                },
                FIRST,
                no(GiveUp::NotKept),
            ),
            ("3.3 a POST that was written", POST, FIRST, no(GiveUp::Once)),
            (
                "3.3 a POST of which nothing was written",
                Loss {
                    wrote: false,
                    ..POST
                },
                FIRST,
                Charged,
            ),
            (
                "3.3 also where its endpoint leaves",
                POST,
                leaving,
                no(GiveUp::Once),
            ),
            (
                "3.3 also on a stale connection",
                Loss {
                    stale: true,
                    ..POST
                },
                FIRST,
                no(GiveUp::Once),
            ),
            (
                "3.4 the response has begun",
                Loss {
                    passed: true,
                    ..GET
                },
                FIRST,
                no(GiveUp::Passed),
            ),
            (
                "3.4 also where its endpoint leaves",
                Loss {
                    passed: true,
                    forced: true,
                    ..GET
                },
                leaving,
                no(GiveUp::Passed),
            ),
            (
                "3.5 a stale connection",
                Loss { stale: true, ..GET },
                FIRST,
                Stale,
            ),
            (
                "3.5 a stale connection of a leaving endpoint",
                Loss { stale: true, ..GET },
                leaving,
                Stale,
            ),
            (
                "3.5 none is stale that was asked to be fresh",
                Loss { stale: true, ..GET },
                Past {
                    fresh: true,
                    ..FIRST
                },
                Charged,
            ),
            ("3.7 the endpoint leaves", GET, leaving, Free),
            (
                "4.4 the endpoint stays, and knows of the client's end",
                ended,
                FIRST,
                no(GiveUp::ClientEnded),
            ),
            (
                "4.4 that was no stale connection",
                Loss {
                    stale: true,
                    ..ended
                },
                FIRST,
                no(GiveUp::ClientEnded),
            ),
            (
                "4.4 it leaves, so the client's end has not ended the exchange",
                ended,
                leaving,
                Free,
            ),
            (
                "4.4 but no replay follows a response that has begun",
                Loss {
                    passed: true,
                    ..ended
                },
                leaving,
                no(GiveUp::ClientEnded),
            ),
            (
                "4.4 nor has it where the drain deadline did",
                Loss {
                    forced: true,
                    ..ended
                },
                FIRST,
                Free,
            ),
            (
                "3.7 it was cut at the drain deadline",
                Loss {
                    forced: true,
                    ..GET
                },
                FIRST,
                Free,
            ),
            (
                "3.7 one loss of each endpoint is free",
                GET,
                Past {
                    tried: true,
                    ..leaving
                },
                Charged,
            ),
            (
                "3.7 also at the drain deadline",
                Loss {
                    forced: true,
                    ..GET
                },
                Past {
                    tried: true,
                    ..FIRST
                },
                Charged,
            ),
            (
                "3.7 the client is gone",
                Loss {
                    client_gone: true,
                    ..GET
                },
                leaving,
                no(GiveUp::ClientGone),
            ),
            (
                "1.4 the shutdown's grace is over",
                Loss {
                    shutdown: true,
                    forced: true,
                    ..GET
                },
                FIRST,
                no(GiveUp::Shutdown),
            ),
        ];
        for (line, loss, past, verdict) in table {
            assert_eq!(judge(&loss, past), verdict, "{line}");
        }
    }

    /// For every combination of facts: contract 3.2, 3.3 and 3.4.
    #[test]
    fn nothing_is_sent_twice_that_may_not_be() {
        for bits in 0..1 << 12 {
            let bit = |n: u32| bits & (1 << n) != 0;
            let loss = Loss {
                passed: bit(0),
                whole: bit(1),
                repeatable: bit(2),
                wrote: bit(3),
                forced: bit(4),
                stale: bit(5),
                shutdown: bit(6),
                client_gone: bit(7),
                client_ended: bit(11),
            };
            let past = Past {
                fresh: bit(8),
                tried: bit(9),
                announced: bit(10),
            };
            let again = !matches!(judge(&loss, past), Verdict::GiveUp(_));
            let decided = loss.client_ended && !loss.forced && !past.announced;
            let may = !loss.passed && loss.whole && (loss.repeatable || !loss.wrote) && !decided;
            assert_eq!(
                again,
                may && !loss.shutdown && !loss.client_gone,
                "{loss:?} {past:?}"
            );
        }
    }

    #[test]
    fn a_service_may_opt_in() {
        for (method, conditional) in [
            (Method::Post, false),
            (Method::Patch, false),
            (Method::Put, true),
        ] {
            let (bare, keyed) = (
                request(method, conditional, false),
                request(method, conditional, true),
            );
            assert!(!is_repeatable(&bare, NonIdempotent::IdempotencyKey));
            assert!(is_repeatable(&keyed, NonIdempotent::IdempotencyKey));
            assert!(is_repeatable(&bare, NonIdempotent::Always));
        }
    }
}
