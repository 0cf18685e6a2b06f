//! The `proxy` section: the upstreams, and how long their content and tags are cached. The file
//! `upstream` reads what the upstreams have in common, `rules` the patterns and `download` how
//! blobs are downloaded.

use std::time::Duration;

use serde::Serialize;

use crate::oci::{ImagePattern, RepoName};

use super::download::{self, OnAbandon, Prefetch, RangeMode, Segments, Streams};
use super::print;
use super::rules::{self, RangeRule, TtlRule};
use super::section::Section;
use super::upstream::{self, HUB_NAME, Upstream, authority, hub, is_hub};

/// The reference registry's default.
const DEFAULT_TTL: Duration = Duration::from_hours(7 * 24);
const DEFAULT_TAGS_TTL: Duration = Duration::from_mins(1);

/// The upstreams, and how their content is cached.
#[derive(Debug, Clone, Serialize)]
pub struct Proxy {
    /// Asked for all names that belong to no other upstream.
    #[serde(flatten)]
    pub default: Upstream,
    /// No two upstreams share a name or alias, the default one included.
    #[serde(serialize_with = "print::upstreams")]
    pub upstreams: Vec<Upstream>,
    /// How long blobs and manifests are cached where no rule matches; `None` is forever.
    #[serde(serialize_with = "print::ttl")]
    pub ttl: Option<Duration>,
    #[serde(rename = "ttlmode")]
    pub ttl_mode: TtlMode,
    /// The first match counts. The upstreams' own rules come last, as `<name>/**`.
    #[serde(rename = "ttls")]
    pub ttl_rules: Vec<TtlRule>,
    /// Images that are never evicted.
    #[serde(serialize_with = "print::texts")]
    pub pins: Vec<ImagePattern>,
    /// How long a tag's digest counts as fresh, without a request to the upstream; 0 asks each
    /// time.
    #[serde(rename = "tags", serialize_with = "print::tags")]
    pub tags_ttl: Duration,
    #[serde(flatten)]
    pub timeouts: Timeouts,
    pub segments: Segments,
    pub streams: Streams,
    /// Bytes of the largest blob that is cached; never 0. Larger ones pass through.
    #[serde(rename = "maxblobsize", serialize_with = "print::size")]
    pub max_blob_size: u64,
    pub prefetch: Prefetch,
    #[serde(rename = "onabandon", skip_serializing_if = "print::is_auto")]
    pub on_abandon: OnAbandon,
    /// Where no rule matches.
    pub ranges: RangeMode,
    /// The first match counts.
    #[serde(rename = "rangerules")]
    pub range_rules: Vec<RangeRule>,
    /// Percent of a blob, 1 to 100: once clients have asked for this much of it in ranges that were
    /// passed through, all of it is downloaded.
    #[serde(rename = "fillafter", serialize_with = "print::percent")]
    pub fill_after: u8,
}

/// The start of the time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TtlMode {
    /// The last use.
    #[default]
    Sliding,
    /// The time at which the entry was cached.
    Fixed,
}

/// Limits of the waits for an upstream. No duration is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// For a connection, TLS included.
    #[serde(rename = "connecttimeout", serialize_with = "print::duration")]
    pub connect: Duration,
    /// For the header of a response, connecting included; and again for all of a small body.
    #[serde(rename = "headertimeout", serialize_with = "print::duration")]
    pub header: Duration,
    /// For the next bytes of a blob. A blob as a whole has no time limit.
    #[serde(rename = "stalltimeout", serialize_with = "print::duration")]
    pub stall: Duration,
    /// The lowest throughput of a blob in bytes per second, on average over a minute of reading;
    /// a slower transfer is ended. 0 permits any.
    #[serde(rename = "minspeed", serialize_with = "print::size")]
    pub min_speed: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            header: Duration::from_secs(30),
            stall: Duration::from_mins(1),
            min_speed: 1 << 10,
        }
    }
}

pub(super) fn read(proxy: &Section<'_>, from_file: bool) -> Proxy {
    if from_file && proxy.text("remoteurl").is_none() {
        let message = "`proxy.remoteurl` is not set: the default upstream is Docker Hub";
        proxy.warning("", message);
    }
    let (default, upstreams) = upstreams(proxy);
    let percent = |text| match super::size::limit(text, 1..=100) {
        Ok(super::SizeLimit::Percent(percent)) => Ok(percent),
        _ => Err("write a whole percentage from 1% to 100%, such as 50%"),
    };
    Proxy {
        ttl: ttl(proxy),
        ttl_mode: ttl_mode(proxy),
        ttl_rules: rules::ttl_rules(proxy, &default),
        pins: rules::pins(proxy, &default),
        range_rules: rules::range_rules(proxy, &default),
        default,
        upstreams,
        tags_ttl: proxy.section("tags").duration("ttl", DEFAULT_TAGS_TTL),
        timeouts: timeouts(proxy),
        segments: download::segments(&proxy.section("segments")),
        streams: download::streams(&proxy.section("streams")),
        max_blob_size: download::max_blob_size(proxy),
        prefetch: download::prefetch(&proxy.section("prefetch")),
        on_abandon: download::on_abandon(proxy),
        ranges: download::ranges(proxy),
        fill_after: proxy.value("fillafter", percent).unwrap_or(50),
    }
}

