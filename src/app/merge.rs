//! Which settings of a changed configuration take effect while the mirror runs, and which keep their old
//! value until a restart.

use std::collections::BTreeMap;

use crate::config::{Config, Difference, HostedSpace, Http, Log, Proxy, Storage};
use crate::oci::Pattern;

/// Keys that keep their value until a restart, with everything below them: sockets and what they are
/// bound with, the data directory, what the log is written with, and the collector of traces.
const FIXED: &[&str] = &[
    "health",
    "http.addr",
    "http.debug",
    "http.http2",
    "http.listeners",
    "http.net",
    "http.tls",
    "log.audit",
    "log.fields",
    "log.formatter",
    "replicas",
    "storage.filesystem",
    "storage.inmemory",
    "tracing",
];

/// Further such keys: how the bucket is reached and used.
const BUCKETS: &[&str] = &[
    "storage.azure",
    "storage.gcs",
    "storage.redirect",
    "storage.s3",
    "storage.s3aws",
    "storage.shared",
];

/// Keys of `proxy` that say nothing of an upstream. All others belong to the default one.
const NOT_OF_UPSTREAMS: &[&str] = &[
    "connecttimeout",
    "fillafter",
    "headertimeout",
    "keepfresh",
    "maxblobsize",
    "minspeed",
    "offline",
    "negativettl",
    "onabandon",
    "pins",
    "prefetch",
    "rangerules",
    "ranges",
    "segments",
    "stalltimeout",
    "streams",
    "tags",
    "ttl",
    "ttlmode",
    "ttls",
];

/// What a changed configuration comes to in a running mirror.
#[derive(Debug)]
pub(super) struct Merged {
    /// The configuration to run with: the new one, with the old values of what can't change.
    pub(super) config: Config,
    pub(super) applied: Vec<Difference>,
    pub(super) restart: Vec<Difference>,
}

/// The names and URLs of the upstreams; the default one's name is empty.
pub(super) fn origins(config: &Config) -> BTreeMap<String, String> {
    let named = config.proxy.upstreams.iter();
    let named = named.map(|upstream| (upstream.name.clone(), upstream.url.to_string()));
    let default = (String::new(), config.proxy.default.url.to_string());
    named.chain([default]).collect()
}

/// The new value where it can be applied, else the old one.
fn new_if<T: Clone>(is_applied: bool, new: T, old: &T) -> T {
    if is_applied { new } else { old.clone() }
}

impl Merged {
    /// `keeps_upstreams`: the upstreams stay the old ones.
    pub(super) fn new(old: &Config, new: Config, keeps_upstreams: bool) -> Self {
        let keeps_storage = same_driver(&old.storage, &new.storage);
        let keeps_spaces = spaces(&old.hosted).eq(spaces(&new.hosted));
        let is_fixed = |difference: &Difference| {
            let key = difference.key.as_str();
            let mut fixed = FIXED.iter().chain(BUCKETS);
            fixed.any(|fixed| is_below(key, fixed))
                || (!keeps_storage && is_below(key, "storage"))
                || (!keeps_spaces && is_below(key, "hosted"))
                || (keeps_upstreams && is_of_upstream(key))
        };
        let differences = new.printed.differences(&old.printed);
        let of_upstreams = secrets_of_upstreams(old, &new, &differences);
        let of_fixed = secrets_of_fixed(old, &new, &differences);
        let (mut restart, mut applied): (Vec<_>, Vec<_>) =
            differences.into_iter().partition(is_fixed);
        if keeps_upstreams {
            restart.extend(of_upstreams);
        } else {
            applied.extend(of_upstreams);
        }
        restart.extend(of_fixed);
        let mut printed = new.printed.clone();
        for kept in &restart {
            printed.revert(kept);
        }
        // No pattern and no value leaves out a field: a new one doesn't compile before somebody has
        // decided whether it is applied or kept.
        let Config {
            log,
            tracing: _,
            storage: _,
            bucket: _,
            limits,
            http,
            health: _,
            auth,
            proxy,
            access,
            hosted,
            replicas: _,
            printed: _,
        } = new;
        let config = Config {
            log: self::log(old, log),
            tracing: old.tracing.clone(),
            storage: old.storage.clone(),
            bucket: old.bucket.clone(),
            limits: new_if(keeps_storage, limits, &old.limits),
            http: self::http(old, http),
            health: old.health.clone(),
            auth,
            proxy: self::proxy(old, proxy, keeps_upstreams),
            access,
            hosted: new_if(keeps_spaces, hosted, &old.hosted),
            replicas: old.replicas.clone(),
            printed,
        };
        Self {
            config,
            applied,
            restart,
        }
    }
}

