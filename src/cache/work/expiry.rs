//! What happens when: one task, one ordered set of deadlines, one notification.
//!
//! The set holds a deadline for each entry that expires. A use doesn't move it: it only makes the
//! entry's true deadline later, and when the old one comes, the entry is put back at the true one.
//! So a use costs no search, and the task is woken only when the NEXT deadline changes.
//!
//! The same task saves what has changed, measures the free space and starts evictions. It deletes
//! nothing: what is due is handed to the [`sweeper`](super::sweeper).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::index::Index;
use crate::cache::index::entry::{Entry, entry_flag};
use crate::cache::index::slab::Id;
use crate::cache::state::journal::Saver;
use crate::cache::state::timestamp::Timestamp;
use crate::cache::{Inner, Upkeep};

/// Entries looked at under one lock: well under a millisecond.
const BATCH: usize = 256;
/// How long an entry that is due but held, or whose link can't be removed, is left alone.
pub(in crate::cache) const RETRY: Duration = Duration::from_mins(1);
/// How long changes wait to be saved together: what a crash loses of uses.
pub(in crate::cache) const SAVE_AFTER: Duration = Duration::from_secs(2);
/// How often free space is measured, where some has to stay free.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// The longest sleep: timers needn't reach further.
const MAX_SLEEP: Duration = Duration::from_hours(24);

const fn key(at: u32, id: Id<Entry>) -> u64 {
    (at as u64) << 32 | id.number() as u64
}

impl Index {
    /// Puts an entry at a deadline, in seconds, wherever it stood before.
    pub(in crate::cache) fn schedule(&mut self, id: Id<Entry>, at: u32) {
        self.unschedule(id);
        if let Some(entry) = self.entries.get_mut(id) {
            let at = at.max(1);
            entry.queued = at;
            let next = self.deadlines.first().copied();
            self.news.schedule |= next.is_none_or(|next| key(at, id) < next);
            self.deadlines.insert(key(at, id));
        }
    }

    pub(in crate::cache) fn unschedule(&mut self, id: Id<Entry>) {
        if let Some(entry) = self.entries.get_mut(id)
            && entry.queued != 0
        {
            self.deadlines.remove(&key(entry.queued, id));
            entry.queued = 0;
        }
    }

    /// When something is due next.
    fn next_deadline(&self) -> Option<Timestamp> {
        let entry = self.deadlines.first().map(|key| (key >> 32) as u32);
        let retry = self.retries.front().map(|(at, _)| *at);
        let next = entry.into_iter().chain(retry).min()?;
        Some(Timestamp::from_seconds(next))
    }

    /// Hands what is due to the sweeper, at most a batch. True when there may be more.
    fn expire(&mut self, now: Timestamp) -> bool {
        let now = now.seconds();
        for _ in 0..BATCH {
            let Some(first) = self.deadlines.first().copied() else {
                break;
            };
            if (first >> 32) as u32 > now {
                break;
            }
            self.deadlines.remove(&first);
            if let Some(id) = u32::try_from(first & 0xffff_ffff)
                .ok()
                .and_then(Id::from_number)
            {
                self.reach_deadline(id, now);
            }
        }
        while let Some((at, id)) = self.retries.front().copied()
            && at <= now
        {
            self.retries.pop_front();
            self.enqueue(id);
        }
        let next = self.deadlines.first();
        next.is_some_and(|next| (next >> 32) as u32 <= now)
    }

    fn reach_deadline(&mut self, id: Id<Entry>, now: u32) {
        let deadline = self.deadline(id);
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.queued = 0;
        let content = entry.content;
        if entry.flags.has(entry_flag::CONDEMNED) {
            self.enqueue(content);
        } else if let Some(deadline) = deadline {
            if deadline > now {
                self.schedule(id, deadline);
            } else {
                entry.flags.set(entry_flag::EXPIRED);
                self.enqueue(content);
            }
        }
    }
}

/// Runs until `quit`, then saves everything.
pub(in crate::cache) async fn run(
    shared: Arc<Inner>,
    mut saver: Option<Saver>,
    quit: CancellationToken,
) {
    let mut save_at = None;
    let mut measure_at = None;
    while !quit.is_cancelled() {
        let now = Instant::now();
        if shared.min_free.is_some() && measure_at.is_none_or(|at| at <= now) {
            shared.measure().await;
            measure_at = Some(now + MEASURE_EVERY);
        }
        if shared.is_complete() && shared.upkeep == Upkeep::Full {
            while shared.with(|index| index.expire(shared.now())) {
                tokio::task::yield_now().await;
            }
            trim(&shared).await;
        }
        if let Some(saver) = &mut saver {
            if save_at.is_some_and(|at| at <= now) {
                saver.save(&shared).await;
                save_at = None;
            }
            if save_at.is_none() && shared.with(|index| index.has_changes()) {
                save_at = Some(now + SAVE_AFTER);
            }
            saver.fold_if_due(&shared).await;
        }
        let deadline = shared.with(|index| index.next_deadline());
        let expires = shared.is_complete() && shared.upkeep == Upkeep::Full;
        let deadline = deadline.filter(|_| expires).map(|at| {
            let away = at.millis().saturating_sub(shared.now().millis());
            now + Duration::from_millis(away).min(MAX_SLEEP)
        });
        let owes = saver.as_ref().is_some_and(Saver::owes_snapshot);
        let retry_at = owes.then(|| now + RETRY);
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
        saver.fold(&shared).await;
    }
}

/// Evicts what is past the high watermark.
async fn trim(shared: &Inner) {
    let mut looked_at = 0;
    loop {
        let (chosen, images) = shared.with(|index| {
            let need = index.excess();
            let chosen = (need > 0).then(|| index.evict(need, shared.now()));
            (chosen, index.ranking.len())
        });
        let Some(chosen) = chosen else { return };
        looked_at += chosen.looked_at;
        // Once round, and everything is held or pinned.
        if chosen.looked_at == 0 || looked_at > images * 2 {
            return;
        }
        tokio::task::yield_now().await;
    }
}
