//! Rules for repositories, and pins: patterns of what is stored.

use std::time::Duration;

use serde_yaml::Mapping;

use crate::oci::{ImagePattern, Pattern};

use super::download::{RangeMode, ranges};
use super::duration;
use super::report::shown;
use super::section::Section;
use super::upstream::Upstream;

/// The reference registry's default.
const DEFAULT_TTL: Duration = Duration::from_hours(7 * 24);
/// The longest pattern, in bytes: twice the longest name that a client may send.
const MAX_PATTERN: usize = 512;
const REPOSITORY: &str = "write a repository of lower-case letters, digits and . _ - /, or * and \
     ** for any of them, such as ghcr.io/owner/**";
const TAG: &str = "after the colon, write a tag of letters, digits and . _ -, or * for any of \
     them, such as library/debian:bookworm*";

/// The time to live of some repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TtlRule {
    /// Compared with the whole stored name: `library/debian`, `ghcr.io/owner/app`.
    pub pattern: Pattern,
    /// `None` is forever.
    pub ttl: Option<Duration>,
}

/// How ranges of missing blobs are answered in some repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRule {
    /// Compared with the whole stored name, as in [`TtlRule::pattern`].
    pub pattern: Pattern,
    pub ranges: RangeMode,
}

/// The rules of `proxy.ttls`, then those of the upstreams: the order in which they count.
pub(super) fn ttl_rules(
    proxy: &Section<'_>,
    default: &Upstream,
    of_upstreams: impl Iterator<Item = TtlRule>,
) -> Vec<TtlRule> {
    let rules = proxy.sections("ttls", |rule| {
        let pattern = pattern(rule, default);
        if rule.text("ttl").is_none() {
            rule.missing("ttl", "one such as 24h, or 0 for ever");
        }
        let ttl = ttl(rule);
        pattern.map(|pattern| TtlRule { pattern, ttl })
    });
    let rules: Vec<_> = rules.into_iter().flatten().chain(of_upstreams).collect();
    let printed = rules.iter().map(|TtlRule { pattern, ttl }| {
        let ttl = duration::format(ttl.unwrap_or_default());
        Mapping::from_iter([
            ("repository".into(), pattern.to_string().into()),
            ("ttl".into(), ttl.into()),
        ])
    });
    proxy.print("ttls", printed.collect::<Vec<_>>());
    rules
}

/// The time to live at `ttl`; 0 is forever.
pub(super) fn ttl(section: &Section<'_>) -> Option<Duration> {
    let ttl = section.duration("ttl", DEFAULT_TTL);
    Some(ttl).filter(|ttl| !ttl.is_zero())
}

/// The rules of `proxy.rangerules`.
pub(super) fn range_rules(proxy: &Section<'_>, default: &Upstream) -> Vec<RangeRule> {
    let rules = proxy.sections("rangerules", |rule| {
        let pattern = pattern(rule, default);
        if rule.text("ranges").is_none() {
            rule.missing("ranges", "fill or passthrough");
        }
        let ranges = ranges(rule);
        pattern.map(|pattern| RangeRule { pattern, ranges })
    });
    rules.into_iter().flatten().collect()
}

/// The pattern of the repositories that a rule is for.
fn pattern(rule: &Section<'_>, default: &Upstream) -> Option<Pattern> {
    let Some(text) = rule.text("repository") else {
        rule.missing("repository", "a pattern such as library/*");
        return None;
    };
    let pattern = rule.value("repository", repository)?;
    warn_of_no_match(rule, &rule.path("repository"), &text, &text, default);
    Some(pattern)
}

/// The images that are never evicted: `repository` or `repository:tag`.
pub(super) fn pins(proxy: &Section<'_>, default: &Upstream) -> Vec<ImagePattern> {
    images(proxy, "pins", default)
}

/// The list of `repository` or `repository:tag` at a key.
pub(super) fn images(
    section: &Section<'_>,
    key: &'static str,
    default: &Upstream,
) -> Vec<ImagePattern> {
    section.values(key, |text, path| {
        let (name, tag) = match text.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (text, None),
        };
        if tag.is_some_and(|tag| !is_of_tags(tag)) {
            return Err(TAG.to_owned());
        }
        check_length(text)?;
        repository(name)?;
        warn_of_no_match(section, path, name, text, default);
        text.parse().or(Err(TAG.to_owned()))
    })
}

/// The pattern of tags.
pub(super) fn tag(text: &str) -> Result<Pattern, String> {
    check_length(text)?;
    let pattern = text.parse().ok().filter(|_| is_of_tags(text));
    pattern.ok_or_else(|| {
        "write a tag of letters, digits and . _ -, or * for any of them, such as v*".to_owned()
    })
}

fn is_of_tags(text: &str) -> bool {
    let of_tags = |byte: u8| byte.is_ascii_alphanumeric() || b"._*-".contains(&byte);
    !text.is_empty() && text.bytes().all(of_tags)
}

pub(super) fn repository(text: &str) -> Result<Pattern, String> {
    check_length(text)?;
    let is_of_names =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._/*-".contains(&byte);
    let pattern = text.parse().ok();
    let pattern = pattern.filter(|_| text.bytes().all(is_of_names));
    pattern.ok_or_else(|| REPOSITORY.to_owned())
}

fn check_length(text: &str) -> Result<(), String> {
    if text.len() > MAX_PATTERN {
        return Err(format!("a pattern is at most {MAX_PATTERN} bytes long"));
    }
    Ok(())
}

/// Warns of a repository that no stored one has the name of, for the names that people are used to.
pub(super) fn warn_of_no_match(
    section: &Section<'_>,
    path: &str,
    name: &str,
    text: &str,
    default: &Upstream,
) {
    let reason = match name.split_once('/') {
        None if default.is_docker_hub && !name.contains("**") => format!(
            "Docker Hub's official images are stored under `library/`; write library/{name}"
        ),
        Some((host, rest)) if default.aliases.iter().any(|alias| alias == host) => {
            format!("the default upstream's repositories are stored without its name; write {rest}")
        }
        _ => return,
    };
    let text = shown(text);
    let reason = format!("is {text}, which matches nothing: {reason}");
    section.doubt_at(path, reason);
}
