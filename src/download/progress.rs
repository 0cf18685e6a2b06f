//! The progress of a download, shared by its task, which adds bytes, and its followers, which read.

mod sources;
mod state;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::memory::Memory;
use super::plan::Demand;
use super::position::Position;
use super::{DownloadError, Opened};
use crate::cache::Reader;
use crate::oci::{ByteRange, RangeSet};

use state::{Phase, ProgressState};
pub(super) use state::{ReadPosition, Step, end_of};

/// Bytes that the followers of a passed-through download may be behind its stream.
const MAX_UNSTORED: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<ProgressState>,
    changed: watch::Sender<()>,
    /// Signals the task: a follower waits for bytes that no stream brings next, has left, or (in
    /// pass-through) has read on.
    demand: watch::Sender<()>,
}

impl Progress {
    pub(super) fn new(verified_first: u64) -> Self {
        Self {
            state: Mutex::new(ProgressState {
                verified_first,
                ..ProgressState::default()
            }),
            changed: watch::Sender::new(()),
            demand: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, ProgressState> {
        self.state.lock()
    }

    fn change(&self, change: impl FnOnce(&mut ProgressState)) {
        change(&mut self.state());
        self.changed.send_replace(());
    }

    /// Wakes at every change after the call.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Wakes when the demand of the followers changes.
    pub(super) fn watch_demand(&self) -> watch::Receiver<()> {
        self.demand.subscribe()
    }

    /// Makes the task consider the followers again.
    pub(super) fn look(&self) {
        self.demand.send_replace(());
    }

    /// Adds a follower of a member that reads from `start`. None when those bytes are gone already, or
    /// the download has ended without a result.
    pub(super) fn enter(&self, start: u64, member: u64) -> Option<u64> {
        let mut state = self.state();
        let open = start >= state.lost && !matches!(state.phase, Phase::Superseded);
        open.then(|| {
            let id = state.number();
            let position = Position {
                member,
                at: start,
                ..Position::default()
            };
            state.followers.insert(id, position);
            id
        })
    }

    /// Changes whenever a follower joins or starts to wait.
    pub(super) fn newest(&self) -> u64 {
        self.state().next
    }

    /// Records the ranges that a follower is going to read.
    pub(super) fn announce(&self, follower: u64, ranges: RangeSet) {
        if let Some(position) = self.state().followers.get_mut(&follower) {
            position.announced = ranges;
        }
        self.look();
    }

    /// Removes a follower.
    pub(super) fn leave(&self, follower: u64) {
        let mut state = self.state();
        state.followers.remove(&follower);
        state.forget_old();
        drop(state);
        self.look();
    }

    /// Whether the task may read more. In pass-through it waits for the slowest follower.
    pub(super) fn room(&self) -> bool {
        let state = self.state();
        !state.passes || state.memory.bytes < MAX_UNSTORED
    }

    /// Ends a download in pass-through that has no follower: nothing of it is left for a later one.
    /// True when it has ended. No follower can enter from then on.
    pub(super) fn end_if_unfollowed(&self) -> bool {
        let mut state = self.state();
        let ends = state.passes && state.followers.is_empty();
        if ends {
            state.phase = Phase::Superseded;
            state.memory = Memory::default();
        }
        ends
    }

    /// The download has ended without a result: another one has committed the blob. Its followers
    /// find the blob in the cache.
    pub(super) fn superseded(&self) {
        self.change(|state| {
            state.phase = Phase::Superseded;
            state.memory = Memory::default();
        });
    }

    /// The upstream has answered. Without a reader nothing is stored. `resumed` is in the file already.
    pub(super) fn opened(
        &self,
        total: Option<u64>,
        reader: Option<Reader>,
        resumed: &RangeSet,
        other_length: &DownloadError,
    ) {
        self.change(|state| {
            for position in state.followers.values_mut() {
                if position
                    .told
                    .is_some_and(|told| told != Opened::Size(total))
                {
                    position.error = Some(other_length.clone());
                }
            }
            state.phase = Phase::Streaming;
            state.total = total;
            state.passes = reader.is_none();
            state.reader = reader;
            state.have = resumed.clone();
            state.written = resumed.clone();
        });
    }

    /// The size has become known after the first response.
    pub(super) fn learned(&self, total: u64) {
        self.change(|state| state.total = Some(total));
    }

    pub(super) fn is_stored(&self) -> bool {
        !self.state().passes
    }

    /// Switches to pass-through: stores nothing further and feeds followers from memory, in order,
    /// from a single stream. Keeps the bytes that are in the file, that are hashed, or that follow
    /// these and wait for the hash (`pending`); others are downloaded again. Returns the offset at
    /// which the stream has to continue.
    pub(super) fn unstored(&self, hashed: u64, pending: &RangeSet) -> u64 {
        let mut state = self.state();
        state.passes = true;
        let mut have = state.written.clone();
        have.insert(0, hashed);
        for range in pending.ranges() {
            if range.start <= have.end_of(0) {
                have.insert(range.start, range.end);
            }
        }
        state.memory.retain(|start, end| have.contains(start, end));
        state.have = have;
        state.marks.clear();
        // Followers that have read all of it don't move before there is room for more.
        state.forget_old();
        state.have.end_of(0)
    }

    /// Whether all of `start..end` has been published.
    pub(super) fn has(&self, start: u64, end: u64) -> bool {
        self.state().have.contains(start, end)
    }

    /// The parts of `start..end` that haven't been published.
    pub(super) fn missing(&self, start: u64, end: u64) -> Vec<ByteRange> {
        let state = self.state();
        let parts = state.have.split(start, end);
        let missing = parts.filter_map(|(range, published)| (!published).then_some(range));
        missing.collect()
    }

    /// Publishes bytes that weren't published before.
    pub(super) fn received(&self, offset: u64, chunk: Bytes) {
        self.change(|state| {
            let end = offset + chunk.len() as u64;
            state.have.insert(offset, end);
            state.memory.push(offset, chunk);
            state.forget_old();
        });
    }

    /// Records the position of a stream; none when it has ended.
    pub(super) fn mark(&self, stream: u64, at: Option<u64>) {
        self.state().mark(stream, at);
    }

    /// Records that these bytes are in the file, too.
    pub(super) fn written(&self, spans: &RangeSet) {
        let mut state = self.state();
        state.written.extend(spans);
        state.forget_old();
    }

    /// The blob is complete and its digest is verified.
    pub(super) fn verified(&self, total: u64) {
        self.change(|state| {
            state.total = Some(total);
            state.phase = Phase::Verified;
        });
    }

    /// The download has failed for all followers. Later calls change nothing.
    pub(super) fn failed(&self, error: DownloadError) {
        self.change(|state| {
            if matches!(state.phase, Phase::Opening | Phase::Streaming) {
                state.phase = Phase::Failed(error);
                state.memory = Memory::default();
            }
        });
    }

    /// The download's task has ended: a blob that it stores is committed and linked.
    pub(super) fn conclude(&self) {
        self.change(|state| state.concluded = true);
    }

    pub(super) fn is_concluded(&self) -> bool {
        self.state().concluded
    }

    /// The result of the download for a member, once it has ended: the blob's size.
    pub(super) fn ended(&self, member: u64) -> Option<Result<u64, DownloadError>> {
        let state = self.state();
        if let Err(error) = state.members.admits(member) {
            return Some(Err(error));
        }
        match &state.phase {
            Phase::Opening | Phase::Streaming => None,
            Phase::Verified => Some(Ok(state.total.unwrap_or(0))),
            Phase::Failed(error) => Some(Err(state.failure(member, error))),
            Phase::Superseded => Some(Err(DownloadError::Lost)),
        }
    }

    /// Waits for the result of the download for a member: the blob's size. Cancel safe.
    pub(super) async fn result(&self, member: u64) -> Result<u64, DownloadError> {
        let mut changed = self.watch();
        loop {
            if let Some(ended) = self.ended(member) {
                return ended;
            }
            let gone = changed.changed().await;
            gone.map_err(|_sender_gone| DownloadError::Lost)?;
        }
    }

    /// The upstream's answer, for a follower whose member is proved; none until then.
    pub(super) fn head(&self, follower: u64) -> Result<Option<Opened>, DownloadError> {
        let mut state = self.state();
        if matches!(state.phase, Phase::Superseded) {
            return Ok(Some(Opened::Superseded));
        }
        if !state.admits(follower)? || matches!(state.phase, Phase::Opening) {
            return Ok(None);
        }
        let size = Opened::Size(state.total);
        // A small blob's is asked again once it is verified, before it is told to anybody.
        let is_verified = matches!(state.phase, Phase::Verified);
        let is_small = state
            .total
            .is_some_and(|total| total <= state.verified_first);
        if is_small && !is_verified {
            return Ok(Some(size));
        }
        if let Some(position) = state.followers.get_mut(&follower) {
            position.told = Some(size);
        }
        Ok(Some(size))
    }

    /// Bytes that followers have received, each counted once.
    pub(super) fn given(&self) -> u64 {
        self.state().given.len()
    }

    /// Calls `look` with the published bytes and the demand, under the lock: `look` must be quick.
    pub(super) fn plan<T>(&self, look: impl FnOnce(&RangeSet, &Demand) -> T) -> T {
        let state = self.state();
        let followers = || {
            let sound = |position: &&Position| position.error.is_none();
            state.followers.values().filter(sound)
        };
        let waiting = followers().filter_map(|position| state.want(position));
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_unstable_by_key(|(turn, _)| *turn);
        let mut demand = Demand {
            wants: waiting.into_iter().map(|(_, want)| want).collect(),
            floor: followers().map(Position::first).min().unwrap_or(0),
            announced: RangeSet::new(),
        };
        for follower in followers() {
            demand.announced.extend(&follower.announced);
        }
        look(&state.have, &demand)
    }

    /// The next step of a follower.
    pub(super) fn step(&self, follower: u64, reading: ReadPosition) -> Result<Step, DownloadError> {
        let mut state = self.state();
        if !state.admits(follower)? {
            return Ok(Step::Wait);
        }
        let moved = state.moves(follower, reading);
        let step = state.step(reading);
        let asks = matches!(step, Ok(Step::Wait)) && state.waits(follower, reading);
        if let Ok(Step::Give(piece)) = &step {
            state.gives(follower, reading.offset, piece);
        }
        drop(state);
        if moved || asks {
            self.look();
        }
        step
    }
}
