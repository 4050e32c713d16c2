//! What this process takes of the machine: descriptors, memory, processor time, and when it began.
//!
//! Invariant: the names are those that Prometheus' client libraries give to each process, and that
//! kube-proxy has, so a dashboard of processes shows Ebbtide without a change. A figure that the
//! kernel does not tell is left out: it is never 0 instead.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Writes the metrics of this process, which began at `started`.
pub(super) fn write(text: &mut String, started: SystemTime) {
    let mut family = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        }
    };
    let begin = started.duration_since(UNIX_EPOCH).ok();
    family(
        "process_start_time_seconds",
        "gauge",
        "When the process began, in seconds since 1970.",
        begin.map(|it| it.as_secs_f64()),
    );
    family(
        "process_cpu_seconds_total",
        "counter",
        "Processor time of all threads.",
        Some(processor_time().as_secs_f64()),
    );
    family(
        "process_resident_memory_bytes",
        "gauge",
        "Memory in use, with the pages of the program's file.",
        resident().map(|bytes| bytes as f64),
    );
    family(
        "process_open_fds",
        "gauge",
        "Open descriptors.",
        descriptors().map(|count| count as f64),
    );
    family(
        "process_max_fds",
        "gauge",
        "Descriptors that the limit allows.",
        getrlimit(Resource::Nofile)
            .current
            .map(|count| count as f64),
    );
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, nanos) = (time.tv_sec.max(0), time.tv_nsec.max(0));
    Duration::from_secs(seconds as u64) + Duration::from_nanos(nanos as u64)
}

/// In bytes. proc_pid_status(5): `VmRSS` is in kB, which means 1,024 bytes.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// From Linux 6.2 on, the size of the folder is their number (proc_pid_fd(5)). Older ones say 0, and
/// there each is counted.
fn descriptors() -> Option<u64> {
    let folder = "/proc/self/fd";
    match fs::metadata(folder).ok()?.len() {
        0 => Some(fs::read_dir(folder).ok()?.count() as u64),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a metric now.
    fn value(name: &str) -> f64 {
        let mut text = String::new();
        write(&mut text, UNIX_EPOCH + Duration::from_secs(1_000));
        let sample = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        sample.unwrap().parse().unwrap()
    }

    #[test]
    fn they_follow_what_the_process_takes() {
        assert_eq!(value("process_start_time_seconds"), 1_000.0);
        // Other tests of this program open and close files meanwhile, but not this many.
        let before = value("process_open_fds");
        let held: Vec<_> = (0..200)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        let after = value("process_open_fds");
        assert!(after >= before + 100.0, "{before} {after}");
        assert!(value("process_max_fds") >= held.len() as f64);
        assert!(value("process_resident_memory_bytes") > 1e6);
        let before = value("process_cpu_seconds_total");
        while value("process_cpu_seconds_total") <= before {}
    }
}