fn log(old: &Config, new: Log) -> Log {
    let Log {
        level,
        levels,
        access,
        format: _,
        fields: _,
        audit: _,
    } = new;
    Log {
        level,
        levels,
        access,
        ..old.log.clone()
    }
}

fn http(old: &Config, new: Http) -> Http {
    let Http {
        listen: _,
        tls: _,
        listeners: _,
        http2: _,
        debug: _,
        prefix,
        host,
        aliases,
        relative_urls,
        headers,
        drain_timeout,
        shutdown_delay,
        limits,
        trusted_proxies,
    } = new;
    Http {
        prefix,
        host,
        aliases,
        relative_urls,
        headers,
        drain_timeout,
        shutdown_delay,
        limits,
        trusted_proxies,
        ..old.http.clone()
    }
}

fn proxy(old: &Config, new: Proxy, keeps_upstreams: bool) -> Proxy {
    if keeps_upstreams {
        let Proxy {
            default,
            hosted_only,
            upstreams,
            ..
        } = old.proxy.clone();
        return Proxy {
            default,
            hosted_only,
            upstreams,
            ..new
        };
    }
    new
}

/// What says which repositories are hosted, and by whom: content is stored by that.
fn spaces(hosted: &[HostedSpace]) -> impl Iterator<Item = (&str, &[Pattern])> {
    let spaces = hosted.iter();
    spaces.map(|space| (space.name.as_str(), space.repositories.as_slice()))
}

fn same_driver(old: &Storage, new: &Storage) -> bool {
    std::mem::discriminant(old) == std::mem::discriminant(new)
}

fn is_below(key: &str, fixed: &str) -> bool {
    let rest = key.strip_prefix(fixed);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn is_of_upstream(key: &str) -> bool {
    let Some(key) = key.strip_prefix("proxy.") else {
        return false;
    };
    !NOT_OF_UPSTREAMS.iter().any(|other| is_below(key, other))
}

/// The upstreams in which only a secret differs, which isn't printed.
fn secrets_of_upstreams(old: &Config, new: &Config, shown: &[Difference]) -> Vec<Difference> {
    let named = old.proxy.upstreams.iter();
    let before: BTreeMap<&str, _> = named
        .map(|upstream| (upstream.name.as_str(), upstream))
        .collect();
    let named = new.proxy.upstreams.iter().filter_map(|upstream| {
        let before = before.get(upstream.name.as_str())?;
        let key = format!("proxy.upstreams[{}]", upstream.name);
        (upstream != *before).then_some(key)
    });
    let default = (old.proxy.default != new.proxy.default).then(|| "proxy".to_owned());
    let is_shown = |key: &String| {
        let mut shown = shown.iter().map(|difference| difference.key.as_str());
        match key.as_str() {
            "proxy" => shown.any(|key| is_of_upstream(key) && !is_below(key, "proxy.upstreams")),
            key => shown.any(|shown| is_below(shown, key)),
        }
    };
    let changed = default.into_iter().chain(named);
    let hidden = changed.filter(|key| !is_shown(key));
    hidden.map(|key| secret(&key)).collect()
}

/// The sections with secrets that need a restart and in which nothing else differs.
fn secrets_of_fixed(old: &Config, new: &Config, shown: &[Difference]) -> Vec<Difference> {
    let changed = [
        ("health", old.health != new.health),
        ("replicas", old.replicas != new.replicas),
        ("tracing", old.tracing != new.tracing),
    ];
    let is_shown = |section: &str| shown.iter().any(|shown| is_below(&shown.key, section));
    let changed = changed.into_iter().filter(|(_, differs)| *differs);
    let hidden = changed.filter(|(section, _)| !is_shown(section));
    let mut hidden: Vec<_> = hidden.map(|(section, _)| secret(section)).collect();
    if let Some(bucket) = &new.bucket
        && old.bucket != new.bucket
        && !BUCKETS.iter().any(|section| is_shown(section))
    {
        hidden.push(secret(&format!("storage.{}", bucket.store.driver())));
    }
    hidden
}

fn secret(key: &str) -> Difference {
    Difference {
        key: format!("{key}: a secret"),
        before: None,
        after: None,
    }
}

#[cfg(test)]
mod tests;
