//! How far a download is: shared by its task, which brings bytes, and its followers, who read.

mod sources;
mod state;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::DownloadError;
use super::memory::Memory;
use super::plan::Demand;
use super::position::{Announced, Members, Position};
use crate::oci::RangeSet;
use crate::storage::Reader;

pub(super) use sources::Given;
use state::{Phase, ProgressState};
pub(super) use state::{ReadPosition, Step};

/// Bytes that followers of a download that isn't stored may lag behind its mark.
const MAX_UNSTORED: usize = 4 * 1024 * 1024;

/// What is known before the first byte.
#[derive(Debug)]
pub(super) enum Announcement {
    /// Nothing yet.
    Wait,
    /// The upstream has answered; none where it doesn't tell the length.
    Open(Option<u64>),
}

#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<ProgressState>,
    changed: watch::Sender<()>,
    /// A follower waits for bytes that no stream is about to bring, has left, or (where nothing is
    /// stored) has moved on.
    demand: watch::Sender<()>,
}

impl Progress {
    pub(super) fn new(verified_first: u64) -> Self {
        Self {
            state: Mutex::new(ProgressState {
                phase: Phase::Opening,
                total: None,
                reader: None,
                have: RangeSet::new(),
                written: RangeSet::new(),
                memory: Memory::default(),
                stored: true,
                lost: 0,
                marks: Vec::new(),
                given: None,
                followers: HashMap::new(),
                next: 0,
                verified_first,
                members: Members::default(),
                agreed: RangeSet::new(),
            }),
            changed: watch::Sender::new(()),
            demand: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, ProgressState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut ProgressState)) {
        change(&mut self.state());
        self.changed.send_replace(());
    }

    /// Wakes at every change that comes after the call.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Wakes when the followers want something else.
    pub(super) fn watch_demand(&self) -> watch::Receiver<()> {
        self.demand.subscribe()
    }

    /// Makes the task look at the followers anew.
    pub(super) fn look(&self) {
        self.demand.send_replace(());
    }

    /// A new follower of a member, who reads from `start` on. None when that can't be had any more.
    pub(super) fn enter(&self, start: u64, member: u64) -> Option<u64> {
        let mut state = self.state();
        (start >= state.lost).then(|| {
            let id = state.number();
            state.followers.insert(id, Position::new(start, member));
            id
        })
    }

    /// Another number whenever somebody has come, or has begun to wait.
    pub(super) fn newest(&self) -> u64 {
        self.state().next
    }

    /// A follower is going to read all of these ranges.
    pub(super) fn announce(&self, follower: u64, ranges: RangeSet) {
        if let Some(position) = self.state().followers.get_mut(&follower) {
            position.announced = ranges;
        }
        self.look();
    }

    /// A follower has left.
    pub(super) fn leave(&self, follower: u64) {
        let mut state = self.state();
        state.followers.remove(&follower);
        state.forget_old();
        drop(state);
        self.look();
    }

    /// Whether more may come: followers of a download that isn't stored must keep up.
    pub(super) fn room(&self) -> Result<bool, DownloadError> {
        let state = self.state();
        if state.stored {
            Ok(true)
        } else if state.followers.is_empty() {
            Err(DownloadError::Abandoned)
        } else {
            Ok(state.memory.bytes() < MAX_UNSTORED)
        }
    }

    /// The upstream has answered; without a reader nothing is stored. `kept` is in the file already.
    pub(super) fn opened(
        &self,
        total: Option<u64>,
        reader: Option<Reader>,
        kept: &RangeSet,
        other_length: &DownloadError,
    ) {
        self.change(|state| {
            for position in state.followers.values_mut() {
                if position.told.is_some_and(|told| told != Announced(total)) {
                    position.error = Some(other_length.clone());
                }
            }
            state.phase = Phase::Streaming;
            state.total = total;
            state.stored = reader.is_some();
            state.reader = reader;
            state.have = kept.clone();
            state.written = kept.clone();
        });
    }

    /// The length has become known later than the first byte.
    pub(super) fn learned(&self, total: u64) {
        self.change(|state| state.total = Some(total));
    }

    pub(super) fn is_stored(&self) -> bool {
        self.state().stored
    }

    /// Nothing more will be written to the file: followers get the rest from memory, from one
    /// stream. What is in the file, hashed, or goes on from there and waits for the hash (`pending`)
    /// stays; all else is forgotten, and comes again. Where that stream has to go on.
    pub(super) fn unstored(&self, hashed: u64, pending: &RangeSet) -> u64 {
        let mut state = self.state();
        state.stored = false;
        let mut have = state.written.clone();
        have.insert(0, hashed);
        for range in pending.ranges() {
            if range.start <= have.end_of(0) {
                have.insert(range.start, range.end);
            }
        }
        state.memory.keep_only(&have);
        state.have = have;
        state.marks.clear();
        // Those who have read all of it already won't move again before there is room for more.
        state.forget_old();
        state.have.end_of(0)
    }

