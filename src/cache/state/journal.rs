//! The state on disk: a snapshot in the reference registry's format, and beside it a journal of
//! what has changed since. No other file of this module touches the file system.
//!
//! A save appends the entries that were added, used or removed in the last seconds, and syncs. When
//! the journal has outgrown the snapshot, and at a graceful stop, everything is written to a new
//! snapshot, which is synced and renamed over the old one before the journal is emptied. A crash in
//! between replays old lines onto a newer snapshot, which changes nothing: a use never takes a time
//! back, and whether a link exists is what the store says, not these files.
//!
//! That is also why no entry is ever lost: the links in the store are what is cached. An entry that
//! a crash kept from being saved starts its time anew at the next start.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use super::file::{self, Line, Record, Tally};
use super::timestamp::Timestamp;
use crate::cache::{CacheError, Upkeep};
use crate::error_chain::on_one_line;
use crate::storage::{Layout, Modes, sync_directory};

/// The largest state file that is read, in bytes: five million entries.
const MAX_STATE: u64 = 2 * 1024 * 1024 * 1024;
/// A journal below this isn't worth folding, in bytes.
const MIN_FOLD: u64 = 4 * 1024 * 1024;
/// Broken files that are kept; the last one is replaced by later ones.
const MAX_BROKEN: u32 = 9;
/// Entries that are put into the index under one lock.
const LOAD: usize = 1024;

/// What an entry of ours takes in the file, in bytes: to guess how many there are.
const ENTRY: usize = 320;
/// Batches of parsed entries that wait to be taken.
const MAX_BATCHES: usize = 16;

/// The two files.
#[derive(Debug)]
pub(crate) struct Journal {
    snapshot: PathBuf,
    path: PathBuf,
    /// Open for appending, once something is.
    file: Option<File>,
    /// Bytes of the journal.
    appended: u64,
    /// Bytes of the snapshot.
    folded: u64,
    /// The journal may end in the middle of a line.
    torn: bool,
}

/// The result of loading both files.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Entries whose times lie in the future.
    pub(crate) future: usize,
    /// The snapshot was set aside: a new one is owed.
    pub(crate) broken: bool,
}

impl Journal {
    /// `snapshot` is the path of the state file; the journal is the same with another ending.
    pub(crate) fn at(snapshot: PathBuf) -> Self {
        Self {
            path: snapshot.with_extension("journal"),
            snapshot,
            file: None,
            appended: 0,
            folded: 0,
            torn: false,
        }
    }

    /// Reads both files. What is broken is set aside, and what could be read of it is used.
    /// Blocks.
    pub(crate) fn load(
        &mut self,
        now: Timestamp,
        upkeep: Upkeep,
        reserve: impl FnOnce(usize),
        take: &mut dyn FnMut(&[Line<'_>]),
    ) -> Loaded {
        let set_aside = |path: &Path| {
            if upkeep == Upkeep::Full {
                set_aside(path);
            }
        };
        let mut loaded = Loaded::default();
        if let Some(bytes) = read(&self.snapshot, &set_aside) {
            self.folded = bytes.len() as u64;
            reserve(bytes.len() / ENTRY);
            let (tally, read) = pipe(take, |sink| file::read_snapshot(&bytes, now, sink));
            let foreign = tally.entries == 0 && tally.skipped > 0;
            if let Err(error) = &read {
                tracing::warn!(path = %self.snapshot.display(), error = %on_one_line(&error), "the scheduler state is broken");
            }
            if read.is_err() || foreign {
                set_aside(&self.snapshot);
                self.folded = 0;
            }
            loaded.broken |= self.folded == 0;
            loaded.add(&self.snapshot, &tally);
        }
        if let Some(bytes) = read(&self.path, &set_aside) {
            self.appended = bytes.len() as u64;
            let (tally, torn) = pipe(take, |sink| file::read_journal(&bytes, now, sink));
            if torn {
                self.torn = true;
                tracing::info!(path = %self.path.display(), "the journal's last line is torn and ignored");
            }
            if tally.entries == 0 && tally.skipped > 0 {
                set_aside(&self.path);
                self.appended = 0;
                self.torn = false;
            }
            loaded.add(&self.path, &tally);
        }
        loaded
    }

    /// Adds lines to the journal and makes them durable. Blocks.
    pub(crate) fn append(&mut self, lines: &[u8]) -> Result<(), CacheError> {
        let result = self.try_append(lines);
        if result.is_err() {
            self.torn = true;
            self.file = None;
        }
        result.map_err(|source| CacheError::io("append to", &self.path, source))
    }

    fn try_append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            let mut options = File::options();
            let file = modes(&self.path).open(options.create(true).append(true), &self.path)?;
            self.file = Some(file);
            sync_parent(&self.path)?;
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if std::mem::take(&mut self.torn) {
            file.write_all(b"\n")?;
        }
        file.write_all(lines)?;
        file.sync_data()?;
        self.appended += lines.len() as u64;
        Ok(())
    }

    /// How long the journal is.
    pub(crate) fn bytes(&self) -> u64 {
        self.appended
    }

    /// Whether the journal has outgrown the snapshot.
    pub(crate) fn wants_fold(&self) -> bool {
        self.appended > self.folded.max(MIN_FOLD)
    }

    /// Writes a new snapshot and empties the journal. `next` gives the records, in pages. Blocks.
    pub(crate) fn fold(
        &mut self,
        next: &mut dyn FnMut() -> Option<Vec<Record>>,
    ) -> Result<(), CacheError> {
        let draft = self.snapshot.with_extension("json.new");
        let failed = |source| CacheError::io("write", &draft, source);
        let bytes = write_snapshot(&draft, next).map_err(failed)?;
        let renamed = fs::rename(&draft, &self.snapshot).and_then(|()| sync_parent(&self.snapshot));
        renamed.map_err(|source| CacheError::io("replace", &self.snapshot, source))?;
        self.folded = bytes;
        self.file = None;
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(CacheError::io("empty", &self.path, source)),
        }
        self.appended = 0;
        self.torn = false;
        Ok(())
    }
}

