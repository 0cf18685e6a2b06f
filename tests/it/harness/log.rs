//! The warnings that a test's thread logs; on that thread runs all of an ordinary test.
//!
//! The subscriber is the process's own, installed before the first mirror starts, and not one for each
//! test (`tracing::subscriber::set_default`). tracing remembers for each place that logs whether anybody
//! wants its lines. While only one subscriber exists, it asks the one of the thread that comes there
//! first: a test without a subscriber would silence the place for all others.

use std::cell::RefCell;
use std::io::Write;
use std::rc::Rc;
use std::sync::Once;

use tracing::Level;

thread_local! {
    static COLLECTED: RefCell<Option<Lines>> = const { RefCell::new(None) };
}

type Lines = Rc<RefCell<Vec<u8>>>;

/// Appends to what its thread collects, if it does.
struct Collector;

impl Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        COLLECTED.with_borrow(|lines| {
            if let Some(lines) = lines {
                lines.borrow_mut().extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Has to come before anything that may log.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::WARN)
            .with_ansi(false)
            .without_time()
            .with_writer(|| Collector)
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

/// The warnings of this thread, until dropped.
pub(crate) struct Warnings(Lines);

impl Warnings {
    pub(crate) fn collect() -> Self {
        install();
        let lines = Lines::default();
        COLLECTED.set(Some(Rc::clone(&lines)));
        Self(lines)
    }

    /// The lines since the last call that name an upstream.
    pub(crate) fn take(&self) -> Vec<String> {
        self.about("upstream")
    }

    /// The lines since the last call that have this word.
    pub(crate) fn about(&self, word: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.take()).unwrap();
        let lines = text.lines().filter(|line| line.contains(word));
        lines.map(str::to_owned).collect()
    }
}

impl Drop for Warnings {
    fn drop(&mut self) {
        COLLECTED.set(None);
    }
}
