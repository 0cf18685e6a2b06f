//! The least severe level that is logged, by module: as configured, and as an operator has changed it
//! while the process runs.
//!
//! The subscriber asks [`LogLevels::level_of`] once for each place that logs and remembers the result;
//! a change makes it ask again. So a log call costs no look-up.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Level;

/// The target of the lines that log requests.
pub const ACCESS_LOG: &str = "millpond::accesslog";

/// The modules that log under their own names, and the log of requests.
const MODULES: [&str; 31] = [
    "access",
    "accesslog",
    "admin",
    "app",
    "auth",
    "bucket",
    "cache",
    "cli",
    "clock",
    "config",
    "copy",
    "download",
    "error_chain",
    "health",
    "hosted",
    "kept_file",
    "line_writer",
    "log_levels",
    "metrics",
    "mirror",
    "oci",
    "renewal",
    "replicas",
    "server",
    "storage",
    "systemd",
    "tasks",
    "telemetry",
    "tls",
    "upstream",
    "workers",
];
/// Libraries that log.
const LIBRARIES: [&str; 6] = ["h2", "hyper", "hyper_util", "reqwest", "rustls", "tokio"];
/// What libraries log where nothing else is said: only of trouble.
const LIBRARY_LEVEL: Level = Level::WARN;
/// Longest name of a module, in bytes.
const MAX_MODULE: usize = 100;

/// Why a text is no level or no module. The messages are advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    #[error("write error, warn, info, debug or trace")]
    Level,
    #[error(
        "write a module of ARCHITECTURE.md such as upstream, accesslog for the log of requests, or one of the libraries h2, hyper, hyper_util, reqwest, rustls and tokio"
    )]
    Module,
}

/// Reads a level.
pub fn parse_level(text: &str) -> Result<Level, LevelError> {
    let known = ["error", "warn", "info", "debug", "trace"];
    let known = known.iter().any(|name| text.eq_ignore_ascii_case(name));
    let level = text.parse().ok().filter(|_| known);
    level.ok_or(LevelError::Level)
}

/// A part of the program: a module of millpond, with or without a path below it, or a library.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Module(String);

impl Module {
    /// Whether lines with this target are the module's.
    fn covers(&self, target: &str) -> bool {
        let first = self.0.split("::").next().unwrap_or_default();
        let target = if MODULES.contains(&first) {
            target.strip_prefix("millpond::")
        } else {
            Some(target)
        };
        let rest = target.and_then(|target| target.strip_prefix(self.0.as_str()));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Module {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        let is_name = |name: &str| {
            let mut bytes = name.bytes();
            !name.is_empty()
                && bytes
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        let first = text.split("::").next().unwrap_or_default();
        let known = MODULES.contains(&first) || LIBRARIES.contains(&first);
        let valid = known && text.len() <= MAX_MODULE && text.split("::").all(is_name);
        valid
            .then(|| Self(text.to_owned()))
            .ok_or(LevelError::Module)
    }
}

impl TryFrom<String> for Module {
    type Error = LevelError;

    fn try_from(text: String) -> Result<Self, LevelError> {
        text.parse()
    }
}

impl From<Module> for String {
    fn from(module: Module) -> Self {
        module.0
    }
}

/// A level that is in force, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelInForce {
    /// None for all modules of millpond that have no level of their own.
    pub module: Option<Module>,
    /// In lower case.
    pub level: String,
    /// Whether an operator has set it while the process runs.
    pub changed: bool,
    /// Seconds until the configured level applies again; none is until the process ends.
    pub seconds: Option<u64>,
}

/// The levels in force.
#[derive(Debug)]
pub struct LogLevels {
    state: Mutex<State>,
    /// Some level has an end that the task doesn't know of.
    changed: Notify,
}

/// Levels by module; `None` is all of millpond.
type Table<T> = BTreeMap<Option<Module>, T>;

#[derive(Debug)]
struct State {
    configured: Table<Level>,
    changes: Table<Change>,
}

#[derive(Debug, Clone, Copy)]
struct Change {
    level: Level,
    until: Option<Instant>,
}

impl Default for LogLevels {
    fn default() -> Self {
        Self::new(Level::INFO, BTreeMap::new())
    }
}

impl LogLevels {
    /// The configured level of all modules, and those of some.
    pub fn new(level: Level, modules: BTreeMap<Module, Level>) -> Self {
        Self {
            state: Mutex::new(State {
                configured: table(level, modules),
                changes: BTreeMap::new(),
            }),
            changed: Notify::new(),
        }
    }

