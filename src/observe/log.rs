//! The process's log on standard error: text on a terminal, one JSON object per line elsewhere.
//!
//! Invariant: an event is one line without control characters, whatever its fields hold. Events are
//! few (never one per request), and the thread that logs writes them itself. The access log is in
//! `access_log.rs`.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::{FormatFields, format};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::text::one_line;

/// Starts the log on standard error. `EBBTIDE_LOG` sets the level in tracing's filter syntax, for
/// example `debug` or `info,ebbtide::discovery=trace`; the default is `info`. No effect if a log
/// was started before.
pub fn init() {
    let wanted = std::env::var(LEVEL_VARIABLE)
        .ok()
        .filter(|text| !text.trim().is_empty());
    let (filter, refused) = filter(wanted.as_deref());
    let terminal = io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer();
    let started = if terminal {
        // https://no-color.org
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let layer = layer.fmt_fields(human_fields()).with_writer(io::stderr);
        registry
            .with(layer.with_target(false).with_ansi(colour))
            .try_init()
    } else {
        registry
            .with(
                layer
                    .json()
                    .flatten_event(true)
                    .with_writer(|| JsonLines(io::stderr())),
            )
            .try_init()
    };
    if let (Ok(()), Some(error)) = (started, refused) {
        tracing::warn!(%error, "{LEVEL_VARIABLE} is not a log filter such as `debug` or `info,ebbtide=trace`; the level is info");
    }
}

const LEVEL_VARIABLE: &str = "EBBTIDE_LOG";

/// The filter, and why the wanted filter was refused.
fn filter(wanted: Option<&str>) -> (EnvFilter, Option<String>) {
    match wanted.map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new("info"), Some(error.to_string())),
        None => (EnvFilter::new("info"), None),
    }
}

/// Formats the fields of an event for a terminal. The library's own formatter leaves line feeds in
/// all fields, and every control character in `%` fields.
fn human_fields() -> impl for<'w> FormatFields<'w> + 'static {
    let write = |to: &mut format::Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        let value = one_line(&format!("{value:?}"));
        if field.name() == "message" {
            write!(to, "{value}")
        } else {
            write!(to, "{field}={value}")
        }
    };
    format::debug_fn(write).delimited(" ")
}

/// The output of JSON events, each written in one piece. The JSON formatter escapes neither DEL nor
/// the control characters beyond ASCII.
struct JsonLines<W>(W);

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = one_line(String::from_utf8_lossy(event).trim_end_matches('\n'));
        self.0.write_all((line + "\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Collects the output once its gate is open.
    #[derive(Clone)]
    struct Output {
        gate: Arc<Mutex<()>>,
        written: Arc<Mutex<Vec<u8>>>,
        broken: bool,
    }

    impl Output {
        fn new(broken: bool) -> Self {
            Self {
                gate: Arc::default(),
                written: Arc::default(),
                broken,
            }
        }
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().unwrap();
            if self.broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bad_filter_falls_back_to_info() {
        assert_eq!(filter(None).0.to_string(), "info");
        assert_eq!(filter(Some("debug")).0.to_string(), "debug");
        let (used, refused) = filter(Some("ebbtide=loudly"));
        assert_eq!(used.to_string(), "info");
        assert!(refused.is_some());
    }

    #[test]
    fn an_event_is_one_line_whatever_its_fields_hold() {
        let hostile = "a\r\nlevel=ERROR forged\0\t\x1b[31m\x7f\u{85}\u{9b}31m";
        for json in [false, true] {
            let output = Output::new(false);
            let writer = output.clone();
            let layer = tracing_subscriber::fmt::layer();
            let log = || {
                tracing::warn!(subject = hostile, error = %hostile, "{hostile}");
                tracing::info!("next");
            };
            let registry = tracing_subscriber::registry();
            if json {
                let layer = layer
                    .json()
                    .flatten_event(true)
                    .with_writer(move || JsonLines(writer.clone()));
                tracing::subscriber::with_default(registry.with(layer), log);
            } else {
                let layer = layer
                    .fmt_fields(human_fields())
                    .with_ansi(false)
                    .with_writer(move || writer.clone());
                tracing::subscriber::with_default(registry.with(layer), log);
            }
            let text = String::from_utf8(output.written.lock().unwrap().clone()).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            assert!(
                lines.len() == 2 && lines[0].contains("forged") && lines[1].contains("next"),
                "{text:?}"
            );
            assert!(
                !text.contains(|c: char| c.is_control() && c != '\n'),
                "{text:?}"
            );
        }
    }
}
