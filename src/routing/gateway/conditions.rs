//! Conditions in the status of an object.
//!
//! Invariant: conditions of others stay as they are, and the time of ours changes only with what it says.
//!
//! Source: <https://gateway-api.sigs.k8s.io/geps/gep-1364/>.

use serde_json::{Value, json};

/// What is said, and why. `Err`: it does not hold.
pub type Says = Result<(), (&'static str, String)>;

/// A condition.
#[derive(Debug)]
pub struct Condition<'a> {
    /// Its type.
    pub kind: &'static str,
    /// The reason where it holds.
    pub reason: &'static str,
    /// Whether it holds.
    pub says: &'a Says,
}

/// The conditions of an object of this generation. `before` are those that it has, `now` is the time as the
/// API writes it.
pub fn conditions(ours: &[Condition<'_>], generation: i64, before: &Value, now: &str) -> Value {
    let before = before.as_array().map_or(&[][..], Vec::as_slice);
    let is_of = |it: &Value, kind: &str| it["type"] == kind;
    let foreign = before
        .iter()
        .filter(|it| !ours.iter().any(|own| is_of(it, own.kind)));
    let own = ours.iter().map(|own| {
        let (status, reason, message) = match own.says {
            Ok(()) => ("True", own.reason, ""),
            Err((reason, message)) => ("False", *reason, message.as_str()),
        };
        let known = before.iter().find(|it| is_of(it, own.kind));
        let since = known.filter(|it| it["status"] == status);
        let since = since.and_then(|it| it["lastTransitionTime"].as_str());
        json!({
            "type": own.kind, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since.unwrap_or(now),
        })
    });
    own.chain(foreign.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_changes_with_what_is_said_and_conditions_of_others_stay() {
        let says: Says = Err(("Pending", "why".to_owned()));
        let condition = |says| Condition {
            kind: "Accepted",
            reason: "Accepted",
            says,
        };
        let first = conditions(&[condition(&says)], 1, &Value::Null, "t1");
        assert_eq!(
            first,
            json!([{"type": "Accepted", "status": "False", "reason": "Pending", "message": "why",
                "observedGeneration": 1, "lastTransitionTime": "t1"}])
        );
        let mut before = first;
        before
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "Theirs"}));
        let same = conditions(&[condition(&says)], 2, &before, "t2");
        assert_eq!(same[0]["lastTransitionTime"], "t1");
        assert_eq!(same[0]["observedGeneration"], 2);
        assert_eq!(same[1], json!({"type": "Theirs"}));
        let differs = conditions(&[condition(&Ok(()))], 2, &before, "t3");
        assert_eq!(differs[0]["lastTransitionTime"], "t3");
        assert_eq!(differs[0]["reason"], "Accepted");
    }
}
