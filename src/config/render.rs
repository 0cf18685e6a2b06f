//! The effective configuration as a file that would give it.

use serde_yaml::{Mapping, Value};

use super::duration::format;
use super::size;
use super::{
    Config, ConnectionLimits, Http, Limits, Listen, Log, LogFormat, MinFree, OnAbandon, Proxy,
    Storage, TtlMode, Upstream,
};

/// What stands for a password.
const HIDDEN: &str = "<hidden>";

/// Writes a configuration as YAML, every key with its value in effect and passwords hidden.
pub fn render(config: &Config) -> String {
    let root = map([
        ("version", Some("0.1".into())),
        ("log", Some(log(&config.log))),
        ("storage", Some(storage(&config.storage, &config.limits))),
        ("http", Some(http(&config.http))),
        ("proxy", Some(proxy(&config.proxy))),
    ]);
    // Maps of texts can always be written; were it not so, the reader should see why.
    serde_yaml::to_string(&root).unwrap_or_else(|error| format!("# {error}\n"))
}

/// A map of what is there.
fn map<const N: usize>(entries: [(&str, Option<Value>); N]) -> Value {
    let entries = entries
        .into_iter()
        .filter_map(|(key, value)| Some((key.into(), value?)));
    Value::Mapping(entries.collect::<Mapping>())
}

fn log(log: &Log) -> Value {
    let format = match log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let fields = log.fields.iter();
    let fields: Mapping = fields
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect();
    map([
        (
            "level",
            Some(log.level.as_str().to_ascii_lowercase().into()),
        ),
        ("formatter", Some(format.into())),
        ("fields", Some(fields.into())),
        (
            "accesslog",
            Some(map([("disabled", Some((!log.access).into()))])),
        ),
    ])
}

fn storage(storage: &Storage, limits: &Limits) -> Value {
    let (driver, parameters) = match storage {
        Storage::Memory => ("inmemory", map([])),
        Storage::Filesystem { root, mode } => {
            let root = root.to_string_lossy().into_owned();
            let mode = mode.map(|mode| format!("0{mode:o}").into());
            let keys = [("rootdirectory", Some(root.into())), ("mode", mode)];
            ("filesystem", map(keys))
        }
    };
    let interval = limits.scrub.map(|scrub| scrub.interval).unwrap_or_default();
    let scrub = map([
        ("interval", Some(format(interval).into())),
        (
            "rate",
            limits.scrub.map(|scrub| size::format(scrub.rate).into()),
        ),
    ]);
    map([
        (driver, Some(parameters)),
        (
            "maxsize",
            limits.max_size.map(|limit| limit.to_string().into()),
        ),
        (
            "minfree",
            match limits.min_free {
                MinFree::Default => None,
                MinFree::Off => (*storage != Storage::Memory).then(|| "0".into()),
                MinFree::Limit(limit) => Some(limit.to_string().into()),
            },
        ),
        ("scrub", Some(scrub)),
    ])
}

fn http(http: &Http) -> Value {
    let net = match http.listen {
        Listen::Tcp(_) => "tcp",
        Listen::Unix(_) => "unix",
    };
    let mut headers = Mapping::new();
    for name in http.headers.keys() {
        let values = http.headers.get_all(name).iter();
        let values: Vec<Value> = values
            .map(|value| {
                String::from_utf8_lossy(value.as_bytes())
                    .into_owned()
                    .into()
            })
            .collect();
        headers.insert(name.as_str().into(), values.into());
    }
    let debug = http.debug.as_ref().map(|debug| {
        let path = debug.metrics_path.as_deref();
        let prometheus = map([
            ("enabled", Some(path.is_some().into())),
            ("path", path.map(Into::into)),
        ]);
        map([
            ("addr", Some(debug.listen.to_string().into())),
            ("prometheus", Some(prometheus)),
        ])
    });
    let ConnectionLimits { total, per_address } = http.limits;
    let limits = map([
        ("connections", total.map(Into::into)),
        ("peraddress", Some(per_address.unwrap_or(0).into())),
    ]);
    map([
        ("addr", Some(http.listen.to_string().into())),
        ("net", Some(net.into())),
        ("prefix", Some(http.prefix.as_str().into())),
        ("host", http.host.as_ref().map(|host| host.as_str().into())),
        ("relativeurls", Some(http.relative_urls.into())),
        ("draintimeout", Some(format(http.drain_timeout).into())),
        ("headers", Some(headers.into())),
        (
            "http2",
            Some(map([("disabled", Some((!http.http2).into()))])),
        ),
        ("limits", Some(limits)),
        ("debug", debug),
    ])
}

