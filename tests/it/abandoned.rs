//! Requests that clients abandon, and more requests than an upstream is sent.

use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::{self, ResponseFuture, SendRequest};
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::{
    ALWAYS, Mirror, Registry, Reply, eventually, mirrored, mirrored_with, put_image,
};

/// The bound of an upstream's metadata requests.
const MAX_REQUESTS: usize = 64;
/// How many more wait.
const MAX_WAITING: usize = 1024;
/// Streams of one connection.
const STREAMS: usize = 64;

/// An upstream that never says anything of these tags, and a mirror that would wait an hour.
async fn silent() -> (Registry, Mirror) {
    let (up, m) = mirrored_with(&["proxy.headertimeout: 1h"]).await;
    up.reply("/manifests/silent", ALWAYS, Reply::silence());
    (up, m)
}

/// An HTTP/2 connection; its task ends when the mirror has closed it.
async fn connect(m: &Mirror) -> (SendRequest<Bytes>, JoinSet<()>) {
    let stream = TcpStream::connect(m.address()).await.unwrap();
    let (sender, connection) = client::handshake(stream).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    (sender, driver)
}

/// Asks for a tag of its own. None when the connection takes no more requests.
async fn ask(sender: &mut SendRequest<Bytes>, number: usize) -> Option<ResponseFuture> {
    let uri = format!("http://mirror/v2/app/manifests/silent{number}");
    let request = Request::get(uri).body(()).unwrap();
    let mut ready = sender.clone().ready().await.ok()?;
    let (response, _stream) = ready.send_request(request, true).ok()?;
    Some(response)
}

#[tokio::test]
async fn requests_that_are_opened_and_reset_leave_no_upstream_work_behind() {
    const REQUESTS: usize = 1500;
    const BATCH: usize = 50;
    let (up, m) = silent().await;
    let (mut opened, mut connections) = (0, 0);
    while opened < REQUESTS {
        connections += 1;
        let (mut sender, mut driver) = connect(&m).await;
        'connection: loop {
            let mut batch = Vec::new();
            while batch.len() < BATCH {
                let Some(response) = ask(&mut sender, opened).await else {
                    break 'connection;
                };
                opened += 1;
                batch.push(response);
            }
            // Each is reset while the upstream has it.
            tokio::select! {
                () = up.wait(up.count("") + 1, "") => {}
                _ended = driver.join_next() => break,
            }
            drop(batch);
            eventually("the upstream's work ends", || up.open().0 == 0).await;
        }
        eventually("the upstream's work ends", || up.open().0 == 0).await;
    }
    // Resets end a connection.
    assert!(connections >= REQUESTS / 250, "{connections} connections");
    let (_, most) = up.open();
    assert!(most <= MAX_REQUESTS, "{most} upstream connections");
    // And nobody has to wait behind them.
    let (image, _) = put_image(&up, 1);
    m.serves("/v2/app/manifests/1", &image.manifest).await;
}

#[tokio::test]
async fn more_requests_than_can_wait_are_told_to_come_again() {
    let (up, m) = silent().await;
    let (mut connections, mut responses) = (Vec::new(), Vec::new());
    for number in 0..MAX_REQUESTS + MAX_WAITING + STREAMS {
        if number % STREAMS == 0 {
            connections.push(connect(&m).await);
        }
        let (sender, _) = connections.last_mut().unwrap();
        responses.push(ask(sender, number).await.unwrap());
    }
    up.wait(MAX_REQUESTS, "/manifests/silent").await;
    let mut refused = 0;
    let mut pending = futures_util::stream::FuturesUnordered::from_iter(responses);
    while refused < STREAMS {
        let response = futures_util::StreamExt::next(&mut pending)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "5");
        refused += 1;
    }
    assert_eq!(up.count("/manifests/silent"), MAX_REQUESTS);
    assert!(up.open().1 <= MAX_REQUESTS);
}

#[tokio::test]
async fn an_abandoned_download_continues_for_another_client() {
    let (up, m) = mirrored().await;
    let (image, _) = put_image(&up, 1);
    let gate = up.hold("/manifests/1", 1);
    let leaver = m.request("GET /v2/app/manifests/1", &[]).send();
    let others = join_all((0..3).map(|_| m.get("/v2/app/manifests/1")));
    let mut others = std::pin::pin!(others);
    tokio::select! {
        _never = leaver => unreachable!(),
        _never = &mut others => unreachable!(),
        () = up.wait(1, "/manifests/1") => {}
    }
    gate.open();
    for answer in others.await {
        answer.expect(200, &image.manifest);
    }
    assert_eq!(up.count("/manifests/1"), 1);
}
