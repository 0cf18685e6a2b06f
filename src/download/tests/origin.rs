//! An upstream that has one blob.

use std::time::Duration;

use super::*;

/// Bytes of a chunk.
const CHUNK: usize = 64 * 1024;

/// The behaviour of one request.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Usual,
    Fails(fn() -> UpstreamError),
    /// Breaks off after this many bytes.
    Cut(u64),
    /// Waits for the gate after this many bytes.
    Gate(u64, CancellationToken),
}

/// An upstream that has a blob. It honours ranges, and records what was requested and sent.
#[derive(Debug)]
pub(super) struct Origin {
    upstream: &'static str,
    content: Bytes,
    /// How long a chunk takes.
    delay: Duration,
    ranges: bool,
    tells_length: bool,
    state: Arc<Mutex<Noted>>,
}

#[derive(Debug, Default)]
struct Noted {
    acts: VecDeque<Act>,
    afterwards: Option<Act>,
    asked: Vec<(u64, Option<u64>)>,
    sent: u64,
    open: usize,
    most: usize,
    breaks: bool,
}

/// A stream that is open.
struct Open(Arc<Mutex<Noted>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().unwrap().open -= 1;
    }
}

impl Origin {
    pub(super) fn new(content: &Bytes) -> Self {
        Self {
            upstream: UPSTREAM,
            content: content.clone(),
            delay: Duration::ZERO,
            ranges: true,
            tells_length: true,
            state: Arc::default(),
        }
    }

    /// A registry of another name.
    pub(super) fn of(mut self, upstream: &'static str) -> Self {
        self.upstream = upstream;
        self
    }

    /// Bytes a second of each stream.
    pub(super) fn slow(mut self, rate: u64) -> Self {
        self.delay = Duration::from_micros(CHUNK as u64 * 1_000_000 / rate);
        self
    }

    pub(super) fn without_ranges(mut self) -> Self {
        self.ranges = false;
        self
    }

    /// `Content-Range: bytes a-b/*`.
    pub(super) fn without_length(mut self) -> Self {
        self.tells_length = false;
        self
    }

    /// The behaviour of the next requests.
    pub(super) fn acts(self, acts: impl IntoIterator<Item = Act>) -> Arc<Self> {
        self.state.lock().unwrap().acts.extend(acts);
        Arc::new(self)
    }

    /// The behaviour of every request from now on.
    pub(super) fn always(&self, act: Act) {
        let mut state = self.state.lock().unwrap();
        state.acts.clear();
        state.afterwards = Some(act);
    }

    /// Every open stream breaks off at its next byte.
    pub(super) fn break_off(&self) {
        self.state.lock().unwrap().breaks = true;
    }

    pub(super) fn asked(&self) -> Vec<(u64, Option<u64>)> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Bytes sent over all streams.
    pub(super) fn sent(&self) -> u64 {
        self.state.lock().unwrap().sent
    }

    pub(super) fn open_streams(&self) -> usize {
        self.state.lock().unwrap().open
    }

    /// The most streams that were open at a time.
    pub(super) fn most(&self) -> usize {
        self.state.lock().unwrap().most
    }

    fn body(&self, start: usize, end: usize, act: Act) -> crate::upstream::BlobChunks {
        let open = Open(Arc::clone(&self.state));
        let (content, delay) = (self.content.slice(..end), self.delay);
        let stop = match act {
            Act::Cut(after) | Act::Gate(after, _) => start + usize::try_from(after).unwrap(),
            Act::Usual | Act::Fails(_) => usize::MAX,
        };
        let next = move |(open, at): (Open, usize)| {
            let (content, act) = (content.clone(), act.clone());
            async move {
                if at >= stop {
                    match act {
                        Act::Gate(_, gate) => gate.cancelled().await,
                        _ => return Some((Err(broken()), (open, usize::MAX))),
                    }
                }
                let limit = if at < stop { stop } else { usize::MAX };
                let until = (at.saturating_add(CHUNK)).min(limit).min(content.len());
                if at >= until {
                    return None;
                }
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                if open.0.lock().unwrap().breaks {
                    return Some((Err(broken()), (open, usize::MAX)));
                }
                open.0.lock().unwrap().sent += (until - at) as u64;
                Some((Ok(content.slice(at..until)), (open, until)))
            }
        };
        futures_util::stream::unfold((open, start), next).boxed()
    }
}

#[async_trait::async_trait]
impl Source for Origin {
    async fn open(&self, offset: u64, end: Option<u64>) -> Result<BlobStream, UpstreamError> {
        let act = {
            let mut state = self.state.lock().unwrap();
            state.asked.push((offset, end));
            let usual = state.afterwards.clone().unwrap_or(Act::Usual);
            state.acts.pop_front().unwrap_or(usual)
        };
        let total = self.content.len() as u64;
        let (start, end) = if self.ranges {
            (offset, end.unwrap_or(total).min(total))
        } else {
            (0, total)
        };
        if let Act::Fails(error) = act {
            return Err(error());
        }
        if start >= total && total > 0 {
            return Err(unexpected(416));
        }
        {
            let mut state = self.state.lock().unwrap();
            state.open += 1;
            state.most = state.most.max(state.open);
        }
        let [from, until] = [start, end].map(|at| usize::try_from(at).unwrap());
        Ok(BlobStream {
            offset: start,
            end: Some(end),
            total: self.tells_length.then_some(total),
            body: self.body(from, until, act),
        })
    }

    fn upstream(&self) -> &'static str {
        self.upstream
    }
}
