//! How far a download is: shared by its task, which brings bytes, and its followers, who read.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::FetchError;
use super::memory::Memory;
use super::plan::{Demand, Want};
use crate::oci::RangeSet;
use crate::retention::WITHHELD;
use crate::store::{Piece, Reader};

/// Bytes that followers of a download that isn't stored may lag behind its mark.
const MAX_UNSTORED: usize = 4 * 1024 * 1024;

/// Bytes in the file that are better sent from there, at the cost of a system call, than from memory.
const WORTH_A_CALL: u64 = 64 * 1024;

/// Where a download stands.
#[derive(Debug, Clone)]
enum Phase {
    /// Waiting for the upstream's head.
    Opening,
    /// Bytes are coming.
    Streaming,
    /// All bytes are there and have the digest. The only phase that ends a whole body well.
    Verified,
    Failed(FetchError),
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Length of the blob, once the upstream has told or all has come.
    total: Option<u64>,
    /// Reads the staged file.
    reader: Option<Reader>,
    /// What followers may read: in memory or in the file.
    have: RangeSet,
    /// What is in the file.
    written: RangeSet,
    memory: Memory,
    /// Whether what comes is written to the file.
    stored: bool,
    /// Bytes before it are perhaps to be had no more, because nothing is stored.
    lost: u64,
    /// Where the streams are: bytes that come by themselves.
    marks: Vec<(u64, u64)>,
    /// What has been given to followers; kept only while that decides what is fetched.
    given: Option<RangeSet>,
    followers: HashMap<u64, Position>,
    /// Names followers, and puts their waits in order.
    next: u64,
    /// Blobs of at most so many bytes are given to nobody before they are verified.
    verified_first: u64,
}

/// Where a follower is.
#[derive(Debug)]
struct Position {
    at: u64,
    end: Option<u64>,
    /// Its wait's place in the order of waits.
    waits: Option<u64>,
    /// The ranges that it reads, one after the other.
    announced: RangeSet,
}

/// What a follower reads next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) offset: u64,
    /// None: up to the end of the blob.
    pub(super) end: Option<u64>,
    /// All bytes before the offset have been read: where all after it are read too, the end is held
    /// back until the digest is right.
    pub(super) whole: bool,
    /// The client is best sent what the file has.
    pub(super) from_file: bool,
}

/// What is known before the first byte.
#[derive(Debug)]
pub(super) enum Head {
    /// Nothing yet.
    Wait,
    /// The upstream has answered; none where it doesn't tell the length.
    Open(Option<u64>),
}

/// The next step of a follower.
#[derive(Debug)]
pub(super) enum Step {
    /// Bytes at the offset asked for, and none behind the end that was asked for.
    Give(Piece),
    /// Nothing comes after the offset.
    End,
    /// Nothing yet.
    Wait,
}

#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// A follower waits for bytes that no stream is about to bring, has left, or (where nothing is
    /// stored) has moved on.
    demand: watch::Sender<()>,
}

