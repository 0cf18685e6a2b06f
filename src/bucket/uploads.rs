//! Writes to the bucket what was committed here: content, then the link, then the tag.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::buffers::Buffers;
use super::client::Parts;
use super::error::BucketError;
use super::queue::{Entry, Upload};
use super::retention::is_relied_on_safely;
use super::{Bucket, keys};
use crate::cache::CachedBlob;
use crate::error_chain::on_one_line;
use crate::metrics::BucketUpload;
use crate::oci::Digest;

/// Uploads at a time.
const WORKERS: usize = 4;
/// Parts in memory at a time, across all uploads.
pub(super) const MAX_PARTS: usize = 4;
/// Parts of one object, at most: the limit of S3.
const MAX_PARTS_OF_OBJECT: u64 = 10_000;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How often an upload begins that takes longer than a guard holds.
const GUARDS: usize = 2;
/// How long a worker pauses after content that a sweep may be deleting.
pub(super) const SWEPT_PAUSE: Duration = Duration::from_mins(1);

/// What uploads share.
#[derive(Debug)]
pub(super) struct Uploading {
    parts: Arc<Semaphore>,
    /// Bytes of a part.
    chunk_size: u64,
    /// Of the uploads that run.
    buffers: Mutex<Weak<Buffers>>,
    backoff: Mutex<Backoff>,
}

#[derive(Debug, Default)]
struct Backoff {
    until: Option<Instant>,
    pause: Duration,
}

impl Uploading {
    pub(super) fn new(chunk_size: u64) -> Self {
        Self {
            parts: Arc::new(Semaphore::new(MAX_PARTS)),
            chunk_size,
            buffers: Mutex::default(),
            backoff: Mutex::default(),
        }
    }

    /// Those of the uploads that run, which need no more than those parts that may be in memory.
    pub(super) fn buffers(&self) -> Arc<Buffers> {
        let mut running = self.buffers.lock();
        running.upgrade().unwrap_or_else(|| {
            let buffers = Arc::new(Buffers::new(MAX_PARTS, self.chunk_size));
            *running = Arc::downgrade(&buffers);
            buffers
        })
    }

    /// Waits until the pause after a failure is over. False where that is cut short.
    async fn pause(&self, drain: &CancellationToken) -> bool {
        loop {
            let until = self.backoff.lock().until;
            match until {
                Some(until) if Instant::now() < until => {
                    let waited = drain.run_until_cancelled(sleep_until(until)).await;
                    if waited.is_none() {
                        return false;
                    }
                }
                _ => return true,
            }
        }
    }

    fn is_pausing(&self) -> bool {
        let until = self.backoff.lock().until;
        until.is_some_and(|until| Instant::now() < until)
    }

    fn failed(&self) {
        let mut backoff = self.backoff.lock();
        let now = Instant::now();
        // Uploads that fail at the same time count once.
        if backoff.until.is_none_or(|until| until <= now) {
            backoff.pause = (backoff.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            backoff.until = Some(now + backoff.pause);
        }
    }

    fn succeeded(&self) {
        *self.backoff.lock() = Backoff::default();
    }
}

/// How an upload has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    /// The content is no longer stored here, and isn't in the bucket either.
    Gone,
    /// A sweep may be deleting the content, or was faster: all of it has to be done again.
    Swept,
}

/// Whether the bucket has content.
enum Content {
    There,
    Gone,
}

impl Bucket {
    /// Queues what is to be in the bucket, too. `is_absent`: the bucket has just said that it lacks the content,
    /// or has sent wrong bytes of it.
    pub fn upload(&self, upload: Upload, is_absent: bool) {
        let entry = Entry { upload, is_absent };
        if !self.queue.push(entry) {
            self.metrics.upload(BucketUpload::Dropped);
        }
        self.metrics.queued(self.queue.len());
    }

    /// Uploads what is queued, until `drain` is done and nothing is queued any more, or an upload fails then.
    pub async fn upload_all(self: Arc<Self>, drain: CancellationToken) {
        self.queue.begin();
        let worker = || self.work(&drain);
        join_all((0..WORKERS).map(|_| worker())).await;
    }

    async fn work(&self, drain: &CancellationToken) {
        // A push that needs something now doesn't wait for a worker that pauses: that has none.
        while self.uploading.pause(drain).await
            && let Some(entry) = self.queue.next(drain).await
        {
            if self.uploading.is_pausing() {
                self.queue.ended(entry, true);
                continue;
            }
            let uploaded = self.upload_one(&entry).await;
            if let Ok(Ended::Done) = &uploaded {
                self.on_uploaded(&entry.upload).await;
            }
            let result = match &uploaded {
                Ok(Ended::Done) => BucketUpload::Done,
                Ok(Ended::Gone) => BucketUpload::Dropped,
                Ok(Ended::Swept) => {
                    // The others go on.
                    self.queue.ended(entry, true);
                    let paused = drain.run_until_cancelled(sleep(SWEPT_PAUSE)).await;
                    if paused.is_none() {
                        return;
                    }
                    continue;
                }
                Err(_) => BucketUpload::Failed,
            };
            let has_failed = match uploaded {
                Ok(_) => {
                    self.uploading.succeeded();
                    false
                }
                Err(error) => {
                    let Upload { repo, digest, .. } = &entry.upload;
                    tracing::warn!(%repo, %digest, error = %on_one_line(&error), "an upload to the bucket failed; it is tried again");
                    self.uploading.failed();
                    true
                }
            };
            self.metrics.upload(result);
            // The attempt may have got further than its answer.
            let entry = Entry {
                is_absent: false,
                ..entry
            };
            self.queue.ended(entry, has_failed);
            self.metrics.queued(self.queue.len());
            if has_failed && drain.is_cancelled() {
                return;
            }
        }
    }

