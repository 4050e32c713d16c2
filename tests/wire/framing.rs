//! Message framing through the whole proxy (contract 4): tables of requests and responses in every
//! delivery, what other parsers read in the forwarded bytes, and public corpora where they have
//! been fetched. The parser alone is tested in `http_table.rs`.

mod corpora;
mod differential;
mod differential_responses;
mod lane;
mod nginx;
mod requests;
mod responses;
mod seeds;

use std::collections::BTreeMap;
use std::rc::Rc;

use lane::{Lane, Tally};

/// How many proxies work at the same time, each with an endpoint of its own.
const LANES: usize = 12;

/// Every request of the table, in each of the [`lane::Way`]s.
#[tokio::test]
async fn every_request_of_the_table_has_its_verdict_however_it_is_split() {
    let cases: Vec<Rc<requests::Case>> = requests::cases().into_iter().map(Rc::new).collect();
    unique(cases.iter().map(|case| (case.name, &case.input[..])));
    let tally = over_lanes(&cases, async |lane, case, tally| {
        lane.request(case, tally).await
    })
    .await;
    let part =
        |of: fn(&requests::Verdict) -> bool| cases.iter().filter(|case| of(&case.verdict)).count();
    println!(
        "FIGURE framing requests: {} cases ({} valid, {} malformed, {} cut short), {} runs through the proxy ({}): malformed \
         forwarded {}, valid refused {}, other differences {}",
        cases.len(),
        part(|verdict| matches!(verdict, requests::Verdict::Forwarded { .. })),
        part(|v| matches!(
            v,
            requests::Verdict::Refused { .. } | requests::Verdict::Cut { .. }
        )),
        part(|verdict| matches!(verdict, requests::Verdict::Abandoned { .. })),
        tally.runs,
        tally.ways(),
        tally.count("forwarded"),
        tally.count("refused"),
        tally.count("differs"),
    );
    tally.assert_clean();
}

/// Every response of the table, in each of the [`lane::Way`]s.
#[tokio::test]
async fn every_response_of_the_table_has_its_verdict_however_it_is_split() {
    let cases: Vec<Rc<responses::Case>> = responses::cases().into_iter().map(Rc::new).collect();
    unique(cases.iter().map(|case| (case.name, &case.input[..])));
    let tally = over_lanes(&cases, async |lane, case, tally| {
        lane.response(case, tally).await
    })
    .await;
    let part =
        |of: fn(&responses::Verdict) -> bool| cases.iter().filter(|case| of(&case.verdict)).count();
    println!(
        "FIGURE framing responses: {} cases ({} malformed or truncated), {} runs through the proxy ({}): malformed forwarded {}, \
         valid refused {}, other differences {}",
        cases.len(),
        part(|verdict| matches!(
            verdict,
            responses::Verdict::Refused(_) | responses::Verdict::Cut(..)
        )),
        tally.runs,
        tally.ways(),
        tally.count("forwarded"),
        tally.count("refused"),
        tally.count("differs"),
    );
    tally.assert_clean();
}

/// Shares the cases among the lanes.
async fn over_lanes<C: 'static>(
    cases: &[Rc<C>],
    run: impl AsyncFn(&mut Lane, &C, &mut Tally) + Copy + 'static,
) -> Tally {
    let local = tokio::task::LocalSet::new();
    let queue = Rc::new(std::cell::RefCell::new(cases.to_vec()));
    let tasks: Vec<_> = (0..LANES)
        .map(|_| {
            let queue = queue.clone();
            local.spawn_local(async move {
                let (mut lane, mut tally) = (Lane::start().await, Tally::default());
                loop {
                    let Some(case) = queue.borrow_mut().pop() else {
                        break;
                    };
                    run(&mut lane, &case, &mut tally).await;
                }
                lane.nothing_stray(&mut tally);
                tally
            })
        })
        .collect();
    local
        .run_until(async {
            let mut whole = Tally::default();
            for task in tasks {
                whole.add(task.await.unwrap());
            }
            whole
        })
        .await
}

/// A name must be unique. A case whose bytes are in the table twice would count twice, so it is
/// reported.
fn unique<'a>(cases: impl Iterator<Item = (&'static str, &'a [u8])>) {
    let (mut names, mut inputs) = (BTreeMap::new(), BTreeMap::new());
    for (name, input) in cases {
        assert!(
            names.insert(name, ()).is_none(),
            "two cases have the name {name:?}"
        );
        if let Some(other) = inputs.insert(input, name) {
            println!("the same bytes twice: {name:?}, {other:?}");
        }
    }
    assert!(names.len() > 80);
}

/// `text` with each `mark` replaced by `what`.
fn with(text: &[u8], mark: &str, what: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + what.len());
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(mark.as_bytes()) {
            out.extend_from_slice(what);
            at += mark.len();
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

fn show(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    if text.len() > 600 {
        format!("{}… ({} bytes)", &text[..600], bytes.len())
    } else {
        text
    }
}
