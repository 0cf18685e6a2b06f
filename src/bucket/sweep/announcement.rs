//! How a sweep and those who write links avoid each other, without a lock and without a
//! conditional write.
//!
//! A sweep that is going to delete content writes a list of it, waits for [`LEAD`], and only then reads which
//! of it is linked. Whoever writes a link has read the lists of all sweeps before it looks for the content, and
//! has written the link within [`LEAD`] of that: it holds a [`Guard`].
//!
//! ```text
//! sweep    PUT list ──── LEAD ────► links, uses ► HEAD, DELETE content ► DELETE links ► DELETE list
//! linker   LIST lists ► HEAD content ► PUT content ► PUT link ► is the guard still good?
//!          └──────────────── less than LEAD ──────────────┘
//! ```
//!
//! Where the linker has read the lists before the sweep wrote its own, its link was there before the sweep
//! read the links, which spare the content. Where it has read the list, it knows until when a link spares
//! the content; after that it comes back when the list is gone. So one of the two always sees the other, as
//! long as the bucket shows what was written before. When a list is gone, its
//! sweep's deletions are over. One that was left behind, by a sweep that was killed or has sent a deletion
//! without an answer, is void after [`VOID`]; no sweep deletes for longer than [`DELETING`].
//!
//! All times are the bucket's: those of a machine that was suspended are wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::patience::patiently;
use crate::bucket::client::Objects;
use crate::bucket::digests::{Digests, Read};
use crate::bucket::error::{BucketError, Told};
use crate::oci::Digest;

/// What the keys of the lists begin with.
pub(super) const DIRECTORY: &str = "millpond/sweep/deleting";

/// How long before it looks at links a sweep says what it may delete, and how long a link may take to be
/// written.
pub(super) const LEAD: Duration = Duration::from_mins(15);
/// How much longer a sweep waits: times of the bucket are in whole seconds, and told a moment later.
pub(super) const MARGIN: Duration = Duration::from_mins(1);
/// How long after its list a sweep may delete.
pub(super) const DELETING: Duration = Duration::from_hours(4);
/// When a list doesn't count any more: its sweep was killed, and what it has sent last has long been done.
pub(super) const VOID: Duration = Duration::from_hours(8);
/// How long the lists count as read.
const FRESH_WITHOUT_LISTS: Duration = Duration::from_mins(5);
const FRESH_WITH_LISTS: Duration = Duration::from_secs(30);
/// Less time isn't worth beginning with.
const SHORTEST: Duration = Duration::from_mins(1);
/// Lists that are read, at most. Each sweep has one.
const MAX_LISTS: usize = 100;

/// What this sweep may delete, as it has told all replicas.
#[derive(Debug)]
pub(super) struct Announcement {
    key: String,
    /// When it was written.
    made: SystemTime,
    /// Whether a deletion has failed: it may still be done later.
    is_unsure: AtomicBool,
}

impl Announcement {
    /// Writes the list, and waits until every link that was written without knowing it can be seen.
    pub(super) async fn make(
        objects: &Objects,
        replica: &str,
        list: Bytes,
    ) -> Result<Self, BucketError> {
        // Sweeps that run at the same time, even of one replica, have lists of their own.
        let key = format!("{DIRECTORY}/{replica}-{:08x}", fastrand::u32(..));
        patiently(|| objects.put(&key, vec![list.clone()])).await?;
        let mut wait = None;
        loop {
            let Some(list) = patiently(|| objects.head(&key)).await? else {
                let told = "the list of what is being deleted has vanished";
                return Err(BucketError::failed(Told(told.to_owned())));
            };
            let over = list.modified + LEAD + MARGIN;
            let left = over.duration_since(objects.now()).unwrap_or_default();
            if left.is_zero() {
                let made = list.modified;
                let is_unsure = AtomicBool::new(false);
                return Ok(Self {
                    key,
                    made,
                    is_unsure,
                });
            }
            // A clock that stands still must not keep this waiting for ever.
            let wait = wait.get_or_insert(LEAD + MARGIN * 2);
            let step = left.min(*wait).max(MARGIN / 4);
            *wait = wait.checked_sub(step).ok_or_else(|| {
                BucketError::failed(Told("the bucket's clock stands still".to_owned()))
            })?;
            sleep(step).await;
        }
    }

    /// Deletes an object. False where there is no more time for that. It has to be awaited to its end, or
    /// the list must stay.
    pub(super) async fn delete(&self, objects: &Objects, key: &str) -> Result<bool, BucketError> {
        if objects.now() >= self.made + DELETING {
            return Ok(false);
        }
        let deleted = objects.delete(key).await;
        if deleted.is_err() {
            self.is_unsure.store(true, Relaxed);
        }
        deleted.map(|()| true)
    }

