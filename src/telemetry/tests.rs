//! Contexts and their spans.

use super::*;
use crate::clock::Clock;
use crate::metrics::Counter;

fn tracer(ratio: f64) -> (Arc<Tracer>, SpanQueue, Counter) {
    let dropped = Counter::default();
    let clock = Clock::starting_at(std::time::SystemTime::UNIX_EPOCH);
    let (tracer, spans) = Tracer::new(Sampling { ratio }, clock, dropped.clone());
    (tracer, spans, dropped)
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    insert_into(&mut headers, None);
    headers
}

#[tokio::test(start_paused = true)]
async fn what_a_request_causes_carries_its_id_and_its_trace() {
    let (tracer, mut spans, _) = tracer(1.0);
    let root = Span::of_request(&tracer, None);
    let context = Context::traced(
        RequestIds::default().of(&HeaderMap::new()),
        root.as_ref(),
        None,
    );
    let id = context.id().as_str().to_owned();
    assert!(current().is_none() && headers().is_empty());
    let job = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        headers()
    };
    let started = async {
        let (task, link) = caused("job", job);
        let task = tokio_util::task::TaskTracker::new().spawn(task);
        let waiting = Waiting::for_task("wait", link);
        let headers = task.await.unwrap();
        drop(waiting);
        (headers, link.unwrap())
    };
    let (headers, link) = context.clone().scope(started).await;
    assert_eq!(headers[X_REQUEST_ID], id);
    let job = spans.recv().await.unwrap();
    let wait = spans.recv().await.unwrap();
    drop(root);
    let root = spans.recv().await.unwrap();
    assert_eq!(job.parent, Some(root.span_id));
    assert_eq!(link.span_id, job.span_id);
    assert_eq!((wait.link, wait.parent), (Some(link), Some(root.span_id)));
    let sent = headers[TRACEPARENT].to_str().unwrap();
    assert_eq!(
        sent,
        format!("00-{}-{:016x}-01", root.trace_id, job.span_id)
    );
    let length = job.end.duration_since(job.start).unwrap();
    assert_eq!(length, Duration::from_secs(1));
    assert_eq!(context.waited(), Some(length));
}

#[tokio::test(start_paused = true)]
async fn a_trace_that_is_not_sampled_is_passed_on_without_spans() {
    let (tracer, mut spans, _) = tracer(1.0);
    let caller = TraceParent {
        sampled: false,
        ..Span::of_request(&tracer, None).unwrap().parent()
    };
    spans.try_recv().unwrap();
    let root = Span::of_request(&tracer, Some(caller));
    assert!(root.is_none());
    let id = RequestIds::default().of(&HeaderMap::new());
    let context = Context::traced(id, None, Some(caller));
    assert_eq!(context.trace_id(), None);
    let sent = context.enter(|| {
        assert!(span("a", SpanKind::Client).is_none());
        headers()
    });
    assert_eq!(sent[TRACEPARENT], caller.to_string());
    assert!(spans.try_recv().is_err());
}

#[tokio::test]
async fn the_ratio_decides_where_the_caller_does_not() {
    let (none, _spans, _) = tracer(0.0);
    assert!((0..1000).all(|_| Span::of_request(&none, None).is_none()));
    let (half, _spans, _) = tracer(0.5);
    let sampled = (0..1000)
        .filter(|_| Span::of_request(&half, None).is_some())
        .count();
    assert!((300..700).contains(&sampled), "{sampled}");
}

#[tokio::test]
async fn spans_for_which_there_is_no_room_are_counted() {
    let (tracer, mut spans, dropped) = tracer(1.0);
    for _ in 0..5000 {
        drop(Span::of_request(&tracer, None));
    }
    let mut taken = 0;
    while spans.try_recv().is_ok() {
        taken += 1;
    }
    assert_eq!(dropped.get(), 5000 - taken);
    assert!(dropped.get() > 0);
}
