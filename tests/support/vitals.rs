//! A process seen from outside: what it has open, what it has written to, how busy it is.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub fn open_descriptors(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count() as u64
}

/// A program in `folder` that runs `binary` under a hard limit of descriptors.
pub fn limited(binary: &Path, descriptors: u64, folder: &Path) -> PathBuf {
    let program = folder.join("ebbtide-limited");
    let script = format!(
        "#!/bin/sh\nulimit -n {descriptors}\nexec '{}' \"$@\"\n",
        binary.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// Processor time of the process so far, in the kernel's ticks of 10 ms (proc_pid_stat(5), fields
/// 14 and 15).
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    Duration::from_millis(
        10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()),
    )
}

/// What a process itself has written to (proc_pid_status(5)): not its code, which other processes
/// of it share or do not. Its pages are not looked through for it, as for `smaps`, which takes a
/// processor for a millisecond.
pub fn own_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// How many connections may be opened for a measurement: `most` where descriptors allow it, and
/// `None` where that is under 4,000, which is too few to measure. The proxy keeps two descriptors
/// for each and a reserve; this process one for each, and what other tests need.
pub fn room_for(most: usize) -> Option<usize> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
    let hard = maximum.map_or(usize::MAX, |maximum| maximum as usize);
    let count = (hard.saturating_sub(1_024) / 2).min(most);
    (count >= 4_000).then_some(count)
}
