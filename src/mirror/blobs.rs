//! Blobs: from the store, from a running download, or from a new one.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryFutureExt as _, TryStreamExt as _};

use super::bucket_blob::BucketBlob;
use super::single_flight::Interest;
use super::verdicts::Question;
use super::{Exchange, Mirror, MirrorError, ReadMode, Target, Visit};
use crate::bucket::{Bucket, Upload};
use crate::cache::{self, CachedBlob, LinkKind, VERIFIED_FIRST};
use crate::config::RangeMode;
use crate::download::{BlobRequest, Client, DownloadError, Follower, Joined, Opened, Source};
use crate::error_chain::on_one_line;
use crate::metrics::Outcome;
use crate::oci::range::Resolved;
use crate::oci::{ByteRange, Digest, RangeSet, RepoName, Requested};
use crate::upstream::{BlobRanges, BlobRoute, BlobStream, OwnerKey, UpstreamError};

/// How often a blob is looked for, in the store and among the downloads, while both change under the
/// search.
pub(super) const ATTEMPTS: usize = 5;
/// Attempts after which a file in the store no longer keeps the blob from being fetched: it was there
/// for the downloads, and not for this request.
pub(super) const ATTEMPTS_AT_STORE: usize = 2;

#[derive(Debug)]
pub struct BlobAnswer {
    /// Bytes; none where the upstream doesn't tell.
    pub size: Option<u64>,
    /// None when only the head was asked for and the store doesn't have the blob.
    pub body: Option<BlobContent>,
    pub outcome: Outcome,
    /// To be kept while the body is being sent.
    pub visit: Option<Visit>,
    pub exchange: Exchange,
}

#[derive(Debug)]
pub enum BlobContent {
    Stored(CachedBlob),
    Fetching(Follower),
}

impl BlobContent {
    /// Whether the blob is known to have its digest.
    pub fn is_verified(&self) -> bool {
        match self {
            Self::Stored(blob) => blob.is_verified(),
            Self::Fetching(follower) => follower.is_verified(),
        }
    }
}

impl BlobAnswer {
    pub(super) fn new(size: Option<u64>, body: Option<BlobContent>, outcome: Outcome) -> Self {
        Self {
            size,
            body,
            outcome,
            exchange: Exchange::of(outcome),
            visit: None,
        }
    }

    pub(super) fn cached(blob: CachedBlob, outcome: Outcome) -> Self {
        Self::new(Some(blob.size()), Some(BlobContent::Stored(blob)), outcome)
    }

    /// Follows a download; none when it has ended without a result.
    pub(super) async fn following(
        mut follower: Follower,
        ranges: Option<&Requested>,
        outcome: Outcome,
    ) -> Result<Option<Self>, MirrorError> {
        let _span = follower.span_of_wait();
        let Opened::Size(mut size) = follower.opened().await? else {
            return Ok(None);
        };
        let resolved = size.zip(ranges).map(|(size, ranges)| ranges.resolve(size));
        if let Some(Resolved::Many(ranges)) = resolved {
            let mut all = RangeSet::new();
            for range in ranges {
                all.insert(range.start, range.end);
            }
            follower.announce(all);
        }
        // Before its first byte, so that an error can still be sent as one.
        if size.is_some_and(|size| size <= VERIFIED_FIRST) {
            follower.verified().await?;
            // A source that was wrong may have told another size.
            let Opened::Size(verified) = follower.opened().await? else {
                return Ok(None);
            };
            size = verified;
        }
        let stored = outcome == Outcome::Miss && follower.is_stored();
        let peer = follower.peer();
        let mut answer = Self::new(size, Some(BlobContent::Fetching(follower)), outcome);
        // The status at the end of a redirect isn't known here.
        answer.exchange = Exchange {
            stored,
            peer,
            ..Exchange::unanswered()
        };
        Ok(Some(answer))
    }
}

/// What is known while a blob is looked for.
#[derive(Debug, Default)]
struct Search {
    /// The upstream has confirmed that the repository has the blob.
    proved: bool,
    /// The store has the blob, but only from upstreams with which this one shares nothing.
    foreign: bool,
}

