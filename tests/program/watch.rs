//! `ebbtide status --watch`: the built program in a pseudo-terminal beside a running proxy. Keys go in as
//! a person types them, and what the program writes is put on a screen as a terminal does. In a pipe
//! it is plain text.
//!
//! `script` of util-linux makes the pseudo-terminal its session's terminal, and `stty` reads its modes.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebbtide::command::demo::proxy::Proxy;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::support::binary::BINARY;
use crate::support::wait::{eventually, soon};

/// A proxy with the Services `web/alpha` and `web/beta`, which have an endpoint each.
async fn proxy(folder: &Path) -> Proxy {
    let manifests = folder.join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    for (name, address) in [("alpha", "127.0.0.2"), ("beta", "127.0.0.3")] {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{namespace: web, name: {name}}}, spec: {{ports: [{{port: 80}}]}}}}\n\
             ---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{port: 8080}}],\n\
             metadata: {{namespace: web, name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}},\n\
             endpoints: [{{addresses: [{address}]}}]}}\n"
        );
        std::fs::write(manifests.join(format!("{name}.yaml")), text).unwrap();
    }
    let config = format!(
        "discovery: {{files: {{path: '{}'}}}}\nadmin: {{address: '127.0.0.1:0'}}\n\
         listeners: [{{name: a, address: '127.0.0.1:0', service: web/alpha, port: 80}},\n\
         {{name: b, address: '127.0.0.1:0', service: web/beta, port: 80}}]\n",
        manifests.display()
    );
    Proxy::start(BINARY.as_ref(), folder, &config, &[])
        .await
        .unwrap()
}

/// The program in a pseudo-terminal of 24 lines with 100 columns.
struct Terminal<'a> {
    script: Child,
    keys: ChildStdin,
    output: Arc<Mutex<Vec<u8>>>,
    folder: &'a Path,
}

impl<'a> Terminal<'a> {
    fn start(folder: &'a Path, proxy: &Proxy) -> Self {
        let run = format!(
            "cd {} && stty rows 24 cols 100 && stty -a > before && tty > tty\n\
             {BINARY} status --watch --admin {} & echo $! > pid; fg > /dev/null\n\
             echo $? > code; stty -a > after",
            folder.display(),
            proxy.admin
        );
        let mut script = Command::new("script")
            .args(["--quiet", "--flush", "--command"])
            .args([&format!("set -m\n{run}"), "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("script of util-linux");
        let mut stdout = script.stdout.take().unwrap();
        let output = Arc::new(Mutex::new(Vec::new()));
        let written = output.clone();
        tokio::spawn(async move {
            let mut some = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut some).await {
                written.lock().unwrap().extend(&some[..length]);
            }
        });
        let keys = script.stdin.take().unwrap();
        Self {
            script,
            keys,
            output,
            folder,
        }
    }

    async fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.unwrap();
        self.keys.flush().await.unwrap();
    }

    /// Waits for a screen that is as expected.
    async fn shows(&self, what: &str, expected: impl Fn(&str) -> bool) {
        let fits = async || expected(&self.screen());
        let seen = tokio::time::timeout(Duration::from_secs(50), eventually(what, fits)).await;
        assert!(seen.is_ok(), "{what}:\n{}", self.screen());
    }

    async fn resize(&self, lines: u16, columns: u16) {
        let sizes = ["rows", &lines.to_string(), "cols", &columns.to_string()].map(str::to_owned);
        let stty = Command::new("stty")
            .arg("-F")
            .arg(self.file("tty").trim())
            .args(sizes)
            .status();
        assert!(stty.await.unwrap().success());
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap()
    }

    fn screen(&self) -> String {
        screen(&self.output.lock().unwrap())
    }

    /// Waits for the end. The terminal is as it was, and the exit code is 0.
    async fn ended(mut self) {
        soon("the end of the program", self.script.wait())
            .await
            .unwrap();
        assert_eq!(self.file("code").trim(), "0", "{}", self.screen());
        assert_eq!(self.file("before"), self.file("after"));
        let output = String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned();
        for (on, off) in [("\x1b[?1049h", "\x1b[?1049l"), ("\x1b[?25l", "\x1b[?25h")] {
            let (on, off) = (output.rfind(on), output.rfind(off));
            assert!(on.is_some() && on < off, "{on:?} {off:?}");
        }
    }
}

