//! The configuration: a YAML file that is a superset of the reference registry's (CNCF
//! distribution 2.8 and 3.0), under environment variables that override it.
//!
//! A file becomes a tree of texts (`document`), the environment is merged into the tree (`env`),
//! the tree is compared with all known keys (`schema`), and the checks (`check`, `proxy`,
//! `fetch`, `retention`) make [`Config`] of it, whose values can only be valid. All problems are found at
//! once ([`Problem`]), each with its key, its line or its variable, and what would be right.
//!
//! Nothing is silently weaker: what the reference registry would enforce and millpond doesn't is
//! refused. No message and no `Debug` shows a password.
//!
//! Source: <https://distribution.github.io/distribution/about/configuration/>.

mod address;
mod check;
mod document;
pub mod duration;
mod env;
mod error;
mod fetch;
mod host_pattern;
mod locate;
mod nearest;
mod proxy;
mod render;
mod report;
mod retention;
mod schema;
mod size;
#[cfg(test)]
mod tests;
mod trust;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderMap;
use secrecy::SecretString;
use tracing::Level;
use url::Url;

use document::{Document, Node};
use report::Report;

pub use address::Listen;
pub use env::PATH_VARIABLE;
pub use error::{ConfigError, MAX_FILE, Problem};
pub use fetch::{OnAbandon, Prefetch, RangeMode, RangeRule, Segments, Streams};
pub use host_pattern::{HostPattern, HostPatternError};
pub use render::render;
pub use report::Places;
pub use size::SizeLimit;

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub log: Log,
    pub storage: Storage,
    pub limits: Limits,
    pub http: Http,
    pub proxy: Proxy,
}

/// The log, on standard error.
#[derive(Debug, Clone)]
pub struct Log {
    pub level: Level,
    pub format: LogFormat,
    /// Fields of every line.
    pub fields: BTreeMap<String, String>,
    /// Whether requests are logged.
    pub access: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Where blobs, manifests and tags are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// The root may be relative to the working directory, and need not exist. `mode` is the
    /// permissions of files; directories can also be searched by whoever can read them. None is what
    /// the directory has, or 0640.
    Filesystem { root: PathBuf, mode: Option<u32> },
    /// Gone with the process.
    Memory,
}

/// How much is kept, and how what is kept is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most that blobs and manifests may take; never 0. `None` is no cap.
    pub max_size: Option<SizeLimit>,
    /// What has to stay free on the file system of the data directory; `Off` in memory.
    pub min_free: MinFree,
    /// `None` is no background pass.
    pub scrub: Option<Scrub>,
}

/// The value of `storage.minfree`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// Not configured: the smaller of 5 % and 10 GiB. The cache stops growing there, and nothing is
    /// evicted for it.
    Default,
    /// 0 is configured: the file system may be filled.
    Off,
    /// Never 0. Images are evicted to keep this much free.
    Limit(SizeLimit),
}

/// The background pass that hashes every blob again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrub {
    /// From the start of one pass to that of the next; never 0.
    pub interval: Duration,
    /// How fast blobs are read, in bytes a second; never 0.
    pub rate: u64,
}

/// The server that clients pull from.
#[derive(Debug, Clone)]
pub struct Http {
    pub listen: Listen,
    /// What stands before `/v2/`: empty, or `/x` without a slash at its end.
    pub prefix: String,
    /// Where clients reach the server, when it isn't what they write in `Host`.
    pub host: Option<Url>,
    pub relative_urls: bool,
    /// Added to every response.
    pub headers: HeaderMap,
    /// How long requests in flight may go on after a stop signal; 0 cuts them off.
    pub drain_timeout: Duration,
    /// Whether clients may speak HTTP/2.
    pub http2: bool,
    pub limits: ConnectionLimits,
    pub debug: Option<Debug>,
}

/// How many connections clients may have open at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// All together; never 0. `None` derives the number from the process's file descriptors.
    pub total: Option<usize>,
    /// From one IPv4 address or one IPv6 /64 network; never 0. `None` is no limit.
    pub per_address: Option<usize>,
}

/// The listener for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debug {
    pub listen: Listen,
    /// Where the metrics are, if anywhere: starts with `/`.
    pub metrics_path: Option<String>,
}

/// The upstreams and what is kept of them.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Asked for names that point to no other upstream.
    pub default: Upstream,
    /// No two upstreams share a name or alias, the default one included.
    pub upstreams: Vec<Upstream>,
    /// How long blobs and manifests are kept where no rule matches; `None` is for ever.
    pub ttl: Option<Duration>,
    pub ttl_mode: TtlMode,
    /// The first that matches counts. The upstreams' own come last, as `<name>/**`.
    pub ttl_rules: Vec<TtlRule>,
    /// What is never evicted: `repository` or `repository:tag`, both patterns (at most 512 bytes
    /// together) as in [`TtlRule::pattern`], that of the tag made of `[A-Za-z0-9._*-]`.
    pub pins: Vec<String>,
    /// How long a tag is believed without asking the upstream; 0 asks every time.
    pub tags_ttl: Duration,
    pub timeouts: Timeouts,
    pub segments: Segments,
    pub streams: Streams,
    /// Bytes of the largest blob that is cached; never 0. Larger ones pass through.
    pub max_blob_size: u64,
    /// Bytes a second, over a minute, below which a transfer from an upstream ends; 0 never ends one.
    pub min_speed: u64,
    pub prefetch: Prefetch,
    pub on_abandon: OnAbandon,
    /// Where no rule matches.
    pub ranges: RangeMode,
    /// The first that matches counts.
    pub range_rules: Vec<RangeRule>,
    /// Percent of a blob, 1 to 100: once so much of it has been asked for in ranges that are passed
    /// through, all of it is fetched.
    pub fill_after: u8,
}

