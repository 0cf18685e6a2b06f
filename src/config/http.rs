//! The `http` section.

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use url::Url;

use super::address::Listen;
use super::section::Section;
use super::tls::{self, Tls};

const DEFAULT_LISTEN: &str = ":5000";
const DEFAULT_METRICS: &str = "/metrics";
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
const DEFAULT_SHUTDOWN_DELAY: Duration = Duration::from_secs(2);
const MAX_SHUTDOWN_DELAY: Duration = Duration::from_mins(10);
/// Far more than a process has file descriptors.
const MAX_CONNECTIONS: usize = 1_000_000;

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
#[derive(Debug, Clone)]
pub struct Http {
    pub listen: Listen,
    pub tls: Option<Tls>,
    /// Besides `listen`.
    pub listeners: Vec<ExtraListener>,
    /// The path before `/v2/`: empty, or `/x` without a slash at its end.
    pub prefix: String,
    /// The URL at which clients reach the server, if it isn't what they write in `Host`.
    pub host: Option<Url>,
    /// Further names of the server, `host[:port]` in lower case: what clients may send as `ns`.
    pub aliases: Vec<String>,
    pub relative_urls: bool,
    /// Added to every response.
    pub headers: HeaderMap,
    /// How long requests in flight may continue after a stop signal; 0 ends them at once.
    pub drain_timeout: Duration,
    /// How long requests are still accepted after a stop signal while `/readyz` fails, if a listener
    /// for operators shows it.
    pub shutdown_delay: Duration,
    /// Whether clients may use HTTP/2.
    pub http2: bool,
    pub limits: ConnectionLimits,
    pub debug: Option<Debug>,
    /// The reverse proxies whose `Forwarded` and `X-Forwarded-*` headers count.
    pub trusted_proxies: Vec<IpNet>,
}

/// One more address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraListener {
    pub listen: Listen,
    pub tls: Option<Tls>,
    pub serves: Serves,
}

/// What a listener answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// The registry API.
    Registry,
    /// Health and metrics.
    Operators,
}

/// Limits of the client connections that are open at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// In total; never 0. `None` derives the number from the process's file descriptors.
    pub total: Option<usize>,
    /// From one IPv4 address or one IPv6 /64 network. `None` is no limit.
    pub per_address: Option<NonZeroUsize>,
}

/// The listener for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debug {
    pub listen: Listen,
    /// The path of the metrics, which starts with `/`; `None` serves none.
    pub metrics_path: Option<String>,
}

const UNSIGNED: &str =
    "the state of an upload isn't in its URL, whose id can't be guessed; remove it";

/// `hosts`: whether repositories are hosted. Then `secret` asks for something that isn't done.
pub(super) fn read(http: &Section<'_>, hosts: bool) -> Http {
    http.ignore(&[(
        "h2c",
        "HTTP/2 without TLS is governed by `http.http2.disabled`",
    )]);
    if hosts {
        http.refuse("secret", UNSIGNED);
    } else {
        http.ignore(&[("secret", UNSIGNED)]);
    }
    http.print("addr", DEFAULT_LISTEN);
    let listen = listen(http).unwrap_or_else(|| Listen::Tcp(DEFAULT_LISTEN.to_owned()));
    let prefix = http.parsed("prefix", prefix).unwrap_or_default();
    http.print("prefix", prefix.as_str());
    Http {
        tls: tls(http, &listen),
        listen,
        listeners: http
            .sections("listeners", listener)
            .into_iter()
            .flatten()
            .collect(),
        prefix,
        host: http.value("host", |text| {
            web_url(text).ok_or("write a URL such as https://mirror.example")
        }),
        aliases: http.values("aliases", |text, _| {
            super::address::alias(text).ok_or("write host or host:port")
        }),
        relative_urls: http.bool("relativeurls", false),
        headers: headers(http),
        drain_timeout: http.duration("draintimeout", DEFAULT_DRAIN),
        shutdown_delay: shutdown_delay(http),
        http2: http.section("http2", |http2| !http2.bool("disabled", false)),
        limits: http.section("limits", limits),
        debug: debug(http),
        trusted_proxies: super::address::networks(http, "trustedproxies"),
    }
}

impl Http {
    /// Whether only this machine can reach the registry API.
    pub fn is_loopback(&self) -> bool {
        let mut others = self.listeners.iter();
        self.listen.is_loopback()
            && others.all(|other| other.serves == Serves::Operators || other.listen.is_loopback())
    }

    /// Whether operators have a listener.
    pub fn has_operators(&self) -> bool {
        let mut others = self.listeners.iter();
        self.debug.is_some() || others.any(|other| other.serves == Serves::Operators)
    }

    /// The path of the metrics on listeners for operators; `None` serves none.
    pub fn metrics_path(&self) -> Option<&str> {
        let debug = self.debug.as_ref();
        debug.map_or(Some(DEFAULT_METRICS), |debug| debug.metrics_path.as_deref())
    }
}

