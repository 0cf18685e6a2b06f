//! Uploads a blob to a registry: resumes where the registry stands, and in the way that it accepts.
//!
//! ```text
//! HEAD ─ there ──────────────────────────────────────────────► exists
//!   └ not there ─ POST (mount) ─ 201 ────────────────────────► mounted
//!        └ 202 ─ PATCH: all that is missing ─ PUT ───────────► copied
//!             │    └ 413, 416, 400, ...: in chunks ─ no PATCH at all: PUT with everything
//!             └ broken off ─ wait ─ GET: the registry's offset ─ PATCH from there on
//!                                     └ unknown ─ HEAD, POST: from the start
//! ```
//!
//! The URL of an upload is remembered (`journal`), so that the next run goes on with it. Small blobs are sent
//! with the PUT that ends the upload: one request less.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{Either, select};
use futures_util::stream;

use super::error::CopyError;
use super::events::{BlobEnd, BlobStep, Event, Observer};
use super::fetch::{Fetch, Sink};
use super::host::Patience;
use super::journal::{Journal, Record};
use super::source::Source;
use super::spool::{Filler, SpoolSettings, spool};
use super::target::RegistryTarget;
use super::upload_mode::UploadMode;
use crate::oci::{Descriptor, RepoName};
use crate::upstream::{Failure, StartedUpload, UploadBody, UploadSession, UpstreamError};

/// A blob of at most so many bytes is sent with the last request of its upload.
const SMALL: u64 = 256 * 1024;
/// Uploads of one blob that are begun.
const MAX_SESSIONS: u32 = 12;
/// Requests of one blob that are repeated with another token.
const MAX_RENEWED: u32 = 3;

/// One blob on its way to a registry.
pub(super) struct Upload<'a> {
    pub target: &'a RegistryTarget,
    pub source: &'a Source,
    pub blob: &'a Descriptor,
    pub spool: &'a SpoolSettings,
    pub journal: &'a Journal,
    pub observer: &'a dyn Observer,
}

/// An upload that has begun.
struct Session {
    session: UploadSession,
    /// Bytes that the registry has.
    at: u64,
}

/// Why bytes weren't taken.
enum Trouble {
    /// The registry's.
    Registry(UpstreamError),
    /// Another one, which ends the copy.
    Final(CopyError),
}

impl From<UpstreamError> for Trouble {
    fn from(error: UpstreamError) -> Self {
        Self::Registry(error)
    }
}

