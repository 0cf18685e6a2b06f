//! All nodes of the trace, in one process: a thread for each that is at work, and up to three for
//! its layers.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::super::common::proc::{Process, cpu_seconds};
use super::client::Client;
use super::world::{Depth, Image, World};

/// Layers that a node fetches at the same time, as docker and containerd do.
const LAYERS: usize = 3;
/// The longest that the whole trace may take.
const LIMIT: Duration = Duration::from_mins(10);

/// Whom the nodes ask, and what happens.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    #[arg(long)]
    pub(crate) addr: SocketAddr,
    /// The file with the world.
    #[arg(long)]
    pub(crate) world: PathBuf,
}

/// What all nodes saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Those of storms included.
    pub(crate) sessions: u64,
    /// Sessions that fetched all layers.
    pub(crate) pulls: u64,
    pub(crate) requests: u64,
    /// Requests for configs and layers, and their bytes.
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
    /// Each blob counted once.
    pub(crate) unique_bytes: u64,
    /// From the request of a layer to its first byte, for each layer of each node of a storm;
    /// sorted.
    pub(crate) joiners_ms: Vec<f64>,
    /// A whole pull of each node of a storm, with when it came; in the order in which they came.
    pub(crate) joined: Vec<Joined>,
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
}

/// The pull of a node of a storm.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// When it began, in milliseconds after the storm.
    pub(crate) late_ms: u64,
    pub(crate) pull_ms: f64,
    /// Each request before the config and the layers.
    pub(crate) small_ms: Vec<f64>,
}

impl Seen {
    /// Runs the nodes as a process and waits for them.
    pub(crate) fn send(addr: SocketAddr, world: &Path) -> Result<Self> {
        let args = [
            "nodes".to_owned(),
            format!("--addr={addr}"),
            format!("--world={}", world.display()),
        ];
        Process::spawn_role(&args)?.finish(LIMIT, || Ok(()))
    }
}

/// What is shared by all threads.
struct Replay<'a> {
    addr: SocketAddr,
    world: &'a World,
    next: AtomicUsize,
    seen: Mutex<(Seen, HashMap<String, u64>)>,
}

/// Replays everything and reports.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let world: World = serde_json::from_slice(&fs::read(&plan.world)?)?;
    let replay = Replay {
        addr: plan.addr,
        world: &world,
        next: AtomicUsize::new(0),
        seen: Mutex::default(),
    };
    let started = Instant::now();
    // Sessions before the first storm, then as many beside each.
    let phases = world.storms.len() + 1;
    replay.phase(world.sessions.len() / phases, None)?;
    for (phase, storm) in (2..=phases).zip(&world.storms) {
        replay.phase(world.sessions.len() * phase / phases, Some(storm))?;
    }
    let wall = started.elapsed().as_secs_f64();
    let (mut seen, unique) = replay
        .seen
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    seen.unique_bytes = unique.values().sum();
    seen.joiners_ms.sort_by(f64::total_cmp);
    seen.joined.sort_by_key(|joined| joined.late_ms);
    seen.wall = wall;
    seen.cpu = cpu_seconds(std::process::id())?;
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

impl Replay<'_> {
    /// Goes on with the sessions up to one, beside a storm.
    fn phase(&self, until: usize, storm: Option<&(Image, Vec<u64>)>) -> Result<()> {
        thread::scope(|scope| {
            let mut nodes = Vec::new();
            for _ in 0..self.world.workers {
                nodes.push(scope.spawn(move || self.sessions(until)));
            }
            if let Some((image, joiners)) = storm {
                for late in joiners {
                    nodes.push(scope.spawn(move || {
                        thread::sleep(Duration::from_millis(*late));
                        self.join_storm(image, *late)
                    }));
                }
            }
            for node in nodes {
                let Ok(done) = node.join() else {
                    bail!("a node panicked")
                };
                done?;
            }
            Ok(())
        })
    }

    fn sessions(&self, until: usize) -> Result<()> {
        loop {
            let next = self
                .next
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                    (next < until).then_some(next + 1)
                });
            let session = next.ok().and_then(|next| self.world.sessions.get(next));
            let Some((image, depth)) = session else {
                return Ok(());
            };
            if let Some(image) = self.world.images.get(*image) {
                self.session(image, *depth)?;
            }
        }
    }

    fn join_storm(&self, image: &Image, late_ms: u64) -> Result<()> {
        let started = Instant::now();
        let (small_ms, first_bytes) = self.session(image, Depth::Whole)?;
        let joined = Joined {
            late_ms,
            pull_ms: started.elapsed().as_secs_f64() * 1e3,
            small_ms,
        };
        self.with(|(seen, _)| {
            seen.joiners_ms.extend(first_bytes);
            seen.joined.push(joined);
        });
        Ok(())
    }

    /// What a client does for an image. Milliseconds of each request before the layers, and to the first
    /// byte of each layer.
    fn session(&self, image: &Image, depth: Depth) -> Result<(Vec<f64>, Vec<f64>)> {
        let repo = format!("/v2/{}", image.repo);
        let mut client = Client::connect(self.addr)?;
        let mut requests = vec![
            ("GET", "/v2/".to_owned()),
            ("HEAD", format!("{repo}/manifests/latest")),
        ];
        if depth != Depth::Tag {
            requests.push(("GET", format!("{repo}/manifests/{}", image.index)));
            requests.push(("GET", format!("{repo}/manifests/{}", image.manifest)));
        }
        let mut small = Vec::with_capacity(requests.len());
        for (method, path) in &requests {
            let sent = Instant::now();
            client.request(method, path)?;
            small.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        self.with(|(seen, _)| {
            seen.sessions += 1;
            seen.requests += requests.len() as u64;
            seen.pulls += u64::from(depth == Depth::Whole);
        });
        if depth != Depth::Whole {
            return Ok((small, Vec::new()));
        }
        self.blob(&mut client, image, &image.config)?;
        let next = AtomicUsize::new(0);
        let fetch = |mut client: Client| -> Result<Vec<f64>> {
            let mut first_bytes = Vec::new();
            while let Some(layer) = image.layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                first_bytes.push(self.blob(&mut client, image, layer)?);
            }
            Ok(first_bytes)
        };
        let first_bytes = thread::scope(|scope| -> Result<Vec<f64>> {
            let more = (1..LAYERS).map(|_| scope.spawn(|| fetch(Client::connect(self.addr)?)));
            let more: Vec<_> = more.collect();
            let mut first_bytes = fetch(client)?;
            for thread in more {
                let Ok(fetched) = thread.join() else {
                    bail!("the thread of a layer panicked")
                };
                first_bytes.extend(fetched?);
            }
            Ok(first_bytes)
        })?;
        Ok((small, first_bytes))
    }

    /// Fetches a config or a layer; milliseconds to its first byte.
    fn blob(
        &self,
        client: &mut Client,
        image: &Image,
        (digest, size): &(String, u64),
    ) -> Result<f64> {
        let answer = client.request("GET", &format!("/v2/{}/blobs/{digest}", image.repo))?;
        anyhow::ensure!(answer.bytes == *size, "{digest} has another size");
        self.with(|(seen, unique)| {
            seen.requests += 1;
            seen.blobs += 1;
            seen.bytes += size;
            unique.insert(digest.clone(), *size);
        });
        Ok(answer.first_byte.as_secs_f64() * 1e3)
    }

    fn with(&self, note: impl FnOnce(&mut (Seen, HashMap<String, u64>))) {
        note(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
