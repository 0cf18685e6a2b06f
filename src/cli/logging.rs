//! Logs on standard error, as text or JSON. A log call never waits for standard error and never
//! fails because of it ([`line_writer`](crate::line_writer)).

mod format;

use std::io::{self, IsTerminal as _};
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{JsonFields, format};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{self, Log, LogFormat};
use crate::error_chain::on_one_line;
use crate::line_writer::LineWriter;
use format::{JsonLine, TextFields, rendered};

/// How long the exit of the process waits for the last lines to be written.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// The log of this process.
pub(super) struct Logs {
    writer: Arc<LineWriter>,
    format: LogFormat,
    levels: Levels,
}

/// Sets what is logged.
type Levels = Box<dyn Fn(EnvFilter) + Send + Sync>;

impl Logs {
    /// Starts logging, panics included. A second call changes nothing.
    pub(super) fn start(log: &Log) -> io::Result<Self> {
        let writer = LineWriter::start(io::stderr(), format::notice(log))?;
        let colours = io::stderr().is_terminal() && config::colours_wanted();
        let (subscriber, levels) = subscriber(log, colours, Arc::clone(&writer));
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
            format: log.format,
            levels,
        })
    }

    /// Logs by another level from now on.
    pub(super) fn configure(&self, log: &Log) {
        (self.levels)(filter(log));
    }

    /// The writer, for its counter.
    pub(super) fn writer(&self) -> &LineWriter {
        &self.writer
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

/// Libraries speak only of trouble, whatever millpond's own level.
fn filter(log: &Log) -> EnvFilter {
    EnvFilter::new(format!("warn,millpond={}", log.level))
}

/// The subscriber, and what changes its levels.
fn subscriber<W>(log: &Log, colours: bool, writer: W) -> (Box<dyn Subscriber + Send + Sync>, Levels)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(log))
        .log_internal_errors(false)
        .with_writer(writer);
    match log.format {
        LogFormat::Text => {
            let configured = rendered(log);
            let builder = builder.with_ansi(colours);
            let builder = builder.fmt_fields(TextFields { configured });
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let levels = Box::new(move |filter| reloaded(handle.reload(filter)));
            (Box::new(builder.finish()), levels)
        }
        LogFormat::Json => {
            let (inner, fields) = (format().json().flatten_event(true), rendered(log));
            let builder = builder.fmt_fields(JsonFields::new());
            let builder = builder.event_format(JsonLine { inner, fields });
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let levels = Box::new(move |filter| reloaded(handle.reload(filter)));
            (Box::new(builder.finish()), levels)
        }
    }
}

fn reloaded(result: Result<(), tracing_subscriber::reload::Error>) {
    if let Err(error) = result {
        tracing::warn!(error = %on_one_line(&error), "the log keeps its level");
    }
}
