//! The `tracing` section.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_yaml::Mapping;
use url::Url;

use super::credentials::HIDDEN;
use super::section::Section;

/// Where OTLP over HTTP takes spans, below a collector's address.
const PATH: &str = "/v1/traces";
const DEFAULT_SAMPLE: f64 = 0.01;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const ADVICE: &str = "write an http:// or https:// URL such as http://collector:4318";

/// The export of traces.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// Where spans are sent.
    pub endpoint: Url,
    /// Sent with each request; none of the values is shown.
    pub headers: HeaderMap,
    /// The share of the requests that are traced where the caller doesn't decide, 0 to 1.
    pub sample: f64,
    /// How long one request to the collector may take.
    pub timeout: Duration,
}

pub(super) fn read(tracing: &Section<'_>) -> Option<Tracing> {
    let endpoint = tracing.text("endpoint").and_then(|text| {
        let url = endpoint(&text);
        match &url {
            Some(url) => tracing.print("endpoint", url.as_str()),
            // Not shown: it may have a password.
            None => tracing.reject(
                "endpoint",
                format!("isn't the URL of a collector; {ADVICE}"),
            ),
        }
        url
    });
    let headers = headers(tracing);
    tracing.print("sample", DEFAULT_SAMPLE);
    let sample = tracing.parsed("sample", ratio).unwrap_or(DEFAULT_SAMPLE);
    tracing.print("sample", sample);
    let timeout = tracing.duration("timeout", DEFAULT_TIMEOUT);
    if timeout.is_zero() {
        tracing.reject(
            "timeout",
            "is 0; write how long a request may take, such as 10s",
        );
    }
    let endpoint = endpoint?;
    if !cfg!(feature = "otel") {
        tracing.reject(
            "endpoint",
            "has no effect: this program was built without traces",
        );
    }
    Some(Tracing {
        endpoint,
        headers,
        sample,
        timeout,
    })
}

fn endpoint(text: &str) -> Option<Url> {
    let mut url = Url::parse(text).ok()?;
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || !plain {
        return None;
    }
    if url.path() == "/" {
        url.set_path(PATH);
    }
    Some(url)
}

fn headers(tracing: &Section<'_>) -> HeaderMap {
    let (mut headers, mut printed) = (HeaderMap::new(), Mapping::new());
    for (name, text) in tracing.texts_with("headers", "-") {
        let path = format!("{}.{name}", tracing.path("headers"));
        let pair = (HeaderName::try_from(&name), HeaderValue::try_from(&text));
        let (Ok(header), Ok(mut value)) = pair else {
            let problem = format!("`{path}` can't be sent as an HTTP header");
            tracing.problem_at(&path, problem);
            continue;
        };
        value.set_sensitive(true);
        headers.insert(header, value);
        printed.insert(name.into(), HIDDEN.into());
    }
    tracing.print("headers", printed);
    headers
}

fn ratio(text: &str) -> Result<f64, &'static str> {
    let ratio = text
        .parse()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or("write a number from 0 to 1 such as 0.01")
}
