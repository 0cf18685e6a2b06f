//! Which upstream a request is for.

use crate::harness::{Image, Mirror, Registry, Setup, blob_path, mirrored, noise};

/// A default upstream, `ghcr.example` with an alias that has a port, and Docker Hub; each has
/// `team/app` and its own image under it.
async fn three() -> ([Registry; 3], Mirror) {
    let registries = [
        Registry::start().await,
        Registry::start().await,
        Registry::start().await,
    ];
    for (seed, registry) in registries.iter().enumerate() {
        registry.push("team/app", "1", &image(seed));
        registry.push("library/app", "1", &image(seed));
        let tags = serde_json::json!({"tags": ["1"]});
        registry.put_json("/v2/team/app/tags/list", &tags);
    }
    let [default, ghcr, hub] = &registries;
    let m = Setup::new(default)
        .upstream("ghcr.example", ghcr, ", aliases: ['ghcr.mirror:8443']")
        .upstream("docker.io", hub, ", aliases: [index.docker.io]")
        .start()
        .await;
    (registries, m)
}

fn image(seed: usize) -> Image {
    Image::oci(seed as u64)
}

/// Path below `/v2/`, and the Host header if it matters; which upstream is asked, for which
/// repository. `OWN` is the default upstream's own address.
const WAYS: &str = "
team/app/manifests/1 => 0 team/app
team/app/manifests/1?ns=OWN => 0 team/app
team/app/manifests/1 mirror.example:5000 => 0 team/app
team/app/manifests/1?ns=GHCR.example => 1 team/app
team/app/manifests/1?ns=ghcr.mirror%3A8443 => 1 team/app
ghcr.example/team/app/manifests/1 => 1 team/app
ghcr.example/team/app/manifests/1?ns=ghcr.example => 1 team/app
team/app/manifests/1 ghcr.example => 1 team/app
team/app/manifests/1 ghcr.mirror:8443 => 1 team/app
app/manifests/1?ns=docker.io => 2 library/app
library/app/manifests/1?ns=docker.io => 2 library/app
team/app/manifests/1?ns=docker.io => 2 team/app
docker.io/app/manifests/1 => 2 library/app
index.docker.io/team/app/manifests/1 => 2 team/app
app/manifests/1 index.docker.io => 2 library/app
docker.io/app/manifests/1 ghcr.example => 2 library/app
team/app/manifests/1?ns=docker.io ghcr.example => 2 team/app
";

#[tokio::test]
async fn each_way_to_name_an_upstream() {
    let (registries, m) = three().await;
    let own = registries[0].address.to_string().replace(':', "%3A");
    for way in WAYS.trim().lines() {
        let (asked, expected) = way.split_once(" => ").unwrap();
        let (path, host) = asked.split_once(' ').unwrap_or((asked, ""));
        let (upstream, repo) = expected.split_once(' ').unwrap();
        let upstream: usize = upstream.parse().unwrap();
        let headers = [("host", host)];
        let headers = if host.is_empty() { &[] } else { &headers[..] };
        let line = format!("HEAD /v2/{}", path.replace("OWN", &own));
        let answer = m.ask(&line, headers).await;
        assert_eq!(answer.status, 200, "{way}");
        let digest = image(upstream).digest();
        assert_eq!(answer.header("docker-content-digest"), digest, "{way}");
        let line = format!("HEAD /v2/{repo}/manifests/1");
        for (index, registry) in registries.iter().enumerate() {
            let asked = registry.take();
            let right = |asked: &String| index == upstream && *asked == line;
            let right = asked.iter().all(right);
            assert!(right, "{way}: {asked:?}");
        }
    }
}

#[tokio::test]
async fn an_unknown_registry_is_not_asked_of_the_default() {
    let (registries, m) = three().await;
    for path in ["/v2/team/app/manifests/1", "/v2/team/app/tags/list"] {
        let answer = m.get(&format!("{path}?ns=quay.example")).await;
        answer.refused(404, "NAME_UNKNOWN");
        let message = answer.json()["errors"][0]["message"].to_string();
        assert!(message.contains("quay.example"), "{message}");
    }
    assert!(registries.iter().all(|registry| registry.count("") == 0));
}

#[tokio::test]
async fn repositories_of_one_name_do_not_mix() {
    let (registries, m) = three().await;
    let secret = noise(7, 1000);
    registries[1].put_blob("team/app", &secret);
    for _ in 0..2 {
        for (prefix, seed) in [("", 0), ("ghcr.example/", 1), ("docker.io/", 2)] {
            let path = format!("/v2/{prefix}team/app/manifests/1");
            m.serves(&path, &image(seed).manifest).await;
        }
    }
    m.pull(&blob_path("ghcr.example/team/app", &secret), &secret)
        .await;
    for other in ["team/app", "docker.io/team/app"] {
        let path = blob_path(other, &secret);
        assert_eq!(m.get(&path).await.status, 404);
    }
    let stored = m.store.repositories().await.unwrap();
    let stored: Vec<_> = stored.iter().map(ToString::to_string).collect();
    let expected = ["docker.io/team/app", "ghcr.example/team/app", "team/app"];
    assert_eq!(stored, expected);
}

#[tokio::test]
async fn a_name_of_one_component_is_below_library_on_docker_hub_only() {
    let (up, m) = mirrored().await;
    up.push("app", "1", &image(1));
    m.serves("/v2/app/manifests/1", &image(1).manifest).await;
    let up = Registry::start().await;
    up.push("library/app", "1", &image(2));
    let hub = Setup::new(&up)
        .with(&["proxy.aliases: [docker.io]"])
        .start()
        .await;
    hub.get("/v2/app/manifests/1")
        .await
        .expect(200, &image(2).manifest);
    hub.get("/v2/library/app/manifests/1")
        .await
        .expect(200, &image(2).manifest);
    // One repository, one entry.
    assert_eq!(up.take(), ["GET /v2/library/app/manifests/1"]);
}

#[tokio::test]
async fn the_namespace_stays_in_the_link_to_the_next_page() {
    let (registries, m) = three().await;
    let tags = serde_json::json!({"name": "team/app", "tags": ["1", "2"]});
    registries[1].put_json("/v2/team/app/tags/list", &tags);
    let path = "/v2/team/app/tags/list";
    let answer = m.get(&format!("{path}?n=1&ns=ghcr.mirror%3A8443")).await;
    let next = format!("<{path}?last=1&n=1&ns=ghcr.mirror%3A8443>; rel=\"next\"");
    assert_eq!(answer.header("link"), next);
}
