//! Runs the terminal page: one thread asks the proxy, this one reads keys and draws.
//!
//! Invariant: the terminal has its former modes when [`run`] returns, and when it panics. However many
//! Services there are, the proxy is asked for the histories of those that are drawn only.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use jiff::Timestamp;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::admin::history::History;
use crate::command::pages::Pages;
use crate::command::status::draw;
use crate::command::status::page::{Histories, Page, Picture};
use crate::config::value;

/// How often the proxy is asked.
const TURN: Duration = Duration::from_secs(1);
/// How old a history in the table may be. Of the detail it is asked for in each turn.
const OLD: Duration = Duration::from_secs(5);
/// How long the histories of one turn may take. The others wait for the next one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many histories are asked for at once.
const AT_ONCE: usize = 8;
/// How long a key or an answer waits at most to be seen.
const GLANCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Shows the page until `q`, Ctrl-C, SIGTERM or SIGHUP, or until the terminal is closed.
///
/// # Errors
/// The terminal cannot be read or written.
pub(in crate::command) fn run(runtime: Runtime, pages: Pages) -> anyhow::Result<()> {
    let page = Page::new(pages.to_string());
    let (send, receive) = sync_channel(4);
    let wanted = Arc::new(Wanted::default());
    let asks = wanted.clone();
    std::thread::Builder::new()
        .name("asks".into())
        .spawn(move || runtime.block_on(ask(&pages, &asks, &send)))?;
    in_terminal(|terminal| show(terminal, page, &receive, &wanted))
}

/// Gives `show` the terminal, and the terminal its former modes. A panic gives them back, too.
fn in_terminal(
    show: impl FnOnce(&mut DefaultTerminal) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let ended = ratatui::try_init()
        .context("the terminal cannot be set")
        .and_then(|mut terminal| show(&mut terminal));
    let restored = ratatui::try_restore().context("the terminal cannot be reset");
    ended.and(restored)
}

/// What the asking thread found out.
enum News {
    Picture(Box<Picture>),
    Away(String),
    Histories(Histories),
    /// A signal ends the program.
    End,
}

/// Whose histories the page draws now.
#[derive(Default)]
struct Wanted {
    services: Mutex<Vec<String>>,
    changed: Notify,
}

fn show(
    terminal: &mut DefaultTerminal,
    mut page: Page,
    news: &Receiver<News>,
    wanted: &Wanted,
) -> anyhow::Result<()> {
    let mut is_new = true;
    loop {
        if is_new {
            terminal.draw(|frame| draw::draw(frame, &mut page))?;
            wanted.set(page.wanted());
        }
        if has_gone()? {
            return Ok(());
        }
        is_new = event::poll(Duration::ZERO)?;
        if is_new
            && let Event::Key(key) = event::read()?
            && page.press(key)
        {
            return Ok(());
        }
        loop {
            match news.try_recv() {
                Ok(News::Picture(picture)) => page.take(*picture),
                Ok(News::Away(error)) => page.lose(Timestamp::now(), error),
                Ok(News::Histories(histories)) => page.histories = histories,
                Ok(News::End) => return Ok(()),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => bail!("the thread that asks has ended"),
            }
            is_new = true;
        }
    }
}

/// Waits for a key, but not for long. Returns whether the terminal has been closed: reading its keys would
/// then never end.
fn has_gone() -> anyhow::Result<bool> {
    let keys = io::stdin();
    let mut keys = [PollFd::new(&keys, PollFlags::IN)];
    match rustix::event::poll(&mut keys, Some(&GLANCE)) {
        Ok(_) | Err(Errno::INTR) => Ok(keys[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)),
        Err(error) => Err(error).context("the terminal cannot be read"),
    }
}

