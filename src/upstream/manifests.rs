//! Manifests (distribution-spec, "Pulling manifests").

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use http::{Method, StatusCode};

use super::error::{UpstreamError, Violation};
use super::reply::Reply;
use super::transport::Ask;
use super::{Kind, Upstream, body};
use crate::oci::manifest::MAX_MANIFEST;
use crate::oci::{Accept, Algorithm, Digest, Reference, RepoName};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Longest media type that is believed, in bytes: type and parameters.
const MAX_CONTENT_TYPE: usize = 512;

/// What a HEAD tells about a manifest. Nothing of it is verified, and each part may be missing:
/// without a digest, only a GET tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManifestHead {
    pub digest: Option<Digest>,
    pub media_type: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
}

/// A verified manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedManifest {
    /// At most [`MAX_MANIFEST`] bytes, exactly as the upstream sent them.
    pub bytes: Bytes,
    /// The digest of `bytes`: by the algorithm of the reference, else of the upstream's header,
    /// else by sha256.
    pub digest: Digest,
    pub content_type: Option<String>,
}

impl Upstream {
    /// What the upstream says about a manifest, without fetching it. An upstream that knows no
    /// HEAD (405) says nothing.
    pub async fn head_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<ManifestHead, UpstreamError> {
        let ask = self.manifest(Method::HEAD, repo, reference, accept);
        let reply = match self.ask(repo, &ask).await {
            Err(error) if error.unexpected_status() == Some(405) => {
                return Ok(ManifestHead::default());
            }
            reply => reply?,
        };
        whole(&reply)?;
        Ok(ManifestHead {
            digest: announced_digest(&reply)?,
            media_type: content_type(&reply),
            size: reply.content_length()?,
        })
    }

    /// A manifest, whole and verified.
    pub async fn get_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<FetchedManifest, UpstreamError> {
        let ask = self.manifest(Method::GET, repo, reference, accept);
        let reply = self.ask(repo, &ask).await?;
        whole(&reply)?;
        let url = reply.url.clone();
        let announced = announced_digest(&reply)?;
        let content_type = content_type(&reply);
        let bytes = body::read(reply, MAX_MANIFEST, self.transport.timeouts.header).await?;
        let asked = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => None,
        };
        for expected in [asked, announced].into_iter().flatten() {
            let actual = Digest::of(expected.algorithm(), &bytes);
            if actual != expected {
                let violation = Violation::Digest {
                    expected: Box::new(expected),
                    actual: Box::new(actual),
                };
                return Err(UpstreamError::protocol(&url, violation));
            }
        }
        Ok(FetchedManifest {
            digest: asked
                .or(announced)
                .unwrap_or_else(|| Digest::of(Algorithm::Sha256, &bytes)),
            bytes,
            content_type,
        })
    }

    fn manifest(
        &self,
        method: Method,
        repo: &RepoName,
        reference: &Reference,
        accept: &Accept,
    ) -> Ask {
        let url = self.endpoint(repo, "manifests", &reference.to_string());
        Ask::new(Kind::Manifest, method, url).with(ACCEPT, accept.header())
    }
}

/// Refuses what is not a plain 200 of the content itself.
fn whole(reply: &Reply) -> Result<(), UpstreamError> {
    if reply.status() != StatusCode::OK {
        return Err(reply.unexpected());
    }
    reply.refuse_encoding()
}

/// A digest that can't be read could not be verified, so it is an error and not an absence.
fn announced_digest(reply: &Reply) -> Result<Option<Digest>, UpstreamError> {
    if !reply.headers().contains_key(DOCKER_CONTENT_DIGEST) {
        return Ok(None);
    }
    let digest = reply.text(&DOCKER_CONTENT_DIGEST);
    digest
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or_else(|| reply.violates(Violation::Header("Docker-Content-Digest")))
}

fn content_type(reply: &Reply) -> Option<String> {
    let text = reply.text(&CONTENT_TYPE)?;
    (!text.is_empty() && text.len() <= MAX_CONTENT_TYPE).then(|| text.to_owned())
}
