//! The effective configuration as a file: the serializers of the types that the other files
//! declare. Each value is written as its reader reads it; passwords are hidden.

#![expect(
    clippy::ref_option,
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes each field by reference"
)]

use std::fmt::Display;
use std::time::Duration;

use http::HeaderMap;
use secrecy::SecretString;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use tracing::Level;

use super::{Config, Http, Limits, Log, OnAbandon, Proxy, Scrub, Storage, Upstream};

/// What stands for a password.
const HIDDEN: &str = "<hidden>";

/// Writes a configuration as YAML, every key with its value in effect and passwords hidden.
pub fn render(config: &Config) -> String {
    #[derive(serde::Serialize)]
    struct File<'a> {
        version: &'static str,
        log: &'a Log,
        storage: StorageSection<'a>,
        http: &'a Http,
        proxy: &'a Proxy,
    }
    #[derive(serde::Serialize)]
    struct StorageSection<'a> {
        #[serde(flatten)]
        driver: &'a Storage,
        #[serde(flatten)]
        limits: &'a Limits,
    }
    let file = File {
        version: super::VERSION,
        log: &config.log,
        storage: StorageSection {
            driver: &config.storage,
            limits: &config.limits,
        },
        http: &config.http,
        proxy: &config.proxy,
    };
    // Maps of texts can always be written; an error here is shown to the reader.
    serde_yaml::to_string(&file).unwrap_or_else(|error| format!("# {error}\n"))
}

type Written<S> = Result<<S as Serializer>::Ok, <S as Serializer>::Error>;

pub(super) fn text<S: Serializer>(value: &impl Display, serializer: S) -> Written<S> {
    serializer.collect_str(value)
}

pub(super) fn option<S: Serializer>(value: &Option<impl Display>, serializer: S) -> Written<S> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

pub(super) fn texts<S: Serializer>(values: &[impl Display], serializer: S) -> Written<S> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

pub(super) fn level<S: Serializer>(level: &Level, serializer: S) -> Written<S> {
    serializer.serialize_str(&level.as_str().to_ascii_lowercase())
}

pub(super) fn octal<S: Serializer>(mode: &Option<u32>, serializer: S) -> Written<S> {
    option(&mode.map(|mode| format!("0{mode:o}")), serializer)
}

pub(super) fn size<S: Serializer>(bytes: &u64, serializer: S) -> Written<S> {
    serializer.serialize_str(&super::size::format(*bytes))
}

pub(super) fn percent<S: Serializer>(percent: &u8, serializer: S) -> Written<S> {
    serializer.collect_str(&format_args!("{percent}%"))
}

pub(super) fn duration<S: Serializer>(duration: &Duration, serializer: S) -> Written<S> {
    serializer.serialize_str(&super::duration::format(*duration))
}

/// A time to live; forever is 0.
pub(super) fn ttl<S: Serializer>(ttl: &Option<Duration>, serializer: S) -> Written<S> {
    duration(&ttl.unwrap_or_default(), serializer)
}

/// A number; no limit is 0.
pub(super) fn or_zero<S: Serializer>(number: &Option<usize>, serializer: S) -> Written<S> {
    number.unwrap_or_default().serialize(serializer)
}

pub(super) fn hidden<S: Serializer>(_: &SecretString, serializer: S) -> Written<S> {
    serializer.serialize_str(HIDDEN)
}

pub(super) fn empty_map<S: Serializer>(serializer: S) -> Written<S> {
    serializer.serialize_map(Some(0))?.end()
}

/// `disabled: false` for what is enabled.
pub(super) fn disabled<S: Serializer>(enabled: &bool, serializer: S) -> Written<S> {
    serializer.collect_map([("disabled", !enabled)])
}

/// `ttl` in a map of its own.
pub(super) fn tags<S: Serializer>(ttl: &Duration, serializer: S) -> Written<S> {
    serializer.collect_map([("ttl", super::duration::format(*ttl))])
}

/// No background check has the interval 0.
pub(super) fn scrub<S: Serializer>(scrub: &Option<Scrub>, serializer: S) -> Written<S> {
    match scrub {
        Some(scrub) => scrub.serialize(serializer),
        None => serializer.collect_map([("interval", super::duration::format(Duration::ZERO))]),
    }
}

pub(super) fn metrics<S: Serializer>(path: &Option<String>, serializer: S) -> Written<S> {
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("enabled", &path.is_some())?;
    if let Some(path) = path {
        map.serialize_entry("path", path)?;
    }
    map.end()
}

/// Whether the key is left out: the automatic choice has no name.
pub(super) fn is_auto(on_abandon: &OnAbandon) -> bool {
    *on_abandon == OnAbandon::Auto
}

pub(super) fn headers<S: Serializer>(headers: &HeaderMap, serializer: S) -> Written<S> {
    serializer.collect_map(headers.keys().map(|name| {
        let values = headers.get_all(name).iter();
        let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
        (name.as_str(), values.collect::<Vec<_>>())
    }))
}

pub(super) fn upstreams<S: Serializer>(upstreams: &[Upstream], serializer: S) -> Written<S> {
    #[derive(serde::Serialize)]
    struct Named<'a> {
        name: &'a str,
        #[serde(flatten)]
        upstream: &'a Upstream,
    }
    serializer.collect_seq(upstreams.iter().map(|upstream| Named {
        name: &upstream.name,
        upstream,
    }))
}
