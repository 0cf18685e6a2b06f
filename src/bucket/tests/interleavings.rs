//! Sweeps while replicas write links: every order of their requests, and sweeps that end at any of them.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::SeqCst;

use tokio_util::sync::CancellationToken;

use super::orders::{self, Choices};
use super::store::{Kind, Request};
use super::*;
use crate::bucket::queue::{Entry, Upload};
use crate::bucket::uploads::Ended;

/// What a scene is about.
struct Scene {
    world: Arc<World>,
    cache: Cache,
    digest: Digest,
    retention: Retention,
    /// What is linked with a tag, in place of the content.
    tag: Option<&'static str>,
    moved: Option<Digest>,
    /// A sweep has ended that deletes.
    swept: CancellationToken,
}

/// The same for all runs: the content is in the caches of all replicas.
async fn content() -> (Cache, Digest) {
    let cache = cache(epoch());
    let digest = put_image(&cache, &repo("a"), "content").await;
    assert!(cache.peek(&digest).await.is_some());
    (cache, digest)
}

impl Scene {
    /// Content of an age that is linked by `a`.
    fn new((cache, digest): &(Cache, Digest), age: Duration, retention: Retention) -> Self {
        let world = World::new();
        world.put_record();
        let (_, bytes) = image("content");
        world.put_linked(age, &bytes, &[("a", LinkKind::Revision)]);
        Self {
            world,
            cache: cache.clone(),
            digest: *digest,
            retention,
            tag: None,
            moved: None,
            swept: CancellationToken::new(),
        }
    }

    /// Which requests have an order that matters: those about the content, and those that change or list
    /// what is being deleted.
    fn watched(&self, is_sweeper: bool) -> impl Fn(&Request) -> bool + Send + Sync + use<> {
        let hex = self.digest.hex();
        let first = format!("blobs/sha256/{:02x}", self.digest.first_byte());
        move |request: &Request| {
            if request.key.starts_with("millpond/sweep/deleting") {
                return match request.kind {
                    Kind::List => !is_sweeper,
                    Kind::Put | Kind::Delete => true,
                    Kind::Get | Kind::Head => false,
                };
            }
            let is_ours = request.key.contains(&hex) || request.key.contains("/tags/");
            is_ours || request.key.ends_with(&first) || request.key.ends_with("repositories")
        }
    }

    /// The content is marked, and that is due.
    async fn mark(&self) {
        let began = self
            .world
            .now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let key = format!("millpond/sweep/marked/{}-x", began.as_secs());
        self.world
            .put(&key, Digests::encode(vec![self.digest], true));
        tokio::time::advance(DAY * 2).await;
    }

    async fn sweep(&self, actor: &Arc<Actor>) {
        let objects = self.world.objects(actor, epoch() + DAY);
        sweep(objects, self.retention).run().await.unwrap();
    }

    /// Links the content in another repository, as often as it takes.
    async fn link(&self, actor: &Arc<Actor>, name: &str) {
        let objects = self.world.objects(actor, epoch() - DAY);
        let bucket = bucket(objects, &self.cache, self.retention.ttl);
        let upload = Upload {
            repo: repo(name),
            kind: LinkKind::Revision,
            digest: self.moved.unwrap_or(self.digest),
            tag: self.tag.map(|tag| tag.parse().unwrap()),
        };
        let entry = Entry {
            upload,
            is_absent: false,
        };
        for attempt in 0.. {
            if bucket.upload_one(&entry).await.unwrap() == Ended::Done {
                return;
            }
            // More attempts than two within the same sweep are as good as a first one that begins later.
            if attempt > 0 {
                actor.is_blocked.store(true, SeqCst);
                self.swept.cancelled().await;
                actor.is_blocked.store(false, SeqCst);
            }
            tokio::time::sleep(HOUR / 12).await;
        }
    }

    /// The content and its links are there.
    fn is_readable(&self, name: &str) -> bool {
        self.world.has_content(&self.digest) && self.world.has_link(name, &self.digest)
    }
}

type Running = Pin<Box<dyn Future<Output = ()>>>;

/// One who does something in a scene.
fn actor<F: Future<Output = ()> + 'static>(
    (scene, is_sweeper): (&Arc<Scene>, bool),
    run: impl FnOnce(Arc<Scene>, Arc<Actor>) -> F,
) -> (Arc<Actor>, Running) {
    let actor = Arc::new(Actor::watched(scene.watched(is_sweeper)));
    let running = run(Arc::clone(scene), Arc::clone(&actor));
    (actor, Box::pin(running))
}

fn sweeper(scene: &Arc<Scene>) -> (Arc<Actor>, Running) {
    actor((scene, true), |scene, actor| async move {
        scene.sweep(&actor).await;
        scene.swept.cancel();
    })
}

