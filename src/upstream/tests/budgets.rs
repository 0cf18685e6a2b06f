//! Many orders of requests that ask a budget and tell it their outcomes; see `interleavings`.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shuttle::thread;
use testkit::orders::{self, together};
use tokio::time::Instant;

mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}
#[expect(clippy::duplicate_mod, reason = "with another lock")]
#[expect(dead_code, reason = "not all of it depends on the order")]
#[path = "../budget.rs"]
mod budget;
#[expect(clippy::duplicate_mod, reason = "with another lock")]
#[path = "../circuit.rs"]
mod circuit;

use crate::config::Reserve;
use budget::{Allowance, Budget, Crossing, Entry, Ticket};

const SEED: u64 = 5;
const PAUSE: Duration = Duration::from_secs(100);
const LONGEST: Duration = Duration::from_hours(1);
const LIMIT: u64 = 10;

/// A budget at one moment, and what its requests saw.
struct Scene {
    budget: Budget,
    now: Instant,
    sent: AtomicUsize,
    /// Pauses that began.
    pauses: AtomicUsize,
    crossings: Mutex<Vec<Crossing>>,
}

impl Scene {
    fn new() -> Self {
        Self {
            budget: Budget::new(Reserve::Requests(5), LONGEST),
            now: Instant::now(),
            sent: AtomicUsize::new(0),
            pauses: AtomicUsize::new(0),
            crossings: Mutex::default(),
        }
    }

    /// Sends a request for a manifest, if that is permitted.
    fn send(&self) -> Option<Ticket> {
        match self.budget.enter(0, true, self.now) {
            Entry::Admitted(ticket) => {
                self.sent.fetch_add(1, SeqCst);
                Some(ticket)
            }
            Entry::Probing | Entry::Paused(_) => None,
        }
    }

    fn limited(&self, ticket: Ticket) {
        let pause = self.budget.limited(ticket, Some(PAUSE), self.now, 0.5);
        self.pauses.fetch_add(usize::from(pause.is_some()), SeqCst);
    }

    fn told(&self, ticket: Ticket, remaining: u64) {
        let allowance = Allowance {
            limit: LIMIT,
            remaining,
            window: LONGEST,
        };
        let crossing = self.budget.told(ticket, allowance, self.now);
        self.crossings.lock().unwrap().extend(crossing);
    }
}

#[test]
fn no_request_is_sent_in_a_pause_whatever_answers_come_late() {
    orders::try_orders(SEED, 3, || {
        let scene = Arc::new(Scene::new());
        let first = scene.send().unwrap();
        let late = scene.send().unwrap();
        let answering = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || {
                assert!(!scene.budget.answered(late), "it ends no pause");
            })
        };
        scene.limited(first);
        let before = scene.sent.load(SeqCst);
        together(&scene, 0..3, |scene, _| assert!(scene.send().is_none()));
        answering.join().unwrap();
        assert_eq!(scene.sent.load(SeqCst), before);
        let paused_for = scene.budget.paused_for(scene.now).unwrap();
        assert!(paused_for >= PAUSE);
    });
}

#[test]
fn many_429s_at_once_begin_one_pause() {
    orders::try_orders(SEED, 3, || {
        let scene = Arc::new(Scene::new());
        together(&scene, 0..5, |scene, _| {
            if let Some(ticket) = scene.send() {
                scene.limited(ticket);
            }
        });
        assert_eq!(scene.pauses.load(SeqCst), 1);
        assert!(scene.send().is_none());
        // Other kinds of requests go on.
        let other = scene.budget.enter(1, false, scene.now);
        assert!(matches!(other, Entry::Admitted(_)));
    });
}

#[test]
fn after_a_pause_one_request_probes_at_a_time() {
    orders::try_orders(SEED, 3, || {
        let mut scene = Scene::new();
        let first = scene.send().unwrap();
        scene.limited(first);
        scene.now += 2 * PAUSE;
        let scene = Arc::new(scene);
        scene.sent.store(0, SeqCst);
        together(&scene, 0..5, |scene, number| {
            if let Some(ticket) = scene.send() {
                assert_eq!(scene.sent.load(SeqCst), 1);
                thread::yield_now();
                scene.sent.fetch_sub(1, SeqCst);
                match number {
                    // Nothing was heard: the next one probes.
                    0..3 => scene.budget.abandoned(ticket, scene.now),
                    _ => scene.limited(ticket),
                }
            }
        });
        assert!(scene.pauses.load(SeqCst) <= 2);
    });
}

#[test]
fn the_answer_to_the_newest_request_says_what_is_left() {
    orders::try_orders(SEED, 3, || {
        let scene = Arc::new(Scene::new());
        // The upstream serves them in the order in which they are sent, and the answers overtake each other.
        let tickets: Vec<Ticket> = (0..6).map(|_| scene.send().unwrap()).collect();
        let threads: Vec<_> = (1..)
            .zip(tickets)
            .map(|(number, ticket)| {
                let scene = Arc::clone(&scene);
                thread::spawn(move || scene.told(ticket, LIMIT - number))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let left = scene.budget.left(scene.now).unwrap();
        assert_eq!(left.remaining, LIMIT - 6);
        assert_eq!(*scene.crossings.lock().unwrap(), [Crossing::Low]);
    });
}
