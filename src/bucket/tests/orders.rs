//! Runs several actors in every order of their requests to the bucket.
//!
//! Each actor runs until its next request that matters (see [`Actor::watched`]), or until it sleeps. Then the
//! explorer chooses who goes on: whose request is answered, or for whom time passes. It goes through all
//! choices, one run after the other. Of runs that differ only in the order of requests that have nothing to do
//! with each other, it completes one ("sleep sets").

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::store::{Actor, Kind, Request};

/// How far time goes on at once for an actor that sleeps, and how often.
const STEPS: [(Duration, usize); 3] = [
    (Duration::from_mins(1), 20),
    (Duration::from_hours(1), 100),
    (Duration::from_hours(24), 100),
];
/// How often other tasks run before an actor that does nothing is taken to sleep.
const YIELDS: usize = 8;

type Running = Pin<Box<dyn Future<Output = ()>>>;

/// What an actor does next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Request(Request),
    Sleep,
}

impl Step {
    /// Whether it makes no difference which of two steps comes first.
    fn is_independent(&self, other: &Self) -> bool {
        let (Self::Request(one), Self::Request(other)) = (self, other) else {
            // Time passes for everybody.
            return false;
        };
        let writes = |request: &Request| matches!(request.kind, Kind::Put | Kind::Delete);
        let lists = |one: &Request, other: &Request| {
            let below = other.key.strip_prefix(&one.key);
            one.kind == Kind::List && below.is_some_and(|below| below.starts_with('/'))
        };
        let is_same = one.key == other.key || lists(one, other) || lists(other, one);
        !is_same || !(writes(one) || writes(other))
    }
}

/// A choice: the steps that were possible, of which actors, and which was taken.
#[derive(Debug)]
pub(super) struct Choice {
    steps: Vec<(usize, Step)>,
    taken: usize,
    /// Steps that lead to orders that differ from tried ones only in steps that are independent.
    asleep: Vec<(usize, Step)>,
}

impl Choice {
    /// The first step from a position on that leads to something new.
    fn next(&self, from: usize) -> Option<usize> {
        let is_new = |at: &usize| !self.asleep.contains(&self.steps[*at]);
        (from..self.steps.len()).find(is_new)
    }
}

/// The choices of one run after the other.
#[derive(Debug)]
pub(super) enum Choices {
    /// Those of the current run, and how many of them were asked for.
    All(Vec<Choice>, usize),
    /// By chance, in so many runs more.
    Some(fastrand::Rng, usize),
}

impl Choices {
    /// Every order, but of those that differ in independent steps only one.
    pub(super) fn all() -> Self {
        Self::All(Vec::new(), 0)
    }

    /// So many orders by chance, the same for this seed.
    pub(super) fn some(seed: u64, runs: usize) -> Self {
        Self::Some(fastrand::Rng::with_seed(seed), runs)
    }

    /// The position of the step to take. None where all of them lead to orders that were tried.
    fn choose(&mut self, steps: Vec<(usize, Step)>) -> Option<usize> {
        let (choices, at) = match self {
            Self::All(choices, at) => (choices, at),
            Self::Some(random, _) => return Some(random.usize(..steps.len())),
        };
        if *at == choices.len() {
            let asleep = match choices.last() {
                None => Vec::new(),
                Some(before) => {
                    let (_, taken) = &before.steps[before.taken];
                    let tried = before.asleep.iter().chain(&before.steps[..before.taken]);
                    let still = tried.filter(|(_, step)| step.is_independent(taken));
                    still.cloned().collect()
                }
            };
            let mut choice = Choice {
                steps,
                taken: 0,
                asleep,
            };
            choice.taken = choice.next(0)?;
            choices.push(choice);
        } else {
            assert_eq!(choices[*at].steps, steps, "the run isn't the same");
        }
        *at += 1;
        Some(choices[*at - 1].taken)
    }

    /// The choices of the next run. False where there is none.
    pub(super) fn next(&mut self) -> bool {
        let (choices, at) = match self {
            Self::All(choices, at) => (choices, at),
            Self::Some(_, runs) => {
                *runs -= 1;
                return *runs > 0;
            }
        };
        *at = 0;
        while let Some(mut choice) = choices.pop() {
            if let Some(next) = choice.next(choice.taken + 1) {
                choice.taken = next;
                choices.push(choice);
                return true;
            }
        }
        false
    }
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Waits,
    Sleeps,
    /// For another actor.
    Blocked,
    Done,
}

