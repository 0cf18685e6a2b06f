//! Replicas that share the work: who they are, and TLS between them.

use std::path::Path;

use millpond::renewal::INTERVAL;
use reqwest::{Certificate, Client};
use testkit::Authority;

use crate::harness::replicas::{Replicas, SECRET};
use crate::harness::{Mirror, Registry, Setup, digest, eventually, noise, passing, put_blob, read};
use crate::private::{ANN, BOB, CALLER, Guard, guard};

/// Replicas that speak TLS to each other and to clients, and a client.
async fn secured(lines: &[&str], more: &str) -> (Replicas, Client) {
    let files = tempfile::tempdir().unwrap();
    let (authority, path) = (Authority::new("replicas"), files.path().display());
    let signed = authority.server();
    // The certificate, and its issuer.
    let chain = format!("{}{}", signed.certificate, authority.pem());
    std::fs::write(files.path().join("cert.pem"), chain).unwrap();
    std::fs::write(files.path().join("key.pem"), &signed.key).unwrap();
    let tls = format!("http.tls: {{certificate: {path}/cert.pem, key: {path}/key.pem}}");
    let replicas = Replicas::start_with(2, &[&[tls.as_str()], lines].concat(), more).await;
    let authority = Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let client = Client::builder().tls_certs_only([authority]).build();
    (replicas, client.unwrap())
}

/// A blob that the upstream gives to users only: with its path, its owner, and the other replica.
fn private_blob(replicas: &Replicas) -> (bytes::Bytes, String, [&Mirror; 2]) {
    let blob = noise(1, 3_000_000);
    replicas.up.put_blob("private/app", &blob);
    guard(&replicas.up, Guard::Basic);
    let path = format!("/v2/private/app/blobs/{}", digest(&blob));
    let order = replicas.order(&digest(&blob).to_string());
    let owner_first = [0, 1].map(|place| &replicas.mirrors[order[place]]);
    (blob, path, owner_first)
}

/// The status and the body of a GET as a user.
async fn get(client: &Client, m: &Mirror, path: &str, user: &str) -> (u16, bytes::Bytes) {
    let url = format!("https://{}{path}", m.address());
    let request = client.get(url).header("authorization", user);
    let answer = read(request.send().await.unwrap()).await;
    (answer.status, answer.body)
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_of_callers_go_to_an_owner_over_tls() {
    for more in ["", ", servername: localhost"] {
        let (replicas, client) = secured(&[CALLER], more).await;
        let (blob, path, [owner, other]) = private_blob(&replicas);
        assert_eq!(get(&client, other, &path, BOB).await.0, 403);
        let (status, body) = get(&client, other, &path, ANN).await;
        assert!(status == 200 && body == blob, "{status}");
        replicas.idle().await;
        assert!(owner.is_stored(&blob).await && other.is_stored(&blob).await);
        let gets = replicas.up.seen(&format!("GET {path}"));
        let sent = gets
            .iter()
            .filter(|seen| seen.header("authorization") == Some(ANN));
        assert_eq!(sent.count(), 1);
        // What the owner has learned is for this account.
        assert_eq!(get(&client, owner, &path, BOB).await.0, 403);
        assert_eq!(get(&client, other, &path, BOB).await.0, 403);
    }
}

/// Writes the certificate of a new authority, and its issuer, as certbot and cert-manager do: complete. Returns
/// a client that trusts it.
fn install(files: &Path, name: &str) -> Client {
    let authority = Authority::new(name);
    let signed = authority.server();
    let chain = format!("{}{}", signed.certificate, authority.pem());
    for (name, text) in [("cert.pem", &chain), ("key.pem", &signed.key)] {
        std::fs::write(files.join("new"), text).unwrap();
        std::fs::rename(files.join("new"), files.join(name)).unwrap();
    }
    let authority = Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let client = Client::builder().tls_certs_only([authority]).build();
    client.unwrap()
}

#[tokio::test(start_paused = true)]
async fn replicas_trust_the_renewed_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let (files, path) = (directory.path(), directory.path().display());
    install(files, "before");
    let tls = format!("http.tls: {{certificate: {path}/cert.pem, key: {path}/key.pem}}");
    let replicas = Replicas::start(2, &[&tls]).await;
    let client = install(files, "after");
    let looked = || passing(tokio::time::sleep(INTERVAL * 2));
    looked().await;
    let pulled = async |seed| {
        let (blob, path) = put_blob(&replicas.up, seed, 3_000_000);
        let order = replicas.order(&digest(&blob).to_string());
        let [owner, other] = [0, 1].map(|place| &replicas.mirrors[order[place]]);
        let (status, body) = passing(get(&client, other, &path, ANN)).await;
        assert!(status == 200 && body == blob, "{status}");
        replicas.idle().await;
        assert!(owner.is_stored(&blob).await, "the owner wasn't asked");
        assert_eq!(replicas.up.count(&path), 1);
    };
    pulled(1).await;
    // What can't be used changes nothing.
    std::fs::write(files.join("cert.pem"), "no certificate").unwrap();
    looked().await;
    pulled(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_they_go_to_the_upstream_only() {
    let replicas = Replicas::start(2, &[CALLER]).await;
    let (blob, path, [owner, other]) = private_blob(&replicas);
    let answer = other
        .ask(&format!("GET {path}"), &[("authorization", ANN)])
        .await;
    answer.expect(200, &blob);
    replicas.idle().await;
    assert!(!owner.is_stored(&blob).await);
    assert_eq!(
        other.metric("millpond_source_requests_total{source=\"peer\"}"),
        0
    );
}

/// A mirror with this section `replicas`.
fn beside(up: &Registry, section: &str) -> Setup {
    Setup::new(up).with(&[&format!("root.replicas: {{{section}, secret: {SECRET}}}")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_addresses_leaves_a_replica_alone() {
    let up = Registry::start().await;
    let (blob, path) = put_blob(&up, 1, 100_000);
    let m = beside(&up, "peers: 'nowhere.invalid:5000'").start().await;
    m.serves(&path, &blob).await;
    assert_eq!(m.metric("millpond_replicas"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_addresses_of_a_name_are_members_and_the_own_one_is_found() {
    let up = Registry::start().await;
    // Nobody else is at this address, while the test lasts.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let own = socket.local_addr().unwrap();
    drop(socket);
    let m = beside(&up, &format!("peers: '{own}'"))
        .addr(own)
        .start()
        .await;
    let (blob, path) = put_blob(&up, 1, 100_000);
    m.serves(&path, &blob).await;
    assert_eq!(m.metric("millpond_replicas"), 0);
    // Another port is another replica, which isn't there.
    let m = beside(&up, "peers: '127.0.0.1:1', self: '127.0.0.1:2'")
        .start()
        .await;
    eventually("the member", || m.metric("millpond_replicas") == 1).await;
    let (blob, path) = put_blob(&up, 2, 100_000);
    m.serves(&path, &blob).await;
}

#[tokio::test]
async fn a_list_in_which_no_entry_is_this_machines_is_refused() {
    let up = Registry::start().await;
    for (peers, expected) in [
        (
            "'203.0.113.1:5000', '203.0.113.2:5000'",
            "none of the replicas has an address of this machine",
        ),
        (
            "'127.0.0.1:7', '127.0.0.2:7'",
            "several replicas have an address of this machine",
        ),
    ] {
        let setup = beside(&up, &format!("peers: [{peers}]"));
        let config = setup.loaded().config;
        let Err(error) = setup.try_start().await else {
            panic!("it started with {peers}");
        };
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.key(&config).as_deref(), Some("replicas.self"));
    }
}
