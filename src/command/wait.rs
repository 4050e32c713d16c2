//! `ebbtide wait`: returns when every instance has let go of a pod, for scripts and pipelines.
//!
//! It asks one instance, which asks the others. An instance that does not answer is waited for: nobody
//! knows what it has.

use std::time::{Duration, Instant};

use crate::admin::held::{Has, Instances};
use crate::command::pages::Pages;
use crate::contract::name::ObjectName;
use crate::text::{one_line, seconds};

/// Waits until no instance dispatches anything to the pod, and nothing is in flight on it. `url` is the
/// admin address of one of them. Returns who still has the pod after `timeout`, a line for each;
/// nothing: all have let go.
///
/// # Errors
/// A bad URL, no response, or a response that is not Ebbtide's.
pub fn wait(url: &str, pod: &ObjectName, timeout: Duration) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let pages = runtime.block_on(Pages::find(url))?;
    let path = format!("/api/v1/gate/{}/{}", pod.namespace, pod.name);
    let began = Instant::now();
    loop {
        let found: Instances = runtime.block_on(pages.fetch(&path))?;
        let left: Vec<String> = found.instances.iter().filter_map(words).collect();
        if left.is_empty() || began.elapsed() >= timeout {
            return Ok(left);
        }
        std::thread::sleep(AGAIN);
    }
}

/// What an instance still has; `None`: nothing.
fn words(instance: &Has) -> Option<String> {
    let who = match &instance.address {
        Some(address) => one_line(address),
        None => "this instance".to_owned(),
    };
    let what = match instance {
        Has { answers: false, .. } => format!(
            "does not answer within {}: is it running, and has it the same gate.key?",
            seconds(Duration::from_secs(1))
        ),
        Has {
            open: true,
            in_flight,
            ..
        } => {
            format!("has it in rotation, {in_flight} in flight")
        }
        Has { in_flight: 1.., .. } => format!("{} in flight", instance.in_flight),
        _ => return None,
    };
    Some(format!("{who}: {what}"))
}

/// The time between two questions.
const AGAIN: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_pod_is_said_and_who_has_nothing_is_not() {
        let has = |address: Option<&str>, answers, open, in_flight| Has {
            address: address.map(str::to_owned),
            answers,
            open,
            in_flight,
        };
        assert_eq!(words(&has(None, true, false, 0)), None);
        let said = |has: &Has| words(has).unwrap();
        assert_eq!(
            said(&has(None, true, false, 2)),
            "this instance: 2 in flight"
        );
        let open = has(Some("192.0.2.2:9902"), true, true, 0);
        assert_eq!(
            said(&open),
            "192.0.2.2:9902: has it in rotation, 0 in flight"
        );
        assert!(said(&has(None, false, false, 0)).contains("does not answer within 1s"));
    }
}
