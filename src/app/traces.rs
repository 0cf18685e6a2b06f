//! The export of traces: one task, which owns the queue of finished spans.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::StartError;
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::tasks::Tasks;
use crate::telemetry::Tracer;

/// How long a stop waits for the last spans to be exported.
const FLUSH_TIME: Duration = Duration::from_secs(5);

/// Traces, where they are configured.
#[derive(Debug, Default)]
pub(super) struct Traces {
    tracer: Option<Arc<Tracer>>,
    /// Owns the export.
    task: TaskTracker,
    /// Export what is queued, and end.
    ending: CancellationToken,
    /// End at once.
    given_up: CancellationToken,
}

impl Traces {
    /// Starts the export.
    #[cfg(feature = "otel")]
    pub(super) fn start(
        config: &Config,
        clock: Clock,
        metrics: &Metrics,
        background: &Tasks,
    ) -> Result<Self, StartError> {
        use crate::telemetry::Sampling;
        use crate::upstream::Collector;

        let Some(tracing) = &config.tracing else {
            return Ok(Self::default());
        };
        let collector = Collector::new(tracing).map_err(StartError::Collector)?;
        let sampling = Sampling {
            ratio: tracing.sample,
        };
        let dropped = metrics.trace_spans_dropped();
        let (tracer, spans) = Tracer::new(sampling, clock, dropped.clone());
        let started = Self {
            tracer: Some(tracer),
            ..Self::default()
        };
        let export = export::Export {
            spans,
            collector,
            ending: started.ending.clone(),
            exported: metrics.trace_spans_exported(),
            dropped,
            reported: None,
        };
        let given_up = started.given_up.clone();
        let task = background.tracked_by(&started.task);
        task.spawn(async move {
            given_up.run_until_cancelled(export.run()).await;
        });
        Ok(started)
    }

    /// Without the feature, the configuration permits no traces.
    #[cfg(not(feature = "otel"))]
    #[expect(clippy::unnecessary_wraps, reason = "the same as with the feature")]
    pub(super) fn start(_: &Config, _: Clock, _: &Metrics, _: &Tasks) -> Result<Self, StartError> {
        Ok(Self::default())
    }

    /// What decides which requests are traced.
    pub(super) fn tracer(&self) -> Option<Arc<Tracer>> {
        self.tracer.clone()
    }

    /// Exports what is queued, for a bounded time, and ends the export.
    pub(super) async fn flush(&self) {
        self.ending.cancel();
        self.task.close();
        if tokio::time::timeout(FLUSH_TIME, self.task.wait())
            .await
            .is_err()
        {
            tracing::warn!("the last spans could not be exported in time");
            self.given_up.cancel();
        }
    }
}

#[cfg(feature = "otel")]
mod export {
    use super::{CancellationToken, Duration};
    use crate::error_chain::on_one_line;
    use crate::metrics::Counter;
    use crate::telemetry::{FinishedSpan, SpanQueue, otlp};
    use crate::upstream::{Collector, CollectorError};
    use tokio::time::{Instant, sleep, sleep_until};

    /// Most spans of one request to the collector.
    const BATCH: usize = 512;
    /// How long spans wait for others of their batch.
    const INTERVAL: Duration = Duration::from_secs(1);
    /// How often a batch is sent, and the first pause between; it doubles.
    const ATTEMPTS: u32 = 4;
    const PAUSE: Duration = Duration::from_secs(1);
    /// Failures are reported once in this time.
    const REPORT: Duration = Duration::from_mins(1);

    type Batch = Vec<Box<FinishedSpan>>;

    /// The task of the export.
    pub(super) struct Export {
        pub(super) spans: SpanQueue,
        pub(super) collector: Collector,
        pub(super) ending: CancellationToken,
        pub(super) exported: Counter,
        pub(super) dropped: Counter,
        pub(super) reported: Option<Instant>,
    }

    impl Export {
        /// Exports batches until the end, and then what is queued.
        pub(super) async fn run(mut self) {
            while let Some(batch) = self.next().await {
                self.send(batch).await;
            }
        }

        /// The next batch: full, or as old as the interval. None when the end has come and nothing is
        /// queued.
        async fn next(&mut self) -> Option<Batch> {
            let mut batch = Batch::new();
            let mut deadline = None;
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                tokio::select! {
                    biased;
                    taken = self.spans.recv_many(&mut batch, room) => {
                        if taken == 0 {
                            break;
                        }
                        deadline = deadline.or_else(|| Some(Instant::now() + INTERVAL));
                    }
                    () = at(deadline) => break,
                    () = self.ending.cancelled() => break,
                }
            }
            (!batch.is_empty()).then_some(batch)
        }

        async fn send(&mut self, batch: Batch) {
            let count = batch.len() as u64;
            let body = otlp::encode(batch);
            let mut pause = PAUSE;
            for attempt in 1..=ATTEMPTS {
                let error = match self.collector.post(body.clone()).await {
                    Ok(response) => {
                        let rejected = otlp::rejected(&response).min(count);
                        self.exported.inc_by(count - rejected);
                        self.dropped.inc_by(rejected);
                        return;
                    }
                    Err(error) => error,
                };
                let is_last = attempt == ATTEMPTS || self.ending.is_cancelled();
                if is_last || !error.may_pass() {
                    self.give_up(count, &error);
                    return;
                }
                tokio::select! {
                    () = sleep(pause) => {}
                    () = self.ending.cancelled() => {}
                }
                pause *= 2;
            }
        }

        fn give_up(&mut self, count: u64, error: &CollectorError) {
            self.dropped.inc_by(count);
            if self.reported.is_some_and(|last| last.elapsed() < REPORT) {
                return;
            }
            self.reported = Some(Instant::now());
            tracing::warn!(spans = count, error = %on_one_line(error), "spans can't be exported");
        }
    }

    async fn at(deadline: Option<Instant>) {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }
}