impl Loaded {
    fn add(&mut self, path: &Path, tally: &Tally) {
        self.future += tally.future;
        if let Some(reason) = tally.reason {
            let skipped = tally.skipped;
            tracing::warn!(path = %path.display(), skipped, reason, "entries weren't understood; of the first");
        }
    }
}

/// The whole of a file; none when it isn't there, is empty, or can't be read.
fn read(path: &Path, set_aside: &dyn Fn(&Path)) -> Option<Vec<u8>> {
    let read = || -> io::Result<Option<Vec<u8>>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > MAX_STATE {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        file.take(MAX_STATE).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    };
    match read() {
        Ok(Some(bytes)) if bytes.trim_ascii().is_empty() => {
            tracing::info!(path = %path.display(), "the file is empty: nothing is known from it");
            None
        }
        Ok(Some(bytes)) => Some(bytes),
        Ok(None) => {
            tracing::warn!(path = %path.display(), max = MAX_STATE, "the file is too large");
            set_aside(path);
            None
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %on_one_line(&error), "the file can't be read");
            set_aside(path);
            None
        }
    }
}

/// Renames a broken file, so that an operator can look at it.
fn set_aside(path: &Path) {
    let name = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".broken-{n}"));
        PathBuf::from(name)
    };
    let free = (1..=MAX_BROKEN).find(|n| !name(*n).exists());
    let aside = name(free.unwrap_or(MAX_BROKEN));
    match fs::rename(path, &aside) {
        Ok(()) => {
            tracing::warn!(aside = %aside.display(), "set aside; the state is rebuilt from the store");
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %on_one_line(&error), "can't be set aside");
        }
    }
}

/// Parses on a thread of its own, and takes the lines here, many at a time: at a million entries the
/// two take a second each.
fn pipe<'a, T: Send>(
    take: &mut dyn FnMut(&[Line<'_>]),
    parse: impl FnOnce(&mut dyn FnMut(Line<'a>)) -> T + Send,
) -> T {
    let (send, receive) = mpsc::sync_channel::<Vec<Line<'a>>>(MAX_BATCHES);
    std::thread::scope(move |scope| {
        let parser = scope.spawn(move || {
            let mut batch = Vec::with_capacity(LOAD);
            // A failing send means that the other end has panicked, which is passed on there.
            let result = parse(&mut |line| {
                batch.push(line);
                if batch.len() == LOAD {
                    let full = std::mem::replace(&mut batch, Vec::with_capacity(LOAD));
                    send.send(full).unwrap_or_default();
                }
            });
            send.send(batch).unwrap_or_default();
            result
        });
        for lines in receive {
            take(&lines);
        }
        match parser.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The permissions of the store beside which the state is kept.
fn modes(path: &Path) -> Modes {
    Modes::beside(&Layout::new(path.parent().unwrap_or(path)))
}

fn write_snapshot(path: &Path, next: &mut dyn FnMut() -> Option<Vec<Record>>) -> io::Result<u64> {
    let mut options = File::options();
    let file = modes(path).open(options.create(true).write(true).truncate(true), path)?;
    let mut file = BufWriter::with_capacity(1024 * 1024, file);
    let mut text = Vec::new();
    let (mut bytes, mut first) = (0, true);
    file.write_all(b"{")?;
    while let Some(records) = next() {
        text.clear();
        for record in &records {
            file::write_entry(&mut text, record, first);
            first = false;
        }
        file.write_all(&text)?;
        bytes += text.len() as u64;
    }
    file.write_all(b"\n}\n")?;
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()?;
    Ok(bytes)
}

fn sync_parent(file: &Path) -> io::Result<()> {
    sync_directory(file.parent().unwrap_or(file))
}
