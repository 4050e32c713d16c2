//! What `check` says of the certificates that listeners show: what is missing or broken is a problem,
//! what clients would refuse is a warning.

use std::time::SystemTime;

use crate::command::check::seen::Seen;
use crate::config::settings::Config;
use crate::discovery::secrets::MISSING;

/// Looks at the certificates of all listeners. The files could be read when the configuration was.
pub(super) fn look(config: &Config, seen: &mut Seen, now: SystemTime) {
    for listener in &config.listeners {
        let (subject, Some(tls)) = (format!("listener {}", listener.name), &listener.tls) else {
            continue;
        };
        for pair in &tls.certificates {
            let read = pair.load().and_then(|read| pair.parse(&read));
            if let Some(doubt) = read.ok().and_then(|it| it.is_doubtful(now)) {
                let file = pair.certificate.display();
                seen.warnings.push(format!("{subject}: {file}: {doubt}"));
            }
        }
        for secret in &tls.secrets {
            match seen.contents.certificates.get(secret) {
                Some(Ok(found)) => {
                    if let Some(doubt) = found.is_doubtful(now) {
                        seen.warnings
                            .push(format!("{subject}: Secret {secret}: {doubt}"));
                    }
                }
                Some(Err(error)) => {
                    let error = format!("Secret {secret}: {error}");
                    seen.problem(&subject, error);
                }
                None => seen.problem(&subject, format!("Secret {secret}: {MISSING}")),
            }
        }
    }
}
