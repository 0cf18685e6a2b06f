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

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::super::common::proc::cpu_seconds;
use super::super::common::wire::Client;
use super::super::common::{Role, together};
use super::world::{Depth, Image, World};

/// Layers that a node fetches at the same time, as docker and containerd do.
const LAYERS: usize = 3;
/// The longest that the whole trace may take.
const LIMIT: Duration = Duration::from_mins(10);

/// Whom the nodes ask, and what happens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) addr: SocketAddr,
    /// The file with the world.
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
    /// From the request of a layer to its first byte, for each layer of each node of a storm.
    pub(crate) joiners_ms: Vec<f64>,
    /// The pulls of the nodes of storms, in the order in which they began.
    pub(crate) joined: Vec<Joined>,
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
}

/// The pull of a node of a storm. Times in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// When it began, after the storm.
    pub(crate) late: u64,
    /// The whole pull.
    pub(crate) pull: f64,
    /// Each request before the config and the layers.
    pub(crate) small: Vec<f64>,
}

impl Seen {
    /// Runs the nodes as a process and waits for them.
    pub(crate) fn send(addr: SocketAddr, world: &Path) -> Result<Self> {
        let plan = Plan {
            addr,
            world: world.to_owned(),
        };
        Role::Nodes(plan).spawn()?.finish(LIMIT, || Ok(()))
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
    seen.joined.sort_by_key(|joined| joined.late);
    seen.wall = wall;
    seen.cpu = cpu_seconds(std::process::id())?;
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

impl Replay<'_> {
    /// Goes on with the sessions up to one, beside a storm.
    fn phase(&self, until: usize, storm: Option<&(Image, Vec<u64>)>) -> Result<()> {
        let (image, joiners) = storm.map_or((None, &[][..]), |(image, late)| (Some(image), late));
        let workers = (0..self.world.workers).map(|_| None);
        let nodes = workers.chain(joiners.iter().map(|late| image.map(|image| (image, *late))));
        together(nodes.map(|joiner| {
            move || match joiner {
                None => self.sessions(until),
                Some((image, late)) => {
                    thread::sleep(Duration::from_millis(late));
                    self.join_storm(image, late)
                }
            }
        }))?;
        Ok(())
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

    fn join_storm(&self, image: &Image, late: u64) -> Result<()> {
        let started = Instant::now();
        let (small, first_bytes) = self.session(image, Depth::Whole)?;
        let joined = Joined {
            late,
            pull: started.elapsed().as_secs_f64() * 1e3,
            small,
        };
        self.with(|(seen, _)| {
            seen.joiners_ms.extend(first_bytes);
            seen.joined.push(joined);
        });
        Ok(())
    }

    /// What a client does for an image. Milliseconds of each request before the config and the layers,
    /// and to the first byte of each layer.
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
            client.discard(u64::MAX)?;
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
        let fetch = |client: Option<Client>| -> Result<Vec<f64>> {
            let mut client = client.map_or_else(|| Client::connect(self.addr), Ok)?;
            let mut first_bytes = Vec::new();
            while let Some(layer) = image.layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                first_bytes.push(self.blob(&mut client, image, layer)?);
            }
            Ok(first_bytes)
        };
        let more = (1..LAYERS).map(|_| None);
        let clients = std::iter::once(Some(client)).chain(more);
        let first_bytes = together(clients.map(|client| || fetch(client)))?;
        Ok((small, first_bytes.concat()))
    }

    /// Fetches a config or a layer; milliseconds to its first byte.
    fn blob(
        &self,
        client: &mut Client,
        image: &Image,
        (digest, size): &(String, u64),
    ) -> Result<f64> {
        let asked = Instant::now();
        client.request("GET", &format!("/v2/{}/blobs/{digest}", image.repo))?;
        client.wait_first_byte()?;
        let first_byte = asked.elapsed();
        ensure!(
            client.discard(u64::MAX)? == *size,
            "{digest} has another size"
        );
        self.with(|(seen, unique)| {
            seen.requests += 1;
            seen.blobs += 1;
            seen.bytes += size;
            unique.insert(digest.clone(), *size);
        });
        Ok(first_byte.as_secs_f64() * 1e3)
    }

    fn with(&self, note: impl FnOnce(&mut (Seen, HashMap<String, u64>))) {
        note(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
