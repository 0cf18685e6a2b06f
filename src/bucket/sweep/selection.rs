//! Which content is to go: what was neither written nor used for the TTL, and above the size limit what was
//! least recently used, by day. Without I/O.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::Retention;
use super::links::SETTLED;
use super::rows::{DELETED, HOSTED, LINKED, Row, Rows};
use crate::bucket::day::Day;

/// Content that was used yesterday or today stays, whatever the limit: the record of yesterday may not be
/// complete yet.
const DAYS_KEPT: u16 = 2;

/// What a sweep removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Selection {
    now: SystemTime,
    /// What was last used before this day has passed its TTL.
    expired: Day,
    /// What was last used before this day is above the size limit, and so much of what was last used on it,
    /// in bytes.
    above: (Day, u64),
}

impl Selection {
    /// Sums the bytes of each day, page by page, so that nothing is sorted.
    pub(super) async fn of(rows: &Rows, retention: &Retention, now: SystemTime) -> Self {
        let mut selection = Self {
            now,
            expired: retention
                .ttl
                .map_or(Day::default(), |ttl| Day::of(before(now, ttl))),
            above: (Day::default(), 0),
        };
        let Some(max_size) = retention.max_size else {
            return selection;
        };
        let (mut stays, mut days) = (rows.bytes, BTreeMap::<Day, u64>::new());
        for part in rows.parts() {
            for (_, row) in part {
                let may_go = selection.may_go(row);
                if !may_go && !row.facts.any(DELETED) {
                    continue;
                }
                if !may_go || row.last < selection.expired {
                    stays = stays.saturating_sub(row.size);
                } else {
                    *days.entry(row.last).or_default() += row.size;
                }
            }
            tokio::task::yield_now().await;
        }
        let mut excess = stays.saturating_sub(max_size);
        for (day, bytes) in days {
            if excess == 0 {
                break;
            }
            selection.above = (day, excess);
            excess = excess.saturating_sub(bytes);
        }
        selection
    }

    /// Everything that was last used on this day or later stays, unless the size limit says otherwise.
    pub(super) fn stays(&self) -> Day {
        self.expired.max(self.above.0)
    }

    /// Whether content may go at all.
    fn may_go(&self, row: &Row) -> bool {
        let age = self.now.duration_since(row.modified()).unwrap_or_default();
        age >= SETTLED
            && row.last <= Day::of(self.now).before(DAYS_KEPT)
            && !row.facts.any(HOSTED | LINKED | DELETED)
    }

    /// Whether this goes. Asked once for each row.
    pub(super) fn takes(&mut self, row: &Row) -> bool {
        if !self.may_go(row) {
            return false;
        }
        let (day, rest) = &mut self.above;
        if row.last < self.expired || row.last < *day {
            return true;
        }
        let is_above = row.last == *day && *rest > 0;
        if is_above {
            *rest = rest.saturating_sub(row.size);
        }
        is_above
    }
}

fn before(now: SystemTime, span: Duration) -> SystemTime {
    now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::oci::{Algorithm, Digest};

    const DAY: Duration = Duration::from_hours(24);

    fn now() -> SystemTime {
        UNIX_EPOCH + DAY * 20_000 + DAY / 2
    }

    /// Rows of these ages in days and sizes.
    fn rows(of: &[(u32, u64)]) -> Rows {
        let mut parts: BTreeMap<u8, Vec<Row>> = BTreeMap::new();
        for (number, (age, size)) in (0_u32..).zip(of) {
            let digest = Digest::of(Algorithm::Sha256, &number.to_be_bytes());
            let row = Row::new(&digest, *size, now() - DAY * *age);
            parts.entry(digest.first_byte()).or_default().push(row);
        }
        let mut rows = Rows::new();
        for first in 0..=u8::MAX {
            assert!(rows.fill(first, parts.remove(&first).unwrap_or_default()));
        }
        rows
    }

    /// The ages of what is selected.
    async fn selected(rows: &Rows, ttl: Option<Duration>, max_size: Option<u64>) -> Vec<u64> {
        let retention = Retention { ttl, max_size };
        let mut selection = Selection::of(rows, &retention, now()).await;
        let all = rows.parts().flatten().map(|(_, row)| row);
        let taken = all.filter(|row| selection.takes(row));
        let age =
            |row: &Row| now().duration_since(row.modified()).unwrap().as_secs() / DAY.as_secs();
        let mut ages: Vec<_> = taken.map(age).collect();
        ages.sort_unstable();
        ages
    }

    #[tokio::test]
    async fn content_goes_a_whole_ttl_after_the_day_of_its_last_use() {
        let all: Vec<_> = (0..40).map(|age| (age, 1)).collect();
        let (rows, ttl) = (rows(&all), DAY * 30);
        assert_eq!(
            selected(&rows, Some(ttl), None).await,
            (31..40).collect::<Vec<_>>()
        );
        assert_eq!(selected(&rows, None, None).await, [] as [u64; 0]);
        // However short the TTL is.
        let ttl = Duration::from_secs(1);
        assert_eq!(
            selected(&rows, Some(ttl), None).await,
            (2..40).collect::<Vec<_>>()
        );
    }

    #[tokio::test]
    async fn above_the_limit_the_least_recently_used_go() {
        let mut rows = rows(&[(9, 10), (8, 10), (8, 10), (7, 10), (1, 10), (0, 10)]);
        assert_eq!(selected(&rows, None, Some(60)).await, [] as [u64; 0]);
        assert_eq!(selected(&rows, None, Some(59)).await, [9]);
        assert_eq!(selected(&rows, None, Some(45)).await, [8, 9]);
        assert_eq!(selected(&rows, None, Some(40)).await, [8, 9]);
        assert_eq!(selected(&rows, None, Some(31)).await, [8, 8, 9]);
        // What was used since yesterday stays.
        assert_eq!(selected(&rows, None, Some(0)).await, [7, 8, 8, 9]);
        // What goes because of its age makes room.
        assert_eq!(selected(&rows, Some(DAY * 8), Some(50)).await, [9]);
        assert_eq!(selected(&rows, Some(DAY * 8), Some(49)).await, [8, 9]);
        let oldest = Digest::of(Algorithm::Sha256, &0_u32.to_be_bytes());
        rows.used(&oldest, Day::of(now()));
        assert_eq!(selected(&rows, None, Some(59)).await, [8]);
    }

    #[tokio::test]
    async fn what_is_hosted_or_just_linked_stays_and_counts() {
        let rows = rows(&[(9, 10), (8, 10), (7, 10)]);
        let mut all: Vec<_> = rows.parts().flatten().map(|(_, row)| row).collect();
        all.sort_by_key(|row| row.modified());
        all[0].facts.add(HOSTED);
        all[1].facts.add(LINKED);
        assert_eq!(selected(&rows, Some(DAY), Some(0)).await, [7]);
    }
}