impl Mirror {
    /// Finds a blob. Errors are the upstream's, when it was needed.
    ///
    /// `ranges`: the requested ranges; none for the whole blob.
    pub async fn blob(
        self: &Arc<Self>,
        target: &Target,
        digest: Digest,
        want: ReadMode,
        ranges: Option<&Requested>,
        client: Client,
    ) -> Result<BlobAnswer, MirrorError> {
        self.permit(target, || Question::Blob(digest)).await?;
        let found = match (self.cache.open_warm(&target.stored, &digest), want) {
            (Some(blob), _) => Ok(BlobAnswer::cached(blob, Outcome::Hit)),
            (None, want) => {
                self.negatives.check(target, || Question::Blob(digest))?;
                // Put aside: see `manifest`.
                match want {
                    ReadMode::Head => Box::pin(self.find_blob_head(target, digest)).await,
                    ReadMode::Content => {
                        Box::pin(self.find_blob(target, digest, ranges, client)).await
                    }
                }
            }
        };
        let mut found = found
            .inspect_err(|error| self.note_refusal(target, || Question::Blob(digest), error))?;
        // A replica fetches ahead for its own clients.
        if want == ReadMode::Content && !target.from_peer {
            found.visit = self.blob_given(target, &digest, found.outcome);
        }
        Ok(found)
    }

    /// What a blob is, without its content. Never starts a download, and adds nothing to what a
    /// running one fetches.
    async fn find_blob_head(
        &self,
        target: &Target,
        digest: Digest,
    ) -> Result<BlobAnswer, MirrorError> {
        if let Some(size) =
            self.downloader
                .announced_size(target.upstream.name(), &digest, &target.party())
        {
            return Ok(BlobAnswer::new(Some(size), None, Outcome::Joined));
        }
        if let Some(answer) = self
            .cached_blob(target, digest, ReadMode::Head, &mut Search::default())
            .await?
        {
            return Ok(answer);
        }
        let size = self.prove(target, digest).await?;
        Ok(BlobAnswer::new(size, None, Outcome::Miss))
    }

