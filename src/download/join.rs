//! Joining a download: by clients, and by prefetch ahead of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use super::permits::Urgency;
use super::progress::Progress;
use super::registry::{Role, Seat};
use super::{
    BlobRequest, Download, DownloadError, Downloader, Follower, Inner, Joined, Party, Source, task,
};
use crate::oci::Digest;
use crate::telemetry;

impl Downloader {
    /// Whether `digest` is being downloaded from an upstream.
    pub fn is_running(&self, upstream: &str, digest: &Digest) -> bool {
        self.0.registry.is_running(upstream, digest)
    }

    /// Follows the download of `digest` from `upstream` if it runs and needs no proof that the
    /// repository has the blob. Not for another replica where the download reads from one.
    pub fn follow(
        &self,
        upstream: &str,
        digest: &Digest,
        party: &Party,
        wanted: BlobRequest,
    ) -> Option<Follower> {
        let seat = self.0.registry.follow(upstream, digest, party)?;
        let follower = self.0.follower(seat, wanted.start)?;
        if follower.is_circular(wanted) {
            return None;
        }
        self.0.welcome(&follower, wanted);
        Some(follower)
    }

    /// The size of a blob that is being downloaded for `party`, if the upstream has announced it.
    /// Doesn't join the download.
    pub fn announced_size(&self, upstream: &str, digest: &Digest, party: &Party) -> Option<u64> {
        let (download, member) = self.0.registry.peek(upstream, digest, party)?;
        download.progress.announced_size(member)
    }

    /// Joins the download of `digest` from the upstream of `source`, or starts it from `source`.
    ///
    /// A repository that joins is proved before its first byte: by `proof`, unless the download asks
    /// its source. The errors are those of `proof`. The blob is linked into every proved repository
    /// when it is committed. Cancel safe.
    pub async fn join<E>(
        &self,
        digest: Digest,
        party: &Party,
        source: Arc<dyn Source>,
        wanted: BlobRequest,
        proof: impl Future<Output = Result<(), E>>,
    ) -> Result<Joined, E> {
        let (joined, needs_proof) = self.enter(digest, party, &source, wanted);
        let Joined::Follower(follower) = &joined else {
            return Ok(joined);
        };
        if follower.is_circular(wanted) {
            return Ok(Joined::Circular);
        }
        let (progress, member) = (&follower.download.progress, follower.member);
        if needs_proof {
            let proved = proof.await;
            // Its own source may have answered meanwhile.
            if !progress.is_proved(member) {
                proved?;
                if self.0.registry.prove(&digest, follower.download.id, member) {
                    progress.prove(member);
                } else if matches!(progress.ended(member), Some(Err(_))) {
                    // The follower gets the error.
                    return Ok(joined);
                } else {
                    return Ok(Joined::Committed);
                }
            }
        }
        self.0.welcome(follower, wanted);
        Ok(joined)
    }

    /// Joins as [`join`](Self::join) does. Also returns whether a follower's repository has to be
    /// proved before its first byte.
    fn enter(
        &self,
        digest: Digest,
        party: &Party,
        source: &Arc<dyn Source>,
        wanted: BlobRequest,
    ) -> (Joined, bool) {
        let shared = &self.0;
        // A second round replaces a download that can't serve this client: one in pass-through whose
        // first bytes are gone, or one that is committed and whose file is gone.
        for _ in 0..2 {
            let upstream = source.upstream();
            let make = |id| shared.download(digest, source, id, true);
            let own = Arc::clone(source);
            let role = shared.registry.join(upstream, digest, party, own, make);
            match role {
                Role::Committed { id } if wanted.refetch => shared.registry.forget(&digest, id),
                Role::Committed { .. } => break,
                Role::Lead(seat) => {
                    let download = Arc::clone(&seat.download);
                    let follower = shared.follower(seat, wanted.start);
                    if let Some(follower) = &follower {
                        shared.welcome(follower, wanted);
                    }
                    shared.start(&download, Arc::clone(source), wanted);
                    return (follower.map_or(Joined::Committed, Joined::Leader), false);
                }
                Role::Follow(seat) => {
                    let (needs_proof, id) = (seat.needs_proof, seat.download.id);
                    if let Some(follower) = shared.follower(seat, wanted.start) {
                        return (Joined::Follower(follower), needs_proof);
                    }
                    shared.registry.forget(&digest, id);
                }
            }
        }
        // It is committed, or another client has replaced it and that download is gone, too.
        (Joined::Committed, false)
    }

