//! Whether a process sleeps, seen from outside through `/proc`. The tests use it to wait until the
//! proxy has no work left. A thread that waits for a processor still has work, so a busy machine
//! only makes the wait longer.

/// Whether no thread of the process has anything to do (proc_pid_stat(5), field 3). A thread that
/// waits for a processor is not asleep.
pub fn is_asleep(pid: u32) -> bool {
    in_state(pid, 'S')
}

/// Whether all threads are in this state, by the letter of proc_pid_stat(5).
pub fn in_state(pid: u32, state: char) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok())
        .all(|stat| {
            stat.rsplit_once(')')
                .is_some_and(|(_, fields)| fields.trim_start().starts_with(state))
        })
}
