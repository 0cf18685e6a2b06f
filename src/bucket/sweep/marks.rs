//! What earlier sweeps have marked for deletion: one object for each sweep that has marked something,
//! `millpond/sweep/marked/BEGAN-REPLICA-RANDOM`, with the digests. BEGAN is when the sweep began, in seconds
//! since 1970: what was written, linked or used since then is spared.
//!
//! A mark is due [`DUE_AFTER`] its object was written. Marks that weren't processed for [`FORGOTTEN_AFTER`] are
//! forgotten: what is still unused is marked again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::TryStreamExt as _;

use super::patience::patiently;
use crate::bucket::client::Objects;
use crate::bucket::digests::{Digests, MAX_DIGESTS, Read};
use crate::bucket::error::BucketError;
use crate::oci::Digest;

const DIRECTORY: &str = "millpond/sweep/marked";
/// How long what is marked is left alone.
pub(super) const DUE_AFTER: Duration = Duration::from_hours(48);
/// How far the times may be apart that a bucket tells of the same moment: in its dates, and of its objects.
const MARGIN: Duration = Duration::from_mins(1);
/// How long a mark counts.
pub(super) const FORGOTTEN_AFTER: Duration = Duration::from_hours(7 * 24);
/// Digests that one sweep marks or deletes, at most: the others have to wait for the next one.
pub(super) const MAX_MARKED: usize = 250_000;
const _: () = assert!(MAX_MARKED <= MAX_DIGESTS);

/// What one sweep has marked.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) key: String,
    /// When its sweep began.
    pub(super) began: SystemTime,
    pub(super) digests: Digests,
}

/// All marks.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) due: Vec<Mark>,
    /// Those that wait.
    pub(super) others: Vec<Digests>,
    /// Those that don't count any more, by their keys.
    pub(super) forgotten: Vec<String>,
    /// Objects that are no marks.
    pub(super) foreign: u64,
}

impl Marks {
    /// Reads them all. The first request of a sweep: the bucket has told its time then.
    pub(super) async fn read(objects: &Objects) -> Result<Self, BucketError> {
        let mut listed: Vec<_> = objects.list(DIRECTORY).try_collect().await?;
        let now = objects.now();
        listed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let (mut marks, mut due) = (Self::default(), 0);
        for object in listed {
            let Some(began) = began(&object.key) else {
                marks.foreign += 1;
                continue;
            };
            let age = now.duration_since(object.modified).unwrap_or_default();
            if age >= FORGOTTEN_AFTER {
                marks.forgotten.push(object.key);
                continue;
            }
            let digests = match Digests::read(objects, &object.key).await? {
                Read::List(digests) => digests,
                Read::Missing => continue,
                // Nothing is lost: what is still unused is marked again.
                Read::Broken => {
                    marks.forgotten.push(object.key);
                    continue;
                }
            };
            if age < DUE_AFTER || due + digests.len() > MAX_MARKED {
                marks.others.push(digests);
                continue;
            }
            due += digests.len();
            // A sweep begins before it marks; a key that says otherwise isn't believed.
            let began = began.min(object.modified);
            let key = object.key;
            marks.due.push(Mark {
                key,
                began,
                digests,
            });
        }
        Ok(marks)
    }

    /// What may be deleted now.
    pub(super) fn due(&self) -> impl Iterator<Item = Digest> {
        self.due.iter().flat_map(|mark| mark.digests.iter())
    }

    /// When the sweeps began of which the marks are due: the first of them.
    pub(super) fn began(&self) -> Option<SystemTime> {
        self.due.iter().map(|mark| mark.began).min()
    }

    /// Whether it is marked, due or not.
    pub(super) fn contain(&self, digest: &Digest) -> bool {
        let due = self.due.iter().map(|mark| &mark.digests);
        let mut all = due.chain(&self.others);
        all.any(|marked| marked.contains(digest))
    }
}

/// Marks digests.
pub(super) async fn write(
    objects: &Objects,
    replica: &str,
    began: SystemTime,
    digests: Vec<Digest>,
) -> Result<(), BucketError> {
    let seconds = began.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = seconds.saturating_sub(MARGIN).as_secs();
    let key = format!("{DIRECTORY}/{seconds}-{replica}-{:08x}", fastrand::u32(..));
    let list = Digests::encoded(digests, true).await?;
    patiently(|| objects.put(&key, vec![list.clone()])).await
}

/// When the sweep of a mark began.
fn began(key: &str) -> Option<SystemTime> {
    let name = key.strip_prefix(DIRECTORY)?.strip_prefix('/')?;
    let (seconds, _) = name.split_once('-')?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse().ok()?))
}
