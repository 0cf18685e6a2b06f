//! The real binary as systemd runs it: it is handed its listening socket, tells of itself, reads its
//! configuration again, and is stopped and started under load without a lost request.
//!
//! `MILLPOND_RESTARTS` is the number of stops and of reloads (20). Processes live in real time, but
//! nothing here passes or fails by the clock.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![expect(clippy::print_stderr, reason = "what was seen")]

mod client;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millpond::oci::Digest;
use rustix::process::Signal;
use testkit::{Image, Options, noise};
use tokio::task::JoinSet;
use tokio::time::Instant;

use client::{Client, Wanted};
use server::Server;

type Upstream = testkit::Registry<Digest>;

const RESTARTS: u64 = 20;
const CLIENTS: u64 = 4;
/// Bytes per second from upstream.
const RATE: u64 = 16 << 20;
/// The longest that one stop and start may take on a busy machine.
const CYCLE: Duration = Duration::from_mins(1);

#[expect(
    clippy::disallowed_methods,
    reason = "the test's own variable, not the program's"
)]
fn restarts() -> u64 {
    let restarts = std::env::var("MILLPOND_RESTARTS");
    restarts.map_or(RESTARTS, |restarts| restarts.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_starts_and_reloads_under_load_lose_no_request() {
    let upstream = Upstream::with(Options::default().rate(RATE)).await;
    let (image, wanted) = content(&upstream);
    let mut server = Server::new(&upstream);
    server.start();
    let done = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut client = Client::new(server.address, number);
        let (wanted, done) = (wanted.clone(), Arc::clone(&done));
        clients.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                client.request(&wanted).await;
            }
            client.served
        });
    }
    clients.spawn(over_http2(server.address, image, Arc::clone(&done)));
    let (mut random, mut longest) = (fastrand::Rng::new(), Duration::ZERO);
    for round in 0..restarts() {
        for signal in [Signal::HUP, Signal::TERM] {
            let moment = Duration::from_millis(random.u64(..250));
            tokio::select! {
                () = tokio::time::sleep(moment) => {}
                ended = clients.join_next() => panic!("a client failed in round {round}: {ended:?}"),
            }
            server.configure(&format!("ttl: {}h", 1 + round % 9));
            server.signal(signal);
        }
        let began = Instant::now();
        server = tokio::task::spawn_blocking(move || {
            server.has_ended();
            server.start();
            server
        })
        .await
        .unwrap();
        longest = longest.max(began.elapsed());
    }
    assert!(longest < CYCLE, "{longest:?}");
    done.store(true, Ordering::Relaxed);
    let requests = clients.join_all().await;
    eprintln!(
        "{} stops and reloads, {requests:?} requests, none lost; the longest pause took {longest:?}",
        restarts()
    );
    assert!(requests.iter().all(|count| *count > 0));
    server.stop();
}

/// What is requested: small and large, by tag and by digest.
fn content(upstream: &Upstream) -> (Bytes, Vec<Wanted>) {
    let image = Image::oci(1);
    let digest = upstream.push("app", "1", &image);
    let mut wanted = vec![
        Wanted::new("/v2/app/manifests/1".to_owned(), image.manifest.clone()),
        Wanted::new(
            format!("/v2/app/manifests/{digest}"),
            image.manifest.clone(),
        ),
    ];
    for seed in 0..40 {
        let size = [10_000, 200_000, 3_000_000][usize::try_from(seed % 3).unwrap()];
        let blob = noise(seed, size);
        let digest = upstream.put_blob("app", &blob);
        wanted.push(Wanted::new(format!("/v2/app/blobs/{digest}"), blob));
    }
    (image.manifest, wanted)
}

