//! The `proxy` section: the upstreams, and how long their content and tags are cached. The file
//! `upstream` reads what the upstreams have in common, `rules` the patterns and `download` how
//! blobs are downloaded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::oci::{Digest, ImagePattern, RepoName};

use super::authorize::{Authorize, CallerAccess};
use super::download::{self, OnAbandon, Prefetch, RangeMode, Segments, Streams};
use super::endpoints;
use super::keep_fresh::{self, KeepFresh};
use super::registry_url::{HUB_NAME, authority, hosts, hub, is_hub, nowhere, remote_url};
use super::rules::{self, RangeRule, TtlRule};
use super::section::Section;
use super::tags::{self, Tags};
use super::upstream::{self, Upstream};

/// The `remoteurl` of a server that mirrors nothing, and the name of its default upstream.
const NO_UPSTREAM: &str = "none";
const DEFAULT_NEGATIVE_TTL: Duration = Duration::from_secs(10);

/// The upstreams, and how their content is cached.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Asked for all names that belong to no other upstream.
    pub default: Upstream,
    /// `remoteurl` is none: nothing is mirrored, and `default` is never asked.
    pub hosted_only: bool,
    /// No two upstreams share a name or alias, the default one included.
    pub upstreams: Vec<Upstream>,
    /// Whether no upstream is ever asked, and nothing expires.
    pub offline: bool,
    /// How long blobs and manifests are cached where no rule matches; `None` is forever.
    pub ttl: Option<Duration>,
    pub ttl_mode: TtlMode,
    /// The first match counts. The upstreams' own rules come last, as `<name>/**`.
    pub ttl_rules: Vec<TtlRule>,
    /// Images that are never evicted.
    pub pins: Vec<ImagePattern>,
    pub tags: Tags,
    /// How long a 404 or 403 of an upstream is remembered; 0: not at all.
    pub negative_ttl: Duration,
    pub keep_fresh: KeepFresh,
    pub timeouts: Timeouts,
    pub segments: Segments,
    pub streams: Streams,
    /// Bytes of the largest blob that is cached; never 0. Larger ones pass through.
    pub max_blob_size: u64,
    pub prefetch: Prefetch,
    pub on_abandon: OnAbandon,
    /// Where no rule matches.
    pub ranges: RangeMode,
    /// The first match counts.
    pub range_rules: Vec<RangeRule>,
    /// Percent of a blob, 1 to 100: once clients have asked for this much of it in ranges that were
    /// passed through, all of it is downloaded.
    pub fill_after: u8,
}

impl Proxy {
    /// Whether an upstream is asked with the accounts of callers.
    pub fn takes_logins(&self) -> bool {
        let mut all = self.upstreams.iter().chain([&self.default]);
        all.any(|upstream| upstream.caller.authorize == Authorize::Caller)
    }
}

/// The start of the time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TtlMode {
    /// The last use.
    #[default]
    Sliding,
    /// The time at which the entry was cached.
    Fixed,
}

/// Limits of the waits for an upstream. No duration is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the header of a response, connecting included; and again for all of a small body.
    pub header: Duration,
    /// For the next bytes of a blob. A blob as a whole has no time limit.
    pub stall: Duration,
    /// The lowest throughput of a blob in bytes per second, on average over a minute of reading;
    /// a slower transfer is ended. 0 permits any.
    pub min_speed: u64,
}

impl Proxy {
    /// The default upstream, if there is one, and the named ones.
    pub fn all_upstreams(&self) -> impl Iterator<Item = &Upstream> {
        let default = Some(&self.default).filter(|_| !self.hosted_only);
        default.into_iter().chain(&self.upstreams)
    }

    /// The upstream of a stored name: one whose name it begins with, else the default one.
    pub fn upstream_of(&self, stored: &RepoName) -> &Upstream {
        let first = stored.first_component();
        let mut named = self.upstreams.iter();
        let named = named.find(|upstream| Some(upstream.name.as_str()) == first);
        named.unwrap_or(&self.default)
    }

