//! The `log` section.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tracing::Level;

use super::report::shown;
use super::section::Section;
use crate::log_levels::{Module, parse_level};

/// Most requests of which one is logged.
const MAX_SAMPLE: usize = 1_000_000;
/// A request that takes longer is logged whatever the sampling.
const DEFAULT_SLOW: Duration = Duration::from_secs(10);

/// The log, which goes to standard error.
#[derive(Debug, Clone)]
pub struct Log {
    pub level: Level,
    /// Those of single modules.
    pub levels: BTreeMap<Module, Level>,
    pub format: LogFormat,
    /// Fields of every line.
    pub fields: BTreeMap<String, String>,
    /// The log of requests; none where it is turned off.
    pub access: Option<AccessLog>,
    /// Where refusals, pushes, deletions and changes of the deny list are logged, if anywhere.
    pub audit: Option<Audit>,
}

/// Which requests are logged. Failures always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessLog {
    /// One in so many successes, at random; never 0.
    pub sample: u32,
    /// A request that takes so long is always logged.
    pub slow: Duration,
}

/// Where the audit log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audit {
    Stderr,
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

pub(super) fn read(root: &Section<'_>) -> Log {
    if root.text("loglevel").is_some() {
        root.doubt("loglevel", "is deprecated; write `log.level`");
    }
    root.section("log", |log| {
        log.ignore(&[
            ("hooks", "no mail is sent"),
            ("reportcaller", "log lines don't name source code"),
        ]);
        let set = match log.text("level") {
            Some(_) => log.parsed("level", parse_level),
            None => root.parsed("loglevel", parse_level),
        };
        let level = set.unwrap_or(Level::INFO);
        log.print("level", level.as_str().to_ascii_lowercase());
        let formats = [
            ("text", LogFormat::Text),
            ("json", LogFormat::Json),
            // The reference registry's third one is JSON with other names for time and level.
            ("logstash", LogFormat::Json),
        ];
        Log {
            level,
            levels: levels(log),
            format: log.choice("formatter", "write text or json", &formats, LogFormat::Text),
            fields: log.texts("fields"),
            access: log.section("accesslog", access_log),
            audit: log.section("audit", audit),
        }
    })
}

fn audit(audit: &Section<'_>) -> Option<Audit> {
    let file = audit.value("file", |text| Ok::<_, &str>(text.to_owned()));
    let stderr = audit.bool("stderr", false);
    if stderr && file.is_some() {
        audit.reject("stderr", "is true, but `log.audit.file` is set; keep one");
    }
    match file {
        Some(path) => Some(Audit::File(path.into())),
        None => stderr.then_some(Audit::Stderr),
    }
}

/// The levels of modules.
fn levels(log: &Section<'_>) -> BTreeMap<Module, Level> {
    let mut levels = BTreeMap::new();
    for (name, text) in log.texts("levels") {
        let path = format!("{}.{name}", log.path("levels"));
        let module: Result<Module, _> = name.parse();
        match (module, parse_level(&text)) {
            (Ok(module), Ok(level)) => {
                levels.insert(module, level);
            }
            (Err(advice), _) => {
                log.problem_at(&path, format!("`{path}` names no module; {advice}"));
            }
            (_, Err(advice)) => {
                let shown = shown(&text);
                log.problem_at(&path, format!("`{path}` is {shown}; {advice}"));
            }
        }
    }
    levels
}

fn access_log(access: &Section<'_>) -> Option<AccessLog> {
    let disabled = access.bool("disabled", false);
    let sample = access.number("sample", 1..=MAX_SAMPLE, 1);
    let slow = access.duration("slow", DEFAULT_SLOW);
    (!disabled).then_some(AccessLog {
        sample: u32::try_from(sample).unwrap_or(1),
        slow,
    })
}
