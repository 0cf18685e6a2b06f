//! The format of a log line: the configured fields on every line, text in quotes, plain numbers, and
//! no character that controls a terminal.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::clock::Clock;
use crate::config::{Log, LogFormat};
use crate::line_writer::Notice;
use crate::server::access::is_unprintable;
use crate::telemetry::{self, Context};

/// The configured fields in the format of a line: ` service="registry"` or `"service":"registry",`.
pub(super) fn rendered(log: &Log) -> String {
    let field = |(name, value): (&String, &String)| match log.format {
        LogFormat::Text => format!(" {name}={}", quoted(value)),
        LogFormat::Json => {
            let (name, value) = (serde_json::json!(name), serde_json::json!(value));
            format!("{name}:{value},")
        }
    };
    log.fields.iter().map(field).collect()
}

/// Makes the notice of dropped lines: the log's own thread writes it, past the subscriber.
pub(super) fn notice(log: &Log) -> Notice {
    let (format, fields) = (log.format, rendered(log));
    Box::new(move |dropped| {
        let time = humantime::format_rfc3339_micros(Clock::system().wall());
        match format {
            LogFormat::Text => format!(
                "{time}  WARN {}: {dropped} log lines dropped{fields}\n",
                module_path!()
            ),
            LogFormat::Json => format!(
                "{{{fields}\"timestamp\":\"{time}\",\"level\":\"WARN\",\"message\":\"log lines \
                 dropped\",\"dropped\":{dropped},\"target\":\"{}\"}}\n",
                module_path!()
            ),
        }
    })
}

/// The text format: time, level and target, then the fields. tracing's own takes three times as long.
pub(super) struct TextLine;

impl<S, N> FormatEvent<S, N> for TextLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let (colour, level) = match *metadata.level() {
            Level::ERROR => ("\u{1b}[31m", "ERROR"),
            Level::WARN => ("\u{1b}[33m", " WARN"),
            Level::INFO => ("\u{1b}[32m", " INFO"),
            Level::DEBUG => ("\u{1b}[34m", "DEBUG"),
            Level::TRACE => ("\u{1b}[35m", "TRACE"),
        };
        let [colour, dim, plain] = if writer.has_ansi_escapes() {
            [colour, "\u{1b}[2m", "\u{1b}[0m"]
        } else {
            [""; 3]
        };
        let time = humantime::format_rfc3339_micros(Clock::system().wall());
        write!(writer, "{dim}{time}{plain} ")?;
        for part in [
            colour,
            level,
            plain,
            " ",
            dim,
            metadata.target(),
            ":",
            plain,
            " ",
        ] {
            writer.write_str(part)?;
        }
        ctx.format_fields(writer.by_ref(), event)?;
        writer.write_char('\n')
    }
}

/// The JSON format with the configured fields on every line.
pub(super) struct JsonLine<F> {
    pub(super) inner: F,
    /// As they are written.
    pub(super) fields: String,
}

impl<S, N, F> FormatEvent<S, N> for JsonLine<F>
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
        let mut line = String::new();
        self.inner
            .format_event(ctx, Writer::new(&mut line), event)?;
        let rest = line.strip_prefix('{').unwrap_or(&line).trim_end();
        write!(writer, "{{{}", self.fields)?;
        if let Some(request) = telemetry::current() {
            write_request_json(&mut writer, &request)?;
        }
        write_json(&mut writer, rest)?;
        writer.write_char('\n')
    }
}

/// The members that name the request that a line belongs to.
fn write_request_json(out: &mut Writer<'_>, request: &Context) -> fmt::Result {
    let id = serde_json::to_string(request.id().as_str()).map_err(|_unlikely| fmt::Error)?;
    write!(out, "\"request\":{id},")?;
    match request.trace_id() {
        Some(trace) => write!(out, "\"trace\":\"{trace}\","),
        None => Ok(()),
    }
}

/// The same of a line of text.
fn write_request_text(out: &mut Writer<'_>, request: &Context) -> fmt::Result {
    out.write_str(" request=")?;
    write_quoted(out, request.id().as_str())?;
    match request.trace_id() {
        Some(trace) => write!(out, " trace=\"{trace}\""),
        None => Ok(()),
    }
}

/// Whether the character is written as an escape sequence.
fn needs_escape(c: char) -> bool {
    c.is_control() || is_unprintable(c)
}

