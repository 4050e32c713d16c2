//! A bounded queue of lines, and the thread that writes them: for the log and for the access log.
//!
//! Invariant: a thread that queues a line never waits for the reader of the output. A line that
//! finds the queue full is dropped and counted.

use std::io::{self, Write};
use std::sync::mpsc;
use std::time::Duration;

use prometheus::IntCounter;

/// The queue's entrance. It is cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    queue: mpsc::SyncSender<Vec<u8>>,
    dropped: IntCounter,
}

/// The writing thread. It ends when every [`Lines`] has been dropped and the queue is written.
#[derive(Debug)]
pub(super) struct Writer(mpsc::Receiver<()>);

impl Lines {
    /// Starts the writing thread. `dropped` counts the lines that found the queue full or the output
    /// broken. `broken` is called once, with the first error of the output.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(
        name: &str,
        capacity: usize,
        output: impl Write + Send + 'static,
        dropped: IntCounter,
        broken: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<(Self, Writer)> {
        let (lines, queue) = mpsc::sync_channel(capacity);
        let (done, finished) = mpsc::channel();
        let lost = dropped.clone();
        let thread = std::thread::Builder::new().name(name.into());
        thread.spawn(move || {
            write_all(output, &queue, &lost, broken);
            drop(done);
        })?;
        let lines = Self {
            queue: lines,
            dropped,
        };
        Ok((lines, Writer(finished)))
    }

    /// Queues a line, with its line feed. A full queue drops the line and counts it.
    pub(super) fn push(&self, line: Vec<u8>) {
        if self.queue.try_send(line).is_err() {
            self.dropped.inc();
        }
    }
}

impl Writer {
    /// Waits until the thread has written everything, at most for `patience`, because the output may
    /// be a pipe that nobody reads. Returns whether everything is written.
    pub(super) fn finish(self, patience: Duration) -> bool {
        self.0.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

/// Writes the queued lines in pieces, until every sender is gone. A piece that cannot be written is
/// counted as dropped, and the next piece is tried.
fn write_all(
    mut output: impl Write,
    queue: &mpsc::Receiver<Vec<u8>>,
    dropped: &IntCounter,
    broken: impl FnOnce(io::Error),
) {
    let mut broken = Some(broken);
    while let Ok(mut piece) = queue.recv() {
        let mut lines = 1;
        while piece.len() < PIECE
            && let Ok(line) = queue.try_recv()
        {
            piece.extend_from_slice(&line);
            lines += 1;
        }
        if let Err(error) = output.write_all(&piece).and_then(|()| output.flush()) {
            dropped.inc_by(lines);
            if let Some(broken) = broken.take() {
                broken(error);
            }
        }
    }
}

/// Bytes of one write, about.
const PIECE: usize = 64 << 10;

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Collects the output once its gate is open.
    #[derive(Clone, Default)]
    pub(in crate::observe) struct Output {
        pub(in crate::observe) gate: Arc<Mutex<()>>,
        pub(in crate::observe) written: Arc<Mutex<Vec<u8>>>,
        broken: bool,
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
    fn a_reader_that_stalls_costs_lines_and_never_time() {
        let dropped = IntCounter::new("dropped", "x").unwrap();
        let output = Output::default();
        let (lines, writer) =
            Lines::start("test", 100, output.clone(), dropped.clone(), |_| ()).unwrap();
        {
            let _closed = output.gate.lock().unwrap();
            (0..200).for_each(|_| lines.push(b"line\n".to_vec()));
            assert!(dropped.get() > 0);
        }
        drop(lines);
        assert!(
            writer.finish(Duration::from_secs(60)),
            "the whole queue is written at the end"
        );
        let written = output.written.lock().unwrap();
        let lines = written.iter().filter(|&&b| b == b'\n').count() as u64;
        assert_eq!(
            lines + dropped.get(),
            200,
            "each line is written or counted as dropped"
        );
        assert!(lines >= 100);
    }

    #[test]
    fn lines_of_a_broken_output_are_counted_and_the_first_error_is_reported_once() {
        let dropped = IntCounter::new("dropped", "x").unwrap();
        let output = Output {
            broken: true,
            ..Output::default()
        };
        let (errors, reported) = mpsc::channel();
        let report = move |error: io::Error| errors.send(error.kind()).unwrap();
        let (lines, writer) = Lines::start("test", 1_000, output, dropped.clone(), report).unwrap();
        (0..100).for_each(|_| lines.push(b"line\n".to_vec()));
        drop(lines);
        assert!(writer.finish(Duration::from_secs(60)));
        assert_eq!(dropped.get(), 100);
        let reported: Vec<_> = reported.iter().collect();
        assert_eq!(reported, [io::ErrorKind::BrokenPipe]);
    }
}