/// Asks in turns, and at once when other histories are wanted. Ends when nobody listens.
async fn ask(pages: &Pages, wanted: &Wanted, news: &SyncSender<News>) {
    tokio::spawn(end_by_signal(news.clone()));
    let mut kept = HashMap::new();
    let mut next = Instant::now();
    let mut is_here = false;
    loop {
        if Instant::now() >= next {
            let answer = picture(pages).await;
            is_here = answer.is_ok();
            let found = match answer {
                Ok(picture) => News::Picture(Box::new(picture)),
                Err(error) => News::Away(format!("{error:#}")),
            };
            if news.send(found).is_err() {
                return;
            }
            next = Instant::now() + TURN;
        }
        if is_here && renew(pages, wanted.get(), &mut kept).await {
            let histories = kept.iter();
            let histories = histories.map(|(name, it)| (name.clone(), it.history.clone()));
            if news.send(News::Histories(histories.collect())).is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            () = wanted.changed.notified() => {}
        }
    }
}

async fn picture(pages: &Pages) -> anyhow::Result<Picture> {
    Ok(Picture {
        status: pages.fetch("/api/v1/status").await?,
        drains: pages.fetch("/api/v1/drains").await?,
        traffic: pages.fetch("/api/v1/history").await.ok(),
        now: Timestamp::now(),
    })
}

struct Kept {
    at: Instant,
    history: Arc<History>,
}

/// Drops the histories that are no longer wanted, and asks for those that are missing or old. Returns
/// whether there is a new one.
async fn renew(pages: &Pages, wanted: Vec<String>, kept: &mut HashMap<String, Kept>) -> bool {
    kept.retain(|name, _| wanted.contains(name));
    let age = if wanted.len() == 1 { TURN / 2 } else { OLD };
    let is_due = |name: &String| kept.get(name).is_none_or(|it| it.at.elapsed() >= age);
    // A name is part of the path, so it has to be one.
    let due = wanted.into_iter().filter(is_due);
    let due: Vec<String> = due.filter(|it| value::service(it).is_ok()).collect();
    let answers = due.into_iter().map(async |name| {
        let path = format!("/api/v1/history?service={name}");
        (name, pages.fetch::<History>(&path).await)
    });
    let mut answers = futures::stream::iter(answers).buffer_unordered(AT_ONCE);
    let end = tokio::time::Instant::now() + PATIENCE;
    let mut is_new = false;
    while let Ok(Some((name, answer))) = tokio::time::timeout_at(end, answers.next()).await {
        // A Service that has just left has none.
        let Ok(history) = answer else { continue };
        let at = Instant::now();
        let history = Arc::new(history);
        kept.insert(name, Kept { at, history });
        is_new = true;
    }
    is_new
}

async fn end_by_signal(news: SyncSender<News>) {
    let kinds = [SignalKind::terminate(), SignalKind::hangup()];
    let [Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    // Fails only if the page has ended.
    let _ = news.send(News::End);
}

impl Wanted {
    fn set(&self, services: Vec<String>) {
        let mut now = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != services {
            *now = services;
            self.changed.notify_one();
        }
    }

    fn get(&self) -> Vec<String> {
        let services = self.services.lock();
        services.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    #[ignore = "needs a terminal; the test below runs it in one"]
    fn panics_in_its_terminal() {
        let shown = in_terminal(|terminal| {
            terminal.draw(|_| ())?;
            panic!("on purpose")
        });
        panic!("it was not shown: {shown:?}");
    }

    /// `script` of util-linux gives the test above a terminal, and `stty` reads its modes.
    #[test]
    fn a_panic_gives_the_terminal_back() {
        let folder = tempfile::tempdir().unwrap();
        let run = format!(
            "cd {} && stty rows 24 cols 80 && stty -a > before\n\
             {} --exact command::status::watch::tests::panics_in_its_terminal --ignored --nocapture\n\
             stty -a > after",
            folder.path().display(),
            std::env::current_exe().unwrap().display(),
        );
        let script = Command::new("script")
            .args(["--quiet", "--flush", "--command", &run, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::null())
            .output()
            .expect("script of util-linux");
        let output = String::from_utf8_lossy(&script.stdout);
        let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(output.contains("on purpose"), "{output}");
        assert_eq!(file("before"), file("after"), "{output}");
        let (on, off) = (output.find("\x1b[?1049h"), output.rfind("\x1b[?1049l"));
        assert!(on.is_some() && on < off, "{output:?}");
    }
}
