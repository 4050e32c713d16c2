//! When a request may be sent twice (design, section 3; RFC 9110 section 9.2.2), and the budget that bounds it.

use crate::contract::policy::NonIdempotent;
use crate::wire::message::{Method, Request};

/// Whether a request that may have run may be sent again.
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