    /// The least severe level that is logged for a target of `tracing`.
    pub fn level_of(&self, target: &str) -> Level {
        let state = self.state.lock();
        let named = state.in_force().into_iter().filter_map(|(module, level)| {
            let module = module?;
            module.covers(target).then_some((module.0.len(), level))
        });
        // The longest name is the most precise one.
        if let Some((_, level)) = named.max_by_key(|(length, _)| *length) {
            return level;
        }
        let rest = target.strip_prefix("millpond");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::")) {
            state.level(None).unwrap_or(Level::INFO)
        } else {
            LIBRARY_LEVEL
        }
    }

    /// The least severe of all levels.
    pub fn most_verbose(&self) -> Level {
        let state = self.state.lock();
        let levels = state.in_force().into_values();
        levels.max().unwrap_or(LIBRARY_LEVEL).max(LIBRARY_LEVEL)
    }

    /// Takes over what is configured now. What an operator has changed stays changed.
    pub fn configure(&self, level: Level, modules: BTreeMap<Module, Level>) {
        self.state.lock().configured = table(level, modules);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Sets the level of a module, or of all that have none of their own, until `lasting` is over, the
    /// level is reset or the process ends.
    pub fn set(&self, module: Option<Module>, level: Level, lasting: Option<Duration>) {
        let until = lasting.and_then(|lasting| Instant::now().checked_add(lasting));
        let change = Change { level, until };
        self.state.lock().changes.insert(module, change);
        self.changed.notify_one();
        tracing::callsite::rebuild_interest_cache();
    }

    /// Returns to the configured levels. Returns how many levels had been changed.
    pub fn reset(&self) -> usize {
        let changes = std::mem::take(&mut self.state.lock().changes);
        tracing::callsite::rebuild_interest_cache();
        changes.len()
    }

    /// The levels in force; the one of all modules first.
    pub fn list(&self) -> Vec<LevelInForce> {
        let state = self.state.lock();
        let levels = state.in_force().into_iter();
        levels
            .map(|(module, level)| {
                let change = state.changes.get(&module);
                let until = change.and_then(|change| change.until);
                LevelInForce {
                    level: level.as_str().to_ascii_lowercase(),
                    changed: change.is_some(),
                    seconds: until
                        .map(|until| (until - Instant::now()).as_secs_f64().ceil())
                        .map(seconds),
                    module,
                }
            })
            .collect()
    }

    /// Ends each change when its time is over. Never returns.
    pub async fn expire(&self) {
        loop {
            let changes = self.state.lock().changes.clone();
            let next = changes.values().filter_map(|change| change.until).min();
            tokio::select! {
                () = self.changed.notified() => {}
                () = at(next) => self.remove_expired(),
            }
        }
    }

    fn remove_expired(&self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        self.state.lock().changes.retain(|module, change| {
            let stays = change.until.is_none_or(|until| until > now);
            if !stays {
                ended.push(module.clone());
            }
            stays
        });
        tracing::callsite::rebuild_interest_cache();
        for module in ended {
            tracing::info!(
                module = module.map(tracing::field::display),
                "the time of a changed log level is over: the configured one applies again"
            );
        }
    }
}

fn table(level: Level, modules: BTreeMap<Module, Level>) -> Table<Level> {
    let modules = modules.into_iter();
    let modules = modules.map(|(module, level)| (Some(module), level));
    modules.chain([(None, level)]).collect()
}

impl State {
    fn level(&self, module: Option<&Module>) -> Option<Level> {
        let module = module.cloned();
        let change = self.changes.get(&module).map(|change| change.level);
        change.or_else(|| self.configured.get(&module).copied())
    }

