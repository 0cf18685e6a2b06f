//! The one source of time.
//!
//! Wall time is the wall clock at the start plus what tokio's monotonic clock has counted since. So
//! a step of the system clock can't make entries expire early, and a test under paused time moves
//! timers and stored deadlines together.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Tells the time. Cheap to copy; one is made at the start and handed to whoever needs it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    wall_at_start: SystemTime,
}

impl Clock {
    /// A clock that starts at the system's wall time. Call it inside a runtime.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system for the wall time"
    )]
    pub fn system() -> Self {
        Self::starting_at(SystemTime::now())
    }

    /// A clock whose wall time starts at a given moment.
    pub fn starting_at(wall_at_start: SystemTime) -> Self {
        Self {
            started: Instant::now(),
            wall_at_start,
        }
    }

    /// Monotonic time: for ages and deadlines that don't leave the process.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Wall time: for what is written down or sent.
    pub fn wall(&self) -> SystemTime {
        self.wall_at_start + self.since_start()
    }

    /// How long the process has been running.
    pub fn since_start(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wall_time_follows_paused_time() {
        let clock = Clock::starting_at(SystemTime::UNIX_EPOCH);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(
            clock.wall(),
            SystemTime::UNIX_EPOCH + Duration::from_secs(90)
        );
    }
}
