//! TLS as clients see it: both protocols, certificates of clients, renewal, other listeners.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use millpond::storage::{FsStore, Store};
use millpond::tls::Checked;
use reqwest::{Certificate, Client, ClientBuilder, Identity, Version};
use testkit::{Authority, Signed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore};

use crate::harness::log::Warnings;
use crate::harness::{Answer, Mirror, Registry, Setup, advance, eventually, put_blob, read};

struct Site {
    files: tempfile::TempDir,
    servers: Authority,
    clients: Authority,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            files: tempfile::tempdir().unwrap(),
            servers: Authority::new("servers"),
            clients: Authority::new("clients"),
        };
        site.install(&site.servers.server());
        std::fs::write(site.path("ca.pem"), site.clients.pem()).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Writes the files of the server, as certbot and cert-manager do: each is complete when it appears.
    fn install(&self, signed: &Signed) {
        for (name, text) in [("cert.pem", &signed.certificate), ("key.pem", &signed.key)] {
            std::fs::write(self.path("new"), text).unwrap();
            std::fs::rename(self.path("new"), self.path(name)).unwrap();
        }
    }

    /// The keys of `tls`, and these.
    fn tls(&self, more: &str) -> String {
        let directory = self.files.path().display();
        format!("{{certificate: {directory}/cert.pem, key: {directory}/key.pem{more}}}")
    }

    fn with_client_cas(&self, more: &str) -> String {
        self.tls(&format!(
            ", clientcas: [{}]{more}",
            self.path("ca.pem").display()
        ))
    }

    async fn mirror(&self, up: &Registry, tls: &str) -> Mirror {
        Setup::new(up)
            .with(&[&format!("http.tls: {tls}")])
            .start()
            .await
    }

    fn client(&self) -> ClientBuilder {
        let authority = Certificate::from_pem(self.servers.pem().as_bytes()).unwrap();
        Client::builder().tls_certs_only([authority])
    }

    fn client_of(&self, signed: &Signed) -> Client {
        let pem = format!("{}{}", signed.key, signed.certificate);
        let identity = Identity::from_pem(pem.as_bytes()).unwrap();
        self.client().identity(identity).build().unwrap()
    }

    /// For connections of which a test sees more than requests.
    fn config(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let authority = self.servers.pem();
        roots
            .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
            .unwrap();
        let builder = ClientConfig::builder_with_protocol_versions(versions);
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

async fn get(client: &Client, m: &Mirror, path: &str) -> Result<Answer, reqwest::Error> {
    let url = format!("https://{}{path}", m.address());
    Ok(read(client.get(url).send().await?).await)
}

type Connection = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect(m: &Mirror, config: &Arc<ClientConfig>) -> std::io::Result<Connection> {
    let stream = TcpStream::connect(m.address()).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
}

/// Asks for the base, and returns the head of the answer.
async fn ask_base(connection: &mut Connection) -> String {
    connection
        .write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n{}") {
        assert_ne!(
            connection.read_buf(&mut answer).await.unwrap(),
            0,
            "{answer:?}"
        );
    }
    String::from_utf8(answer).unwrap()
}