struct Runner {
    actor: Arc<Actor>,
    future: Running,
    standing: Standing,
}

impl Runner {
    fn step(&self) -> Option<Step> {
        match self.standing {
            Standing::Waits => self.actor.waits().map(Step::Request),
            Standing::Sleeps => Some(Step::Sleep),
            Standing::Blocked | Standing::Done => None,
        }
    }

    /// Runs until a request waits, or nothing happens without time passing.
    async fn settle(&mut self) {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        loop {
            woken.0.store(false, SeqCst);
            let polled = self.future.as_mut().poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(()) = polled {
                self.standing = Standing::Done;
                return;
            }
            if self.actor.waits().is_some() {
                self.standing = Standing::Waits;
                return;
            }
            for _ in 0..YIELDS {
                if !woken.0.load(SeqCst) {
                    tokio::task::yield_now().await;
                }
            }
            if !woken.0.load(SeqCst) {
                // Ends when no task can continue and no other thread works for one, however busy the machine is.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if !woken.0.load(SeqCst) {
                let is_blocked = self.actor.is_blocked.load(SeqCst);
                self.standing = if is_blocked {
                    Standing::Blocked
                } else {
                    Standing::Sleeps
                };
                return;
            }
        }
    }

    /// Lets time pass until something happens. `history` is what was done before.
    async fn sleep(&mut self, history: &[String]) {
        for (step, times) in STEPS {
            for _ in 0..times {
                tokio::time::advance(step).await;
                self.settle().await;
                if self.standing != Standing::Sleeps {
                    return;
                }
            }
        }
        panic!("an actor sleeps for ever after\n{}", history.join("\n"));
    }
}

impl From<(Arc<Actor>, Running)> for Runner {
    fn from((actor, future): (Arc<Actor>, Running)) -> Self {
        Self {
            actor,
            future,
            standing: Standing::Sleeps,
        }
    }
}

/// Runs one actor until it has sent so many requests that matter, and kills it. True where it ended before.
pub(super) async fn run_until(actor: (Arc<Actor>, Running), requests: usize) -> bool {
    let mut runner = Runner::from(actor);
    let mut sent = 0;
    runner.settle().await;
    loop {
        match runner.standing {
            Standing::Done => return true,
            Standing::Blocked => panic!("nobody is there to wait for"),
            Standing::Sleeps => runner.sleep(&[]).await,
            Standing::Waits if sent == requests => return false,
            Standing::Waits => {
                sent += 1;
                runner.actor.go_on();
                runner.settle().await;
            }
        }
    }
}

/// Runs all actors to their ends, in the order of the choices. Returns what was done. None where that ends like
/// an order that was tried.
pub(super) async fn run(
    actors: Vec<(Arc<Actor>, Running)>,
    choices: &mut Choices,
) -> Option<Vec<String>> {
    let mut runners: Vec<_> = actors.into_iter().map(Runner::from).collect();
    let mut history = Vec::new();
    for runner in &mut runners {
        runner.settle().await;
    }
    loop {
        let steps = runners.iter().enumerate();
        let steps = steps.filter_map(|(at, runner)| Some((at, runner.step()?)));
        let steps: Vec<_> = steps.collect();
        if steps.is_empty() {
            let is_done = |runner: &Runner| runner.standing == Standing::Done;
            assert!(runners.iter().all(is_done), "all wait for each other");
            return Some(history);
        }
        let (at, step) = steps[choices.choose(steps.clone())?].clone();
        match step {
            Step::Request(request) => {
                history.push(format!("{at}: {request}"));
                runners[at].actor.go_on();
                runners[at].settle().await;
            }
            Step::Sleep => {
                history.push(format!("{at}: sleeps"));
                runners[at].sleep(&history).await;
            }
        }
        for other in (0..runners.len()).filter(|other| *other != at) {
            if [Standing::Sleeps, Standing::Blocked].contains(&runners[other].standing) {
                runners[other].settle().await;
            }
        }
    }
}
