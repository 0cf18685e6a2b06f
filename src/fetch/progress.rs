//! How far a download is: shared by its task, which brings bytes, and its followers, who read.

mod sources;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::FetchError;
use super::memory::Memory;
use super::plan::{Demand, Want};
use super::position::{Announced, Members, Position};
use crate::oci::{ByteRange, RangeSet};
use crate::retention::WITHHELD;
use crate::store::{Piece, Reader};

pub(super) use sources::Given;

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
    members: Members,
    /// What the present source has sent like the one whose bytes were thrown away.
    agreed: RangeSet,
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
                members: Members::default(),
                agreed: RangeSet::new(),
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
    pub(super) fn opened(
        &self,
        total: Option<u64>,
        reader: Option<Reader>,
        kept: &RangeSet,
        other_length: &FetchError,
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
    pub(super) fn failed(&self, error: FetchError) {
        self.change(|state| {
            if matches!(state.phase, Phase::Opening | Phase::Streaming) {
                state.phase = Phase::Failed(error);
                state.memory.clear();
            }
        });
    }

    /// How the download has ended for a member, if it has: with so many bytes.
    pub(super) fn ended(&self, member: u64) -> Option<Result<u64, FetchError>> {
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
    pub(super) fn head(&self, follower: u64) -> Result<Head, FetchError> {
        let mut state = self.state();
        if !state.admits(follower)? || matches!(state.phase, Phase::Opening) {
            return Ok(Head::Wait);
        }
        let total = state.total;
        if let Some(position) = state.followers.get_mut(&follower) {
            position.told = Some(Announced(total));
        }
        Ok(Head::Open(total))
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
    pub(super) fn step(&self, follower: u64, reading: Reading) -> Result<Step, FetchError> {
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

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether a follower may be given bytes now, or be told the length.
    fn admits(&self, follower: u64) -> Result<bool, FetchError> {
        let Some(position) = self.followers.get(&follower) else {
            return Err(FetchError::Lost);
        };
        if let Some(error) = &position.error {
            return Err(error.clone());
        }
        if let Phase::Failed(error) = &self.phase {
            return Err(self.failure(position.member, error));
        }
        Ok(self.members.admits(position.member)? && !position.compares)
    }

    /// Why a member's followers get no more: its own source's error, where that has been tried.
    fn failure(&self, member: u64, error: &FetchError) -> FetchError {
        let own = self.members.failures.get(&member);
        match error {
            // These are nobody's source's.
            FetchError::Present | FetchError::Stopping => error.clone(),
            _ => own.unwrap_or(error).clone(),
        }
    }

    /// Notes what a follower is given.
    fn gives(&mut self, follower: u64, start: u64, piece: &Piece) {
        let end = match piece {
            Piece::Bytes(bytes) => start + bytes.len() as u64,
            Piece::File { end, .. } => *end,
        };
        if let Some(position) = self.followers.get_mut(&follower) {
            position.given.insert(start, end);
        }
        if let Some(given) = &mut self.given {
            given.insert(start, end);
        }
    }

    /// What a follower waits for, with its turn: bytes that it lacks, or that are to be compared.
    fn want(&self, position: &Position) -> Option<(u64, Want)> {
        if !position.compares {
            return Some((position.waits?, self.lacks(position.at, position.end)?));
        }
        let missing = |range: &ByteRange| {
            let at = self.have.end_of(range.start);
            let end = Some(range.end);
            (at < range.end).then_some(Want { at, end })
        };
        Some((0, position.given.ranges().iter().find_map(missing)?))
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
            Phase::Verified => true,
            Phase::Opening | Phase::Streaming => false,
        };
        // Only a body that was read from byte 0 on must not end well before it is verified.
        if (verified || !whole) && self.total.is_some_and(|total| offset >= total) {
            return Ok(Step::End);
        }
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
