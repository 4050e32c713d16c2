//! A configuration file. It gives values within their bounds, or an error of one line that names
//! the place.
#![no_main]

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use ebbtide::config::settings::Config;
use ebbtide::contract::policy::Transport;
use libfuzzer_sys::fuzz_target;

/// The path of the configuration file. Its folder has a folder of manifests, because most
/// configurations name one, and without it none of them would be valid.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join("ebbtide-fuzz");
    std::fs::create_dir_all(folder.join("manifests")).expect("the temporary folder can be written");
    folder.join("ebbtide.yaml")
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::parse(text, &FILE) {
        Ok(config) => {
            assert_eq!(Config::parse(text, &FILE).as_ref(), Ok(&config));
            bounded(&config);
        }
        Err(error) => {
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
            assert!(
                error
                    .line
                    .is_none_or(|line| line as usize <= text.split(['\n', '\r']).count()),
                "{error:?}"
            );
            assert!(error.line != Some(0) && !error.what.is_empty(), "{error:?}");
        }
    }
});

/// The bounds of docs/reference.md.
fn bounded(config: &Config) {
    let (times, limits, day) = (
        &config.timeouts,
        &config.limits,
        Duration::from_secs(24 * 3600),
    );
    for time in [
        times.connect,
        times.head,
        times.client_idle,
        times.upstream_idle,
        times.upstream_silence,
    ]
    .into_iter()
    .chain(times.request)
    .chain(times.tunnel_idle)
    {
        assert!(!time.is_zero() && time <= 30 * day, "{times:?}");
    }
    assert!(
        [
            times.hold,
            limits.hold_timeout,
            times.drain,
            times.lame_duck,
            times.shutdown
        ]
        .iter()
        .all(|time| *time <= day),
        "{times:?}"
    );
    assert!(
        (1 << 10..=1 << 20).contains(&limits.head_size) && (1..=1_000).contains(&limits.headers),
        "{limits:?}"
    );
    assert!(
        (1..=1_000_000).contains(&limits.connections) && limits.held <= 1_000_000,
        "{limits:?}"
    );
    assert!(limits.replay_body <= 16 << 20, "{limits:?}");
    assert!((1..=1_024).contains(&config.workers.get()));
    assert!(
        (1..=10).contains(&config.retry.attempts) && config.retry.budget_percent <= 100,
        "{:?}",
        config.retry
    );
    let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
    addresses.insert((Transport::Tcp, config.admin));
    for listener in &config.listeners {
        assert!(
            names.insert(&listener.name) && !listener.name.contains(char::is_control),
            "{listener:?}"
        );
        assert!(
            listener.address.port() == 0
                || addresses.insert((listener.transport(), listener.address)),
            "{listener:?}"
        );
    }
}
