//! `millpond log-level`: what the running server logs.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::operate::on_server;
use super::table::Table;
use super::{Listing, print, print_json};
use crate::admin::operate::Operation;
use crate::config;
use crate::log_levels::{LevelInForce, Module, parse_level};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// LEVEL for all modules, MODULE=LEVEL for one, or reset for the configured levels; without it,
    /// nothing changes
    ///
    /// Levels are error, warn, info, debug and trace. Modules are those that log lines show after
    /// `millpond::`, such as upstream or `upstream::transport`; accesslog, the log of requests; and the
    /// libraries h2, hyper, `hyper_util`, reqwest, rustls and tokio.
    #[arg(value_name = "[MODULE=]LEVEL|reset", value_parser = Setting::parse)]
    setting: Option<Setting>,
    /// Time after which the configured level applies again, such as 10m [default: when the server ends]
    #[arg(long = "for", value_name = "DURATION", value_parser = config::parse_duration, requires = "setting")]
    lasting: Option<Duration>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Setting {
    Reset,
    Level(Option<Module>, String),
}

impl Setting {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "reset" {
            return Ok(Self::Reset);
        }
        let (module, level) = match text.rsplit_once('=') {
            Some((module, level)) => (Some(module), level),
            None => (None, text),
        };
        let module = module.map(str::parse).transpose();
        let module = module.map_err(|advice: crate::log_levels::LevelError| advice.to_string())?;
        parse_level(level).map_err(|advice| advice.to_string())?;
        Ok(Self::Level(module, level.to_owned()))
    }
}

/// `millpond log-level`: prints the levels in force, after the change.
pub(super) fn log_level(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments {
        setting,
        lasting,
        listing,
    } = arguments;
    let operation = match setting {
        None => Operation::LogLevels,
        Some(Setting::Reset) => {
            anyhow::ensure!(
                lasting.is_none(),
                "--for belongs to a level, and not to reset"
            );
            Operation::LogLevelReset
        }
        Some(Setting::Level(module, level)) => Operation::LogLevelSet {
            module,
            level,
            seconds: lasting.map(|lasting| lasting.as_secs().max(1)),
        },
    };
    let levels: Vec<LevelInForce> = on_server(&listing.located, operation)
        .context("the log levels are those of a running server")?;
    if listing.json {
        return print_json(&json!({ "levels": levels }));
    }
    let mut table = Table::new(["MODULE", "LEVEL", "SINCE", "UNTIL"]);
    for level in levels {
        let module = level.module.map(|module| module.to_string());
        let left = level.seconds.map(|seconds| {
            let left = humantime::format_duration(Duration::from_secs(seconds));
            format!("in {left}")
        });
        let until = || if level.changed { "the server ends" } else { "" }.to_owned();
        let since = if level.changed {
            "changed"
        } else {
            "configuration"
        };
        table.row([
            module.unwrap_or_else(|| "(all others)".to_owned()),
            level.level,
            since.to_owned(),
            left.unwrap_or_else(until),
        ]);
    }
    print(&table.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_refused() {
        let level = |module: Option<&str>, level: &str| {
            Setting::Level(
                module.map(|module| module.parse().unwrap()),
                level.to_owned(),
            )
        };
        for (text, setting) in [
            ("debug", Some(level(None, "debug"))),
            ("upstream=TRACE", Some(level(Some("upstream"), "TRACE"))),
            (
                "upstream::auth=warn",
                Some(level(Some("upstream::auth"), "warn")),
            ),
            ("reset", Some(Setting::Reset)),
            ("", None),
            ("loud", None),
            ("=debug", None),
            ("upstream=", None),
            ("nothing=debug", None),
            ("upstream=debug=debug", None),
        ] {
            assert_eq!(Setting::parse(text).ok(), setting, "{text:?}");
        }
    }
}