/// Marks, and sweeps again when that is due.
fn marker(scene: &Arc<Scene>) -> (Arc<Actor>, Running) {
    actor((scene, true), |scene, actor| async move {
        scene.sweep(&actor).await;
        tokio::time::sleep(DAY * 2).await;
        scene.sweep(&actor).await;
        scene.swept.cancel();
    })
}

fn linker(scene: &Arc<Scene>, name: &'static str) -> (Arc<Actor>, Running) {
    actor((scene, false), move |scene, actor| async move {
        scene.link(&actor, name).await;
    })
}

/// Runs scenes in the orders that the choices go through. Returns how many there were, and what was done in
/// those that ended badly.
async fn try_orders<F: Future<Output = Arc<Scene>>>(
    mut choices: Choices,
    make: impl Fn() -> F,
    actors: impl Fn(&Arc<Scene>) -> Vec<(Arc<Actor>, Running)>,
    is_right: impl Fn(&Scene) -> bool,
) -> (usize, Vec<String>) {
    let (mut runs, mut wrong) = (0, Vec::new());
    loop {
        // Runs with the same choices have the same keys.
        fastrand::seed(1);
        let scene = make().await;
        if let Some(history) = orders::run(actors(&scene), &mut choices).await {
            runs += 1;
            if !is_right(&scene) {
                wrong.push(history.join("\n"));
            }
        }
        if !choices.next() {
            return (runs, wrong);
        }
    }
}

fn assert_right((runs, wrong): (usize, Vec<String>), at_least: usize) {
    let count = wrong.len();
    assert!(
        count == 0,
        "{count} of {runs} orders are wrong; the first:\n{}",
        wrong[0]
    );
    assert!(runs >= at_least, "only {runs} orders");
}

fn above_limit() -> Retention {
    Retention {
        ttl: None,
        max_size: Some(1),
    }
}

/// What is due is deleted while a replica links it.
#[tokio::test(start_paused = true)]
async fn what_is_linked_while_it_is_deleted_is_readable() {
    let content = content().await;
    for (age, retention) in [(DAY * 40, only_ttl()), (DAY * 5, above_limit())] {
        let make = || async {
            let scene = Scene::new(&content, age, retention);
            scene.mark().await;
            Arc::new(scene)
        };
        let actors = |scene: &_| vec![sweeper(scene), linker(scene, "b")];
        let ended = try_orders(Choices::all(), make, actors, |scene| scene.is_readable("b")).await;
        assert_right(ended, 100);
    }
}

/// The link is older than the mark: it has to be written again.
#[tokio::test(start_paused = true)]
async fn what_is_linked_again_while_it_is_deleted_is_readable() {
    let content = content().await;
    let make = || async {
        let scene = Scene::new(&content, DAY * 5, above_limit());
        scene.mark().await;
        Arc::new(scene)
    };
    let actors = |scene: &_| vec![sweeper(scene), linker(scene, "a")];
    let ended = try_orders(Choices::all(), make, actors, |scene| scene.is_readable("a")).await;
    assert_right(ended, 100);
}

/// The same from the first look of the sweep that marks it on.
#[tokio::test(start_paused = true)]
async fn what_is_linked_while_it_is_marked_is_readable() {
    let content = content().await;
    for (age, retention) in [(DAY * 40, only_ttl()), (DAY * 5, above_limit())] {
        let make = || async { Arc::new(Scene::new(&content, age, retention)) };
        let actors = |scene: &_| vec![marker(scene), linker(scene, "b")];
        let ended = try_orders(Choices::all(), make, actors, |scene| scene.is_readable("b")).await;
        assert_right(ended, 100);
    }
}

/// The proof that the orders above can go wrong.
#[tokio::test(start_paused = true)]
async fn a_replica_that_reads_no_lists_would_lose_its_link() {
    let content = content().await;
    let make = || async {
        let scene = Scene::new(&content, DAY * 40, only_ttl());
        scene.mark().await;
        Arc::new(scene)
    };
    let careless = |scene: &Arc<Scene>| {
        actor((scene, false), |scene, actor| async move {
            let objects = scene.world.objects(&actor, epoch());
            let (blob, (_, bytes)) = (keys::blob(&scene.digest), image("content"));
            objects.head(&blob).await.unwrap();
            objects.put(&blob, vec![bytes]).await.unwrap();
            let link = keys::link(&repo("b"), LinkKind::Revision, &scene.digest);
            objects.put(&link, vec!["x".into()]).await.unwrap();
        })
    };
    let actors = |scene: &_| vec![sweeper(scene), careless(scene)];
    let (runs, wrong) =
        try_orders(Choices::all(), make, actors, |scene| scene.is_readable("b")).await;
    assert!(
        !wrong.is_empty() && wrong.len() < runs / 2,
        "{} of {runs}",
        wrong.len()
    );
}

