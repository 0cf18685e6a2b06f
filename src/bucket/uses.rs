//! The record of uses: which content the replicas have served, by day.
//!
//! Each replica adds once an hour what it has used since to one object for the day of the bucket's clock,
//! `millpond/uses/DAY/REPLICA`: it reads the object, and writes it again with the union. So nothing that it
//! has evicted since is lost, nor what it wrote before a restart. Uses are known from the cache's index; uses
//! of content that isn't cached here are [noted](Uses::note).
//!
//! A use that can't be recorded counts for the day of the hour in which it can. One that a process takes with
//! it, because it is killed before it has written, is lost unless the saved state of the cache has it: at most
//! an hour's.
//!
//! An object that is broken or isn't ours is left alone. The sweep takes it for a list that may have had any
//! digest: it removes nothing while it is there, which is as long as uses are kept.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::client::Objects;
use super::day::Day;
use super::digests::{Digests, MAX_DIGESTS, Read};
use super::error::{BucketError, Told};
use crate::cache::Cache;
use crate::error_chain::on_one_line;
use crate::oci::Digest;

/// What the keys of the record begin with.
pub(super) const DIRECTORY: &str = "millpond/uses";

/// How often uses are written.
const EVERY: Duration = Duration::from_hours(1);
/// The first time after the start, in seconds: replicas that start together don't write together.
const FIRST: std::ops::Range<u64> = 60..600;
/// How much more of the past is looked through than has passed: clocks are read one after the other.
const MARGIN: Duration = Duration::from_mins(1);
/// The day may be another one after the first answer, and another one after midnight.
const DAYS_TRIED: usize = 3;
/// Digests between two pauses for others.
const PAGE: usize = 4096;
/// Noted digests at most. With more, the record says that some are missing.
const MAX_NOTED: usize = 100_000;

/// The uses that this replica has yet to record.
#[derive(Debug)]
pub(super) struct Uses {
    noted: Mutex<Noted>,
    started: Instant,
    /// When uses were last recorded; what was used before is in the record.
    recorded: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Noted {
    digests: HashSet<Digest>,
    /// Whether there were more.
    is_part: bool,
}

impl Noted {
    fn add(&mut self, digest: Digest) {
        if self.digests.len() < MAX_NOTED || self.digests.contains(&digest) {
            self.digests.insert(digest);
        } else {
            self.is_part = true;
        }
    }
}

impl Default for Uses {
    /// Those from now on.
    fn default() -> Self {
        Self {
            noted: Mutex::default(),
            started: Instant::now(),
            recorded: Mutex::default(),
        }
    }
}

impl Uses {
    /// Content was used that may not be cached here.
    pub(super) fn note(&self, digest: &Digest) {
        self.noted.lock().add(*digest);
    }

    /// Whether a use was noted.
    #[cfg(test)]
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.noted.lock().digests.contains(digest)
    }

    /// Records uses again and again.
    pub(super) async fn keep(&self, objects: &Objects, cache: &Cache, replica: &str) {
        sleep(Duration::from_secs(fastrand::u64(FIRST))).await;
        loop {
            if let Err(error) = self.record(objects, cache, replica).await {
                tracing::warn!(error = %on_one_line(&error), "which content was used can't be written to the bucket; it is tried again in an hour");
            }
            sleep(EVERY).await;
        }
    }

    /// Adds what was used since the last time to today's object of this replica.
    pub(super) async fn record(
        &self,
        objects: &Objects,
        cache: &Cache,
        replica: &str,
    ) -> Result<(), BucketError> {
        let noted = std::mem::take(&mut *self.noted.lock());
        let begun = Instant::now();
        let recorded = self.add(&noted, objects, cache, replica).await;
        if recorded.is_ok() {
            *self.recorded.lock() = Some(begun);
        } else {
            let mut again = self.noted.lock();
            again.is_part |= noted.is_part;
            for digest in noted.digests {
                again.add(digest);
            }
        }
        recorded
    }

    async fn add(
        &self,
        noted: &Noted,
        objects: &Objects,
        cache: &Cache,
        replica: &str,
    ) -> Result<(), BucketError> {
        let (day, before) = today(objects, replica).await?;
        let key = key(day, replica);
        let (mut digests, mut is_whole) = match &before {
            Read::Missing => (HashSet::new(), true),
            Read::List(list) => (all_of(list).await, list.is_whole()),
            Read::Broken => {
                tracing::warn!(
                    key,
                    "this object of the bucket isn't the list of uses that it should be; nothing is swept while it is there"
                );
                return Ok(());
            }
        };
        is_whole &= !noted.is_part;
        digests.extend(&noted.digests);
        cache
            .used_within(self.span(objects, day), |digest| {
                if digests.len() < MAX_DIGESTS || digests.contains(&digest) {
                    digests.insert(digest);
                } else {
                    is_whole = false;
                }
            })
            .await;
        if let Read::List(list) = &before
            && list.len() == digests.len()
            && list.is_whole() == is_whole
        {
            return Ok(());
        }
        let bytes = Digests::encoded(digests.into_iter().collect(), is_whole).await?;
        objects.put(&key, vec![bytes]).await
    }

    /// How long ago the first use was that has to be in the record of the day: at the start of the day, or
    /// when uses were last recorded, if that is earlier.
    fn span(&self, objects: &Objects, day: Day) -> Duration {
        let today = objects.now().duration_since(day.start());
        // An earlier process may have ended before it has recorded its last hour.
        let unrecorded = match *self.recorded.lock() {
            Some(recorded) => recorded.elapsed(),
            None => self.started.elapsed() + EVERY,
        };
        today.unwrap_or_default().max(unrecorded) + MARGIN
    }
}

async fn all_of(list: &Digests) -> HashSet<Digest> {
    let mut digests = HashSet::with_capacity(list.len());
    for (number, digest) in list.iter().enumerate() {
        digests.insert(digest);
        if number % PAGE == PAGE - 1 {
            tokio::task::yield_now().await;
        }
    }
    digests
}

/// The bucket's day, and what the replica's object for it is.
async fn today(objects: &Objects, replica: &str) -> Result<(Day, Read), BucketError> {
    let mut day = Day::of(objects.now());
    for _ in 0..DAYS_TRIED {
        let read = Digests::read(objects, &key(day, replica)).await?;
        // Each answer tells the bucket's time, which nobody knows before the first one.
        let now = Day::of(objects.now());
        if now == day {
            return Ok((day, read));
        }
        day = now;
    }
    Err(BucketError::failed(Told(
        "the bucket's answers have dates of different days".to_owned(),
    )))
}

fn key(day: Day, replica: &str) -> String {
    format!("{DIRECTORY}/{day}/{replica}")
}

/// The day of an object of the record. None for a key that isn't one.
pub(super) fn day(key: &str) -> Option<Day> {
    let key = key.strip_prefix(DIRECTORY)?.strip_prefix('/')?;
    let (day, replica) = key.split_once('/')?;
    let is_replica = !replica.is_empty() && !replica.contains('/');
    Day::parse(day).filter(|_| is_replica)
}

/// The name of a member as a component of keys: different members have different ones. `:` is `_`, and what
/// is neither a letter, a digit, `.` nor `-` is `=` and its hexadecimal code.
pub fn replica_key(member: &str) -> String {
    let mut key = String::with_capacity(member.len());
    for byte in member.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => key.push(byte.into()),
            b':' => key.push('_'),
            // A String takes everything.
            _ => drop(write!(key, "={byte:02x}")),
        }
    }
    key
}

/// A name for a replica that has none. Each has its own.
pub fn random_replica() -> String {
    format!("{:016x}", fastrand::u64(..))
}
