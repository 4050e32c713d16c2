//! The state of a process, seen from outside through `/proc`: its open descriptors, its processor time.
//! Its memory is in `memory.rs`. Nothing here asks the process itself, so a process that hangs can be
//! measured, too. Whether a process sleeps is in `tests/hostile/idle.rs`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub fn open_descriptors(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count() as u64
}

/// Writes a program into `folder` that runs `binary` under a hard limit of descriptors.
pub fn limited(binary: &Path, descriptors: u64, folder: &Path) -> PathBuf {
    script(binary, &format!("ulimit -n {descriptors}"), folder)
}

/// The program after a line of shell, as a script in `folder`.
pub fn script(binary: &Path, line: &str, folder: &Path) -> PathBuf {
    let program = folder.join("ebbtide-script");
    let script = format!("#!/bin/sh\n{line}\nexec '{}' \"$@\"\n", binary.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// The processor time of the process so far, in the kernel's ticks of 10 ms (proc_pid_stat(5),
/// fields 14 and 15).
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

/// How many connections a measurement may open: `most` where descriptors allow it, and `None` where
/// they allow under 4,000, which is too few to measure. The proxy keeps two descriptors for each
/// connection and a reserve. This process needs one for each, and those of other tests.
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