/// The time to live at `ttl`; 0 is forever.
pub(super) fn ttl(section: &Section<'_>) -> Option<Duration> {
    let ttl = section.duration("ttl", DEFAULT_TTL);
    Some(ttl).filter(|ttl| !ttl.is_zero())
}

fn ttl_mode(proxy: &Section<'_>) -> TtlMode {
    let modes = [("sliding", TtlMode::Sliding), ("fixed", TtlMode::Fixed)];
    let mode = proxy.choice("ttlmode", "write sliding or fixed", &modes);
    mode.unwrap_or_default()
}

fn timeouts(proxy: &Section<'_>) -> Timeouts {
    // Without a limit, a silent upstream would hold clients forever.
    let timeout = |key, default| {
        let timeout = proxy.duration(key, default);
        if timeout.is_zero() {
            proxy.reject(key, "must be more than 0");
        }
        timeout
    };
    let default = Timeouts::default();
    Timeouts {
        connect: timeout("connecttimeout", default.connect),
        header: timeout("headertimeout", default.header),
        stall: timeout("stalltimeout", default.stall),
        min_speed: proxy.size("minspeed", default.min_speed),
    }
}

/// The default upstream and the named ones.
fn upstreams(proxy: &Section<'_>) -> (Upstream, Vec<Upstream>) {
    let url = upstream::remote_url(proxy).unwrap_or_else(hub);
    let name = if is_hub(&url) {
        HUB_NAME.to_owned()
    } else {
        authority(&url)
    };
    let default = upstream::read(proxy, name, url);
    let named = proxy.sections("upstreams").into_iter();
    let named: Vec<_> = named
        .filter_map(|section| Some((named_upstream(&section)?, section)))
        .collect();
    conflicts(&default, proxy, &named);
    let named = named.into_iter().map(|(upstream, _)| upstream);
    (default, named.collect())
}

/// An item of `proxy.upstreams`.
fn named_upstream(section: &Section<'_>) -> Option<Upstream> {
    let name = name(section);
    if section.text("remoteurl").is_none() {
        section.missing("remoteurl", "the upstream's URL");
    }
    let url = upstream::remote_url(section);
    // Even without a name or URL, the other keys are checked.
    let usable = name.is_some() && url.is_some();
    let upstream = upstream::read(section, name.unwrap_or_default(), url.unwrap_or_else(hub));
    usable.then_some(upstream)
}

fn name(section: &Section<'_>) -> Option<String> {
    if section.text("name").is_none() {
        section.missing("name", "one such as ghcr.io");
    }
    let name = section.value("name", |text| match text.parse::<RepoName>() {
        Ok(name) if name.components().count() == 1 => Ok(text),
        _ => Err(
            "write lower-case letters and digits, separated by one of . _ - and without a slash \
             or port, such as ghcr.io",
        ),
    })?;
    if !name.contains('.') {
        section.doubt(
            "name",
            format_args!(
                "has no dot: the default upstream's repositories under `{name}/` share their \
                 place in the store with this upstream's"
            ),
        );
    }
    Some(name.to_owned())
}

/// No two upstreams may answer to one name: chance would decide which of them is asked.
fn conflicts(default: &Upstream, proxy: &Section<'_>, named: &[(Upstream, Section<'_>)]) {
    let named = named.iter().map(|(upstream, section)| (upstream, section));
    let all: Vec<_> = std::iter::once((default, proxy)).chain(named).collect();
    for (position, (later, section)) in all.iter().enumerate() {
        for (earlier, other) in all.iter().take(position) {
            let mut aliases = later.aliases.iter();
            if later.name == earlier.name {
                let (one, other) = (other.path(""), section.path(""));
                let message = format!("`{one}` and `{other}` are both named `{}`", later.name);
                section.problem("", message);
            } else if let Some(alias) = aliases.find(|alias| earlier.aliases.contains(alias)) {
                let message = format!(
                    "the upstreams `{}` and `{}` both answer to `{alias}`; give it to one",
                    earlier.name, later.name
                );
                section.problem("", message);
            }
        }
    }
}
