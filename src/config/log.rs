//! The `log` section.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tracing::Level;

use super::section::Section;

/// The log, which goes to standard error.
#[derive(Debug, Clone)]
pub struct Log {
    pub level: Level,
    pub format: LogFormat,
    /// Fields of every line.
    pub fields: BTreeMap<String, String>,
    /// Whether requests are logged.
    pub access: bool,
    /// Where refusals, pushes, deletions and changes of the deny list are logged, if anywhere.
    pub audit: Option<Audit>,
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
            Some(_) => log.parsed("level", level),
            None => root.parsed("loglevel", level),
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
            format: log.choice("formatter", "write text or json", &formats, LogFormat::Text),
            fields: log.texts("fields"),
            access: log.section("accesslog", |access| !access.bool("disabled", false)),
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

fn level(text: &str) -> Result<Level, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "error" => Ok(Level::ERROR),
        "warn" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        _ => Err("write error, warn, info, debug or trace"),
    }
}
