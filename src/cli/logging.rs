//! Logs on standard error, as text or JSON. A log call never waits for standard error and never
//! fails because of it ([`line_writer`](crate::line_writer)).

mod format;
mod levels;

use std::io::{self, IsTerminal as _};
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{JsonFields, format};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{self, Log, LogFormat};
use crate::error_chain::on_one_line;
use crate::line_writer::LineWriter;
use crate::log_levels::LogLevels;
use format::{JsonLine, TextFields, TextLine, rendered};
use levels::ByModule;

/// How long the exit of the process waits for the last lines to be written.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// The log of this process.
pub(super) struct Logs {
    writer: Arc<LineWriter>,
    levels: Arc<LogLevels>,
    format: LogFormat,
}

impl Logs {
    /// Starts logging, panics included. A second call changes nothing.
    pub(super) fn start(log: &Log) -> io::Result<Self> {
        let writer = LineWriter::start(io::stderr(), format::notice(log))?;
        let colours = io::stderr().is_terminal() && config::colours_wanted();
        let levels = Arc::new(LogLevels::new(log.level, log.levels.clone()));
        let subscriber = subscriber(log, &levels, colours, Arc::clone(&writer));
        if let Err(error) = subscriber.try_init() {
            tracing::debug!(error = %on_one_line(&error), "logging had been started before");
        }
        // The standard hook writes to standard error itself, and would wait for its reader.
        panic::set_hook(Box::new(|panic| {
            tracing::error!(
                reason = panic.payload_as_str(),
                location = panic.location().map(ToString::to_string),
                thread = std::thread::current().name(),
                "panic"
            );
        }));
        Ok(Self {
            writer,
            levels,
            format: log.format,
        })
    }

    /// Logs by other configured levels from now on.
    pub(super) fn configure(&self, log: &Log) {
        self.levels.configure(log.level, log.levels.clone());
    }

    /// The writer, for its counter.
    pub(super) fn writer(&self) -> &LineWriter {
        &self.writer
    }

    /// The levels, which an operator may change.
    pub(super) fn levels(&self) -> &Arc<LogLevels> {
        &self.levels
    }

    /// Logs why the process ends with a failure.
    pub(super) fn fatal(&self, error: &str) {
        match self.format {
            // As every command says it, without the level's filter.
            LogFormat::Text => self.writer.line(format!("millpond: {error}\n").as_bytes()),
            LogFormat::Json => tracing::error!(error, "millpond ends"),
        }
    }

    /// Writes the buffered lines, for a bounded time. Blocks.
    pub(super) fn finish(self) {
        // An error can't be reported anywhere.
        let _written: bool = self.writer.flush(FLUSH_TIME);
    }
}

fn subscriber<W>(
    log: &Log,
    levels: &Arc<LogLevels>,
    colours: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_writer(writer);
    let subscriber = tracing_subscriber::registry();
    let by_module = ByModule(Arc::clone(levels));
    match log.format {
        LogFormat::Text => {
            let configured = rendered(log);
            let lines = lines.with_ansi(colours);
            let lines = lines.fmt_fields(TextFields { configured });
            let lines = lines.event_format(TextLine);
            Box::new(subscriber.with(lines).with(by_module))
        }
        LogFormat::Json => {
            let (inner, fields) = (format().json().flatten_event(true), rendered(log));
            let lines = lines.fmt_fields(JsonFields::new());
            let lines = lines.event_format(JsonLine { inner, fields });
            Box::new(subscriber.with(lines).with(by_module))
        }
    }
}