/// Writes JSON so that its strings hold no unprintable character; outside of strings JSON has none.
fn write_json(out: &mut Writer<'_>, json: &str) -> fmt::Result {
    if !json.chars().any(needs_escape) {
        return out.write_str(json);
    }
    for c in json.chars() {
        if needs_escape(c) {
            // All of them have at most four hexadecimal digits.
            write!(out, "\\u{:04x}", u32::from(c))?;
        } else {
            out.write_char(c)?;
        }
    }
    Ok(())
}

fn push_escaped(out: &mut String, c: char) {
    if needs_escape(c) {
        out.extend(c.escape_default());
    } else {
        out.push(c);
    }
}

/// Whether a text needs no escape sequence within quotes. Looks at every byte, which the processor does many
/// at a time.
fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~');
    let bytes = text.as_bytes().iter();
    bytes.fold(true, |so_far, byte| so_far & plain(*byte))
}

/// Writes a value in quotes.
fn write_quoted(out: &mut Writer<'_>, text: &str) -> fmt::Result {
    if !is_plain(text) {
        return out.write_str(&quoted(text));
    }
    out.write_str("\"")?;
    out.write_str(text)?;
    out.write_str("\"")
}

/// A value in quotes.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        push_escaped(&mut out, c);
    }
    out.push('"');
    out
}

/// The fields of a text line: the message as it is, numbers plain, everything else in quotes; then
/// the configured fields.
#[derive(Debug)]
pub(super) struct TextFields {
    /// As they are written.
    pub(super) configured: String,
}

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = TextVisitor {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.result?;
        let mut writer = visitor.writer;
        telemetry::with_current(|request| write_request_text(&mut writer, request))
            .unwrap_or(Ok(()))?;
        writer.write_str(&self.configured)
    }
}

struct TextVisitor<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl TextVisitor<'_> {
    /// Writes what precedes a value. Returns whether the value is the line's message.
    fn name(&mut self, field: &Field) -> Result<bool, fmt::Error> {
        let out = &mut self.writer;
        if !std::mem::take(&mut self.is_first) {
            out.write_str(" ")?;
        }
        let name = field.name();
        let name = name.strip_prefix("r#").unwrap_or(name);
        let is_message = name == "message";
        if is_message {
            return Ok(true);
        }
        if out.has_ansi_escapes() {
            // Italic, dim.
            write!(out, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?;
        } else {
            out.write_str(name)?;
            out.write_str("=")?;
        }
        Ok(false)
    }

    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if self.result.is_ok() {
            let named = self.name(field);
            self.result = named.and_then(|_| self.writer.write_fmt(value));
        }
    }

    fn put_text(&mut self, field: &Field, text: &str) {
        if self.result.is_ok() {
            self.result = self.name(field).and_then(|is_message| {
                if !is_message {
                    write_quoted(&mut self.writer, text)
                } else if is_plain(text) {
                    self.writer.write_str(text)
                } else {
                    let mut message = String::with_capacity(text.len());
                    text.chars().for_each(|c| push_escaped(&mut message, c));
                    self.writer.write_str(&message)
                }
            });
        }
    }
}

/// A number of at most one decimal place, such as milliseconds are logged with: its digits cost much less
/// than those of any other.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::float_cmp,
    reason = "only if the number is what its tenths say"
)]
fn tenths(value: f64) -> Option<(u64, u64)> {
    const MAX: f64 = 1e12;
    if !(0.0..MAX).contains(&value) || value.is_sign_negative() {
        return None;
    }
    let tenths = (value * 10.0).round();
    (tenths / 10.0 == value).then_some((tenths as u64 / 10, tenths as u64 % 10))
}

impl Visit for TextVisitor<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        match tenths(value) {
            Some((whole, 0)) => self.put(field, format_args!("{whole}")),
            Some((whole, tenth)) => self.put(field, format_args!("{whole}.{tenth}")),
            None => self.put(field, format_args!("{value}")),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::collections::BTreeMap;
    use std::io::{self, Seek as _};
    use std::sync::Arc;

    fn log(format: LogFormat) -> Log {
        Log {
            format,
            fields: BTreeMap::from([("service".to_owned(), "re\"gistry".to_owned())]),
            ..config::Config::default_config().log
        }
    }

