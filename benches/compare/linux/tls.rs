//! TLS beside nginx, with the same certificate, and TLS 1.3 with the suites that both choose. The clients
//! are threads of this process, because they have to decrypt: their CPU time is the same for both
//! servers and isn't part of a figure.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testkit::Authority;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{
    self, ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
};

use super::Sizes;
use super::common::content::{INDEX, MANIFEST};
use super::common::report::Figure;
use super::common::report::Target::{self, AtLeast, AtMost};
use super::common::server::Server;
use super::common::wire::{header, read_head};
use super::common::{GIB, rounds, times, together};
use super::library::Library;
use super::peers::{self, Peer, Sources};
use super::results::{Comparison, Results};

/// Bytes of a body read at once.
const ROOM: usize = 64 * 1024;
/// How long a server may stay silent before the run is called broken.
const SILENCE: Duration = Duration::from_mins(2);

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// What the clients of a row do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Each is sent the large blob once.
    Large,
    /// Each opens a connection for each request.
    Connections { resumed: bool },
    /// Each requests again and again on one connection.
    Requests,
}

struct Row {
    key: &'static str,
    title: &'static str,
    work: Work,
    peer: Peer,
    clients: usize,
    speed: Target,
    cpu: Option<Target>,
}

const ROWS: [Row; 4] = [
    Row {
        key: "tls-warm-1g-16",
        title: "TLS, the large blob, 16 clients",
        work: Work::Large,
        peer: Peer::NginxStatic,
        clients: 16,
        speed: AtLeast(0.95),
        cpu: Some(AtMost(1.05)),
    },
    Row {
        key: "tls-handshakes",
        title: "TLS, a full handshake for each 1 KiB, 16 at a time",
        work: Work::Connections { resumed: false },
        peer: Peer::NginxStatic,
        clients: 16,
        speed: AtLeast(0.9),
        cpu: None,
    },
    Row {
        key: "tls-resumed",
        title: "TLS, a resumed session for each 1 KiB, 16 at a time",
        work: Work::Connections { resumed: true },
        peer: Peer::NginxStatic,
        clients: 16,
        speed: AtLeast(0.9),
        cpu: None,
    },
    Row {
        key: "tls-manifests",
        title: "TLS, manifests by tag, GET, 64 connections",
        work: Work::Requests,
        peer: Peer::NginxCache,
        clients: 64,
        speed: AtLeast(1.0),
        cpu: None,
    },
];

/// What one run showed: GiB or thousands of requests, its seconds, and the server's CPU seconds.
struct Run {
    work: f64,
    wall: f64,
    cpu: f64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.work / self.wall
    }

    fn cost(&self) -> f64 {
        self.cpu / self.work
    }
}

/// Measures the rows that are wanted.
pub(crate) fn measure(
    wanted: impl Fn(&str) -> bool,
    library: &Library,
    sources: &Sources,
    sizes: &Sizes,
    results: &mut Results,
) -> Result<()> {
    let files = TempDir::with_prefix("millpond-compare-")?;
    let authority = Authority::new("bench");
    let signed = authority.server();
    std::fs::write(files.path().join("cert.pem"), signed.certificate)?;
    std::fs::write(files.path().join("key.pem"), signed.key)?;
    let client = client(&authority)?;
    for row in ROWS {
        if !wanted(row.key) {
            continue;
        }
        let program = row.peer.program().context("nginx is a program")?;
        if peers::version(program).is_none() {
            results.missing(row.peer, program);
            continue;
        }
        let ours = peers::start_with_tls(Peer::Millpond, sources, files.path())?;
        let theirs = peers::start_with_tls(row.peer, sources, files.path())?;
        let runs = rounds(row.key, sizes.rounds, || {
            let run = |server: &Server| run(&row, server, library, &client, sizes);
            Ok((run(&ours)?, run(&theirs)?))
        })?;
        // The first round fills the caches, too.
        let runs = runs
            .get(1..)
            .filter(|rest| !rest.is_empty())
            .unwrap_or(&runs);
        report(&row, runs, results);
    }
    Ok(())
}

