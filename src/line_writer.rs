//! The path of log lines to standard error or a file: a bounded buffer, and one thread that writes it.
//!
//! A log call appends a line to the buffer and never waits for the reader or the disk. When the
//! buffer is full, or a write fails, lines are dropped and counted. As soon as a write succeeds, a
//! notice in their place in the log says how many were dropped.
//!
//! A log call must never block, panic or return an error to its caller.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::metrics::Counter;
use parking_lot::{Condvar, Mutex};

/// Bytes of lines that may wait for the thread; it holds as many again while it writes.
const MAX_WAITING: usize = 1024 * 1024;
/// Capacity that the buffers keep after a burst, in bytes.
const KEPT_CAPACITY: usize = 64 * 1024;
/// Pause before another attempt where standard error is a non-blocking descriptor and full.
const FULL_PAUSE: Duration = Duration::from_millis(10);
/// Pause before the thread's loop starts again after a panic.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// Makes the line that says how many lines were dropped.
pub type Notice = Box<dyn Fn(u64) -> String + Send>;

/// Takes lines for one output.
#[derive(Debug, Default)]
pub struct LineWriter {
    buffer: Mutex<Buffer>,
    /// Wakes the thread.
    filled: Condvar,
    /// Wakes [`LineWriter::flush`].
    progress: Condvar,
}

#[derive(Debug, Default)]
struct Buffer {
    /// Whole lines.
    lines: Vec<u8>,
    /// Lines dropped since the thread took the buffer.
    dropped: u64,
    /// Whether the thread has lines that it has neither written nor given up.
    is_writing: bool,
    /// All dropped lines.
    total: Counter,
}

impl LineWriter {
    /// Starts the thread, which writes to `out` until the process ends.
    pub fn start(out: impl Write + Send + 'static, notice: Notice) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Self::default());
        let mut thread = WriterThread {
            shared: Arc::clone(&shared),
            out,
            notice,
            batch: Vec::new(),
            lost: 0,
            torn: false,
        };
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                while catch_unwind(AssertUnwindSafe(|| thread.run())).is_err() {
                    thread.give_up_batch();
                    thread::sleep(PANIC_PAUSE);
                }
            })?;
        Ok(shared)
    }

    /// Appends a line, which ends with a line feed, or drops it if the buffer is full.
    pub fn line(&self, line: &[u8]) {
        let mut buffer = self.buffer.lock();
        if buffer.lines.len() + line.len() > MAX_WAITING {
            buffer.dropped += 1;
            buffer.total.inc();
            return;
        }
        buffer.lines.extend_from_slice(line);
        drop(buffer);
        self.filled.notify_one();
    }

    /// Waits until every line has been written or given up, for at most `limit`. Blocks: not for the
    /// runtime's threads. Returns whether the thread got that far.
    pub fn flush(&self, limit: Duration) -> bool {
        let mut buffer = self.buffer.lock();
        let unwritten = |buffer: &mut Buffer| buffer.is_writing || !buffer.lines.is_empty();
        let waited = self.progress.wait_while_for(&mut buffer, unwritten, limit);
        !waited.timed_out()
    }

    /// Counts dropped lines in `counter` from now on, with those that were dropped before.
    pub fn count_into(&self, counter: Counter) {
        let mut buffer = self.buffer.lock();
        counter.inc_by(buffer.total.get());
        buffer.total = counter;
    }
}

/// Each write is one line, as tracing's formatter writes an event.
impl Write for &LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct WriterThread<W> {
    shared: Arc<LineWriter>,
    out: W,
    notice: Notice,
    /// The bytes of the current write.
    batch: Vec<u8>,
    /// Lines that no write took and no notice has reported.
    lost: u64,
    /// The last write ended within a line.
    torn: bool,
}

impl<W: Write> WriterThread<W> {
    fn run(&mut self) {
        loop {
            let dropped = self.take_batch();
            if self.lost > 0 && self.write_notice(self.lost) {
                self.lost = 0;
            }
            let batch = std::mem::take(&mut self.batch);
            let written = self.write(&batch);
            let unwritten = batch.get(written..).unwrap_or_default();
            let lost = unwritten.split_inclusive(|byte| *byte == b'\n').count() as u64;
            self.lost += lost;
            if dropped > 0 && !self.write_notice(dropped) {
                self.lost += dropped;
            }
            self.batch = batch;
            self.finish_batch(lost);
        }
    }

    /// Waits for lines. Returns how many were dropped after them.
    fn take_batch(&mut self) -> u64 {
        let mut buffer = self.shared.buffer.lock();
        let empty = |buffer: &mut Buffer| buffer.lines.is_empty();
        self.shared.filled.wait_while(&mut buffer, empty);
        std::mem::swap(&mut buffer.lines, &mut self.batch);
        buffer.is_writing = true;
        std::mem::take(&mut buffer.dropped)
    }

    fn finish_batch(&mut self, lost: u64) {
        let mut buffer = self.shared.buffer.lock();
        buffer.total.inc_by(lost);
        buffer.is_writing = false;
        drop(buffer);
        self.shared.progress.notify_all();
        self.batch.clear();
        self.batch.shrink_to(KEPT_CAPACITY);
    }

    /// Drops the batch after a panic: the written part of it is unknown.
    fn give_up_batch(&mut self) {
        self.torn = true;
        self.finish_batch(0);
    }

    fn write_notice(&mut self, dropped: u64) -> bool {
        let notice = (self.notice)(dropped);
        self.write(notice.as_bytes()) == notice.len()
    }

