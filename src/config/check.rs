//! From the tree of the file to the checked configuration.
//!
//! Every check reports what it finds and goes on with the default, so that all problems come out
//! at once. So the result counts only when nothing was reported.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tracing::Level;
use url::Url;

use super::document::Node;
use super::report::{Report, Section, shown};
use super::{
    Config, ConnectionLimits, Debug, Http, Listen, Log, LogFormat, Storage, proxy, retention,
    schema,
};

const DEFAULT_LISTEN: &str = ":5000";
const DEFAULT_ROOT: &str = "./millpond-data";
const DEFAULT_METRICS: &str = "/metrics";
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
const CONNECTIONS: RangeInclusive<usize> = 1..=1_000_000;
/// 0 is no limit.
const PER_ADDRESS: RangeInclusive<usize> = 0..=1_000_000;
/// The version of the file's format: the reference registry's.
const VERSION: &str = "0.1";

/// Headers that frame a response: a fixed value would break it.
const FRAMING: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
];

/// `from_file` tells that there is a file, which must have a version and should have an upstream.
pub(super) fn config(root: &Node, from_file: bool, report: &mut Report<'_>) -> Config {
    schema::validate(
        root,
        &schema::ROOT,
        &super::document::KeyPath::default(),
        report,
    );
    let root = Section::root(root);
    if from_file {
        version(&root, report);
    }
    let section = root.section("storage");
    named_directory_needs_upstream(&root, report);
    let storage = storage(&section, from_file, report);
    Config {
        log: log(&root, report),
        limits: retention::limits(&section, &storage, report),
        storage,
        http: http(&root.section("http"), report),
        proxy: proxy::read(&root.section("proxy"), from_file, report),
    }
}

/// A directory that somebody names may hold a plain registry's data, which nobody has another copy
/// of. A mirror deletes what expires, so it doesn't start there unless an upstream is named, too.
fn named_directory_needs_upstream(root: &Section<'_>, report: &mut Report<'_>) {
    let filesystem = root.section("storage").section("filesystem");
    let proxy = root.section("proxy");
    let has_upstream = proxy.text("remoteurl").is_some() || !proxy.sections("upstreams").is_empty();
    let named = filesystem.text("rootdirectory").is_some();
    if named && !has_upstream && !root.section("storage").has("inmemory") {
        let path = filesystem.path.key("rootdirectory");
        let remoteurl = proxy.path.key("remoteurl");
        let message = format!(
            "`{path}` names a data directory, but `{remoteurl}` isn't set: millpond is a mirror \
             and deletes what expires, which would empty a plain registry's directory; write the \
             upstream's URL, such as https://registry-1.docker.io for Docker Hub"
        );
        report.problem(&path, message);
    }
}

fn version(root: &Section<'_>, report: &mut Report<'_>) {
    match root.text("version") {
        Some(VERSION) => {}
        Some(other) => {
            let message = format!("`version` is {}; only {VERSION} is supported", shown(other));
            report.problem(&root.path.key("version"), message);
        }
        None => {
            let message = format!("`version` is missing; write `version: {VERSION}`");
            report.problem(&root.path.key("version"), message);
        }
    }
}

fn log(root: &Section<'_>, report: &mut Report<'_>) -> Log {
    let log = root.section("log");
    let fields = log.section("fields");
    let format = match log.text("formatter").unwrap_or("text") {
        "text" => LogFormat::Text,
        // Logstash's form is JSON with its own names for time and level.
        "json" | "logstash" => LogFormat::Json,
        other => {
            let path = log.path.key("formatter");
            let message = format!("`{path}` is {}; write text or json", shown(other));
            report.problem(&path, message);
            LogFormat::Text
        }
    };
    let disabled = log.section("accesslog").bool("disabled", false, report);
    Log {
        level: level(root, &log, report),
        format,
        fields: fields
            .keys()
            .filter_map(|key| Some((key.to_owned(), fields.text(key)?.to_owned())))
            .collect::<BTreeMap<_, _>>(),
        access: !disabled,
    }
}

fn level(root: &Section<'_>, log: &Section<'_>, report: &mut Report<'_>) -> Level {
    let deprecated = root.text("loglevel");
    if deprecated.is_some() {
        let message = "`loglevel` is deprecated; write `log.level`".to_owned();
        report.warning(&root.path.key("loglevel"), message);
    }
    let (path, text) = match (log.text("level"), deprecated) {
        (None, Some(text)) => (root.path.key("loglevel"), text),
        (text, _) => (log.path.key("level"), text.unwrap_or("info")),
    };
    match text.to_ascii_lowercase().as_str() {
        "error" => Level::ERROR,
        "warn" => Level::WARN,
        "info" => Level::INFO,
        "debug" => Level::DEBUG,
        "trace" => Level::TRACE,
        _ => {
            let value = shown(text);
            let message = format!("`{path}` is {value}; write error, warn, info, debug or trace");
            report.problem(&path, message);
            Level::INFO
        }
    }
}

fn storage(storage: &Section<'_>, from_file: bool, report: &mut Report<'_>) -> Storage {
    let filesystem = storage.section("filesystem");
    if storage.has("inmemory") {
        if storage.has("filesystem") {
            let message = "`storage` names two drivers, `filesystem` and `inmemory`; keep one";
            report.problem(&storage.path, message.to_owned());
        }
        return Storage::Memory;
    }
    let root = filesystem.text("rootdirectory");
    if root.is_none() && from_file && storage.has("filesystem") {
        let path = filesystem.path.key("rootdirectory");
        let message = format!(
            "`{path}` is not set: data goes to {DEFAULT_ROOT} (the reference registry's default \
             is /var/lib/registry)"
        );
        report.warning(&filesystem.path, message);
    }
    Storage::Filesystem {
        root: PathBuf::from(root.unwrap_or(DEFAULT_ROOT)),
        mode: file_mode(&filesystem, report),
    }
}

