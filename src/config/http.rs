//! The `http` section.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use url::Url;

use super::address::Listen;
use super::print;
use super::section::Section;

const DEFAULT_LISTEN: &str = ":5000";
const DEFAULT_METRICS: &str = "/metrics";
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
const CONNECTIONS: RangeInclusive<usize> = 1..=1_000_000;
/// 0 is no limit.
const PER_ADDRESS: RangeInclusive<usize> = 0..=1_000_000;

/// Headers that frame a response: a fixed value would break it.
const FRAMING: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
];

/// The server that clients pull from.
#[derive(Debug, Clone, Serialize)]
pub struct Http {
    #[serde(flatten)]
    pub listen: Listen,
    /// The path before `/v2/`: empty, or `/x` without a slash at its end.
    pub prefix: String,
    /// The URL at which clients reach the server, if it isn't what they write in `Host`.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "print::option"
    )]
    pub host: Option<Url>,
    #[serde(rename = "relativeurls")]
    pub relative_urls: bool,
    /// Added to every response.
    #[serde(serialize_with = "print::headers")]
    pub headers: HeaderMap,
    /// How long requests in flight may continue after a stop signal; 0 ends them at once.
    #[serde(rename = "draintimeout", serialize_with = "print::duration")]
    pub drain_timeout: Duration,
    /// Whether clients may use HTTP/2.
    #[serde(serialize_with = "print::disabled")]
    pub http2: bool,
    pub limits: ConnectionLimits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug: Option<Debug>,
}

/// Limits of the client connections that are open at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ConnectionLimits {
    /// In total; never 0. `None` derives the number from the process's file descriptors.
    #[serde(rename = "connections", skip_serializing_if = "Option::is_none")]
    pub total: Option<usize>,
    /// From one IPv4 address or one IPv6 /64 network; never 0. `None` is no limit.
    #[serde(rename = "peraddress", serialize_with = "print::or_zero")]
    pub per_address: Option<usize>,
}

/// The listener for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Debug {
    #[serde(rename = "addr", serialize_with = "print::text")]
    pub listen: Listen,
    /// The path of the metrics, which starts with `/`; `None` serves none.
    #[serde(rename = "prometheus", serialize_with = "print::metrics")]
    pub metrics_path: Option<String>,
}

pub(super) fn read(http: &Section<'_>) -> Http {
    Http {
        listen: listen(http),
        prefix: http.value("prefix", prefix).unwrap_or_default(),
        host: http.value("host", |text| {
            web_url(text).ok_or("write a URL such as https://mirror.example")
        }),
        relative_urls: http.bool("relativeurls", false),
        headers: headers(&http.section("headers")),
        drain_timeout: http.duration("draintimeout", DEFAULT_DRAIN),
        http2: !http.section("http2").bool("disabled", false),
        limits: limits(&http.section("limits")),
        debug: debug(&http.section("debug")),
    }
}

/// A URL with scheme `http` or `https` and a host.
pub(super) fn web_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

fn limits(limits: &Section<'_>) -> ConnectionLimits {
    let total = limits.text("connections").is_some();
    let per_address = limits.number("peraddress", PER_ADDRESS, 0);
    ConnectionLimits {
        total: total.then(|| limits.number("connections", CONNECTIONS, 1)),
        per_address: Some(per_address).filter(|limit| *limit > 0),
    }
}

fn listen(http: &Section<'_>) -> Listen {
    let networks = [("tcp", false), ("unix", true)];
    let is_unix = http.choice("net", "write tcp or unix", &networks);
    let listen = match (is_unix.unwrap_or(false), http.text("addr")) {
        (false, _) => tcp(http),
        (true, Some(socket)) => Some(Listen::Unix(PathBuf::from(socket))),
        (true, None) => {
            http.reject(
                "net",
                "is unix, but `http.addr` is missing; write the socket's path",
            );
            None
        }
    };
    listen.unwrap_or_else(|| Listen::Tcp(DEFAULT_LISTEN.to_owned()))
}

/// The TCP address at `addr`, if there is one.
fn tcp(section: &Section<'_>) -> Option<Listen> {
    section.value("addr", |text| {
        Listen::tcp(text).ok_or("write host:port, or :port for all interfaces")
    })
}

fn prefix(text: &str) -> Result<String, &'static str> {
    let prefix = text.trim_end_matches('/');
    // What a URL's path shows unescaped, without the segments that mean another place.
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let segment = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(plain);
    let valid = match prefix.strip_prefix('/') {
        Some(path) => path.split('/').all(segment),
        None => prefix.is_empty(),
    };
    let valid = valid.then(|| prefix.to_owned());
    valid.ok_or("write a plain path such as /mirror/")
}

fn headers(headers: &Section<'_>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for key in headers.keys() {
        let Ok(name) = HeaderName::try_from(key) else {
            headers.problem(key, format!("{key:?} is not a valid header name"));
            continue;
        };
        if FRAMING.contains(&name) {
            let message = format!("the header `{name}` is set by the server; remove it");
            headers.problem(key, message);
            continue;
        }
        let values = headers.values(key, |text, _| {
            HeaderValue::try_from(text).or(Err("write printable ASCII text"))
        });
        for value in values {
            map.append(name.clone(), value);
        }
    }
    map
}

fn debug(debug: &Section<'_>) -> Option<Debug> {
    let prometheus = debug.section("prometheus");
    let enabled = prometheus.bool("enabled", true);
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '%');
    let path = prometheus.value("path", |text| {
        let valid = text.starts_with('/') && text.chars().all(plain);
        valid.then_some(text).ok_or("write a path such as /metrics")
    });
    if debug.text("addr").is_none() {
        if prometheus.keys().next().is_some() {
            prometheus.doubt("", "has no effect: `http.debug.addr` is not set");
        }
        return None;
    }
    Some(Debug {
        listen: tcp(debug)?,
        metrics_path: enabled.then(|| path.unwrap_or(DEFAULT_METRICS).to_owned()),
    })
}
