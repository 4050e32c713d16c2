//! A process seen from outside: whether it sleeps.

/// Whether none of its threads has anything to do (proc_pid_stat(5), field 3; one without a
/// processor is not asleep).
pub fn is_asleep(pid: u32) -> bool {
    in_state(pid, 'S')
}

/// Whether all of its threads are, by the letter of proc_pid_stat(5).
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