    /// What is logged while `step` runs.
    fn logged(log: &Log, step: impl FnOnce()) -> String {
        let mut file = tempfile::tempfile().unwrap();
        let levels = Arc::default();
        let file_of_log = file.try_clone().unwrap();
        let subscriber = super::super::subscriber(log, &levels, false, file_of_log);
        tracing::subscriber::with_default(subscriber, step);
        file.rewind().unwrap();
        io::read_to_string(file).unwrap()
    }

    /// Turns the line around for whoever reads it in a terminal, and clears the screen.
    const HOSTILE: &str = "a \"b\"\\\u{202e}c\u{1b}[2J\u{9b}d\u{2066}\ne";

    #[test]
    fn a_json_line_has_the_configured_fields_and_numbers_as_numbers() {
        let text = logged(&log(LogFormat::Json), || {
            tracing::info!(target: "millpond", status = 200, ms = 1.5, done = true, "request");
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["service"], "re\"gistry");
        assert_eq!(line["message"], "request");
        assert_eq!((&line["status"], &line["ms"]), (&200.into(), &1.5.into()));
        assert_eq!(line["done"], true);
    }

    #[test]
    fn a_json_line_holds_no_unprintable_character() {
        let text = logged(&log(LogFormat::Json), || {
            tracing::info!(target: "millpond", agent = HOSTILE, "{HOSTILE}");
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["agent"], HOSTILE, "only written in another way");
        assert_eq!(line["message"], HOSTILE);
        let body = text.strip_suffix('\n').unwrap();
        assert!(!body.chars().any(needs_escape), "{body:?}");
    }

    #[test]
    fn a_text_line_quotes_text_and_ends_with_the_configured_fields() {
        let text = logged(&log(LogFormat::Text), || {
            let (shown, debugged) = ("a status=500", std::time::Duration::from_millis(1500));
            tracing::info!(target: "millpond", status = 200, ms = 1.5, agent = "x status=500",
                %shown, ?debugged, "request");
        });
        let expected = "request status=200 ms=1.5 agent=\"x status=500\" \
                        shown=\"a status=500\" debugged=\"1.5s\" service=\"re\\\"gistry\"\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn numbers_are_written_as_usual() {
        for value in [
            0.0,
            -0.0,
            0.1,
            0.3,
            1.0,
            2.5,
            9.9,
            0.25,
            -1.5,
            1e11,
            123_456_789.7,
            1e12,
            1e300,
            0.1 + 0.2,
            f64::NAN,
            f64::INFINITY,
        ] {
            let text = logged(
                &log(LogFormat::Text),
                || tracing::info!(target: "millpond", value, "x"),
            );
            assert!(
                text.contains(&format!(" value={value} ")),
                "{value}: {text}"
            );
        }
    }

    #[test]
    fn a_text_line_begins_with_time_level_and_target() {
        let text = logged(&log(LogFormat::Text), || {
            tracing::warn!(target: "millpond::a", "one");
            tracing::error!(target: "millpond::a", "two");
        });
        let lines: Vec<_> = text.lines().collect();
        for (line, rest) in lines
            .iter()
            .zip(["  WARN millpond::a: one", " ERROR millpond::a: two"])
        {
            let (time, after) = line
                .split_at_checked("2026-11-28T23:59:59.123456Z".len())
                .unwrap();
            assert!(humantime::parse_rfc3339(time).is_ok(), "{line}");
            assert!(after.starts_with(rest), "{line}");
        }
    }

    #[test]
    fn a_text_line_holds_no_unprintable_character() {
        let text = logged(&log(LogFormat::Text), || {
            tracing::info!(target: "millpond", agent = HOSTILE, other = %HOSTILE, "{HOSTILE}");
        });
        let body = text.strip_suffix('\n').unwrap();
        assert!(!body.chars().any(needs_escape), "{body:?}");
        assert!(
            body.contains(r#"agent="a \"b\"\\\u{202e}c\u{1b}[2J\u{9b}d\u{2066}\ne""#),
            "{body}"
        );
    }

    #[test]
    fn the_notice_of_dropped_lines_is_a_line_of_the_same_form() {
        let json = notice(&log(LogFormat::Json))(3);
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&line["dropped"], &line["level"]),
            (&3.into(), &"WARN".into())
        );
        assert_eq!(line["service"], "re\"gistry");
        let text = notice(&log(LogFormat::Text))(3);
        assert!(
            text.ends_with("3 log lines dropped service=\"re\\\"gistry\"\n"),
            "{text}"
        );
    }
}
