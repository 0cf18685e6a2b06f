//! What is kept: the times to live, the pins, the limits of the store and its background check.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::document::KeyPath;
use super::report::{Report, Section, shown};
use super::{Limits, MinFree, Scrub, SizeLimit, Storage, TtlMode, TtlRule, Upstream, size};

/// The longest pattern, in bytes: twice what a client may send as a name.
const MAX_PATTERN: usize = 512;
/// The reference registry's default.
const DEFAULT_TTL: Duration = Duration::from_hours(7 * 24);
/// Slow beside any disk, in bytes a second.
const DEFAULT_RATE: u64 = 20 << 20;
/// Smaller caps, in bytes, are most likely numbers without their unit.
const SMALL_CAP: u64 = 1 << 20;

/// The time to live at `ttl`; 0 is for ever.
pub(super) fn ttl(section: &Section<'_>, report: &mut Report<'_>) -> Option<Duration> {
    let ttl = section.duration("ttl", DEFAULT_TTL, report);
    Some(ttl).filter(|ttl| !ttl.is_zero())
}

pub(super) fn ttl_mode(proxy: &Section<'_>, report: &mut Report<'_>) -> TtlMode {
    match proxy.text("ttlmode").unwrap_or("sliding") {
        "sliding" => TtlMode::Sliding,
        "fixed" => TtlMode::Fixed,
        other => {
            let path = proxy.path.key("ttlmode");
            let message = format!("`{path}` is {}; write sliding or fixed", shown(other));
            report.problem(&path, message);
            TtlMode::Sliding
        }
    }
}

/// The rules of `proxy.ttls`, then the upstreams' own.
pub(super) fn ttl_rules(
    proxy: &Section<'_>,
    default: &Upstream,
    report: &mut Report<'_>,
) -> Vec<TtlRule> {
    let mut rules = Vec::new();
    for rule in proxy.sections("ttls") {
        let pattern = rule_pattern(&rule, default, report);
        if rule.text("ttl").is_none() {
            let path = rule.path.key("ttl");
            let message = format!("`{path}` is missing; write one such as 24h, or 0 for ever");
            report.problem(&rule.path, message);
        }
        rules.push(TtlRule {
            pattern: pattern.unwrap_or_default().to_owned(),
            ttl: ttl(&rule, report),
        });
    }
    for upstream in proxy.sections("upstreams") {
        // Names are checked where the upstreams are read.
        if upstream.text("ttl").is_some() {
            rules.push(TtlRule {
                pattern: format!("{}/**", upstream.text("name").unwrap_or_default()),
                ttl: ttl(&upstream, report),
            });
        }
    }
    rules
}

pub(super) fn pins(
    proxy: &Section<'_>,
    default: &Upstream,
    report: &mut Report<'_>,
) -> Vec<String> {
    let mut pins = Vec::new();
    for (path, text) in proxy.texts("pins") {
        let (name, tag) = match text.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (text, None),
        };
        let of_tags = |byte: u8| byte.is_ascii_alphanumeric() || b"._*-".contains(&byte);
        if tag.is_some_and(|tag| tag.is_empty() || !tag.bytes().all(of_tags)) {
            let message = format!(
                "`{path}` is {}; after the colon, write a tag of letters, digits and . _ -, or * \
                 for any of them, such as library/debian:bookworm*",
                shown(text)
            );
            report.problem(&path, message);
        } else {
            repository(name, text, &path, default, report);
        }
        pins.push(text.to_owned());
    }
    pins
}

/// The pattern of the repositories that a rule is for: valid, or reported.
pub(super) fn rule_pattern<'a>(
    rule: &Section<'a>,
    default: &Upstream,
    report: &mut Report<'_>,
) -> Option<&'a str> {
    let path = rule.path.key("repository");
    let pattern = rule.text("repository");
    if let Some(pattern) = pattern {
        repository(pattern, pattern, &path, default, report);
    } else {
        let message = format!("`{path}` is missing; write a pattern such as library/*");
        report.problem(&rule.path, message);
    }
    pattern
}

