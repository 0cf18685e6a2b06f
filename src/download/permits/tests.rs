use std::pin::Pin;

use futures_util::FutureExt as _;

use super::*;

fn permits(total: usize, per_upstream: usize) -> Permits {
    let limits = Streams {
        total,
        per_upstream,
    };
    Permits::new(limits, Arc::new(Metrics::new()))
}

fn client(n: u8) -> Client {
    Client::at(Some([10, 0, 0, n].into()))
}

/// A request for a client that is answered at once.
async fn stream(permits: &Permits, upstream: &str, of: u8, urgency: &Urgency) -> Permit {
    let opening = permits.open(upstream, client(of), urgency.clone()).await;
    opening.unwrap().answered().await
}

async fn opening(permits: &Permits, of: u8) -> Result<Permit, DownloadError> {
    permits.open("a", client(of), Urgency::new(true)).await
}

/// A future that isn't ready yet.
fn waits<F: Future>(future: F) -> Pin<Box<F>> {
    let mut future = Box::pin(future);
    assert!(future.as_mut().now_or_never().is_none());
    future
}

#[tokio::test]
async fn a_download_that_a_client_waits_for_goes_first() {
    let (permits, urgent, ahead) = (permits(10, 2), Urgency::new(true), Urgency::new(false));
    let first = stream(&permits, "a", 1, &urgent).await;
    let second = stream(&permits, "a", 1, &urgent).await;
    let mut ahead_waits = waits(stream(&permits, "a", 1, &ahead));
    let mut wanted_waits = waits(stream(&permits, "a", 1, &urgent));
    let mut later = waits(stream(&permits, "a", 1, &urgent));
    assert!(permits.try_stream("a", client(1), true).is_none());
    let other = permits.try_stream("b", client(1), true).unwrap();
    drop(first);
    let taken = wanted_waits.as_mut().now_or_never().unwrap();
    assert!(ahead_waits.as_mut().now_or_never().is_none());
    // A client joins that waits for it: now it is before the later one.
    ahead.set(true);
    drop(second);
    let promoted = ahead_waits.as_mut().now_or_never().unwrap();
    assert!(later.as_mut().now_or_never().is_none());
    drop((taken, promoted, other));
    assert!(later.as_mut().now_or_never().is_some());
    drop(later);
    let state = permits.state();
    assert_eq!((state.streams, state.upstreams.len()), (0, 0));
    assert!(state.clients.is_empty());
}

#[tokio::test]
async fn downloads_without_a_client_leave_half_and_take_it_when_wanted() {
    let (permits, ahead) = (permits(100, 4), Urgency::new(false));
    let first = stream(&permits, "a", 1, &ahead).await;
    let second = stream(&permits, "a", 1, &ahead).await;
    let third = Urgency::new(false);
    let mut third_waits = waits(stream(&permits, "a", 1, &third));
    let urgent = Urgency::new(true);
    let wanted = stream(&permits, "a", 1, &urgent).now_or_never();
    assert!(wanted.is_some());
    third.set(true);
    permits.dispatch();
    assert!(third_waits.as_mut().now_or_never().is_some());
    drop((first, second));
}

#[tokio::test]
async fn a_request_that_is_dropped_keeps_no_permit() {
    let (permits, urgent) = (permits(1, 1), Urgency::new(true));
    let held = stream(&permits, "a", 1, &urgent).await;
    let gone = waits(stream(&permits, "a", 1, &urgent));
    // Granted, and never polled.
    drop(held);
    assert!(permits.try_stream("a", client(1), true).is_some());
    drop(gone);
    let held = stream(&permits, "b", 1, &urgent).await;
    drop(waits(stream(&permits, "a", 1, &urgent)));
    drop(held);
    let ahead = Urgency::new(false);
    let ahead = stream(&permits, "c", 1, &ahead).now_or_never();
    assert!(ahead.is_some());
    drop(ahead);
    assert!(permits.state().upstreams.is_empty());
}

/// Requests without an answer hold no stream, and a client that sends many leaves room for others.
#[tokio::test]
async fn unanswered_requests_take_no_stream() {
    let permits = permits(128, 32);
    let openings = || opening(&permits, 1).now_or_never().unwrap().unwrap();
    let mut bogus: Vec<_> = std::iter::repeat_with(openings)
        .take(MAX_OPENING_OF_CLIENT)
        .collect();
    let mut more = waits(opening(&permits, 1));
    let urgent = Urgency::new(true);
    let real = stream(&permits, "a", 2, &urgent).now_or_never();
    assert!(real.is_some());
    bogus.pop();
    assert!(more.as_mut().now_or_never().is_some());
}

#[tokio::test]
async fn the_client_that_holds_least_is_next() {
    let (permits, urgent) = (permits(128, 1), Urgency::new(true));
    let held = stream(&permits, "a", 1, &urgent).await;
    let greedy: Vec<_> = (0..20)
        .map(|_| waits(stream(&permits, "a", 1, &urgent)))
        .collect();
    let other = permits.try_stream("b", client(1), true);
    let mut modest = waits(stream(&permits, "a", 2, &urgent));
    drop(held);
    assert!(modest.as_mut().now_or_never().is_some());
    drop((other, greedy));
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let (permits, urgent) = (permits(1, 1), Urgency::new(true));
    let held = stream(&permits, "a", 1, &urgent).await;
    let waiting = (0..MAX_WAITING).map(|_| waits(opening(&permits, 1)));
    let mut waiting: Vec<_> = waiting.collect();
    let refused = opening(&permits, 2).await;
    assert!(matches!(refused, Err(DownloadError::Busy)));
    // One that is dropped makes room.
    waiting.pop();
    drop(waits(opening(&permits, 2)));
    drop(held);
}