    /// A reference (`repository`, `repository:tag`, `repository@digest` or a digest) as people write
    /// it, by its stored name: `debian:12` is `library/debian:12`, and `docker.io/library/debian`
    /// is `library/debian` where Docker Hub is the default upstream.
    pub fn stored_reference(&self, reference: &str) -> String {
        let below = |upstream: &Upstream| {
            let mut aliases = upstream.aliases.iter();
            aliases.find_map(|alias| reference.strip_prefix(alias.as_str())?.strip_prefix('/'))
        };
        for upstream in &self.upstreams {
            if let Some(rest) = below(upstream) {
                return format!("{}/{rest}", upstream.name);
            }
        }
        let rest = below(&self.default).unwrap_or(reference);
        let name = rest.split([':', '@']).next().unwrap_or_default();
        let is_short = !name.contains('/') && !name.contains("**");
        if self.default.is_docker_hub && is_short && rest.parse::<Digest>().is_err() {
            return format!("library/{rest}");
        }
        rest.to_owned()
    }
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

/// `from_file` tells whether there is a file, which should name an upstream; `needs_upstream`, whether
/// that is a must.
pub(super) fn read(proxy: &Section<'_>, from_file: bool, needs_upstream: bool) -> Proxy {
    proxy.ignore(&[(
        "cachewritetimeout",
        "`proxy.stalltimeout` ends a download that makes no progress",
    )]);
    let names_default = proxy.text("remoteurl").is_some();
    if from_file && !names_default {
        let message = "`proxy.remoteurl` is not set: the default upstream is Docker Hub";
        proxy.warning("", message.to_owned());
    }
    let hosted_only = proxy
        .text("remoteurl")
        .is_some_and(|url| url == NO_UPSTREAM);
    let mut default = default_upstream(proxy, hosted_only);
    let items = proxy.sections("upstreams", |section| {
        named_upstream(section, &default.caller)
    });
    // A directory that the operator names may hold a plain registry's data, which exists nowhere
    // else. A mirror deletes what expires, so it starts there only if an upstream is named, too.
    if needs_upstream && !names_default && items.is_empty() {
        let path = "storage.filesystem.rootdirectory";
        let message = format!(
            "`{path}` names a data directory, but `proxy.remoteurl` isn't set: millpond is a mirror \
             and deletes what expires, which would empty a plain registry's directory; write the \
             upstream's URL, such as https://registry-1.docker.io for Docker Hub"
        );
        proxy.problem_at(path, message);
    }
    if hosted_only && !items.is_empty() {
        let reason = "has no effect with `proxy.remoteurl: none`; remove one of them";
        proxy.reject("upstreams", reason);
    }
    let mut named: Vec<_> = items.into_iter().flatten().collect();
    conflicts(proxy, &default, &named);
    give_hosts(proxy, &mut default, &mut named);
    let named = named.into_iter().map(|named| (named.upstream, named.rule));
    let (upstreams, rules): (Vec<_>, Vec<_>) = named.unzip();
    let offline = is_offline(proxy, upstreams.iter().chain([&default]));
    Proxy {
        offline,
        ttl: rules::ttl(proxy),
        ttl_mode: ttl_mode(proxy),
        ttl_rules: rules::ttl_rules(proxy, &default, rules.into_iter().flatten()),
        pins: rules::pins(proxy, &default),
        tags: proxy.section("tags", |tags| tags::read(tags, &default)),
        negative_ttl: proxy.duration("negativettl", DEFAULT_NEGATIVE_TTL),
        keep_fresh: proxy.section("keepfresh", |keep| keep_fresh::read(keep, &default)),
        timeouts: timeouts(proxy),
        segments: proxy.section("segments", download::segments),
        streams: proxy.section("streams", download::streams),
        max_blob_size: download::max_blob_size(proxy),
        prefetch: proxy.section("prefetch", download::prefetch),
        on_abandon: download::on_abandon(proxy),
        ranges: download::ranges(proxy),
        range_rules: rules::range_rules(proxy, &default),
        fill_after: download::fill_after(proxy),
        default,
        hosted_only,
        upstreams,
    }
}

/// Whether no upstream is asked.
fn is_offline<'a>(proxy: &Section<'_>, mut upstreams: impl Iterator<Item = &'a Upstream>) -> bool {
    let offline = proxy.bool("offline", false);
    if offline && upstreams.any(|upstream| upstream.caller.authorize == Authorize::Caller) {
        let advice =
            "needs `authorize: shared`: an upstream that isn't asked permits no caller anything";
        proxy.reject("offline", advice);
    }
    offline
}

