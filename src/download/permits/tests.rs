use super::*;
use futures_util::FutureExt as _;

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

/// A request that is answered at once.
async fn stream(permits: &Permits, upstream: &str, of: Client, urgency: Urgency) -> Permit {
    let opening = permits.open(upstream, of, urgency).await.unwrap();
    opening.answered().await
}

async fn opening(permits: &Permits, of: Client) -> Result<Permit, DownloadError> {
    permits.open("a", of, Urgency::new(true)).await
}

#[tokio::test]
async fn a_download_that_a_client_waits_for_goes_first() {
    let permits = permits(10, 2);
    let held = [
        stream(&permits, "a", client(1), Urgency::new(true)).await,
        stream(&permits, "a", client(1), Urgency::new(true)).await,
    ];
    let (ahead, wanted) = (Urgency::new(false), Urgency::new(true));
    let mut ahead_waits = Box::pin(stream(&permits, "a", client(1), ahead.clone()));
    let mut wanted_waits = Box::pin(stream(&permits, "a", client(1), wanted));
    let mut later = Box::pin(stream(&permits, "a", client(1), Urgency::new(true)));
    for waits in [&mut ahead_waits, &mut wanted_waits, &mut later] {
        assert!(waits.now_or_never().is_none());
    }
    assert!(permits.try_stream("a", client(1), true).is_none());
    let other = permits.try_stream("b", client(1), true).unwrap();
    let [first, second] = held;
    drop(first);
    let taken = wanted_waits.as_mut().now_or_never().unwrap();
    assert!(ahead_waits.as_mut().now_or_never().is_none());
    // A client comes who waits for it: now it is before the one that came later.
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
    let permits = permits(100, 4);
    let _ahead = [
        stream(&permits, "a", client(1), Urgency::new(false)).await,
        stream(&permits, "a", client(1), Urgency::new(false)).await,
    ];
    let third = Urgency::new(false);
    let mut waits = Box::pin(stream(&permits, "a", client(1), third.clone()));
    assert!(waits.as_mut().now_or_never().is_none());
    let wanted = stream(&permits, "a", client(1), Urgency::new(true)).now_or_never();
    assert!(wanted.is_some());
    third.set(true);
    permits.dispatch();
    assert!(waits.as_mut().now_or_never().is_some());
}

#[tokio::test]
async fn whoever_goes_away_keeps_nothing() {
    let permits = permits(1, 1);
    let held = stream(&permits, "a", client(1), Urgency::new(true)).await;
    let mut gone = Box::pin(stream(&permits, "a", client(1), Urgency::new(true)));
    assert!(gone.as_mut().now_or_never().is_none());
    // Granted, and never looked at.
    drop(held);
    assert!(permits.try_stream("a", client(1), true).is_some());
    drop(gone);
    let held = stream(&permits, "b", client(1), Urgency::new(true)).await;
    let mut gone = Box::pin(stream(&permits, "a", client(1), Urgency::new(true)));
    assert!(gone.as_mut().now_or_never().is_none());
    drop(gone);
    drop(held);
    let ahead = stream(&permits, "c", client(1), Urgency::new(false));
    assert!(ahead.now_or_never().is_some());
    assert!(permits.state().upstreams.is_empty());
}

/// Requests without an answer hold no stream, and a client that sends many leaves places to the
/// others.
#[tokio::test]
async fn unanswered_requests_take_no_stream() {
    let permits = permits(128, 32);
    let mut bogus = Vec::new();
    for _ in 0..MAX_OPENING_OF_CLIENT {
        let opened = opening(&permits, client(1)).now_or_never().unwrap();
        bogus.push(opened.unwrap());
    }
    let mut more = Box::pin(opening(&permits, client(1)));
    assert!(more.as_mut().now_or_never().is_none());
    let real = stream(&permits, "a", client(2), Urgency::new(true)).now_or_never();
    assert!(real.is_some());
    bogus.pop();
    assert!(more.as_mut().now_or_never().is_some());
}

#[tokio::test]
async fn the_client_that_holds_least_is_next() {
    let permits = permits(128, 1);
    let held = stream(&permits, "a", client(1), Urgency::new(true)).await;
    let mut greedy: Vec<_> = (0..20)
        .map(|_| Box::pin(stream(&permits, "a", client(1), Urgency::new(true))))
        .collect();
    for waits in &mut greedy {
        assert!(waits.as_mut().now_or_never().is_none());
    }
    let other = permits.try_stream("b", client(1), true);
    let mut modest = Box::pin(stream(&permits, "a", client(2), Urgency::new(true)));
    assert!(modest.as_mut().now_or_never().is_none());
    drop(held);
    assert!(modest.as_mut().now_or_never().is_some());
    drop(other);
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let permits = permits(1, 1);
    let held = stream(&permits, "a", client(1), Urgency::new(true)).await;
    let mut waiting: Vec<_> = (0..MAX_WAITING)
        .map(|_| Box::pin(opening(&permits, client(1))))
        .collect();
    for waits in &mut waiting {
        assert!(waits.as_mut().now_or_never().is_none());
    }
    let refused = opening(&permits, client(2)).await;
    assert!(matches!(refused, Err(DownloadError::Busy)));
    // One that goes away makes room.
    waiting.pop();
    assert!(opening(&permits, client(2)).now_or_never().is_none());
    drop(held);
}
