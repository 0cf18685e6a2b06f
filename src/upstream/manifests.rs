//! Manifests (distribution-spec, "Pulling manifests").

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use http::header::{ACCEPT, AGE, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH};
use http::{Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::endpoint::Endpoint;
use super::endpoints::Purpose;
use super::error::{Failure, UpstreamError, Violation};
use super::peers::OwnerKey;
use super::reply::UpstreamResponse;
use super::transport::UpstreamRequest;
use super::{PeerAnswer, Upstream, body};
use crate::metrics::{Kind, UpstreamMetrics};
use crate::oci::manifest::{MAX_MANIFEST, ManifestError};
use crate::oci::{
    Accept, Algorithm, Declared, Digest, Manifest, ManifestType, Reference, RepoName,
};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The longest ETag that is sent back, in bytes.
const MAX_ETAG: usize = 256;

/// The headers of a HEAD response for a manifest. None is verified, and each may be missing: without a
/// digest, a GET is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManifestHead {
    pub digest: Option<Digest>,
    pub media_type: Option<ManifestType>,
    /// Bytes.
    pub size: Option<u64>,
    /// With which the next request for the same reference can ask whether this still holds.
    pub validator: Option<Validator>,
    /// The answer to a request with a validator is that what it stands for still holds. The other fields
    /// are empty then.
    pub is_unchanged: bool,
    /// The replica that answered, if the upstream wasn't asked from here.
    pub peer: Option<PeerAnswer>,
}

/// The ETag of an answer (RFC 9110, section 8.8.3), and the server that gave it: another one may mean
/// something else by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validator {
    server: Url,
    etag: HeaderValue,
}

/// The upstream's answer to a GET, of which nothing has been checked yet.
#[derive(Debug)]
pub struct UnverifiedManifest {
    metrics: Arc<UpstreamMetrics>,
    url: Url,
    bytes: Bytes,
    asked: Option<Digest>,
    announced: Option<Digest>,
    declared: Declared,
    peer: Option<PeerAnswer>,
}

/// A verified manifest.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// At most [`MAX_MANIFEST`] bytes, exactly as the upstream sent them.
    pub bytes: Bytes,
    /// The digest of `bytes`: by the algorithm of the reference, else of the upstream's header,
    /// else by sha256.
    pub digest: Digest,
    pub manifest: Manifest,
}

impl UnverifiedManifest {
    /// The replica that sent it, if the upstream wasn't asked from here.
    pub const fn peer(&self) -> Option<PeerAnswer> {
        self.peer
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Checks the digest and reads the document. Takes about 20 ms for the largest manifest.
    pub fn verify(self) -> Result<FetchedManifest, UpstreamError> {
        let metrics = Arc::clone(&self.metrics);
        let verified = self.verified();
        verified.inspect_err(|error| metrics.failed(error.class()))
    }

    fn verified(self) -> Result<FetchedManifest, UpstreamError> {
        let manifest = match self.declared {
            Declared::Schema1 => Err(ManifestError::Schema1),
            Declared::Manifest(_) | Declared::Unknown => Manifest::parse(&self.bytes),
        };
        // The announced digest of a signed schema 1 manifest isn't that of the body.
        if let Err(ManifestError::Schema1) = manifest {
            return Err(UpstreamError::new(&self.url, Failure::Schema1));
        }
        let mut digest = None;
        for expected in [self.asked, self.announced].into_iter().flatten() {
            if digest == Some(expected) {
                continue;
            }
            let actual = Digest::of(expected.algorithm(), &self.bytes);
            if actual != expected {
                let violation = Violation::Digest {
                    expected: Box::new(expected),
                    actual: Box::new(actual),
                };
                return Err(UpstreamError::protocol(&self.url, violation));
            }
            digest.get_or_insert(actual);
        }
        let manifest = manifest
            .and_then(|manifest| match self.declared.manifest_type() {
                // Sent as another kind of manifest. Any other type says nothing.
                Some(sent) if sent != manifest.media_type => Err(ManifestError::ContentType {
                    sent,
                    actual: manifest.media_type,
                }),
                _ => Ok(manifest),
            })
            .map_err(|error| UpstreamError::new(&self.url, Failure::Manifest(Arc::new(error))))?;
        Ok(FetchedManifest {
            digest: digest.unwrap_or_else(|| Digest::of(Algorithm::Sha256, &self.bytes)),
            bytes: self.bytes,
            manifest,
        })
    }
}

impl Upstream {
    /// What the upstream says about a manifest, without fetching it. An upstream that knows no
    /// HEAD (405) says nothing. `known`: that of the last answer to the same question, if there is one.
    pub async fn head_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        accept: &Accept,
        known: Option<&Validator>,
    ) -> Result<ManifestHead, UpstreamError> {
        let ask = |endpoint| Endpoint::head_manifest(endpoint, repo, reference, accept, known);
        let ahead = self.ahead(OwnerKey::of(repo, reference));
        if self.asks_peers()
            && let Some(head) = Box::pin(self.ask_peers(&ahead, &ask)).await?
        {
            return Ok(head);
        }
        self.endpoints.ask(Purpose::Manifest, ask).await
    }