fn leaf(connection: &Connection) -> Vec<u8> {
    connection.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// A blob on disk, which HTTP/1.1 reads from the file, and HTTP/2 in pieces.
#[tokio::test]
async fn blobs_are_pulled_over_both_protocols() {
    let (site, up) = (Site::new(), Registry::start().await);
    let data = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(FsStore::open(data.path()).await.unwrap());
    let (blob, path) = put_blob(&up, 1, 5_000_003);
    for (lines, version) in [
        ("http.relativeurls: false", Version::HTTP_2),
        ("http.http2: {disabled: true}", Version::HTTP_11),
    ] {
        let store = Arc::clone(&store);
        let tls = format!("http.tls: {}", site.tls(""));
        let m = Setup::new(&up)
            .store(store)
            .with(&[&tls, lines])
            .start()
            .await;
        let first = site.client().http1_only().build().unwrap();
        let either = site.client().build().unwrap();
        for client in [&first, &either, &first] {
            get(client, &m, &path).await.unwrap().expect(200, &blob);
            m.idle().await;
        }
        let url = format!("https://{}/v2/", m.address());
        let response = either.get(&url).send().await.unwrap();
        assert_eq!(response.version(), version);
        let range = first.get(format!("https://{}{path}", m.address()));
        let range = range.header("range", "bytes=1000000-3000000").send().await;
        read(range.unwrap())
            .await
            .expect(206, &blob[1_000_000..=3_000_000]);
    }
    assert_eq!(up.count("GET /v2/app/blobs/"), 1);
}

#[tokio::test]
async fn clients_without_a_valid_certificate_are_refused() {
    let (site, up) = (Site::new(), Registry::start().await);
    let m = site.mirror(&up, &site.with_client_cas("")).await;
    let own = site.client_of(&site.clients.client("ci"));
    get(&own, &m, "/v2/").await.unwrap().expect(200, b"{}");
    let stranger = site.client_of(&Authority::new("others").client("ci"));
    for client in [site.client().build().unwrap(), stranger] {
        assert!(get(&client, &m, "/v2/").await.is_err());
    }
    let refused = r#"millpond_tls_handshakes_total{result="client_certificate"}"#;
    m.counted(refused, 2).await;
    let optional = site.with_client_cas(", clientauth: verify-client-cert-if-given");
    let m = site.mirror(&up, &optional).await;
    let anonymous = site.client().build().unwrap();
    for client in [&own, &anonymous] {
        get(client, &m, "/v2/").await.unwrap().expect(200, b"{}");
    }
}

#[tokio::test]
async fn a_request_without_tls_is_told_so() {
    let (site, up) = (Site::new(), Registry::start().await);
    let m = site.mirror(&up, &site.tls("")).await;
    m.get("/v2/").await.refused(400, "UNSUPPORTED");
    m.counted(r#"millpond_tls_handshakes_total{result="plain_http"}"#, 1)
        .await;
}

#[tokio::test]
async fn versions_and_suites_are_those_that_are_configured() {
    let (site, up) = (Site::new(), Registry::start().await);
    let [tls12, tls13] = [&rustls::version::TLS12, &rustls::version::TLS13];
    let m = site.mirror(&up, &site.tls(", minimumtls: tls1.3")).await;
    assert!(connect(&m, &site.config(&[tls12])).await.is_err());
    let newer = connect(&m, &site.config(&[tls12, tls13])).await.unwrap();
    let version = newer.get_ref().1.protocol_version();
    assert_eq!(version, Some(ProtocolVersion::TLSv1_3));
    let name = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let m = site
        .mirror(&up, &site.tls(&format!(", ciphersuites: [{name}]")))
        .await;
    let older = connect(&m, &site.config(&[tls12])).await.unwrap();
    let negotiated = older.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(negotiated.as_str(), Some(name));
}

#[tokio::test]
async fn sessions_are_resumed() {
    let (site, up) = (Site::new(), Registry::start().await);
    let m = site.mirror(&up, &site.tls("")).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = site.config(&[version]);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut connection = connect(&m, &config).await.unwrap();
            ask_base(&mut connection).await;
            assert_eq!(
                connection.get_ref().1.handshake_kind(),
                Some(kind),
                "{version:?}"
            );
        }
    }
    m.counted(r#"millpond_tls_handshakes_total{result="full"}"#, 2)
        .await;
    m.counted(r#"millpond_tls_handshakes_total{result="resumed"}"#, 2)
        .await;
}

#[tokio::test]
async fn a_renewal_under_load_fails_no_request() {
    let (site, up) = (Site::new(), Registry::start().await);
    let m = site.mirror(&up, &site.tls("")).await;
    let (blob, path) = put_blob(&up, 1, 300_000);
    let config = site.config(&[&rustls::version::TLS13]);
    let mut early = connect(&m, &config).await.unwrap();
    let before = leaf(&early);
    let load = async |client: Client| {
        for _ in 0..30 {
            get(&client, &m, &path).await.unwrap().expect(200, &blob);
        }
    };
    let fresh = async || {
        for _ in 0..30 {
            load_once(&site, &m, &path, &blob).await;
        }
    };
    let renewals = async {
        for _ in 0..10 {
            site.install(&site.servers.server());
            let checked = m.app.tls()[0].check();
            assert!(matches!(checked, Checked::Replaced), "{checked:?}");
            get(&site.client().build().unwrap(), &m, "/v2/")
                .await
                .unwrap();
        }
    };
    let kept = site.client().build().unwrap();
    let plain = site.client().http1_only().build().unwrap();
    tokio::join!(load(kept), load(plain), fresh(), renewals);
    ask_base(&mut early).await;
    let late = connect(&m, &site.config(&[&rustls::version::TLS13]))
        .await
        .unwrap();
    assert_ne!(leaf(&late), before);
}

/// A pull over a connection of its own.
async fn load_once(site: &Site, m: &Mirror, path: &str, blob: &[u8]) {
    let client = site.client().build().unwrap();
    get(&client, m, path).await.unwrap().expect(200, blob);
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_ended_and_keeps_nobody_waiting() {
    let (site, up) = (Site::new(), Registry::start().await);
    let m = site.mirror(&up, &site.tls("")).await;
    let mut silent = TcpStream::connect(m.address()).await.unwrap();
    let mut slow = TcpStream::connect(m.address()).await.unwrap();
    slow.write_all(b"\x16\x03\x01\x02\x00\x01\x00")
        .await
        .unwrap();
    eventually("both are open", || m.metric("millpond_connections") == 2).await;
    let mut other = connect(&m, &site.config(rustls::ALL_VERSIONS))
        .await
        .unwrap();
    assert!(
        ask_base(&mut other)
            .await
            .starts_with("HTTP/1.1 200 OK\r\n")
    );
    advance(Duration::from_secs(9)).await;
    assert_eq!(m.metric("millpond_connections"), 3);
    advance(Duration::from_secs(1)).await;
    eventually("the other stays", || m.metric("millpond_connections") == 1).await;
    for stream in [&mut silent, &mut slow] {
        let end = stream.read_u8().await;
        assert!(end.is_err());
    }
    m.counted(r#"millpond_tls_handshakes_total{result="timeout"}"#, 2)
        .await;
}

#[tokio::test]
async fn handshakes_count_against_the_limits() {
    let (site, up) = (Site::new(), Registry::start().await);
    let tls = format!("http.tls: {}", site.tls(""));
    let more = "http.listeners: [{addr: '127.0.0.1:0'}]";
    let limits = "http.limits: {connections: 2}";
    let m = Setup::new(&up).with(&[&tls, more, limits]).start().await;
    let other = m.app.other_addresses()[0].to_string();
    let held = [
        TcpStream::connect(m.address()).await.unwrap(),
        TcpStream::connect(&other).await.unwrap(),
    ];
    eventually("both are open", || m.metric("millpond_connections") == 2).await;
    // All listeners of the registry share the limit.
    let config = site.config(rustls::ALL_VERSIONS);
    assert!(connect(&m, &config).await.is_err());
    m.counted(r#"millpond_connections_refused_total{reason="total"}"#, 1)
        .await;
    drop(held);
    eventually("room", || m.metric("millpond_connections") == 0).await;
    connect(&m, &config).await.unwrap();
}

#[tokio::test]
async fn other_listeners_may_be_plain_and_for_operators() {
    let (site, up) = (Site::new(), Registry::start().await);
    let tls = format!("http.tls: {}", site.tls(""));
    let socket = site.path("socket");
    let listeners = format!(
        "http.listeners: [{{addr: '127.0.0.1:0'}}, {{addr: '127.0.0.1:0', serves: operators, tls: {}}}, \
         {{net: unix, addr: {}}}]",
        site.tls(""),
        socket.display(),
    );
    let m = Setup::new(&up).with(&[&tls, &listeners]).start().await;
    let addresses: Vec<_> = m
        .app
        .other_addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    let (blob, path) = put_blob(&up, 1, 100_000);
    let client = site.client().build().unwrap();
    get(&client, &m, &path).await.unwrap().expect(200, &blob);
    let send =
        async |client: &Client, url: String| read(client.get(url).send().await.unwrap()).await;
    let plain = send(&client, format!("http://{}{path}", addresses[0])).await;
    plain.expect(200, &blob);
    let local = Client::builder()
        .tls_certs_only([])
        .unix_socket(socket)
        .build()
        .unwrap();
    send(&local, format!("http://socket{path}"))
        .await
        .expect(200, &blob);
    let operators = format!("https://{}", addresses[1]);
    assert_eq!(
        send(&client, format!("{operators}/debug/health"))
            .await
            .status,
        200
    );
    let metrics = send(&client, format!("{operators}/metrics")).await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    let expiry = "millpond_tls_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:0\"} 6";
    assert!(text.contains(expiry), "{text}");
    assert_eq!(
        send(&client, format!("{operators}{path}")).await.status,
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_command_asks_over_tls() {
    let (site, up) = (Site::new(), Registry::start().await);
    let operators = format!(
        "http.listeners: [{{addr: '127.0.0.1:0', serves: operators, tls: {}}}]",
        site.tls("")
    );
    let m = Setup::new(&up).with(&[&operators]).start().await;
    let url = format!("https://{}", m.app.other_addresses()[0]);
    let ca = site.path("servers.pem").display().to_string();
    std::fs::write(&ca, site.servers.pem()).unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.arg("health").args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let Output {
            status,
            stdout,
            stderr,
        } = output.await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code(), text(stdout), text(stderr))
    };
    let ready = (Some(0), "ready\n".to_owned(), String::new());
    assert_eq!(run(&["--url", &url, "--ca", &ca]).await, ready);
    let (code, _, error) = run(&["--url", &url]).await;
    assert_eq!(code, Some(1));
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_expires_soon_is_warned_of() {
    let (site, up) = (Site::new(), Registry::start().await);
    let warnings = Warnings::collect();
    // The tests' clock starts at 2027-01-15T08:00:00Z.
    for (date, expected) in [
        ((2027, 1, 30), ""),
        ((2027, 1, 29), "expires within 14 days"),
        ((2027, 1, 15), "has expired"),
    ] {
        site.install(&site.servers.server_until(date));
        let m = site.mirror(&up, &site.tls("")).await;
        let lines = warnings.about("certificate");
        if expected.is_empty() {
            assert_eq!(lines, [""; 0]);
        } else {
            assert!(lines.len() == 1 && lines[0].contains(expected), "{lines:?}");
        }
        // Another look says nothing new.
        m.app.tls()[0].check();
        assert_eq!(warnings.about("certificate"), [""; 0]);
    }
}