fn proxy(proxy: &Proxy) -> Value {
    let mut section = Mapping::new();
    section.extend(upstream(&proxy.default));
    let timeouts = &proxy.timeouts;
    let mode = match proxy.ttl_mode {
        TtlMode::Sliding => "sliding",
        TtlMode::Fixed => "fixed",
    };
    // The upstreams' own are among them: this is the order in which they count.
    let rules = proxy.ttl_rules.iter().map(|rule| {
        map([
            ("repository", Some(rule.pattern.as_str().into())),
            ("ttl", Some(format(rule.ttl.unwrap_or_default()).into())),
        ])
    });
    let pins = proxy.pins.iter().map(|pin| pin.as_str().into());
    let own = map([
        ("ttl", Some(format(proxy.ttl.unwrap_or_default()).into())),
        ("ttlmode", Some(mode.into())),
        ("ttls", Some(rules.collect::<Vec<Value>>().into())),
        ("pins", Some(pins.collect::<Vec<Value>>().into())),
        (
            "tags",
            Some(map([("ttl", Some(format(proxy.tags_ttl).into()))])),
        ),
        ("connecttimeout", Some(format(timeouts.connect).into())),
        ("headertimeout", Some(format(timeouts.header).into())),
        ("stalltimeout", Some(format(timeouts.stall).into())),
    ]);
    for part in [own, fetch(proxy)] {
        if let Value::Mapping(part) = part {
            section.extend(part);
        }
    }
    let upstreams = proxy.upstreams.iter().map(|named| {
        let mut section = Mapping::new();
        section.insert("name".into(), named.name.as_str().into());
        section.extend(upstream(named));
        Value::Mapping(section)
    });
    section.insert("upstreams".into(), upstreams.collect::<Vec<_>>().into());
    section.into()
}

/// How blobs are downloaded.
fn fetch(proxy: &Proxy) -> Value {
    let segments = map([
        (
            "minsize",
            Some(size::format(proxy.segments.min_size).into()),
        ),
        ("count", Some(proxy.segments.count.into())),
        ("perblob", Some(proxy.segments.per_blob.into())),
    ]);
    let streams = map([
        ("total", Some(proxy.streams.total.into())),
        ("perupstream", Some(proxy.streams.per_upstream.into())),
    ]);
    let on_abandon = match proxy.on_abandon {
        OnAbandon::Finish => Some("finish"),
        OnAbandon::Pause => Some("pause"),
        OnAbandon::Auto => None,
    };
    let rules = proxy.range_rules.iter().map(|rule| {
        map([
            ("repository", Some(rule.pattern.as_str().into())),
            ("ranges", Some(rule.ranges.as_str().into())),
        ])
    });
    map([
        ("segments", Some(segments)),
        ("streams", Some(streams)),
        (
            "prefetch",
            Some(map([
                ("downloads", Some(proxy.prefetch.downloads.into())),
                (
                    "maxsize",
                    Some(size::format(proxy.prefetch.max_size).into()),
                ),
            ])),
        ),
        (
            "maxblobsize",
            Some(size::format(proxy.max_blob_size).into()),
        ),
        ("minspeed", Some(size::format(proxy.min_speed).into())),
        ("onabandon", on_abandon.map(Into::into)),
        ("ranges", Some(proxy.ranges.as_str().into())),
        ("rangerules", Some(rules.collect::<Vec<Value>>().into())),
        ("fillafter", Some(format!("{}%", proxy.fill_after).into())),
    ])
}

fn upstream(upstream: &Upstream) -> Mapping {
    let credentials = upstream.credentials.as_ref();
    let ca = upstream.ca.as_ref();
    let aliases = upstream.aliases.iter();
    let redirects = upstream.redirects.iter();
    let redirects: Vec<Value> = redirects.map(|one| one.to_string().into()).collect();
    let section = map([
        ("remoteurl", Some(upstream.url.as_str().into())),
        (
            "username",
            credentials.map(|credentials| credentials.username.as_str().into()),
        ),
        ("password", credentials.map(|_| HIDDEN.into())),
        ("ca", ca.map(|ca| ca.to_string_lossy().into_owned().into())),
        ("insecure", Some(upstream.insecure.into())),
        ("plainhttp", Some(upstream.plain_http.into())),
        (
            "realm",
            upstream.realm.as_ref().map(|realm| realm.as_str().into()),
        ),
        (
            "scope",
            upstream.scope.as_ref().map(|scope| scope.as_str().into()),
        ),
        ("redirects", Some(redirects.into())),
        (
            "aliases",
            Some(
                aliases
                    .map(|alias| alias.as_str().into())
                    .collect::<Vec<Value>>()
                    .into(),
            ),
        ),
    ]);
    match section {
        Value::Mapping(section) => section,
        _ => Mapping::new(),
    }
}
