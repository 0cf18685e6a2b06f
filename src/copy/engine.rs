//! Copies images: finds out what they consist of, copies the blobs that the destination lacks, then the
//! manifests, and the tag last.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{self, TryStreamExt as _};
use tokio::sync::Semaphore;

use super::error::CopyError;
use super::events::{BlobEnd, BlobStep, Copied, Event, Observer};
use super::fetch::{Fetch, Sink};
use super::journal::Journal;
use super::layout::Partial;
use super::plan::{Document, Documents, Plan};
use super::platform::{self, Platform, Selected};
use super::source::{Source, Wanted, blocking};
use super::spool::SpoolSettings;
use super::target::{LayoutTarget, Target};
use super::upload::Upload;
use crate::oci::{Descriptor, Digest, Tag};

/// Images that are copied at a time: the manifests of each are in memory.
const IMAGES: usize = 4;
/// Manifests and lists of one image that are asked for at a time.
const METADATA: usize = 8;

/// What is copied, and how.
#[derive(Debug)]
pub struct CopySettings {
    /// Only these; empty: all.
    pub platforms: Vec<Platform>,
    /// Whether what is attached to an image is copied, too.
    pub referrers: bool,
    /// Whether a tag of the destination may be replaced.
    pub clobber: bool,
    /// Only finds out what would be copied.
    pub dry_run: bool,
    /// Blobs that are copied at a time.
    pub jobs: usize,
    pub spool: SpoolSettings,
}

/// An image to copy.
#[derive(Debug)]
pub struct Job {
    /// What it is called in events.
    pub image: String,
    pub source: Source,
    pub wanted: Wanted,
    pub target: Target,
    /// The tag at the destination; None: only its digest names it there.
    pub tag: Option<Tag>,
}

/// Copies images.
pub struct Engine {
    settings: CopySettings,
    journal: Journal,
    observer: Arc<dyn Observer>,
    blobs: Semaphore,
}

/// An image as it is copied, and what is attached to it.
struct Gathered {
    plan: Plan,
    root: Digest,
    is_sparse: bool,
    referrers: usize,
    /// The tags of attached manifests.
    tags: HashMap<Digest, Vec<Tag>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Engine").field(&self.settings).finish()
    }
}

impl Engine {
    pub fn new(settings: CopySettings, journal: Journal, observer: Arc<dyn Observer>) -> Self {
        let blobs = Semaphore::new(settings.jobs.max(1));
        Self {
            settings,
            journal,
            observer,
            blobs,
        }
    }

    /// Copies images, several at a time. The results are in the order of the jobs.
    pub async fn run(&self, jobs: &[Job]) -> Vec<Result<Copied, CopyError>> {
        let copies = jobs.iter().map(async |job| {
            let result = self.copy(job).await;
            let image = &*job.image;
            self.observer.on(&match &result {
                Ok(copied) => Event::Done { image, copied },
                Err(error) => Event::Failed { image, error },
            });
            result
        });
        let mut results: Vec<_> = stream::iter(copies).buffered(IMAGES).collect().await;
        // Nothing of it is there without the archive.
        if let Err(error) = self.finish(jobs, &results).await {
            for (job, result) in jobs
                .iter()
                .zip(&mut results)
                .filter(|(_, result)| result.is_ok())
            {
                let image = &*job.image;
                self.observer.on(&Event::Failed {
                    image,
                    error: &error,
                });
                *result = Err(error.clone());
            }
        }
        results
    }

    /// Writes the archive that images were copied to, if it is one. All jobs have one destination.
    async fn finish(
        &self,
        jobs: &[Job],
        results: &[Result<Copied, CopyError>],
    ) -> Result<(), CopyError> {
        match jobs.first().map(|job| &job.target) {
            Some(Target::Layout(target)) if !self.settings.dry_run => {
                target.finish(results.iter().all(Result::is_ok)).await
            }
            _ => Ok(()),
        }
    }

