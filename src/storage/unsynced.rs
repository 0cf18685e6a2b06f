//! Files that have their names, and aren't durable yet.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;

use super::{StoreError, blocking, disk};

/// Files or directories that are synced at one time.
const AT_ONCE: usize = 8;

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
    /// The directories that have its name, and those of the directories that were made for it.
    named_in: BTreeSet<PathBuf>,
}

impl Unsynced {
    /// A file has got its name, and these directories were made for it.
    pub(super) fn add(&self, file: PathBuf, created: &[PathBuf]) {
        let names = created.iter().chain([&file]);
        let named_in = names.filter_map(|name| name.parent().map(Path::to_owned));
        let written = Written {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            named_in: named_in.collect(),
        };
        self.files.lock().insert(file, written);
    }

    /// A file has gone.
    pub(super) fn remove(&self, file: &Path) {
        self.files.lock().remove(file);
    }

    /// Makes those of the files durable that aren't, then their names. The error has the files whose
    /// content may be lost, and the first failure.
    pub(super) async fn sync(
        &self,
        files: impl IntoIterator<Item = PathBuf>,
    ) -> Result<(), (Vec<PathBuf>, StoreError)> {
        let written: Vec<_> = {
            let unsynced = self.files.lock();
            let found = |file: PathBuf| unsynced.get(&file).cloned().map(|found| (file, found));
            files.into_iter().filter_map(found).collect()
        };
        let contents: Vec<_> = written.iter().map(|(file, _)| file.clone()).collect();
        let mut failed = each(contents, disk::sync_file).await.into_iter();
        if let Some((file, error)) = failed.next() {
            let lost = failed.map(|(file, _)| file).chain([file]);
            return Err((lost.collect(), error));
        }
        // After the contents, so that no name outlives its content.
        let directories = written.iter().flat_map(|(_, found)| &found.named_in);
        let directories: BTreeSet<_> = directories.cloned().collect();
        let mut failed = each(directories, disk::sync_names_in).await.into_iter();
        if let Some((_, error)) = failed.next() {
            return Err((Vec::new(), error));
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

/// Does a step for each path, some at a time. Returns those that failed.
async fn each(
    paths: impl IntoIterator<Item = PathBuf, IntoIter: Send>,
    step: fn(&Path) -> Result<(), StoreError>,
) -> Vec<(PathBuf, StoreError)> {
    let mut failed = Vec::new();
    let mut paths = paths.into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        for path in paths.by_ref().take(AT_ONCE - running.len()) {
            running.push(async move {
                let here = path.clone();
                let done = blocking(move || step(&here)).await;
                done.err().map(|error| (path, error))
            });
        }
        match running.next().await {
            None => return failed,
            Some(ended) => failed.extend(ended),
        }
    }
}
