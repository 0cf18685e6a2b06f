//! Slows down whoever guesses passwords: after a few wrong ones, a user's password is not looked at
//! for a while when it comes from the same address, and the while doubles.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::unsync::Cache;
use tokio::time::Instant;

use super::AuthError;

/// Wrong passwords that cost nothing: people mistype.
const FREE: u32 = 5;
const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_mins(5);
/// Wrong passwords are forgotten after so long without another.
const FORGOTTEN: Duration = Duration::from_hours(1);
/// Pairs of an address and a user name that are remembered.
const MAX_ENTRIES: usize = 16 * 1024;

/// An address (IPv6: its /64 network), and a hash of the user's name.
pub(super) type Key = (Option<IpAddr>, [u8; 32]);

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

pub(super) struct Throttle {
    entries: Mutex<Cache<Key, Failures>>,
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Throttle")
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            entries: Mutex::new(Cache::new(MAX_ENTRIES)),
        }
    }
}

/// One attempt to show a user's password.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    throttle: Arc<Throttle>,
    key: Key,
    /// Whether a password of an unknown user counts as wrong.
    count_unknown: bool,
}

impl Attempt {
    pub(super) fn new(throttle: &Arc<Throttle>, key: Key, count_unknown: bool) -> Self {
        Self {
            throttle: Arc::clone(throttle),
            key,
            count_unknown,
        }
    }

    /// Fails while passwords aren't looked at.
    pub(super) fn check(&self) -> Result<(), AuthError> {
        self.throttle.check(&self.key)
    }

    /// Where it comes from.
    pub(super) const fn network(&self) -> Option<IpAddr> {
        self.key.0
    }

    pub(super) fn right(&self) {
        self.throttle.succeeded(&self.key);
    }

    pub(super) fn wrong(&self) {
        self.throttle.failed(&self.key);
    }

    pub(super) fn unknown(&self) {
        if self.count_unknown {
            self.wrong();
        }
    }
}

/// One customer's network has that many addresses.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let upper = u128::from(v6) & !u128::from(u64::MAX);
            IpAddr::V6(upper.into())
        }
    }
}

impl Throttle {
    pub(super) fn key(address: Option<IpAddr>, user: &str) -> Key {
        let user = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, user.as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(user.as_ref());
        (address.map(network), hash)
    }

    /// Fails while passwords aren't looked at.
    fn check(&self, key: &Key) -> Result<(), AuthError> {
        let failures = self.entries.lock().get(key).copied();
        let wait = failures.and_then(|failures| {
            let doubled = failures.count.checked_sub(FREE)?;
            let delay = FIRST_DELAY * 2_u32.saturating_pow(doubled.min(16));
            let until = failures.last + delay.min(MAX_DELAY);
            until.checked_duration_since(Instant::now())
        });
        match wait.filter(|wait| !wait.is_zero()) {
            None => Ok(()),
            // Whole seconds, rounded up, for the header.
            Some(wait) => Err(AuthError::Throttled(Duration::from_secs(
                wait.as_secs() + u64::from(wait.subsec_nanos() > 0),
            ))),
        }
    }

    fn failed(&self, key: &Key) {
        let now = Instant::now();
        let mut entries = self.entries.lock();
        let before = entries.get(key).copied();
        let before = before.filter(|failures| now - failures.last < FORGOTTEN);
        let count = before.map_or(0, |failures| failures.count);
        let count = count.saturating_add(1);
        entries.insert(*key, Failures { count, last: now });
    }

    fn succeeded(&self, key: &Key) {
        self.entries.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(throttle: &Throttle, key: &Key) -> u64 {
        match throttle.check(key) {
            Ok(()) => 0,
            Err(AuthError::Throttled(wait)) => wait.as_secs(),
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_delay_doubles_up_to_a_bound_and_a_success_ends_it() {
        let throttle = Throttle::default();
        let key = Throttle::key("192.0.2.1".parse().ok(), "alice");
        for _ in 0..FREE - 1 {
            throttle.failed(&key);
            assert_eq!(wait(&throttle, &key), 0);
        }
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            throttle.failed(&key);
            assert_eq!(wait(&throttle, &key), expected);
            tokio::time::advance(Duration::from_secs(expected)).await;
            assert_eq!(wait(&throttle, &key), 0);
        }
        throttle.failed(&key);
        throttle.succeeded(&key);
        assert_eq!(wait(&throttle, &key), 0);
        for _ in 0..FREE {
            throttle.failed(&key);
        }
        tokio::time::advance(FORGOTTEN).await;
        throttle.failed(&key);
        assert_eq!(wait(&throttle, &key), 0, "the earlier ones are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn others_are_not_delayed() {
        let throttle = Throttle::default();
        let key = |address: &str, user| Throttle::key(address.parse().ok(), user);
        for _ in 0..=FREE {
            throttle.failed(&key("2001:db8::1", "alice"));
        }
        assert_eq!(
            wait(&throttle, &key("2001:db8::ffff", "alice")),
            2,
            "the same /64"
        );
        assert_eq!(wait(&throttle, &key("2001:db8::1", "bob")), 0);
        assert_eq!(wait(&throttle, &key("2001:db8:0:1::1", "alice")), 0);
    }
}
