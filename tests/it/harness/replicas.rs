//! Several mirrors that share the work, each behind a relay that a test can stop.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use millpond::replicas::Members;
use millpond::upstream::Lookup;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::push::{OPEN, SPACE};
use super::{Mirror, Registry, Setup};

pub(crate) const SECRET: &str = "a secret of all the replicas";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// Takes connections and bytes, and passes nothing on: like a stopped process.
    Silent,
    /// Closes every connection: like a process that was killed.
    Down,
}

/// Passes connections on to a mirror that may be started later.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    target: Arc<OnceLock<SocketAddr>>,
    _task: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = watch::Sender::new(Mode::Open);
        let target: Arc<OnceLock<SocketAddr>> = Arc::default();
        let mut tasks = JoinSet::new();
        let (modes, to) = (mode.subscribe(), Arc::clone(&target));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                if let Some(to) = to.get() {
                    connections.spawn(connection(stream, *to, modes.clone()));
                }
            }
        });
        Self {
            address,
            mode,
            target,
            _task: tasks,
        }
    }

    pub(crate) fn lead_to(&self, mirror: &Mirror) {
        self.target.set(mirror.address().parse().unwrap()).unwrap();
    }

    pub(crate) fn silence(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    pub(crate) fn kill(&self) {
        self.mode.send_replace(Mode::Down);
    }

    /// Passes everything on again.
    pub(crate) fn resume(&self) {
        self.mode.send_replace(Mode::Open);
    }
}

async fn connection(stream: TcpStream, to: SocketAddr, mut modes: watch::Receiver<Mode>) {
    let Ok(target) = TcpStream::connect(to).await else {
        return;
    };
    let ((from, back), (answer, forth)) = (stream.into_split(), target.into_split());
    let down = modes.clone();
    tokio::select! {
        _ = modes.wait_for(|mode| *mode == Mode::Down) => {}
        _ = pass(from, forth, down.clone()) => {}
        _ = pass(answer, back, down) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let open = modes.wait_for(|mode| *mode != Mode::Silent).await;
        drop(open.map_err(io::Error::other)?);
        to.write_all(&buffer[..read]).await?;
    }
}

/// Mirrors of one upstream that share the work.
pub(crate) struct Replicas {
    pub(crate) up: Registry,
    pub(crate) relays: Vec<Relay>,
    pub(crate) mirrors: Vec<Mirror>,
}

impl Replicas {
    /// `lines` are more of the configuration of each, as in [`Setup::with`].
    pub(crate) async fn start(count: usize, lines: &[&str]) -> Self {
        Self::start_with(count, lines, "").await
    }

    /// `more` is YAML that follows the keys of the section `replicas`.
    pub(crate) async fn start_with(count: usize, lines: &[&str], more: &str) -> Self {
        let setup = |up: &Registry, section: &str| Setup::new(up).with(&[section]);
        Self::start_each(count, lines, (|_| more.to_owned(), setup)).await
    }

    /// With repositories that are hosted, below `ci/`. The first replica is their writer.
    pub(crate) async fn hosted(count: usize, lines: &[&str]) -> Self {
        Self::hosted_with(count, lines, |setup| setup).await
    }

    /// The same with more in their setup.
    pub(crate) async fn hosted_with(
        count: usize,
        lines: &[&str],
        prepare: impl Fn(Setup) -> Setup,
    ) -> Self {
        let writer = |relays: &[Relay]| format!(", hostedwriter: '{}'", relays[0].address);
        let setup = |up: &Registry, section: &str| prepare(Setup::new(up)).beside(section);
        let is_set = |key: &str| lines.iter().any(|line| line.starts_with(key));
        let missing = [("root.hosted", SPACE), ("root.access", OPEN)];
        let missing = missing.into_iter().filter(|(key, _)| !is_set(key));
        let missing = missing.map(|(_, line)| line);
        let lines: Vec<_> = lines.iter().copied().chain(missing).collect();
        Self::start_each(count, &lines, (writer, setup)).await
    }

    async fn start_each(
        count: usize,
        lines: &[&str],
        (more, setup): (
            impl Fn(&[Relay]) -> String,
            impl Fn(&Registry, &str) -> Setup,
        ),
    ) -> Self {
        let up = Registry::start().await;
        let mut relays = Vec::new();
        for _ in 0..count {
            relays.push(Relay::start().await);
        }
        let mut mirrors = Vec::new();
        for relay in &relays {
            let others: Vec<_> = relays
                .iter()
                .map(|relay| relay.address.to_string())
                .collect();
            let section = section(&others, &relay.address.to_string(), SECRET);
            let section = section.replace('}', &format!("{}}}", more(&relays)));
            let mirror = setup(&up, &section).with(lines).start().await;
            relay.lead_to(&mirror);
            mirrors.push(mirror);
        }
        Self {
            up,
            relays,
            mirrors,
        }
    }

    /// The replicas in the order in which they own a key: the owner first.
    pub(crate) fn order(&self, key: &str) -> Vec<usize> {
        let names: Vec<_> = self
            .relays
            .iter()
            .map(|relay| relay.address.to_string())
            .collect();
        let mut left: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut order = Vec::new();
        while !left.is_empty() {
            let owner = Members::new(left.iter().copied(), None).ahead(key)[0].to_string();
            order.push(names.iter().position(|name| *name == owner).unwrap());
            left.retain(|name| *name != owner);
        }
        order
    }

    /// The owner of a tag of the upstream, and the others.
    pub(crate) fn order_of_tag(&self, repo: &str, tag: &str) -> Vec<usize> {
        self.order(&format!("{}/{repo}:{tag}", self.up.address))
    }

    pub(crate) async fn idle(&self) {
        for mirror in &self.mirrors {
            mirror.idle().await;
        }
    }
}

/// The section `replicas`, as a line of the configuration.
pub(crate) fn section(peers: &[String], own: &str, secret: &str) -> String {
    let peers = peers.join("', '");
    format!("root.replicas: {{peers: ['{peers}'], self: '{own}', secret: {secret}}}")
}

/// A DNS that knows one name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dns(Arc<Mutex<Zone>>);

/// What it says.
#[derive(Debug, Clone, Default)]
enum Zone {
    Addresses(Vec<SocketAddr>),
    #[default]
    Failure,
    Silence,
}

impl Dns {
    /// The addresses of the name from now on.
    pub(crate) fn say(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        *self.0.lock().unwrap() = Zone::Addresses(addresses.into_iter().collect());
    }

    pub(crate) fn fail(&self) {
        *self.0.lock().unwrap() = Zone::Failure;
    }

    pub(crate) fn fall_silent(&self) {
        *self.0.lock().unwrap() = Zone::Silence;
    }

    pub(crate) fn lookup(&self) -> Lookup {
        let zone = Arc::clone(&self.0);
        Lookup::by(move |_name| {
            let zone = zone.lock().unwrap().clone();
            async {
                match zone {
                    Zone::Addresses(addresses) => Ok(addresses),
                    Zone::Failure => Err(io::Error::other("no such name")),
                    Zone::Silence => std::future::pending().await,
                }
            }
        })
    }
}
