//! Many orders of joining, leading, leaving, closing, committing and failing.
//!
//! Compiles `registry` a second time, with locks at which shuttle's scheduler chooses the next thread:
//! thousands of orders, the same in every run.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use shuttle::thread;
use testkit::orders;

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

/// A download, as the tasks and the clients see it. The locks are the real ones: threads don't switch
/// at them.
#[derive(Debug)]
struct Download {
    id: u64,
    digest: Digest,
    /// Whether it is, or may be about to be, forgotten.
    ends: AtomicBool,
    /// Whether its task has ended because there was no client.
    closed: AtomicBool,
    /// Whether its task was started.
    started: AtomicBool,
    linked: OnceLock<Vec<RepoName>>,
    /// The repositories whose sources were asked, in order.
    asked: Mutex<Vec<RepoName>>,
    /// Those that were proved before the links were collected.
    proved: Mutex<Vec<RepoName>>,
    /// Whether every source has failed.
    exhausted: AtomicBool,
}

/// How a download ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commits,
    Fails,
    /// Closes when no client is left; otherwise commits.
    Closes,
    /// Every source fails, one after the other.
    Refused,
    /// The first source fails, the next one is good.
    FailsOver,
}

/// The registry, and what happened to its downloads.
struct Scene {
    registry: Registry<Arc<Download>, RepoName, RepoName>,
    ends: Vec<End>,
    made: Mutex<Vec<Arc<Download>>>,
    /// Repositories with a proved client, and its download.
    placed: Mutex<Vec<(RepoName, Arc<Download>)>>,
    /// The downloads that clients were told are committed.
    told_committed: Mutex<Vec<u64>>,
}

const UPSTREAM: &str = "u";
/// Repositories whose own HEAD isn't answered in time.
const LACKING: [&str; 1] = ["c"];

fn digest(name: &str) -> Digest {
    Digest::of(Algorithm::Sha256, name.as_bytes())
}

impl Scene {
    /// Called under the lock of `registry`.
    fn make(&self, digest: Digest, id: u64) -> Arc<Download> {
        let mut made = self.made.lock().unwrap();
        for other in made.iter() {
            assert_ne!(other.id, id, "an id was given twice");
            let over = other.digest != digest || other.ends.load(SeqCst);
            assert!(over, "a second download of a digest");
        }
        let download = Arc::new(Download {
            id,
            digest,
            ends: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            started: AtomicBool::new(false),
            linked: OnceLock::new(),
            asked: Mutex::default(),
            proved: Mutex::default(),
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
        let (scene, leader) = (Arc::clone(self), leader.clone());
        let which = usize::try_from(download.id).unwrap();
        let end = self.ends[which % self.ends.len()];
        thread::spawn(move || scene.task(&download, leader, end))
    }

    /// A source answers that its repository has the blob.
    fn answered(&self, download: &Download, member: u64, repository: &RepoName) {
        if self.registry.prove(&download.digest, download.id, member) {
            download.proved.lock().unwrap().push(repository.clone());
        }
    }

    /// Asks sources until one is good. False when none is.
    fn sources(&self, download: &Download, leader: RepoName, end: End) -> bool {
        let Download { id, digest, .. } = download;
        let (mut member, mut repository) = (0, leader);
        loop {
            download.asked.lock().unwrap().push(repository.clone());
            let first = download.asked.lock().unwrap().len() == 1;
            if end != End::Refused && (end != End::FailsOver || !first) {
                self.answered(download, member, &repository);
                return true;
            }
            // Set before the call, as with closing.
            download.ends.store(true, SeqCst);
            let Some(next) = self.registry.next_source(digest, *id, member) else {
                download.exhausted.store(true, SeqCst);
                return false;
            };
            download.ends.store(false, SeqCst);
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
                    // Set before the call: the next download may be made before the call returns.
                    download.ends.store(true, SeqCst);
                    if self.registry.close(digest, *id) {
                        download.closed.store(true, SeqCst);
                        return;
                    }
                    download.ends.store(false, SeqCst);
                }
            }
        }
        if end != End::Fails {
            let linked = self.registry.committed(digest, *id);
            download.linked.set(linked).unwrap();
        }
        download.ends.store(true, SeqCst);
        self.registry.forget(digest, *id);
        // The task's guard does so a second time, when another download may have replaced it.
        self.registry.forget(digest, *id);
    }

    /// A client joins, stays for a while, and leaves.
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
                    self.told_committed.lock().unwrap().push(id);
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
        // Other repositories prove themselves by their own HEAD.
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
            self.placed.lock().unwrap().push(placed);
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
            // The mirror drains: the download continues for clients only.
            let drains = download.id.is_multiple_of(2);
            if drains {
                self.registry.stand_no_more(&digest, download.id);
            }
            task.join().unwrap();
            assert!(
                drains || !download.closed.load(SeqCst),
                "it had to continue without clients"
            );
        }
    }

    /// The invariants once all threads have ended.
    fn check(&self) {
        for (repository, download) in self.placed.lock().unwrap().iter() {
            if let Some(linked) = download.linked.get() {
                assert!(linked.contains(repository), "not linked into {repository}");
            }
        }
        let made = self.made.lock().unwrap();
        for id in self.told_committed.lock().unwrap().iter() {
            let committed = |of: &Arc<Download>| of.id == *id && of.linked.get().is_some();
            assert!(made.iter().any(committed), "nothing was committed");
        }
        for download in made.iter() {
            let proved = download.proved.lock().unwrap();
            for repository in download.linked.get().into_iter().flatten() {
                assert!(proved.contains(repository), "{repository} wasn't proved");
            }
            let Download { id, digest, .. } = &**download;
            assert!(download.started.load(SeqCst));
            assert!(!self.registry.is_running(UPSTREAM, digest));
            assert!(!self.registry.has_clients(digest, *id));
        }
    }
}

/// Runs clients, and a prefetch, of blobs for repositories.
fn play(ends: &[End], clients: &[(&str, &str)], ahead: Option<(&str, &str)>) {
    let scene = Arc::new(Scene {
        registry: Registry::new(),
        ends: ends.to_vec(),
        made: Mutex::default(),
        placed: Mutex::default(),
        told_committed: Mutex::default(),
    });
    let spawn = |(blob, repository): (&str, &str), run: fn(&Arc<Scene>, Digest, &RepoName)| {
        let (scene, digest) = (Arc::clone(&scene), digest(blob));
        let repository: RepoName = repository.parse().unwrap();
        thread::spawn(move || run(&scene, digest, &repository))
    };
    let clients = clients.iter().map(|client| spawn(*client, Scene::client));
    let ahead = ahead.map(|ahead| spawn(ahead, Scene::prefetcher));
    let threads: Vec<_> = clients.chain(ahead).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    scene.check();
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
        let scene = move || play(&[end], &[("x", "a"), ("x", "b")], None);
        orders::try_orders(SEED, 3, scene);
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
            play(ends, &clients, Some(("x", "b")));
        };
        orders::try_orders(SEED, 4, scene);
    }
}
