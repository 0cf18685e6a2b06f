//! The configuration: a YAML file that is a superset of the reference registry's (CNCF
//! distribution 2.8 and 3.0), under environment variables that override it.
//!
//! A file becomes a tree of texts with their lines (`yaml`), the environment is merged into the tree
//! (`env`), and the tree is compared with all known keys (`schema`). Then one file per section
//! (`log`, `storage`, `http`, `proxy` with `upstream`, `rules` and `download`) reads it into
//! [`Config`], whose values can only be valid: no other module parses configured text. All problems
//! are found at once ([`Problem`]), each with its line or variable, its key and the correction.
//! [`render`] prints a `Config` by its types' `Serialize`.
//!
//! A key is declared in `schema` and read into a field beside its neighbours: `ARCHITECTURE.md`
//! lists the steps for a new one.
//!
//! Nothing is silently weaker: a key that the reference registry would enforce and millpond doesn't
//! is an error. No message and no `Debug` shows a password.
//!
//! Source: <https://distribution.github.io/distribution/about/configuration/>.

mod address;
mod download;
pub mod duration;
mod env;
mod error;
mod host_pattern;
mod http;
mod log;
mod print;
mod proxy;
mod report;
mod rules;
mod schema;
mod section;
mod size;
mod storage;
#[cfg(test)]
mod tests;
mod upstream;
mod yaml;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use report::Report;
use section::Section;
use yaml::{Document, Node};

pub use address::Listen;
pub use download::{OnAbandon, Prefetch, RangeMode, Segments, Streams};
pub use env::PATH_VARIABLE;
pub use error::{ConfigError, MAX_FILE, Problem};
pub use host_pattern::{HostPattern, HostPatternError};
pub use http::{ConnectionLimits, Debug, Http};
pub use log::{Log, LogFormat};
pub use print::render;
pub use proxy::{Proxy, Timeouts, TtlMode};
pub use report::Places;
pub use rules::{RangeRule, TtlRule};
pub use size::SizeLimit;
pub use storage::{Limits, MinFree, Scrub, Storage};
pub use upstream::{Credentials, Upstream, is_loopback};

/// The version of the file's format: the reference registry's.
const VERSION: &str = "0.1";

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub log: Log,
    pub storage: Storage,
    pub limits: Limits,
    pub http: Http,
    pub proxy: Proxy,
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
        let root = Node::null(yaml::Origin::Line(1));
        check(&root, false, &Report::new(""))
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
    let mut report = Report::new(source);
    let mut root = match Document::parse(text, None) {
        Ok(document) => {
            for (path, origin) in &document.duplicates {
                report.problem_at(report.places.place(origin), env::repeated(path));
            }
            document.root
        }
        Err(error) => {
            let message = format!("the file is not valid YAML: {error}");
            report.problem_at((source, error.line), message);
            return Err(ConfigError::Problems(report.finish().0));
        }
    };
    schema::expand_driver(&mut root);
    env::apply(&mut root, environment, &report);
    report.places.set(&root);
    let config = check(&root, file.is_some(), &report);
    let (problems, warnings, places) = report.finish();
    if !problems.is_empty() {
        return Err(ConfigError::Problems(problems));
    }
    Ok(Loaded {
        config,
        warnings,
        places,
    })
}

/// Makes the configuration of the tree. Each check reports its problem and continues with the
/// default, so the result counts only if there is no problem. `from_file` tells whether there is a
/// file, which must have a version and should name an upstream.
fn check(root: &Node, from_file: bool, report: &Report) -> Config {
    schema::validate(root, &schema::ROOT, "", report);
    let root = Section::root(root, report);
    if from_file {
        match root.text("version") {
            Some(VERSION) => {}
            Some(other) => {
                let other = report::shown(other);
                root.reject(
                    "version",
                    format!("is {other}; only {VERSION} is supported"),
                );
            }
            None => root.missing("version", format!("`version: {VERSION}`")),
        }
    }
    named_directory_needs_upstream(&root);
    let section = root.section("storage");
    let storage = storage::read(&section, from_file);
    Config {
        log: log::read(&root),
        limits: storage::limits(&section, &storage),
        storage,
        http: http::read(&root.section("http")),
        proxy: proxy::read(&root.section("proxy"), from_file),
    }
}

/// A directory that the operator names may hold a plain registry's data, which exists nowhere else. A
/// mirror deletes what expires, so it starts there only if an upstream is named, too.
fn named_directory_needs_upstream(root: &Section<'_>) {
    let storage = root.section("storage");
    let filesystem = storage.section("filesystem");
    let proxy = root.section("proxy");
    let has_upstream = proxy.text("remoteurl").is_some() || !proxy.sections("upstreams").is_empty();
    let is_named = filesystem.text("rootdirectory").is_some() && !storage.has("inmemory");
    if is_named && !has_upstream {
        filesystem.reject(
            "rootdirectory",
            "names a data directory, but `proxy.remoteurl` isn't set: millpond is a mirror \
             and deletes what expires, which would empty a plain registry's directory; write the \
             upstream's URL, such as https://registry-1.docker.io for Docker Hub",
        );
    }
}