impl Progress {
    pub(super) fn new(verified_first: u64) -> Self {
        Self {
            state: Mutex::new(State {
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
            }),
            changed: watch::Sender::new(()),
            demand: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
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

    /// A new follower, who reads from `start` on. None when that can't be had any more.
    pub(super) fn enter(&self, start: u64) -> Option<u64> {
        let mut state = self.state();
        (start >= state.lost).then(|| {
            let id = state.number();
            let position = Position {
                at: start,
                end: None,
                waits: None,
                announced: RangeSet::new(),
            };
            state.followers.insert(id, position);
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
    pub(super) fn room(&self) -> Result<bool, FetchError> {
        let state = self.state();
        if state.stored {
            Ok(true)
        } else if state.followers.is_empty() {
            Err(FetchError::Abandoned)
        } else {
            Ok(state.memory.bytes() < MAX_UNSTORED)
        }
    }

    /// The upstream has answered; without a reader nothing is stored. `kept` is in the file already.
    pub(super) fn opened(&self, total: Option<u64>, reader: Option<Reader>, kept: &RangeSet) {
        self.change(|state| {
            state.phase = Phase::Streaming;
            state.total = total;
            state.stored = reader.is_some();
            state.reader = reader;
            state.have = kept.clone();
            state.written = kept.clone();
        });
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
    pub(super) fn failed(&self, error: FetchError) {
        self.change(|state| {
            if matches!(state.phase, Phase::Opening | Phase::Streaming) {
                state.phase = Phase::Failed(error);
                state.memory.clear();
            }
        });
    }

    /// How the download has ended, if it has: with so many bytes.
    pub(super) fn ended(&self) -> Option<Result<u64, FetchError>> {
        let state = self.state();
        match &state.phase {
            Phase::Opening | Phase::Streaming => None,
            Phase::Verified => Some(Ok(state.total.unwrap_or(0))),
            Phase::Failed(error) => Some(Err(error.clone())),
        }
    }

    /// Whether the download is open, and then the blob's length.
    pub(super) fn head(&self) -> Result<Head, FetchError> {
        let state = self.state();
        match &state.phase {
            Phase::Opening => Ok(Head::Wait),
            Phase::Streaming | Phase::Verified => Ok(Head::Open(state.total)),
            Phase::Failed(error) => Err(error.clone()),
        }
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
        let mut waiting: Vec<_> = state
            .followers
            .values()
            .filter_map(|follower| Some((follower.waits?, state.lacks(follower.at, follower.end)?)))
            .collect();
        waiting.sort_unstable_by_key(|(turn, _)| *turn);
        let wants = waiting.into_iter().map(|(_, want)| want).collect();
        let floor = state.followers.values().map(|follower| follower.at).min();
        let floor = floor.unwrap_or(0);
        let mut announced = RangeSet::new();
        for follower in state.followers.values() {
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

    /// What a follower does next.
    pub(super) fn step(&self, follower: u64, reading: Reading) -> Result<Step, FetchError> {
        let mut state = self.state();
        let moved = state.moves(follower, reading);
        let step = state.step(reading);
        let asks = matches!(step, Ok(Step::Wait)) && state.waits(follower, reading);
        drop(state);
        if moved || asks {
            self.look();
        }
        step
    }

    /// A follower has been given bytes.
    pub(super) fn gave(&self, start: u64, end: u64) {
        if let Some(given) = &mut self.state().given {
            given.insert(start, end);
        }
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn mark(&mut self, stream: u64, at: Option<u64>) {
        self.marks.retain(|(of, _)| *of != stream);
        self.marks.extend(at.map(|at| (stream, at)));
    }

    /// Notes where a follower is. Whether the task must know.
    fn moves(&mut self, follower: u64, reading: Reading) -> bool {
        if let Some(position) = self.followers.get_mut(&follower) {
            position.at = reading.offset;
            position.end = reading.end;
            position.waits = None;
        }
        self.forget_old();
        !self.stored
    }

    /// What has to come for somebody who waits at `at`. That byte may be there: the end of a blob is
    /// held back until all of it has come.
    fn lacks(&self, at: u64, end: Option<u64>) -> Option<Want> {
        let next = self.have.end_of(at);
        let limit = end.into_iter().chain(self.total).min();
        let lacks = next == at || limit.is_none_or(|limit| next < limit);
        lacks.then_some(Want { at: next, end })
    }

    /// Notes that a follower waits. Whether no stream is about to bring what it waits for.
    fn waits(&mut self, follower: u64, Reading { offset, end, .. }: Reading) -> bool {
        let turn = self.number();
        if let Some(position) = self.followers.get_mut(&follower) {
            position.waits = Some(turn);
        }
        self.lacks(offset, end)
            .is_some_and(|want| !self.marks.iter().any(|(_, mark)| *mark == want.at))
    }

    fn step(&self, reading: Reading) -> Result<Step, FetchError> {
        let Reading {
            offset,
            end,
            whole,
            from_file,
        } = reading;
        let verified = match &self.phase {
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Verified if self.total.is_some_and(|total| offset >= total) => {
                return Ok(Step::End);
            }
            Phase::Verified => true,
            Phase::Opening | Phase::Streaming => false,
        };
        let known = self.total.unwrap_or_else(|| self.have.len());
        if !verified && known <= self.verified_first {
            return Ok(Step::Wait);
        }
        let mut limit = end.unwrap_or(u64::MAX);
        if let Some(total) = self.total
            && whole
            && !verified
            && limit >= total
        {
            limit = total.saturating_sub(WITHHELD);
        }
        if offset >= limit || !self.have.contains(offset, offset + 1) {
            return Ok(Step::Wait);
        }
        let in_file = limit
            .min(self.written.end_of(offset))
            .saturating_sub(offset);
        let memory = self.memory.get(offset);
        match (memory, self.reader.clone()) {
            (Some(mut chunk), _) if !from_file || in_file < WORTH_A_CALL => {
                chunk.truncate(usize::try_from(limit - offset).unwrap_or(usize::MAX));
                Ok(Step::Give(Piece::Bytes(chunk)))
            }
            (_, Some(reader)) if in_file > 0 => Ok(Step::Give(Piece::File {
                reader,
                start: offset,
                end: offset + in_file,
            })),
            // Neither in memory nor in the file: passed through, and this follower came too late.
            _ => Err(FetchError::Lost),
        }
    }

    /// Drops old chunks: those that the file has, beyond what is kept for followers at the mark; of
    /// a download that isn't stored those that every follower has read.
    fn forget_old(&mut self) {
        if self.stored {
            self.memory.trim(&self.written);
            return;
        }
        let positions = self.followers.values().map(|follower| follower.at);
        let floor = positions.min().unwrap_or(u64::MAX);
        if let Some(end) = self.memory.forget_below(floor) {
            self.lost = self.lost.max(end);
        }
    }
}
