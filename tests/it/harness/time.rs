//! Time under a test's command.
//!
//! tokio moves paused time on by itself whenever every task waits for a socket: a timeout would
//! fire while the answer is on its way. [`freeze`] stops that, because tokio doesn't while a
//! blocking task runs; then only [`advance`] and [`passing`] move time.

use std::cell::RefCell;
use std::future::Future;
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Handle;

/// Rounds that are waited for something that needs no time at all, save for a disk that is busy
/// with other things: some twenty seconds.
const MAX_ROUNDS: usize = 40_000;

thread_local! {
    /// Ends the blocking task that keeps the time of this thread's runtime still.
    static STILL: RefCell<Option<mpsc::Sender<()>>> = const { RefCell::new(None) };
}

/// Keeps paused time still until dropped.
pub(crate) struct Frozen(());

pub(crate) fn freeze() -> Frozen {
    keep_still();
    Frozen(())
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(STILL.take());
    }
}

fn keep_still() {
    let (sender, receiver) = mpsc::channel::<()>();
    // No runtime: it is being dropped, and its time doesn't matter any more.
    if let Ok(runtime) = Handle::try_current() {
        drop(runtime.spawn_blocking(move || receiver.recv()));
        STILL.set(Some(sender));
    }
}

/// Time that isn't still; when this is dropped, it is again.
struct Thawed(bool);

impl Thawed {
    fn new() -> Self {
        Self(STILL.take().is_some())
    }
}

impl Drop for Thawed {
    fn drop(&mut self) {
        if self.0 {
            keep_still();
        }
    }
}

/// Waits until no task can go on and no blocking task runs: only then does tokio move paused time on
/// by itself, here by a millisecond. However slow the disk and the hashing are on a busy machine, no
/// time passes for them.
async fn idle() {
    let _thawed = Thawed::new();
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Lets sockets, tasks and the blocking pool have a turn: without time, but with a visit to the
/// pool, behind whatever was given to it before.
pub(crate) async fn settle() {
    for _ in 0..4 {
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
}

/// Moves frozen time on, and lets what was due happen.
pub(crate) async fn advance(by: Duration) {
    settle().await;
    tokio::time::advance(by).await;
    settle().await;
}

/// Waits for what happens without the passing of time.
pub(crate) async fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    for _ in 0..MAX_ROUNDS {
        if happened() {
            return;
        }
        settle().await;
    }
    panic!("it never happened: {what}");
}

/// Runs a future while frozen time passes in small steps, at most two minutes, and only while nothing
/// but time can help. No blocking task may be stalled meanwhile.
pub(crate) async fn passing<F: Future>(future: F) -> F::Output {
    const STEP: Duration = Duration::from_millis(100);
    let mut future = std::pin::pin!(future);
    for _ in 0..1200 {
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
    panic!("nothing happened within two minutes");
}
