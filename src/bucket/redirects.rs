//! Redirects of clients to the bucket: which requests, to what, and how long that is relied on.
//!
//! ```text
//! uploads, reading ── held ──► holdings ◄── HEAD, GET link ── find_redirect
//!                                 │                               │ addresses: signed
//! mirror ◄── known_redirect ──────┴───────────────────────────────┘
//! ```
//!
//! The caller's permission has been checked before. What must never happen: a client is redirected to content
//! that its repository doesn't link.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::timeout;

use super::Bucket;
use super::addresses::Addresses;
use super::error::BucketError;
use super::holdings::{Holding, Holdings};
use super::queue::Upload;
use crate::cache::LinkKind;
use crate::config::{RedirectMode, SharedStorage};
use crate::error_chain::on_one_line;
use crate::metrics::{BucketMetrics, InFlight};
use crate::oci::{Digest, RepoName};

/// Smaller blobs, in bytes, are served: sending one costs less than a second request of the client.
pub const MIN_REDIRECTED: u64 = 64 * 1024;

/// How clients are redirected to the bucket.
#[derive(Debug)]
pub struct Redirects {
    /// The number of bodies in transfer above which clients are redirected. None: they always are.
    above: Option<usize>,
    permits_private: bool,
    /// How long the bucket may take to say what it has.
    timeout: Duration,
    holdings: Holdings,
    addresses: Addresses,
    metrics: Arc<BucketMetrics>,
}

/// Where a client gets a blob.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// An address that was signed for anybody.
    pub location: HeaderValue,
    /// Bytes of the blob.
    pub size: u64,
}

/// What is known of a redirect without asking.
#[derive(Debug, Clone)]
pub enum KnownRedirect {
    To(Redirect),
    /// The blob is to be served.
    Nowhere,
    /// [`Bucket::find_redirect`] finds out.
    Unknown,
}

impl Redirects {
    /// None where clients are never redirected.
    pub(super) fn new(config: &SharedStorage, metrics: &Arc<BucketMetrics>) -> Option<Self> {
        let above = match config.redirect {
            RedirectMode::Never => return None,
            RedirectMode::Busy => Some(config.redirect_above),
            RedirectMode::Always => None,
        };
        Some(Self {
            above,
            permits_private: config.redirect_private,
            timeout: config.timeout,
            holdings: Holdings::default(),
            addresses: Addresses::new(config.timeout),
            metrics: Arc::clone(metrics),
        })
    }

    /// Whether clients are also redirected to content that not every caller may pull.
    pub const fn permits_private(&self) -> bool {
        self.permits_private
    }

    /// Whether a client is redirected for all that the bucket has, however many bodies are being sent.
    /// `is_private`: not every caller may pull what it pulls.
    pub const fn are_certain(&self, is_private: bool) -> bool {
        self.above.is_none() && (!is_private || self.permits_private)
    }

    /// Counts a body that is to be sent, until it has been. None: the client is to be redirected, if that is
    /// possible.
    pub fn admit(&self) -> Option<InFlight> {
        self.metrics.blob_body_unless_above(self.above?)
    }

    /// Counts a body that is sent however many there are. None where they don't matter.
    pub fn count(&self) -> Option<InFlight> {
        self.above.map(|_| self.metrics.blob_body())
    }
}

impl Bucket {
    /// None where clients are never redirected.
    pub const fn redirects(&self) -> Option<&Redirects> {
        self.redirects.as_ref()
    }

    /// Where clients of a repository get a blob, without asking the bucket.
    pub fn known_redirect(&self, repo: &RepoName, digest: &Digest) -> KnownRedirect {
        let Some(redirects) = &self.redirects else {
            return KnownRedirect::Nowhere;
        };
        // What fails for this replica most likely fails for clients, too.
        if self.circuit.permit().is_err() {
            return KnownRedirect::Nowhere;
        }
        match redirects.holdings.get(repo, digest) {
            Holding::Held(size) if size >= MIN_REDIRECTED => {
                match redirects.addresses.known(digest) {
                    Some(location) => KnownRedirect::To(Redirect { location, size }),
                    None => KnownRedirect::Unknown,
                }
            }
            Holding::Held(_) | Holding::Lacked => KnownRedirect::Nowhere,
            Holding::Unknown => KnownRedirect::Unknown,
        }
    }

    /// Where clients of a repository get a blob: asks the bucket for the content and the link at the same
    /// time, unless it is known to have them, and signs an address. None where the blob is to be served.
    pub async fn find_redirect(&self, repo: &RepoName, digest: &Digest) -> Option<Redirect> {
        let redirects = self.redirects.as_ref()?;
        let size = match redirects.holdings.get(repo, digest) {
            Holding::Held(size) => size,
            Holding::Lacked => return None,
            Holding::Unknown => self.find(redirects, repo, digest).await?,
        };
        if size < MIN_REDIRECTED {
            return None;
        }
        let location = redirects.addresses.sign(&self.objects, digest).await?;
        Some(Redirect { location, size })
    }

    /// The size of content that the bucket has, with the link of the repository.
    async fn find(&self, redirects: &Redirects, repo: &RepoName, digest: &Digest) -> Option<u64> {
        let link = self.links(repo, LinkKind::Layer, digest);
        let asking = async { tokio::try_join!(self.size(digest), link) };
        let asked = timeout(redirects.timeout, asking).await;
        let asked = asked.unwrap_or_else(|_elapsed| {
            let late = Err(BucketError::Late(redirects.timeout));
            self.circuit.note(&late);
            late
        });
        match asked {
            Ok((Some(size), true)) => {
                redirects.holdings.held(repo, digest, size);
                Some(size)
            }
            Ok(_) => {
                redirects.holdings.lacked(repo, digest);
                None
            }
            Err(error) => {
                tracing::debug!(%repo, %digest, error = %on_one_line(&error), "the bucket has no answer; serving the blob");
                None
            }
        }
    }

    /// A client was redirected to content: a use of it.
    pub fn on_redirect(&self, digest: &Digest) {
        self.metrics.redirected();
        self.note_use(digest);
    }

    /// The bucket has content and the link of a repository to it.
    pub(super) fn on_held(&self, (repo, kind): (&RepoName, LinkKind), digest: &Digest, size: u64) {
        if let Some(redirects) = &self.redirects
            && kind == LinkKind::Layer
        {
            redirects.holdings.held(repo, digest, size);
        }
    }

    /// An upload is done.
    pub(super) async fn on_uploaded(&self, upload: &Upload) {
        let Upload {
            repo, kind, digest, ..
        } = upload;
        let Some(redirects) = &self.redirects else {
            return;
        };
        match self.cache.stored_size(digest).await {
            Some(size) => self.on_held((repo, *kind), digest, size),
            // It was there already: its size is asked for with the next request.
            None => redirects.holdings.forget_link(repo, digest),
        }
    }

    /// The bucket lacks content, or has it wrong.
    pub(super) fn on_missing(&self, digest: &Digest) {
        if let Some(redirects) = &self.redirects {
            redirects.holdings.forget_content(digest);
        }
    }
}

#[cfg(test)]
mod tests;