/// Requests over HTTP/2, whose server says at a stop which of them it doesn't process.
async fn over_http2(
    address: std::net::SocketAddr,
    manifest: Bytes,
    done: Arc<AtomicBool>,
) -> usize {
    let client = reqwest::Client::builder()
        .tls_certs_only([])
        .http2_prior_knowledge();
    let client = client.build().unwrap();
    let mut served = 0;
    while !done.load(Ordering::Relaxed) {
        let url = format!("http://{address}/v2/app/manifests/1");
        let mut response = client.get(url).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.unwrap() {
            body.extend_from_slice(&chunk);
        }
        assert_eq!(body, manifest);
        served += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    served
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_process_resumes_an_unfinished_download() {
    let upstream = Upstream::with(Options::default().rate(RATE)).await;
    let blob = noise(1, 32 << 20);
    let digest = upstream.put_blob("app", &blob);
    let path = format!("/v2/app/blobs/{digest}");
    let mut server = Server::new(&upstream);
    server.start();
    // A client that leaves in the middle.
    let url = format!("http://{}{path}", server.address);
    let client = reqwest::Client::builder()
        .tls_certs_only([])
        .build()
        .unwrap();
    let mut response = client.get(url).send().await.unwrap();
    let mut received = 0;
    while received < 8 << 20 {
        received += response.chunk().await.unwrap().unwrap().len();
    }
    drop((response, client));
    server.stop();
    server.start();
    let mut client = Client::new(server.address, 0);
    client.get(&Wanted::new(path, blob.clone())).await;
    server.stop();
    // Twice the blob without a checkpoint, or what the first process had of it at least.
    let came = upstream.blob_bytes();
    assert!(came < 36 << 20, "{came} bytes came from upstream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told() {
    let upstream = Upstream::start().await;
    let mut server = Server::new(&upstream);
    let manager = server.listen_for_notifications();
    server.start();
    let hears = |text: &str| {
        let mut others = Vec::new();
        loop {
            let said = server::heard(&manager);
            if said.starts_with(text) {
                return others;
            }
            others.push(said);
        }
    };
    // Nothing is said before the start is complete.
    assert_eq!(hears("READY=1\nSTATUS=serving on "), Vec::<String>::new());
    // Twice in WATCHDOG_USEC, for as long as it runs.
    hears("WATCHDOG=1");
    hears("WATCHDOG=1");
    server.signal(Signal::HUP);
    hears("RELOADING=1\nMONOTONIC_USEC=");
    hears("READY=1\n");
    server.signal(Signal::TERM);
    hears("STOPPING=1\n");
    server.has_ended();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_prints_what_came_of_it() {
    let upstream = Upstream::start().await;
    let mut server = Server::new(&upstream);
    // Nothing runs yet.
    let (code, _, error) = server.reload();
    assert_eq!(code, Some(1));
    assert!(error.contains("no server answers"), "{error}");
    server.start();
    assert_eq!(
        server.reload(),
        (Some(0), "nothing differs\n".to_owned(), String::new())
    );

    server.configure("ttl: 2h, password: two, username: u, anonymous: true");
    let (code, printed, _) = server.reload();
    assert_eq!(code, Some(0));
    assert!(
        printed.contains("applied: proxy.ttl: 168h -> 2h\n"),
        "{printed}"
    );
    server.configure("ttl: 2h, password: three, username: u, anonymous: true");
    let (_, printed, _) = server.reload();
    assert_eq!(printed, "applied: proxy: a secret\n");

    server.configure_http("debug: {addr: '127.0.0.1:1'}");
    let expected = "needs a restart: http.debug.addr: (nothing) -> 127.0.0.1:1\n";
    let (code, printed, _) = server.reload();
    assert!(code == Some(0) && printed.contains(expected), "{printed}");

    server.configure("ttl: x, onabandon: y");
    let (code, printed, error) = server.reload();
    assert_eq!((code, printed.as_str()), (Some(1), ""));
    assert!(
        error.contains("`proxy.ttl`") && error.contains("`proxy.onabandon`"),
        "{error}"
    );
    // The signal says the same in the log, and the process goes on.
    server.signal(Signal::HUP);
    server.logged("nothing has changed");
    assert!(
        server
            .log()
            .contains("its old value until a restart key=\"http.debug.addr\"")
    );
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_no_listener_has_is_an_error_with_both_addresses() {
    let upstream = Upstream::start().await;
    let mut server = Server::new(&upstream);
    server.move_configured_address("127.0.0.1:1");
    let error = server.fails();
    let expected = format!("listens on {}", server.address);
    assert!(
        error.contains(&expected) && error.contains("`http.addr` is 127.0.0.1:1"),
        "{error}"
    );
    server.name_of_socket = "http.addr";
    let error = server.fails();
    assert!(
        error.contains(&expected) && error.contains("`http.addr` is 127.0.0.1:1"),
        "{error}"
    );
}
