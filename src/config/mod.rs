//! The configuration: a YAML file that is a superset of the reference registry's (CNCF
//! distribution 2.8 and 3.0), under environment variables that override it.
//!
//! A file becomes a tree of texts with their lines (`yaml`). One file per section (`log`, `storage` with `bucket`,
//! `http`, `health`, `proxy` with `upstream`, `credentials`, `rules` and `download`, `access`, `hosted`, `replicas`) reads the tree, and the environment over
//! it (`env`), into [`Config`], whose values can only be valid: no other module parses configured
//! text. A reader names each key once (`section`): so the keys that nobody asks for are unknown
//! (`keys`), and the values that the readers get are those that `millpond check` prints. All
//! problems are found at once ([`Problem`]), each with its line or variable, its key and the
//! correction.
//!
//! Nothing is silently weaker: a key that the reference registry would enforce and millpond doesn't
//! is an error. No message and no `Debug` shows a password.
//!
//! Source: <https://distribution.github.io/distribution/about/configuration/>.

mod access;
mod address;
mod auth;
mod authorize;
mod bucket;
mod context;
mod credentials;
mod download;
mod duration;
mod endpoints;
mod env;
mod error;
mod forward_proxy;
mod health;
mod host_pattern;
mod hosted;
mod http;
mod keep_fresh;
mod keys;
mod log;
mod printed;
mod proxy;
mod rate_limit;
mod registry_url;
mod replicas;
mod report;
mod rules;
mod secret;
mod section;
mod size;
mod storage;
mod tags;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::every_key;
mod tls;
mod traces;
mod upstream;
mod user;
mod yaml;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use crate::oci::RepoName;

use context::Context;
use env::Variables;
use hosted::PushDefaults;
use report::Report;
use section::Section;
use yaml::{Document, Node};

pub use access::{AccessConfig, AccessRule, Callers, DenyConfig, Effect, PERMISSIONS, Permission};
pub use address::Listen;
pub use auth::{Auth, CertificateMatch, CertificateUser, NetworkUser, OidcIssuer, TokenService};
pub use authorize::{Authorize, CallerAccess};
pub use bucket::{
    Azure, AzureCredentials, Bucket, BucketStore, Gcs, GcsKey, RedirectMode, S3, S3Encryption,
    S3Keys, SharedStorage,
};
pub use credentials::{Credentials, Helper, RepositoryCredentials, Written};
pub use download::{OnAbandon, Prefetch, RangeMode, Segments, Streams};
pub use env::PATH_VARIABLE;
pub use error::{ConfigError, MAX_FILE, Problem};
pub use forward_proxy::{ForwardProxy, ProxyUrl};
pub use health::{HealthCheck, HealthConfig, HealthProbe, HealthTiming};
pub use host_pattern::{HostPattern, HostPatternError};
pub use hosted::{HostedSpace, PushSync};
pub use http::{ConnectionLimits, Debug, ExtraListener, Http, Serves};
pub use keep_fresh::{DayTimes, KeepFresh, Platform};
pub use log::{AccessLog, Audit, Log, LogFormat};
pub use printed::{Difference, Printed};
pub use proxy::{Proxy, Timeouts, TtlMode};
pub use rate_limit::{RateLimit, Reserve};
pub use registry_url::{authority, is_loopback};
pub use replicas::{MAX_REPLICAS, ReplicaPeers, Replicas};
pub use report::Places;
pub use rules::{RangeRule, TtlRule};
pub use secret::Secret;
pub use size::SizeLimit;
pub use storage::{Limits, MinFree, Scrub, Storage};
pub use tags::{Freshness, TagRule, TagTimes, Tags};
pub use tls::{CIPHER_SUITES, ClientAuth, Tls, TlsVersion};
pub use traces::Tracing;

pub use upstream::{ClientCertificate, Endpoint, EndpointSelection, Upstream};
pub use user::{account_files, cache_directory};

/// The version of the file's format: the reference registry's.
const VERSION: &str = "0.1";

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub log: Log,
    /// None where no traces are exported.
    pub tracing: Option<Tracing>,
    pub storage: Storage,
    /// The second tier behind the data directory; None without one.
    pub bucket: Option<Bucket>,
    pub limits: Limits,
    pub http: Http,
    pub health: HealthConfig,
    pub auth: Auth,
    pub proxy: Proxy,
    pub access: AccessConfig,
    /// The repositories that clients push into; empty where everything is mirrored.
    pub hosted: Vec<HostedSpace>,
    /// None where this server works alone.
    pub replicas: Option<Replicas>,
    /// What is printed of all this.
    pub printed: Printed,
}

/// A configuration without problems.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// The configuration as YAML: every key with its value in effect, and passwords hidden.
    pub effective: String,
    /// What has no effect or is probably not meant, one sentence each.
    pub warnings: Vec<String>,
    pub places: Places,
}

impl Config {
    /// Whether callers can say who they are.
    pub fn has_users(&self) -> bool {
        self.auth.is_configured()
    }

    /// Whether a stored repository is hosted.
    pub fn is_hosted(&self, stored: &RepoName) -> bool {
        let mut patterns = self.hosted.iter().flat_map(|space| &space.repositories);
        patterns.any(|pattern| pattern.matches(stored.as_str()))
    }

