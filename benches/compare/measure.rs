//! What the kernel reports about a process (processor time, memory, system calls), and how much
//! memory sockets cost in the kernel.

use std::fs::read_to_string;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::peers;

/// Processor time so far, user and kernel, in nanoseconds by the scheduler's clock (the first field
/// of `schedstat`). The time of a thread that has ended is not included, so this is for processes
/// whose threads do not end.
pub fn cpu(pids: &[u32]) -> Duration {
    let thread = |path: &Path| {
        let text = read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    let process = |pid: &u32| {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        Some(
            tasks
                .flatten()
                .filter_map(|task| thread(&task.path()))
                .sum::<u64>(),
        )
    };
    Duration::from_nanos(pids.iter().filter_map(process).sum())
}

/// Bytes that belong only to these processes: written by them, or read from files that no other
/// process has mapped.
pub fn private_bytes(pids: &[u32]) -> u64 {
    let process = |pid: &u32| {
        let text = read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        field(&text, "Private_Clean:") + field(&text, "Private_Dirty:")
    };
    1024 * pids.iter().map(process).sum::<u64>()
}

/// Memory that the kernel holds for the connections of all processes: socket structures,
/// descriptors, epoll entries, and TCP's buffers. Counts by kind of slab if slabs may be read
/// (root), so that files and folders of other programs do not count.
pub fn kernel_bytes() -> u64 {
    const KINDS: [&str; 7] = [
        "TCP",
        "sock_inode_cache",
        "filp",
        "eventpoll_epi",
        "eventpoll_pwq",
        "ep_head",
        "request_sock_TCP",
    ];
    let slabs = read_to_string("/proc/slabinfo").unwrap_or_default();
    let slab = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, active, _, size, ..] = words[..] else {
            return None;
        };
        KINDS
            .contains(&name)
            .then_some(active.parse::<u64>().ok()? * size.parse::<u64>().ok()?)
    };
    let slab = match slabs.is_empty() {
        true => {
            field(
                &read_to_string("/proc/meminfo").unwrap_or_default(),
                "Slab:",
            ) * 1024
        }
        false => slabs.lines().filter_map(slab).sum(),
    };
    let sockets = read_to_string("/proc/net/sockstat").unwrap_or_default();
    let tcp = sockets
        .lines()
        .find(|line| line.starts_with("TCP:"))
        .unwrap_or_default();
    let pages = tcp
        .split_whitespace()
        .skip_while(|word| *word != "mem")
        .nth(1)
        .and_then(|n| n.parse::<u64>().ok());
    slab + pages.unwrap_or(0) * 4096
}

fn field(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// System calls in some time, and the requests that the endpoints answered in that time.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    /// All system calls.
    pub all: u64,
    /// Calls of splice.
    pub splice: u64,
    /// Requests answered.
    pub requests: u64,
}

/// Counts the system calls of processes for `time`. Uses perf, which hardly slows the processes, or
/// else strace, which slows them but counts correctly. `counter` is an endpoint that reports the
/// number of requests.
///
/// # Errors
/// Neither perf nor strace can count here.
pub fn system_calls(pids: &[u32], counter: SocketAddr, time: Duration) -> anyhow::Result<Calls> {
    let list = pids
        .iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(",");
    by_perf(&list, counter, time).or_else(|perf| {
        by_strace(&list, counter, time).map_err(|strace| strace.context(perf.to_string()))
    })
}

/// perf counts from the start to the end of a command, so the command is the `window` of this
/// bench.
fn by_perf(pids: &str, counter: SocketAddr, time: Duration) -> anyhow::Result<Calls> {
    let events = "raw_syscalls:sys_enter,syscalls:sys_enter_splice";
    let mut command = Command::new("perf");
    command
        .args(["stat", "-x,", "-e", events, "-p", pids, "--"])
        .arg(std::env::current_exe()?);
    command.args([
        "window",
        &counter.to_string(),
        &time.as_secs_f64().to_string(),
    ]);
    let output = command.stdin(Stdio::null()).output().context("perf")?;
    let (text, requests) = (
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    let count = |event: &str| {
        let line = text.lines().find(|line| line.contains(event))?;
        line.split(',').next()?.parse::<u64>().ok()
    };
    match (
        count("sys_enter,"),
        count("sys_enter_splice"),
        requests.trim().parse(),
    ) {
        (Some(all), Some(splice), Ok(requests)) => Ok(Calls {
            all,
            splice,
            requests,
        }),
        _ => bail!("perf cannot count system calls here: {}", text.trim()),
    }
}

/// The process `window`: prints how many requests were answered in this many seconds.
pub fn window(counter: SocketAddr, seconds: f64) -> anyhow::Result<()> {
    let before = requests(counter)?;
    std::thread::sleep(Duration::from_secs_f64(seconds));
    println!("{}", requests(counter)? - before);
    Ok(())
}

fn requests(counter: SocketAddr) -> anyhow::Result<u64> {
    Ok(peers::get(counter, "/count")?.trim().parse()?)
}

fn by_strace(pids: &str, counter: SocketAddr, time: Duration) -> anyhow::Result<Calls> {
    let time = time.as_secs_f64().to_string();
    let mut command = Command::new("timeout");
    command.args(["-s", "INT", &time, "strace", "-c", "-f", "-U", "name,calls"]);
    for pid in pids.split(',') {
        command.args(["-p", pid]);
    }
    let before = requests(counter)?;
    let output = command.stdin(Stdio::null()).output().context("strace")?;
    let requests = requests(counter)? - before;
    let text = String::from_utf8_lossy(&output.stderr);
    let count = |name: &str| {
        let mut words = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        words
            .find(|words| words.first() == Some(&name))
            .and_then(|words| words.get(1)?.parse::<u64>().ok())
    };
    match count("total") {
        Some(all) => Ok(Calls {
            all,
            splice: count("splice").unwrap_or(0),
            requests,
        }),
        None => bail!(
            "strace cannot count system calls here: {}",
            text.lines().next_back().unwrap_or_default()
        ),
    }
}