    /// Writes as much as can be written. Returns how many bytes that is.
    fn write(&mut self, bytes: &[u8]) -> usize {
        if self.torn {
            if self.write_bytes(b"\n") == 0 {
                return 0;
            }
            self.torn = false;
        }
        let written = self.write_bytes(bytes);
        let last = bytes.get(..written).and_then(<[u8]>::last);
        self.torn = last.is_some_and(|byte| *byte != b'\n');
        written
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.out.write(rest) {
                Ok(0) => break,
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody who shares the descriptor has made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(FULL_PAUSE);
                }
                Err(_lost) => break,
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const LIMIT: Duration = Duration::from_mins(1);

    /// Each write takes the next step of a script, and succeeds when there is none.
    struct Scripted {
        steps: mpsc::Receiver<Step>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    enum Step {
        Fail,
        Panic,
        /// Takes this many bytes.
        Take(usize),
        /// Waits until the other end is dropped.
        Stall(mpsc::Receiver<()>),
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = match self.steps.try_recv() {
                Ok(Step::Fail) => return Err(io::ErrorKind::StorageFull.into()),
                Ok(Step::Panic) => panic!("on purpose"),
                Ok(Step::Take(bytes)) => bytes,
                Ok(Step::Stall(released)) => {
                    assert!(released.recv().is_err());
                    bytes.len()
                }
                Err(_no_step) => bytes.len(),
            };
            let taken = bytes.get(..taken).unwrap();
            self.written.lock().extend_from_slice(taken);
            Ok(taken.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Log {
        writer: Arc<LineWriter>,
        steps: mpsc::Sender<Step>,
        written: Arc<Mutex<Vec<u8>>>,
        counter: Counter,
    }

    impl Log {
        fn new() -> Self {
            let (steps, script) = mpsc::channel();
            let written = Arc::default();
            let out = Scripted {
                steps: script,
                written: Arc::clone(&written),
            };
            let notice = Box::new(|dropped| format!("[{dropped} dropped]\n"));
            let writer = LineWriter::start(out, notice).unwrap();
            let counter = Counter::default();
            writer.count_into(counter.clone());
            Self {
                writer,
                steps,
                written,
                counter,
            }
        }

        fn then(&self, step: Step) {
            self.steps.send(step).unwrap();
        }

        /// Logs a line, and waits until it has been written or given up.
        fn log(&self, line: &str) {
            self.writer.line(line.as_bytes());
            assert!(self.writer.flush(LIMIT));
        }

        fn written(&self) -> String {
            String::from_utf8(self.written.lock().clone()).unwrap()
        }
    }

    #[test]
    fn lines_come_out_in_order_and_whole() {
        let log = Log::new();
        log.then(Step::Take(2));
        let lines: Vec<_> = (0..100).map(|number| format!("line {number}\n")).collect();
        for line in &lines {
            log.writer.line(line.as_bytes());
        }
        assert!(log.writer.flush(LIMIT));
        assert_eq!(log.written(), lines.concat());
        assert_eq!(log.counter.get(), 0);
    }

    #[test]
    fn a_stalled_reader_drops_lines_and_blocks_nobody() {
        let log = Log::new();
        let (release, stall) = mpsc::channel();
        log.then(Step::Stall(stall));
        let line = format!("{}\n", "x".repeat(1023));
        // The thread may or may not have taken the first of them when the buffer is full.
        let lines = 3 * MAX_WAITING / line.len();
        for _ in 0..lines {
            log.writer.line(line.as_bytes());
        }
        assert!(!log.writer.flush(Duration::ZERO));
        let dropped = log.counter.get();
        drop(release);
        assert!(log.writer.flush(LIMIT));
        log.log("after\n");

        let written = log.written();
        let notice = format!("[{dropped} dropped]\n");
        assert_eq!(
            written.matches(&line).count() as u64 + dropped,
            lines as u64
        );
        assert!((1..=lines as u64).contains(&dropped), "{dropped}");
        let (before, after) = written.split_once(&notice).unwrap();
        assert!(before.ends_with(&line));
        assert_eq!(after, "after\n");
    }

    #[test]
    fn failed_writes_are_counted_and_reported_when_a_write_succeeds() {
        let log = Log::new();
        log.log("one\n");
        log.then(Step::Fail);
        log.log("two\n");
        // The notice fails, then the line.
        log.then(Step::Fail);
        log.then(Step::Fail);
        log.log("three\n");
        assert_eq!(log.counter.get(), 2);
        log.log("four\n");
        assert_eq!(log.written(), "one\n[2 dropped]\nfour\n");
        assert_eq!(log.counter.get(), 2, "a notice isn't a line");
    }

    #[test]
    fn what_follows_a_torn_line_begins_on_a_line_of_its_own() {
        let log = Log::new();
        log.then(Step::Take(2));
        log.then(Step::Fail);
        log.log("torn\n");
        log.log("whole\n");
        assert_eq!(log.written(), "to\n[1 dropped]\nwhole\n");
    }

    #[test]
    fn the_thread_continues_after_a_panic() {
        let log = Log::new();
        log.then(Step::Panic);
        log.log("lost\n");
        log.log("written\n");
        assert_eq!(log.written(), "\nwritten\n");
    }

    #[test]
    fn lines_dropped_before_the_metrics_exist_are_counted() {
        let log = Log::new();
        log.then(Step::Fail);
        log.log("lost\n");
        let counter = Counter::default();
        log.writer.count_into(counter.clone());
        assert_eq!(counter.get(), 1);
    }
}