    fn in_force(&self) -> Table<Level> {
        let mut levels = self.configured.clone();
        let changes = self.changes.iter();
        levels.extend(changes.map(|(module, change)| (module.clone(), change.level)));
        levels
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time that is left: not negative, and far below 2^64 seconds"
)]
fn seconds(left: f64) -> u64 {
    left as u64
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn levels(modules: &[(&str, Level)]) -> LogLevels {
        let modules = modules.iter();
        let modules = modules.map(|(module, level)| (module.parse().unwrap(), *level));
        LogLevels::new(Level::INFO, modules.collect())
    }

    #[test]
    fn the_most_precise_name_decides() {
        let levels = levels(&[
            ("upstream", Level::DEBUG),
            ("upstream::transport", Level::ERROR),
            ("h2", Level::INFO),
        ]);
        for (target, level) in [
            ("millpond", Level::INFO),
            ("millpond::cache::index", Level::INFO),
            ("millpond::upstream", Level::DEBUG),
            ("millpond::upstream::auth", Level::DEBUG),
            ("millpond::upstream::transport", Level::ERROR),
            ("millpond::upstreams", Level::INFO),
            ("h2::proto", Level::INFO),
            ("hyper::proto", Level::WARN),
            ("upstream", Level::WARN),
            ("millponds", Level::WARN),
        ] {
            assert_eq!(levels.level_of(target), level, "{target}");
        }
        assert_eq!(levels.most_verbose(), Level::DEBUG);
    }

    #[test]
    fn names_that_are_no_module_are_refused() {
        for name in [
            "",
            "upstreams",
            "upstream::",
            "::upstream",
            "millpond",
            "Upstream",
            "serde",
        ] {
            assert_eq!(name.parse::<Module>(), Err(LevelError::Module), "{name:?}");
        }
        let long = format!("upstream::{}", "a".repeat(MAX_MODULE));
        assert!(long.parse::<Module>().is_err());
        assert!(parse_level("off").is_err() && parse_level("3").is_err());
    }

    #[test]
    fn every_module_of_the_library_has_a_level() {
        let declared = include_str!("lib.rs").lines();
        let declared = declared.filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
        let mut modules: Vec<_> = declared.chain(["accesslog"]).collect();
        modules.sort_unstable();
        assert_eq!(modules, MODULES);
    }

    #[test]
    fn another_configuration_leaves_what_an_operator_has_changed() {
        let levels = levels(&[("upstream", Level::DEBUG)]);
        let (cache, upstream): (Module, Module) =
            ("cache".parse().unwrap(), "upstream".parse().unwrap());
        levels.set(Some(cache.clone()), Level::TRACE, None);
        levels.configure(Level::WARN, [(cache, Level::ERROR)].into());
        assert_eq!(levels.level_of("millpond::upstream"), Level::WARN);
        assert_eq!(levels.level_of("millpond::cache"), Level::TRACE);
        assert_eq!(levels.reset(), 1);
        assert_eq!(levels.level_of("millpond::cache"), Level::ERROR);
        levels.configure(Level::INFO, [(upstream, Level::DEBUG)].into());
        assert_eq!(levels.level_of("millpond::cache"), Level::INFO);
        assert_eq!(levels.level_of("millpond::upstream"), Level::DEBUG);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_ends_after_its_time_and_with_a_reset() {
        let levels = Arc::new(levels(&[]));
        let task = Arc::clone(&levels);
        let expire = async move { task.expire().await };
        let told = async {
            let upstream: Module = "upstream".parse().unwrap();
            levels.set(
                Some(upstream.clone()),
                Level::TRACE,
                Some(Duration::from_mins(10)),
            );
            levels.set(None, Level::WARN, None);
            let listed = levels.list();
            assert_eq!(listed[0].level, "warn");
            assert_eq!((listed[0].changed, listed[0].seconds), (true, None));
            assert_eq!(
                (listed[1].module.as_ref(), listed[1].seconds),
                (Some(&upstream), Some(600))
            );
            assert_eq!(levels.level_of("millpond::upstream"), Level::TRACE);
            tokio::time::sleep(Duration::from_secs(601)).await;
            assert_eq!(levels.level_of("millpond::upstream"), Level::WARN);
            assert_eq!(levels.reset(), 1);
            assert_eq!(levels.level_of("millpond::upstream"), Level::INFO);
            assert!(!levels.list()[0].changed);
        };
        tokio::select! {
            () = expire => {}
            () = told => {}
        }
    }
}
