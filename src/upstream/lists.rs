//! Lists: tags ("Listing Tags") and referrers ("Listing Referrers") of the distribution-spec.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, HeaderValue};
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;

use super::endpoint::Endpoint;
use super::endpoints::Purpose;
use super::error::{Failure, Phase, UpstreamError, Violation};
use super::transport::UpstreamRequest;
use super::{Upstream, body, redirect};
use crate::metrics::Kind;
use crate::oci::manifest::media_type;
use crate::oci::{Descriptor, Digest, RepoName, Tag};

/// Largest list that is read, in bytes: all its pages together.
const MAX_LIST: u64 = 4 * 1024 * 1024;
/// Pages of a list that are followed.
const MAX_PAGES: usize = 100;
/// How long all pages together may take.
const MAX_TIME: Duration = Duration::from_mins(2);
/// Tags of a repository that are listed.
const MAX_TAGS: usize = 100_000;
/// Tags that an upstream is asked for at a time: what most registries give at most.
const PAGE: usize = 1000;

/// A list as the upstream sent it: parsing it takes time, and so is left to the caller.
#[derive(Debug)]
pub struct UnparsedList {
    url: Url,
    /// At most [`MAX_LIST`] bytes.
    pages: Vec<Bytes>,
}

impl UnparsedList {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.pages.iter().map(|page| page.len() as u64).sum()
    }

    /// The tags of all pages, in the upstream's order. What isn't a valid tag is left out.
    pub fn tags(self) -> Result<Vec<Tag>, UpstreamError> {
        #[derive(Deserialize)]
        struct Page<'a> {
            // Registries send null for a repository without tags.
            #[serde(borrow)]
            tags: Option<Vec<Cow<'a, str>>>,
        }
        let mut tags = Vec::new();
        for page in &self.pages {
            let page: Page<'_> = self.parse(page, "tag list")?;
            let page = page.tags.unwrap_or_default();
            if tags.len() + page.len() > MAX_TAGS {
                let violation = Violation::TooManyEntries { limit: MAX_TAGS };
                return Err(UpstreamError::protocol(&self.url, violation));
            }
            tags.extend(page.iter().filter_map(|tag| tag.parse::<Tag>().ok()));
        }
        Ok(tags)
    }

    /// The entries of all pages, each of which is an image index.
    pub fn referrers(self) -> Result<Vec<Descriptor>, UpstreamError> {
        #[derive(Deserialize)]
        struct Page {
            manifests: Option<Vec<Descriptor>>,
        }
        let mut referrers = Vec::new();
        for page in &self.pages {
            let page: Page = self.parse(page, "image index")?;
            referrers.extend(page.manifests.unwrap_or_default());
        }
        Ok(referrers)
    }

    fn parse<'a, T: Deserialize<'a>>(
        &self,
        page: &'a [u8],
        kind: &'static str,
    ) -> Result<T, UpstreamError> {
        serde_json::from_slice(page)
            .map_err(|_malformed| UpstreamError::protocol(&self.url, Violation::Json(kind)))
    }
}

impl Upstream {
    /// All tags of a repository: all pages that the upstream makes of them.
    pub async fn tags(&self, repo: &RepoName) -> Result<UnparsedList, UpstreamError> {
        let ask = |endpoint| Endpoint::tags(endpoint, repo);
        self.endpoints.ask(Purpose::Metadata, ask).await
    }

