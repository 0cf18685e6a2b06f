//! Clients behind a load balancer. It sends each request to a replica that says that it is ready, and to another
//! one if that refuses the connection; nothing else is tried again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::{Client, Response};
use testkit::{Image, noise};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Upstream;

const CLIENTS: u64 = 8;
/// Blobs, of which the clients find new ones again and again, and how many of them they ask for at a time.
const BLOBS: u64 = 400;
const WINDOW: usize = 40;
const SIZES: [usize; 3] = [5_000, 100_000, 1_500_000];
/// Pulls after which there is a new blob.
const PULLS: usize = 4;

/// Where a replica answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) registry: SocketAddr,
    pub(crate) health: SocketAddr,
}

/// A path, and what is there.
#[derive(Debug)]
struct Wanted {
    path: String,
    body: Bytes,
}

/// What a client works with.
struct Site {
    replicas: Mutex<Vec<Address>>,
    blobs: Vec<Wanted>,
    tag: Wanted,
    served: watch::Sender<usize>,
    is_over: AtomicBool,
}

/// Running clients.
pub(crate) struct Load {
    site: Arc<Site>,
    clients: JoinSet<()>,
}

impl Load {
    /// Puts content into the upstream, and starts clients of it.
    pub(crate) fn start(upstream: &Upstream, replicas: Vec<Address>) -> Self {
        let blobs = (0..BLOBS).map(|seed| {
            let body = noise(seed, SIZES[usize::try_from(seed).unwrap() % SIZES.len()]);
            let path = format!("/v2/app/blobs/{}", upstream.put_blob("app", &body));
            Wanted { path, body }
        });
        let image = Image::oci(1);
        upstream.push("app", "main", &image);
        let site = Arc::new(Site {
            replicas: Mutex::new(replicas),
            blobs: blobs.collect(),
            tag: Wanted {
                path: "/v2/app/manifests/main".to_owned(),
                body: image.manifest.clone(),
            },
            served: watch::Sender::new(0),
            is_over: AtomicBool::new(false),
        });
        let mut clients = JoinSet::new();
        for seed in 0..CLIENTS {
            let site = Arc::clone(&site);
            clients.spawn(async move { site.pull_all(fastrand::Rng::with_seed(seed)).await });
        }
        Self { site, clients }
    }

    /// One more replica.
    pub(crate) fn add(&self, replica: Address) {
        self.site.replicas.lock().push(replica);
    }

    /// Waits until so many pulls more have been served.
    pub(crate) async fn serves(&mut self, more: usize) {
        let mut served = self.site.served.subscribe();
        let goal = *served.borrow() + more;
        self.beside(served.wait_for(|served| *served >= goal))
            .await
            .unwrap();
    }

    /// Waits for something while the clients go on.
    pub(crate) async fn beside<F: Future>(&mut self, other: F) -> F::Output {
        tokio::select! {
            biased;
            ended = self.clients.join_next() => panic!("a client failed: {ended:?}"),
            output = other => output,
        }
    }

    /// Ends the clients.
    pub(crate) async fn end(mut self) {
        self.site.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

/// Most blobs were downloaded once, and none as often as replicas that don't know each other would. A replica
/// that is there again lacks what the others have fetched meanwhile, and is asked for it.
pub(crate) fn costs_little(upstream: &Upstream, replicas: usize) {
    let mut downloads = BTreeMap::<_, usize>::new();
    for line in upstream.lines() {
        if let Some(path) = line
            .strip_prefix("GET ")
            .filter(|path| path.contains("/blobs/"))
        {
            *downloads.entry(path.to_owned()).or_default() += 1;
        }
    }
    let (all, most) = (downloads.values().sum::<usize>(), downloads.values().max());
    assert!(most.is_some_and(|most| *most <= replicas), "{downloads:?}");
    assert!(all < downloads.len() * 2, "{all} of {}", downloads.len());
}

impl Site {
    /// How many of the blobs are asked for so far.
    fn known(&self) -> usize {
        (WINDOW + *self.served.borrow() / PULLS).min(self.blobs.len())
    }

    async fn pull_all(&self, mut random: fastrand::Rng) {
        while !self.is_over.load(Ordering::Relaxed) {
            let known = self.known();
            let wanted = match random.usize(..8) {
                0 => &self.tag,
                _ => &self.blobs[random.usize(known - WINDOW..known)],
            };
            self.pull(wanted, &mut random).await;
            self.served.send_modify(|served| *served += 1);
        }
    }

    async fn pull(&self, wanted: &Wanted, random: &mut fastrand::Rng) {
        let Wanted { path, body } = wanted;
        // Each request has a connection of its own.
        let client = Client::builder().tls_certs_only([]).build().unwrap();
        let mut response = self.send(&client, path, random).await;
        let from = response.remote_addr();
        assert_eq!(response.status(), 200, "{path} from {from:?}");
        let mut at = 0;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.get(at..at + chunk.len()) == Some(&chunk[..]) => {
                    at += chunk.len();
                }
                Ok(None) if at == body.len() => return,
                ended => panic!("{path} from {from:?} at {at} of {}: {ended:?}", body.len()),
            }
        }
    }

    async fn send(&self, client: &Client, path: &str, random: &mut fastrand::Rng) -> Response {
        let mut replicas = self.replicas.lock().clone();
        random.shuffle(&mut replicas);
        for Address { registry, health } in replicas {
            let ready = client.get(format!("http://{health}/readyz")).send().await;
            if ready.is_ok_and(|ready| ready.status() == 200) {
                match client.get(format!("http://{registry}{path}")).send().await {
                    Err(error) if error.is_connect() => {}
                    answer => return answer.unwrap(),
                }
            }
        }
        panic!("no replica is ready");
    }
}
