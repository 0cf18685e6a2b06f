//! Traces: from the client through the mirror to the upstream, and to a scripted collector, which reads
//! what it gets with OpenTelemetry's own types.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use tokio_util::task::TaskTracker;

use crate::harness::{
    ALWAYS, Mirror, Registry, Reply, Setup, advance, blob_path, eventually, passing, put_blob,
    put_image,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A `traceparent` of the caller.
fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

/// A mirror, its upstream, and the collector of its traces.
struct Traced {
    up: Registry,
    m: Mirror,
    collector: Registry,
}

/// `more` are further keys of the section.
async fn traced(more: &str) -> Traced {
    let collector = Registry::scripted(|_| Reply::ok("")).await;
    traced_by(collector, more).await
}

async fn traced_by(collector: Registry, more: &str) -> Traced {
    let up = Registry::start().await;
    let tracing = format!("root.tracing: {{endpoint: '{}'{more}}}", collector.url());
    let m = Setup::new(&up).with(&[&tracing]).start().await;
    Traced { up, m, collector }
}

impl Traced {
    /// The spans that have come, once there are so many.
    async fn spans(&self, count: u64) -> Vec<Span> {
        self.reaches("millpond_trace_spans_exported_total", count)
            .await;
        self.received()
    }

    /// Lets time pass, because batches wait for more spans, until a metric has at least a value.
    async fn reaches(&self, series: &str, value: u64) {
        for _ in 0..1000 {
            if self.m.metric(series) >= value {
                return;
            }
            advance(Duration::from_millis(100)).await;
        }
        panic!("{series} is {} and not {value}", self.m.metric(series));
    }

    fn received(&self) -> Vec<Span> {
        let requests = self.collector.seen("POST /v1/traces").into_iter();
        let resources = requests.flat_map(|seen| {
            assert_eq!(seen.header("content-type"), Some("application/x-protobuf"));
            let request = ExportTraceServiceRequest::decode(&*seen.bytes).unwrap();
            request.resource_spans
        });
        let scopes = resources.flat_map(|spans| {
            let resource = spans.resource.unwrap();
            let name = resource
                .attributes
                .iter()
                .find(|pair| pair.key == "service.name");
            let name = name.unwrap().value.clone().unwrap().value;
            assert_eq!(name, Some(Value::StringValue("millpond".to_owned())));
            spans.scope_spans
        });
        scopes.flat_map(|scope| scope.spans).collect()
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found
        .next()
        .unwrap_or_else(|| panic!("no {name} in {spans:#?}"));
    assert!(found.next().is_none(), "more than one {name} in {spans:#?}");
    span
}

fn attribute(span: &Span, key: &str) -> String {
    let pair = span.attributes.iter().find(|pair| pair.key == key);
    match pair.and_then(|pair| pair.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key} of {} is {other:?}", span.name),
    }
}

fn hex(bytes: &[u8]) -> String {
    const_hex::encode(bytes)
}

#[tokio::test(start_paused = true)]
async fn a_callers_trace_goes_through_to_the_upstream() {
    let t = traced("").await;
    let (image, path) = put_image(&t.up, 1);
    let headers = [("traceparent", &*parent("01")), ("x-request-id", "mine")];
    let answer = t.m.ask(&format!("GET {path}"), &headers).await;
    answer.expect(200, &image.manifest);
    let spans = t.spans(7).await;
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));

    let request = named(&spans, "manifest");
    assert_eq!(hex(&request.parent_span_id), CALLER);
    assert_eq!(request.kind(), SpanKind::Server);
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", &path),
        ("http.response.status_code", "200"),
        ("http.response.body.size", &image.manifest.len().to_string()),
        ("millpond.result", "miss"),
        ("millpond.request_id", "mine"),
        ("client.address", "127.0.0.1"),
    ] {
        assert_eq!(attribute(request, key), value, "{key}");
    }
    assert!(request.end_time_unix_nano >= request.start_time_unix_nano);

    let shared = named(&spans, "shared request");
    assert_eq!(shared.parent_span_id, request.span_id);
    let wait = named(&spans, "wait for a shared request");
    assert_eq!(wait.parent_span_id, request.span_id);
    assert_eq!(wait.links[0].span_id, shared.span_id);
    let exchange = named(&spans, "upstream request");
    assert_eq!(exchange.parent_span_id, shared.span_id);
    assert_eq!(exchange.kind(), SpanKind::Client);
    assert_eq!(attribute(exchange, "http.response.status_code"), "200");
    for phase in ["response head", "response body"] {
        assert_eq!(named(&spans, phase).parent_span_id, exchange.span_id);
    }
    let head = named(&spans, "response head");
    let connect = named(&spans, "connect");
    assert_eq!(connect.parent_span_id, head.span_id);
    assert!(connect.end_time_unix_nano <= head.end_time_unix_nano);
    let sent = format!("00-{TRACE}-{}-01", hex(&exchange.span_id));
    assert_eq!(
        t.up.seen("/manifests/")[0].header("traceparent"),
        Some(&*sent)
    );
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_download_links_to_it() {
    let t = traced("").await;
    let (blob, path) = put_blob(&t.up, 1, 100_000);
    let gate = t.up.hold("/blobs/", 1);
    let ask = || {
        t.m.request(&format!("GET {path}"), &[("traceparent", &parent("01"))])
    };
    let first = TaskTracker::new().spawn(ask().send());
    t.up.wait(1, "/blobs/").await;
    let second = TaskTracker::new().spawn(ask().send());
    eventually("two clients follow", || {
        t.m.metric("millpond_followers") == 2
    })
    .await;
    gate.open();
    for client in [first, second] {
        let answer = crate::harness::read(client.await.unwrap().unwrap()).await;
        answer.expect(200, &blob);
    }
    t.m.idle().await;
    let spans = t.spans(9).await;
    let download = named(&spans, "download a blob");
    let waits: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "wait for a download")
        .collect();
    assert_eq!(waits.len(), 2, "{spans:#?}");
    assert_ne!(waits[0].parent_span_id, waits[1].parent_span_id);
    for wait in waits {
        assert_eq!(wait.links[0].span_id, download.span_id);
    }
    let exchange = named(&spans, "upstream request");
    assert_eq!(exchange.parent_span_id, download.span_id);
}

