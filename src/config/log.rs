//! The `log` section.

use std::collections::BTreeMap;

use serde::Serialize;
use tracing::Level;

use super::print;
use super::section::Section;

/// The log, which goes to standard error.
#[derive(Debug, Clone, Serialize)]
pub struct Log {
    #[serde(serialize_with = "print::level")]
    pub level: Level,
    #[serde(rename = "formatter")]
    pub format: LogFormat,
    /// Fields of every line.
    pub fields: BTreeMap<String, String>,
    /// Whether requests are logged.
    #[serde(rename = "accesslog", serialize_with = "print::disabled")]
    pub access: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

pub(super) fn read(root: &Section<'_>) -> Log {
    let log = root.section("log");
    let fields = log.section("fields");
    let format = log.choice(
        "formatter",
        "write text or json",
        &[
            ("text", LogFormat::Text),
            ("json", LogFormat::Json),
            // The reference registry's third one is JSON with other names for time and level.
            ("logstash", LogFormat::Json),
        ],
    );
    Log {
        level: level(root, &log),
        format: format.unwrap_or(LogFormat::Text),
        fields: fields
            .keys()
            .filter_map(|key| Some((key.to_owned(), fields.text(key)?.to_owned())))
            .collect(),
        access: !log.section("accesslog").bool("disabled", false),
    }
}

fn level(root: &Section<'_>, log: &Section<'_>) -> Level {
    let parse = |text: &str| match text.to_ascii_lowercase().as_str() {
        "error" => Ok(Level::ERROR),
        "warn" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        _ => Err("write error, warn, info, debug or trace"),
    };
    if root.text("loglevel").is_some() {
        root.doubt("loglevel", "is deprecated; write `log.level`");
    }
    let level = match log.text("level") {
        Some(_) => log.value("level", parse),
        None => root.value("loglevel", parse),
    };
    level.unwrap_or(Level::INFO)
}
