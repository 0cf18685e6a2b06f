//! Tags and the catalog.

use std::sync::Arc;

use super::remembered::List;
use super::single_flight::Interest;
use super::verdicts::Question;
use super::{Exchange, Mirror, MirrorError, Target};
use crate::metrics::Outcome;
use crate::oci::Page;
use crate::oci::{RepoName, Tag};
use crate::upstream::UpstreamError;

/// A page of tags.
#[derive(Debug)]
pub struct TagsAnswer {
    pub tags: Vec<Tag>,
    /// Whether more follow.
    pub more: bool,
    pub outcome: Outcome,
    pub exchange: Exchange,
}

/// Whether the catalog shows a repository of an upstream.
pub type Shows<'a> = dyn Fn(&str, &RepoName) -> bool + Send + Sync + 'a;

/// Repositories that are compared with the rules before other tasks run.
const PERMITTED_AT_ONCE: usize = 32;

/// A page of the repositories that are cached.
#[derive(Debug)]
pub struct CatalogPage {
    pub repositories: Vec<RepoName>,
    pub more: bool,
}

/// What is known of a repository's tags.
#[derive(Debug, Clone)]
pub(super) enum TagList {
    /// All of them, sorted.
    All(Vec<Tag>),
    /// There are too many to sort and keep them: the upstream's own pages are passed on.
    TooLong,
}

impl List for TagList {
    fn weight(&self) -> u64 {
        let Self::All(tags) = self else { return 0 };
        // The pointer, the counters of the text and the allocator's rounding.
        let weight = |tag: &Tag| tag.as_str().len() as u64 + 48;
        tags.iter().map(weight).sum()
    }
}

impl Mirror {
    /// A page of the upstream's tags. Many registries neither sort them nor heed `n` and `last`, so
    /// all tags are fetched, sorted and paged here. While the upstream can't answer: what it said
    /// last, else the tags that are cached.
    pub async fn tags(
        self: &Arc<Self>,
        target: &Target,
        page: &Page,
    ) -> Result<TagsAnswer, MirrorError> {
        self.permit(target, || Question::Tags).await?;
        self.negatives.check(target, || Question::Tags)?;
        let ask = |interest| {
            let (mirror, target) = (Arc::clone(self), target.clone());
            async move { mirror.ask_for_tags(&target, &interest).await }
        };
        let report =
            |error: &MirrorError| target.report(error, "listed the tags of its last answer");
        let key = (target.stored.clone(), target.upstream.caller());
        let list = if target.upstream.is_offline() {
            Err(target.upstream.offline_error().into())
        } else {
            self.tag_lists.get(key, ask, report).await
        };
        let found = match list {
            Ok((list, outcome, exchange)) => match &*list {
                TagList::All(tags) => Ok((page.of(tags, Tag::as_str), outcome, exchange)),
                TagList::TooLong => {
                    let passed = self.pass_page(target, page).await;
                    passed.map(|page| (page, Outcome::Miss, Exchange::of(Outcome::Miss)))
                }
            },
            Err(error) => Err(error),
        };
        let ((tags, more), outcome, exchange) = match found {
            Err(error) if error.permits_stale() => {
                let cached = self.cache.tags(&target.stored).await;
                if cached.is_empty() {
                    return Err(error);
                }
                target.report(&error, "listed the tags that are cached");
                let page = page.of(&cached, Tag::as_str);
                (page, error.outcome_of_known(), Exchange::failed(&error))
            }
            found => {
                found.inspect_err(|error| self.note_refusal(target, || Question::Tags, error))?
            }
        };
        Ok(TagsAnswer {
            tags,
            more,
            outcome,
            exchange,
        })
    }

    /// Requests the tags of a repository, once for all clients that wait.
    async fn ask_for_tags(
        &self,
        target: &Target,
        interest: &Interest,
    ) -> Result<(TagList, Outcome), MirrorError> {
        let parsed = async {
            let asking = target.upstream.tags(&target.repo);
            let list = interest.answer(asking).await?;
            let admission = self.cache.workers().admit(list.size()).await?;
            let read = move || {
                let mut tags = list.tags()?;
                tags.sort_unstable();
                tags.dedup();
                Ok::<_, UpstreamError>(tags)
            };
            Ok::<_, MirrorError>(admission.run(read).await??)
        };
        match parsed.await {
            Ok(tags) => Ok((TagList::All(tags), Outcome::Miss)),
            Err(error) if error.is_too_long() => Ok((TagList::TooLong, Outcome::Miss)),
            Err(error) => Err(error),
        }
    }

    /// The upstream's own page of a list that is too long to be kept, in the upstream's order, and
    /// whether more follow.
    async fn pass_page(
        &self,
        target: &Target,
        page: &Page,
    ) -> Result<(Vec<Tag>, bool), MirrorError> {
        let n = page.length();
        let (list, next) = target
            .upstream
            .tags_page(&target.repo, n, page.last.as_deref())
            .await?;
        let admission = self.cache.workers().admit(list.size()).await?;
        let mut tags = admission.run(move || list.tags()).await??;
        let more = tags.len() > n || (next && !tags.is_empty());
        tags.truncate(n);
        Ok((tags, more))
    }

    /// The repositories that have something cached, by their names in the store: those that `shows`
    /// permits, by the name of the upstream and their own.
    pub async fn catalog(
        &self,
        page: &Page,
        shows: &Shows<'_>,
    ) -> Result<CatalogPage, MirrorError> {
        let all = self.cache.repositories().await?;
        let (n, mut repositories) = (page.length(), Vec::new());
        for (looked, repository) in page.after(&all, RepoName::as_str).iter().enumerate() {
            if looked % PERMITTED_AT_ONCE == PERMITTED_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let upstream = self.upstreams.of_stored(repository);
            if upstream.is_some_and(|upstream| shows(upstream.name(), repository)) {
                if repositories.len() == n {
                    return Ok(CatalogPage {
                        repositories,
                        more: n > 0,
                    });
                }
                repositories.push(repository.clone());
            }
        }
        Ok(CatalogPage {
            repositories,
            more: false,
        })
    }
}
