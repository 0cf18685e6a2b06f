//! Lets the two sides of a copy run at different speeds for a while: a bounded queue of bytes, in memory and,
//! while the destination is slow, in a file.
//!
//! A reader that waits for room for longer than [`PATIENCE`] uses the file until the queue is empty again.
//! Two sides of about the same speed so need no file. The file is removed as soon as it is created, so that
//! none is left behind; when it can't be created or written, only memory is used.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::error_chain::on_one_line;
use crate::upstream::Aborted;

/// Bytes in memory for one blob.
const MEMORY: usize = 1024 * 1024;
/// How long the reader waits for room in memory before it uses the file.
const PATIENCE: Duration = Duration::from_millis(200);
/// A blob's file has at most this part of its size: what is lost when the process is killed.
const SHARE: u64 = 32;

/// Where spools have their files, and how large they may be.
#[derive(Debug, Clone)]
pub struct SpoolSettings {
    pub directory: PathBuf,
    /// Bytes of the file of each blob that is copied at a time. 0: no files.
    pub file: u64,
}

/// A queue for `size` bytes: its two ends.
pub(super) fn spool(settings: &SpoolSettings, size: u64) -> (Filler, Drain) {
    let shared = Arc::new(Shared {
        capacity: settings.file.min(size / SHARE),
        directory: settings.directory.clone(),
        state: Mutex::default(),
        changed: Notify::new(),
    });
    (Filler(Arc::clone(&shared)), Drain(shared))
}

/// Takes bytes. Dropped before [`end`](Self::end), it makes the other end fail once that has had all.
pub(super) struct Filler(Arc<Shared>);

/// Gives them out in the same order.
pub(super) struct Drain(Arc<Shared>);

struct Shared {
    /// Bytes of the file.
    capacity: u64,
    directory: PathBuf,
    state: Mutex<State>,
    /// Of the state. Each end waits alone.
    changed: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Piece>,
    /// Bytes in memory.
    memory: usize,
    /// Bytes that were ever written to the file, and of these that were read again.
    written: u64,
    read: u64,
    file: Option<Arc<File>>,
    /// The file failed; it isn't written any more.
    is_failed: bool,
    ended: Option<Result<(), Aborted>>,
    is_abandoned: bool,
}

enum Piece {
    Memory(Bytes),
    /// So many bytes in the file.
    File(usize),
}

/// The other end is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Abandoned;

impl State {
    fn is_in_file(&self) -> bool {
        self.written > self.read
    }
}

impl Filler {
    /// Adds bytes, and waits until there is room for them.
    pub(super) async fn push(&mut self, bytes: Bytes) -> Result<(), Abandoned> {
        if bytes.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + PATIENCE;
        let mut bytes = Some(bytes);
        loop {
            let changed = self.0.changed.notified();
            let spills = match self.0.offer(&mut bytes, Instant::now() >= until)? {
                Offered::Taken => {
                    self.0.changed.notify_waiters();
                    return Ok(());
                }
                Offered::Spill => true,
                Offered::Full => false,
            };
            if spills && let Some(left) = bytes.take() {
                match self.0.spill(left).await {
                    Ok(()) => return Ok(()),
                    Err(left) => bytes = Some(left),
                }
            } else if Instant::now() < until {
                drop(timeout_at(until, changed).await);
            } else {
                changed.await;
            }
        }
    }

    /// All bytes have been added.
    pub(super) fn end(self) {
        self.0.state.lock().ended = Some(Ok(()));
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.0.state.lock().ended.get_or_insert(Err(Aborted));
        self.0.changed.notify_waiters();
    }
}

enum Offered {
    Taken,
    /// Into the file.
    Spill,
    Full,
}

impl Shared {
    /// Takes the bytes into memory if there is room and nothing is in the file.
    fn offer(&self, bytes: &mut Option<Bytes>, is_late: bool) -> Result<Offered, Abandoned> {
        let mut state = self.state.lock();
        if state.is_abandoned {
            return Err(Abandoned);
        }
        let length = bytes.as_ref().map_or(0, Bytes::len);
        // A piece that is larger than the memory is taken by an empty queue.
        let fits = state.memory == 0 || state.memory + length <= MEMORY;
        if fits && !state.is_in_file() {
            state.memory += length;
            state.queue.extend(bytes.take().map(Piece::Memory));
            return Ok(Offered::Taken);
        }
        let in_file = state.written - state.read + length as u64;
        let can_spill = !state.is_failed && in_file <= self.capacity;
        Ok(if can_spill && (is_late || state.is_in_file()) {
            Offered::Spill
        } else {
            Offered::Full
        })
    }

    /// Appends bytes to the file; gives them back where that fails.
    async fn spill(&self, bytes: Bytes) -> Result<(), Bytes> {
        let (file, at) = {
            let state = self.state.lock();
            (state.file.clone(), state.written)
        };
        let (directory, capacity, copy) = (self.directory.clone(), self.capacity, bytes.clone());
        let write = move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(create(&directory)?),
            };
            in_ring(capacity, at, copy.len(), |at, from, to| {
                file.write_all_at(copy.get(from..to).unwrap_or_default(), at)
            })?;
            Ok::<_, io::Error>(file)
        };
        let written = tokio::task::spawn_blocking(write).await;
        let mut state = self.state.lock();
        match written.unwrap_or_else(|lost| Err(io::Error::other(lost))) {
            Ok(file) => {
                state.file = Some(file);
                state.written += bytes.len() as u64;
                state.queue.push_back(Piece::File(bytes.len()));
                drop(state);
                self.changed.notify_waiters();
                Ok(())
            }
            Err(error) => {
                tracing::debug!(error = %on_one_line(&error), "the spool's file fails; only memory is used");
                state.is_failed = true;
                Err(bytes)
            }
        }
    }
}

