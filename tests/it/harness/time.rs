//! Time under a test's command.
//!
//! tokio moves paused time on by itself whenever every task waits for a socket: a timeout would
//! fire while the answer is on its way. [`freeze`] stops that, because tokio doesn't while a
//! blocking task runs; then only [`advance`] and [`passing`] move time.

use std::time::Duration;

/// Rounds that are waited for something that needs no time at all.
const MAX_ROUNDS: usize = 4_000;

/// Keeps paused time still until dropped.
pub(crate) struct Frozen(
    #[expect(dead_code, reason = "held for its drop")] std::sync::mpsc::Sender<()>,
);

pub(crate) fn freeze() -> Frozen {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    drop(tokio::task::spawn_blocking(move || receiver.recv()));
    Frozen(sender)
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

/// Runs a future while frozen time passes in small steps, at most two minutes.
pub(crate) async fn passing<F: Future>(future: F) -> F::Output {
    const STEP: Duration = Duration::from_millis(100);
    let mut future = std::pin::pin!(future);
    for _ in 0..1200 {
        tokio::select! {
            biased;
            output = &mut future => return output,
            () = advance(STEP) => {}
        }
    }
    panic!("nothing happened within two minutes");
}