/// Two replicas sweep at the same time, and one links.
#[tokio::test(start_paused = true)]
async fn two_sweeps_at_once_do_no_harm() {
    let content = content().await;
    for (age, retention) in [(DAY * 40, only_ttl()), (DAY * 5, above_limit())] {
        let make = || async {
            let scene = Scene::new(&content, age, retention);
            scene.mark().await;
            Arc::new(scene)
        };
        let actors = |scene: &_| vec![sweeper(scene), sweeper(scene), linker(scene, "b")];
        let ended = try_orders(Choices::some(7, 200), make, actors, |scene| {
            scene.is_readable("b")
        })
        .await;
        assert_right(ended, 200);
    }
}

/// A link relies on content for a while: content that has little time left is written again.
#[tokio::test(start_paused = true)]
async fn content_that_is_linked_late_is_written_again() {
    let content = content().await;
    for (age, is_written) in [(DAY * 25, false), (DAY * 26, true)] {
        let scene = Scene::new(&content, age, only_ttl());
        let key = keys::blob(&scene.digest);
        let before = scene.world.modified(&key);
        scene.link(&Arc::default(), "b").await;
        assert_eq!(scene.world.modified(&key) != before, is_written);
    }
}

/// Without anybody who links, two sweeps leave as little as one.
#[tokio::test(start_paused = true)]
async fn two_sweeps_at_once_remove_everything_that_is_due() {
    let content = content().await;
    let make = || async {
        let scene = Scene::new(&content, DAY * 40, only_ttl());
        scene.mark().await;
        Arc::new(scene)
    };
    let actors = |scene: &_| vec![sweeper(scene), sweeper(scene)];
    let is_gone = |scene: &Scene| {
        !scene.world.has_content(&scene.digest)
            && !scene.world.has_link("a", &scene.digest)
            && scene.world.keys("millpond/sweep").is_empty()
    };
    assert_right(
        try_orders(Choices::some(3, 300), make, actors, is_gone).await,
        300,
    );
}

/// A tag moves on while what it named is deleted.
#[tokio::test(start_paused = true)]
async fn a_tag_that_moves_on_stays() {
    let content = content().await;
    let next = put_image(&content.0, &repo("a"), "next").await;
    let tag = "latest".parse().unwrap();
    let current = keys::tag_current(&repo("a"), &tag);
    let make = || async {
        let scene = Scene::new(&content, DAY * 40, only_ttl());
        let old = scene.digest.to_string();
        let at = epoch() - DAY * 40;
        let index = keys::tag_index(&repo("a"), &tag, &scene.digest);
        scene.world.put_at(&index, old.clone(), at);
        scene.world.put_at(&current, old, at);
        scene.mark().await;
        Arc::new(Scene {
            tag: Some("latest"),
            moved: Some(next),
            ..scene
        })
    };
    let actors = |scene: &_| vec![sweeper(scene), linker(scene, "a")];
    let is_right = |scene: &Scene| {
        let named = scene.world.get(&current).unwrap_or_default();
        named == next.to_string() && scene.world.has_content(&next)
    };
    assert_right(try_orders(Choices::all(), make, actors, is_right).await, 50);
}

/// After each number of its requests.
#[tokio::test(start_paused = true)]
async fn a_sweep_that_is_killed_does_no_harm() {
    let content = content().await;
    for (age, retention) in [(DAY * 40, only_ttl()), (DAY * 5, above_limit())] {
        let mut is_over = false;
        for requests in 0.. {
            if is_over {
                assert!(requests > 10, "{requests}");
                break;
            }
            for links in [false, true] {
                let scene = Scene::new(&content, age, retention);
                scene.mark().await;
                let scene = Arc::new(scene);
                // After all but lists of parts that have nothing.
                let watched = scene.watched(true);
                let watched = move |request: &Request| {
                    watched(request) || !request.key.starts_with("docker/registry/v2/blobs")
                };
                let actor = Arc::new(Actor::watched(watched));
                let (sweeping, sweeper) = (Arc::clone(&scene), Arc::clone(&actor));
                let killed = (
                    actor,
                    Box::pin(async move { sweeping.sweep(&sweeper).await }) as _,
                );
                is_over = orders::run_until(killed, requests).await;
                scene.swept.cancel();
                if links {
                    scene.link(&Arc::default(), "b").await;
                    assert!(scene.is_readable("b"), "{requests}");
                }
                // Those of the next days.
                for _ in 0..4 {
                    scene.sweep(&Arc::default()).await;
                    tokio::time::advance(HOUR * 25).await;
                }
                let what = format!("{requests}, {links}");
                assert_eq!(scene.is_readable("b"), links, "{what}");
                assert_eq!(scene.world.has_content(&scene.digest), links, "{what}");
                if !links {
                    assert!(!scene.world.has_link("a", &scene.digest), "{what}");
                    assert_eq!(
                        scene.world.keys("millpond/sweep"),
                        [] as [&str; 0],
                        "{what}"
                    );
                }
            }
        }
    }
}
