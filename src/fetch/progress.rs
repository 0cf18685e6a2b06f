//! How far a download is: shared by its task, which writes, and its followers, who read.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::FetchError;
use crate::store::Reader;

/// Bytes of recent chunks that are kept in memory although the file has them, so that followers at
/// the mark are served without reading what was just written.
const RECENT: usize = 1024 * 1024;

/// Bytes that followers of a download that isn't stored may lag behind its mark.
const MAX_UNSTORED: usize = 4 * 1024 * 1024;

/// Where a download stands.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// Waiting for the upstream's head.
    Opening,
    /// Bytes are coming.
    Streaming,
    /// All bytes are there and have the digest. The only phase that ends a body well.
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
    /// Bytes that came from the upstream.
    received: u64,
    /// Bytes that are in the file. Never more than `received`.
    written: u64,
    /// Bytes that followers may see: less than `received` while the last chunk is held back.
    readable: u64,
    /// The latest chunks with their offsets, without gaps; at least `written..received`.
    recent: VecDeque<(u64, Bytes)>,
    recent_bytes: usize,
    /// Whether what comes is written to the file.
    stored: bool,
    /// Where each follower is: what it read last began here.
    followers: HashMap<u64, u64>,
    next_follower: u64,
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
    /// Bytes at the offset asked for.
    Chunk(Bytes),
    /// The file has `..limit`.
    Read { reader: Reader, limit: u64 },
    /// Nothing comes after the offset.
    End,
    /// Nothing yet.
    Wait,
}

#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// A follower of a download that isn't stored has moved or left.
    moved: watch::Sender<()>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                phase: Phase::Opening,
                total: None,
                reader: None,
                received: 0,
                written: 0,
                readable: 0,
                recent: VecDeque::new(),
                recent_bytes: 0,
                stored: true,
                followers: HashMap::new(),
                next_follower: 0,
            }),
            changed: watch::Sender::new(()),
            moved: watch::Sender::new(()),
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

    /// Wakes when a follower of a download that isn't stored moves on or leaves.
    pub(super) fn watch_followers(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// A new follower, who may read from the first byte on. None when that can't be had any more.
    pub(super) fn enter(&self) -> Option<u64> {
        let mut state = self.state();
        let gap = state
            .recent
            .front()
            .is_some_and(|(start, _)| *start > state.written)
            || (state.recent.is_empty() && state.received > state.written);
        (!gap).then(|| state.enter())
    }

    /// The follower of a download that has not begun.
    pub(super) fn enter_first(&self) -> u64 {
        self.state().enter()
    }

    /// A follower has left.
    pub(super) fn leave(&self, follower: u64) {
        let mut state = self.state();
        state.followers.remove(&follower);
        if !state.stored {
            state.forget_old();
            self.moved.send_replace(());
        }
    }

    /// Nothing more will be written to the file: followers get the rest from memory.
    pub(super) fn unstored(&self) {
        self.state().stored = false;
    }

    /// Whether more may come: followers of a download that isn't stored must keep up.
    pub(super) fn room(&self) -> Result<bool, FetchError> {
        let state = self.state();
        if state.stored {
            Ok(true)
        } else if state.followers.is_empty() {
            Err(FetchError::Abandoned)
        } else {
            Ok(state.recent_bytes < MAX_UNSTORED)
        }
    }

    /// The upstream has answered; without a reader nothing is stored.
    pub(super) fn opened(&self, total: Option<u64>, reader: Option<Reader>) {
        self.change(|state| {
            state.phase = Phase::Streaming;
            state.total = total;
            state.stored = reader.is_some();
            state.reader = reader;
        });
    }

    /// A chunk has come: followers may have it, unless it completes the blob.
    pub(super) fn received(&self, chunk: Bytes) {
        self.change(|state| {
            let offset = state.received;
            state.received += chunk.len() as u64;
            state.recent_bytes += chunk.len();
            state.recent.push_back((offset, chunk));
            state.forget_old();
            if state.total != Some(state.received) {
                state.readable = state.received;
            }
        });
    }

    /// The file has everything before `mark`. Nobody waits for this.
    pub(super) fn written(&self, mark: u64) {
        let mut state = self.state();
        state.written = mark;
        state.forget_old();
    }

    /// Everything is there, in the file too, and has the digest.
    pub(super) fn verified(&self) {
        self.change(|state| {
            state.total = Some(state.received);
            state.readable = state.received;
            state.phase = Phase::Verified;
        });
    }

    /// The download has failed, for everybody. Later calls change nothing.
    pub(super) fn failed(&self, error: FetchError) {
        self.change(|state| {
            if matches!(state.phase, Phase::Opening | Phase::Streaming) {
                state.phase = Phase::Failed(error);
                state.recent.clear();
                state.recent_bytes = 0;
            }
        });
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

    /// What a follower at `offset` does next.
    pub(super) fn step(&self, follower: u64, offset: u64) -> Result<Step, FetchError> {
        let mut state = self.state();
        state.followers.insert(follower, offset);
        if !state.stored {
            state.forget_old();
            self.moved.send_replace(());
        }
        match &state.phase {
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Verified if offset >= state.received => return Ok(Step::End),
            Phase::Opening | Phase::Streaming | Phase::Verified => {}
        }
        if offset >= state.readable {
            return Ok(Step::Wait);
        }
        let behind = state
            .recent
            .partition_point(|(start, chunk)| start + chunk.len() as u64 <= offset);
        if let Some((start, chunk)) = state.recent.get(behind)
            && *start <= offset
        {
            let skip = usize::try_from(offset - start).unwrap_or(chunk.len());
            return Ok(Step::Chunk(chunk.slice(skip..)));
        }
        let limit = state.written.min(state.readable);
        match state.reader.clone() {
            Some(reader) if offset < limit => Ok(Step::Read { reader, limit }),
            // Neither in memory nor in the file: passed through, and this follower came too late.
            _ => Err(FetchError::Lost),
        }
    }
}

impl State {
    fn enter(&mut self) -> u64 {
        let id = self.next_follower;
        self.next_follower += 1;
        self.followers.insert(id, 0);
        id
    }

    /// Drops old chunks: those that the file has, beyond what is kept for followers at the mark; of
    /// a download that isn't stored those that every follower has read.
    fn forget_old(&mut self) {
        let (keep, until) = if self.stored {
            (RECENT, self.written)
        } else {
            (
                0,
                self.followers.values().copied().min().unwrap_or(u64::MAX),
            )
        };
        while let Some((start, chunk)) = self.recent.front()
            && self.recent_bytes > keep
            && start + chunk.len() as u64 <= until
        {
            self.recent_bytes -= chunk.len();
            self.recent.pop_front();
        }
    }
}