    pub(super) async fn upload_one(&self, entry: &Entry) -> Result<Ended, BucketError> {
        let Upload {
            repo,
            kind,
            digest,
            tag,
        } = &entry.upload;
        let mut is_absent = entry.is_absent;
        // Large content may take longer than a guard holds; it isn't sent again then.
        for _ in 0..GUARDS {
            // Before anything of the bucket is relied on.
            let guard = match tag {
                Some(_) => self.announced.guard_tag(&self.objects).await?,
                None => self.announced.guard(&self.objects, digest).await?,
            };
            let Some(guard) = guard else {
                return Ok(Ended::Swept);
            };
            if let Content::Gone = self.upload_content(digest, is_absent).await? {
                return Ok(Ended::Gone);
            }
            is_absent = false;
            // Also where it is there: its time tells the sweep that it is relied on.
            let link = keys::link(repo, *kind, digest);
            self.objects.put_pointer(&link, digest).await?;
            if let Some(tag) = tag {
                self.share_tag(repo, tag, digest).await?;
            }
            if guard.holds(&self.objects) {
                return Ok(Ended::Done);
            }
        }
        Ok(Ended::Swept)
    }

    /// Sees to it that the bucket has content that a link is about to rely on.
    async fn upload_content(
        &self,
        digest: &Digest,
        is_absent: bool,
    ) -> Result<Content, BucketError> {
        let key = keys::blob(digest);
        let there = if is_absent {
            None
        } else {
            self.objects.head(&key).await?
        };
        if there
            .as_ref()
            .is_some_and(|there| self.lasts(there.modified))
        {
            return Ok(Content::There);
        }
        let Some(blob) = self.cache.peek(digest).await else {
            return Ok(match there {
                // The sweep asks for its links again, before it removes it.
                Some(_) => Content::There,
                None => Content::Gone,
            });
        };
        if blob.size() < self.uploading.chunk_size {
            let buffers = self.uploading.buffers();
            let _part = self.uploading.parts.acquire().await;
            let reader = &blob.content().reader;
            let content = buffers.read(reader, 0, blob.size()).await?;
            self.objects.put(&key, content.clone()).await?;
            buffers.reuse(content);
        } else {
            self.upload_in_parts(&key, &blob).await?;
        }
        self.metrics.uploaded(blob.size());
        Ok(Content::There)
    }

    /// Whether an object is so young that the sweep won't remove it soon.
    fn lasts(&self, modified: SystemTime) -> bool {
        is_relied_on_safely(modified, self.objects.now(), self.ttl)
    }

    async fn upload_in_parts(&self, key: &str, blob: &CachedBlob) -> Result<(), BucketError> {
        let parts = self.objects.begin_parts(key).await?;
        let uploaded = self.upload_parts(&parts, blob).await;
        if let Err(error) = &uploaded {
            tracing::debug!(key, error = %on_one_line(error), "removing the parts of an upload that failed");
            if let Err(error) = self.objects.abort_parts(&parts).await {
                tracing::debug!(key, error = %on_one_line(&error), "can't remove the parts; a sweep removes them after a day");
            }
        }
        uploaded
    }

    async fn upload_parts(&self, to: &Parts, blob: &CachedBlob) -> Result<(), BucketError> {
        let size = blob.size();
        let part = self.uploading.chunk_size;
        let part = part.max(size.div_ceil(MAX_PARTS_OF_OBJECT)).max(1);
        let count = size.div_ceil(part);
        let buffers = self.uploading.buffers();
        let mut done: Vec<(u64, _)> = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut next = 0;
        while next < count || !running.is_empty() {
            tokio::select! {
                biased;
                ended = running.next(), if !running.is_empty() => {
                    done.extend(ended.transpose()?);
                }
                permit = Arc::clone(&self.uploading.parts).acquire_owned(), if next < count => {
                    let (index, start) = (next, next * part);
                    next += 1;
                    let buffers = &buffers;
                    running.push(async move {
                        let (reader, length) = (&blob.content().reader, part.min(size - start));
                        let content = buffers.read(reader, start, length).await?;
                        let at = usize::try_from(index).unwrap_or(usize::MAX);
                        let id = self.objects.put_part(to, at, content.clone()).await?;
                        buffers.reuse(content);
                        drop(permit);
                        Ok::<_, BucketError>((index, id))
                    });
                }
            }
        }
        done.sort_unstable_by_key(|(index, _)| *index);
        let ids = done.into_iter().map(|(_, id)| id).collect();
        self.objects.complete_parts(to, ids).await
    }
}