    /// One page of tags: at most `n`, after `last`, as far as the upstream honours that; and whether
    /// there are more.
    pub async fn tags_page(
        &self,
        repo: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> Result<(UnparsedList, bool), UpstreamError> {
        let ask = |endpoint| Endpoint::tags_page(endpoint, repo, n, last);
        self.endpoints.ask(Purpose::Metadata, ask).await
    }

    /// What refers to a manifest, all pages of it. `None` when the upstream doesn't have this API
    /// (400, 404, 405). It needn't honour the filter.
    pub async fn referrers(
        &self,
        repo: &RepoName,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<UnparsedList>, UpstreamError> {
        let ask = |endpoint| Endpoint::referrers(endpoint, repo, digest, artifact_type);
        let pages = self.endpoints.ask(Purpose::Metadata, ask).await;
        match pages.as_ref().map_err(|error| &error.failure) {
            Err(
                Failure::NotFound(_)
                | Failure::Rejected { status: 400, .. }
                | Failure::Unexpected(405),
            ) => Ok(None),
            _ => pages.map(Some),
        }
    }
}

impl Endpoint {
    async fn tags(&self, repo: &RepoName) -> Result<UnparsedList, UpstreamError> {
        let repo = &*self.named(repo);
        let url = self.tags_url(repo, PAGE, None);
        let pages = self.pages(repo, Kind::Tags, url).await;
        // Some refuse a page that is larger than theirs.
        if let Err(error) = &pages
            && matches!(error.failure, Failure::Rejected { status: 400, .. })
        {
            let whole = self.tags_url(repo, 0, None);
            return self.pages(repo, Kind::Tags, whole).await;
        }
        pages
    }

    async fn tags_page(
        &self,
        repo: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> Result<(UnparsedList, bool), UpstreamError> {
        let repo = &*self.named(repo);
        let url = self.tags_url(repo, n, last);
        let (page, next) = self.page(repo, Kind::Tags, &url, MAX_LIST).await?;
        let pages = vec![page];
        Ok((UnparsedList { url, pages }, next.is_some()))
    }

    /// Without `n` where that is 0.
    fn tags_url(&self, repo: &RepoName, n: usize, last: Option<&str>) -> Url {
        let mut url = self.url(repo, "tags", "list");
        if n > 0 {
            url.query_pairs_mut().append_pair("n", &n.to_string());
        }
        if let Some(last) = last {
            url.query_pairs_mut().append_pair("last", last);
        }
        url
    }

    async fn referrers(
        &self,
        repo: &RepoName,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<UnparsedList, UpstreamError> {
        let repo = &*self.named(repo);
        let mut url = self.url(repo, "referrers", &digest.to_string());
        if let Some(kind) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", kind);
        }
        self.pages(repo, Kind::Referrers, url).await
    }

    /// A page, and all that follow it.
    async fn pages(
        &self,
        repo: &RepoName,
        kind: Kind,
        first: Url,
    ) -> Result<UnparsedList, UpstreamError> {
        let pages = async {
            let (mut pages, mut left) = (Vec::new(), MAX_LIST);
            let mut asked = vec![first.clone()];
            while let Some(url) = asked.get(pages.len()).cloned() {
                if pages.len() == MAX_PAGES {
                    return Err(UpstreamError::protocol(&first, Violation::TooManyPages));
                }
                let (page, next) = self.page(repo, kind, &url, left).await?;
                left = left.saturating_sub(page.len() as u64);
                pages.push(page);
                // An upstream that ignores where its page begins links to the same one for ever.
                asked.extend(next.filter(|next| !asked.contains(next)));
            }
            Ok(pages)
        };
        let pages = timeout(MAX_TIME, pages).await.unwrap_or_else(|_elapsed| {
            let (phase, after) = (Phase::Body, MAX_TIME);
            let failure = Failure::Timeout { phase, after };
            Err(UpstreamError::new(&first, failure))
        })?;
        Ok(UnparsedList { url: first, pages })
    }

    /// One page, and where the next one is.
    async fn page(
        &self,
        repo: &RepoName,
        kind: Kind,
        url: &Url,
        limit: u64,
    ) -> Result<(Bytes, Option<Url>), UpstreamError> {
        let accept = match kind {
            Kind::Referrers => media_type::OCI_INDEX,
            _ => "application/json",
        };
        let ask = UpstreamRequest::new(kind, Method::GET, url.clone())
            .with(ACCEPT, HeaderValue::from_static(accept));
        let reply = self.ask(repo, &ask).await?;
        reply.require_whole()?;
        let next = redirect::next_page(&reply.url, reply.headers());
        // The next page is asked for with credentials: it can only be the upstream's own.
        if let Some(next) = &next
            && !redirect::same_origin(&self.config.url, next)
        {
            return Err(reply.violates(Violation::Header("Link")));
        }
        let bytes = body::read(reply, limit, self.transport.timeouts.header).await?;
        Ok((bytes, next))
    }
}
