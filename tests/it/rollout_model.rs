//! The model of rollouts behind the table of `docs/replicas.md`, where the answer is known.

#[path = "../../benches/rollout/flow.rs"]
mod flow;

use flow::{GBIT, Redirect, Rollout};

/// Of 1 s on a line of 10 Gbit/s.
const LAYER: u64 = 1_250_000_000;

fn rollout(nodes: usize, replicas: usize) -> Rollout {
    Rollout {
        nodes,
        within: 0.0,
        replicas,
        layers: vec![LAYER],
        node: 10.0 * GBIT,
        replica: 25.0 * GBIT,
        upstream: 4.0 * GBIT,
        bucket: 100.0 * GBIT,
        redirect: Redirect::Never,
        is_cached: true,
        step: 0.001,
    }
}

/// The slowest node takes about so long.
#[track_caller]
fn takes(rollout: &Rollout, seconds: f64) {
    let took = rollout.run();
    assert_eq!(took.len(), rollout.nodes);
    let last = took.last().unwrap();
    assert!((last / seconds - 1.0).abs() < 0.02, "{last}: {rollout:?}");
}

#[test]
fn a_rollout_takes_as_long_as_its_slowest_line() {
    // The node's.
    takes(&rollout(1, 1), 1.0);
    // That of the replica.
    takes(&rollout(10, 1), 4.0);
    // That of the upstream, through one replica and through two.
    for replicas in [1, 2] {
        let new = Rollout {
            is_cached: false,
            ..rollout(2, replicas)
        };
        takes(&new, 2.5);
    }
    // The bucket's, and the nodes'.
    for (bucket, seconds) in [(100.0, 2.0), (f64::INFINITY, 1.0)] {
        let redirected = Rollout {
            bucket: bucket * GBIT,
            redirect: Redirect::Always,
            ..rollout(20, 1)
        };
        takes(&redirected, seconds);
    }
}

#[test]
fn only_what_a_busy_replica_cannot_send_is_redirected() {
    // Five by the replica, fifteen by the bucket.
    let busy = Rollout {
        redirect: Redirect::Busy(4),
        bucket: f64::INFINITY,
        ..rollout(20, 1)
    };
    takes(&busy, 2.0);
    // A new image is in the bucket too late for nodes that ask at once.
    let new = Rollout {
        is_cached: false,
        ..busy
    };
    // With its upload.
    takes(&new, 8.4);
}
