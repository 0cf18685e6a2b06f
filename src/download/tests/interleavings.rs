//! Many orders of joining, leading, leaving, closing, committing and failing.
//!
//! `registry` is compiled here a second time, with locks at which the scheduler of shuttle chooses
//! who goes on: thousands of orders, the same in every run.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread;

use crate::oci::{Algorithm, Digest, RepoName};

mod sync {
    pub(super) use std::sync::{Arc, PoisonError};

    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}
#[expect(clippy::duplicate_mod, reason = "with other locks")]
#[path = "../registry.rs"]
mod registry;

use registry::{Registry, Role, Seat};

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
    /// The repositories whose sources were asked, in order.
    asked: std::sync::Mutex<Vec<RepoName>>,
    /// Those that were proved before the links were collected.
    proved: std::sync::Mutex<Vec<RepoName>>,
    /// Every source has failed.
    exhausted: AtomicBool,
}

/// How a download ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commits,
    Fails,
    /// Closes when nobody is left; commits when somebody always is.
    Closes,
    /// Every source fails, one after the other.
    Refused,
    /// The first source fails, the next one is good.
    FailsOver,
}

/// What everybody shares. The locks here are the real ones: they are no point to change threads at.
#[derive(Default)]
struct Ledger {
    made: std::sync::Mutex<Vec<Arc<Download>>>,
    /// Who had a proved place in which download, for which repository.
    placed: std::sync::Mutex<Vec<(RepoName, Arc<Download>)>>,
    /// The downloads that clients were told are committed.
    told_committed: std::sync::Mutex<Vec<u64>>,
}

struct House {
    registry: Registry<Arc<Download>, RepoName>,
    ledger: Ledger,
    ends: Vec<End>,
}

const UPSTREAM: &str = "u";
/// Repositories whose own question gets no answer in time.
const LACKING: [&str; 1] = ["c"];

fn digest(name: &str) -> Digest {
    Digest::of(Algorithm::Sha256, name.as_bytes())
}

