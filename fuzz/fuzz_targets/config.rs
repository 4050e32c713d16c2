//! A configuration file: real, bounded values, or one line that names the fault's place.
#![no_main]

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use ebbtide::config::settings::Config;
use libfuzzer_sys::fuzz_target;

/// In a folder with a folder of manifests, as most configurations name it: without it none would be good.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join("ebbtide-fuzz");
    std::fs::create_dir_all(folder.join("manifests")).expect("a temporary folder");
    folder.join("ebbtide.yaml")
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, &FILE) {
        Ok(config) => {
            assert_eq!(Config::parse(text, &FILE).as_ref(), Ok(&config));
            bounded(&config);
        }
        Err(error) => {
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
            assert!(error.line.is_none_or(|line| line as usize <= text.split(['\n', '\r']).count()), "{error:?}");
            assert!(error.line != Some(0) && !error.what.is_empty(), "{error:?}");
        }
    }
});

/// As the reference in `README.md` says.
fn bounded(config: &Config) {
    let (times, limits, day) = (&config.timeouts, &config.limits, Duration::from_secs(24 * 3600));
    for time in [times.connect, times.head, times.client_idle, times.upstream_idle].into_iter().chain(times.request) {
        assert!(!time.is_zero() && time <= 30 * day, "{times:?}");
    }
    assert!([times.hold, times.drain, times.lame_duck, times.shutdown].iter().all(|time| *time <= day), "{times:?}");
    assert!((1 << 10..=1 << 20).contains(&limits.head_size) && (1..=1_000).contains(&limits.headers), "{limits:?}");
    assert!((1..=1_000_000).contains(&limits.connections) && limits.held <= 1_000_000, "{limits:?}");
    assert!(limits.replay_body <= 16 << 20, "{limits:?}");
    assert!((1..=1_024).contains(&config.workers.get()));
    assert!((1..=10).contains(&config.retry.attempts) && config.retry.budget_percent <= 100, "{:?}", config.retry);
    let (mut names, mut addresses) = (HashSet::new(), HashSet::from([config.admin]));
    for listener in &config.listeners {
        assert!(names.insert(&listener.name) && !listener.name.contains(char::is_control), "{listener:?}");
        assert!(listener.address.port() == 0 || addresses.insert(listener.address), "{listener:?}");
    }
}
