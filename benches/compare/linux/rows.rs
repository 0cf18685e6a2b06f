//! The rows of the comparison: what is asked for, of whom, and what should come of it.

use super::Sizes;
use super::common::report::Target::{self, AtLeast, AtMost};
use super::common::run::Per;
use super::library::Library;
use super::peers::{Peer, other_registry};

/// How the clients come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// Again and again for a while, out of a full cache.
    Timed,
    /// So many answers a connection, out of a full cache.
    Counted(u64),
    /// One answer a connection, of a server with an empty cache.
    Cold,
}

/// A peer and the targets against it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Versus {
    pub(crate) peer: Peer,
    /// Of the rate; of the wall time where the work is cold.
    pub(crate) speed: Option<Target>,
    pub(crate) cpu: Option<Target>,
}

/// One row.
#[derive(Debug)]
pub(crate) struct Row {
    /// Its name on the command line.
    pub(crate) key: &'static str,
    pub(crate) title: String,
    pub(crate) work: Work,
    pub(crate) per: Per,
    pub(crate) method: &'static str,
    pub(crate) paths: Vec<String>,
    pub(crate) connections: usize,
    /// A new connection for each request.
    pub(crate) fresh: bool,
    /// What else the server sends meanwhile.
    pub(crate) beside: Option<Beside>,
    pub(crate) peers: Vec<Versus>,
}

/// Large blobs that other clients are being sent while a row is measured.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(crate) path: String,
    pub(crate) connections: usize,
    /// Whether the machine's page cache is dropped first.
    pub(crate) uncached: bool,
}

const fn against(peer: Peer, speed: Option<Target>, cpu: Option<Target>) -> Versus {
    Versus { peer, speed, cpu }
}

/// CPU of a request with two threads over that with one: 0.93 of the requests a CPU second.
const SECOND_THREAD: Target = AtMost(1.075);

/// Every row, in the order of the report.
pub(crate) fn all(library: &Library, sizes: &Sizes) -> Vec<Row> {
    let mut rows = large(library, sizes);
    rows.extend(small(library));
    rows.extend(churn(library));
    rows.extend(manifests(library));
    rows.extend(busy(library));
    rows.extend(cold(library, sizes));
    if other_registry().is_some() {
        for row in &mut rows {
            if row.peers.iter().any(|versus| versus.peer == Peer::Registry) {
                row.peers.push(against(Peer::OtherRegistry, None, None));
            }
        }
    }
    rows
}

fn herd(clients: usize) -> String {
    let plural = if clients == 1 { "" } else { "s" };
    format!("{clients} client{plural}")
}

fn large(library: &Library, sizes: &Sizes) -> Vec<Row> {
    let row = |key, clients: usize, count| Row {
        key,
        title: format!("warm {} MiB, {}", sizes.large >> 20, herd(clients)),
        work: Work::Counted(count),
        per: Per::Gib,
        method: "GET",
        paths: vec![library.large.clone()],
        connections: clients,
        fresh: false,
        beside: None,
        peers: vec![
            against(Peer::NginxStatic, Some(AtLeast(1.0)), Some(AtMost(1.0))),
            against(Peer::Registry, Some(AtLeast(5.0)), None),
        ],
    };
    vec![row("warm-1g-1", 1, 4), row("warm-1g-16", 16, 1)]
}

fn small(library: &Library) -> Vec<Row> {
    let row = |key, size: &str, paths: &[String]| Row {
        key,
        title: format!("warm {size}, 32 connections"),
        work: Work::Timed,
        per: Per::Request,
        method: "GET",
        paths: paths.to_vec(),
        connections: 32,
        fresh: false,
        beside: None,
        peers: vec![
            against(Peer::NginxStatic, Some(AtLeast(0.95)), Some(AtMost(1.1))),
            against(Peer::OneThread, None, Some(SECOND_THREAD)),
            against(Peer::Registry, Some(AtLeast(5.0)), None),
        ],
    };
    vec![
        row("warm-1m", "1 MiB", &library.medium),
        row("warm-1k", "1 KiB", &library.small),
    ]
}

fn manifests(library: &Library) -> Vec<Row> {
    let row = |key, title: &str, method, paths: &[String]| Row {
        key,
        title: format!("manifest by {title}, {method}, 64 connections"),
        work: Work::Timed,
        per: Per::Request,
        method,
        paths: paths.to_vec(),
        connections: 64,
        fresh: false,
        beside: None,
        peers: vec![
            against(Peer::NginxCache, Some(AtLeast(1.1)), Some(AtMost(0.9))),
            against(Peer::NginxStatic, None, None),
            against(Peer::OneThread, None, Some(SECOND_THREAD)),
            against(Peer::Registry, Some(AtLeast(100.0)), None),
        ],
    };
    vec![
        row("tag-get", "tag", "GET", &library.tags),
        row("tag-head", "tag", "HEAD", &library.tags),
        row("digest-get", "digest", "GET", &library.manifests),
        row("digest-head", "digest", "HEAD", &library.manifests),
    ]
}

fn churn(library: &Library) -> Vec<Row> {
    vec![Row {
        key: "churn-1k",
        title: "warm 1 KiB, a connection for each request, 32 at a time".to_owned(),
        work: Work::Timed,
        per: Per::Request,
        method: "GET",
        paths: library.small.clone(),
        connections: 32,
        fresh: true,
        beside: None,
        peers: vec![against(
            Peer::NginxStatic,
            Some(AtLeast(1.0)),
            Some(AtMost(1.1)),
        )],
    }]
}

fn busy(library: &Library) -> Vec<Row> {
    let row = |key, title: &str, uncached| Row {
        key,
        title: format!("manifests, 16 connections, beside 8 large blobs{title}"),
        work: Work::Timed,
        per: Per::Request,
        method: "GET",
        paths: library.manifests.clone(),
        connections: 16,
        fresh: false,
        beside: Some(Beside {
            path: library.large.clone(),
            connections: 8,
            uncached,
        }),
        peers: vec![against(Peer::NginxStatic, Some(AtLeast(1.0)), None)],
    };
    vec![
        row("busy-manifests", "", false),
        row("busy-uncached", ", page cache dropped", true),
    ]
}

fn cold(library: &Library, sizes: &Sizes) -> Vec<Row> {
    let row = |key, clients: usize, peers| Row {
        key,
        title: format!("cold {} MiB, {}", sizes.large >> 20, herd(clients)),
        work: Work::Cold,
        per: Per::Gib,
        method: "GET",
        paths: vec![library.large.clone()],
        connections: clients,
        fresh: false,
        beside: None,
        peers,
    };
    let alone = vec![against(
        Peer::NginxCache,
        Some(AtMost(1.1)),
        Some(AtMost(1.6)),
    )];
    let many = vec![
        against(Peer::NginxCache, Some(AtMost(0.8)), None),
        against(Peer::Registry, None, None),
    ];
    vec![row("cold-1", 1, alone), row("cold-16", 16, many)]
}
