use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

fn socket() -> (ClientSocket<DuplexStream>, DuplexStream, Arc<Progress>) {
    let (near, far) = tokio::io::duplex(4);
    let progress = Arc::new(Progress::default());
    (
        ClientSocket::new(near, Arc::clone(&progress)),
        far,
        progress,
    )
}

/// How long the socket waits for the client, which sends nothing more.
async fn given_up_after(socket: &mut ClientSocket<DuplexStream>) -> Duration {
    let started = Instant::now();
    let error = socket.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    started.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up() {
    let (mut near, _far, _) = socket();
    let started = Instant::now();
    let error = near.write_all(b"more than fits").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(started.elapsed().as_secs(), CLIENT_STALL.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_slow_peer_is_not() {
    let (mut near, mut far, _) = socket();
    let slow = async {
        let mut taken = [0; 4];
        for _ in 0..5 {
            tokio::time::sleep(CLIENT_STALL.mul_f64(0.9)).await;
            far.read_exact(&mut taken).await.unwrap();
        }
    };
    let (written, ()) = tokio::join!(near.write_all(&[0; 20]), slow);
    written.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_nothing_is_given_up() {
    let (mut near, _far, _) = socket();
    let waited = given_up_after(&mut near).await;
    assert_eq!(waited.as_secs(), FIRST_BYTE_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn the_first_head_has_its_time_from_the_beginning() {
    let (mut near, mut far, _) = socket();
    let late = FIRST_BYTE_TIMEOUT.mul_f64(0.9);
    let client = async {
        tokio::time::sleep(late).await;
        far.write_all(b"G").await.unwrap();
    };
    let (byte, ()) = tokio::join!(near.read_u8(), client);
    assert_eq!(byte.unwrap(), b'G');
    let waited = given_up_after(&mut near).await;
    assert_eq!((late + waited).as_secs(), HEAD_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_trickled_head_does_not_get_more_time() {
    let (mut near, mut far, progress) = socket();
    // One request, and then a long pause, which is the protocol's to end.
    far.write_all(b"GET").await.unwrap();
    near.read_exact(&mut [0; 3]).await.unwrap();
    progress.head_complete();
    let pause = tokio::time::timeout(Duration::from_hours(1), near.read_u8()).await;
    assert!(pause.is_err(), "the socket leaves idle connections alone");
    let trickle = async {
        loop {
            far.write_all(b"G").await.unwrap();
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
    };
    let started = Instant::now();
    let error = tokio::select! {
        error = async { loop { if let Err(error) = near.read_u8().await { break error } } } => error,
        () = trickle => unreachable!(),
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(started.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_body_is_no_head() {
    let (mut near, mut far, progress) = socket();
    far.write_all(b"PUT").await.unwrap();
    near.read_exact(&mut [0; 3]).await.unwrap();
    progress.head_complete();
    let body = progress.body_begins();
    for _ in 0..3 {
        far.write_all(b"x").await.unwrap();
        near.read_u8().await.unwrap();
        let pause = tokio::time::timeout(HEAD_TIMEOUT * 2, near.read_u8()).await;
        assert!(
            pause.is_err(),
            "the body's reader has a deadline of its own"
        );
    }
    drop(body);
    progress.stop();
    let response = tokio::time::timeout(HEAD_TIMEOUT * 2, near.read_u8()).await;
    assert!(response.is_err(), "its answer is awaited");
    far.write_all(b"G").await.unwrap();
    near.read_u8().await.unwrap();
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0, "a stop ends a head");
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_an_incomplete_head_and_nothing_else() {
    let (mut near, mut far, progress) = socket();
    far.write_all(b"GET").await.unwrap();
    near.read_exact(&mut [0; 3]).await.unwrap();
    progress.head_complete();
    progress.stop();
    let request = tokio::time::timeout(Duration::from_mins(1), near.read_u8()).await;
    assert!(request.is_err(), "its answer is awaited");
    far.write_all(b"G").await.unwrap();
    near.read_u8().await.unwrap();
    let started = Instant::now();
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_too_early_is_read_again() {
    let (mut near, mut far, _) = socket();
    far.write_all(b"abcd").await.unwrap();
    let mut bytes = [0; 4];
    near.read_exact(&mut bytes).await.unwrap();
    near.unread(Bytes::copy_from_slice(&bytes));
    far.write_all(b"ef").await.unwrap();
    drop(far);
    let mut all = Vec::new();
    near.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"abcdef");
}