#[tokio::test(start_paused = true)]
async fn failures_are_marked() {
    let t = traced("").await;
    t.up.reply("/blobs/", ALWAYS, Reply::error(500));
    let path = blob_path("app", b"x");
    let headers = [("traceparent", &*parent("01"))];
    let line = format!("GET {path}");
    let answer = passing(t.m.ask(&line, &headers)).await;
    assert_eq!(answer.status, 500);
    t.m.idle().await;
    let spans = t.spans(6).await;
    let request = named(&spans, "blob");
    assert_eq!(request.status.clone().unwrap().code(), StatusCode::Error);
    assert!(attribute(request, "millpond.error").contains("500"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_made_is_marked() {
    let nobody = testkit::ReservedPort::new();
    let collector = Registry::scripted(|_| Reply::ok("")).await;
    let tracing = format!("root.tracing: {{endpoint: '{}'}}", collector.url());
    let m = Setup::of(&format!("http://{}", nobody.address))
        .with(&[&tracing])
        .start()
        .await;
    let up = Registry::start().await;
    let t = Traced { up, m, collector };
    let line = format!("GET {}", blob_path("app", b"x"));
    let headers = [("traceparent", &*parent("01"))];
    assert_eq!(passing(t.m.ask(&line, &headers)).await.status, 502);
    t.m.idle().await;
    let spans = t.spans(6).await;
    let connects: Vec<_> = spans.iter().filter(|span| span.name == "connect").collect();
    assert!(!connects.is_empty());
    for connect in connects {
        assert_eq!(connect.status.clone().unwrap().code(), StatusCode::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_sampled_has_no_spans() {
    let t = traced(", sample: 0").await;
    let (image, path) = put_image(&t.up, 1);
    // Nobody has decided, or a caller against it.
    t.m.serves(&path, &image.manifest).await;
    assert_eq!(t.up.seen("/manifests/")[0].header("traceparent"), None);
    let (_, blob) = put_blob(&t.up, 2, 1000);
    let headers = [("traceparent", &*parent("00"))];
    assert_eq!(t.m.ask(&format!("GET {blob}"), &headers).await.status, 200);
    // It is passed on as it came.
    assert_eq!(
        t.up.seen("/blobs/")[0].header("traceparent"),
        Some(&*parent("00"))
    );
    t.m.idle().await;
    // Connections end a second after that.
    assert!(passing(t.m.app.stop()).await);
    assert_eq!(t.collector.count(""), 0);
}

#[tokio::test(start_paused = true)]
async fn a_bad_traceparent_begins_a_new_trace() {
    let t = traced(", sample: 1").await;
    let bad = [
        String::new(),
        "x".to_owned(),
        parent("01").to_uppercase(),
        parent("0g"),
        parent("01-more"),
        parent("01").replacen("00", "ff", 1),
        parent("01").replace(TRACE, &"0".repeat(32)),
        parent("01").replace(CALLER, &"0".repeat(16)),
        parent("01").replace('-', " "),
    ];
    for value in &bad {
        assert_eq!(
            t.m.ask("GET /v2/", &[("traceparent", value)]).await.status,
            200
        );
    }
    let twice = [
        ("traceparent", &*parent("01")),
        ("traceparent", &*parent("01")),
    ];
    t.m.ask("GET /v2/", &twice).await;
    let count = bad.len() + 1;
    let spans = t.spans(count as u64).await;
    assert_eq!(spans.len(), count);
    for span in &spans {
        assert_eq!(span.name, "base");
        assert!(span.parent_span_id.is_empty(), "{span:?}");
        assert_ne!(hex(&span.trace_id), TRACE);
        assert_ne!(span.trace_id, [0; 16]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_is_exported_at_the_stop() {
    let t = traced(", sample: 1, headers: {x-key: secret}").await;
    t.m.get("/v2/").await;
    t.m.counted("millpond_requests_total{route=\"base\",result=\"hit\"}", 1)
        .await;
    let Traced { m, collector, up } = t;
    let metrics = std::sync::Arc::clone(m.app.metrics());
    assert!(passing(m.app.stop()).await);
    assert_eq!(
        collector.seen("POST /v1/traces")[0].header("x-key"),
        Some("secret")
    );
    let text = metrics.render();
    assert!(
        text.contains("millpond_trace_spans_exported_total 1\n"),
        "{text}"
    );
    drop(up);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_fails_costs_spans_and_no_request() {
    let collector = Registry::in_turn([Reply::error(503), Reply::ok(""), Reply::error(400)]).await;
    let t = traced_by(collector, ", sample: 1").await;
    t.m.get("/v2/").await;
    // A 503 may pass: the same spans are sent again.
    assert_eq!(t.spans(1).await.len(), 2);
    assert_eq!(t.m.metric("millpond_trace_spans_exported_total"), 1);
    // A 400 doesn't.
    t.m.get("/v2/").await;
    t.reaches("millpond_trace_spans_dropped_total", 1).await;
    assert_eq!(t.collector.count("POST"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_stalls_holds_up_nothing() {
    let collector =
        Registry::scripted(|_| Reply::ok("").held(&crate::harness::Gate::default())).await;
    let t = traced_by(collector, ", sample: 1, timeout: 5s").await;
    for _ in 0..10 {
        assert_eq!(t.m.get("/v2/").await.status, 200);
    }
    t.reaches("millpond_trace_spans_dropped_total", 10).await;
    // A stop waits for a bounded time.
    t.m.get("/v2/").await;
    assert!(passing(t.m.app.stop()).await);
}
