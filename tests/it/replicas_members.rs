//! Replicas that DNS names: they come and go, and DNS fails.

use std::net::SocketAddr;
use std::time::Duration;

use testkit::ReservedPort;

use crate::harness::log::Warnings;
use crate::harness::replicas::{Dns, SECRET};
use crate::harness::{Mirror, Registry, Setup, advance, digest, eventually, put_blob};

/// How often the name is looked up.
const INTERVAL: Duration = Duration::from_secs(5);

fn address(last: u8) -> SocketAddr {
    ([127, 0, 9, last], 9).into()
}

fn addresses(last: impl IntoIterator<Item = u8>) -> impl Iterator<Item = SocketAddr> {
    last.into_iter().map(address)
}

/// A replica of those that a name has.
async fn replica(up: &Registry, dns: &Dns, own: SocketAddr) -> Mirror {
    let section = format!("root.replicas: {{peers: 'replicas.test:5000', secret: {SECRET}}}");
    let setup = Setup::new(up).addr(own).with(&[&section]);
    setup.lookup(dns.lookup()).start().await
}

async fn knows(m: &Mirror, others: u64) {
    let what = format!("{others} other replicas");
    eventually(&what, || m.metric("millpond_replicas") == others).await;
}

#[tokio::test(start_paused = true)]
async fn members_come_and_go_and_stay_while_dns_fails() {
    let (up, dns, log) = (Registry::start().await, Dns::default(), Warnings::collect());
    let own = ReservedPort::new();
    // Nothing is known at the start, either.
    let m = replica(&up, &dns, own.address).await;
    let (blob, path) = put_blob(&up, 1, 1000);
    m.serves(&path, &blob).await;
    dns.say(addresses(1..=2).chain([own.address]));
    advance(INTERVAL).await;
    knows(&m, 2).await;
    dns.say(addresses([2, 3, 4, 5]));
    advance(INTERVAL).await;
    knows(&m, 4).await;
    let warnings = log.about("looked up");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("no such name"), "{warnings:?}");
    // Each failure is told once.
    for fail in [Dns::fail, |dns: &Dns| dns.say([]), Dns::fall_silent] {
        fail(&dns);
        for _ in 0..6 {
            advance(INTERVAL).await;
            assert_eq!(m.metric("millpond_replicas"), 4);
        }
        let warnings = log.about("looked up");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        dns.say(addresses([2, 3, 4, 5]));
        advance(INTERVAL).await;
        advance(INTERVAL).await;
    }
    dns.say(addresses([3]));
    advance(INTERVAL).await;
    knows(&m, 1).await;
}

#[tokio::test(start_paused = true)]
async fn of_many_addresses_the_64_lowest_count() {
    let (up, dns, log) = (Registry::start().await, Dns::default(), Warnings::collect());
    let own = ReservedPort::new();
    dns.say(addresses((1..=80).rev()));
    let m = replica(&up, &dns, own.address).await;
    knows(&m, 64).await;
    for _ in 0..3 {
        advance(INTERVAL).await;
    }
    let warnings = log.about("too many");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("left_out=16"), "{warnings:?}");
    // Its own is lower than all of them, and takes the place of one.
    dns.say(addresses(1..=80).chain([own.address]));
    advance(INTERVAL).await;
    knows(&m, 63).await;
    dns.say(addresses(1..=64));
    advance(INTERVAL).await;
    knows(&m, 64).await;
    assert!(log.about("too many").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_replica_asks_before_it_is_asked() {
    let (up, dns) = (Registry::start().await, Dns::default());
    let ports = [
        ReservedPort::new(),
        ReservedPort::new(),
        ReservedPort::new(),
    ];
    dns.say([ports[0].address, ports[1].address]);
    let mut mirrors = Vec::new();
    for port in &ports {
        mirrors.push(replica(&up, &dns, port.address).await);
    }
    for (mirror, others) in mirrors.iter().zip([1, 1, 2]) {
        knows(mirror, others).await;
    }
    let asked = "millpond_source_requests_total{source=\"peer\"}";
    let mut seed = 0;
    let mut pull_twenty = async |by: &Mirror| {
        for _ in 0..20 {
            seed += 1;
            let (blob, path) = put_blob(&up, seed, 1000);
            by.serves(&path, &blob).await;
            let gets = up.count(&format!("GET {path}"));
            assert_eq!(gets, 1, "{}", digest(&blob));
        }
    };
    // The newcomer asks the members, which don't know it.
    pull_twenty(&mirrors[2]).await;
    assert_eq!(mirrors[2].metric(asked), 20);
    pull_twenty(&mirrors[0]).await;
    let of_two = mirrors[0].metric(asked);
    assert!(of_two < 20);
    dns.say(ports.iter().map(|port| port.address));
    advance(INTERVAL).await;
    for mirror in &mirrors {
        knows(mirror, 2).await;
    }
    let upstream = "millpond_source_requests_total{source=\"upstream\"}";
    assert_eq!(mirrors[2].metric(upstream), 0);
    pull_twenty(&mirrors[0]).await;
    assert!(mirrors[2].metric(upstream) > 0);
}