    pub(super) async fn find_blob(
        &self,
        target: &Target,
        digest: Digest,
        ranges: Option<&Requested>,
        client: Client,
    ) -> Result<BlobAnswer, MirrorError> {
        let mut wanted = self.wanted(target, ranges, client);
        let mut search = Search::default();
        for attempt in 0..ATTEMPTS {
            wanted.refetch = attempt >= ATTEMPTS_AT_STORE;
            let found = self.look_for(target, digest, ranges, wanted, &mut search);
            match found.await {
                Ok(Some(answer)) => return Ok(answer),
                // A lost download that was joined says nothing about the blob.
                Ok(None) | Err(MirrorError::Fetch(DownloadError::Lost)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(MirrorError::Lost)
    }

    /// Finds a blob in a running download, in the cache, or in a new download. None when a download
    /// has ended meanwhile, without a result for this client: both are to be looked at again.
    async fn look_for(
        &self,
        target: &Target,
        digest: Digest,
        ranges: Option<&Requested>,
        mut wanted: BlobRequest,
        search: &mut Search,
    ) -> Result<Option<BlobAnswer>, MirrorError> {
        let (upstream, party) = (target.upstream.name(), &target.party());
        // Before the cache is asked: a client that joins waits for no disk.
        if let Some(follower) = self.downloader.follow(upstream, &digest, party, wanted) {
            return BlobAnswer::following(follower, ranges, Outcome::Joined).await;
        }
        let cached = self.cached_blob(target, digest, ReadMode::Content, search);
        if let Some(answer) = cached.await? {
            return Ok(Some(answer));
        }
        if target.upstream.is_offline() {
            return Err(target.upstream.offline_error().into());
        }
        // What the store has from another upstream doesn't replace a download from this one.
        wanted.refetch |= search.foreign;
        let source = UpstreamBlob::new(target, digest, self.sizes.get(&digest));
        let is_believed = self.bucket.is_some() && self.may_share(target, &digest).await;
        let source = source.with_bucket(self.bucket.as_ref(), is_believed);
        // Asked only where another repository's download runs.
        let proof = self.prove_or_vouch(target, digest, &mut search.proved);
        let proof = proof.map_ok(|_outcome| ());
        let joined = self
            .downloader
            .join(digest, party, Arc::new(source), wanted, proof);
        let (follower, outcome) = match joined.await? {
            Joined::Leader(follower) => (follower, Outcome::Miss),
            Joined::Follower(follower) => (follower, Outcome::Joined),
            Joined::Committed => return Ok(None),
            Joined::Circular => return Err(MirrorError::Misdirected),
        };
        BlobAnswer::following(follower, ranges, outcome).await
    }

    /// The part of a missing blob that is to be fetched.
    fn wanted(&self, target: &Target, ranges: Option<&Requested>, client: Client) -> BlobRequest {
        let Some(ranges) = ranges else {
            return BlobRequest {
                client,
                from_peer: target.from_peer,
                ..BlobRequest::WHOLE
            };
        };
        // What lies where the length says can be asked for once that is known.
        let (start, end) = ranges.one().unwrap_or((0, Some(1)));
        let whole = ranges.one().is_some_and(|one| one == (0, None));
        BlobRequest {
            start,
            end,
            client,
            from_peer: target.from_peer,
            refetch: false,
            fill: whole || self.ranges.mode(&target.stored) == RangeMode::Fill,
        }
    }

    /// A blob that is cached for this repository, or for another one when it is proved that this one
    /// has it, too.
    async fn cached_blob(
        &self,
        target: &Target,
        digest: Digest,
        want: ReadMode,
        search: &mut Search,
    ) -> Result<Option<BlobAnswer>, MirrorError> {
        let repo = &target.stored;
        match self.cache.open(repo, &digest, want).await {
            cache::Opened::Linked(blob) => Ok(Some(BlobAnswer::cached(blob, Outcome::Hit))),
            // Another upstream's, which this one may falsely claim to have.
            cache::Opened::Unlinked(_) if !self.may_share(target, &digest).await => {
                search.foreign = true;
                Ok(None)
            }
            cache::Opened::Unlinked(blob) => {
                let proof = self.prove_or_vouch(target, digest, &mut search.proved);
                let (outcome, exchange) = proof.await?;
                if self.cache.link(repo, &digest, &blob).await {
                    self.share_link(target, &digest);
                }
                let answer = BlobAnswer::cached(blob, outcome);
                Ok(Some(BlobAnswer { exchange, ..answer }))
            }
            cache::Opened::Missing => Ok(None),
        }
    }

    /// The upstream has said that a repository has a blob that is stored: sees to it that its link is in the
    /// bucket, unless the replica does that which was asked.
    fn share_link(&self, target: &Target, digest: &Digest) {
        let asked = target.routed(OwnerKey::Content(digest));
        if let Some(bucket) = self
            .bucket
            .as_ref()
            .filter(|_| !asked.upstream.asks_peers())
        {
            let upload = Upload::new(&target.stored, LinkKind::Layer, digest, None);
            bucket.upload(upload, false);
        }
    }

    /// Proves that a repository has a blob, unless that is `proved` already: by the upstream's answer,
    /// or, while that can't answer, by a manifest of the repository that refers to the blob. The
    /// upstream gave that manifest, and most registries take none whose blobs the repository lacks.
    /// Some do, and foreign layers may always be missing: so a manifest proves nothing where the
    /// upstream decides for each caller who may read a blob.
    async fn prove_or_vouch(
        &self,
        target: &Target,
        digest: Digest,
        proved: &mut bool,
    ) -> Result<(Outcome, Exchange), MirrorError> {
        let mut outcome = (Outcome::Revalidated, Exchange::of(Outcome::Revalidated));
        if !*proved && let Err(error) = self.prove(target, digest).await {
            let may_vouch = target.upstream.caller().is_none() && error.permits_stale();
            if !may_vouch || !self.cache.is_referenced(&target.stored, &digest).await {
                return Err(error);
            }
            target.report(&error, "served a blob that a cached manifest refers to");
            outcome = (error.outcome_of_known(), Exchange::failed(&error));
        }
        *proved = true;
        Ok(outcome)
    }

    /// Asks the upstream whether the repository has the blob, once for all clients that wait.
    async fn prove(&self, target: &Target, digest: Digest) -> Result<Option<u64>, MirrorError> {
        let (party, target) = (target.party(), target.routed(OwnerKey::Content(&digest)));
        if target.from_peer && self.proofs.is_running(&(party.clone(), digest, true)) {
            return Err(MirrorError::Misdirected);
        }
        let key = (party, digest, target.upstream.asks_peers());
        let ask = |interest: Interest| async move {
            let asking = target.upstream.head_blob(&target.repo, &digest);
            Box::pin(interest.answer(asking)).await
        };
        self.proofs.join(key, ask).await?
    }
}

/// What is done where a download's request fails.
const DOWNLOAD_FAILED: &str = "the download asks again or another source, or ends with an error";

/// The upstream as the source of a download.
#[derive(Debug)]
pub(super) struct UpstreamBlob {
    target: Target,
    digest: Digest,
    /// Bytes by the descriptor of a manifest, where one was seen.
    described_size: Option<u64>,
    /// What the download has learned about the upstream's endpoints, and whether it asks other replicas.
    route: Arc<BlobRoute>,
    /// Asked after other replicas.
    bucket: Option<BucketBlob>,
}

impl UpstreamBlob {
    pub(super) fn new(target: &Target, digest: Digest, described_size: Option<u64>) -> Self {
        Self {
            target: target.routed(OwnerKey::Content(&digest)),
            digest,
            described_size,
            route: Arc::default(),
            bucket: None,
        }
    }

    /// The same, which asks a bucket before the upstream. `is_believed`: whether the upstream's word suffices
    /// for what the repository doesn't link there; see [`Mirror::may_share`].
    #[must_use]
    pub(super) fn with_bucket(self, bucket: Option<&Arc<Bucket>>, is_believed: bool) -> Self {
        Self {
            bucket: bucket.map(|bucket| BucketBlob::new(bucket, self.described_size, is_believed)),
            ..self
        }
    }

    /// The bytes from other replicas, or from the bucket. None: the upstream is to be asked.
    async fn open_near(
        &self,
        span: (u64, Option<u64>),
    ) -> Result<Option<BlobStream>, UpstreamError> {
        let Some(bucket) = &self.bucket else {
            return Ok(None);
        };
        let Target { upstream, repo, .. } = &self.target;
        let peers = upstream.peer_blob(repo, &self.digest, span, &self.route);
        if let Some(stream) = peers.await? {
            return Ok(Some(stream));
        }
        let stream = bucket.open(&self.target, &self.digest, span).await?;
        if stream.is_none() {
            bucket.on_upstream();
        }
        Ok(stream)
    }

    /// Logs that the download's request failed. One that begins behind the end of the blob doesn't: the
    /// download learns the end from it.
    fn report(&self) -> impl Fn(&UpstreamError) + Send + use<> {
        let (upstream, route) = (Arc::clone(&self.target.upstream), Arc::clone(&self.route));
        move |error| {
            // Of a replica, its client has logged it.
            let is_upstreams = error.peer().is_none() && route.peer().is_none();
            if !error.is_out_of_range() && is_upstreams {
                upstream.report(error, DOWNLOAD_FAILED);
            }
        }
    }
}

#[async_trait::async_trait]
impl Source for UpstreamBlob {
    async fn open(&self, offset: u64, end: Option<u64>) -> Result<BlobStream, UpstreamError> {
        if let Some(stream) = self.open_near((offset, end)).await? {
            return Ok(stream);
        }
        let Target { upstream, repo, .. } = &self.target;
        let asking = upstream.get_blob(repo, &self.digest, offset, end, &self.route);
        let mut stream = asking.await.inspect_err(self.report())?;
        stream.body = stream.body.inspect_err(self.report()).boxed();
        Ok(stream)
    }

    async fn open_ranges(
        &self,
        ranges: &[ByteRange],
        total: u64,
    ) -> Result<Option<BlobRanges>, UpstreamError> {
        let (upstream, repo, digest) = (&self.target.upstream, &self.target.repo, &self.digest);
        let asking = upstream.get_blob_ranges(repo, digest, ranges, total, &self.route);
        let opened = asking.await.inspect_err(self.report())?;
        Ok(opened.map(|pieces| pieces.inspect_err(self.report()).boxed()))
    }

    fn supports_multi_range(&self) -> bool {
        let is_near = self.bucket.as_ref().is_some_and(BucketBlob::is_asked);
        !is_near && !self.reads_from_peer() && self.target.upstream.supports_multi_range()
    }

    fn reads_from_peer(&self) -> bool {
        self.target.upstream.asks_peers() && !self.route.is_direct()
    }

    fn avoid_peers(&self) {
        self.route.go_direct();
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.route.peer()
    }

    fn set_urgent(&self, urgent: bool) {
        self.route.set_urgent(urgent);
    }

    fn distrust(&self, error: &DownloadError) -> bool {
        let Target { upstream, repo, .. } = &self.target;
        let bucket = self.bucket.as_ref().filter(|_| self.route.peer().is_none());
        if bucket.is_some_and(|bucket| bucket.distrust(&self.digest, error)) {
            return true;
        }
        match self.route.peer() {
            Some(replica) => {
                tracing::warn!(%replica, %repo, error = %on_one_line(error), "another replica sent wrong bytes; asking the upstream");
            }
            None => upstream.report_wrong(repo, error, DOWNLOAD_FAILED),
        }
        upstream.distrust(&self.route)
    }

    fn on_stored(&self, repositories: &[RepoName]) {
        if let Some(bucket) = &self.bucket {
            bucket.on_stored(&self.target, &self.digest, repositories);
        }
    }

    fn upstream(&self) -> &str {
        self.target.upstream.name()
    }

    fn described_size(&self) -> Option<u64> {
        self.described_size
    }
}
