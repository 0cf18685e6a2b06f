//! The two text formats of metrics, and which of them a request gets.
//!
//! The library writes `OpenMetrics` 1.0. Prometheus text 0.0.4 is made from it: the formats differ in
//! comments only, because millpond uses neither exemplars nor timestamps. A counter's or an info's
//! comments name the series, with its suffix; an info is a gauge; units and the end have no line.

use std::fmt::Write as _;

use http::header::{ACCEPT, HeaderMap};

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// `OpenMetrics` text 1.0.0.
    OpenMetrics,
}

/// What an `Accept` header says of a format: how exactly it names it, and the weight that it gives it.
#[derive(Debug, Clone, Copy, Default)]
struct Preference {
    precision: u8,
    weight: f32,
}

impl Format {
    /// Chooses by `Accept` (RFC 9110, section 12.5.1). `OpenMetrics` only if the header names it, and
    /// doesn't prefer text. Text if it accepts neither.
    pub fn accepted(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(ACCEPT).iter();
        let lines = lines.filter_map(|line| line.to_str().ok());
        let (mut text, mut open) = (Preference::default(), Preference::default());
        for range in lines.flat_map(|line| line.split(',')) {
            text.consider(range, Self::precision_for_text);
            open.consider(range, Self::precision_for_open_metrics);
        }
        if open.precision > 0 && open.weight > 0.0 && open.weight >= text.weight {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// The media type of the answer.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    fn precision_for_text(kind: &str, version: Option<&str>) -> u8 {
        match (kind, version) {
            ("text/plain", Some("0.0.4")) => 4,
            ("text/plain", None) => 3,
            ("text/*", None) => 2,
            ("*/*", None) => 1,
            _ => 0,
        }
    }

    fn precision_for_open_metrics(kind: &str, version: Option<&str>) -> u8 {
        match (kind, version) {
            ("application/openmetrics-text", Some("1.0.0")) => 4,
            ("application/openmetrics-text", None) => 3,
            _ => 0,
        }
    }
}

impl Preference {
    /// Takes the weight of a media range that names the format at least as exactly as those before.
    fn consider(&mut self, range: &str, precision: fn(&str, Option<&str>) -> u8) {
        let mut pieces = range.split(';').map(str::trim);
        let kind = pieces.next().unwrap_or_default().to_ascii_lowercase();
        let (mut version, mut weight) = (None, 1.0);
        for parameter in pieces {
            let Some((name, value)) = parameter.split_once('=') else {
                continue;
            };
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "version" => version = Some(value),
                "q" => weight = value.parse().unwrap_or(0.0),
                _ => {}
            }
        }
        let precision = precision(&kind, version);
        if precision > 0 && precision >= self.precision {
            *self = Self { precision, weight };
        }
    }
}

/// The suffix of the series of a type, where its comments lack it, and the type in text 0.0.4.
pub(super) fn in_text(kind: &str) -> (&'static str, &str) {
    match kind {
        "counter" => ("_total", kind),
        "info" => ("_info", "gauge"),
        _ => ("", kind),
    }
}

/// Prometheus text 0.0.4 of what the library wrote as `OpenMetrics` 1.0.
pub(super) fn to_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The library writes a metric's HELP before its TYPE.
    let mut help = "";
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(_name), Some(rest)) => help = rest,
            (Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = in_text(kind);
                // Writing to a string doesn't fail.
                let written = writeln!(
                    text,
                    "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}"
                );
                debug_assert!(written.is_ok());
            }
            // UNIT and EOF.
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn comments_are_those_of_text_0_0_4() {
        let open_metrics = "\
# HELP a_bytes Bytes, sent.
# TYPE a_bytes counter
# UNIT a_bytes bytes
a_bytes_total{to=\"x # y\"} 7
# HELP b Some gauge.
# TYPE b gauge
b 1.5
# HELP build The build.
# TYPE build info
build_info{version=\"1\"} 1
# HELP c_seconds Times.
# TYPE c_seconds histogram
# UNIT c_seconds seconds
c_seconds_sum 0.5
c_seconds_count 1
c_seconds_bucket{le=\"+Inf\"} 1
# EOF
";
        let text = "\
# HELP a_bytes_total Bytes, sent.
# TYPE a_bytes_total counter
a_bytes_total{to=\"x # y\"} 7
# HELP b Some gauge.
# TYPE b gauge
b 1.5
# HELP build_info The build.
# TYPE build_info gauge
build_info{version=\"1\"} 1
# HELP c_seconds Times.
# TYPE c_seconds histogram
c_seconds_sum 0.5
c_seconds_count 1
c_seconds_bucket{le=\"+Inf\"} 1
";
        assert_eq!(to_text(open_metrics), text);
    }

    #[test]
    fn accept_selects_the_format() {
        use Format::{OpenMetrics, Text};
        let open = "application/openmetrics-text";
        for (accept, format) in [
            ("", Text),
            ("*/*", Text),
            ("text/html", Text),
            ("application/*", Text),
            ("application/json", Text),
            (open, OpenMetrics),
            (
                "Application/OpenMetrics-Text; Version=\"1.0.0\"",
                OpenMetrics,
            ),
            ("application/openmetrics-text;version=0.0.1", Text),
            ("application/openmetrics-text;q=0", Text),
            ("application/openmetrics-text;q=nonsense", Text),
            // Prometheus 2.42.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            // Prometheus 3, which prefers protobuf to both.
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3",
                OpenMetrics,
            ),
            (
                "text/plain;version=0.0.4,application/openmetrics-text;q=0.9",
                Text,
            ),
            (
                "text/plain;q=0.2, application/openmetrics-text;version=1.0.0;q=0.3",
                OpenMetrics,
            ),
            (
                "text/plain;version=1.0.0, application/openmetrics-text;q=0.3",
                OpenMetrics,
            ),
            // The more exact range decides, in either order.
            (
                "text/plain;q=0.1, */*, application/openmetrics-text;q=0.5",
                OpenMetrics,
            ),
            (
                "*/*, text/plain;q=0.1, application/openmetrics-text;q=0.5",
                OpenMetrics,
            ),
        ] {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.append(ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(Format::accepted(&headers), format, "{accept}");
        }
        let mut lines = HeaderMap::new();
        lines.append(ACCEPT, HeaderValue::from_static("text/plain;q=0.5"));
        lines.append(ACCEPT, HeaderValue::from_static(open));
        assert_eq!(Format::accepted(&lines), OpenMetrics, "two lines");
    }
}