    /// Downloads a blob that no client has requested yet. Returns its size when it is complete, none
    /// when a download was running already or has committed the blob, or the error. When this is
    /// cancelled, the download continues for its clients only.
    pub async fn fetch_ahead(
        &self,
        digest: Digest,
        party: &Party,
        source: Arc<dyn Source>,
    ) -> Result<Option<u64>, DownloadError> {
        let upstream = source.upstream();
        let make = |id| self.0.download(digest, &source, id, false);
        let own = Arc::clone(&source);
        let registry = &self.0.registry;
        let Some(seat) = registry.stand(upstream, digest, party, own, make) else {
            return Ok(None);
        };
        let Seat {
            download, member, ..
        } = seat;
        let _standing = Standing {
            shared: &self.0,
            download: &download,
        };
        self.0.start(&download, source, BlobRequest::WHOLE);
        match download.progress.result(member).await {
            // Otherwise it can't be stored, and no client reads it.
            Err(_) if self.0.options.cache.is_usable(&digest).await => Ok(None),
            ended => ended.map(Some),
        }
    }
}

/// Keeps a download without clients running until dropped.
struct Standing<'a> {
    shared: &'a Inner,
    download: &'a Download,
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let Self { shared, download } = self;
        shared.registry.stand_no_more(&download.digest, download.id);
        download.progress.look();
    }
}

impl Inner {
    fn download(
        &self,
        digest: Digest,
        source: &Arc<dyn Source>,
        id: u64,
        urgent: bool,
    ) -> Arc<Download> {
        Arc::new(Download {
            id,
            digest,
            upstream: source.upstream().into(),
            source: RwLock::new(Arc::clone(source)),
            progress: Progress::new(self.settings().verified_first),
            urgency: Urgency::new(urgent),
            fill: AtomicBool::new(false),
            refetch: AtomicBool::new(false),
            span: OnceLock::new(),
            _counted: self.options.metrics.download(),
        })
    }

    fn start(
        self: &Arc<Self>,
        download: &Arc<Download>,
        source: Arc<dyn Source>,
        wanted: BlobRequest,
    ) {
        let running = task::run(Arc::clone(self), Arc::clone(download), source, wanted);
        let (running, span) = telemetry::caused("download a blob", running);
        if let Some(span) = span {
            download.span.get_or_init(|| span);
        }
        self.options.tasks.spawn(running);
    }

    /// Makes the follower of a client that the registry has counted. None when its first bytes are
    /// gone already.
    fn follower(self: &Arc<Self>, seat: Seat<Arc<Download>>, start: u64) -> Option<Follower> {
        let Seat {
            download, member, ..
        } = seat;
        let Some(id) = download.progress.enter(start, member) else {
            self.leave(&download, member);
            return None;
        };
        Some(Follower::new(Arc::clone(self), download, id, member))
    }

    /// Applies the request of a follower to the download.
    fn welcome(&self, follower: &Follower, wanted: BlobRequest) {
        let download = &follower.download;
        download.fill.fetch_or(wanted.fill, Ordering::Relaxed);
        download.refetch.fetch_or(wanted.refetch, Ordering::Relaxed);
        download.progress.look();
        if !download.urgency.get() {
            download.urgency.set(true);
            self.permits.dispatch();
        }
    }

    /// Removes a client.
    pub(super) fn leave(&self, download: &Download, member: u64) {
        if self.registry.leave(&download.digest, download.id, member) {
            download.progress.forget_member(member);
        }
        let has_clients = || self.registry.has_clients(&download.digest, download.id);
        if !has_clients() {
            download.urgency.set(false);
            // A client may have joined while it was still set.
            if has_clients() {
                download.urgency.set(true);
            }
        }
    }
}
