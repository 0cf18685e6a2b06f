//! The section `hosted`: the repositories that clients push into, and what is kept of them.

use std::fmt::Display;
use std::time::Duration;

use super::proxy::Proxy;
use super::rules;
use super::section::Section;
use super::yaml::{Node, Value};
use super::{duration, size};
use crate::oci::{Pattern, RepoName};

const DEFAULT_MAX_BLOB: u64 = 100 << 30;
const DEFAULT_UPLOADS_TTL: Duration = Duration::from_hours(24);
const DEFAULT_UPLOADS_MAX: usize = 256;
const MAX_UPLOADS: usize = 100_000;
const DEFAULT_GRACE: Duration = Duration::from_hours(24);
/// A shorter grace, or time of uploads, ends what a client is still pushing.
const SHORT: Duration = Duration::from_mins(5);
/// Manifests kept of a repository, most.
const MAX_NEWEST: usize = 1_000_000;
/// A repository of Docker Hub's official images, for comparisons.
const OFFICIAL: &str = "library/x";

/// Repositories that belong to this server.
#[expect(
    clippy::struct_excessive_bools,
    reason = "keys of the configuration, which don't depend on each other"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedSpace {
    /// For logs and messages.
    pub name: String,
    /// Patterns of names as clients write them; never empty. The first space that matches counts.
    pub repositories: Vec<Pattern>,
    /// Whether blobs that a mirrored repository has needn't be pushed.
    pub reuse: bool,
    /// Whether manifests, tags and blobs can be deleted.
    pub delete: bool,
    /// Whether nothing can be pushed or deleted.
    pub readonly: bool,
    /// Whether manifests may refer to what the repository doesn't have.
    pub incomplete: bool,
    /// Tags that are set once, unless `mutable` matches, too.
    pub immutable: Vec<Pattern>,
    pub mutable: Vec<Pattern>,
    /// Bytes of the distinct blobs and the open uploads; never 0. `None` is no limit.
    pub quota: Option<u64>,
    /// Bytes of the largest blob; never 0.
    pub max_blob: u64,
    /// How long an upload may rest; never 0.
    pub uploads_ttl: Duration,
    /// Open uploads; never 0.
    pub uploads_max: usize,
    /// How long a blob without a manifest is kept; never 0.
    pub grace: Duration,
    /// How long a manifest without a tag is kept; `None` is forever.
    pub untagged: Option<Duration>,
    /// How long a tag is kept after its last push or pull; `None` is forever.
    pub ttl: Option<Duration>,
    /// So many of a repository's tags are kept in any case.
    pub keep_newest: usize,
    /// Tags that are kept in any case.
    pub keep_tags: Vec<Pattern>,
    /// Whether content may be evicted when space is short.
    pub evictable: bool,
    pub sync: PushSync,
}

/// When pushed content is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushSync {
    /// Before the success of the manifest that refers to it.
    Manifest,
    /// A blob before its own success, too.
    Blob,
}

/// What the reference registry's keys say for all spaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PushDefaults {
    /// `storage.delete.enabled`, where it is written.
    pub(super) delete: Option<bool>,
    /// `storage.maintenance.readonly.enabled`
    pub(super) readonly: bool,
    /// `storage.maintenance.uploadpurging.age`, where it is written.
    pub(super) uploads_ttl: Option<Duration>,
}

impl PushDefaults {
    /// Reads those of `storage`, which have no effect where nothing is hosted.
    pub(super) fn read(storage: &Section<'_>, hosts: bool) -> Self {
        if !hosts {
            storage.ignore(&[
                (
                    "delete",
                    "what a mirror holds goes when it expires or is purged",
                ),
                ("maintenance", "a mirror takes no uploads that need purging"),
            ]);
            return Self::default();
        }
        let delete = storage.section("delete", |delete| {
            let is_written = delete.text("enabled").is_some();
            is_written.then(|| delete.bool("enabled", true))
        });
        let (readonly, uploads_ttl) = storage.section("maintenance", |maintenance| {
            let readonly = maintenance.section("readonly", |readonly| {
                readonly.text("enabled").is_some() && readonly.bool("enabled", false)
            });
            (readonly, maintenance.section("uploadpurging", purging))
        });
        Self {
            delete,
            readonly,
            uploads_ttl,
        }
    }
}

/// The age at which uploads end.
fn purging(purging: &Section<'_>) -> Option<Duration> {
    let is = |key| purging.text(key).is_some() && purging.bool(key, false);
    if purging.text("enabled").is_some() && !is("enabled") {
        let reason =
            "is false, but uploads always end; write `hosted[].uploads.ttl` for a long time";
        purging.reject("enabled", reason);
    }
    if is("dryrun") {
        purging.reject("dryrun", "is not supported: uploads would never end");
    }
    purging.ignore(&[("interval", "an upload ends when its time is over")]);
    let is_written = purging.text("age").is_some();
    is_written.then(|| time(purging, "age", DEFAULT_UPLOADS_TTL))
}

