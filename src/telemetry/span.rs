//! Spans: what happened when, as part of a trace.

use std::sync::Arc;

use super::finished::{FinishedSpan, Link, SpanKind, Value};
use super::tracer::Tracer;
use super::{Trace, TraceId, TraceParent};

/// A span that runs. It ends, and is queued, when it is dropped.
#[derive(Debug)]
pub struct Span {
    tracer: Arc<Tracer>,
    /// None once it is queued.
    record: Option<Box<FinishedSpan>>,
    own: TraceParent,
}

impl Span {
    /// Begins the span of a client's request, if the request is traced: as its caller has decided, or
    /// else by chance.
    pub fn of_request(tracer: &Arc<Tracer>, caller: Option<TraceParent>) -> Option<Self> {
        if !tracer.samples(caller) {
            return None;
        }
        let trace_id = caller.map_or_else(TraceId::random, |caller| caller.trace_id);
        let parent = caller.map(|caller| caller.span_id);
        Some(Self::begin(
            tracer,
            trace_id,
            parent,
            "request",
            SpanKind::Server,
        ))
    }

    /// Begins a span that another one causes.
    pub(super) fn child(
        tracer: &Arc<Tracer>,
        parent: TraceParent,
        name: &'static str,
        kind: SpanKind,
    ) -> Self {
        Self::begin(tracer, parent.trace_id, Some(parent.span_id), name, kind)
    }

    fn begin(
        tracer: &Arc<Tracer>,
        trace_id: TraceId,
        parent: Option<u64>,
        name: &'static str,
        kind: SpanKind,
    ) -> Self {
        let own = TraceParent {
            trace_id,
            span_id: fastrand::u64(1..),
            sampled: true,
        };
        let start = tracer.now();
        Self {
            tracer: Arc::clone(tracer),
            own,
            record: Some(Box::new(FinishedSpan {
                name,
                kind,
                trace_id,
                span_id: own.span_id,
                parent,
                start,
                end: start,
                attributes: Vec::new(),
                link: None,
                error: None,
            })),
        }
    }

    /// As those that the span causes name it.
    pub fn parent(&self) -> TraceParent {
        self.own
    }

    pub fn link(&self) -> Link {
        Link {
            trace_id: self.own.trace_id,
            span_id: self.own.span_id,
        }
    }

    pub(super) fn trace(&self) -> Trace {
        Trace {
            parent: self.own,
            tracer: Some(Arc::clone(&self.tracer)),
        }
    }

    /// Begins a span that this one causes.
    #[must_use]
    pub fn phase(&self, name: &'static str) -> Self {
        Self::child(&self.tracer, self.own, name, SpanKind::Internal)
    }

    /// Gives the span another name.
    pub fn rename(&mut self, name: &'static str) {
        self.record.iter_mut().for_each(|record| record.name = name);
    }

    /// Adds an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(record) = &mut self.record {
            record.attributes.push((name, value.into()));
        }
    }

    /// Says why the span failed.
    pub fn fail(&mut self, error: &str) {
        if let Some(record) = &mut self.record {
            record.error = Some(error.to_owned());
        }
    }

    /// Names another span that this one has to do with.
    pub fn link_to(&mut self, link: Link) {
        self.record
            .iter_mut()
            .for_each(|record| record.link = Some(link));
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.end = self.tracer.now();
            self.tracer.finished(record);
        }
    }
}
