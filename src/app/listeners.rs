//! The sockets of the configured listeners, which the service manager may hand over, and their TLS, in
//! the order of the configuration.

use std::net::ToSocketAddrs as _;
use std::sync::Arc;

use super::StartError;
use crate::clock::Clock;
use crate::config::{self, Config, ExtraListener, Http, Listen, Tls};
use crate::metrics::Metrics;
use crate::server::listener::Listener;
use crate::systemd::{Bound, Handed, SocketsError};
use crate::tls::ServerTls;

/// The TLS of `http.addr`, and of each of `http.listeners`.
pub(super) struct ListenersTls {
    pub(super) main: Option<Arc<ServerTls>>,
    pub(super) others: Vec<Option<Arc<ServerTls>>>,
}

impl ListenersTls {
    /// Reads the files of all listeners.
    pub(super) fn load(
        config: &Config,
        clock: Clock,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let http = &config.http;
        let load = |(listen, tls): (&Listen, &Option<Tls>)| {
            let Some(settings) = tls else { return Ok(None) };
            let (listener, metrics) = (listen.to_string(), Arc::clone(metrics));
            let loaded = ServerTls::load(settings.clone(), listener, http.http2, clock, metrics);
            let loaded = loaded.map_err(|source| StartError::Tls {
                listener: listen.to_string(),
                source,
            });
            loaded.map(|tls| Some(Arc::new(tls)))
        };
        let others = http
            .listeners
            .iter()
            .map(|other| (&other.listen, &other.tls));
        Ok(Self {
            main: load((&http.listen, &http.tls))?,
            others: others.map(load).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<ServerTls>> {
        [&self.main].into_iter().chain(&self.others).flatten()
    }
}

/// The sockets of the listeners: those that the service manager has handed over, and others, which are
/// bound when they are asked for.
pub(super) struct Sockets {
    main: Place,
    others: Vec<Place>,
    debug: Option<Place>,
}

/// The place of one listener.
struct Place {
    listen: Listen,
    handed: Option<Bound>,
}

impl Sockets {
    /// Finds the listener of each socket. A socket whose name is a listener's key, such as
    /// `http.debug.addr`, is that listener's; any other is the listener's that has its address.
    pub(super) fn new(config: &Config, mut sockets: Handed) -> Result<Self, StartError> {
        let http = &config.http;
        let others = http.listeners.iter().enumerate();
        let others =
            others.map(|(index, other)| (format!("http.listeners[{index}].addr"), &other.listen));
        let debug = http.debug.as_ref();
        let debug = debug.map(|debug| ("http.debug.addr".to_owned(), &debug.listen));
        let main = ("http.addr".to_owned(), &http.listen);
        let all: Vec<_> = [main].into_iter().chain(others).chain(debug).collect();
        let mut named = Vec::new();
        for (key, listen) in &all {
            let handed = sockets.take(|socket| socket.name == *key);
            if let Some(socket) = &handed
                && !is_at(listen, &socket.bound)
            {
                return Err(StartError::Sockets(SocketsError::Mismatch {
                    key: key.clone(),
                    address: socket.bound.to_string(),
                    configured: listen.to_string(),
                }));
            }
            named.push(handed);
        }
        let mut places = all.iter().zip(named).map(|((_, listen), named)| {
            let handed = named.or_else(|| sockets.take(|socket| is_at(listen, &socket.bound)));
            Place {
                listen: Listen::clone(listen),
                handed: handed.map(|socket| socket.bound),
            }
        });
        let main = places.next();
        let others = places.by_ref().take(http.listeners.len()).collect();
        let debug = places.next();
        drop(places);
        if let Some(socket) = sockets.left().first() {
            let configured = all
                .iter()
                .map(|(key, listen)| format!("`{key}` is {listen}"));
            return Err(StartError::Sockets(SocketsError::Unclaimed {
                name: socket.name.clone(),
                address: socket.bound.to_string(),
                configured: configured.collect::<Vec<_>>().join(", "),
            }));
        }
        Ok(Self {
            main: main.unwrap_or_else(|| Place::own(&http.listen)),
            others,
            debug,
        })
    }

    /// The socket of `http.addr`.
    pub(super) async fn main(&mut self) -> Result<Listener, StartError> {
        self.main.open().await
    }

    /// That of an item of `http.listeners`.
    pub(super) async fn other(
        &mut self,
        index: usize,
        listener: &ExtraListener,
    ) -> Result<Listener, StartError> {
        match self.others.get_mut(index) {
            Some(place) => place.open().await,
            None => Place::own(&listener.listen).open().await,
        }
    }

    /// That of `http.debug.addr`.
    pub(super) async fn debug(&mut self, debug: &config::Debug) -> Result<Listener, StartError> {
        match &mut self.debug {
            Some(place) => place.open().await,
            None => Place::own(&debug.listen).open().await,
        }
    }
}

impl Place {
    fn own(listen: &Listen) -> Self {
        Self {
            listen: listen.clone(),
            handed: None,
        }
    }

    /// Takes the socket over, or binds one.
    async fn open(&mut self) -> Result<Listener, StartError> {
        match self.handed.take() {
            Some(bound) => Listener::handed(bound).map_err(StartError::Address),
            None => Ok(Listener::bind(&self.listen).await?),
        }
    }
}

/// Whether a socket listens where a listener should. `:5000` is every address of one family or both.
fn is_at(listen: &Listen, bound: &Bound) -> bool {
    match (listen, bound) {
        (Listen::Unix(path), Bound::Unix(_, at)) => {
            std::path::absolute(path).is_ok_and(|path| path == *at)
        }
        (Listen::Tcp(address), Bound::Tcp(_, at)) => match address.strip_prefix(':') {
            Some(port) => at.ip().is_unspecified() && port.parse() == Ok(at.port()),
            // As binding it would; this is the start.
            None => address
                .to_socket_addrs()
                .is_ok_and(|mut all| all.any(|one| one == *at)),
        },
        _ => false,
    }
}

/// The section of the listener with this address.
pub(super) fn section(http: &Http, address: &str) -> String {
    let has_address = |listen: &Listen| listen.to_string() == address;
    let others = &mut http.listeners.iter();
    let position = others.position(|other| has_address(&other.listen));
    match position.filter(|_| !has_address(&http.listen)) {
        Some(index) => format!("http.listeners[{index}]"),
        None => "http".to_owned(),
    }
}
