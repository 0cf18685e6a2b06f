//! How an upstream fails, and the mirrors of such upstreams.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use millpond::oci::manifest::{MAX_MANIFEST, media_type};
use testkit::{Identity, Options, ReservedPort};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

use super::{NAME, SMALL};
use crate::harness::log::Warnings;
use crate::harness::{ALWAYS, Image, Mirror, Registry, Reply, Seen, Setup, blob_path, noise};

/// Short ones: time passes in small steps.
const TIMEOUTS: [&str; 3] = [
    "proxy.connecttimeout: 1s",
    "proxy.headertimeout: 1s",
    "proxy.stalltimeout: 1s",
];

type Script = fn(&Seen, Reply) -> Reply;

/// What an upstream does.
pub(super) enum Situation {
    Status(u16),
    /// Its answers about content, made of the usual ones.
    Answers(Script),
    /// Its token service's answers.
    Tokens(Script),
    /// It isn't where the mirror looks for it.
    Elsewhere(fn() -> Place),
    Untrusted,
    UsedUp,
}

use Situation::{Answers, Elsewhere, Status, Tokens, Untrusted, UsedUp};

pub(super) const CASES: [(&str, Situation); 37] = [
    ("400", Status(400)),
    ("401", Status(401)),
    ("403", Status(403)),
    ("404", Status(404)),
    ("405", Status(405)),
    ("406", Status(406)),
    ("416", Status(416)),
    ("429", Status(429)),
    ("451", Status(451)),
    ("500", Status(500)),
    ("502", Status(502)),
    ("503", Status(503)),
    ("504", Status(504)),
    (
        "429 with `Retry-After: 600`",
        Answers(|_, _| Reply::error(429).with("Retry-After", 600)),
    ),
    (
        "503 with `Retry-After: 600`",
        Answers(|_, _| Reply::error(503).with("Retry-After", 600)),
    ),
    ("wrong password", Tokens(|_, _| Reply::error(401))),
    ("token service: 503", Tokens(|_, _| Reply::error(503))),
    ("token service: 400", Tokens(|_, _| Reply::error(400))),
    ("DNS failure", Elsewhere(unknown_name)),
    ("connection refused", Elsewhere(refusing)),
    ("connection reset", Elsewhere(resetting)),
    ("connection closed", Answers(|_, _| Reply::hang_up())),
    ("untrusted certificate", Untrusted),
    ("no TLS", Elsewhere(plain)),
    ("timeout: connection", Elsewhere(full)),
    ("timeout: TLS handshake", Elsewhere(silent)),
    ("timeout: token", Tokens(|_, _| Reply::silence())),
    ("timeout: response header", Answers(|_, _| Reply::silence())),
    (
        "timeout: body",
        Answers(|_, usual| halved(usual).then_stall()),
    ),
    ("body cut short", Answers(|_, usual| halved(usual))),
    ("wrong digest", Answers(|_, usual| usual.forged())),
    (
        "manifest too large",
        Answers(|_, _| Reply::ok(vec![b' '; usize::try_from(MAX_MANIFEST).unwrap() + 1])),
    ),
    (
        "HTML instead of content",
        Answers(|_, _| Reply::ok("<html>").with("Content-Type", "text/html")),
    ),
    (
        "manifest with the type of an index",
        Answers(|_, usual| Reply::ok(usual.body).with("Content-Type", media_type::OCI_INDEX)),
    ),
    (
        "redirect to an internal address",
        Answers(|_, _| Reply::redirect("http://169.254.169.254/latest")),
    ),
    ("content network: 403", Answers(elsewhere)),
    ("month's limit used up", UsedUp),
];

/// Half of a body, announced as the whole.
fn halved(usual: Reply) -> Reply {
    let half = usual.body.len() / 2;
    usual.cut(half)
}