impl House {
    /// Called under the lock of `registry`.
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
            asked: std::sync::Mutex::default(),
            proved: std::sync::Mutex::default(),
            exhausted: AtomicBool::new(false),
        });
        made.push(Arc::clone(&download));
        download
    }

    fn start(
        self: &Arc<Self>,
        download: Arc<Download>,
        leader: &RepoName,
    ) -> thread::JoinHandle<()> {
        assert!(
            !download.started.swap(true, SeqCst),
            "two tasks of one download"
        );
        let (house, leader) = (Arc::clone(self), leader.clone());
        let which = usize::try_from(download.id).unwrap();
        let end = self.ends[which % self.ends.len()];
        thread::spawn(move || house.task(&download, leader, end))
    }

    /// A source has said that its repository has the blob.
    fn answered(&self, download: &Download, member: u64, repository: &RepoName) {
        if self.registry.prove(&download.digest, download.id, member) {
            download.proved.lock().unwrap().push(repository.clone());
        }
    }

    /// Asks sources until one is good; false when none is.
    fn sources(&self, download: &Download, leader: RepoName, end: End) -> bool {
        let Download { id, digest, .. } = download;
        let (mut member, mut repository) = (0, leader);
        loop {
            let asked = {
                let mut asked = download.asked.lock().unwrap();
                asked.push(repository.clone());
                asked.len()
            };
            if end != End::Refused && (end != End::FailsOver || asked > 1) {
                self.answered(download, member, &repository);
                return true;
            }
            // From before the call on, as with closing.
            download.state.store(ENDS, SeqCst);
            let Some(next) = self.registry.next_source(digest, *id, member) else {
                download.exhausted.store(true, SeqCst);
                return false;
            };
            download.state.store(RUNS, SeqCst);
            (member, repository) = next;
        }
    }

    fn task(&self, download: &Download, leader: RepoName, end: End) {
        let Download { id, digest, .. } = download;
        if !self.sources(download, leader, end) {
            self.registry.forget(digest, *id);
            return;
        }
        if end == End::Closes {
            for _ in 0..2 {
                if self.registry.is_abandoned(digest, *id) {
                    // From before the call on: whoever makes the next one is quicker than the answer.
                    download.state.store(ENDS, SeqCst);
                    if self.registry.close(digest, *id) {
                        download.closed.store(true, SeqCst);
                        return;
                    }
                    download.state.store(RUNS, SeqCst);
                }
            }
        }
        if end != End::Fails {
            let linked = self.registry.committed(digest, *id);
            download.linked.set(linked).unwrap();
        }
        download.state.store(ENDS, SeqCst);
        self.registry.forget(digest, *id);
        // The task's guard does so a second time, when another one may have its place.
        self.registry.forget(digest, *id);
    }

    /// A client comes, stays for a while, and leaves.
    fn client(self: &Arc<Self>, digest: Digest, repository: &RepoName) {
        let (seat, task) = if let Some(seat) = self.registry.follow(UPSTREAM, &digest, repository) {
            (seat, None)
        } else {
            let own = repository.clone();
            let make = |id| self.make(digest, id);
            match self.registry.join(UPSTREAM, digest, repository, own, make) {
                Role::Follow(seat) => (seat, None),
                Role::Lead(seat) => {
                    let task = self.start(Arc::clone(&seat.download), repository);
                    (seat, Some(task))
                }
                Role::Committed { id } => {
                    self.ledger.told_committed.lock().unwrap().push(id);
                    return;
                }
            }
        };
        let Seat {
            download,
            member,
            needs_proof,
        } = seat;
        assert_eq!(download.digest, digest);
        thread::yield_now();
        // Every second repository proves itself by a question of its own.
        if needs_proof && !LACKING.contains(&repository.as_str()) {
            self.answered(&download, member, repository);
        }
        thread::yield_now();
        assert!(!download.closed.load(SeqCst), "closed on a client");
        if download.exhausted.load(SeqCst) {
            let asked = download.asked.lock().unwrap();
            assert!(
                asked.contains(repository),
                "the source of {repository} was never asked"
            );
        }
        if download.proved.lock().unwrap().contains(repository) {
            let placed = (repository.clone(), Arc::clone(&download));
            self.ledger.placed.lock().unwrap().push(placed);
        }
        self.registry.leave(&digest, download.id, member);
        if let Some(task) = task {
            task.join().unwrap();
        }
    }

    fn prefetcher(self: &Arc<Self>, digest: Digest, repository: &RepoName) {
        let own = repository.clone();
        let make = |id| self.make(digest, id);
        let stands = self.registry.stand(UPSTREAM, digest, repository, own, make);
        if let Some(Seat { download, .. }) = stands {
            assert!(!self.registry.is_abandoned(&digest, download.id));
            let task = self.start(Arc::clone(&download), repository);
            // The mirror stops: from here on it goes on for clients only.
            let drains = download.id.is_multiple_of(2);
            if drains {
                self.registry.stand_no_more(&digest, download.id);
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
        for download in self.ledger.made.lock().unwrap().iter() {
            let proved = download.proved.lock().unwrap();
            for repository in download.linked.get().into_iter().flatten() {
                assert!(proved.contains(repository), "{repository} wasn't proved");
            }
        }
        let made = self.ledger.made.lock().unwrap();
        for id in self.ledger.told_committed.lock().unwrap().iter() {
            let committed = |of: &Arc<Download>| of.id == *id && of.linked.get().is_some();
            assert!(made.iter().any(committed), "nothing was committed");
        }
        for Download {
            id,
            digest,
            started,
            ..
        } in made.iter().map(|download| &**download)
        {
            assert!(started.load(SeqCst) && !self.registry.is_running(UPSTREAM, digest));
            assert!(!self.registry.has_clients(digest, *id));
        }
    }
}

fn everybody(ends: &[End], clients: &[(&str, &str)], ahead: Option<(&str, &str)>) {
    let house = Arc::new(House {
        registry: Registry::new(),
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
    for end in [
        End::Closes,
        End::Commits,
        End::Fails,
        End::Refused,
        End::FailsOver,
    ] {
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
        &[End::Refused, End::FailsOver],
    ] {
        let scene = move || {
            let clients = [("x", "a"), ("x", "b"), ("y", "a"), ("x", "a"), ("x", "c")];
            everybody(ends, &clients, Some(("x", "b")));
        };
        try_orders(RandomScheduler::new_from_seed(SEED, SOME), scene);
        try_orders(PctScheduler::new_from_seed(SEED, 4, SOME), scene);
    }
}
