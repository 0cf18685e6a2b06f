//! Random adversarial schedules: sources that lie, break, stall, ignore ranges and refuse; clients of
//! several repositories that come, read all or a range, and leave; a disk that fails.
//!
//! Invariants: a whole body that ends cleanly is right, committed content is right, a repository that
//! lacks the blob gets none of it, and no client waits forever.

use std::rc::Rc;

use fastrand::Rng;

use super::*;

/// Schedules that are tried; `MILLPOND_SCHEDULES` asks for others.
const SCHEDULES: u64 = 1_500;
const SEED: u64 = 9;
/// Longer than any schedule may take, on the paused clock.
const FOREVER: Duration = Duration::from_hours(2);

/// What a repository's source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// It always sends the blob.
    Good,
    /// What it sends is right, but it breaks off, stalls, refuses ranges, and fails for good.
    Flaky,
    /// Its bytes, or its lengths, are wrong.
    Lying,
    /// It doesn't have the blob.
    Lacking,
}

/// The source of one repository.
struct Rogue {
    nature: Nature,
    content: Bytes,
    /// What it sends: with other bytes where it lies.
    version: Bytes,
    rng: Mutex<Rng>,
}

impl Debug for Rogue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.nature)
    }
}

impl Rogue {
    fn new(nature: Nature, content: &Bytes, rng: &mut Rng) -> Arc<Self> {
        let mut version = content.to_vec();
        if nature == Nature::Lying {
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..version.len().max(1));
                if let Some(byte) = version.get_mut(at) {
                    *byte ^= rng.u8(1..);
                }
            }
            if rng.u8(..4) == 0 {
                version.truncate(rng.usize(..=version.len()));
            }
        }
        Arc::new(Self {
            nature,
            content: content.clone(),
            version: version.into(),
            rng: Mutex::new(rng.fork()),
        })
    }

    fn failure(rng: &mut Rng) -> UpstreamError {
        match rng.u8(..8) {
            0 => unexpected(416),
            1 => rate_limited(),
            2 => unavailable(503),
            3 => stalled(),
            4 => unavailable(500),
            5 => upstream_error(Failure::NotFound(None)),
            _ => broken(),
        }
    }
}

#[async_trait::async_trait]
impl Source for Rogue {
    async fn open(&self, offset: u64, end: Option<u64>) -> Result<BlobStream, UpstreamError> {
        let mut rng = self.rng.lock().unwrap().fork();
        tokio::time::sleep(Duration::from_millis(rng.u64(..50))).await;
        let wild = !matches!(self.nature, Nature::Good);
        let mut odd = |of: u8| wild && rng.u8(..of) == 0;
        if self.nature == Nature::Lacking {
            return Err(denied());
        }
        if odd(6) {
            return Err(Self::failure(&mut self.rng.lock().unwrap()));
        }
        // A liar sends the right bytes now and then.
        let lies = self.nature == Nature::Lying && !odd(4);
        let version = if lies { &self.version } else { &self.content };
        let total = version.len() as u64;
        let start = if odd(5) { 0 } else { offset };
        if start >= total && (total > 0 || start > 0) {
            return Err(unexpected(416));
        }
        let end = if start == offset {
            end.unwrap_or(total).min(total)
        } else {
            total
        };
        let told = match (odd(8), lies && odd(6)) {
            (true, _) => None,
            (false, true) => Some(total + 1),
            (false, false) => Some(total),
        };
        let place = |at: u64| usize::try_from(at).unwrap();
        let mut rest = version.slice(place(start)..place(end));
        let breaks = odd(3);
        if breaks {
            rest.truncate(rng.usize(..=rest.len()));
        }
        // Only the end of a body that announces no length can't be told from a broken stream.
        let endless = told.is_none() && start == 0 && end == total;
        let clean = endless && self.nature == Nature::Lying && rng.bool();
        let next = move |(mut rest, mut rng, mut ended): (Bytes, Rng, bool)| async move {
            if rng.u8(..4) == 0 {
                tokio::time::sleep(Duration::from_millis(rng.u64(..40))).await;
            }
            if rest.is_empty() {
                if !breaks || ended || clean {
                    return None;
                }
                ended = true;
                let error = if rng.bool() { broken() } else { stalled() };
                return Some((Err(error), (rest, rng, ended)));
            }
            let length = rng.usize(1..=rest.len().min(8_000));
            let chunk = rest.split_to(length);
            Some((Ok(chunk), (rest, rng, ended)))
        };
        Ok(BlobStream {
            offset: start,
            end: (!endless).then_some(end),
            total: told,
            body: futures_util::stream::unfold((rest, rng, false), next).boxed(),
        })
    }

    fn upstream(&self) -> &'static str {
        UPSTREAM
    }
}

