//! OTLP, the OpenTelemetry protocol: spans as the body of a request to a collector (protobuf).
//!
//! Source: opentelemetry-proto 1.x, `trace/v1/trace.proto` and `collector/trace/v1`. The tests read what
//! is written with the types that OpenTelemetry itself generates.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::{Message, Oneof};

use super::{FinishedSpan, SpanKind, Value};

/// `STATUS_CODE_ERROR`
const ERROR: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "OneValue", tags = "1, 3")]
    value: Option<OneValue>,
}

#[derive(Clone, PartialEq, Oneof)]
enum OneValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

#[derive(Clone, PartialEq, Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
}

/// The body of a request with these spans; `Content-Type: application/x-protobuf`.
pub fn encode(spans: Vec<Box<FinishedSpan>>) -> Vec<u8> {
    let resource = [
        ("service.name", "millpond"),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let resource = resource.map(|(key, value)| attribute(key, value.into()));
    let request = ExportRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: resource.into(),
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(Scope {
                    name: "millpond".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                }),
                spans: spans.into_iter().map(|finished| span(*finished)).collect(),
            }],
        }],
    };
    request.encode_to_vec()
}

/// How many spans a collector has rejected, by the body of its response. One that can't be read says
/// nothing.
pub fn rejected(response: &[u8]) -> u64 {
    let response = ExportResponse::decode(response).unwrap_or_default();
    let rejected = response
        .partial_success
        .map(|partial| partial.rejected_spans);
    rejected
        .and_then(|count| u64::try_from(count).ok())
        .unwrap_or(0)
}

fn span(finished: FinishedSpan) -> Span {
    let parent = finished.parent.map(|parent| parent.to_be_bytes().to_vec());
    let links = finished.link.into_iter().map(|link| Link {
        trace_id: link.trace_id.to_bytes().into(),
        span_id: link.span_id.to_be_bytes().into(),
    });
    let attributes = finished.attributes.into_iter();
    let attributes = attributes.map(|(key, value)| attribute(key, value));
    Span {
        trace_id: finished.trace_id.to_bytes().into(),
        id: finished.span_id.to_be_bytes().into(),
        parent_span_id: parent.unwrap_or_default(),
        name: finished.name.to_owned(),
        kind: match finished.kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
        },
        start: nanoseconds(finished.start),
        end: nanoseconds(finished.end),
        attributes: attributes.collect(),
        links: links.collect(),
        status: finished.error.map(|message| Status {
            message,
            code: ERROR,
        }),
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => OneValue::Text(text),
        Value::Number(number) => OneValue::Number(number),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
