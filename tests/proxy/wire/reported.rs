//! What was reported publicly of other proxies, replayed on this one. [tests/REPORTS.md] is the
//! table of these rows, and a test compares both. A row replays the situation of its report, not
//! the report's program.
//!
//! [tests/REPORTS.md]: ../../REPORTS.md

mod rows;
mod scenes;

use super::responses::playing;
use super::*;

/// One report.
struct Report {
    /// `owner/repository#number`.
    of: &'static str,
    situation: &'static str,
    verdict: Verdict,
    replay: Replay,
}

enum Verdict {
    /// It does not happen here.
    Holds,
    /// It happened here, too, until the report was replayed.
    Fixed,
    /// The same happens here, for this reason.
    OnPurpose(&'static str),
}

enum Replay {
    /// A request (`{}` is its target), the endpoint's answer, whether the endpoint then ends its
    /// connection, and what the client gets. The client's next request is served.
    Answer(&'static str, String, Option<End>, Gets),
    /// A request, what the endpoint sees of it, or the status and the reason of a refusal.
    Request(&'static str, Sees),
    /// A scene of its own.
    Scene(fn() -> Scene),
}

type Scene = std::pin::Pin<Box<dyn Future<Output = ()>>>;

enum Gets {
    Bytes(String),
    /// A 502 with this reason.
    Refused(&'static str),
}

enum Sees {
    /// The request holds this text.
    Text(&'static str),
    /// The request does not hold this text.
    NotText(&'static str),
    Refused(&'static str, &'static str),
}

impl Report {
    /// The row of the table.
    fn row(&self) -> String {
        let (repository, number) = self.of.split_once('#').unwrap();
        let verdict = match self.verdict {
            Verdict::Holds => "holds".to_owned(),
            Verdict::Fixed => "fixed here".to_owned(),
            Verdict::OnPurpose(why) => format!("on purpose: {why}"),
        };
        format!(
            "| [{}](https://github.com/{repository}/issues/{number}) | {} | {verdict} |",
            self.of, self.situation
        )
    }
}

#[tokio::test]
async fn answers_that_other_proxies_spoiled_arrive() {
    let mut answers = Vec::new();
    let rows: Vec<Report> = rows::rows()
        .into_iter()
        .filter(|row| matches!(row.replay, Replay::Answer(..)))
        .collect();
    for row in &rows {
        let Replay::Answer(_, answer, end, _) = &row.replay else {
            unreachable!()
        };
        answers.push((answer.clone(), *end));
    }
    let origin = playing(answers).await;
    let rig = scene(&origin, "").await;
    for (number, row) in rows.iter().enumerate() {
        let Replay::Answer(ask, _, _, gets) = &row.replay else {
            unreachable!()
        };
        let mut client = Wire::connect(&rig).await;
        client.send(ask.replace("{}", &format!("/{number}"))).await;
        match gets {
            Gets::Bytes(bytes) => {
                let got = client.take(bytes.len()).await.unwrap_or_else(|| {
                    panic!("{}: {}", row.of, String::from_utf8_lossy(&client.buffer))
                });
                assert_eq!(&String::from_utf8_lossy(&got), bytes, "{}", row.of);
            }
            Gets::Refused(reason) => {
                let got = client.message().await.unwrap();
                assert!(got.starts_with("HTTP/1.1 502 "), "{}: {got}", row.of);
                assert_eq!(field(&got, "x-ebbtide-reason"), Some(*reason), "{}", row.of);
            }
        }
        client.assert_alive(row.of).await;
    }
    assert!(rows.len() >= 20, "{}", rows.len());
}

#[tokio::test]
async fn requests_that_other_proxies_spoiled_arrive() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "").await;
    for row in rows::rows() {
        let Replay::Request(ask, sees) = &row.replay else {
            continue;
        };
        let mut client = Wire::connect(&rig).await;
        client.send(ask).await;
        let got = client.message().await.unwrap();
        let seen = origin.seen().pop().unwrap_or_default();
        match sees {
            Sees::Text(text) => assert!(seen.contains(text), "{}: {seen}", row.of),
            Sees::NotText(text) => assert!(!seen.contains(text), "{}: {seen}", row.of),
            Sees::Refused(status, reason) => {
                assert!(
                    got.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{}: {got}",
                    row.of
                );
                assert_eq!(field(&got, "x-ebbtide-reason"), Some(*reason), "{}", row.of);
                continue;
            }
        }
        assert_eq!(got, OK, "{}", row.of);
        client.assert_alive(row.of).await;
    }
}

#[tokio::test]
async fn scenes_that_other_proxies_spoiled_play_to_their_end() {
    for row in rows::rows() {
        if let Replay::Scene(scene) = row.replay {
            println!("replaying {}: {}", row.of, row.situation);
            scene().await;
        }
    }
}

/// With `EBBTIDE_WRITE=1`, the test writes the table.
#[test]
fn the_page_has_a_row_for_each_report() {
    const MARK: &str = "|---|---|---|\n";
    let rows = rows::rows();
    let table: String = rows.iter().map(|row| row.row() + "\n").collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/REPORTS.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (head, _) = page.split_once(MARK).unwrap();
    let expected = format!("{head}{MARK}{table}");
    if std::env::var_os("EBBTIDE_WRITE").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap();
    assert_eq!(
        page, expected,
        "tests/REPORTS.md is not the table of tests/proxy/wire/reported"
    );
    let mut names: Vec<&str> = rows.iter().map(|row| row.of).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), rows.len(), "a report stands twice");
    assert!(rows.len() >= 40, "{} reports", rows.len());
}
