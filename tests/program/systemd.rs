//! The service manager is told when the program serves and when it ends, and the unit fits the program.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::support::binary::BINARY;

/// Waits for a message with this line.
fn told(manager: &UnixDatagram, line: &str) -> String {
    let mut buf = [0; 4096];
    for _ in 0..10_000 {
        let n = manager.recv(&mut buf).unwrap();
        let text = String::from_utf8_lossy(&buf[..n]).into_owned();
        if text.lines().any(|it| it == line) {
            return text;
        }
    }
    panic!("no {line}");
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &Path, config: &Path) -> (UnixDatagram, Ended) {
    let at = folder.join("notify");
    let manager = UnixDatagram::bind(&at).unwrap();
    let patience = Some(Duration::from_secs(60));
    manager.set_read_timeout(patience).unwrap();
    let child = Command::new(BINARY)
        .arg("run")
        .arg("--config")
        .arg(config)
        .env("NOTIFY_SOCKET", &at)
        .env("WATCHDOG_USEC", "60000000")
        .spawn()
        .unwrap();
    (manager, Ended(child))
}

#[test]
fn a_manager_is_told_when_the_program_serves_that_it_lives_and_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    let config = folder.path().join("ebbtide.yaml");
    let text = "discovery: {files: {path: manifests}}\nadmin: {address: '127.0.0.1:0'}\ntimeouts: {lameDuck: 500ms, shutdown: 1s}\n\
                listeners: [{name: web, address: '127.0.0.1:0', service: web/shop, port: 80}]\n";
    std::fs::write(&config, text).unwrap();
    let (manager, mut program) = start(folder.path(), &config);
    let ready = told(&manager, "READY=1");
    assert!(ready.lines().any(|it| it == "STATUS=ready"), "{ready}");
    told(&manager, "WATCHDOG=1");
    let id = rustix::process::Pid::from_child(&program.0);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let end = told(&manager, "STOPPING=1");
    assert!(!end.contains("READY=1"), "{end}");
    assert!(program.0.wait().unwrap().success());
}

/// A unit that waits for a word that never comes, or asks for what the program lacks, does not start.
#[test]
fn the_unit_names_what_the_program_has() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let unit = std::fs::read_to_string(root.join("deploy/systemd/ebbtide@.service")).unwrap();
    let value = |key: &str| {
        let lines = unit.lines().filter_map(|line| line.split_once('='));
        let values: Vec<_> = lines
            .filter(|(name, _)| *name == key)
            .map(|it| it.1)
            .collect();
        assert_eq!(values.len(), 1, "{key}");
        values[0]
    };
    assert_eq!(value("Type"), "notify");
    let start: Vec<_> = value("ExecStart").split(' ').collect();
    assert_eq!(start[0], "/usr/bin/ebbtide");
    let help = Command::new(BINARY)
        .args([start[1], "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(
        start[2..]
            .iter()
            .filter(|it| it.starts_with("--"))
            .all(|it| help.contains(it))
    );
    // The defaults of timeouts.lameDuck and timeouts.shutdown, and the second after them.
    let reference = std::fs::read_to_string(root.join("docs/reference.md")).unwrap();
    assert!(reference.contains("deploy/systemd/ebbtide@.service"));
    let stop: u64 = value("TimeoutStopSec").parse().unwrap();
    let defaults = ebbtide::config::settings::Timeouts::default();
    let longest = defaults.lame_duck + defaults.shutdown + Duration::from_secs(1);
    assert!(Duration::from_secs(stop) >= longest, "{longest:?}");
}
