//! Files of certificates and keys that are read again when they change, so that their renewal needs no
//! restart.
//!
//! The files are looked at every [`INTERVAL`]. When one was written, replaced or removed, its owner reads
//! all its files again. If what they have can't be used, the log gets one line for this change, and the
//! owner continues with what it had. They are read again at each look until they can be used: what failed
//! may have been the reading.

use std::error::Error;
use std::fmt::Debug;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error_chain::on_one_line;
use crate::tasks::Tasks;

/// How often files are looked at; that of a listener's certificate, too.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// What differs when a file has been written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Blocks.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            inode: metadata.ino(),
            length: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Files that belong together.
#[derive(Debug)]
pub struct WatchedFiles {
    paths: Vec<PathBuf>,
    /// None for a file that can't be looked at.
    seen: Mutex<Vec<Option<Stamp>>>,
    /// Whether they couldn't be used when they were read last.
    failed: AtomicBool,
}

impl WatchedFiles {
    /// To be called before the files are read for the first time. Blocks.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<_> = paths.into_iter().collect();
        let seen = Mutex::new(stamps(&paths));
        let failed = AtomicBool::new(false);
        Self {
            paths,
            seen,
            failed,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Whether a file has changed since the last call. Blocks.
    pub fn have_changed(&self) -> bool {
        let now = stamps(&self.paths);
        let mut seen = self.seen.lock();
        let is_equal = *seen == now;
        *seen = now;
        !is_equal
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| Stamp::of(path).ok()).collect()
}

/// Has something that was read from files.
pub trait Renewable: Debug + Send + Sync + 'static {
    /// For the log, as `the keys of ...`.
    fn what(&self) -> String;

    fn files(&self) -> &WatchedFiles;

    /// Reads the files again. After an error, what was read before stays in use. Blocks.
    fn renew(&self) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// What is renewed at present. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Renewals {
    items: Arc<Mutex<Items>>,
}

/// Replaced as a whole, so that files are read without the lock.
type Items = Arc<[Arc<dyn Renewable>]>;

impl Renewals {
    /// Replaces what is renewed.
    pub fn set(&self, items: impl IntoIterator<Item = Arc<dyn Renewable>>) {
        *self.items.lock() = items.into_iter().collect();
    }

    /// Looks at the files of all items every [`INTERVAL`] until `stop`.
    pub fn watch(&self, tasks: &Tasks, stop: CancellationToken) {
        let renewals = self.clone();
        tasks.spawn_restarted("renewal of files", stop, move || renewals.clone().run());
    }

    async fn run(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let items = Arc::clone(&self.items.lock());
            let check = move || items.iter().for_each(|item| check(&**item));
            if let Err(error) = tokio::task::spawn_blocking(check).await {
                tracing::error!(error = %on_one_line(&error), "files couldn't be checked for changes");
            }
        }
    }
}

fn check(item: &dyn Renewable) {
    let files = item.files();
    let have_changed = files.have_changed();
    if !have_changed && !files.failed.load(Ordering::Relaxed) {
        return;
    }
    let (what, renewed) = (item.what(), item.renew());
    files.failed.store(renewed.is_err(), Ordering::Relaxed);
    match renewed {
        Ok(()) => tracing::info!(what, "the changed files are in use"),
        // It is the same as before.
        Err(_) if !have_changed => {}
        Err(error) => {
            let error = on_one_line(&*error);
            tracing::error!(
                what,
                error,
                "the changed files can't be used; what they had before stays in use"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Debug)]
    struct Text {
        path: PathBuf,
        files: WatchedFiles,
        current: Mutex<String>,
        renewals: AtomicUsize,
        unreadable: AtomicBool,
    }

    impl Renewable for Text {
        fn what(&self) -> String {
            "a text".to_owned()
        }

        fn files(&self) -> &WatchedFiles {
            &self.files
        }

        fn renew(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
            self.renewals.fetch_add(1, Ordering::SeqCst);
            if self.unreadable.load(Ordering::SeqCst) {
                return Err("too many open files".into());
            }
            *self.current.lock() = std::fs::read_to_string(&self.path)?;
            Ok(())
        }
    }

    #[test]
    fn each_change_is_read_until_it_can_be_used_and_a_bad_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        std::fs::write(&path, "one").unwrap();
        let text = Text {
            files: WatchedFiles::new([path.clone()]),
            path: path.clone(),
            current: Mutex::new("one".to_owned()),
            renewals: AtomicUsize::new(0),
            unreadable: AtomicBool::new(false),
        };
        let checked = || {
            check(&text);
            check(&text);
            let renewals = text.renewals.load(Ordering::SeqCst);
            (text.current.lock().clone(), renewals)
        };
        assert_eq!(checked(), ("one".to_owned(), 0));
        std::fs::write(&path, "second").unwrap();
        assert_eq!(checked(), ("second".to_owned(), 1));
        // What isn't there is looked for again.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(checked(), ("second".to_owned(), 3));
        // As Kubernetes does it: a link to another file.
        std::fs::write(directory.path().join("other"), "third").unwrap();
        std::os::unix::fs::symlink("other", &path).unwrap();
        assert_eq!(checked(), ("third".to_owned(), 4));
        // Unreadable for a moment: another change isn't needed.
        text.unreadable.store(true, Ordering::SeqCst);
        std::fs::write(&path, "fourth").unwrap();
        assert_eq!(checked(), ("third".to_owned(), 6));
        text.unreadable.store(false, Ordering::SeqCst);
        assert_eq!(checked(), ("fourth".to_owned(), 7));
    }
}
