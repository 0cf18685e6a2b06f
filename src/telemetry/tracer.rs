//! Which requests are traced, and the queue of finished spans.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::TraceParent;
use super::finished::FinishedSpan;
use crate::clock::Clock;
use crate::metrics::Counter;

/// Spans that wait to be exported; further ones are dropped and counted.
const MAX_WAITING: usize = 4096;

/// Which requests are traced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The share of the requests without a caller's decision, 0 to 1.
    pub ratio: f64,
}

/// Decides which requests are traced, and takes their spans.
#[derive(Debug)]
pub struct Tracer {
    sampling: Sampling,
    clock: Clock,
    queue: mpsc::Sender<Box<FinishedSpan>>,
    dropped: Counter,
}

/// The finished spans.
pub type SpanQueue = mpsc::Receiver<Box<FinishedSpan>>;

impl Tracer {
    /// A tracer, and the spans that it takes. `dropped` counts those for which there is no room.
    pub fn new(sampling: Sampling, clock: Clock, dropped: Counter) -> (Arc<Self>, SpanQueue) {
        let (queue, spans) = mpsc::channel(MAX_WAITING);
        let tracer = Self {
            sampling,
            clock,
            queue,
            dropped,
        };
        (Arc::new(tracer), spans)
    }

    /// Whether a request is traced: as its caller has decided, or else by chance.
    pub(super) fn samples(&self, caller: Option<TraceParent>) -> bool {
        caller.map_or_else(
            || fastrand::f64() < self.sampling.ratio,
            |caller| caller.sampled,
        )
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.wall()
    }

    pub(super) fn finished(&self, span: Box<FinishedSpan>) {
        if self.queue.try_send(span).is_err() {
            self.dropped.inc();
        }
    }
}
