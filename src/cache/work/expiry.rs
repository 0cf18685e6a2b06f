//! The scheduler: one task, which sleeps until the next deadline.
//!
//! The index has a deadline for each entry that expires. A use doesn't move it: it only makes the
//! entry's true deadline later, and when the old one comes, the entry is put back at the true one.
//! So a use costs no search, and the task is woken only when the NEXT deadline changes.
//!
//! The same task saves what has changed, measures the free space and starts evictions. It deletes
//! nothing: what is due is queued for [`deletion`](super::deletion).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::save::Saver;
use crate::cache::Inner;
use crate::cache::index::RETRY;

/// How long changes wait to be saved together: what a crash loses of uses, while few entries change.
pub(crate) const SAVE_AFTER: Duration = Duration::from_secs(2);
/// Most bytes that saves write to the journal, on average over the time since the one before. Each is
/// written at most once more, into a snapshot: both together come to less than 1 GiB an hour.
pub(crate) const SAVE_RATE: u32 = 128 * 1024;
/// The longest that changes wait for the rate. An entry that is due at a start gets as long.
const MAX_SAVE_PAUSE: Duration = Duration::from_hours(1);
/// How often free space is measured, where some has to stay free.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// The longest sleep: timers needn't reach further.
const MAX_SLEEP: Duration = Duration::from_hours(24);

/// Runs until the stop, then saves everything.
pub(crate) async fn run(shared: &Arc<Inner>, mut saver: Option<Saver>) {
    let quit = &shared.quit;
    let (mut save_at, mut saves_pause_until) = (None, Instant::now());
    let mut measure_at = None;
    while !quit.is_cancelled() {
        let now = Instant::now();
        let measures = shared.with(|index| index.settings().min_free.is_some());
        if measures && measure_at.is_none_or(|at| at <= now) {
            shared.measure().await;
            measure_at = Some(now + MEASURE_EVERY);
        }
        if shared.may_remove() {
            while shared.with(|index| index.expire(shared.now())) {
                tokio::task::yield_now().await;
            }
            trim(shared).await;
        }
        if let Some(saver) = &mut saver {
            if save_at.is_some_and(|at| at <= now) {
                saves_pause_until = now + pause_after(saver.save(shared).await);
                save_at = None;
            }
            if save_at.is_none() && shared.with(|index| index.has_changes()) {
                save_at = Some((now + SAVE_AFTER).max(saves_pause_until));
            }
            saver.fold_if_due(shared).await;
        }
        let deadline = shared.with(|index| index.next_deadline());
        let deadline = deadline.filter(|_| shared.may_remove()).map(|at| {
            let away = at.millis().saturating_sub(shared.now().millis());
            now + Duration::from_millis(away).min(MAX_SLEEP)
        });
        let owed = saver.as_ref().and_then(|saver| saver.owed);
        let retry_at = owed.map(|_| now + RETRY);
        let next = [deadline, save_at, retry_at, measure_at]
            .into_iter()
            .flatten()
            .min();
        tokio::select! {
            () = quit.cancelled() => {}
            () = shared.wake.notified() => {}
            () = tokio::time::sleep_until(next.unwrap_or(now + MAX_SLEEP)) => {}
        }
    }
    if let Some(mut saver) = saver {
        saver.fold(shared).await;
    }
}

/// How long no save follows one of this many bytes.
fn pause_after(bytes: u64) -> Duration {
    Duration::from_secs(bytes / u64::from(SAVE_RATE)).min(MAX_SAVE_PAUSE)
}

/// Evicts what is past the limit.
async fn trim(shared: &Inner) {
    let mut looked_at = 0;
    while shared.with(|index| index.trim(shared.now(), &mut looked_at)) {
        tokio::task::yield_now().await;
    }
}