    /// The first upstream whose account everybody who can reach the mirror could use by accident:
    /// nothing says who callers are, what they may do, or that this is meant.
    pub fn lends_by_accident(&self) -> Option<&Upstream> {
        if self.has_users() || !self.access.rules.is_empty() || self.http.is_loopback() {
            return None;
        }
        let mut all = self.proxy.all_upstreams();
        all.find(|upstream| upstream.lends_by_accident())
    }

    /// The configuration without file and environment: Docker Hub on port 5000, data in
    /// `./millpond-data`.
    pub fn default_config() -> Self {
        let context = Context::new(Report::new(""), Variables::default());
        check(None, &context).0
    }
}

/// The environment variables that matter here; what is not UTF-8 is replaced. The credentials of a bucket
/// are read from others by its client.
///
/// The one place that reads the environment.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that asks the system for the environment"
)]
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.starts_with(env::PREFIX) || env::AWS_REGIONS.contains(&&**name))
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

/// Reads a size in bytes, as the configuration's sizes are written: `50MiB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    size::bytes(text).map_err(|error| error.to_string())
}

/// Reads a duration, as the configuration's durations are written: `10m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}

/// Reads a file of an upstream's, of certificates or a key; at most [`MAX_FILE`] bytes of it.
pub fn read_pem(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let error = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(error)?;
    let length = file.take(MAX_FILE + 1).read_to_string(&mut text);
    if length.map_err(error)? as u64 > MAX_FILE {
        let path = path.to_owned();
        return Err(ConfigError::TooLarge { path });
    }
    Ok(text)
}

/// `file` is the text and its name.
fn build(
    file: Option<(&str, &str)>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let (text, source) = file.unwrap_or(("", "the environment"));
    let context = Context::new(Report::new(source), Variables::new(environment));
    let root = match Document::parse(text, None) {
        Ok(document) => {
            for (path, origin) in &document.duplicates {
                context.report.problem_at(origin, env::repeated(path));
            }
            document.root
        }
        Err(error) => {
            let message = format!("the file is not valid YAML: {error}");
            context.report.problem_at(&error.origin, message);
            return Err(ConfigError::Problems(context.report.finish().0));
        }
    };
    let (config, effective) = check(file.map(|_| root), &context);
    context
        .keys
        .report_unknown(&context.variables, &context.report);
    let (problems, warnings, places) = context.report.finish();
    if !problems.is_empty() {
        return Err(ConfigError::Problems(problems));
    }
    Ok(Loaded {
        config,
        effective,
        warnings,
        places,
    })
}

/// Makes the configuration of the tree, and prints it. Each check reports its problem and continues
/// with the default, so the result counts only if there is no problem. A file must have a version
/// and should name an upstream.
fn check(file: Option<Node>, context: &Context) -> (Config, String) {
    let from_file = file.is_some();
    let (mut config, effective) = Section::read(context, String::new(), file, |root| {
        let hosts = root.has("hosted");
        unimplemented(root);
        hosted::restrictions(root, hosts);
        version(root, from_file);
        let log = log::read(root);
        let tracing = root.section("tracing", traces::read);
        let ((storage, limits, is_named), bucket, pushes) = root.section("storage", |section| {
            let local = storage::read(section, from_file);
            let bucket = bucket::read(section, &local.0, local.2);
            (local, bucket, PushDefaults::read(section, hosts))
        });
        let http = root.section("http", |section| http::read(section, hosts));
        let proxy = root.section("proxy", |section| proxy::read(section, from_file, is_named));
        let config = Config {
            log,
            tracing,
            health: root.section("health", |section| health::read(section, &storage)),
            storage,
            bucket,
            limits,
            http,
            auth: root.section("auth", auth::read),
            access: access::read(root, &proxy),
            hosted: hosted::read(root, &proxy, pushes),
            replicas: root.section("replicas", replicas::read),
            proxy,
            printed: Printed::default(),
        };
        auth::guard(root, &config);
        access::guard(root, &config);
        access::doubt_anonymous(root, &config);
        replicas::guard(root, &config);
        config
    });
    config.printed = Printed::of(&effective);
    // Maps of texts can always be written; an error here is shown to the reader.
    let effective = serde_yaml::to_string(&effective);
    (
        config,
        effective.unwrap_or_else(|error| format!("# {error}\n")),
    )
}

fn version(root: &Section<'_>, is_required: bool) {
    match root.text("version") {
        Some(other) if is_required && other != VERSION => {
            let other = report::shown(&other);
            root.reject(
                "version",
                format!("is {other}; only {VERSION} is supported"),
            );
        }
        None if is_required => root.missing("version", format!("`version: {VERSION}`")),
        _ => {}
    }
    root.print("version", VERSION);
}

/// The sections of the reference registry that aren't implemented.
fn unimplemented(root: &Section<'_>) {
    root.refuse_middleware("middleware");
    root.ignore(&[
        ("reporting", "errors go to the log and the metrics only"),
        ("notifications", "no events are sent"),
        ("redis", "nothing is cached in Redis"),
        ("catalog", "the size of a catalog page is built in"),
        (
            "compatibility",
            "manifests are served as the upstream has them",
        ),
    ]);
    root.section("tags", |tags| {
        tags.ignore(&[("maxtags", "the size of a page of tags is built in")]);
    });
}