/// A file that exists as long as it is open.
fn create(directory: &std::path::Path) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    let name = format!(".spool-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let path = directory.join(name);
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The one or two parts of a ring that bytes from `at` on are in: `part` gets the place in the file and the
/// first and last (exclusive) of the bytes.
fn in_ring(
    capacity: u64,
    at: u64,
    length: usize,
    mut part: impl FnMut(u64, usize, usize) -> io::Result<()>,
) -> io::Result<()> {
    let place = at.checked_rem(capacity).unwrap_or(0);
    let first = usize::try_from(capacity - place)
        .unwrap_or(usize::MAX)
        .min(length);
    part(place, 0, first)?;
    if first < length {
        part(0, first, length)
    } else {
        Ok(())
    }
}

impl Drain {
    /// The next bytes; None at the end.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Aborted>> {
        loop {
            let changed = self.0.changed.notified();
            let (file, at, length) = {
                let mut state = self.0.state.lock();
                match state.queue.pop_front() {
                    Some(Piece::Memory(bytes)) => {
                        state.memory -= bytes.len();
                        drop(state);
                        self.0.changed.notify_waiters();
                        return Some(Ok(bytes));
                    }
                    Some(Piece::File(length)) => match &state.file {
                        Some(file) => (Some(Arc::clone(file)), state.read, length),
                        None => return Some(Err(Aborted)),
                    },
                    None => match state.ended {
                        Some(Ok(())) => return None,
                        Some(Err(aborted)) => return Some(Err(aborted)),
                        None => (None, 0, 0),
                    },
                }
            };
            match file {
                Some(file) => return Some(self.read(file, at, length).await),
                None => changed.await,
            }
        }
    }

    async fn read(&self, file: Arc<File>, at: u64, length: usize) -> Result<Bytes, Aborted> {
        let capacity = self.0.capacity;
        let read = move || {
            let mut bytes = vec![0; length];
            in_ring(capacity, at, length, |at, from, to| {
                file.read_exact_at(bytes.get_mut(from..to).unwrap_or_default(), at)
            })?;
            Ok::<_, io::Error>(Bytes::from(bytes))
        };
        let read = tokio::task::spawn_blocking(read).await;
        let bytes = read.unwrap_or_else(|lost| Err(io::Error::other(lost)));
        self.0.state.lock().read += length as u64;
        self.0.changed.notify_waiters();
        bytes.map_err(|error| {
            tracing::debug!(error = %on_one_line(&error), "the spool's file can't be read");
            Aborted
        })
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.state.lock().is_abandoned = true;
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;

    const FILE: u64 = 4 << 20;

    fn settings(directory: &std::path::Path) -> SpoolSettings {
        SpoolSettings {
            directory: directory.to_owned(),
            file: FILE,
        }
    }

    fn piece(n: u8) -> Bytes {
        vec![n; MEMORY / 2].into()
    }

    async fn fill(filler: &mut Filler) -> u8 {
        let mut pushed = 0;
        // Real time passes while the file is written, and paused time doesn't.
        while let Ok(done) = tokio::time::timeout(PATIENCE * 10, filler.push(piece(pushed))).await {
            done.unwrap();
            pushed += 1;
        }
        pushed
    }

    #[tokio::test]
    async fn a_slow_side_is_decoupled_by_memory_and_a_bounded_file() {
        let directory = tempfile::tempdir().unwrap();
        let (mut filler, mut drain) = spool(&settings(directory.path()), FILE * SHARE);
        let mut pushed = 0;
        let most = 2 + u8::try_from(FILE / (MEMORY as u64 / 2)).unwrap();
        for n in 0..most {
            filler.push(piece(n)).await.unwrap();
            pushed += 1;
        }
        let mut late = Box::pin(filler.push(piece(pushed)));
        assert!(poll!(&mut late).is_pending(), "it is full");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        // The ring wraps around.
        for expected in 0..4 {
            assert_eq!(drain.next().await.unwrap().unwrap(), piece(expected));
        }
        late.await.unwrap();
        filler.end();
        for expected in 4..=pushed {
            assert_eq!(drain.next().await.unwrap().unwrap(), piece(expected));
        }
        assert!(drain.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_file_memory_is_the_bound() {
        let (mut filler, mut drain) = spool(&settings("/proc/no-such".as_ref()), FILE * SHARE);
        assert_eq!(fill(&mut filler).await, 2);
        for expected in [0, 1] {
            assert_eq!(drain.next().await.unwrap().unwrap(), piece(expected));
        }
        filler.push(piece(9)).await.unwrap();
        drop(filler);
        assert_eq!(drain.next().await.unwrap().unwrap(), piece(9));
        assert_eq!(drain.next().await, Some(Err(Aborted)), "it has no end");
    }

    #[tokio::test]
    async fn a_filler_learns_that_nobody_reads() {
        let (mut filler, drain) = spool(&settings("/proc/no-such".as_ref()), 0);
        filler.push(piece(0)).await.unwrap();
        filler.push(piece(1)).await.unwrap();
        let mut late = Box::pin(filler.push(piece(2)));
        assert!(poll!(&mut late).is_pending());
        drop(drain);
        assert_eq!(late.await, Err(Abandoned));
    }
}