/// Refuses the keys of the reference registry that restrict pushes in ways that aren't implemented. They
/// have no effect where nothing is hosted.
pub(super) fn restrictions(root: &Section<'_>, hosts: bool) {
    if !hosts {
        root.ignore(&[
            ("validation", "it concerns pushes, which a mirror refuses"),
            ("policy", "it concerns pushes, which a mirror refuses"),
        ]);
        return;
    }
    root.refuse_if("validation", restricts_manifests, RESTRICTED);
    root.refuse_if("policy", |policy| !policy.is_empty(), UNRESTRICTED);
}

const RESTRICTED: &str = "the URLs of layers and the platforms of indexes can't be restricted; remove \
     `manifests` (with `incomplete: allow` in an item of `hosted`, an index may lack manifests)";
const UNRESTRICTED: &str = "every kind of content can be pushed; remove it";

/// Whether `validation` asks for more than that manifests are checked, which they always are.
fn restricts_manifests(validation: &Node) -> bool {
    let is_not = |node: &Node, words: &[&str]| match &node.value {
        Value::Scalar(text) => !words.contains(&text.as_str()),
        Value::Null => false,
        Value::List(_) | Value::Map(_) => !node.is_empty(),
    };
    let Some(manifests) = validation.get("manifests") else {
        // A variable may be one of a key below.
        let is_map = matches!(validation.value, Value::Map(_));
        return !is_map && is_not(validation, &["", "true", "false"]);
    };
    let indexes = manifests.get("indexes");
    let platforms = indexes.and_then(|indexes| indexes.get("platforms"));
    let urls = manifests.get("urls");
    platforms.is_some_and(|platforms| is_not(platforms, &["", "all"]))
        || urls.is_some_and(|urls| !urls.is_empty())
}

/// Reads the section.
pub(super) fn read(root: &Section<'_>, proxy: &Proxy, defaults: PushDefaults) -> Vec<HostedSpace> {
    let mut names: Vec<String> = Vec::new();
    let spaces = root.sections("hosted", |section| {
        let space = space(section, proxy, defaults);
        if names.contains(&space.name) {
            section.reject("name", format_args!("is {}, as another one's", space.name));
        }
        names.push(space.name.clone());
        space
    });
    if proxy.hosted_only && spaces.is_empty() {
        let message = "`proxy.remoteurl` is none, but nothing is hosted; write `hosted`, such as \
                       [{name: ci, repositories: [\"ci/**\"]}]";
        root.problem_at("proxy.remoteurl", message.to_owned());
    }
    spaces
}

fn space(section: &Section<'_>, proxy: &Proxy, defaults: PushDefaults) -> HostedSpace {
    // In the order in which they are printed.
    let name = name(section);
    let repositories = repositories(section, proxy);
    let (uploads_ttl, uploads_max) = section.section("uploads", |uploads| {
        let ttl = defaults.uploads_ttl.unwrap_or(DEFAULT_UPLOADS_TTL);
        (
            time(uploads, "ttl", ttl),
            uploads.number("max", 1..=MAX_UPLOADS, DEFAULT_UPLOADS_MAX),
        )
    });
    let (keep_newest, keep_tags) = section.section("keep", |keep| {
        (
            keep.number("newest", 0..=MAX_NEWEST, 0),
            keep.values("tags", |text, _| tags(text)),
        )
    });
    let quota = section
        .value("quota", |text| sized(text, size::bytes))
        .map(|Bytes(quota)| quota);
    let space = HostedSpace {
        name,
        repositories,
        reuse: section.bool("reuse", true),
        delete: delete(section, defaults),
        readonly: readonly(section, defaults),
        incomplete: section.choice(
            "incomplete",
            "write refuse or allow",
            &[("refuse", false), ("allow", true)],
            false,
        ),
        immutable: section.values("immutable", |text, _| tags(text)),
        mutable: section.values("mutable", |text, _| tags(text)),
        quota,
        max_blob: section.size("maxblob", DEFAULT_MAX_BLOB),
        uploads_ttl,
        uploads_max,
        grace: time(section, "grace", DEFAULT_GRACE),
        untagged: untagged(section),
        ttl: Some(section.duration("ttl", Duration::ZERO)).filter(|ttl| !ttl.is_zero()),
        keep_newest,
        keep_tags,
        evictable: section.bool("evictable", false),
        sync: section.choice(
            "sync",
            "write manifest or blob",
            &[("manifest", PushSync::Manifest), ("blob", PushSync::Blob)],
            PushSync::Manifest,
        ),
    };
    doubts(section, &space);
    space
}

/// A size, printed as sizes are written.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&size::format(self.0))
    }
}

fn sized<E: Display>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<u64, E>,
) -> Result<Bytes, String> {
    parse(text)
        .map(Bytes)
        .map_err(|error| format!("it {error}"))
}

