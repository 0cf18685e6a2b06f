//! One registry of a copy: how much of it happens there at a time, and when something is tried again.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::events::{Event, Observer};
use crate::oci::Classified as _;
use crate::upstream::{Failure, UpstreamError};

/// Failures in a row without any progress after which something is given up.
const MAX_FAILURES: u32 = 6;
/// The first wait; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait that the registry didn't ask for.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Refusals within this time are one: they answer requests that were sent before the first.
const ONE_REFUSAL: Duration = Duration::from_secs(1);

/// A registry, as all copies from and to it share it.
pub struct Host {
    name: String,
    observer: Arc<dyn Observer>,
    state: Mutex<Slots>,
    freed: Notify,
}

/// Blobs that are copied, and questions about manifests, at a time.
#[derive(Debug)]
struct Slots {
    used: usize,
    limit: usize,
    most: usize,
    /// Successes since the limit was last changed.
    successes: usize,
    refused_at: Option<Instant>,
}

/// One of the blobs or questions at a time.
pub(super) struct Slot<'a>(&'a Host);

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Host").field(&self.name).finish()
    }
}

impl Host {
    /// `most` is 1 or more.
    pub fn new(name: String, most: usize, observer: Arc<dyn Observer>) -> Arc<Self> {
        Arc::new(Self {
            name,
            observer,
            state: Mutex::new(Slots {
                used: 0,
                limit: most.max(1),
                most: most.max(1),
                successes: 0,
                refused_at: None,
            }),
            freed: Notify::new(),
        })
    }

    /// `host[:port]`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until another blob may be copied, or another question asked.
    pub(super) async fn enter(&self) -> Slot<'_> {
        loop {
            let freed = self.freed.notified();
            {
                let mut slots = self.state.lock();
                if slots.used < slots.limit {
                    slots.used += 1;
                    return Slot(self);
                }
            }
            freed.await;
        }
    }

    /// Asks something that belongs to no slot yet, as [`ask_within`](Self::ask_within).
    pub(super) async fn ask<T>(
        &self,
        ask: impl AsyncFnMut() -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let _slot = self.enter().await;
        self.ask_within(ask).await
    }

    /// Asks, and asks again after failures that pass, as long as that may help. The caller has a slot.
    pub(super) async fn ask_within<T>(
        &self,
        mut ask: impl AsyncFnMut() -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let mut patience = Patience::new(self);
        loop {
            match ask().await {
                Ok(answer) => {
                    self.succeeded();
                    return Ok(answer);
                }
                Err(error) => patience.wait(error, false).await?,
            }
        }
    }

    /// Half as much at a time from now on.
    fn refused(&self, now: Instant) {
        let mut slots = self.state.lock();
        let is_new = slots
            .refused_at
            .is_none_or(|at| now.duration_since(at) >= ONE_REFUSAL);
        if is_new {
            slots.limit = (slots.limit / 2).max(1);
            slots.successes = 0;
            slots.refused_at = Some(now);
        }
    }

    /// One more at a time after as many successes as there may be at a time.
    fn succeeded(&self) {
        let mut slots = self.state.lock();
        slots.successes += 1;
        if slots.successes > slots.limit && slots.limit < slots.most {
            slots.limit += 1;
            slots.successes = 0;
            drop(slots);
            self.freed.notify_one();
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.state.lock().used -= 1;
        self.0.freed.notify_one();
    }
}

/// Decides whether something that has failed is tried again.
pub(super) struct Patience<'a> {
    host: &'a Host,
    failures: u32,
}

impl<'a> Patience<'a> {
    pub(super) fn new(host: &'a Host) -> Self {
        Self { host, failures: 0 }
    }

    /// Waits before the next try, as long as the registry wants; the error where there should be none.
    /// `progressed`: bytes have arrived since the last failure.
    pub(super) async fn wait(
        &mut self,
        error: UpstreamError,
        progressed: bool,
    ) -> Result<(), UpstreamError> {
        if is_refusal(&error) {
            self.host.refused(Instant::now());
        }
        self.failures = if progressed { 1 } else { self.failures + 1 };
        if self.failures >= MAX_FAILURES || !is_passing(&error) {
            return Err(error);
        }
        let doubled = FIRST_WAIT.saturating_mul(1 << (self.failures - 1).min(16));
        let spread = doubled.min(MAX_WAIT).mul_f64(0.5 + fastrand::f64() / 2.0);
        let wait = error.retry_after().map_or(spread, |wanted| wanted + spread);
        let (host, error) = (self.host.name(), &error);
        self.host.observer.on(&Event::Waiting { host, error, wait });
        sleep(wait).await;
        Ok(())
    }
}

/// 429 and 5xx.
fn is_refusal(error: &UpstreamError) -> bool {
    matches!(
        error.failure,
        Failure::RateLimited { .. } | Failure::Unavailable { .. }
    )
}

/// Whether the same request may succeed later.
fn is_passing(error: &UpstreamError) -> bool {
    let never = matches!(
        error.failure,
        Failure::NoCredentials(_) | Failure::MonthUsedUp | Failure::Unavailable { status: 501, .. }
    );
    error.is_transient() && !never
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;

    fn host(most: usize) -> Arc<Host> {
        Host::new("registry.example".to_owned(), most, Arc::new(()))
    }

    fn error(failure: Failure) -> UpstreamError {
        UpstreamError::new(&"https://registry.example".parse().unwrap(), failure)
    }

    fn limited(seconds: Option<u64>) -> UpstreamError {
        let retry_after = seconds.map(Duration::from_secs);
        error(Failure::RateLimited { retry_after })
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_halves_what_happens_at_a_time_and_successes_restore_it() {
        let host = host(8);
        let limit = || host.state.lock().limit;
        host.refused(Instant::now());
        host.refused(Instant::now());
        assert_eq!(limit(), 4, "requests that were sent together count once");
        for expected in [2, 1, 1] {
            tokio::time::advance(ONE_REFUSAL).await;
            host.refused(Instant::now());
            assert_eq!(limit(), expected);
        }
        let slot = host.enter().await;
        let mut next = Box::pin(host.enter());
        assert!(poll!(&mut next).is_pending());
        host.succeeded();
        host.succeeded();
        assert_eq!(limit(), 2);
        let next = next.await;
        drop((slot, next));
        for _ in 0..100 {
            host.succeeded();
        }
        assert_eq!((limit(), host.state.lock().used), (8, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_waited_for_as_long_as_the_registry_wants() {
        let host = host(8);
        let mut answers = vec![Ok(7), Err(limited(Some(90))), Err(limited(None))];
        let began = Instant::now();
        let answer = host.ask(async || answers.pop().unwrap()).await;
        assert_eq!(answer.unwrap(), 7);
        let waited = began.elapsed();
        assert!(
            waited >= Duration::from_secs(90) && waited < Duration::from_secs(93),
            "{waited:?}"
        );
        // Not for ever, and not for what doesn't pass.
        for (failure, tries) in [
            (Failure::RateLimited { retry_after: None }, MAX_FAILURES),
            (Failure::Denied(None), 1),
            (
                Failure::Unavailable {
                    status: 501,
                    retry_after: None,
                },
                1,
            ),
        ] {
            let mut asked = 0;
            let refused = host.ask(async || {
                asked += 1;
                Err::<(), _>(error(failure.clone()))
            });
            assert!(refused.await.is_err());
            assert_eq!(asked, tries);
        }
    }
}
