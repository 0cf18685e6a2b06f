//! Many orders of joining, leading, leaving, closing, committing and failing.
//!
//! `running` is compiled here a second time, with locks at which the scheduler of shuttle chooses
//! who goes on: thousands of orders, the same in every run.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread;

use crate::oci::{Algorithm, Digest, RepoName};

mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}
#[expect(clippy::duplicate_mod, reason = "with other locks")]
#[path = "../running.rs"]
mod running;

use running::{Place, Running};

const SEED: u64 = 4;
/// Orders that are tried of each scene and in each way.
const SOME: usize = 4_000;

const RUNS: u8 = 0;
/// It is, or may be about to be, forgotten.
const ENDS: u8 = 1;

/// A download, as everybody sees it.
#[derive(Debug)]
struct Download {
    id: u64,
    digest: Digest,
    state: AtomicU8,
    /// Its task has ended, because nobody was there.
    closed: AtomicBool,
    /// Its task is the caller's to start; once.
    started: AtomicBool,
    linked: OnceLock<Vec<RepoName>>,
}

/// How a download ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commits,
    Fails,
    /// Closes when nobody is left; commits when somebody always is.
    Closes,
}

/// What everybody shares. The locks here are the real ones: they are no point to change threads at.
#[derive(Default)]
struct Ledger {
    made: std::sync::Mutex<Vec<Arc<Download>>>,
    /// Who had a place in which download, for which repository.
    placed: std::sync::Mutex<Vec<(RepoName, Arc<Download>)>>,
    told_committed: std::sync::Mutex<Vec<Digest>>,
}

struct House {
    running: Running<Arc<Download>>,
    ledger: Ledger,
    ends: Vec<End>,
}

fn digest(name: &str) -> Digest {
    Digest::of(Algorithm::Sha256, name.as_bytes())
}

impl House {
    /// Called under the lock of `running`.
    fn make(&self, digest: Digest, id: u64) -> Arc<Download> {
        let mut made = self.ledger.made.lock().unwrap();
        for other in made.iter() {
            assert_ne!(other.id, id, "an id was given twice");
            let over = other.digest != digest || other.state.load(SeqCst) == ENDS;
            assert!(over, "a second download of a digest");
        }
        let download = Arc::new(Download {
            id,
            digest,
            state: AtomicU8::new(RUNS),
            closed: AtomicBool::new(false),
            started: AtomicBool::new(false),
            linked: OnceLock::new(),
        });
        made.push(Arc::clone(&download));
        download
    }

    fn start(self: &Arc<Self>, download: Arc<Download>) -> thread::JoinHandle<()> {
        assert!(
            !download.started.swap(true, SeqCst),
            "two tasks of one download"
        );
        let house = Arc::clone(self);
        let which = usize::try_from(download.id).unwrap();
        let end = self.ends[which % self.ends.len()];
        thread::spawn(move || house.task(&download, end))
    }

    fn task(&self, download: &Download, end: End) {
        let Download { id, digest, .. } = download;
        if end == End::Closes {
            for _ in 0..2 {
                if self.running.is_abandoned(digest, *id) {
                    // From before the call on: whoever makes the next one is quicker than the answer.
                    download.state.store(ENDS, SeqCst);
                    if self.running.close(digest, *id) {
                        download.closed.store(true, SeqCst);
                        return;
                    }
                    download.state.store(RUNS, SeqCst);
                }
            }
        }
        if end != End::Fails {
            let linked = self.running.committed(digest, *id);
            download.linked.set(linked).unwrap();
        }
        download.state.store(ENDS, SeqCst);
        self.running.forget(digest, *id);
        // The task's guard does so a second time, when another one may have its place.
        self.running.forget(digest, *id);
    }

