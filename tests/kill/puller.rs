//! A client that doesn't give up: when a connection breaks because the server was killed, it asks
//! again, for everything or for the rest.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::gallery::Pushed;

/// How many blobs of an image are fetched at a time.
const AT_ONCE: usize = 3;
/// How long the server may be silent: longer than any blob waits for its turn on the line.
const SILENCE: Duration = Duration::from_mins(1);

/// Whether the server lives, and how many lives it has ended.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Life {
    ended: usize,
    lives: bool,
}

impl Life {
    pub(crate) fn begin(&mut self) {
        self.lives = true;
    }

    pub(crate) fn end(&mut self) {
        self.ended += 1;
        self.lives = false;
    }

    pub(crate) fn lives(&self) -> bool {
        self.lives
    }

    /// Whether the server was killed since then.
    pub(crate) fn has_ended_since(&self, before: Self) -> bool {
        self.ended > before.ended
    }
}

#[derive(Clone)]
pub(crate) struct Puller {
    base: String,
    client: Client,
    life: watch::Receiver<Life>,
    random: Arc<Mutex<fastrand::Rng>>,
}

impl Puller {
    pub(crate) fn new(server: SocketAddr, life: watch::Receiver<Life>, seed: u64) -> Self {
        // A connection that is kept may be one to the process that was killed.
        let client = Client::builder()
            .tls_certs_only([])
            .read_timeout(SILENCE)
            .pool_max_idle_per_host(0);
        Self {
            base: format!("http://{server}/v2/"),
            client: client.build().unwrap(),
            life,
            random: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
        }
    }

    pub(crate) fn shuffle(&self, numbers: &mut [u64]) {
        self.random.lock().unwrap().shuffle(numbers);
    }

    /// Pulls an image until it has all of it, every byte the right one.
    pub(crate) async fn pull(&self, image: &Pushed) {
        let repository = &image.repository;
        let manifest = format!("{repository}/manifests/latest");
        self.fetch(&manifest, &image.manifest).await;
        let mut blobs = JoinSet::new();
        for (index, (digest, bytes)) in image.blobs.iter().enumerate() {
            // The config alone, then the layers.
            if index == 1 || blobs.len() == AT_ONCE {
                blobs.join_next().await.unwrap().unwrap();
            }
            let (puller, bytes) = (self.clone(), bytes.clone());
            let path = format!("{repository}/blobs/{digest}");
            blobs.spawn(async move { puller.fetch(&path, &bytes).await });
        }
        blobs.join_all().await;
    }

    async fn fetch(&self, path: &str, wanted: &Bytes) {
        let mut life = self.life.clone();
        let mut have = 0;
        loop {
            let before = *life.wait_for(Life::lives).await.unwrap();
            // From scratch, as dockerd does; or the rest, as containerd does.
            if have == wanted.len() || self.random.lock().unwrap().bool() {
                have = 0;
            }
            let Err(why) = self.attempt(path, wanted, &mut have).await else {
                return;
            };
            let killed = life.borrow().has_ended_since(before);
            assert!(killed, "{path}: {why}, and nobody killed the server");
        }
    }

    /// Asks from `have` on, and counts there what came.
    async fn attempt(&self, path: &str, wanted: &[u8], have: &mut usize) -> Result<(), String> {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if *have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let broken = |error: reqwest::Error| format!("{error:?}");
        let mut answer = request.send().await.map_err(broken)?;
        match answer.status().as_u16() {
            206 => {
                let placed = format!("bytes {have}-{}/{}", wanted.len() - 1, wanted.len());
                assert_eq!(answer.headers()["content-range"], placed.as_str());
            }
            200 => *have = 0,
            status => return Err(format!("status {status}")),
        }
        while let Some(chunk) = answer.chunk().await.map_err(broken)? {
            let end = *have + chunk.len();
            assert!(
                wanted.get(*have..end) == Some(&chunk[..]),
                "{path}: wrong bytes"
            );
            *have = end;
        }
        assert_eq!(
            *have,
            wanted.len(),
            "{path}: a body that ended well, and early"
        );
        Ok(())
    }
}