impl Upload<'_> {
    /// Brings the blob to the registry, which doesn't have it.
    pub(super) async fn run(&self) -> Result<BlobEnd, CopyError> {
        let RegistryTarget {
            upstream,
            repository,
            host,
            ..
        } = self.target;
        let registry = upstream.config.url.as_str();
        let mut record = self.journal.record(registry, repository, &self.blob.digest);
        let mut session = self.remembered(&mut record).await;
        let fetch = Fetch::new(self.source, self.blob);
        let mut patience = Patience::new(host);
        let (mut begun, mut renewed) = (0, 0);
        loop {
            let current = match session.take() {
                Some(session) => session,
                None if begun > 0 && self.is_there().await? => return Ok(BlobEnd::Exists),
                None => match self.start(&mut begun).await? {
                    Some(session) => session,
                    None => return Ok(BlobEnd::Mounted),
                },
            };
            let mut current = current;
            record.set(Some(current.session.location()));
            let (before, mode) = (current.at, *self.target.mode.lock());
            let error = match self.send(&mut current, &fetch, &mut record, mode).await {
                Ok(()) => {
                    record.end();
                    return Ok(BlobEnd::Copied);
                }
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Registry(error)) => error,
            };
            // A resumed upload that isn't what it was said to be.
            if before > 0 && matches!(error.status(), Some(400 | 416)) && begun < MAX_SESSIONS {
                continue;
            }
            if matches!(error.failure, Failure::Unauthorized(_)) && renewed < MAX_RENEWED {
                // The token has expired on the way: asking for the offset renews it.
                renewed += 1;
                session = self.resumed(current.session).await;
                continue;
            }
            if let Some(status) = refused_mode(&error) {
                let min_chunk = current.session.min_chunk();
                let next = mode
                    .next(status, min_chunk)
                    .filter(|_| begun < MAX_SESSIONS);
                let next = next.ok_or(CopyError::Destination(error))?;
                self.change_mode(mode, next);
                continue;
            }
            let is_lost = error.status() == Some(404);
            if !is_lost {
                let waited = patience.wait(error, current.at > before).await;
                waited.map_err(CopyError::Destination)?;
                session = self.resumed(current.session).await;
            } else if begun >= MAX_SESSIONS {
                return Err(CopyError::Destination(error));
            }
        }
    }

    /// The upload of an earlier run, if the registry still knows it.
    async fn remembered(&self, record: &mut Record) -> Option<Session> {
        let session = self.target.upstream.known_session(&record.location()?)?;
        self.resumed(session).await
    }

    /// An upload where the registry stands; None if it doesn't know it any more, or doesn't say.
    async fn resumed(&self, session: UploadSession) -> Option<Session> {
        let RegistryTarget {
            upstream,
            repository,
            host,
            ..
        } = self.target;
        let mut session = session;
        let ask = async || upstream.upload_offset(repository, &mut session).await;
        let at = host.ask_within(ask).await.ok()?;
        (at <= self.blob.size).then_some(Session { session, at })
    }

    async fn is_there(&self) -> Result<bool, CopyError> {
        let RegistryTarget {
            upstream,
            repository,
            host,
            ..
        } = self.target;
        let ask = async || upstream.head_blob(repository, &self.blob.digest).await;
        match host.ask_within(ask).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(404) => Ok(false),
            Err(error) => Err(CopyError::Destination(error)),
        }
    }

    /// Begins an upload; None if the registry has mounted the blob.
    async fn start(&self, begun: &mut u32) -> Result<Option<Session>, CopyError> {
        let RegistryTarget {
            upstream,
            repository,
            host,
            ..
        } = self.target;
        // Once: a registry that couldn't mount it never can.
        let from = self.mount_from().filter(|_| *begun == 0);
        *begun += 1;
        let mount = from.map(|from| (&self.blob.digest, from));
        let ask = async || upstream.start_upload(repository, mount).await;
        match host.ask_within(ask).await.map_err(CopyError::Destination)? {
            StartedUpload::Mounted => Ok(None),
            StartedUpload::Session(session) => Ok(Some(Session { session, at: 0 })),
        }
    }

    /// The source, if it is another repository of the same registry.
    fn mount_from(&self) -> Option<&RepoName> {
        match self.source {
            Source::Registry(source) => {
                let is_same = source.upstream.config.url == self.target.upstream.config.url;
                let is_other = source.repository != self.target.repository;
                (is_same && is_other).then_some(&source.repository)
            }
            Source::Files(_) => None,
        }
    }

    fn change_mode(&self, from: UploadMode, to: UploadMode) {
        let mut mode = self.target.mode.lock();
        // Another upload may have changed it already.
        if *mode == from {
            *mode = to;
        }
    }

    /// Sends what is missing, and ends the upload.
    async fn send(
        &self,
        current: &mut Session,
        fetch: &Fetch<'_>,
        record: &mut Record,
        mode: UploadMode,
    ) -> Result<(), Trouble> {
        let RegistryTarget {
            upstream,
            repository,
            ..
        } = self.target;
        let (digest, size) = (&self.blob.digest, self.blob.size);
        let is_whole = mode == UploadMode::Whole || size <= SMALL;
        if is_whole && current.at == 0 && size > 0 {
            let session = &current.session;
            let put = async |body| {
                upstream
                    .finish_upload(repository, session, digest, Some(body))
                    .await
            };
            let sent = AtomicU64::new(0);
            return Box::pin(self.transfer(fetch, 0, size, &sent, put)).await;
        }
        let chunk = match mode {
            UploadMode::Chunked(chunk) => chunk,
            UploadMode::Streamed | UploadMode::Whole => u64::MAX,
        };
        while current.at < size {
            let (from, to) = (current.at, current.at.saturating_add(chunk).min(size));
            // A plain stream is what Docker sends, and every registry knows.
            let is_plain = from == 0 && to == size;
            let range = (!is_plain).then_some(from..to);
            let (session, sent) = (&mut current.session, AtomicU64::new(from));
            let patch = async |body| upstream.append(repository, session, range, body).await;
            let taken = Box::pin(self.transfer(fetch, from, to, &sent, patch)).await;
            if taken.is_err() {
                // More may be there; that is asked for. It counts as progress.
                current.at = sent.into_inner();
            }
            let has = taken?;
            record.set(Some(current.session.location()));
            current.at = has.filter(|has| (from..=to).contains(has)).unwrap_or(to);
            if current.at == from {
                return Err(Trouble::Final(self.no_progress()));
            }
        }
        Ok(upstream
            .finish_upload(repository, &current.session, digest, None)
            .await?)
    }

    fn no_progress(&self) -> CopyError {
        let url = &self.target.upstream.config.url;
        let failure = Failure::Broken {
            received: 0,
            source: None,
        };
        CopyError::Destination(UpstreamError::new(url, failure))
    }

    /// Reads a part of the blob and sends it at the same time.
    async fn transfer<T>(
        &self,
        fetch: &Fetch<'_>,
        from: u64,
        to: u64,
        sent: &AtomicU64,
        request: impl AsyncFnOnce(UploadBody) -> Result<T, UpstreamError>,
    ) -> Result<T, Trouble> {
        let (filler, drain) = spool(self.spool, self.blob.size);
        let (steps, mut sizes) = tokio::sync::watch::channel(from);
        let body = stream::unfold(
            (drain, from, steps),
            |(mut drain, mut at, steps)| async move {
                let bytes = drain.next().await?;
                if let Ok(bytes) = &bytes {
                    at += bytes.len() as u64;
                    steps.send_replace(at);
                }
                Some((bytes, (drain, at, steps)))
            },
        );
        let reading = async {
            let mut sink = filler;
            let read = fetch.read(from, to, &mut sink).await;
            if read.is_ok() {
                sink.end();
            }
            read
        };
        let telling = async {
            while sizes.changed().await.is_ok() {
                let at = *sizes.borrow_and_update();
                sent.store(at, Ordering::Relaxed);
                self.tell(at);
            }
            std::future::pending::<()>().await;
        };
        let sending = request(UploadBody::new(to - from, body.boxed()));
        let both = async {
            match select(std::pin::pin!(reading), std::pin::pin!(sending)).await {
                Either::Left((Ok(()), sending)) => Ok(sending.await?),
                // What was read is sent before the request is broken off.
                Either::Left((Err(error), sending)) => {
                    drop(sending.await);
                    Err(Trouble::Final(error))
                }
                Either::Right((sent, _)) => Ok(sent?),
            }
        };
        match select(std::pin::pin!(both), std::pin::pin!(telling)).await {
            Either::Left((done, _)) => done,
            Either::Right(((), both)) => both.await,
        }
    }

    fn tell(&self, at: u64) {
        self.observer.on(&Event::Blob {
            digest: &self.blob.digest,
            size: self.blob.size,
            step: BlobStep::Sent(at),
        });
    }
}

impl Sink for Filler {
    async fn take(&mut self, bytes: Bytes) -> Result<(), CopyError> {
        // The request that took the bytes has ended: its own error tells why.
        if self.push(bytes).await.is_err() {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// The status, where it says that the registry doesn't take bytes in this way.
fn refused_mode(error: &UpstreamError) -> Option<u16> {
    match error.failure {
        Failure::Rejected { status, .. } => Some(status),
        Failure::Unavailable { status: 501, .. } => Some(501),
        _ => None,
    }
}