    /// A client comes, stays for a while, and leaves.
    fn client(self: &Arc<Self>, digest: Digest, repository: &RepoName) {
        let (download, task) = if let Some(download) = self.running.follow(&digest, repository) {
            (download, None)
        } else {
            match self
                .running
                .join(digest, repository, |id| self.make(digest, id))
            {
                Place::Follow(download) => (download, None),
                Place::Lead(download) => {
                    let task = self.start(Arc::clone(&download));
                    (download, Some(task))
                }
                Place::Committed => {
                    self.ledger.told_committed.lock().unwrap().push(digest);
                    return;
                }
            }
        };
        assert_eq!(download.digest, digest);
        let placed = (repository.clone(), Arc::clone(&download));
        self.ledger.placed.lock().unwrap().push(placed);
        thread::yield_now();
        assert!(!download.closed.load(SeqCst), "closed on a client");
        self.running.leave(&digest, download.id);
        if let Some(task) = task {
            task.join().unwrap();
        }
    }

    fn prefetcher(self: &Arc<Self>, digest: Digest, repository: &RepoName) {
        let stands = self
            .running
            .stand(digest, repository, |id| self.make(digest, id));
        if let Some(download) = stands {
            let placed = (repository.clone(), Arc::clone(&download));
            self.ledger.placed.lock().unwrap().push(placed);
            assert!(!self.running.is_abandoned(&digest, download.id));
            let task = self.start(Arc::clone(&download));
            // The mirror stops: from here on it goes on for clients only.
            let drains = download.id.is_multiple_of(2);
            if drains {
                self.running.stand_no_more(&digest, download.id);
            }
            task.join().unwrap();
            assert!(
                drains || !download.closed.load(SeqCst),
                "it was to go on without clients"
            );
        }
    }

    /// What has to hold when everybody is gone.
    fn check(&self) {
        for (repository, download) in self.ledger.placed.lock().unwrap().iter() {
            if let Some(linked) = download.linked.get() {
                assert!(linked.contains(repository), "not linked into {repository}");
            }
        }
        let made = self.ledger.made.lock().unwrap();
        for digest in self.ledger.told_committed.lock().unwrap().iter() {
            let committed = |of: &Arc<Download>| of.digest == *digest && of.linked.get().is_some();
            assert!(made.iter().any(committed), "nothing was committed");
        }
        for Download {
            id,
            digest,
            started,
            ..
        } in made.iter().map(|download| &**download)
        {
            assert!(started.load(SeqCst) && !self.running.is_running(digest));
            assert!(!self.running.has_clients(digest, *id));
        }
    }
}

fn everybody(ends: &[End], clients: &[(&str, &str)], ahead: Option<(&str, &str)>) {
    let house = Arc::new(House {
        running: Running::new(),
        ledger: Ledger::default(),
        ends: ends.to_vec(),
    });
    let mut threads = Vec::new();
    for (blob, repository) in clients {
        let (house, digest) = (Arc::clone(&house), digest(blob));
        let repository: RepoName = repository.parse().unwrap();
        threads.push(thread::spawn(move || house.client(digest, &repository)));
    }
    if let Some((blob, repository)) = ahead {
        let (house, digest) = (Arc::clone(&house), digest(blob));
        let repository: RepoName = repository.parse().unwrap();
        threads.push(thread::spawn(move || house.prefetcher(digest, &repository)));
    }
    for thread in threads {
        thread.join().unwrap();
    }
    house.check();
}

fn try_orders(scheduler: impl Scheduler + 'static, scene: impl Fn() + Send + Sync + 'static) {
    shuttle::Runner::new(scheduler, shuttle::Config::default()).run(scene);
}

#[test]
fn two_clients_in_many_orders() {
    for end in [End::Closes, End::Commits, End::Fails] {
        let scene = move || everybody(&[end], &[("x", "a"), ("x", "b")], None);
        try_orders(RandomScheduler::new_from_seed(SEED, SOME), scene);
        try_orders(PctScheduler::new_from_seed(SEED, 3, SOME), scene);
    }
}

#[test]
fn many_clients_in_many_orders() {
    for ends in [
        &[End::Closes][..],
        &[End::Closes, End::Commits],
        &[End::Fails, End::Closes, End::Commits],
    ] {
        let scene = move || {
            let clients = [("x", "a"), ("x", "b"), ("y", "a"), ("x", "a"), ("x", "c")];
            everybody(ends, &clients, Some(("x", "b")));
        };
        try_orders(RandomScheduler::new_from_seed(SEED, SOME), scene);
        try_orders(PctScheduler::new_from_seed(SEED, 4, SOME), scene);
    }
}
