//! Where, with what and how the bench was run.

use crate::peers::{ALL, Kind};

/// The machine, the command and the versions of the peers.
pub struct Machine {
    /// Facts about the machine and the run, as name and value.
    pub facts: Vec<(String, String)>,
    /// Versions of the peers, as name and value.
    pub versions: Vec<(String, String)>,
}

impl Machine {
    /// Reads the facts. `command` is the command line, `cores` says what runs on which core.
    pub fn look(command: &str, cores: &str) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = file("/proc/cpuinfo");
        let processor = processor
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(": "));
        let memory = file("/proc/meminfo");
        let memory = memory
            .lines()
            .next()
            .and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%d %H:%M UTC")
            .to_string();
        let load = file("/proc/loadavg")
            .split_whitespace()
            .take(3)
            .collect::<Vec<_>>()
            .join(" ");
        let facts = [
            (
                "processor",
                processor.map_or("unknown", |(_, name)| name).to_owned(),
            ),
            ("cores", format!("{count}: {cores}")),
            (
                "memory",
                format!("{:.0} GiB", memory.unwrap_or(0.0) / f64::from(1 << 20)),
            ),
            (
                "kernel",
                file("/proc/sys/kernel/osrelease").trim().to_owned(),
            ),
            ("load before it began", load),
            ("DAMON (see TRIED.md)", damon().to_owned()),
            ("begun", now),
            ("command", format!("`{command}`")),
        ];
        let versions = ALL.into_iter().filter(|kind| *kind != Kind::Direct);
        let versions = versions.map(|kind| (kind.name().to_owned(), kind.version()));
        Self {
            facts: facts
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect(),
            versions: versions.collect(),
        }
    }
}

/// Whether DAMON, which samples memory in the kernel, runs. It takes a core for 4 ms at a time,
/// which is the tail of every latency.
fn damon() -> &'static str {
    let policy = |process: std::fs::DirEntry| {
        let read = |file| std::fs::read_to_string(process.path().join(file)).ok();
        read("comm").filter(|name| name.starts_with("kdamond"))?;
        read("sched")?
            .lines()
            .find(|line| line.starts_with("policy"))?
            .split_whitespace()
            .last()
            .map(str::to_owned)
    };
    match std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .find_map(policy)
    {
        None => "does not run",
        // SCHED_IDLE, sched(7).
        Some(policy) if policy == "5" => "runs at idle priority",
        Some(_) => "**runs, and takes a core for milliseconds**",
    }
}
