//! `proxy.tags`: for how long the mirror knows what a tag names.

use std::time::Duration;

use crate::oci::{Pattern, RepoName, Tag};

use super::duration;
use super::report::shown;
use super::rules::{repository, tag, warn_of_no_match};
use super::section::Section;
use super::upstream::Upstream;

const DEFAULT_TTL: Duration = Duration::from_mins(1);
const UNLIMITED: &str = "unlimited";
/// The keys of [`TagTimes`].
const TIMES: [&str; 3] = ["ttl", "stalewhilerevalidate", "staleiferror"];

/// For how long the mirror knows what tags name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    /// Where no rule matches.
    pub times: TagTimes,
    /// The first match counts.
    pub rules: Vec<TagRule>,
}

/// For how long a tag's digest is served after the upstream has named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagTimes {
    /// Without asking the upstream; 0 asks at each request.
    pub ttl: Duration,
    /// After `ttl`, at once, while the upstream is asked (RFC 5861, section 3).
    pub stale_while_revalidate: Duration,
    /// After `ttl`, when the upstream can't answer (RFC 5861, section 4). None: without an end.
    pub stale_if_error: Option<Duration>,
}

/// When the upstream is asked what a tag names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// When the last answer is no longer fresh.
    Limited(TagTimes),
    /// Only while the cache doesn't know.
    Immutable,
    /// Never.
    Offline,
}

/// The freshness of some tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRule {
    /// Compared with the whole stored name: `library/debian`, `ghcr.io/owner/app`.
    repository: Pattern,
    tag: Pattern,
    /// Matches only tags that are semantic versions.
    semver: bool,
    freshness: Freshness,
}

impl Tags {
    /// The freshness of a tag of a stored repository.
    pub fn freshness(&self, repository: &RepoName, tag: &Tag) -> Freshness {
        let rule = self.rules.iter().find(|rule| rule.matches(repository, tag));
        rule.map_or(Freshness::Limited(self.times), |rule| rule.freshness)
    }
}

impl TagRule {
    fn matches(&self, repository: &RepoName, tag: &Tag) -> bool {
        (!self.semver || tag.is_semver())
            && self.tag.matches(tag.as_str())
            && self.repository.matches(repository.as_str())
    }
}

pub(super) fn read(tags: &Section<'_>, default: &Upstream) -> Tags {
    let times = times(
        tags,
        TagTimes {
            ttl: DEFAULT_TTL,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: None,
        },
    );
    let rules = tags.sections("rules", |section| rule(section, times, default));
    Tags {
        times,
        rules: rules.into_iter().flatten().collect(),
    }
}

fn times(section: &Section<'_>, default: TagTimes) -> TagTimes {
    let limit = section.parsed("staleiferror", |text| match text {
        UNLIMITED => Ok(None),
        text => duration::parse(text)
            .map(Some)
            .map_err(|error| format!("it {error}; or write {UNLIMITED}")),
    });
    let stale_if_error = limit.unwrap_or(default.stale_if_error);
    let printed = stale_if_error.map_or(UNLIMITED.to_owned(), duration::format);
    section.print("staleiferror", printed);
    TagTimes {
        ttl: section.duration("ttl", default.ttl),
        stale_while_revalidate: section
            .duration("stalewhilerevalidate", default.stale_while_revalidate),
        stale_if_error,
    }
}

fn rule(rule: &Section<'_>, inherited: TagTimes, default: &Upstream) -> Option<TagRule> {
    let written = rule.text("repository");
    let repository = rule.value("repository", repository);
    if let Some(text) = written.as_ref().filter(|_| repository.is_some()) {
        warn_of_no_match(rule, &rule.path("repository"), text, text, default);
    }
    let of_tag = rule.value("tag", tag);
    let semver = rule.bool("semver", false);
    if written.is_none() && rule.text("tag").is_none() && !semver {
        rule.missing(
            "tag",
            "a pattern such as v*, or repository, or semver: true",
        );
    }
    let freshness = freshness(rule, inherited);
    let any = || "**".parse().ok();
    Some(TagRule {
        repository: repository.or_else(any)?,
        tag: of_tag.or_else(any)?,
        semver,
        freshness,
    })
}

fn freshness(rule: &Section<'_>, inherited: TagTimes) -> Freshness {
    let (immutable, offline) = (rule.bool("immutable", false), rule.bool("offline", false));
    let written = TIMES.map(|key| rule.text(key).map(|text| (key, text)));
    let times = times(rule, inherited);
    if !immutable && !offline {
        if written.iter().all(Option::is_none) {
            let [ttl, while_revalidating, if_error] = TIMES;
            let keys = format!("immutable, offline, {ttl}, {while_revalidating} or {if_error}");
            rule.missing("ttl", format_args!("one of {keys}"));
        }
        return Freshness::Limited(times);
    }
    for (key, text) in written.into_iter().flatten() {
        let text = shown(&text);
        let reason = "has no effect on tags that are immutable or offline; remove it";
        rule.reject(key, format_args!("is {text}, which {reason}"));
    }
    for key in TIMES {
        rule.print_nothing(key);
    }
    if immutable && offline {
        rule.reject("immutable", "and `offline` are both true; keep one");
    }
    if offline {
        Freshness::Offline
    } else {
        Freshness::Immutable
    }
}
