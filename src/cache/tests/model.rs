//! Random pulls, uses, expiries, evictions, holds, failures, restarts and crashes, against a model
//! that only knows when each link was last used.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::cache::index::RETRY;
use crate::cache::work::expiry::SAVE_AFTER;
use crate::storage::faulty::Operation;
use proptest::prelude::*;

const TTL: Duration = Duration::from_mins(10);
/// Deadlines are whole seconds, and the deletion task takes a moment.
const SLACK: Duration = Duration::from_secs(4);
const CAP: u64 = 3_000;

#[derive(Debug, Clone)]
enum Step {
    /// A pull of image `1` from repository `0`.
    Pull(u8, u8),
    /// One layer, without its image.
    Layer(u8, u8),
    /// The index is asked for a layer's link.
    Ask(u8, u8),
    Pass(u16),
    Hold(u8),
    Release,
    Purge(u8, u8),
    /// The next link can't be removed.
    Fail,
    Restart,
    /// And how many of the journal's last bytes are lost.
    Crash(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u8, 0..6_u8).prop_map(|(repo, image)| Step::Pull(repo, image)),
        2 => (0..3_u8, 0..8_u8).prop_map(|(repo, layer)| Step::Layer(repo, layer)),
        4 => (0..3_u8, 0..8_u8).prop_map(|(repo, layer)| Step::Ask(repo, layer)),
        5 => (1..800_u16).prop_map(Step::Pass),
        2 => (0..8_u8).prop_map(Step::Hold),
        2 => Just(Step::Release),
        1 => (0..3_u8, 0..6_u8).prop_map(|(repo, image)| Step::Purge(repo, image)),
        1 => Just(Step::Fail),
        1 => Just(Step::Restart),
        2 => any::<u8>().prop_map(Step::Crash),
    ]
}

/// Layers of different sizes; image n has layers n, n + 1 and 0, so that neighbours share.
fn layer_of(n: u8) -> String {
    format!("layer {n} ").repeat(10 + usize::from(n))
}

fn layers_of(image: u8) -> Vec<String> {
    [image, image + 1, 0].map(layer_of).to_vec()
}

fn repo_of(n: u8) -> &'static str {
    ["a", "a/b", "ghcr.io/c"][usize::from(n)]
}

/// When a link was last used, or the last start if that was later.
#[derive(Debug, Default)]
struct Model {
    used: BTreeMap<Link, SystemTime>,
    started: Option<SystemTime>,
    /// Links whose last uses a crash may have lost, or that a purge may have removed.
    unsure: BTreeSet<Link>,
    held: BTreeSet<Digest>,
    /// Until when an entry that the reference registry wrote must not go, as long as it is that one.
    promised: BTreeMap<Link, SystemTime>,
    /// The same, when it may be a later one.
    perhaps_promised: BTreeMap<Link, SystemTime>,
    /// The latest time that something due may have been put off to.
    put_off: Option<SystemTime>,
}

impl Model {
    fn used(&mut self, link: Link, now: SystemTime) {
        self.unsure.remove(&link);
        self.used.insert(link, now);
    }

    /// Every link that has to be there is, and every link that has to be gone is.
    async fn agrees(&self, rig: &Rig, capped: bool) {
        let now = rig.clock.wall();
        for (link, used) in &self.used {
            let there = rig.is_linked(link).await;
            let promised = self.promised.get(link).is_some_and(|until| now < *until);
            if (now < *used + TTL || promised) && !self.unsure.contains(link) && !capped {
                assert!(there, "{link:?} went early");
            }
            let latest = self.started.into_iter().fold(*used, SystemTime::max) + TTL;
            let promised = self.perhaps_promised.get(link).copied();
            let latest = promised.into_iter().fold(latest, SystemTime::max) + SLACK;
            let put_off = self.put_off.is_some_and(|until| now <= until);
            if now > latest && !put_off && !self.held.contains(&link.digest) {
                assert!(!there, "{link:?} stayed");
            }
        }
        let held: Vec<_> = self.held.iter().copied().collect();
        check(rig, &held).await;
        for digest in &held {
            assert!(
                rig.store.size(digest).await.unwrap().is_some(),
                "{digest} went while held"
            );
        }
        if capped {
            assert!(rig.cache.usage().used <= CAP);
        }
    }
}

