//! The owner of a blob ends or stops while the others read from it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use rustix::process::Signal;
use serde_json::json;
use testkit::noise;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::Upstream;
use crate::cluster::Cluster;

const MIB: usize = 1 << 20;
const SIZE: usize = 64 * MIB;
/// What the upstream has sent, and every client received, before the owner stops.
const SENT: usize = 24 * MIB;
/// Clients of each of the other replicas.
const CLIENTS: usize = 3;
/// The whole test.
const LIMIT: Duration = Duration::from_mins(2);

/// A blob that clients pull, and its path.
#[derive(Debug, Clone)]
struct Wanted {
    blob: Bytes,
    path: String,
}

impl Wanted {
    fn put(upstream: &Upstream, seed: u64, size: usize) -> Self {
        let blob = noise(seed, size);
        let path = format!("/v2/app/blobs/{}", upstream.put_blob("app", &blob));
        Self { blob, path }
    }

    fn digest(&self) -> &str {
        self.path.rsplit('/').next().unwrap()
    }

    /// Pulls it, compares it, and tells how much has come.
    async fn pull(&self, from: SocketAddr, received: &watch::Sender<usize>) -> Result<(), String> {
        let Self { blob, path } = self;
        let client = reqwest::Client::builder().tls_certs_only([]).build();
        let response = client.unwrap().get(format!("http://{from}{path}")).send();
        let mut response = response.await.map_err(|error| error.to_string())?;
        if response.status() != 200 {
            return Err(response.status().to_string());
        }
        let mut at = 0;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if blob.get(at..at + chunk.len()) == Some(&chunk[..]) => {
                    at += chunk.len();
                    received.send_replace(at);
                }
                Ok(None) if at == blob.len() => return Ok(()),
                ended => {
                    return Err(format!(
                        "{from} at {at}: {:?}",
                        ended.map(|_| "wrong bytes")
                    ));
                }
            }
        }
    }
}

/// The owner is sent a signal when all clients have a part of a blob. `resumes`: it goes on when those of the
/// others have everything, and its own client gets everything, too.
async fn owner_is_sent(signal: Signal, resumes: bool) {
    let upstream = Upstream::start().await;
    // One stream for a download, so that requests are downloads.
    let cluster = Cluster::start(4, &upstream, &json!({"segments": {"count": 1}}));
    let wanted = Wanted::put(&upstream, 1, SIZE);
    let order = cluster.order(wanted.digest());
    let gate = upstream.hold_body("GET ", 1, SENT);
    let owner = &cluster.replicas[order[0]];
    let reader = |replica: &usize| {
        let address = cluster.replicas[*replica].address;
        (address, watch::Sender::new(0))
    };
    let at_owner = reader(&order[0]);
    let others = order[1..].iter().flat_map(|other| [other; CLIENTS]);
    let others: Vec<_> = others.map(reader).collect();
    let pulls = others
        .iter()
        .map(|(from, received)| wanted.pull(*from, received));
    let stopping = async {
        for (_, received) in others.iter().chain([&at_owner]) {
            let mut received = received.subscribe();
            let part = received.wait_for(|bytes| *bytes == SENT).await;
            drop(part.unwrap());
        }
        owner.halt(signal);
        gate.open();
        Ok(())
    };
    let of_others = async {
        let pulled = tokio::try_join!(try_join_all(pulls), stopping);
        if resumes {
            owner.signal(Signal::CONT);
        }
        pulled
    };
    let all = async { tokio::join!(of_others, wanted.pull(at_owner.0, &at_owner.1)) };
    let (of_others, of_owner) = timeout(LIMIT, all).await.unwrap();
    of_others.unwrap();
    assert_eq!(of_owner.is_ok(), resumes, "{of_owner:?}");
    let gets = upstream.seen(&format!("GET {}", wanted.path));
    let ranges: Vec<_> = gets.iter().map(|seen| seen.header("range")).collect();
    let rest = format!("bytes={SENT}-");
    assert_eq!(ranges, [None, Some(rest.as_str())]);
    if resumes {
        is_asked_again(&cluster, &upstream, order[0]).await;
    }
}

/// The others notice that a replica is there, and ask it.
async fn is_asked_again(cluster: &Cluster, upstream: &Upstream, owner: usize) {
    let wanted = (2..).map(|seed| Wanted::put(upstream, seed, 1000));
    let mut unknown = wanted.filter(|wanted| cluster.order(wanted.digest())[0] == owner);
    for (at, replica) in cluster.replicas.iter().enumerate() {
        testkit::poll("nobody is missing", || {
            let answer = replica.get(replica.debug, "/readyz");
            !String::from_utf8(answer).unwrap().contains("don't answer")
        });
        if at != owner {
            let wanted = unknown.next().unwrap();
            let received = watch::Sender::new(0);
            wanted.pull(replica.address, &received).await.unwrap();
            wanted
                .pull(cluster.replicas[owner].address, &received)
                .await
                .unwrap();
            assert_eq!(upstream.count(&wanted.path), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_is_whole_when_the_owner_is_killed() {
    owner_is_sent(Signal::KILL, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_is_whole_when_the_owner_stops_and_goes_on() {
    owner_is_sent(Signal::STOP, true).await;
}
