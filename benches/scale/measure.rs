//! What the kernel reports about a process: the processor time of its threads, and its memory.

use std::fs::read_to_string;
use std::time::Duration;

/// Processor time so far of a process's threads whose names begin with `name`, by the scheduler's
/// clock.
pub fn thread_cpu(pid: u32, name: &str) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = tasks.into_iter().flatten().flatten().filter_map(|task| {
        let comm = read_to_string(task.path().join("comm")).ok()?;
        let text = read_to_string(task.path().join("schedstat")).ok()?;
        let nanos: u64 = text.split_whitespace().next()?.parse().ok()?;
        comm.starts_with(name).then_some(nanos)
    });
    Duration::from_nanos(threads.sum())
}

/// Bytes that belong only to these processes.
pub fn private_bytes(pids: &[u32]) -> u64 {
    let field = |line: &str| {
        let line = line
            .strip_prefix("Private_Clean:")
            .or(line.strip_prefix("Private_Dirty:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let process = |pid: &u32| -> u64 {
        let text = read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        text.lines().filter_map(field).sum()
    };
    1024 * pids.iter().map(process).sum::<u64>()
}