#[expect(clippy::too_many_lines, reason = "one arm for each kind of step")]
/// One run of the process: takes steps until it ends; true when that was a crash.
async fn incarnation(
    rig: Rig,
    model: &mut Model,
    steps: &mut std::vec::IntoIter<Step>,
    capped: bool,
) -> (SystemTime, Option<u8>) {
    rig.cache.complete().await;
    let mut holds = Vec::new();
    loop {
        rig.cache.settled().await;
        model.agrees(&rig, capped).await;
        let now = rig.clock.wall();
        match steps.next() {
            Some(Step::Pull(repo, image)) => {
                let layers = layers_of(image);
                let layers: Vec<_> = layers.iter().map(String::as_str).collect();
                let (name, as_tag) = (repo_of(repo), format!("t{image}"));
                let whole = rig.pull(name, &as_tag, &layers).await;
                if let Some(manifest) = whole {
                    model.used(manifest, now);
                    model.used(layer(name, &format!("{name}:{as_tag}-config")), now);
                    for content in &layers {
                        model.used(layer(name, content), now);
                    }
                } else {
                    assert!(capped);
                }
            }
            Some(Step::Layer(repo, n)) => {
                let (content, link) = (layer_of(n), layer(repo_of(repo), &layer_of(n)));
                if rig.cache(&link, &content).await {
                    model.used(link, now);
                }
            }
            Some(Step::Ask(repo, n)) => {
                let link = layer(repo_of(repo), &layer_of(n));
                if rig.knows(&link) {
                    assert!(rig.is_linked(&link).await && rig.has(&layer_of(n)).await);
                    model.used(link, now);
                }
            }
            Some(Step::Pass(seconds)) => rig.pass(Duration::from_secs(seconds.into())).await,
            Some(Step::Hold(n)) => {
                let digest = digest(&layer_of(n));
                let hold = rig.cache.hold(&digest).await;
                if rig.store.size(&digest).await.unwrap().is_some() {
                    model.held.insert(digest);
                    holds.push((digest, hold));
                }
            }
            Some(Step::Release) => {
                if let Some((digest, _)) = holds.pop()
                    && holds.iter().all(|(other, _)| *other != digest)
                {
                    model.held.remove(&digest);
                    // A failure that is still to strike puts off for longer.
                    model.put_off = model.put_off.max(Some(now + RETRY + SLACK));
                }
            }
            Some(Step::Purge(repo, image)) => {
                let selection = format!("{}:t{image}", repo_of(repo));
                let purged = rig.purge(selection).await;
                for entry in purged {
                    model.promised.remove(&entry.link);
                    model.unsure.insert(entry.link);
                }
            }
            Some(Step::Fail) => {
                rig.store
                    .fail(Operation::Unlink, 1, io::ErrorKind::PermissionDenied);
                // It may strike at any time.
                model.put_off = Some(now + WEEK);
            }
            Some(Step::Restart) => {
                drop(holds);
                rig.cache.stop().await;
                return (rig.clock.wall(), None);
            }
            Some(Step::Crash(torn)) => return (now, Some(torn)),
            None => return (now, None),
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

/// A layer that the reference registry cached, and in how many seconds it is to expire.
type Adopted = (u8, u8, u16);

fn adopted() -> impl Strategy<Value = Vec<Adopted>> {
    proptest::collection::vec((0..3_u8, 0..8_u8, 0..3000_u16), 0..4)
}

/// Writes the layers and the state file, as the reference registry does.
async fn adopt(adopted: &[Adopted], store: &dyn Store, state: &Path) -> Model {
    let mut model = Model::default();
    let mut entries = serde_json::Map::new();
    for (repo, n, seconds) in adopted {
        let (content, link) = (layer_of(*n), layer(repo_of(*repo), &layer_of(*n)));
        put(store, &link.digest, content).await;
        store.link(&link).await.unwrap();
        let expiry = today() + Duration::from_secs((*seconds).into());
        let text = humantime::format_rfc3339(expiry).to_string();
        let key = format!("{}@{}", link.repo, link.digest);
        let entry = serde_json::json!({"Key": key, "ExpiryData": text, "EntryType": 0});
        entries.insert(key, entry);
        model
            .used
            .insert(link.clone(), SystemTime::UNIX_EPOCH + TTL);
        model.promised.insert(link, expiry);
    }
    if !entries.is_empty() {
        std::fs::write(state, serde_json::to_vec(&entries).unwrap()).unwrap();
    }
    model.perhaps_promised.clone_from(&model.promised);
    model
}

fn live(adopted: &[Adopted], steps: Vec<Step>, capped: bool) {
    let directory = tempfile::tempdir().unwrap();
    let state = state_file(&directory);
    let journal = state.with_extension("journal");
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut model = runtime().block_on(adopt(adopted, &*store, &state));
    model.started = Some(today());
    let mut steps = steps.into_iter();
    let mut now = today();
    while steps.len() > 0 {
        // Dropping the runtime ends the tasks wherever they are, as a crash does.
        let runtime = runtime();
        let (ended, torn) = runtime.block_on(async {
            let settings = CacheSettings {
                ttl: TtlPolicy::sliding(Some(TTL)),
                max_size: capped.then_some(CAP),
                ..on_disk(&directory)
            };
            let rig = Rig::over(Arc::clone(&store), settings, Clock::starting_at(now));
            incarnation(rig, &mut model, &mut steps, capped).await
        });
        drop(runtime);
        if let Some(torn) = torn {
            // The model's own uses are unsure when they weren't saved, or are in the torn part.
            let text = std::fs::read(&journal).unwrap_or_default();
            let kept = text.len().saturating_sub(torn.into());
            if !text.is_empty() {
                std::fs::write(&journal, &text[..kept]).unwrap();
            }
            let lost = |used: &SystemTime| torn > 0 || *used + SAVE_AFTER + SLACK > ended;
            let lost = model.used.iter().filter(|(_, used)| lost(used));
            model.unsure.extend(lost.map(|(link, _)| link.clone()));
        }
        model.held.clear();
        now = ended + Duration::from_secs(1);
        model.started = Some(now);
        model.put_off = None;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn without_a_cap_every_link_expires_in_time_and_not_before(
        adopted in adopted(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        live(&adopted, steps, false);
    }

    #[test]
    fn with_a_cap_whole_images_are_evicted_and_the_cap_holds(
        adopted in adopted(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        live(&adopted, steps, true);
    }
}
