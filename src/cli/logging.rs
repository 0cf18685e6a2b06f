//! Logs on standard error, as text or JSON, with the configured fields on every line.

use std::collections::BTreeMap;
use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Log, LogFormat};

/// Starts logging. Called once; a second call changes nothing.
pub(super) fn start(log: &Log) {
    // Libraries speak only of trouble, whatever millpond's own level.
    let filter = EnvFilter::new(format!("warn,millpond={}", log.level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => {
            // Colours can't be handed through to a line that gets a suffix.
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let ansi = terminal && log.fields.is_empty();
            let fields = text_fields(&log.fields);
            let inner = tracing_subscriber::fmt::format();
            builder
                .with_ansi(ansi)
                .event_format(WithFields {
                    inner,
                    fields,
                    format: log.format,
                })
                .try_init()
        }
        LogFormat::Json => {
            let fields = json_fields(&log.fields);
            let inner = tracing_subscriber::fmt::format().json().flatten_event(true);
            let json = tracing_subscriber::fmt::format::JsonFields::new();
            builder
                .fmt_fields(json)
                .event_format(WithFields {
                    inner,
                    fields,
                    format: log.format,
                })
                .try_init()
        }
    };
    if let Err(error) = started {
        tracing::debug!(error, "logging had been started before");
    }
}

/// ` service=registry`
fn text_fields(fields: &BTreeMap<String, String>) -> String {
    fields.iter().fold(String::new(), |text, (name, value)| {
        format!("{text} {name}={value}")
    })
}

/// `"service":"registry",`
fn json_fields(fields: &BTreeMap<String, String>) -> String {
    fields.iter().fold(String::new(), |text, (name, value)| {
        format!(
            "{text}{}:{},",
            serde_json::json!(name),
            serde_json::json!(value)
        )
    })
}

/// A format with the configured fields on every line.
struct WithFields<F> {
    inner: F,
    /// As they are written.
    fields: String,
    format: LogFormat,
}

impl<S, N, F> FormatEvent<S, N> for WithFields<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.fields.is_empty() {
            return self.inner.format_event(ctx, writer, event);
        }
        let mut line = String::new();
        self.inner
            .format_event(ctx, Writer::new(&mut line), event)?;
        match self.format {
            LogFormat::Text => writeln!(writer, "{}{}", line.trim_end(), self.fields),
            LogFormat::Json => {
                let rest = line.strip_prefix('{').unwrap_or(&line);
                write!(writer, "{{{}{rest}", self.fields)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn fields() -> BTreeMap<String, String> {
        BTreeMap::from([("service".to_owned(), "re\"gistry".to_owned())])
    }

    #[test]
    fn configured_fields_are_on_every_json_line() {
        let sink = Sink::default();
        let writer = sink.clone();
        let inner = tracing_subscriber::fmt::format().json().flatten_event(true);
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(tracing_subscriber::fmt::format::JsonFields::new())
            .event_format(WithFields {
                inner,
                fields: json_fields(&fields()),
                format: LogFormat::Json,
            })
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || tracing::info!(status = 200, "request"));
        let line: serde_json::Value = serde_json::from_str(&sink.text()).unwrap();
        assert_eq!(line["service"], "re\"gistry");
        assert_eq!(
            (&line["status"], &line["message"]),
            (&200.into(), &"request".into())
        );
    }

    #[test]
    fn and_at_the_end_of_every_text_line() {
        let sink = Sink::default();
        let writer = sink.clone();
        let inner = tracing_subscriber::fmt::format();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(WithFields {
                inner,
                fields: text_fields(&fields()),
                format: LogFormat::Text,
            })
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || tracing::info!(status = 200, "request"));
        assert!(
            sink.text()
                .ends_with("request status=200 service=re\"gistry\n"),
            "{}",
            sink.text()
        );
    }
}
