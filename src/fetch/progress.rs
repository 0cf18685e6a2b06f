//! How far a download is: shared by its task, which writes, and its followers, who read.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::FetchError;
use crate::store::Reader;

/// Bytes of recent chunks that are kept in memory although the file has them, so that followers at
/// the mark are served without reading what was just written.
const RECENT: usize = 1024 * 1024;

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
            }),
            changed: watch::Sender::new(()),
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

    /// The upstream has answered.
    pub(super) fn opened(&self, total: Option<u64>, reader: Reader) {
        self.change(|state| {
            state.phase = Phase::Streaming;
            state.total = total;
            state.reader = Some(reader);
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
    pub(super) fn step(&self, offset: u64) -> Result<Step, FetchError> {
        let state = self.state();
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
        Ok(state
            .reader
            .clone()
            .map_or(Step::Wait, |reader| Step::Read { reader, limit }))
    }
}

impl State {
    /// Drops old chunks that the file has, beyond what is kept for followers at the mark.
    fn forget_old(&mut self) {
        while let Some((start, chunk)) = self.recent.front()
            && self.recent_bytes > RECENT
            && start + chunk.len() as u64 <= self.written
        {
            self.recent_bytes -= chunk.len();
            self.recent.pop_front();
        }
    }
}
