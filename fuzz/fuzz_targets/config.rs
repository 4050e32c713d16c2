//! A configuration file: real, bounded values, or one line that names the fault's place.
#![no_main]

use std::path::Path;

use ebbtide::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("/ebbtide.yaml")) {
        Ok(config) => {
            assert_eq!(Config::parse(text, Path::new("/ebbtide.yaml")).expect("the same text"), config);
            assert!(config.limits.headers > 0 && config.limits.head_size > 0);
        }
        Err(error) => {
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
            assert!(error.line.is_none_or(|line| line as usize <= text.split(['\n', '\r']).count()), "{error:?}");
        }
    }
});