/// When the time to live begins to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TtlMode {
    /// At the last use.
    Sliding,
    /// When it was cached.
    Fixed,
}

/// How long some repositories are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TtlRule {
    /// 1 to 512 of `[a-z0-9._/*-]`, compared with the whole stored name (`library/debian`,
    /// `ghcr.io/owner/app`): `*` is any run of characters within a component, `**` one across
    /// components.
    pub pattern: String,
    /// `None` is for ever.
    pub ttl: Option<Duration>,
}

/// Limits of the waits for an upstream; none is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, with TLS.
    pub connect: Duration,
    /// For the head of a response.
    pub header: Duration,
    /// For the next bytes of a body.
    pub stall: Duration,
}

/// A registry that is mirrored.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// One component of a repository name, such as `ghcr.io`; the default upstream's, which only
    /// logs and metrics show, may have a port.
    pub name: String,
    /// Scheme `http` or `https`, host and port; nothing more.
    pub url: Url,
    pub credentials: Option<Credentials>,
    /// A file of certificate authorities (PEM), readable when the configuration was loaded.
    pub ca: Option<PathBuf>,
    /// Don't check the server's certificate.
    pub insecure: bool,
    /// Permit credentials over plain HTTP to other machines, and redirects and token services that
    /// lead from https to http.
    pub plain_http: bool,
    /// The token service (scheme `http` or `https`, host, port) that is given the credentials
    /// although it is on another site than the upstream.
    pub realm: Option<Url>,
    /// The scope of all tokens, in which `{name}` stands for the repository's name.
    pub scope: Option<String>,
    /// Hosts that its redirects and token services may lead to although their addresses are internal.
    pub redirects: Vec<HostPattern>,
    /// What clients may call it (`host[:port]`, lower case, sorted): its name, its URL's host and
    /// more.
    pub aliases: Vec<String>,
    /// It answers to `docker.io`: names of one component get `library/`.
    pub is_docker_hub: bool,
}

#[derive(Debug, Clone)]
pub struct Credentials {
    pub username: String,
    pub password: SecretString,
}

/// A configuration without problems.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// What has no effect or is probably not meant, one sentence each.
    pub warnings: Vec<String>,
    pub places: Places,
}

impl Config {
    /// The configuration without file and environment: Docker Hub on port 5000, data in
    /// `./millpond-data`.
    pub fn default_config() -> Self {
        check::config(&Node::Null, false, &mut Report::new("", ""))
    }
}

/// The environment variables that matter here; what is not UTF-8 is replaced.
///
/// The one place that reads the environment.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that asks the system for the environment"
)]
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.starts_with(env::PREFIX))
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
}

/// Whether terminals are sent colours: `NO_COLOR` (<https://no-color.org>) is unset or empty.
#[expect(
    clippy::disallowed_methods,
    reason = "a variable of the user's, not of the configuration's"
)]
pub fn colours_wanted() -> bool {
    permits_colours(std::env::var_os("NO_COLOR").as_deref())
}

fn permits_colours(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

/// Loads the file at `path`, else the one that [`PATH_VARIABLE`] names, else the defaults, and
/// merges the environment into it.
pub fn load(
    path: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let environment: Vec<(String, String)> = environment.collect();
    let named = environment
        .iter()
        .find(|(name, value)| name == PATH_VARIABLE && !value.is_empty())
        .map(|(_, value)| Path::new(value));
    let Some(path) = path.or(named) else {
        return build(None, environment.into_iter());
    };
    let text = read(path)?;
    let source = path.display().to_string();
    build(Some((&text, &source)), environment.into_iter())
}

/// Reads a configuration from a text that `source_name` stands for in messages.
pub fn parse(
    text: &str,
    source_name: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    build(Some((text, source_name)), environment)
}

/// In the order of the file; what has no line, such as a variable, comes last.
fn problems(report: Report<'_>) -> ConfigError {
    let mut problems = report.problems;
    problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    ConfigError::Problems(problems)
}

/// Reads a size in bytes, as the configuration's sizes are written: `50MiB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    size::bytes(text).map_err(|error| error.to_string())
}

/// Reads an upstream's file of certificate authorities; at most [`MAX_FILE`] bytes of it.
pub fn read_ca(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let error = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(error)?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE) {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    String::from_utf8(bytes).map_err(|bytes| {
        error(io::Error::new(
            io::ErrorKind::InvalidData,
            bytes.utf8_error(),
        ))
    })
}

/// `file` is the text and its name.
fn build(
    file: Option<(&str, &str)>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let (text, source) = file.unwrap_or(("", "the environment"));
    let mut report = Report::new(source, text);
    let mut root = match Document::parse(text) {
        Ok(document) => {
            for path in &document.duplicates {
                report.problem_at(path, 1, format!("the key `{path}` stands twice; keep one"));
            }
            document.root
        }
        Err(error) => {
            let line = error.location().map(|location| location.line());
            report.problem_on_line(line, format!("the file is not valid YAML: {error}"));
            return Err(problems(report));
        }
    };
    schema::expand_driver(&mut root);
    env::apply(&mut root, environment, &mut report);
    let config = check::config(&root, file.is_some(), &mut report);
    if !report.problems.is_empty() {
        return Err(problems(report));
    }
    Ok(Loaded {
        config,
        warnings: std::mem::take(&mut report.warnings),
        places: report.places(),
    })
}
