//! What a client's request carries through everything that it causes: its id, and its trace.
//!
//! The server makes a [`Context`] for each request and polls the request's future within it. Code that
//! the request runs asks for it with [`current`], so that no signature has to pass it on. A task that a
//! request starts gets a context of its own with the same id ([`caused`]). Log lines show the id, requests
//! to upstreams carry it ([`Context::insert_into`]), and whoever waits for an upstream counts the time
//! ([`Waiting`]).
//!
//! A request is traced if its caller says so (W3C Trace Context) or the sampling does. Only then are there
//! spans: [`Span`] is None everywhere else, and costs nothing. A finished span goes into a bounded queue
//! ([`Tracer`]), from which the app's own task exports it.
//!
//! What must never happen: an id or a trace that isn't checked goes into a header or a line; a full queue
//! or a slow collector makes anything wait.

mod finished;
#[cfg(feature = "otel")]
pub mod otlp;
mod request_id;
mod span;
mod traceparent;
mod tracer;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

pub use finished::{FinishedSpan, Link, SpanKind, Value};
pub use request_id::{RequestId, RequestIds};
pub use span::Span;
pub use traceparent::{TraceId, TraceParent};
pub use tracer::{Sampling, SpanQueue, Tracer};

/// The header of request ids.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header of W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

tokio::task_local! {
    static CURRENT: Context;
}

/// A request, or a task that a request has caused. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: RequestId,
    trace: Option<Trace>,
    /// Microseconds for which the request has waited for upstreams.
    waited: AtomicU64,
}

/// The trace that a context belongs to.
#[derive(Debug, Clone)]
struct Trace {
    /// The span that causes what happens in the context.
    parent: TraceParent,
    /// None for a trace that isn't sampled: it is only passed on.
    tracer: Option<Arc<Tracer>>,
}

impl Context {
    /// Of a request that isn't traced.
    pub fn new(id: RequestId) -> Self {
        Self::with_trace(id, None)
    }

    /// Of a request with its span, if it has one; `passed_on` is the trace of the caller.
    pub fn traced(id: RequestId, span: Option<&Span>, passed_on: Option<TraceParent>) -> Self {
        let unsampled = |parent| Trace {
            parent,
            tracer: None,
        };
        let trace = span.map(Span::trace).or_else(|| passed_on.map(unsampled));
        Self::with_trace(id, trace)
    }

    fn with_trace(id: RequestId, trace: Option<Trace>) -> Self {
        let waited = AtomicU64::new(0);
        Self(Arc::new(Inner { id, trace, waited }))
    }

    pub fn id(&self) -> &RequestId {
        &self.0.id
    }

    /// The trace, if it is sampled.
    pub fn trace_id(&self) -> Option<TraceId> {
        let trace = self.0.trace.as_ref()?;
        trace.tracer.as_ref().map(|_| trace.parent.trace_id)
    }

    /// How long the request has waited for upstreams; None if it hasn't.
    pub fn waited(&self) -> Option<Duration> {
        let micros = self.0.waited.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    /// Polls a future within the context.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Runs a step within the context.
    pub fn enter<R>(&self, step: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(self.clone(), step)
    }

    /// Starts a span of the context.
    fn span(&self, name: &'static str, kind: SpanKind) -> Option<Span> {
        let trace = self.0.trace.as_ref()?;
        let tracer = trace.tracer.as_ref()?;
        Some(Span::child(tracer, trace.parent, name, kind))
    }

    /// Adds the headers of a request to an upstream that the context causes. `span` is the request's.
    fn insert_into(&self, headers: &mut HeaderMap, span: Option<&Span>) {
        headers.insert(X_REQUEST_ID, self.0.id.header());
        let of_span = span.map(Span::parent);
        let parent = of_span.or_else(|| self.0.trace.as_ref().map(|trace| trace.parent));
        if let Some(parent) = parent {
            headers.insert(TRACEPARENT, parent.header());
        }
    }
}

/// The request, or the task of a request, that runs now. None outside of them.
pub fn current() -> Option<Context> {
    CURRENT.try_with(Clone::clone).ok()
}

/// What `read` makes of the current context.
pub fn with_current<R>(read: impl FnOnce(&Context) -> R) -> Option<R> {
    CURRENT.try_with(read).ok()
}

/// Starts a span of what runs now, if that is traced.
pub fn span(name: &'static str, kind: SpanKind) -> Option<Span> {
    with_current(|context| context.span(name, kind)).flatten()
}

/// Adds id and trace of what runs now to the headers of a request to an upstream, whose span is given.
pub fn insert_into(headers: &mut HeaderMap, span: Option<&Span>) {
    with_current(|context| context.insert_into(headers, span));
}

/// Polls a future whose spans are those that `span` causes, where there is one.
pub async fn within<F: Future>(span: Option<&Span>, future: F) -> F::Output {
    let of_span = |span: &Span| {
        let trace = Some(span.trace());
        with_current(|context| Context::with_trace(context.0.id.clone(), trace))
    };
    match span.and_then(of_span) {
        Some(context) => Box::pin(context.scope(future)).await,
        None => future.await,
    }
}

/// A task that the current request starts, and where its span can be found. The task carries the request's
/// id and has a span of this name, which lasts as long as the task. Without a request the task is
/// returned as it is.
pub fn caused<F: Future>(
    name: &'static str,
    future: F,
) -> (impl Future<Output = F::Output> + use<F>, Option<Link>) {
    let context = current();
    let span = context
        .as_ref()
        .and_then(|context| context.span(name, SpanKind::Internal));
    let link = span.as_ref().map(Span::link);
    let own = context.map(|context| {
        let trace = span.as_ref().map(Span::trace);
        let trace = trace.or_else(|| context.0.trace.clone());
        Context::with_trace(context.0.id.clone(), trace)
    });
    let task = async move {
        let _span = span;
        match own {
            Some(own) => own.scope(future).await,
            None => future.await,
        }
    };
    (task, link)
}

/// Counts the time until it is dropped as one in which the current request waits for an upstream.
#[derive(Debug)]
pub struct Waiting {
    context: Option<Context>,
    began: Instant,
    span: Option<Span>,
}

impl Waiting {
    /// Begins a wait without a span.
    pub fn begin() -> Self {
        Self {
            context: current(),
            began: Instant::now(),
            span: None,
        }
    }

    /// Begins a wait for a task that may be another request's: `task` is its span.
    pub fn for_task(name: &'static str, task: Option<Link>) -> Self {
        let mut span = span(name, SpanKind::Internal);
        if let (Some(span), Some(link)) = (&mut span, task) {
            span.link_to(link);
        }
        let mut waiting = Self::begin();
        waiting.span = span;
        waiting
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(context) = &self.context {
            let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
            context.0.waited.fetch_add(micros.max(1), Ordering::Relaxed);
        }
        drop(self.span.take());
    }
}

/// A header's value of characters that are known to be visible ASCII.
fn visible(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests;