    /// Nothing more is deleted. The list stays where a deletion may not be over.
    pub(super) async fn withdraw(&self, objects: &Objects) -> Result<(), BucketError> {
        if self.is_unsure.load(Relaxed) {
            return Ok(());
        }
        objects.delete(&self.key).await
    }
}

/// Until when a link may be written.
#[derive(Debug, Clone, Copy)]
pub(in crate::bucket) struct Guard {
    until: SystemTime,
}

impl Guard {
    /// Whether a link that has been written by now spares its content. Asked after the answer to the last
    /// request, which tells the bucket's time. Otherwise the link has to be written again, with a new guard.
    pub(in crate::bucket) fn holds(&self, objects: &Objects) -> bool {
        objects.now() < self.until
    }
}

/// What sweeps have announced, as far as this replica has read it.
#[derive(Debug, Default)]
pub(in crate::bucket) struct Announced(Mutex<Option<Arc<Known>>>);

#[derive(Debug)]
struct Known {
    /// No later than when the bucket listed the lists.
    read: SystemTime,
    lists: Vec<List>,
}

#[derive(Debug, Clone)]
struct List {
    key: String,
    made: SystemTime,
    /// None where it can't be read: it may have any digest.
    digests: Option<Digests>,
}

impl Announced {
    /// What writing a link to content needs before anybody looks whether the content is there. None while a
    /// sweep may be deleting it: in a few minutes at the earliest, it has either stayed or gone.
    pub(in crate::bucket) async fn guard(
        &self,
        objects: &Objects,
        digest: &Digest,
    ) -> Result<Option<Guard>, BucketError> {
        let has = |list: &List| {
            list.digests
                .as_ref()
                .is_none_or(|list| list.contains(digest))
        };
        self.guard_unless(objects, has).await
    }

    /// The same for a tag of a mirrored repository: sweeps remove tags of which the revision is gone.
    pub(in crate::bucket) async fn guard_tag(
        &self,
        objects: &Objects,
    ) -> Result<Option<Guard>, BucketError> {
        self.guard_unless(objects, |_list| true).await
    }

    async fn guard_unless(
        &self,
        objects: &Objects,
        is_about: impl Fn(&List) -> bool,
    ) -> Result<Option<Guard>, BucketError> {
        let known = self.known(objects).await?;
        let about = known.lists.iter().filter(|list| is_about(list));
        let until = about
            .map(|list| list.made)
            .fold(known.read, SystemTime::min)
            + LEAD;
        let has_time = until.duration_since(objects.now()).unwrap_or_default() >= SHORTEST;
        Ok(has_time.then_some(Guard { until }))
    }

    async fn known(&self, objects: &Objects) -> Result<Arc<Known>, BucketError> {
        let before = self.0.lock().clone();
        if let Some(known) = &before {
            let fresh = if known.lists.is_empty() {
                FRESH_WITHOUT_LISTS
            } else {
                FRESH_WITH_LISTS
            };
            let age = objects.now().duration_since(known.read);
            if age.is_ok_and(|age| age < fresh) {
                return Ok(Arc::clone(known));
            }
        }
        let known = Arc::new(read(objects, before.as_deref()).await?);
        *self.0.lock() = Some(Arc::clone(&known));
        Ok(known)
    }
}

async fn read(objects: &Objects, before: Option<&Known>) -> Result<Known, BucketError> {
    let asked = Instant::now();
    let listed: Vec<_> = objects.list(DIRECTORY).try_collect().await?;
    let now = objects.now();
    let mut known = Known {
        read: now.checked_sub(asked.elapsed()).unwrap_or(now),
        lists: Vec::new(),
    };
    for object in listed {
        if is_void(object.modified, now) {
            continue;
        }
        let (key, made) = (object.key, object.modified);
        let is_same = |list: &&List| (&list.key, list.made) == (&key, made);
        let same = before.and_then(|known| known.lists.iter().find(is_same));
        let digests = match same {
            Some(list) => list.digests.clone(),
            None if known.lists.len() >= MAX_LISTS => None,
            None => match Digests::read(objects, &key).await? {
                Read::List(list) if list.is_whole() => Some(list),
                Read::List(_) | Read::Broken => None,
                Read::Missing => continue,
            },
        };
        known.lists.push(List { key, made, digests });
    }
    Ok(known)
}

/// Whether a list was left behind.
fn is_void(made: SystemTime, now: SystemTime) -> bool {
    now.duration_since(made).is_ok_and(|age| age >= VOID)
}

/// Removes the lists of sweeps that were killed.
pub(super) async fn remove_void(objects: &Objects) -> Result<(), BucketError> {
    let listed: Vec<_> = objects.list(DIRECTORY).try_collect().await?;
    let now = objects.now();
    for object in listed {
        if is_void(object.modified, now) {
            objects.delete(&object.key).await?;
        }
    }
    Ok(())
}
