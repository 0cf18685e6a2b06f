//! Reads the record of uses into the rows, and says whether it can be relied on.

use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt as _;

use super::patience::patiently;
use super::rows::Rows;
use crate::bucket::client::Objects;
use crate::bucket::day::Day;
use crate::bucket::digests::{Digests, Read};
use crate::bucket::error::BucketError;
use crate::bucket::uses;

/// How long uses are kept where content has no TTL: an operator may set one, and the size limit goes by them.
const KEPT_WITHOUT_TTL: Duration = Duration::from_hours(30 * 24);
/// How much longer they are kept than the TTL, in days: parts of days, and marks that wait.
const KEPT_LONGER: u16 = 4;
/// Digests between two pauses for others.
const PAGE: usize = 4096;

/// The record, as it was read.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Its first day: nothing is known of the time before.
    pub(super) first: Option<Day>,
    /// Whether nothing is missing as far as can be told. Otherwise any content may have been used.
    pub(super) is_whole: bool,
    /// The keys of what is no longer needed.
    pub(super) old: Vec<String>,
    pub(super) foreign: u64,
}

/// Adds all uses to the rows. What was there before the first day of the record counts as used on it.
pub(super) async fn read(
    objects: &Objects,
    rows: &mut Rows,
    ttl: Option<Duration>,
    now: SystemTime,
) -> Result<Record, BucketError> {
    let listed = patiently(|| objects.list(uses::DIRECTORY).try_collect::<Vec<_>>()).await?;
    let kept = now.checked_sub(ttl.unwrap_or(KEPT_WITHOUT_TTL));
    let kept = kept.map_or(Day::default(), Day::of).before(KEPT_LONGER);
    let mut record = Record {
        is_whole: true,
        ..Record::default()
    };
    for object in listed {
        let Some(day) = uses::day(&object.key) else {
            record.foreign += 1;
            continue;
        };
        record.first = Some(record.first.map_or(day, |first| first.min(day)));
        if day < kept {
            record.old.push(object.key);
            continue;
        }
        let key = &object.key;
        match patiently(|| Digests::read(objects, key)).await? {
            // Removed by another sweep since it was listed.
            Read::Missing => {}
            Read::List(list) => {
                record.is_whole &= list.is_whole();
                if !list.is_whole() {
                    tracing::warn!(
                        key,
                        "a list of uses in the bucket is incomplete, because a replica used too much: nothing is swept until the list is too old to count"
                    );
                }
                add(rows, &list, day).await;
            }
            Read::Broken => {
                record.is_whole = false;
                tracing::warn!(
                    key,
                    "a list of uses in the bucket is broken: nothing is swept until it is removed or too old to count"
                );
            }
        }
    }
    match record.first {
        Some(first) => begin(rows, first).await,
        None => record.is_whole = false,
    }
    Ok(record)
}

async fn add(rows: &mut Rows, list: &Digests, day: Day) {
    for (number, digest) in list.iter().enumerate() {
        rows.used(&digest, day);
        if number % PAGE == 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn begin(rows: &mut Rows, first: Day) {
    for part in rows.parts_mut() {
        for row in part {
            row.used(first);
        }
        tokio::task::yield_now().await;
    }
}