fn shutdown_delay(http: &Section<'_>) -> Duration {
    let delay = http.duration("shutdowndelay", DEFAULT_SHUTDOWN_DELAY);
    if delay > MAX_SHUTDOWN_DELAY {
        http.reject("shutdowndelay", "must be at most 10m");
    }
    delay
}

/// A URL with scheme `http` or `https` and a host.
pub(super) fn web_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

fn limits(limits: &Section<'_>) -> ConnectionLimits {
    let total = limits.text("connections").is_some();
    ConnectionLimits {
        total: total.then(|| limits.number("connections", 1..=MAX_CONNECTIONS, 1)),
        per_address: NonZeroUsize::new(limits.number("peraddress", 0..=MAX_CONNECTIONS, 0)),
    }
}

/// The address of a listener, if it is written and valid.
fn listen(section: &Section<'_>) -> Option<Listen> {
    let networks = [("tcp", false), ("unix", true)];
    if !section.choice("net", "write tcp or unix", &networks, false) {
        return tcp(section);
    }
    let Some(socket) = section.text("addr") else {
        let addr = section.path("addr");
        section.reject(
            "net",
            format_args!("is unix, but `{addr}` is missing; write the socket's path"),
        );
        return None;
    };
    section.print("addr", socket.as_str());
    Some(Listen::Unix(PathBuf::from(socket)))
}

fn listener(section: &Section<'_>) -> Option<ExtraListener> {
    let is_written = section.text("addr").is_some() || section.text("net").is_some();
    let listen = listen(section);
    if !is_written {
        section.missing("addr", "host:port, or :port for all interfaces");
    }
    let choices = [
        ("registry", Serves::Registry),
        ("operators", Serves::Operators),
    ];
    let advice = "write registry or operators";
    let serves = section.choice("serves", advice, &choices, Serves::Registry);
    let tls = match &listen {
        Some(listen) => tls(section, listen),
        None => tls::read(section),
    };
    Some(ExtraListener {
        listen: listen?,
        tls,
        serves,
    })
}

fn tls(section: &Section<'_>, listen: &Listen) -> Option<Tls> {
    let tls = tls::read(section)?;
    if let Listen::Unix(_) = listen {
        section.reject(
            "tls",
            "is for TCP only, and the address is a unix socket's; remove the section",
        );
    }
    Some(tls)
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

/// The header fields at `headers`. No message shows their values, which may be secrets.
pub(super) fn headers(http: &Section<'_>) -> HeaderMap {
    let mut map = HeaderMap::new();
    let lists = http.lists("headers", |text| Ok::<_, Infallible>(text.to_owned()));
    for (key, values) in lists {
        let problem = match HeaderName::try_from(&key) {
            Ok(name) if FRAMING.contains(&name) => {
                format!("the header `{name}` is set by the server; remove it")
            }
            Ok(name) => {
                for (index, value) in values.into_iter().enumerate() {
                    if let Ok(value) = HeaderValue::try_from(value) {
                        map.append(name.clone(), value);
                    } else {
                        let item = format!("headers.{key}[{index}]");
                        http.reject(&item, "must be printable ASCII text");
                    }
                }
                continue;
            }
            Err(_invalid) => format!("{key:?} is not a valid header name"),
        };
        http.problem(&format!("headers.{key}"), problem);
    }
    let mut printed = serde_yaml::Mapping::new();
    for name in map.keys() {
        let values = map.get_all(name).iter();
        let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
        printed.insert(name.as_str().into(), values.collect());
    }
    http.print("headers", printed);
    map
}

fn debug(http: &Section<'_>) -> Option<Debug> {
    let debug = http.section("debug", |debug| {
        let is_on = debug.text("addr").is_some();
        let listen = tcp(debug);
        let metrics_path = debug.section("prometheus", |prometheus| {
            if !is_on
                && ["enabled", "path"]
                    .iter()
                    .any(|key| prometheus.text(key).is_some())
            {
                prometheus.doubt("", "has no effect: `http.debug.addr` is not set");
            }
            let enabled = prometheus.bool("enabled", true);
            let path = prometheus.parsed("path", metrics_path);
            let path = path.unwrap_or_else(|| DEFAULT_METRICS.to_owned());
            enabled.then(|| {
                prometheus.print("path", path.as_str());
                path
            })
        });
        listen.map(|listen| Debug {
            listen,
            metrics_path,
        })
    });
    if debug.is_none() {
        http.print_nothing("debug");
    }
    debug
}

fn metrics_path(text: &str) -> Result<String, &'static str> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '%');
    let valid = text.starts_with('/') && text.chars().all(plain);
    let path = valid.then(|| text.to_owned());
    path.ok_or("write a path such as /metrics")
}