fn name(section: &Section<'_>) -> String {
    if section.text("name").is_none() {
        section.missing("name", "one such as ci");
    }
    let name = section.value("name", |text| match text.parse::<RepoName>() {
        Ok(name) if name.components().count() == 1 => Ok(text.to_owned()),
        _ => Err("write lower-case letters and digits, separated by one of . _ -, such as ci"),
    });
    name.unwrap_or_default()
}

fn repositories(section: &Section<'_>, proxy: &Proxy) -> Vec<Pattern> {
    let mut has_items = false;
    let patterns = section.values("repositories", |text, path| {
        has_items = true;
        let pattern = rules::repository(text)?;
        doubt_pattern(section, path, &pattern, proxy);
        Ok::<_, String>(pattern)
    });
    if !section.has("repositories") {
        section.missing("repositories", "patterns such as [\"ci/**\"]");
    } else if !has_items {
        section.reject("repositories", "needs a pattern such as ci/**");
    }
    patterns
}

/// Warns of a pattern that takes repositories from an upstream.
fn doubt_pattern(section: &Section<'_>, path: &str, pattern: &Pattern, proxy: &Proxy) {
    if proxy.hosted_only {
        return;
    }
    if pattern.is_everything() {
        let reason = "covers every name: nothing is mirrored but for clients that send the \
                      upstream's name as `ns`; write a prefix such as ci/**";
        section.doubt_at(path, reason);
        return;
    }
    let text = pattern.to_string();
    let first: Option<Pattern> = text.split('/').next().and_then(|first| first.parse().ok());
    let covers = |name: &str| {
        text.contains('/') && first.as_ref().is_some_and(|first| first.matches(name))
            || pattern.matches(&format!("{name}/x"))
    };
    for upstream in proxy.all_upstreams() {
        let mut names = std::iter::once(&upstream.name).chain(&upstream.aliases);
        if let Some(name) = names.find(|name| covers(name)) {
            section.doubt_at(
                path,
                format_args!(
                    "covers the upstream's name {name}: such repositories aren't mirrored"
                ),
            );
            return;
        }
    }
    let hub = proxy.all_upstreams().any(|upstream| upstream.is_docker_hub);
    if hub && (pattern.matches(OFFICIAL) || text.starts_with("library/")) {
        let reason = "covers library/: Docker Hub's official images aren't mirrored";
        section.doubt_at(path, reason);
    }
}

/// A pattern of tags.
fn tags(text: &str) -> Result<Pattern, &'static str> {
    let of_tags = |byte: u8| byte.is_ascii_alphanumeric() || b"._*-".contains(&byte);
    let pattern = text.parse().ok();
    pattern
        .filter(|_| text.bytes().all(of_tags))
        .ok_or("write a tag of letters, digits and . _ -, or * for any of them, such as v*")
}

/// A time that isn't 0.
fn time(section: &Section<'_>, key: &'static str, default: Duration) -> Duration {
    let time = section.duration(key, default);
    if time.is_zero() {
        section.reject(key, "must be more than 0");
    } else if time < SHORT {
        let shown = duration::format(time);
        section.doubt(
            key,
            format_args!("is only {shown}: it may end what a client is still pushing"),
        );
    }
    time
}

fn delete(section: &Section<'_>, defaults: PushDefaults) -> bool {
    let delete = section.bool("delete", defaults.delete.unwrap_or(true));
    if delete && defaults.delete == Some(false) {
        section.reject(
            "delete",
            "contradicts `storage.delete.enabled`, which is false",
        );
    }
    delete
}

fn readonly(section: &Section<'_>, defaults: PushDefaults) -> bool {
    let readonly = section.bool("readonly", defaults.readonly);
    if !readonly && defaults.readonly {
        section.reject(
            "readonly",
            "contradicts `storage.maintenance.readonly.enabled`, which is true",
        );
    }
    readonly
}

/// `keep`, or a time.
fn untagged(section: &Section<'_>) -> Option<Duration> {
    if section.text("untagged").is_none_or(|text| text == "keep") {
        section.print("untagged", "keep");
        return None;
    }
    let time = section.parsed("untagged", |text| match duration::parse(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("write keep, or a time such as 30days"),
    })?;
    section.print("untagged", duration::format(time));
    Some(time)
}

fn doubts(section: &Section<'_>, space: &HostedSpace) {
    for (key, value) in [("maxblob", Some(space.max_blob)), ("quota", space.quota)] {
        if value == Some(0) {
            section.reject(key, "must be more than 0");
        }
    }
    if let Some(quota) = space.quota
        && section.text("maxblob").is_some()
        && space.max_blob > quota
    {
        section.doubt("maxblob", "has no effect: it is more than `quota`");
    }
    if !space.mutable.is_empty() && space.immutable.is_empty() {
        section.doubt("mutable", "has no effect: no tag is `immutable`");
    }
}