    /// A manifest, whole, and yet to be verified.
    pub async fn get_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<UnverifiedManifest, UpstreamError> {
        if let Some(manifest) = self.peer_manifest(repo, reference, accept).await? {
            return Ok(manifest);
        }
        let ask = |endpoint| Endpoint::get_manifest(endpoint, repo, reference, accept);
        self.endpoints.ask(Purpose::Manifest, ask).await
    }

    /// The same from another replica. None: the next source is to be asked.
    pub async fn peer_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<Option<UnverifiedManifest>, UpstreamError> {
        if !self.asks_peers() {
            return Ok(None);
        }
        let ask = |endpoint| Endpoint::get_manifest(endpoint, repo, reference, accept);
        let ahead = self.ahead(OwnerKey::of(repo, reference));
        Box::pin(self.ask_peers(&ahead, &ask)).await
    }
}

impl Endpoint {
    async fn head_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        accept: &Accept,
        known: Option<&Validator>,
    ) -> Result<ManifestHead, UpstreamError> {
        let (repo, asked_at) = (&*self.named(repo), Instant::now());
        let mut ask = self.manifest(Method::HEAD, repo, reference, accept);
        let is_of_server =
            |known: &&Validator| known.server == self.config.url && self.peer.is_none();
        if let Some(known) = known.filter(is_of_server) {
            ask = ask.with(IF_NONE_MATCH, known.etag.clone());
        }
        let reply = match self.ask(repo, &ask).await {
            Err(error) if matches!(error.failure, Failure::Unexpected(405)) => {
                return Ok(ManifestHead::default());
            }
            reply => reply?,
        };
        if reply.status() == StatusCode::NOT_MODIFIED {
            return Ok(ManifestHead {
                is_unchanged: true,
                ..ManifestHead::default()
            });
        }
        reply.require_whole()?;
        let declared = declared(&reply);
        if declared == Declared::Schema1 {
            return Err(reply.fails(Failure::Schema1));
        }
        Ok(ManifestHead {
            digest: announced_digest(&reply)?,
            media_type: declared.manifest_type(),
            size: reply.content_length()?,
            validator: self.validator(&reply),
            is_unchanged: false,
            peer: peer_answer(&reply, reference, asked_at)?,
        })
    }

    async fn get_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<UnverifiedManifest, UpstreamError> {
        let (repo, asked_at) = (&*self.named(repo), Instant::now());
        let ask = self.manifest(Method::GET, repo, reference, accept);
        let reply = self.ask(repo, &ask).await?;
        reply.require_whole()?;
        let url = reply.url.clone();
        let announced = announced_digest(&reply)?;
        let declared = declared(&reply);
        let peer = peer_answer(&reply, reference, asked_at)?;
        let bytes = body::read(reply, MAX_MANIFEST, self.transport.timeouts.header).await?;
        let asked = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => None,
        };
        Ok(UnverifiedManifest {
            metrics: Arc::clone(&self.transport.metrics),
            url,
            bytes,
            asked,
            announced,
            declared,
            peer,
        })
    }

    fn validator(&self, reply: &UpstreamResponse) -> Option<Validator> {
        let etag = reply.headers().get(ETAG)?;
        (reply.own && reply.peer.is_none() && etag.len() <= MAX_ETAG).then(|| Validator {
            server: self.config.url.clone(),
            etag: etag.clone(),
        })
    }

    fn manifest(
        &self,
        method: Method,
        repo: &RepoName,
        reference: &Reference,
        accept: &Accept,
    ) -> UpstreamRequest {
        let url = self.url(repo, "manifests", &reference.to_string());
        UpstreamRequest::new(Kind::Manifest, method, url).with(ACCEPT, accept.header())
    }
}

/// A digest that can't be read could not be verified, so it is an error and not an absence.
fn announced_digest(reply: &UpstreamResponse) -> Result<Option<Digest>, UpstreamError> {
    let parse = |text: &str| text.parse().ok();
    reply.parsed(&DOCKER_CONTENT_DIGEST, "Docker-Content-Digest", parse)
}

/// What another replica says beside the content. A tag's `Age` can't be trusted where it is missing or no
/// number. It begins to count when the request was sent, so that it is never too low.
fn peer_answer(
    reply: &UpstreamResponse,
    reference: &Reference,
    asked_at: Instant,
) -> Result<Option<PeerAnswer>, UpstreamError> {
    let Some(address) = reply.peer else {
        return Ok(None);
    };
    let age = match reference {
        Reference::Digest(_) => Duration::ZERO,
        Reference::Tag(_) => {
            let age = reply.parsed(&AGE, "Age", crate::oci::digits)?;
            let age = age.ok_or_else(|| reply.violates(Violation::Header("Age")))?;
            Duration::from_secs(age).saturating_add(asked_at.elapsed())
        }
    };
    Ok(Some(PeerAnswer { address, age }))
}

fn declared(reply: &UpstreamResponse) -> Declared {
    Declared::from_content_type(reply.text(&CONTENT_TYPE).unwrap_or_default())
}