fn report(row: &Row, runs: &[(Run, Run)], results: &mut Results) {
    let mut compare = |figure: &str, target, value: fn(&Run) -> f64| {
        let ratios = runs
            .iter()
            .map(|(ours, theirs)| value(ours) / value(theirs));
        results.comparisons.push(Comparison {
            row: row.title.to_owned(),
            peer: row.peer,
            ratio: Figure::new(figure, "x", ratios).target(target).steady(),
        });
    };
    let speed = match row.work {
        Work::Large => "throughput",
        Work::Connections { .. } => "handshakes/s",
        Work::Requests => "requests/s",
    };
    compare(speed, Some(row.speed), Run::rate);
    compare("CPU", row.cpu, Run::cost);
}

fn client(authority: &Authority) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes())?)?;
    let versions = &[&rustls::version::TLS13];
    let builder = ClientConfig::builder_with_protocol_versions(versions);
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn run(
    row: &Row,
    server: &Server,
    library: &Library,
    client: &ClientConfig,
    sizes: &Sizes,
) -> Result<Run> {
    let before = server.settled_cpu()?;
    let started = Instant::now();
    let clients = (0..row.clients).map(|number| {
        let mut config = client.clone();
        config.resumption = match row.work {
            Work::Connections { resumed: true } => Resumption::in_memory_sessions(16),
            _ => Resumption::disabled(),
        };
        let (addr, work, config) = (server.addr(), row.work, Arc::new(config));
        move || one_client(number, work, addr, library, &config, sizes.timed)
    });
    let done: f64 = together(clients)?.into_iter().sum();
    let wall = started.elapsed().as_secs_f64();
    Ok(Run {
        work: done,
        wall,
        cpu: server.settled_cpu()? - before,
    })
}

/// What one client was sent: GiB, or thousands of requests.
fn one_client(
    number: usize,
    work: Work,
    addr: SocketAddr,
    library: &Library,
    config: &Arc<ClientConfig>,
    length: Duration,
) -> Result<f64> {
    let started = Instant::now();
    let mut requests = 0_u32;
    let mut room = vec![0; ROOM];
    match work {
        Work::Large => {
            let mut stream = connect(addr, config)?;
            let bytes = get(&mut stream, &library.large, &mut room)?;
            return Ok(times(bytes, GIB));
        }
        Work::Connections { resumed } => {
            let mut paths = library.small.iter().cycle().skip(number);
            while started.elapsed() < length {
                let mut stream = connect(addr, config)?;
                get(
                    &mut stream,
                    paths.next().context("there are blobs")?,
                    &mut room,
                )?;
                let was_resumed = stream.conn.handshake_kind() == Some(HandshakeKind::Resumed);
                ensure!(
                    was_resumed == (resumed && requests > 0),
                    "not the handshake that is measured"
                );
                requests += 1;
            }
        }
        Work::Requests => {
            let mut paths = library.tags.iter().cycle().skip(number);
            let mut stream = connect(addr, config)?;
            while started.elapsed() < length {
                get(
                    &mut stream,
                    paths.next().context("there are tags")?,
                    &mut room,
                )?;
                requests += 1;
            }
        }
    }
    Ok(f64::from(requests) / 1e3)
}

fn connect(addr: SocketAddr, config: &Arc<ClientConfig>) -> Result<Stream> {
    let socket = TcpStream::connect_timeout(&addr, SILENCE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(SILENCE))?;
    let name = ServerName::try_from("localhost")?;
    Ok(StreamOwned::new(
        ClientConnection::new(Arc::clone(config), name)?,
        socket,
    ))
}

/// Sends a request and reads its whole answer, a 200; how many bytes its body has.
fn get(stream: &mut Stream, path: &str, room: &mut [u8]) -> Result<u64> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: mirror.example\r\nUser-Agent: bench/1\r\nAccept: {INDEX}, {MANIFEST}\r\n\r\n"
    )?;
    let (head, early) = read_head(stream)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
    let length: u64 = header(&head, "content-length")
        .context("no Content-Length")?
        .parse()?;
    let mut left = length - early.len() as u64;
    while left > 0 {
        let most = usize::try_from(left)?.min(room.len());
        let read = stream.read(room.get_mut(..most).context("no more than there is")?)?;
        ensure!(read > 0, "{path}: the body ended early");
        left -= read as u64;
    }
    Ok(length)
}

/// What nginx is told of TLS: as much as millpond does, and its buffer of a whole record.
pub(crate) fn nginx(files: &Path) -> String {
    let files = files.display();
    format!(
        " ssl; ssl_certificate {files}/cert.pem; ssl_certificate_key {files}/key.pem;
         ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:tls:16m; ssl_session_tickets on;
         ssl_buffer_size 16k;"
    )
}
