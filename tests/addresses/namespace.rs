//! A test in a network namespace of its own, with the rights of its root: the test program starts
//! itself again inside, for that one test.

use std::process::Command;

/// Whether the caller shall run its test now, because it is inside. Outside, this runs the test
/// inside and passes its failure on. Where namespaces are not allowed, it says that the test is
/// skipped.
pub fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        ip(&["link", "set", "lo", "up"]);
        // A kernel without nf_tables does not even know the number of its last change.
        if let Err(error) = ebbtide::net::netlink::last_change() {
            println!("SKIPPED: {test}: this kernel has no nf_tables ({error})");
            return false;
        }
        return true;
    }
    let unshare = ["--net", "--mount"];
    let allowed = Command::new("unshare").args(unshare).arg("true").output();
    if !allowed.is_ok_and(|it| it.status.success()) {
        println!("SKIPPED: {test}: unshare --net is not allowed here: it needs root");
        return false;
    }
    let run = Command::new("unshare")
        .args(unshare)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "yes")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{test} inside its namespace:\n{text}");
    // A name without a test would pass.
    assert!(text.contains("1 passed"), "{text}");
    for line in text
        .lines()
        .filter(|line| line.contains("FIGURE") || line.contains("SKIPPED"))
    {
        println!("{line}");
    }
    false
}

/// Runs `ip` with these arguments.
pub fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).status().unwrap();
    assert!(done.success(), "ip {}", arguments.join(" "));
}

const INSIDE: &str = "EBBTIDE_TEST_INSIDE";