/// One schedule.
struct Scene {
    seed: u64,
    bench: Bench,
    content: Bytes,
    digest: Digest,
    sources: Vec<Arc<Rogue>>,
}

/// What came of one client.
#[derive(Debug)]
enum Outcome {
    Whole(Vec<u8>),
    Range(u64, Vec<u8>),
    Left,
    Failed(DownloadError, usize),
}

impl Scene {
    fn new(seed: u64, rng: &mut Rng) -> Self {
        let length = match rng.u8(..6) {
            0 => rng.usize(..3),
            1 => rng.usize(..1_000),
            2 => rng.usize(10_000..20_000),
            _ => rng.usize(..120_000),
        };
        let (content, digest) = content(length);
        let mut settings = settings();
        settings.segments.min_size = 20_000;
        settings.on_abandon = if rng.bool() {
            OnAbandon::Pause
        } else {
            OnAbandon::Finish
        };
        let bench = Bench::with(settings);
        if rng.u8(..4) == 0 {
            let operation = [Operation::Write, Operation::Stage, Operation::Commit][rng.usize(..3)];
            let nth = rng.u64(1..5);
            bench.store.fail(operation, nth, io::ErrorKind::StorageFull);
        }
        let natures = [
            Nature::Good,
            Nature::Flaky,
            Nature::Flaky,
            Nature::Lying,
            Nature::Lacking,
        ];
        let count = rng.usize(1..5);
        let nature = |rng: &mut Rng| natures[rng.usize(..natures.len())];
        let sources = (0..count)
            .map(|_| Rogue::new(nature(rng), &content, rng))
            .collect();
        Self {
            seed,
            bench,
            content,
            digest,
            sources,
        }
    }

    fn has(&self, nature: Nature) -> bool {
        self.sources.iter().any(|source| source.nature == nature)
    }

    async fn proof(nature: Nature, mut rng: Rng) -> Result<(), DownloadError> {
        tokio::time::sleep(Duration::from_millis(rng.u64(..80))).await;
        match nature {
            Nature::Lacking => Err(denied().into()),
            Nature::Flaky if rng.u8(..5) == 0 => Err(unavailable(500).into()),
            _ => Ok(()),
        }
    }

    async fn client(&self, which: usize, mut rng: Rng) -> Outcome {
        let source = &self.sources[which];
        tokio::time::sleep(Duration::from_millis(rng.u64(..300))).await;
        let total = self.content.len() as u64;
        let ranged = rng.u8(..3) == 0 && total > 0;
        let (start, end) = if ranged {
            let start = rng.u64(..total);
            (start, Some(rng.u64(start + 1..=total)))
        } else {
            (0, None)
        };
        let wanted = BlobRequest {
            start,
            end,
            fill: !ranged || rng.bool(),
            refetch: false,
            client: Client::UNKNOWN,
            from_peer: false,
        };
        let repo = format!("repo{which}");
        let proof = Self::proof(source.nature, rng.fork());
        let joined = self
            .bench
            .try_join(self.digest, &repo, source, wanted, proof);
        let mut follower = match joined.await {
            Ok(Joined::Leader(follower) | Joined::Follower(follower)) => follower,
            Ok(Joined::Committed) => return self.stored(source, rng).await,
            Ok(Joined::Circular) => panic!("no other replica asks"),
            Err(error) => return Outcome::Failed(error, 0),
        };
        let leaves = rng.u8(..5) == 0;
        if let Ok(Opened::Superseded) = follower.opened().await {
            return self.stored(source, rng).await;
        }
        self.read(&mut follower, start, end, leaves, &mut rng).await
    }

    /// What the store has, once that is proved; nothing where the store failed.
    async fn stored(&self, source: &Rogue, rng: Rng) -> Outcome {
        if let Err(error) = Self::proof(source.nature, rng).await {
            return Outcome::Failed(error, 0);
        }
        let stored = self.bench.stored(&self.digest).await;
        stored.map_or(Outcome::Left, |bytes| Outcome::Whole(bytes.to_vec()))
    }

    async fn read(
        &self,
        follower: &mut Follower,
        start: u64,
        end: Option<u64>,
        leaves: bool,
        rng: &mut Rng,
    ) -> Outcome {
        let mut bytes = Vec::new();
        let total = match follower.total().await {
            Ok(total) => total,
            Err(error) => return Outcome::Failed(error, 0),
        };
        let end = end.map(|end| total.map_or(end, |total| end.min(total)));
        loop {
            let at = start + bytes.len() as u64;
            if end.is_some_and(|end| at >= end) {
                return Outcome::Range(start, bytes);
            }
            if leaves && rng.u8(..3) == 0 {
                return Outcome::Left;
            }
            if rng.u8(..4) == 0 {
                tokio::time::sleep(Duration::from_millis(rng.u64(..100))).await;
            }
            match follower.read(at, end).await {
                Ok(Some(part)) => bytes.extend_from_slice(&part),
                Ok(None) if start == 0 && end.is_none() => return Outcome::Whole(bytes),
                Ok(None) => return Outcome::Range(start, bytes),
                Err(error) => return Outcome::Failed(error, bytes.len()),
            }
        }
    }

