use std::sync::Arc;

use http::{Request, Response};
use testkit::{Authority, Signed};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::Clock;
use crate::config::{CIPHER_SUITES, ClientAuth, Listen, Tls, TlsVersion};
use crate::server::listener::{Address, Listener};
use crate::server::{
    Admission, Body, ConnectionLimits, ConnectionSettings, Handler, RequestBody, serve,
};
use crate::tasks::Tasks;

/// Answers with the certificate of the client.
struct Mirrored;

impl Handler for Mirrored {
    async fn handle(self: Arc<Self>, _: Request<RequestBody>, peer: Peer) -> Response<Body> {
        assert!(peer.is_secure);
        let der = peer.certificate.map(|certificate| certificate.der.clone());
        Response::new(Body::bytes(der.unwrap_or_default()))
    }
}

struct Site {
    address: SocketAddr,
    servers: Authority,
    files: tempfile::TempDir,
    tls: Arc<ServerTls>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Site {
    async fn new(mode: ClientAuth, clients: Option<&Authority>) -> Self {
        let (servers, files) = (Authority::new("servers"), tempfile::tempdir().unwrap());
        let metrics = Arc::<Metrics>::default();
        let clock = Clock::system();
        let signed = servers.server();
        let path = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let settings = Tls {
            certificate: path("cert.pem", &signed.certificate),
            key: path("key.pem", &signed.key),
            client_cas: clients.iter().map(|ca| path("ca.pem", &ca.pem())).collect(),
            client_auth: mode,
            minimum: TlsVersion::Tls12,
            cipher_suites: CIPHER_SUITES.to_vec(),
        };
        let counted = Arc::clone(&metrics);
        let tls = ServerTls::load(settings, "x".to_owned(), true, clock, counted).unwrap();
        let tls = Arc::new(tls);
        let listener = Listener::bind(&Listen::Tcp("127.0.0.1:0".to_owned())).await;
        let listener = listener.unwrap();
        let Ok(Address::Tcp(address)) = listener.address() else {
            panic!("not a TCP address");
        };
        let settings = ConnectionSettings {
            http2: true,
            tls: Some(Arc::clone(&tls)),
            admission: Admission::new(ConnectionLimits {
                total: 100,
                per_address: None,
            }),
            buffers: ResponseBuffers::default(),
            metrics: Arc::clone(&metrics),
            clock,
        };
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let serving = serve(
            listener,
            Arc::new(Mirrored),
            settings,
            tasks.clone(),
            stop.clone(),
        );
        tasks.spawn_required("listener", serving);
        Self {
            address,
            servers,
            files,
            tls,
            metrics,
            stop,
        }
    }

    fn client(&self, identity: Option<&Signed>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let authority = self.servers.pem();
        roots
            .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
            .unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        Arc::new(match identity {
            None => builder.with_no_client_auth(),
            Some(signed) => {
                let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
                let chain = vec![signed.der.clone().into()];
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        })
    }

    /// The certificate that the server saw, and whether the session was resumed. None where the server
    /// refused the handshake.
    async fn seen(&self, client: &Arc<ClientConfig>) -> Option<(Vec<u8>, bool)> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::clone(client))
            .connect(name, stream)
            .await
            .ok()?;
        let response = exchange(&mut stream).await.ok()?;
        let head = response.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        Some((response[head + 4..].to_vec(), resumed))
    }

    async fn counted(&self, result: &str, count: usize) {
        let line = format!("millpond_tls_handshakes_total{{result=\"{result}\"}} {count}\n");
        let has_it = || self.metrics.render().contains(&line);
        testkit::time::eventually(&line, has_it).await;
    }
}

async fn exchange(stream: &mut TlsStream<TcpStream>) -> io::Result<Vec<u8>> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    Ok(response)
}

/// What the server saw, in words.
fn words(seen: Option<(Vec<u8>, bool)>, shown: &Signed) -> &'static str {
    match seen {
        None => "refused",
        Some((der, _)) if der.is_empty() => "unknown",
        Some((der, _)) if der == shown.der => "verified",
        Some(_) => "another",
    }
}