/// A test that fails leaves no program running, not even one that ignores the end of its terminal.
impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.folder.join("pid")).unwrap_or_default();
        let is_ours = std::fs::read_link(format!("/proc/{}/exe", pid.trim()));
        let is_ours = is_ours.is_ok_and(|it| it == Path::new(BINARY));
        if let (true, Ok(pid)) = (is_ours, pid.trim().parse().map(Pid::from_raw)) {
            pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

/// The screen after these bytes: text, moves of the cursor, and the erasing of the whole.
fn screen(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = vec![vec![' '; 200]; 100];
    let (mut line, mut column) = (0, 0);
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        if letter != '\x1b' {
            if let Some(place) = lines
                .get_mut(line)
                .and_then(|it: &mut Vec<char>| it.get_mut(column))
            {
                *place = letter;
            }
            column += 1;
            continue;
        }
        if rest.next() != Some('[') {
            continue;
        }
        let mut numbers = String::new();
        let end = rest.by_ref().find(|it| {
            let is_end = it.is_ascii_alphabetic();
            if !is_end {
                numbers.push(*it);
            }
            is_end
        });
        match (end, &*numbers) {
            (Some('H'), place) => {
                let (l, c) = place.split_once(';').unwrap_or(("1", "1"));
                let at = |it: &str| it.parse::<usize>().unwrap() - 1;
                (line, column) = (at(l), at(c));
            }
            (Some('J'), "2") => lines.iter_mut().for_each(|it| it.fill(' ')),
            _ => {}
        }
    }
    let lines = lines.iter().map(|it| it.iter().collect::<String>());
    let lines: Vec<String> = lines.map(|it| it.trim_end().to_owned()).collect();
    lines.join("\n").trim_end().to_owned()
}

#[tokio::test]
async fn keys_move_the_page_and_the_terminal_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = proxy(folder.path()).await;
    let mut terminal = Terminal::start(folder.path(), &proxy);
    let both = |it: &str| it.contains("web/alpha") && it.contains("web/beta");
    terminal.shows("both Services", both).await;
    terminal.press("/BET").await;
    let only = |it: &str| it.contains("web/beta") && !it.contains("web/alpha");
    terminal
        .shows("the Service that the filter names", only)
        .await;
    terminal.press("\x1b").await;
    terminal.shows("both Services again", both).await;

    // Down, Enter: the endpoints and the history of the second one.
    terminal.press("\x1b[B\r").await;
    let detail = |it: &str| {
        it.contains("127.0.0.3:8080") && !it.contains("alpha") && it.contains("requests/s 0")
    };
    terminal.shows("the detail of web/beta", detail).await;
    terminal.resize(5, 20).await;
    let small = |it: &str| it.lines().count() == 5 && it.lines().all(|it| it.chars().count() <= 20);
    terminal.shows("a small screen", small).await;
    terminal.resize(24, 100).await;
    terminal.shows("the detail of web/beta again", detail).await;
    terminal.press("\x1b").await;
    terminal.shows("the table again", both).await;

    proxy.stop(Duration::from_secs(20)).await.unwrap();
    let away = |it: &str| it.starts_with("away since ") && both(it);
    terminal
        .shows("the last picture, and that the proxy is away", away)
        .await;
    terminal.press("q").await;
    terminal.ended().await;
}

#[tokio::test]
async fn control_c_and_sigterm_give_the_terminal_back_too() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = proxy(folder.path()).await;
    let shown = |it: &str| it.contains("web/alpha");
    let mut terminal = Terminal::start(folder.path(), &proxy);
    terminal.shows("the page", shown).await;
    terminal.press("\x03").await;
    terminal.ended().await;

    let terminal = Terminal::start(folder.path(), &proxy);
    terminal.shows("the page", shown).await;
    let pid: i32 = terminal.file("pid").trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    terminal.ended().await;
}

/// Also if no signal says that the terminal has gone.
#[tokio::test]
async fn with_its_terminal_the_program_ends() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = proxy(folder.path()).await;
    let mut terminal = Terminal::start(folder.path(), &proxy);
    let shown = |it: &str| it.contains("web/alpha");
    terminal.shows("the page", shown).await;
    terminal.script.kill().await.unwrap();
    let program = format!("/proc/{}/exe", terminal.file("pid").trim());
    let has_ended = async || std::fs::read_link(&program).is_err();
    eventually("the end of the program", has_ended).await;
}

#[tokio::test]
async fn in_a_pipe_the_text_comes_again_each_second() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = proxy(folder.path()).await;
    let mut child = Command::new(BINARY)
        .args(["status", "--watch", "--admin", &proxy.admin.to_string()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let two = async {
        let mut pictures = 0;
        while pictures < 2 {
            let line = lines.next_line().await.unwrap().unwrap();
            assert!(!line.contains('\x1b'), "{line:?}");
            pictures += usize::from(line.starts_with("web/beta:80"));
        }
    };
    soon("the second picture", two).await;
}
