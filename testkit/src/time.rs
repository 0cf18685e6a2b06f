//! Control of tokio's paused time.
//!
//! tokio advances paused time by itself whenever every task waits for a socket: a timeout would fire
//! while the response is on its way. [`freeze`] prevents that with a blocking task, because tokio
//! doesn't advance time while one runs; then only [`advance`] and [`passing`] do.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Handle;

/// Rounds of [`eventually`]: about twenty seconds, of which a busy disk may need some.
const MAX_ROUNDS: usize = 40_000;

thread_local! {
    /// How many [`Frozen`] this thread has.
    static FROZEN: Cell<usize> = const { Cell::new(0) };
    /// Ends the blocking task that stops the time of this thread's runtime.
    static STILL: RefCell<Option<mpsc::Sender<()>>> = const { RefCell::new(None) };
}

/// Paused time is stopped until the last one of a thread is dropped: on that thread.
pub struct Frozen(());

pub fn freeze() -> Frozen {
    if FROZEN.replace(FROZEN.get() + 1) == 0 {
        keep_still();
    }
    Frozen(())
}

impl Drop for Frozen {
    fn drop(&mut self) {
        FROZEN.set(FROZEN.get() - 1);
        if FROZEN.get() == 0 {
            drop(STILL.take());
        }
    }
}

fn keep_still() {
    let (sender, receiver) = mpsc::channel::<()>();
    // Without a runtime, it is being dropped, and its time doesn't matter any more.
    if let Ok(runtime) = Handle::try_current() {
        drop(runtime.spawn_blocking(move || receiver.recv()));
        STILL.set(Some(sender));
    }
}

/// Lets time advance by itself until this is dropped.
struct Thawed;

impl Thawed {
    fn new() -> Self {
        drop(STILL.take());
        Self
    }
}

impl Drop for Thawed {
    fn drop(&mut self) {
        if FROZEN.get() > 0 {
            keep_still();
        }
    }
}

/// Waits until no task can continue and no blocking task runs: only then does tokio advance paused
/// time by itself, here by a millisecond. However slow the disk and the hashing are on a busy machine,
/// no time passes for them.
async fn idle() {
    let _thawed = Thawed::new();
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Lets sockets, tasks and the blocking pool have a turn without advancing time. Blocking tasks that
/// were queued before have started.
pub async fn settle() {
    for _ in 0..4 {
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
}

/// Advances frozen time, and lets what was due happen.
pub async fn advance(by: Duration) {
    settle().await;
    tokio::time::advance(by).await;
    settle().await;
}

/// Waits for a condition that becomes true without time passing.
pub async fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    for _ in 0..MAX_ROUNDS {
        if happened() {
            return;
        }
        settle().await;
    }
    panic!("it never happened: {what}");
}

/// Runs a future while frozen time passes in small steps, at most ten minutes, and only while nothing
/// else can make progress. No blocking task may be stalled meanwhile.
pub fn passing<F: Future>(future: F) -> impl Future<Output = F::Output> {
    // Large ones too: the callers' futures stay small.
    pass(Box::pin(future))
}

async fn pass<F: Future + Unpin>(mut future: F) -> F::Output {
    const STEP: Duration = Duration::from_millis(100);
    for _ in 0..6000 {
        let step = async {
            idle().await;
            advance(STEP).await;
        };
        tokio::select! {
            biased;
            output = &mut future => return output,
            () = step => {}
        }
    }
    panic!("nothing happened within ten minutes");
}