/// A redirect to another host, which refuses the request.
fn elsewhere(seen: &Seen, _usual: Reply) -> Reply {
    let (base, path) = (seen.base(), seen.path());
    if base.contains("localhost") {
        return Reply::error(403);
    }
    Reply::redirect(&format!("{}{path}", base.replace("127.0.0.1", "localhost")))
}

/// A URL, and what has to live as long as it is asked.
type Place = (String, Box<dyn Any>);

fn unknown_name() -> Place {
    // No label may have more than 63 characters (RFC 1035), so no server is asked.
    (format!("http://{}.test", "x".repeat(64)), Box::new(()))
}

fn refusing() -> Place {
    let port = ReservedPort::new();
    (format!("http://{}", port.address), Box::new(port))
}

/// A socket that accepts connections, and its address.
fn listening() -> (TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (TcpListener::from_std(listener).unwrap(), address)
}

/// Resets each connection when it has read some of the request.
fn resetting() -> Place {
    let (listener, address) = listening();
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            let socket = socket2::SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    (format!("http://{address}"), Box::new(task))
}

/// Speaks HTTP where TLS is expected.
fn plain() -> Place {
    let (listener, address) = listening();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            let response = b"HTTP/1.1 400 Bad Request\r\n\r\n";
            stream.write_all(response).await.unwrap();
            // Closed now, it would be reset: not everything has been read.
            open.push(stream);
        }
    });
    (format!("https://{address}"), Box::new(task))
}

/// Accepts no connection: one fills its queue.
fn full() -> Place {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let queued = TcpStream::connect(address).unwrap();
    (format!("http://{address}"), Box::new((listener, queued)))
}

/// Connections are made, and nothing is ever said on them.
fn silent() -> Place {
    let (listener, address) = listening();
    (format!("https://{address}"), Box::new(listener))
}

/// An upstream in a situation, and the mirror of it.
pub(super) struct Scene {
    pub(super) warnings: Warnings,
    pub(super) mirror: Mirror,
    pub(super) image: Image,
    pub(super) blob: Bytes,
    _upstream: (Registry, Box<dyn Any>),
}

impl Scene {
    /// With a blob of this size; `trust` is the configuration's keys for authorities.
    pub(super) async fn set(situation: &Situation, size: usize, trust: &str) -> Self {
        let options = match situation {
            Untrusted => Options::default().tls(&Identity::new()),
            _ => Options::default(),
        };
        let registry = Registry::with(options).await;
        let (image, blob) = (Image::oci(1), noise(7, size));
        registry.push("app", "1", &image);
        registry.put_blob("app", &blob);
        let (mut url, mut place): Place = (registry.url(), Box::new(()));
        let mut more = "";
        match situation {
            Status(status) => registry.reply("/v2/app/", ALWAYS, Reply::error(*status)),
            Answers(script) => registry.on("/v2/app/", ALWAYS, *script),
            Tokens(script) => {
                registry.protect(None);
                registry.on("/token", ALWAYS, *script);
                more = ", username: user, password: pass, anonymous: true";
            }
            Elsewhere(elsewhere) => (url, place) = elsewhere(),
            Untrusted => {}
            UsedUp => more = ", ratelimit: {monthly: 1}",
        }
        let warnings = Warnings::collect();
        let mirror = Setup::of("http://127.0.0.1:1").with(&TIMEOUTS);
        let mirror = mirror.with(&[&format!("proxy.{}", trust.replace(", ", "\n  "))]);
        let mirror = mirror.upstream_at(NAME, &url, &format!("{more}, {trust}"));
        let mirror = mirror.start().await;
        if let UsedUp = situation {
            let first = noise(8, SMALL);
            registry.put_blob("app", &first);
            mirror
                .pull(&blob_path(&format!("{NAME}/app"), &first), &first)
                .await;
            warnings.take();
        }
        Self {
            warnings,
            mirror,
            image,
            blob,
            _upstream: (registry, place),
        }
    }
}