/// The permissions of files, in octal digits.
fn file_mode(filesystem: &Section<'_>, report: &mut Report<'_>) -> Option<u32> {
    let text = filesystem.text("mode")?;
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| digits);
    // Readable and writable for the owner; executable or special for nobody.
    let mode = mode.filter(|mode| mode & 0o600 == 0o600 && mode & !0o666 == 0);
    if mode.is_none() {
        let path = filesystem.path.key("mode");
        let message = format!(
            "`{path}` is {}; write the permissions of files as octal digits such as 0640: \
             readable and writable for the owner, and executable for nobody",
            shown(text)
        );
        report.problem(&path, message);
    }
    mode
}

fn http(http: &Section<'_>, report: &mut Report<'_>) -> Http {
    Http {
        listen: listen(http, report),
        prefix: prefix(http, report),
        host: host(http, report),
        relative_urls: http.bool("relativeurls", false, report),
        headers: headers(&http.section("headers"), report),
        drain_timeout: http.duration("draintimeout", DEFAULT_DRAIN, report),
        http2: !http.section("http2").bool("disabled", false, report),
        limits: limits(&http.section("limits"), report),
        debug: debug(&http.section("debug"), report),
    }
}

fn limits(limits: &Section<'_>, report: &mut Report<'_>) -> ConnectionLimits {
    let total = limits.text("connections").is_some();
    let total = total.then(|| limits.number("connections", &CONNECTIONS, 1, report));
    let per_address = limits.number("peraddress", &PER_ADDRESS, 0, report);
    ConnectionLimits {
        total,
        per_address: Some(per_address).filter(|limit| *limit > 0),
    }
}

fn listen(http: &Section<'_>, report: &mut Report<'_>) -> Listen {
    let default = || Listen::Tcp(DEFAULT_LISTEN.to_owned());
    match (http.text("net").unwrap_or("tcp"), http.text("addr")) {
        ("tcp", None) => default(),
        ("tcp", Some(_)) => tcp(http, report).unwrap_or_else(default),
        ("unix", Some(socket)) => Listen::Unix(PathBuf::from(socket)),
        ("unix", None) => {
            let message = "`http.net` is unix, but `http.addr` is missing; write the socket's path";
            report.problem(&http.path.key("net"), message.to_owned());
            default()
        }
        (other, _) => {
            let message = format!("`http.net` is {}; write tcp or unix", shown(other));
            report.problem(&http.path.key("net"), message);
            default()
        }
    }
}

/// The TCP address at `addr`, if there is one.
fn tcp(section: &Section<'_>, report: &mut Report<'_>) -> Option<Listen> {
    let text = section.text("addr")?;
    let listen = Listen::tcp(text);
    if listen.is_none() {
        let path = section.path.key("addr");
        let value = shown(text);
        let message = format!("`{path}` is {value}; write host:port, or :port for all interfaces");
        report.problem(&path, message);
    }
    listen
}

fn prefix(http: &Section<'_>, report: &mut Report<'_>) -> String {
    let text = http.text("prefix").unwrap_or_default();
    let prefix = text.trim_end_matches('/');
    // What a URL's path shows unescaped, without the segments that mean another place.
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let segment = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(plain);
    let valid = match prefix.strip_prefix('/') {
        Some(path) => path.split('/').all(segment),
        None => prefix.is_empty(),
    };
    if !valid {
        let path = http.path.key("prefix");
        let value = shown(text);
        let message = format!("`{path}` is {value}; write a plain path such as /mirror/");
        report.problem(&path, message);
    }
    prefix.to_owned()
}

fn host(http: &Section<'_>, report: &mut Report<'_>) -> Option<Url> {
    let text = http.text("host")?;
    let url = Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if url.is_none() {
        let path = http.path.key("host");
        let value = shown(text);
        let message = format!("`{path}` is {value}; write a URL such as https://mirror.example");
        report.problem(&path, message);
    }
    url
}

fn headers(headers: &Section<'_>, report: &mut Report<'_>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for key in headers.keys() {
        let path = headers.path.key(key);
        let Ok(name) = HeaderName::try_from(key) else {
            report.problem(&path, format!("{} is not a valid header name", shown(key)));
            continue;
        };
        if FRAMING.contains(&name) {
            let message = format!("the header `{name}` is set by the server; remove it");
            report.problem(&path, message);
            continue;
        }
        for (path, text) in headers.texts(key) {
            if let Ok(value) = HeaderValue::try_from(text) {
                map.append(name.clone(), value);
            } else {
                let value = shown(text);
                report.problem(&path, format!("{value} is not a valid value of `{name}`"));
            }
        }
    }
    map
}

fn debug(debug: &Section<'_>, report: &mut Report<'_>) -> Option<Debug> {
    let prometheus = debug.section("prometheus");
    let enabled = prometheus.bool("enabled", true, report);
    let metrics_path = prometheus.text("path").unwrap_or(DEFAULT_METRICS);
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '%');
    if !metrics_path.starts_with('/') || !metrics_path.chars().all(plain) {
        let path = prometheus.path.key("path");
        let value = shown(metrics_path);
        report.problem(
            &path,
            format!("`{path}` is {value}; write a path such as /metrics"),
        );
    }
    if debug.text("addr").is_none() {
        if prometheus.keys().next().is_some() {
            let path = &prometheus.path;
            let message = format!("`{path}` has no effect: `http.debug.addr` is not set");
            report.warning(path, message);
        }
        return None;
    }
    Some(Debug {
        listen: tcp(debug, report)?,
        metrics_path: enabled.then(|| metrics_path.to_owned()),
    })
}