    fn check(&self, which: usize, outcome: &Outcome) {
        let (seed, nature) = (self.seed, self.sources[which].nature);
        let told = || format!("schedule {seed}, {nature:?} of {:?}", self.sources);
        match outcome {
            Outcome::Whole(bytes) => assert!(*bytes == self.content, "wrong body: {}", told()),
            Outcome::Range(start, bytes) => {
                for (at, byte) in (usize::try_from(*start).unwrap()..).zip(bytes) {
                    // A range is given before the digest is known: it may be as a source has it.
                    let known = |source: &Arc<Rogue>| source.version.get(at) == Some(byte);
                    let right = self.content.get(at) == Some(byte);
                    let lie = self.has(Nature::Lying) && self.sources.iter().any(known);
                    assert!(right || lie, "wrong range at {at}: {}", told());
                }
            }
            Outcome::Left => {}
            Outcome::Failed(error, given) => {
                let refused = is_denied(error);
                assert_eq!(refused, nature == Nature::Lacking, "{error}: {}", told());
                assert!(
                    !refused || *given == 0,
                    "bytes and then a refusal: {}",
                    told()
                );
                let sound = nature == Nature::Good && !self.has(Nature::Lying);
                let lost = matches!(error, DownloadError::Lost);
                assert!(
                    !sound || lost,
                    "{error:?} although it has the blob: {}",
                    told()
                );
                let stuck = matches!(error, DownloadError::Stuck);
                let stopping = matches!(error, DownloadError::Stopping);
                assert!(!stuck && !stopping, "{error:?}: {}", told());
            }
        }
        let served = matches!(outcome, Outcome::Whole(_) | Outcome::Range(..));
        let lacking = nature == Nature::Lacking;
        assert!(!(served && lacking), "served without having it: {}", told());
    }
}

async fn play(seed: u64) {
    let mut rng = Rng::with_seed(SEED.wrapping_mul(1_000_003).wrapping_add(seed));
    let scene = Rc::new(Scene::new(seed, &mut rng));
    for round in 0..2 {
        let clients = (0..rng.usize(1..7)).map(|_| {
            let which = rng.usize(..scene.sources.len());
            let (scene, rng) = (Rc::clone(&scene), rng.fork());
            async move {
                let playing = tokio::time::timeout(FOREVER, scene.client(which, rng));
                let outcome = playing.await;
                let outcome = outcome.unwrap_or_else(|_| panic!("schedule {seed} hangs"));
                (which, outcome)
            }
        });
        let clients: Vec<_> = clients.collect();
        let outcomes = futures_util::future::join_all(clients).await;
        scene.bench.settled().await;
        for (which, outcome) in &outcomes {
            scene.check(*which, outcome);
        }
        let stored = scene.bench.stored(&scene.digest).await;
        if let Some(stored) = stored {
            assert!(stored == scene.content, "schedule {seed} committed a lie");
            for (which, source) in scene.sources.iter().enumerate() {
                let repo = format!("repo{which}");
                let linked = scene.bench.linked(&repo, scene.digest).await;
                let lacking = source.nature == Nature::Lacking;
                assert!(!(linked && lacking), "schedule {seed}, round {round}");
            }
        }
    }
    scene.bench.stop.cancel();
    scene.bench.settled().await;
    let reserved = scene.bench.cache.usage().reserved;
    let partials = scene.bench.store.partials().await.unwrap();
    assert!(
        reserved == 0 || !partials.is_empty(),
        "schedule {seed} keeps {reserved} bytes"
    );
}

/// `N` is the first N schedules, `A..B` those from A on and before B.
fn asked(text: &str) -> Option<std::ops::Range<u64>> {
    match text.split_once("..") {
        Some((start, end)) => Some(start.parse().ok()?..end.parse().ok()?),
        None => Some(0..text.parse().ok()?),
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "how long the test takes is no setting of the mirror"
)]
fn no_schedule_gives_a_wrong_byte() {
    let schedules = match std::env::var("MILLPOND_SCHEDULES") {
        Ok(text) => asked(&text).unwrap(),
        Err(_) => 0..SCHEDULES,
    };
    // A runtime that isn't too old: what a schedule leaves behind adds up.
    for first in schedules.clone().step_by(100) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .max_blocking_threads(4)
            .build()
            .unwrap();
        runtime.block_on(async {
            for seed in first..schedules.end.min(first + 100) {
                play(seed).await;
            }
        });
    }
}