fn ttl_mode(proxy: &Section<'_>) -> TtlMode {
    let modes = [("sliding", TtlMode::Sliding), ("fixed", TtlMode::Fixed)];
    proxy.choice(
        "ttlmode",
        "write sliding or fixed",
        &modes,
        TtlMode::default(),
    )
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

fn default_upstream(proxy: &Section<'_>, hosted_only: bool) -> Upstream {
    let url = if hosted_only {
        nowhere()
    } else {
        remote_url(proxy).unwrap_or_else(hub)
    };
    proxy.print(
        "remoteurl",
        if hosted_only {
            NO_UPSTREAM
        } else {
            url.as_str()
        },
    );
    let name = if hosted_only {
        NO_UPSTREAM.to_owned()
    } else if is_hub(&url) {
        HUB_NAME.to_owned()
    } else {
        authority(&url)
    };
    let mut upstream = upstream::read(proxy, name, url, &CallerAccess::default());
    // Its name is one of the names of its host, which another upstream may be given.
    let name = &upstream.name;
    upstream.aliases.retain(|alias| alias != name);
    endpoints::read(proxy, &mut upstream);
    upstream
}

/// An item of `proxy.upstreams`.
struct NamedUpstream {
    path: String,
    upstream: Upstream,
    /// That of its `ttl`.
    rule: Option<TtlRule>,
}

fn named_upstream(section: &Section<'_>, inherited: &CallerAccess) -> Option<NamedUpstream> {
    let name = name(section);
    if section.text("remoteurl").is_none() {
        section.missing("remoteurl", "the upstream's URL");
    }
    let url = remote_url(section);
    // Even without a name or URL, the other keys are checked.
    let usable = name.is_some() && url.is_some();
    let (name, url) = (name.unwrap_or_default(), url.unwrap_or_else(hub));
    let mut upstream = upstream::read(section, name, url, inherited);
    endpoints::read(section, &mut upstream);
    let has_ttl = section.text("ttl").is_some();
    let ttl = rules::ttl(section);
    // It is printed as a rule.
    section.print_nothing("ttl");
    let pattern = format!("{}/**", upstream.name).parse().ok();
    let rule = pattern.map(|pattern| TtlRule { pattern, ttl });
    usable.then(|| NamedUpstream {
        path: section.path(""),
        upstream,
        rule: rule.filter(|_| has_ttl),
    })
}

fn name(section: &Section<'_>) -> Option<String> {
    if section.text("name").is_none() {
        section.missing("name", "one such as ghcr.io");
    }
    let name = section.value("name", |text| match text.parse::<RepoName>() {
        Ok(name) if name.components().count() == 1 => Ok(text.to_owned()),
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
    Some(name)
}

/// Makes the host of each upstream's URL one of its aliases. Several upstreams may have the same host,
/// with different accounts: then it is an alias of the one whose name or `aliases` has it, else of the
/// first one.
fn give_hosts(proxy: &Section<'_>, default: &mut Upstream, named: &mut [NamedUpstream]) {
    let all = std::iter::once(&*default).chain(named.iter().map(|named| &named.upstream));
    let given: BTreeSet<String> = all.flat_map(|upstream| upstream.aliases.clone()).collect();
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let named = named.iter_mut();
    let named = named.map(|named| (named.path.as_str(), &mut named.upstream));
    for (path, upstream) in std::iter::once(("proxy", default)).chain(named) {
        for host in hosts(&upstream.url) {
            if given.contains(&host) {
                continue;
            }
            let owner = owners.entry(host.clone());
            let owner = owner.or_insert_with(|| upstream.name.clone());
            if *owner == upstream.name {
                upstream.aliases.push(host);
            } else if host == authority(&upstream.url) {
                let name = &upstream.name;
                let message = format!(
                    "the upstreams `{owner}` and `{name}` have the same host: `{host}` means \
                     `{owner}`, and clients select the other by its name; to change that, add \
                     `{host}` to the `aliases` of one of them"
                );
                proxy.warning_at(path, message);
            }
        }
        upstream.aliases.sort();
        upstream.aliases.dedup();
    }
}

/// No two upstreams may answer to one name: chance would decide which of them is asked. The same host
/// is shared out by [`give_hosts`].
fn conflicts(proxy: &Section<'_>, default: &Upstream, named: &[NamedUpstream]) {
    let default = ("proxy", default);
    let named = named
        .iter()
        .map(|named| (named.path.as_str(), &named.upstream));
    let all: Vec<_> = std::iter::once(default).chain(named).collect();
    for (position, (path, later)) in all.iter().enumerate() {
        for (other, earlier) in all.iter().take(position) {
            let (one, another) = (&earlier.name, &later.name);
            if one == another {
                let message = format!("`{other}` and `{path}` are both named `{one}`");
                proxy.problem_at(path, message);
            } else if let Some(alias) = shared_alias(earlier, later) {
                let message = format!(
                    "the upstreams `{one}` and `{another}` both answer to `{alias}`; give it to one"
                );
                proxy.problem_at(path, message);
            }
        }
    }
}

/// A name that two upstreams would both answer to: both were given it, or it is the host of one and was
/// given to another one elsewhere.
fn shared_alias(one: &Upstream, other: &Upstream) -> Option<String> {
    let are_at_one_host = authority(&one.url) == authority(&other.url);
    let answers_to = |upstream: &Upstream| {
        let hosts = hosts(&upstream.url).into_iter();
        let hosts = hosts.filter(|_| !are_at_one_host);
        hosts
            .chain(upstream.aliases.clone())
            .collect::<BTreeSet<_>>()
    };
    answers_to(one)
        .intersection(&answers_to(other))
        .next()
        .cloned()
}