/// Checks the repository of a pattern that is `whole`.
fn repository(
    name: &str,
    whole: &str,
    path: &KeyPath,
    default: &Upstream,
    report: &mut Report<'_>,
) {
    let value = shown(whole);
    let of_names =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._/*-".contains(&byte);
    if whole.len() > MAX_PATTERN {
        let message = format!("`{path}` is {value}; a pattern is at most {MAX_PATTERN} bytes long");
        report.problem(path, message);
    } else if name.is_empty() || !name.bytes().all(of_names) {
        let message = format!(
            "`{path}` is {value}; write a repository of lower-case letters, digits and . _ - /, \
             or * and ** for any of them, such as ghcr.io/owner/**"
        );
        report.problem(path, message);
    } else if let Some(reason) = matches_nothing(name, default) {
        report.warning(
            path,
            format!("`{path}` is {value}, which matches nothing: {reason}"),
        );
    }
}

/// Why no stored repository has such a name, for the names that people are used to.
fn matches_nothing(name: &str, default: &Upstream) -> Option<String> {
    match name.split_once('/') {
        None if default.is_docker_hub && !name.contains("**") => Some(format!(
            "Docker Hub's official images are stored under `library/`; write library/{name}"
        )),
        Some((host, rest)) if default.aliases.iter().any(|alias| alias == host) => Some(format!(
            "the default upstream's repositories are stored without its name; write {rest}"
        )),
        _ => None,
    }
}

pub(super) fn limits(section: &Section<'_>, storage: &Storage, report: &mut Report<'_>) -> Limits {
    let max_size = limit(section, "maxsize", 1..=100, storage, report);
    let path = section.path.key("maxsize");
    match max_size {
        Some(SizeLimit::Bytes(0)) => {
            let message = format!("`{path}` must be more than 0; without the key, there is no cap");
            report.problem(&path, message);
        }
        Some(SizeLimit::Bytes(bytes)) if bytes < SMALL_CAP => {
            let message = format!("`{path}` is only {bytes} bytes: hardly anything can be kept");
            report.warning(&path, message);
        }
        _ => {}
    }
    Limits {
        max_size,
        min_free: min_free(section, storage, report),
        scrub: scrub(&section.section("scrub"), report),
    }
}

fn min_free(section: &Section<'_>, storage: &Storage, report: &mut Report<'_>) -> MinFree {
    let configured = limit(section, "minfree", 0..=99, storage, report);
    let min_free = match configured {
        None => MinFree::Default,
        Some(SizeLimit::Bytes(0) | SizeLimit::Percent(0)) => MinFree::Off,
        Some(limit) => MinFree::Limit(limit),
    };
    if *storage != Storage::Memory {
        return min_free;
    }
    if matches!(min_free, MinFree::Limit(_)) {
        let path = section.path.key("minfree");
        let message = format!("`{path}` has no effect: `storage.inmemory` uses no file system");
        report.warning(&path, message);
    }
    MinFree::Off
}

/// The limit at `key`, if there is one; a percentage has to be within `percents`.
fn limit(
    section: &Section<'_>,
    key: &str,
    percents: RangeInclusive<u8>,
    storage: &Storage,
    report: &mut Report<'_>,
) -> Option<SizeLimit> {
    let text = section.text(key)?;
    let path = section.path.key(key);
    let value = shown(text);
    match size::limit(text, percents) {
        Ok(SizeLimit::Percent(_)) if *storage == Storage::Memory => {
            let message = format!(
                "`{path}` is {value}, but `storage.inmemory` uses no file system; write a size \
                 such as 4GiB"
            );
            report.problem(&path, message);
            None
        }
        Ok(limit) => Some(limit),
        Err(error) => {
            report.problem(&path, format!("`{path}` is {value}; it {error}"));
            None
        }
    }
}

fn scrub(scrub: &Section<'_>, report: &mut Report<'_>) -> Option<Scrub> {
    let interval = scrub.duration("interval", Duration::ZERO, report);
    let rate = scrub.size("rate", DEFAULT_RATE, report);
    if rate == 0 {
        let path = scrub.path.key("rate");
        let message =
            format!("`{path}` must be more than 0; `storage.scrub.interval: 0` turns the pass off");
        report.problem(&path, message);
    }
    (!interval.is_zero()).then_some(Scrub { interval, rate })
}
