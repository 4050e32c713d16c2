//! Processes that cannot outlive the bench, each on its cores.
//!
//! Each one is this binary again, as `guard CORES -- PROGRAM …`, in its own process group. The
//! guard starts the program and holds one end of a pipe; the bench holds the other. When the bench
//! closes the pipe or ends, the guard kills the whole group, including workers that the program has
//! forked. No other program is needed to pin processes to cores.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Signal, getpid, kill_process_group};
use rustix::thread::{CpuSet, sched_setaffinity};

use std::collections::BTreeSet;
use std::fs::read_to_string;

/// A running program. It is killed with all its children when dropped.
pub struct Guard {
    guard: Child,
}

impl Guard {
    /// Starts a program. Its output goes to `log`.
    pub fn start(
        cores: &[usize],
        program: &Path,
        arguments: &[String],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = command(cores, program, arguments)?;
        command.stdout(out.try_clone()?).stderr(out);
        let guard = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { guard })
    }

    /// The program and its children.
    pub fn pids(&self) -> Vec<u32> {
        descendants(self.guard.id())
    }

    /// Whether the program has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.guard.try_wait(), Ok(None))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// The program fails or does not end within `at_most`.
pub fn run(
    cores: &[usize],
    program: &Path,
    arguments: &[String],
    at_most: Duration,
) -> anyhow::Result<String> {
    let mut command = command(cores, program, arguments)?;
    let mut guard = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (mut out, mut err) = (
        guard.stdout.take().context("stdout")?,
        guard.stderr.take().context("stderr")?,
    );
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = guard.try_wait()? {
            break Some(status);
        }
        if begun.elapsed() > at_most {
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    drop(guard.stdin.take());
    let _ = guard.wait();
    let text = reader
        .join()
        .map_err(|_| anyhow::anyhow!("its output could not be read"))??;
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => {
            bail!(
                "{} ended with {status}: {}",
                program.display(),
                errors.join().unwrap_or_default().trim()
            )
        }
        None => bail!("{} did not end within {at_most:?}", program.display()),
    }
}

/// The command `guard CORES -- PROGRAM …`, not started yet. The guard's standard input is the pipe.
pub fn command(cores: &[usize], program: &Path, arguments: &[String]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["guard", &list(cores), "--"])
        .arg(program)
        .args(arguments);
    command.stdin(Stdio::piped()).process_group(0);
    Ok(command)
}

/// Cores as an argument: `0,1`.
pub fn list(cores: &[usize]) -> String {
    cores
        .iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// Lets this thread, and all threads that it will start, run on these cores only.
pub fn pin(cores: &[usize]) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).context("sched_setaffinity")
}

/// The process `guard`.
pub fn main(cores: &[usize], program: &[String]) -> anyhow::Result<ExitCode> {
    pin(cores)?;
    ebbtide::net::socket::raise_descriptor_limit();
    let (name, arguments) = program.split_first().context("guard: no program")?;
    let mut child = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| name.clone())?;
    std::thread::spawn(|| {
        // Nothing is ever written into the pipe, so this returns when the bench ends or closes the
        // pipe.
        let _ = std::io::stdin().read(&mut [0]);
        let _ = kill_process_group(getpid(), Signal::KILL);
    });
    let status = child.wait()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The children of a process, their children, and so on; not the process itself.
pub fn descendants(of: u32) -> Vec<u32> {
    let mut found = BTreeSet::new();
    let mut open = vec![of];
    while let Some(pid) = open.pop() {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let children = read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children
                .split_whitespace()
                .filter_map(|text| text.parse().ok())
            {
                if found.insert(child) {
                    open.push(child);
                }
            }
        }
    }
    found.into_iter().collect()
}
