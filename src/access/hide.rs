//! Hidden repositories: the time after which they are answered.
//!
//! A repository that doesn't exist is answered once the upstream has said so; one that is hidden could
//! be answered at once, and the difference would tell a caller that it exists. So a hidden one is
//! answered after the time that one of the last answers of the first kind took.

use std::time::Duration;

use parking_lot::Mutex;

/// Times that are remembered.
const REMEMBERED: usize = 16;
/// The time before any is known.
const UNKNOWN: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct NotFoundTimes {
    last: Mutex<([Duration; REMEMBERED], usize)>,
}

impl Default for NotFoundTimes {
    fn default() -> Self {
        Self {
            last: Mutex::new(([UNKNOWN; REMEMBERED], 0)),
        }
    }
}

impl NotFoundTimes {
    /// Remembers how long it took to learn that an upstream has no such thing.
    pub(super) fn note(&self, time: Duration) {
        let (last, next) = &mut *self.last.lock();
        if *next == 0 {
            // The first one is better than the guess.
            last.fill(time);
        }
        if let Some(slot) = last.get_mut(*next % REMEMBERED) {
            *slot = time;
        }
        *next = next.wrapping_add(1).max(1);
    }

    /// A time for a hidden repository.
    pub(super) fn any(&self) -> Duration {
        let chosen = fastrand::usize(..REMEMBERED);
        let last = self.last.lock();
        last.0.get(chosen).copied().unwrap_or(UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_replaces_the_guess_and_later_ones_the_oldest() {
        let times = NotFoundTimes::default();
        assert_eq!(times.any(), UNKNOWN);
        let ms = Duration::from_millis;
        times.note(ms(7));
        assert_eq!(times.any(), ms(7));
        for _ in 0..REMEMBERED {
            times.note(ms(9));
        }
        assert_eq!(times.any(), ms(9));
    }
}