    async fn copy(&self, job: &Job) -> Result<Copied, CopyError> {
        let current = match &job.tag {
            Some(tag) => job.target.tagged(tag).await?,
            None => None,
        };
        if !self.settings.clobber && (current.is_some() || job.target.is_archived()) {
            return Ok(Copied::default());
        }
        let gathered = self.gather(job).await?;
        let plan = &gathered.plan;
        self.observer.on(&Event::Planned {
            image: &job.image,
            manifests: plan.manifests.len(),
            blobs: plan.blobs.len(),
            bytes: plan.bytes(),
        });
        if let Target::Layout(target) = &job.target
            && !self.settings.dry_run
        {
            target.create().await?;
        }
        let mut copied = Copied {
            digest: Some(gathered.root),
            is_sparse: gathered.is_sparse,
            blobs: plan.blobs.len(),
            referrers: gathered.referrers,
            ..Copied::default()
        };
        let ends = stream::iter(&plan.blobs).map(|blob| self.blob(job, blob));
        let mut ends = ends.buffer_unordered(self.settings.jobs.max(1));
        // All are tried before the first error counts: the next run needs only what is left.
        let mut failed = None;
        while let Some(end) = ends.next().await {
            match end {
                Ok((BlobEnd::Copied, size)) => {
                    copied.sent.0 += 1;
                    copied.sent.1 += size;
                }
                Ok((BlobEnd::Mounted, _)) => copied.mounted += 1,
                Ok((BlobEnd::Exists, _)) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let written = self.manifests(job, &gathered, current).await?;
        copied.is_unchanged = copied.sent.0 + copied.mounted + written == 0;
        Ok(copied)
    }

    /// Reads all manifests of an image.
    async fn gather(&self, job: &Job) -> Result<Gathered, CopyError> {
        let whole = job.source.find(&job.wanted).await?;
        let selected = platform::select(&whole, &self.settings.platforms);
        let (root, is_sparse) = match selected.map_err(CopyError::NoPlatform)? {
            Selected::All => (whole, false),
            Selected::One(digest) => (job.source.manifest(digest).await?, false),
            Selected::Sparse(sparse) => (*sparse, true),
        };
        let mut gathered = Gathered {
            plan: Plan::default(),
            root: root.digest,
            is_sparse,
            referrers: 0,
            tags: HashMap::new(),
        };
        let mut documents = Documents::default();
        documents.add(root)?;
        self.children(job, &mut documents, 0).await?;
        if self.settings.referrers {
            self.referrers(job, &mut documents, &mut gathered).await?;
        }
        gathered.plan = documents.plan();
        Ok(gathered)
    }

    /// Adds all that the manifests from a position on refer to.
    async fn children(
        &self,
        job: &Job,
        documents: &mut Documents,
        from: usize,
    ) -> Result<(), CopyError> {
        let mut position = from;
        while let Some(document) = documents.at(position) {
            position += 1;
            let children = document.children().map(|child| child.digest);
            let missing: Vec<_> = children.filter(|child| !documents.has(child)).collect();
            let asked = stream::iter(missing).map(|digest| job.source.manifest(digest));
            let mut asked = asked.buffered(METADATA);
            while let Some(child) = asked.try_next().await? {
                documents.add(child)?;
            }
        }
        Ok(())
    }

    /// Adds what is attached to any of the manifests, and to that.
    async fn referrers(
        &self,
        job: &Job,
        documents: &mut Documents,
        gathered: &mut Gathered,
    ) -> Result<(), CopyError> {
        let mut position = 0;
        while let Some(document) = documents.at(position) {
            let (subject, from) = (document.digest, documents.len());
            position += 1;
            for digest in job.source.referrers(subject).await? {
                if documents.has(&digest) {
                    continue;
                }
                if let Some(referrer) = job.source.referrer(digest, subject).await? {
                    documents.add(referrer)?;
                    gathered.referrers += 1;
                }
            }
            for (tag, attached) in job.source.attached(subject).await? {
                gathered.tags.entry(attached.digest).or_default().push(tag);
                gathered.referrers += usize::from(!documents.has(&attached.digest));
                documents.add(attached)?;
            }
            self.children(job, documents, from).await?;
        }
        Ok(())
    }

    /// Brings a blob to the destination, once in a run; and its size.
    async fn blob(&self, job: &Job, blob: &Descriptor) -> Result<(BlobEnd, u64), CopyError> {
        let once = job.target.known().of(&blob.digest);
        let mut is_first = false;
        let end = once.get_or_try_init(async || {
            is_first = true;
            self.bring(job, blob).await
        });
        let end = *end.await?;
        // Another image of this run has brought it.
        let end = if is_first { end } else { BlobEnd::Exists };
        self.observer.on(&Event::Blob {
            digest: &blob.digest,
            size: blob.size,
            step: BlobStep::Ended(end),
        });
        Ok((end, blob.size))
    }

    async fn bring(&self, job: &Job, blob: &Descriptor) -> Result<BlobEnd, CopyError> {
        // The semaphore is never closed.
        let _turn = self.blobs.acquire().await.ok();
        let (to, from) = (job.target.host(), job.source.host());
        // One registry on both sides has one slot for the copy.
        let from = from.filter(|from| to.is_none_or(|to| !Arc::ptr_eq(to, from)));
        let _to = match to {
            Some(host) => Some(host.enter().await),
            None => None,
        };
        let _from = match from {
            Some(host) => Some(host.enter().await),
            None => None,
        };
        if job.target.has_blob(blob).await? {
            return Ok(BlobEnd::Exists);
        }
        if self.settings.dry_run {
            return Ok(BlobEnd::Copied);
        }
        match &job.target {
            Target::Registry(target) => {
                let upload = Upload {
                    target,
                    source: &job.source,
                    blob,
                    spool: &self.settings.spool,
                    journal: &self.journal,
                    observer: &*self.observer,
                };
                upload.run().await
            }
            Target::Layout(target) => {
                self.store(target, &job.source, blob).await?;
                Ok(BlobEnd::Copied)
            }
        }
    }

    /// Writes a blob into a layout, after what is there of it.
    async fn store(
        &self,
        target: &LayoutTarget,
        source: &Source,
        blob: &Descriptor,
    ) -> Result<(), CopyError> {
        let (digest, size) = (blob.digest, blob.size);
        let begun = blocking(&target.layout, move |layout| layout.partial(&digest, size));
        let partial = begun.await?;
        let from = partial.at;
        let mut sink = Storing {
            engine: self,
            target,
            blob,
            partial: Some(partial),
        };
        let fetch = Fetch::new(source, blob);
        fetch.read(from, size, &mut sink).await?;
        match sink.partial {
            Some(partial) => blocking(&target.layout, |_| partial.commit()).await,
            None => Ok(()),
        }
    }

    /// Writes the manifests that the destination lacks, bottom-up; returns how many.
    async fn manifests(
        &self,
        job: &Job,
        gathered: &Gathered,
        current: Option<Digest>,
    ) -> Result<usize, CopyError> {
        let Some((root, others)) = gathered.plan.manifests.split_last() else {
            return Ok(0);
        };
        // What refers to no manifest comes first, in any order.
        let (indexes, leaves): (Vec<_>, Vec<_>) = others
            .iter()
            .partition(|document| document.children().next().is_some());
        let leaves = stream::iter(leaves).map(|leaf| self.manifest(job, gathered, leaf));
        let mut leaves = leaves.buffer_unordered(METADATA);
        let mut written = 0;
        while let Some(leaf) = leaves.try_next().await? {
            written += leaf;
        }
        for index in indexes {
            written += self.manifest(job, gathered, index).await?;
        }
        let is_there = match &job.tag {
            Some(_) => current == Some(root.digest),
            None => job.target.has_manifest(root).await?,
        };
        if !is_there {
            written += 1;
            if !self.settings.dry_run {
                job.target
                    .put_manifest(root, job.tag.as_ref(), true)
                    .await?;
            }
        }
        Ok(written)
    }

    /// Writes a manifest that isn't the image, under its own tags if it has any.
    async fn manifest(
        &self,
        job: &Job,
        gathered: &Gathered,
        document: &Document,
    ) -> Result<usize, CopyError> {
        let mut written = 0;
        let put = async |tag| {
            if self.settings.dry_run {
                return Ok(());
            }
            job.target.put_manifest(document, tag, false).await
        };
        match gathered.tags.get(&document.digest) {
            Some(tags) => {
                for tag in tags {
                    let current = job.target.tagged(tag).await?;
                    let is_left = current.is_some() && !self.settings.clobber;
                    if !is_left && current != Some(document.digest) {
                        put(Some(tag)).await?;
                        written += 1;
                    }
                }
            }
            None if job.target.has_manifest(document).await? => {}
            None => {
                put(None).await?;
                written += 1;
            }
        }
        Ok(written)
    }
}

/// Writes a blob into a layout.
struct Storing<'a> {
    engine: &'a Engine,
    target: &'a LayoutTarget,
    blob: &'a Descriptor,
    /// None while it is written, and after that has failed.
    partial: Option<Partial>,
}

impl Sink for Storing<'_> {
    async fn take(&mut self, bytes: bytes::Bytes) -> Result<(), CopyError> {
        if let Some(mut partial) = self.partial.take() {
            let appended = blocking(&self.target.layout, move |_| {
                partial.append(&bytes)?;
                Ok(partial)
            });
            let partial = appended.await?;
            self.engine.observer.on(&Event::Blob {
                digest: &self.blob.digest,
                size: self.blob.size,
                step: BlobStep::Sent(partial.at),
            });
            self.partial = Some(partial);
        }
        Ok(())
    }
}
