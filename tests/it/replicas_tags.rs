//! Replicas that share the work: manifests and tags, and what a replica makes of another one's answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use millpond::replicas::{Marks, Subject, score};

use crate::harness::replicas::{Replicas, SECRET, section};
use crate::harness::{
    Image, Mirror, Registry, Reply, Seen, Setup, advance, digest, eventually, noise, passing,
    put_blob, put_image,
};
use crate::private::ANN;

const TAG: &str = "/v2/app/manifests/1";

/// The upstream names another image by the tag.
fn push(replicas: &Replicas, seed: u64) -> Image {
    let image = Image::oci(seed);
    replicas.up.push("app", "1", &image);
    image
}

#[tokio::test(start_paused = true)]
async fn one_request_resolves_a_tag_for_all() {
    let replicas = Replicas::start(3, &[]).await;
    let image = push(&replicas, 1);
    for owner_last in [true, false] {
        let mut order = replicas.order_of_tag("app", "1");
        if owner_last {
            order.reverse();
        }
        for mirror in order {
            let answer = replicas.mirrors[mirror].serves(TAG, &image.manifest).await;
            assert!(answer.headers.get("age").is_none());
        }
    }
    let lines = replicas.up.take();
    assert_eq!(lines, [format!("GET {TAG}")]);
    // By digest, too, and only as long as nobody has it.
    let (image, path) = put_image(&replicas.up, 2);
    for mirror in &replicas.mirrors {
        mirror.serves(&path, &image.manifest).await;
    }
    assert_eq!(replicas.up.count(&format!("GET {path}")), 1);
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_never_older_than_its_time() {
    const TTL: u64 = 60;
    let replicas = Replicas::start(3, &["proxy.tags: {ttl: 60s}"]).await;
    let mut image = push(&replicas, 1);
    let order = replicas.order_of_tag("app", "1");
    let mut moved = 0;
    // Each second one of the replicas is asked, and every 7 seconds the tag moves.
    let mut past = vec![(0, image.manifest.clone())];
    for second in 0..300_u64 {
        if second % 7 == 3 {
            moved += 1;
            image = push(&replicas, 100 + moved);
            past.push((second, image.manifest.clone()));
        }
        let mirror = &replicas.mirrors[order[usize::try_from(second % 3).unwrap()]];
        let answer = passing(mirror.get(TAG)).await;
        let named = past
            .iter()
            .position(|(_, manifest)| *manifest == answer.body)
            .unwrap();
        // It held until the next one came.
        if let Some((until, _)) = past.get(named + 1) {
            assert!(second <= until + TTL, "at {second} s, of {until} s");
        }
        advance(Duration::from_secs(1)).await;
    }
    // As often as one replica alone would have asked.
    let asked =
        replicas.up.count(&format!("GET {TAG}")) + replicas.up.count(&format!("HEAD {TAG}"));
    assert!(asked <= 300 / 60 + 2, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn what_the_owner_can_not_learn_the_others_serve_stale() {
    let replicas = Replicas::start(2, &["proxy.tags: {ttl: 60s}"]).await;
    let image = push(&replicas, 1);
    for mirror in &replicas.mirrors {
        mirror.serves(TAG, &image.manifest).await;
    }
    replicas.up.go_down();
    advance(Duration::from_secs(61)).await;
    replicas.up.take();
    for _ in 0..3 {
        for mirror in &replicas.mirrors {
            let answer = passing(mirror.get(TAG)).await;
            answer.expect(200, &image.manifest);
            // As one replica alone would say.
            assert!(answer.header("warning").starts_with("110 "), "{answer:?}");
        }
    }
    let asked = replicas.up.count("");
    assert!(asked <= 2, "{asked}: {:?}", replicas.up.lines());
}

/// The wall time when a mirror starts.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(500_000)
}

/// A replica that is played by the test: its answers are a status, fields and a body, and are marked unless
/// 1000 is added to the status.
struct Played {
    registry: Registry,
    asked: Arc<AtomicUsize>,
}

type Part = (u16, Vec<(&'static str, String)>, Vec<u8>);

impl Played {
    async fn start(answer: impl Fn(&Seen) -> Part + Send + Sync + 'static) -> Self {
        let (marks, asked) = (Marks::new(SECRET), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let marks = Mutex::new(marks);
        let registry = Registry::scripted(move |seen| {
            let (method, target) = seen.line.split_once(' ').unwrap();
            let marks = marks.lock().unwrap();
            let (nonce, _) = marks.check(&seen.headers, (method, target), now()).unwrap();
            let (status, fields, body) = if seen.path() == "/v2/" {
                (200, Vec::new(), Vec::new())
            } else {
                count.fetch_add(1, Ordering::SeqCst);
                answer(seen)
            };
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(
                    HeaderName::from_static(name),
                    HeaderValue::try_from(value).unwrap(),
                );
            }
            if status < 1000 {
                marks.mark_answer(nonce, status, &mut headers);
            }
            let reply = Reply::new(status % 1000, body);
            headers.iter().fold(reply, |reply, (name, value)| {
                reply.with(name.as_str(), value.to_str().unwrap())
            })
        })
        .await;
        Self { registry, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// A mirror that takes this one for the owner of a key.
    async fn beside(&self, up: &Registry, key: &str) -> Mirror {
        let other = self.registry.address.to_string();
        let names = (1..).map(|port| format!("127.0.0.1:{port}"));
        let mut less = names.filter(|name| score(name, key) < score(&other, key));
        let me = less.next().unwrap();
        let section = section(&[other, me.clone()], &me, SECRET);
        Setup::new(up).with(&[&section]).start().await
    }
}

#[tokio::test]
async fn an_age_that_is_no_number_is_not_trusted() {
    let up = Registry::start().await;
    let (old, new) = (Image::oci(1), Image::oci(2));
    up.push("app", "1", &new);
    for (age, is_trusted) in [
        ("0", true),
        ("59", true),
        ("soon", false),
        ("-1", false),
        ("1.5", false),
        ("", false),
    ] {
        let (manifest, kind) = (old.manifest.to_vec(), old.media_type.to_owned());
        let named = digest(&old.manifest).to_string();
        let played = Played::start(move |_| {
            let mut fields = vec![
                ("content-type", kind.clone()),
                ("docker-content-digest", named.clone()),
            ];
            if !age.is_empty() {
                fields.push(("age", age.to_owned()));
            }
            (200, fields, manifest.clone())
        })
        .await;
        let key = format!("{}/app:1", up.address);
        let mirror = played.beside(&up, &key).await;
        let served = if is_trusted { &old } else { &new };
        mirror.serves(TAG, &served.manifest).await;
        assert_eq!(played.asked(), 1, "{age:?}");
    }
}

#[tokio::test]
async fn a_marked_answer_is_final_unless_it_sends_elsewhere() {
    let up = Registry::start().await;
    let (blob, path) = put_blob(&up, 1, 3_000_000);
    let key = digest(&blob).to_string();
    for (status, code, expected) in [
        (404, "BLOB_UNKNOWN", 404),
        (429, "TOOMANYREQUESTS", 429),
        (502, "UNAVAILABLE", 502),
        (504, "UNAVAILABLE", 504),
        (421, "", 200),
        (500, "", 200),
        // Not marked.
        (1404, "", 200),
        (1200, "", 200),
    ] {
        up.take();
        let played = Played::start(move |_| {
            (
                status,
                vec![("retry-after", "77".to_owned())],
                b"{}".to_vec(),
            )
        })
        .await;
        let mirror = played.beside(&up, &key).await;
        let answer = mirror.get(&path).await;
        assert_eq!(answer.status, expected, "{status}");
        assert!(played.asked() > 0);
        if expected == 200 {
            answer.expect(200, &blob);
            assert_eq!(up.count("GET "), 1);
        } else {
            answer.refused(expected, code);
            assert_eq!(up.count(""), 0);
            let hop = played.registry.address;
            assert!(
                answer
                    .header("cache-status")
                    .starts_with(&format!("\"{hop}\", millpond; "))
            );
            if status == 429 {
                answer.has("retry-after", 77);
            }
        }
        let misdirected = mirror.metric("millpond_replica_misdirected_total");
        assert_eq!(misdirected, u64::from(status == 421));
    }
}

#[tokio::test]
async fn another_length_than_before_is_asked_of_the_next_source() {
    let up = Registry::start().await;
    let (blob, path) = put_blob(&up, 1, 3_000_000);
    let bytes = blob.to_vec();
    // The first stream breaks off; the second one is of a longer blob.
    let played = Played::start(move |seen| {
        if seen.header("range").is_some() {
            let fields = vec![("content-range", "bytes 1500000-3000000/3000001".to_owned())];
            return (206, fields, vec![0; 1_500_001]);
        }
        let fields = vec![("content-length", "3000000".to_owned())];
        (200, fields, bytes[..1_500_000].to_vec())
    })
    .await;
    played
        .registry
        .on("", 1, |_, usual| usual.announcing(3_000_000));
    let mirror = played.beside(&up, &digest(&blob).to_string()).await;
    mirror.serves(&path, &blob).await;
    assert_eq!(up.count("GET "), 1);
}

#[tokio::test]
async fn wrong_bytes_of_a_replica_are_asked_of_the_upstream() {
    let up = Registry::start().await;
    let (blob, path) = put_blob(&up, 1, 500_000);
    let wrong = noise(2, 500_000).to_vec();
    let played = Played::start(move |_| (200, Vec::new(), wrong.clone())).await;
    let mirror = played.beside(&up, &digest(&blob).to_string()).await;
    mirror.serves(&path, &blob).await;
    assert_eq!((played.asked(), up.count("GET ")), (1, 1));
}

#[tokio::test]
async fn wrong_manifests_of_a_replica_are_asked_of_the_upstream() {
    let up = Registry::start().await;
    let (image, path) = put_image(&up, 1);
    let wrong = Image::oci(2).manifest.to_vec();
    let kind = image.media_type.to_owned();
    let played =
        Played::start(move |_| (200, vec![("content-type", kind.clone())], wrong.clone())).await;
    let mirror = played
        .beside(&up, &digest(&image.manifest).to_string())
        .await;
    mirror.serves(&path, &image.manifest).await;
    assert_eq!((played.asked(), up.count("GET ")), (1, 1));
}

#[tokio::test]
async fn access_is_decided_by_the_replica_that_the_client_asks() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("htpasswd");
    std::fs::write(&path, format!("ann:{}\n", bcrypt::hash("a", 4).unwrap())).unwrap();
    let line = format!("auth.htpasswd: {{path: '{}'}}", path.display());
    let replicas = Replicas::start(2, &[&line]).await;
    let (blob, path) = put_blob(&replicas.up, 1, 3_000_000);
    let line = format!("GET {path}");
    for mirror in &replicas.mirrors {
        assert_eq!(mirror.get(&path).await.status, 401);
    }
    assert_eq!(replicas.up.count(""), 0);
    let order = replicas.order(&digest(&blob).to_string());
    let [owner, other] = [0, 1].map(|place| &replicas.mirrors[order[place]]);
    // The owner lets the replica have it, and not the replica's clients.
    other
        .ask(&line, &[("authorization", ANN)])
        .await
        .expect(200, &blob);
    assert_eq!(other.get(&path).await.status, 401);
    // A mark counts once.
    let mut headers = HeaderMap::new();
    let upstream = replicas.up.address.to_string();
    let marks = Marks::new(SECRET);
    marks
        .mark(
            &mut headers,
            ("GET", &path),
            Subject::Upstream(&upstream),
            now(),
        )
        .unwrap();
    let texts = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
    let texts: Vec<_> = texts.collect();
    owner.ask(&line, &texts).await.expect(200, &blob);
    assert_eq!(owner.ask(&line, &texts).await.status, 401);
    // A replica asks for nothing else, and for no upstream that isn't configured.
    for (path, upstream, status) in [
        ("/v2/app/tags/list", upstream.as_str(), 421),
        ("/v2/_catalog", &upstream, 421),
        (&path, "elsewhere.example", 421),
        ("/v2/", "", 200),
    ] {
        let mut headers = HeaderMap::new();
        marks
            .mark(
                &mut headers,
                ("GET", path),
                Subject::Upstream(upstream),
                now(),
            )
            .unwrap();
        let texts = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let texts: Vec<_> = texts.collect();
        let answer = owner.ask(&format!("GET {path}"), &texts).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.headers.contains_key("millpond-peer"));
    }
    assert_eq!(owner.metric("millpond_replica_refused_total"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upstream_is_waited_for_and_a_silent_owner_is_not() {
    let replicas = Replicas::start(2, &[]).await;
    let image = push(&replicas, 1);
    let order = replicas.order_of_tag("app", "1");
    let gate = replicas.up.hold("GET ", 1);
    let other = &replicas.mirrors[order[1]];
    let slow = async {
        let began = tokio::time::Instant::now();
        replicas.up.wait(1, "GET ").await;
        // Two probes of the owner.
        let probes = "millpond_requests_total{route=\"base\"}";
        eventually("probes", || replicas.mirrors[order[0]].metric(probes) >= 2).await;
        gate.open();
        began.elapsed()
    };
    let (answer, elapsed) = tokio::join!(other.get(TAG), slow);
    answer.expect(200, &image.manifest);
    assert!(elapsed > Duration::from_secs(2));
    assert_eq!(replicas.up.count("GET "), 1);
    let image = Image::oci(3);
    replicas.up.push("app", "2", &image);
    for relay in &replicas.relays {
        relay.silence();
    }
    let began = tokio::time::Instant::now();
    for mirror in &replicas.mirrors {
        mirror.serves("/v2/app/manifests/2", &image.manifest).await;
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}
