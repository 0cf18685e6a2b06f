//! Many orders of requests that ask a circuit and tell it their outcomes, and of replicas that ask each other.
//!
//! Compiles `circuit` and `one_way` a second time, with a lock at which shuttle's scheduler chooses the next thread:
//! thousands of orders, the same in every run.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use shuttle::thread;
use testkit::orders::{self, together};
use tokio::time::Instant;

mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}
#[expect(clippy::duplicate_mod, reason = "with another lock")]
#[expect(dead_code, reason = "pauses are of one kind here")]
#[path = "../circuit.rs"]
mod circuit;
#[expect(clippy::duplicate_mod, reason = "with another lock")]
#[expect(dead_code, reason = "bytes are never wrong here")]
#[path = "../one_way.rs"]
mod one_way;

use circuit::{Change, Circuit, FAILURES, MAX_PAUSE, Pass, Trouble, View};

const SEED: u64 = 4;

/// How a request ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Succeeds,
    Fails,
    IsLimited,
    IsCancelled,
}

/// A circuit at one moment, and what its requests saw.
struct Scene {
    circuit: Circuit,
    now: Instant,
    probes: AtomicUsize,
    changes: Mutex<Vec<Change>>,
}

impl Scene {
    fn new() -> Self {
        Self {
            circuit: Circuit::new(),
            now: Instant::now(),
            probes: AtomicUsize::new(0),
            changes: Mutex::default(),
        }
    }

    /// A circuit whose pause is over.
    fn due() -> Self {
        let mut scene = Self::new();
        for _ in 0..FAILURES {
            let pass = scene.circuit.admit(scene.now, false).unwrap();
            scene.end(pass, End::Fails);
        }
        scene.now += 2 * MAX_PAUSE;
        scene.changes = Mutex::default();
        scene
    }

    fn end(&self, pass: Pass, end: End) {
        let failed = |trouble| self.circuit.failed(pass, trouble, self.now, 0.5);
        let change = match end {
            End::Succeeds => self.circuit.succeeded(pass),
            End::Fails => failed(Trouble::Failed),
            End::IsLimited => failed(Trouble::PushedBack(None)),
            End::IsCancelled => {
                self.circuit.abandoned(pass, self.now);
                None
            }
        };
        self.changes.lock().unwrap().extend(change);
    }

    /// How often it has opened, and closed.
    fn counts(&self) -> (usize, usize) {
        let changes = self.changes.lock().unwrap();
        let closed = changes.iter().filter(|change| **change == Change::Closed);
        let closed = closed.count();
        (changes.len() - closed, closed)
    }
}

#[test]
fn there_is_one_probe_at_a_time() {
    const ENDS: [End; 5] = [
        End::Fails,
        End::IsCancelled,
        End::IsCancelled,
        End::IsLimited,
        End::IsCancelled,
    ];
    orders::try_orders(SEED, 3, || {
        let scene = Arc::new(Scene::due());
        // None succeeds: each that is admitted is a probe.
        together(&scene, ENDS, |scene, end| {
            if let Some(pass) = scene.circuit.admit(scene.now, false) {
                assert_eq!(scene.probes.fetch_add(1, SeqCst), 0);
                thread::yield_now();
                assert_eq!(scene.probes.fetch_sub(1, SeqCst), 1);
                scene.end(pass, end);
            }
        });
        // Once one has failed, no other is sent; and none stays for ever.
        let (opened, closed) = scene.counts();
        assert!(opened <= 1 && closed == 0, "{opened} {closed}");
        match scene.circuit.view() {
            View::Open(until) => assert_eq!(until > scene.now, opened == 1),
            view => panic!("{view:?}"),
        }
    });
}

#[test]
fn requests_of_one_state_open_it_once_and_do_not_close_it() {
    const ENDS: [End; 6] = [
        End::Fails,
        End::Succeeds,
        End::Fails,
        End::IsCancelled,
        End::Fails,
        End::Fails,
    ];
    orders::try_orders(SEED, 3, || {
        let scene = Arc::new(Scene::new());
        together(&scene, ENDS, |scene, end| {
            if let Some(pass) = scene.circuit.admit(scene.now, false) {
                scene.end(pass, end);
            }
        });
        let (opened, closed) = scene.counts();
        assert!(opened <= 1 && closed == 0, "{opened} {closed}");
        let is_open = matches!(scene.circuit.view(), View::Open(_));
        assert_eq!(is_open, opened == 1);
    });
}

#[test]
fn late_outcomes_and_forced_requests_do_not_disturb_a_probe() {
    const LATE: [End; 4] = [End::Fails, End::IsLimited, End::Succeeds, End::IsCancelled];
    orders::try_orders(SEED, 3, || {
        let scene = Scene::new();
        let late = scene.circuit.admit(scene.now, false).unwrap();
        scene.end(
            scene.circuit.admit(scene.now, false).unwrap(),
            End::IsLimited,
        );
        let scene = Arc::new(Scene {
            now: scene.now + 2 * MAX_PAUSE,
            changes: Mutex::default(),
            ..scene
        });
        let probe = scene.circuit.admit(scene.now, false).unwrap();
        let probing = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || scene.end(probe, End::Succeeds))
        };
        let others: Vec<_> = LATE
            .iter()
            .map(|end| {
                let scene = Arc::clone(&scene);
                thread::spawn(move || {
                    scene.end(late, *end);
                    // Beside the probe it doesn't count; afterwards one failure opens nothing.
                    if *end == End::Fails {
                        let forced = scene.circuit.admit(scene.now, true).unwrap();
                        scene.end(forced, End::Fails);
                    }
                })
            })
            .collect();
        probing.join().unwrap();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(scene.counts(), (0, 1));
        assert_eq!(scene.circuit.view(), View::Closed);
    });
}

/// The downloads of one blob at two replicas, each of which takes the other one for the owner.
#[derive(Default)]
struct Pair {
    downloads: [one_way::OneWay<usize>; 2],
    /// Streams between the replicas that are read.
    reading: [AtomicUsize; 2],
    upstream: AtomicUsize,
}

impl Pair {
    /// Opens a stream of a replica's download, as it does for its first bytes and for a client far ahead.
    fn open(&self, own: usize) {
        let (download, other) = (&self.downloads[own], &self.downloads[1 - own]);
        // The other one answers only from a download that reads from no replica; otherwise with a 421.
        if !download.is_direct() && other.is_direct() {
            thread::yield_now();
            if download.begin(Some(1 - own)) {
                self.reading[own].fetch_add(1, SeqCst);
                assert_eq!(
                    self.reading[1 - own].load(SeqCst),
                    0,
                    "they wait for each other"
                );
                return;
            }
        }
        download.go_direct();
        self.upstream.fetch_add(1, SeqCst);
    }
}

#[test]
fn replicas_that_take_each_other_for_the_owner_never_wait_for_each_other() {
    orders::try_orders(SEED, 3, || {
        let pair = Arc::new(Pair::default());
        together(&pair, [0, 1, 0, 1], Pair::open);
        // Each has a source, and at least one of them the upstream.
        let upstream = pair.upstream.load(SeqCst);
        let read: usize = pair.reading.iter().map(|count| count.load(SeqCst)).sum();
        assert_eq!(upstream + read, 4);
        assert!(upstream > 0);
    });
}
