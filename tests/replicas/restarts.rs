//! All replicas are restarted, one after the other, while clients pull.

use serde_json::json;
use testkit::Options;

use crate::Upstream;
use crate::cluster::Cluster;
use crate::load::{Load, costs_little};

const REPLICAS: u8 = 3;
/// How often each is restarted.
const ROUNDS: usize = 2;
/// Bytes a second from the upstream, so that downloads are under way at each stop.
const RATE: u64 = 48 << 20;
/// Pulls between two steps.
const PULLS: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_pull() {
    let upstream = Upstream::with(Options::default().rate(RATE)).await;
    let proxy = json!({"tags": {"ttl": "1s"}, "segments": {"count": 1}});
    let mut cluster = Cluster::start(REPLICAS, &upstream, &proxy);
    let mut load = Load::start(&upstream, cluster.addresses());
    for replica in (0..usize::from(REPLICAS))
        .cycle()
        .take(ROUNDS * usize::from(REPLICAS))
    {
        load.serves(PULLS).await;
        let mut program = cluster.replicas.remove(replica);
        // It takes what it needs to end well, and to start.
        let restarted = tokio::task::spawn_blocking(move || {
            program.stop();
            program.start();
            program
        });
        let program = load.beside(restarted).await.unwrap();
        cluster.replicas.insert(replica, program);
    }
    load.serves(PULLS).await;
    load.end().await;
    costs_little(&upstream, usize::from(REPLICAS));
}
