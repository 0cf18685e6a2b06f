//! Lists: tags ("Listing Tags") and referrers ("Listing Referrers") of the distribution-spec.

use bytes::Bytes;
use http::header::{ACCEPT, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use url::Url;

use super::error::{UpstreamError, Violation};
use super::reply::Reply;
use super::transport::Ask;
use super::{Kind, Upstream, body, redirect};
use crate::oci::manifest::media_type;
use crate::oci::{Digest, RepoName, Tag};

/// Largest list that is read, in bytes: one page of tags, or all pages of referrers together.
const MAX_LIST: u64 = 4 * 1024 * 1024;
/// Pages of referrers that are followed.
const MAX_PAGES: usize = 20;
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// One page of a repository's tags, in the upstream's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagsPage {
    pub tags: Vec<Tag>,
    /// There is more after the last of `tags`.
    pub next: bool,
}

/// What refers to a manifest: an image index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrers {
    /// The upstream's own document when it is one page, else all pages merged into one.
    pub bytes: Bytes,
    /// Only referrers of the artifact type that was asked for are listed.
    pub filters_applied: bool,
}

impl Upstream {
    /// A page of tags: at most `n`, after `last`, as far as the upstream honours that. What isn't
    /// a valid tag is left out.
    pub async fn tags(
        &self,
        repo: &RepoName,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<TagsPage, UpstreamError> {
        #[derive(Deserialize)]
        struct Page {
            // Registries send null for a repository without tags.
            tags: Option<Vec<String>>,
        }
        let mut url = self.endpoint(repo, "tags", "list");
        if let Some(n) = n {
            url.query_pairs_mut().append_pair("n", &n.to_string());
        }
        if let Some(last) = last {
            url.query_pairs_mut().append_pair("last", last);
        }
        let ask = Ask::new(Kind::Tags, Method::GET, url)
            .with(ACCEPT, HeaderValue::from_static("application/json"));
        let reply = self.ask(repo, &ask).await?;
        let more = redirect::next_page(&reply.url, reply.headers()).is_some();
        let bytes = self.read_list(reply, MAX_LIST).await?;
        let page: Page = serde_json::from_slice(&bytes)
            .map_err(|_malformed| UpstreamError::protocol(&ask.url, Violation::Json("tag list")))?;
        let tags = page.tags.unwrap_or_default();
        let tags: Vec<Tag> = tags.iter().filter_map(|tag| tag.parse().ok()).collect();
        // Without a last tag nobody could ask for the page after this one.
        let next = more && !tags.is_empty();
        Ok(TagsPage { tags, next })
    }

    /// What refers to a manifest, all pages of it. `None` when the upstream doesn't have this API
    /// (400, 404, 405).
    pub async fn referrers(
        &self,
        repo: &RepoName,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Referrers>, UpstreamError> {
        let mut url = self.endpoint(repo, "referrers", &digest.to_string());
        if let Some(kind) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", kind);
        }
        let (first, mut next) = match self.referrers_page(repo, &url, MAX_LIST).await {
            Err(UpstreamError::NotFound { .. }) => return Ok(None),
            Err(error) if matches!(error.unexpected_status(), Some(400 | 405)) => return Ok(None),
            page => page?,
        };
        if next.is_none() {
            return Ok(Some(first));
        }
        let mut merged = parse_index(&url, &first.bytes)?;
        let mut left = MAX_LIST.saturating_sub(first.bytes.len() as u64);
        let mut filters_applied = first.filters_applied;
        let mut pages = 1;
        while let Some(page_url) = next {
            if pages == MAX_PAGES {
                return Err(UpstreamError::protocol(&url, Violation::TooManyPages));
            }
            let (page, after) = self.referrers_page(repo, &page_url, left).await?;
            left = left.saturating_sub(page.bytes.len() as u64);
            filters_applied &= page.filters_applied;
            let index = parse_index(&page_url, &page.bytes)?;
            merged.append(index);
            next = after;
            pages += 1;
        }
        let bytes = serde_json::to_vec(&merged)
            .map_err(|_never| UpstreamError::protocol(&url, Violation::Json("index")))?;
        Ok(Some(Referrers {
            bytes: bytes.into(),
            filters_applied,
        }))
    }

    /// One page, and where the next one is.
    async fn referrers_page(
        &self,
        repo: &RepoName,
        url: &Url,
        limit: u64,
    ) -> Result<(Referrers, Option<Url>), UpstreamError> {
        let ask = Ask::new(Kind::Referrers, Method::GET, url.clone())
            .with(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        let reply = self.ask(repo, &ask).await?;
        let filters_applied = reply
            .text(&OCI_FILTERS_APPLIED)
            .is_some_and(|list| list.split(',').any(|one| one.trim() == "artifactType"));
        let next = redirect::next_page(&reply.url, reply.headers());
        // The next page is asked for with credentials: it can only be the upstream's own.
        if next
            .as_ref()
            .is_some_and(|next| !redirect::same_origin(&self.url, next))
        {
            return Err(reply.violates(Violation::Header("Link")));
        }
        let bytes = self.read_list(reply, limit).await?;
        parse_index(url, &bytes)?;
        let page = Referrers {
            bytes,
            filters_applied,
        };
        Ok((page, next))
    }

    async fn read_list(&self, reply: Reply, limit: u64) -> Result<Bytes, UpstreamError> {
        if reply.status() != StatusCode::OK {
            return Err(reply.unexpected());
        }
        reply.refuse_encoding()?;
        body::read(reply, limit, self.transport.timeouts.header).await
    }
}

/// An image index whose descriptors are passed on as they are, annotations and all.
#[derive(Deserialize, Serialize)]
struct Index {
    manifests: Option<Vec<serde_json::Value>>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Index {
    fn append(&mut self, page: Self) {
        let own = self.manifests.get_or_insert_default();
        own.extend(page.manifests.unwrap_or_default());
    }
}

fn parse_index(url: &Url, bytes: &[u8]) -> Result<Index, UpstreamError> {
    serde_json::from_slice(bytes)
        .map_err(|_malformed| UpstreamError::protocol(url, Violation::Json("image index")))
}
