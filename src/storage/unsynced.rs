//! Files that have their names, and aren't durable yet.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;

use super::{StoreError, blocking, disk};

/// Files and directories that are synced at one time: those of a manifest with a tag. A journal writes
/// together what it is asked for together; one after the other, each would wait for what others have
/// changed meanwhile.
const AT_ONCE: usize = 16;

/// What this process has written without a sync.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    files: Mutex<HashMap<PathBuf, Written>>,
    next: AtomicU64,
}

#[derive(Debug, Clone)]
struct Written {
    /// Tells it from a later file of the same name.
    number: u64,
    /// Its bytes aren't durable.
    content: bool,
    /// The directories that have its name, and those of the directories that were made for it.
    named_in: BTreeSet<PathBuf>,
}

/// Something that is to be made durable.
#[derive(Debug, Clone)]
enum Step {
    Content(PathBuf),
    NamesIn(PathBuf),
}

impl Unsynced {
    /// A file has got its name, and these directories were made for it.
    pub(super) fn add(&self, file: PathBuf, created: &[PathBuf]) {
        self.insert(file, true, created);
    }

    /// The same, of a file whose bytes are durable.
    pub(super) fn add_name(&self, file: PathBuf, created: &[PathBuf]) {
        self.insert(file, false, created);
    }

    fn insert(&self, file: PathBuf, content: bool, created: &[PathBuf]) {
        let names = created.iter().chain([&file]);
        let named_in = names.filter_map(|name| name.parent().map(Path::to_owned));
        let written = Written {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            content,
            named_in: named_in.collect(),
        };
        self.files.lock().insert(file, written);
    }

    /// A file has gone.
    pub(super) fn remove(&self, file: &Path) {
        self.files.lock().remove(file);
    }

    /// Makes those of the files durable that aren't, and their names; and the bytes of `drafts`. A power
    /// cut meanwhile may leave a name without its content. The error has the files whose content may be
    /// lost, and the first failure.
    pub(super) async fn sync(
        &self,
        files: impl IntoIterator<Item = PathBuf>,
        drafts: &[PathBuf],
    ) -> Result<(), (Vec<PathBuf>, StoreError)> {
        let written: Vec<_> = {
            let unsynced = self.files.lock();
            let found = |file: PathBuf| unsynced.get(&file).cloned().map(|found| (file, found));
            files.into_iter().filter_map(found).collect()
        };
        let contents = written.iter().filter(|(_, found)| found.content);
        let contents = contents.map(|(file, _)| file).chain(drafts);
        let directories = written.iter().flat_map(|(_, found)| &found.named_in);
        let directories: BTreeSet<_> = directories.cloned().collect();
        let steps = contents.cloned().map(Step::Content);
        let steps: Vec<_> = steps
            .chain(directories.into_iter().map(Step::NamesIn))
            .collect();
        let mut failed = each(steps).await;
        // A content that is lost says more than a name.
        failed.sort_by_key(|(step, _)| step.content().is_none());
        let lost = failed.iter().filter_map(|(step, _)| step.content());
        let lost = lost.map(Path::to_owned).collect();
        if let Some((_, error)) = failed.into_iter().next() {
            return Err((lost, error));
        }
        let mut unsynced = self.files.lock();
        for (file, found) in written {
            if unsynced
                .get(&file)
                .is_some_and(|now| now.number == found.number)
            {
                unsynced.remove(&file);
            }
        }
        Ok(())
    }
}

impl Step {
    fn content(&self) -> Option<&Path> {
        match self {
            Self::Content(file) => Some(file),
            Self::NamesIn(_) => None,
        }
    }

    /// Blocks.
    fn run(&self) -> Result<(), StoreError> {
        match self {
            Self::Content(file) => disk::sync_file(file),
            Self::NamesIn(directory) => disk::sync_names_in(directory),
        }
    }
}

/// Does the steps, some at a time. Returns those that failed.
async fn each(steps: Vec<Step>) -> Vec<(Step, StoreError)> {
    let mut failed = Vec::new();
    let mut steps = steps.into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        for step in steps.by_ref().take(AT_ONCE - running.len()) {
            running.push(async move {
                let here = step.clone();
                let done = blocking(move || here.run()).await;
                done.err().map(|error| (step, error))
            });
        }
        match running.next().await {
            None => return failed,
            Some(ended) => failed.extend(ended),
        }
    }
}
