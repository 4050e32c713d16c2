//! Processes that the demo and the tests start: this same binary, as a child that cannot outlive
//! its parent.
//!
//! A child is killed when its handle is dropped. If the parent itself is killed, the kernel kills
//! the child. Each child has its own process group, so Ctrl-C on a terminal reaches only the demo,
//! which then ends its children in order.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// The command `binary sample-app --parent <this process>`. The caller adds the sample
/// application's arguments.
///
/// For the kernel, the parent is the *thread* that spawns. Spawn from a thread that lives as long
/// as the child must live.
pub fn sample_app(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["sample-app", "--parent", &std::process::id().to_string()]);
    command
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// The command `binary <arguments>`, started through the sample application's `--exec`. So any
/// subcommand ends with this process.
pub fn ebbtide(binary: &Path) -> Command {
    let mut command = sample_app(binary);
    command.arg("--exec");
    command
}

/// Sends a signal to a child. Does nothing if the child was waited for already.
pub fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        // ESRCH cannot happen before the child was waited for, and then there is nothing to do.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Called in the child: from now on the kernel sends SIGKILL when the parent ends.
///
/// # Errors
/// The kernel refuses, or the parent has already ended.
pub fn die_with(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("PR_SET_PDEATHSIG")?;
    // The parent may have ended before the line above.
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned())
        != Some(parent)
    {
        bail!("the process that started this one ({parent}) has ended");
    }
    Ok(())
}

/// Called in the child: becomes `ebbtide <arguments>`. The death signal stays set over the exec.
/// Returns only if the exec fails.
pub fn become_ebbtide(arguments: &[String]) -> anyhow::Error {
    let error =
        std::env::current_exe().map(|exe| std::process::Command::new(exe).args(arguments).exec());
    match error {
        Ok(error) | Err(error) => {
            anyhow::Error::new(error).context("cannot execute the program again")
        }
    }
}
