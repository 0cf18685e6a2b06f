//! Turns: how connections that send or receive large bodies share a thread of the runtime with everything else.

use std::future::Future as _;
use std::task::{Context, Poll};

/// Bytes that a connection sends or receives in one turn: about 0.1 ms. Half as many cost a third more
/// CPU for each byte.
pub(super) const TURN: usize = 256 * 1024;

/// What a connection has sent or received in its current turn. hyper itself continues for as long as the
/// socket takes or has more, which a fast client's always does.
#[derive(Debug)]
pub(super) struct Turn {
    length: usize,
    bytes: usize,
}

impl Turn {
    /// Turns of `length` bytes.
    pub(super) fn of(length: usize) -> Self {
        Self { length, bytes: 0 }
    }

    /// Ready while the turn lasts. At its end, the task is woken again after the runtime has looked for
    /// new events and has run all other ready tasks.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes < self.length {
            return Poll::Ready(());
        }
        self.bytes = 0;
        // A plain wake-up would put the task behind the ready ones only. The runtime would then run tens
        // of turns of other connections before it looked for events: milliseconds for a small request.
        let yielded = std::pin::pin!(tokio::task::yield_now()).poll(cx);
        debug_assert!(yielded.is_pending(), "its first poll never completes");
        Poll::Pending
    }

    /// Counts bytes of this turn.
    pub(super) fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Begins a new turn, because the task has to wait for its socket.
    pub(super) fn end(&mut self) {
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;
    use tokio::task::LocalSet;

    use super::*;

    /// Clients whose sockets always take more, and one that sends a small request.
    #[tokio::test]
    async fn a_small_request_is_answered_within_a_few_turns_of_large_bodies() {
        const LARGE: usize = 8;
        /// The runtime looks for events for the request, and for its response.
        const LOOKS: usize = 2;
        let turns = Rc::new(Cell::new(0));
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let answer = async move {
            loop {
                let request = server.read_u8().await.unwrap();
                server.write_u8(request).await.unwrap();
            }
        };
        let large = |turns: Rc<Cell<usize>>| async move {
            let mut turn = Turn::of(TURN);
            loop {
                poll_fn(|cx| turn.poll(cx)).await;
                turn.count(TURN);
                turns.set(turns.get() + 1);
            }
        };
        let tasks = LocalSet::new();
        tasks.spawn_local(answer);
        for _ in 0..LARGE {
            tasks.spawn_local(large(Rc::clone(&turns)));
        }
        let requests = async {
            for request in 0..100 {
                let before = turns.get();
                client.write_u8(request).await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), request);
                let meanwhile = turns.get() - before;
                assert!(meanwhile <= LARGE * (LOOKS + 1), "{meanwhile} turns");
            }
            assert!(turns.get() > 0, "large bodies are sent");
        };
        tasks.run_until(requests).await;
    }
}