#[tokio::test]
async fn only_a_verified_certificate_is_handed_on() {
    let (clients, strangers) = (Authority::new("clients"), Authority::new("strangers"));
    let (own, foreign) = (clients.client("a"), strangers.client("a"));
    let expired = clients.client_until("a", (2020, 1, 1));
    // Without a certificate, with one's own, a stranger's, and an expired one.
    for (mode, expected) in [
        (ClientAuth::None, ["unknown"; 4]),
        (
            ClientAuth::Request,
            ["unknown", "verified", "unknown", "unknown"],
        ),
        (
            ClientAuth::RequireAny,
            ["refused", "verified", "unknown", "unknown"],
        ),
        (
            ClientAuth::VerifyIfGiven,
            ["unknown", "verified", "refused", "refused"],
        ),
        (
            ClientAuth::RequireAndVerify,
            ["refused", "verified", "refused", "refused"],
        ),
    ] {
        let site = Site::new(mode, Some(&clients)).await;
        let shown = [None, Some(&own), Some(&foreign), Some(&expired)];
        for (shown, expected) in shown.into_iter().zip(expected) {
            let seen = site.seen(&site.client(shown)).await;
            assert_eq!(words(seen, shown.unwrap_or(&own)), expected, "{mode:?}");
        }
        let refused = expected.iter().filter(|word| **word == "refused").count();
        site.counted("client_certificate", refused).await;
    }
    let site = Site::new(ClientAuth::RequireAny, None).await;
    let seen = site.seen(&site.client(Some(&own))).await;
    assert_eq!(words(seen, &own), "unknown", "no authority could verify it");
}

#[tokio::test]
async fn sessions_are_resumed_with_their_client_until_its_authority_changes() {
    let clients = Authority::new("clients");
    let own = clients.client("a");
    for mode in [ClientAuth::RequireAndVerify, ClientAuth::Request] {
        let site = Site::new(mode, Some(&clients)).await;
        let client = site.client(Some(&own));
        for resumed in [false, true] {
            assert_eq!(site.seen(&client).await, Some((own.der.clone(), resumed)));
        }
        let renewed = site.servers.server();
        let write = |name, text: &str| std::fs::write(site.files.path().join(name), text).unwrap();
        write("cert.pem", &renewed.certificate);
        write("key.pem", &renewed.key);
        assert!(matches!(site.tls.check(), crate::tls::Checked::Replaced));
        assert_eq!(site.seen(&client).await, Some((own.der.clone(), true)));
        write("ca.pem", &Authority::new("others").pem());
        assert!(matches!(site.tls.check(), crate::tls::Checked::Replaced));
        let seen = site.seen(&client).await;
        match mode {
            ClientAuth::Request => assert_eq!(seen, Some((Vec::new(), false))),
            _ => assert_eq!(seen, None),
        }
        site.counted("resumed", 2).await;
    }
}

#[tokio::test]
async fn what_is_neither_tls_nor_http_is_counted() {
    let site = Site::new(ClientAuth::None, None).await;
    let send = async |bytes: &'static [u8]| {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // The connection may be reset.
        drop(stream.read_to_end(&mut answer).await);
        answer
    };
    send(b"").await;
    site.counted("disconnected", 1).await;
    send(b"\x16\x03\x01\x02\x00\x01").await;
    site.counted("disconnected", 2).await;
    send(b"\0\0\0\0\0\0\0\0").await;
    site.counted("protocol", 1).await;
    for plain in [
        &b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = String::from_utf8(send(plain).await).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{answer}"
        );
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["errors"][0]["code"], "UNSUPPORTED");
        let message = body["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains("https://"), "{message}");
    }
    site.counted("plain_http", 2).await;
    // A client that doesn't know the authority.
    let stranger = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    assert_eq!(site.seen(&Arc::new(stranger)).await, None);
    site.counted("refused_by_client", 1).await;
}

#[tokio::test]
async fn a_slow_signature_is_made_elsewhere_and_sessions_are_resumed_all_the_same() {
    let site = Site::new(ClientAuth::None, None).await;
    let metrics = Arc::clone(&site.metrics);
    let handshakes = Handshakes::new(Arc::clone(&site.tls), ResponseBuffers::default(), metrics);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = site.client(None);
    for resumed in [false, true] {
        let connecting = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let connector = TlsConnector::from(Arc::clone(&client));
            let mut stream = connector.connect(name, stream).await.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            stream.get_ref().1.handshake_kind()
        };
        let accepting = async {
            let (stream, _) = listener.accept().await.unwrap();
            let config = Arc::clone(site.tls.current().config());
            let mut stream = handshakes.accept_slowly(stream, config).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.flush().await.unwrap();
        };
        let kind = tokio::join!(connecting, accepting).0;
        assert_eq!(kind == Some(HandshakeKind::Resumed), resumed);
    }
    assert_eq!(handshakes.signing.available_permits(), MAX_SIGNING);
}
