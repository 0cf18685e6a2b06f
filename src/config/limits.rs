//! How much is kept and how it is looked after: `storage.maxsize`, `storage.minfree`,
//! `storage.scrub`, and the finer keys beside `proxy.ttl`.

use std::time::Duration;

use super::document::KeyPath;
use super::report::{Report, Section, shown};
use super::{Limits, Scrub, SizeLimit, Storage, TtlMode, TtlRule, Upstream};

/// Bytes a second that a background scrub reads.
const DEFAULT_RATE: u64 = 20 * 1024 * 1024;
/// The longest pattern: what a stored repository's name can have, in bytes.
const MAX_PATTERN: usize = 512;
/// Units of sizes, in lower case.
const UNITS: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

pub(super) fn read(storage: &Section<'_>, kind: &Storage, report: &mut Report<'_>) -> Limits {
    let scrub = storage.section("scrub");
    let interval = scrub.duration("interval", Duration::ZERO, report);
    let rate = match limit(&scrub, "rate", report) {
        Some(SizeLimit::Bytes(rate)) if rate > 0 => rate,
        None => DEFAULT_RATE,
        Some(_) => {
            let path = scrub.path.key("rate");
            report.problem(
                &path,
                format!("`{path}` must be bytes a second, such as 20MiB"),
            );
            DEFAULT_RATE
        }
    };
    Limits {
        max_size: checked(storage, "maxsize", 1, kind, report),
        min_free: checked(storage, "minfree", 0, kind, report),
        scrub: Some(Scrub { interval, rate }).filter(|scrub| !scrub.interval.is_zero()),
    }
}

/// A limit whose percentage is at least `least`, and of something.
fn checked(
    storage: &Section<'_>,
    key: &str,
    least: u8,
    kind: &Storage,
    report: &mut Report<'_>,
) -> Option<SizeLimit> {
    let found = limit(storage, key, report)?;
    let path = storage.path.key(key);
    let problem = match found {
        SizeLimit::Percent(percent) if percent < least => {
            format!("`{path}` must be from {least}% to 100%")
        }
        SizeLimit::Percent(_) if *kind == Storage::Memory => {
            format!(
                "`{path}` is a percentage, but memory is no file system; write a size, such as 2GiB"
            )
        }
        SizeLimit::Bytes(0) if least > 0 => {
            format!("`{path}` must be more than 0; without a limit, leave the key out")
        }
        found => return Some(found),
    };
    report.problem(&path, problem);
    None
}

fn limit(section: &Section<'_>, key: &str, report: &mut Report<'_>) -> Option<SizeLimit> {
    let text = section.text(key)?;
    let found = parse(text);
    if found.is_none() {
        let path = section.path.key(key);
        let message = format!(
            "`{path}` is {}; write a size such as 200GiB, or 80%",
            shown(text)
        );
        report.problem(&path, message);
    }
    found
}

/// `200GiB`, `1.5TB`, `1048576`, `80%`.
fn parse(text: &str) -> Option<SizeLimit> {
    let text = text.trim().to_ascii_lowercase();
    if let Some(percent) = text.strip_suffix('%') {
        let percent: u8 = percent.trim().parse().ok()?;
        return (percent <= 100).then_some(SizeLimit::Percent(percent));
    }
    let unit = UNITS
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, unit) = unit.unwrap_or((&text, 1));
    let (whole, part) = number.trim().split_once('.').unwrap_or((number.trim(), ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || !digits(whole)
        || !digits(part)
        || part.len() > 6
        || (unit == 1 && !part.is_empty())
    {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let scale = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
    let part = if part.is_empty() {
        0
    } else {
        part.parse::<u64>().ok()?
    };
    let part = u64::try_from(u128::from(part) * u128::from(unit) / u128::from(scale)).ok()?;
    whole.checked_add(part).map(SizeLimit::Bytes)
}

pub(super) fn ttl_mode(proxy: &Section<'_>, report: &mut Report<'_>) -> TtlMode {
    match proxy.text("ttlmode") {
        None | Some("sliding") => TtlMode::Sliding,
        Some("fixed") => TtlMode::Fixed,
        Some(other) => {
            let path = proxy.path.key("ttlmode");
            report.problem(
                &path,
                format!("`{path}` is {}; write sliding or fixed", shown(other)),
            );
            TtlMode::Sliding
        }
    }
}

/// The rules of `proxy.ttls`, then those of the upstreams that have a `ttl` of their own.
pub(super) fn ttl_rules(
    proxy: &Section<'_>,
    upstreams: &[(&Upstream, Option<Duration>)],
    report: &mut Report<'_>,
) -> Vec<TtlRule> {
    let mut rules = Vec::new();
    for section in proxy.sections("ttls") {
        let ttl = section
            .has("ttl")
            .then(|| section.duration("ttl", Duration::ZERO, report));
        let path = section.path.key("repository");
        let (Some(text), Some(ttl)) = (section.text("repository"), ttl) else {
            let message = format!("`{}` needs both `repository` and `ttl`", section.path);
            report.problem(&section.path, message);
            continue;
        };
        if let Some(pattern) = pattern(text, &path, report) {
            let ttl = Some(ttl).filter(|ttl| !ttl.is_zero());
            rules.push(TtlRule { pattern, ttl });
        }
    }
    rules.extend(upstreams.iter().filter_map(|(upstream, ttl)| {
        let ttl = (*ttl)?;
        let pattern = format!("{}/**", upstream.name);
        Some(TtlRule {
            pattern,
            ttl: Some(ttl).filter(|ttl| !ttl.is_zero()),
        })
    }));
    rules
}

/// The patterns of `proxy.pins`: `repository` or `repository:tag`.
pub(super) fn pins(proxy: &Section<'_>, report: &mut Report<'_>) -> Vec<String> {
    let mut pins = Vec::new();
    for (path, text) in proxy.texts("pins") {
        let (repository, tag) = text.split_once(':').unwrap_or((text, "*"));
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._*-".contains(&byte);
        if tag.is_empty() || tag.len() > MAX_PATTERN || !tag.bytes().all(legal) {
            report.problem(
                &path,
                format!("`{path}` is {}; write repository:tag", shown(text)),
            );
        } else if pattern(repository, &path, report).is_some() {
            pins.push(text.to_owned());
        }
    }
    pins
}

fn pattern(text: &str, path: &KeyPath, report: &mut Report<'_>) -> Option<String> {
    let legal =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._/*-".contains(&byte);
    if !text.is_empty() && text.len() <= MAX_PATTERN && text.bytes().all(legal) {
        return Some(text.to_owned());
    }
    let message = format!(
        "`{path}` is {}; write a repository such as library/debian, with * for a part of a component \
         and ** for any number of components",
        shown(text)
    );
    report.problem(path, message);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("200GiB", 200 << 30),
            ("1.5 TiB", 3 << 39),
            ("2kb", 2_000),
            ("7b", 7),
            ("0.5MB", 500_000),
        ] {
            assert_eq!(parse(text), Some(SizeLimit::Bytes(bytes)), "{text}");
        }
        assert_eq!(parse("80%"), Some(SizeLimit::Percent(80)));
        for text in [
            "",
            "GiB",
            "-1",
            "1.5",
            "1e3",
            "101%",
            "-1%",
            "1 2",
            "99999999TiB",
            "1.GiBx",
            "½",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