    /// Whether followers have, or can have, all of `start..end`.
    pub(super) fn has(&self, start: u64, end: u64) -> bool {
        self.state().have.contains(start, end)
    }

    /// Which parts of `start..end` followers don't have yet.
    pub(super) fn missing(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let state = self.state();
        let (mut at, mut missing) = (start, Vec::new());
        loop {
            at = state.have.end_of(at);
            if at >= end {
                return missing;
            }
            let until = state.have.next_start(at).map_or(end, |next| next.min(end));
            missing.push((at, until));
            at = until;
        }
    }

    /// Bytes have come that weren't there: followers may have them.
    pub(super) fn received(&self, offset: u64, chunk: Bytes) {
        self.change(|state| {
            let end = offset + chunk.len() as u64;
            state.have.insert(offset, end);
            state.memory.push(offset, chunk);
            state.forget_old();
        });
    }

    /// Where a stream is that is about to bring more; none when it has ended.
    pub(super) fn mark(&self, stream: u64, at: Option<u64>) {
        self.state().mark(stream, at);
    }

    /// The file has these bytes, too. Nobody waits for this.
    pub(super) fn written(&self, spans: &RangeSet) {
        let mut state = self.state();
        for range in spans.ranges() {
            state.written.insert(range.start, range.end);
        }
        state.forget_old();
    }

    /// Everything is there and has the digest.
    pub(super) fn verified(&self, total: u64) {
        self.change(|state| {
            state.total = Some(total);
            state.phase = Phase::Verified;
        });
    }

    /// The download has failed, for everybody. Later calls change nothing.
    pub(super) fn failed(&self, error: DownloadError) {
        self.change(|state| {
            if matches!(state.phase, Phase::Opening | Phase::Streaming) {
                state.phase = Phase::Failed(error);
                state.memory.clear();
            }
        });
    }

    /// How the download has ended for a member, if it has: with so many bytes.
    pub(super) fn ended(&self, member: u64) -> Option<Result<u64, DownloadError>> {
        let state = self.state();
        if let Err(error) = state.members.admits(member) {
            return Some(Err(error));
        }
        match &state.phase {
            Phase::Opening | Phase::Streaming => None,
            Phase::Verified => Some(Ok(state.total.unwrap_or(0))),
            Phase::Failed(error) => Some(Err(state.failure(member, error))),
        }
    }

    /// Whether the download is open for a follower, and then the blob's length.
    pub(super) fn head(&self, follower: u64) -> Result<Announcement, DownloadError> {
        let mut state = self.state();
        if !state.admits(follower)? || matches!(state.phase, Phase::Opening) {
            return Ok(Announcement::Wait);
        }
        let total = state.total;
        if let Some(position) = state.followers.get_mut(&follower) {
            position.told = Some(Announced(total));
        }
        Ok(Announcement::Open(total))
    }

    /// Notes from now on what followers are given.
    pub(super) fn note_given(&self) {
        self.state().given.get_or_insert_default();
    }

    /// Bytes that followers were given since [`note_given`](Self::note_given).
    pub(super) fn given(&self) -> u64 {
        self.state().given.as_ref().map_or(0, RangeSet::len)
    }

    /// Looks at what is there and what is wanted, under the lock: `look` must be quick.
    pub(super) fn plan<T>(&self, look: impl FnOnce(&RangeSet, &Demand) -> T) -> T {
        let state = self.state();
        let followers = || {
            let sound = |position: &&Position| position.error.is_none();
            state.followers.values().filter(sound)
        };
        let mut waiting: Vec<_> = followers()
            .filter_map(|position| state.want(position))
            .collect();
        waiting.sort_unstable_by_key(|(turn, _)| *turn);
        let wants = waiting.into_iter().map(|(_, want)| want).collect();
        let floor = followers().map(Position::first).min().unwrap_or(0);
        let mut announced = RangeSet::new();
        for follower in followers() {
            for range in follower.announced.ranges() {
                announced.insert(range.start, range.end);
            }
        }
        let demand = Demand {
            wants,
            floor,
            announced,
        };
        look(&state.have, &demand)
    }

    /// Whether a follower waits for bytes.
    pub(super) fn is_waited_for(&self) -> bool {
        self.plan(|_, demand| !demand.wants.is_empty())
    }

    /// What a follower does next.
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
