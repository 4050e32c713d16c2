//! Processes that the demo and the tests start: this very binary, as a child that cannot outlive its parent.
//!
//! A child is killed when its handle is dropped and, should the parent itself be killed, by the kernel. It has a process
//! group of its own, so that Ctrl-C on the terminal reaches the demo alone, which then ends its children in order.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// `binary sample-app --parent <us>`, to be given the sample application's arguments.
///
/// The kernel counts the *thread* that spawns as the parent: spawn from one that lives as long as the child should.
pub fn sample_app(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["sample-app", "--parent", &std::process::id().to_string()]);
    command
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// `binary <arguments>`, by way of the sample application's `--exec`, which is how any subcommand learns of our death.
pub fn ebbtide(binary: &Path) -> Command {
    let mut command = sample_app(binary);
    command.arg("--exec");
    command
}

/// Sends a signal to a child; nothing happens when it has been waited for already.
pub fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        // ESRCH cannot happen before the child is waited for, and after it there is nothing to do.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Called in the child: from now on it gets SIGKILL when its parent ends.
pub fn die_with(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("PR_SET_PDEATHSIG")?;
    // The parent may have ended before the line above.
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned())
        != Some(parent)
    {
        bail!("the process that started this one ({parent}) is gone");
    }
    Ok(())
}

/// Called in the child: becomes `ebbtide <arguments>`. The death signal survives an exec. Returns only on failure.
pub fn become_ebbtide(arguments: &[String]) -> anyhow::Error {
    let error =
        std::env::current_exe().map(|exe| std::process::Command::new(exe).args(arguments).exec());
    match error {
        Ok(error) | Err(error) => {
            anyhow::Error::new(error).context("cannot start the program anew")
        }
    }
}
