//! The server on the data directory, if one runs: what it says about itself, its listeners, and its
//! cache beside the cap and the TTL.

use url::Url;

use super::super::operate::Backend;
use super::finding::Findings;
use super::{endpoints, local, usage};
use crate::admin::client::ClientError;
use crate::admin::operate::{Image, Operation, Status};
use crate::app::Descriptors;
use crate::clock::Clock;
use crate::config::{Config, Listen, Serves, Storage, Timeouts, Tls};
use crate::error_chain::on_one_line;
use crate::metrics::Metrics;
use crate::server::listener::{BindError, Listener};
use crate::storage::StoreError;
use crate::tasks::Tasks;
use crate::upstream::{EndpointStatus, Failure, TlsFiles, Upstream, UpstreamError};

/// How `Cache-Status` names this program.
const OWN_NAME: &str = "millpond";

/// The server that may run, beside its configuration.
#[derive(Debug)]
pub(super) struct ServerCheck<'a> {
    pub(super) config: &'a Config,
    pub(super) timeouts: Timeouts,
    pub(super) clock: Clock,
}

/// A listener of the configuration.
struct Listening<'a> {
    key: String,
    listen: &'a Listen,
    tls: Option<&'a Tls>,
    serves: Serves,
}

/// Who has the data directory.
enum Holder {
    /// A server, and whether it said anything about itself.
    Server(Option<Status>),
    Nobody,
    /// Nothing can be told.
    Unknown,
}

/// Who answers at an address.
enum Answering {
    Millpond,
    Other,
    /// It may be the server: it has no time, or a failing health check closes the API.
    Closed(UpstreamError),
    /// It can't be asked without a client certificate.
    Secret,
}

impl ServerCheck<'_> {
    pub(super) async fn run(&self, found: &mut Findings) {
        let tasks = Tasks::new();
        let mut backend = self.backend(&tasks, found).await;
        let holder = match &mut backend {
            Ok(server @ Backend::Server(_)) => Holder::Server(self.status(server, found).await),
            Ok(Backend::Own(_)) => Holder::Nobody,
            Err(holder) => std::mem::replace(holder, Holder::Unknown),
        };
        if let Ok(server @ Backend::Server(_)) = &mut backend {
            self.endpoints(server, found).await;
        }
        for listening in self.listeners() {
            self.listener(&listening, &holder, found).await;
        }
        let limit = match &holder {
            Holder::Server(Some(status)) => status.descriptors.map_or(usize::MAX, |limit| {
                usize::try_from(limit).unwrap_or(usize::MAX)
            }),
            _ => Descriptors::possible(),
        };
        local::descriptors(self.config, limit, found);
        if let Ok(backend) = &mut backend {
            self.usage(backend, &holder, found).await;
        }
        if let Ok(Backend::Own(operator)) = &backend {
            operator.cache.stop().await;
        }
    }

    /// What answers questions about the cache; else who keeps it from that.
    async fn backend(&self, tasks: &Tasks, found: &mut Findings) -> Result<Backend, Holder> {
        if self.config.storage == Storage::Memory {
            found.ok(
                "server",
                "with storage.inmemory, a running server can't be asked",
            );
            return Err(Holder::Unknown);
        }
        let error = match Backend::open(self.config, tasks).await {
            Ok(backend) => {
                if matches!(backend, Backend::Own(_)) {
                    found.ok("server", "no server runs on the data directory");
                }
                return Ok(backend);
            }
            Err(error) => error,
        };
        if let Some(StoreError::Missing { .. }) = error.downcast_ref() {
            found.ok("server", "no server runs on the data directory");
            return Err(Holder::Nobody);
        }
        let text = on_one_line(error.as_ref());
        if error.downcast_ref::<ClientError>().is_some() {
            let fix = "wait until the command that uses it ends, or restart the server: its log says \
                       why it has no admin socket";
            found.fail("server", text, fix);
        } else {
            found.fail("server", text, "run this as the user who runs millpond");
        }
        Err(Holder::Unknown)
    }

    async fn status(&self, server: &mut Backend, found: &mut Findings) -> Option<Status> {
        let status: Status = match server.run(Operation::Status).await {
            Ok(status) => status,
            Err(error) => {
                let text = format!(
                    "the server runs, but says nothing: {}",
                    on_one_line(error.as_ref())
                );
                found.warn(
                    "server",
                    text,
                    "restart it: it may be of an earlier version",
                );
                return None;
            }
        };
        match &status.store {
            None => found.ok("server", format!("runs as process {}", status.process)),
            Some(error) => {
                let text = format!("process {} can't write its store: {error}", status.process);
                let fix = "free space, or make the directory writable for the server's user";
                found.fail("server", text, fix);
            }
        }
        Some(status)
    }

    async fn endpoints(&self, server: &mut Backend, found: &mut Findings) {
        let asked: anyhow::Result<Vec<EndpointStatus>> = server.run(Operation::Upstreams).await;
        match asked {
            Ok(list) => endpoints::check(&list, found),
            Err(error) => {
                let text = format!(
                    "the server doesn't say how the upstreams answer: {}",
                    on_one_line(error.as_ref())
                );
                let fix = "restart it: it may be of an earlier version";
                found.warn("endpoint", text, fix);
            }
        }
    }

    fn listeners(&self) -> Vec<Listening<'_>> {
        let http = &self.config.http;
        let mut all = vec![Listening {
            key: "http.addr".to_owned(),
            listen: &http.listen,
            tls: http.tls.as_ref(),
            serves: Serves::Registry,
        }];
        all.extend(http.debug.as_ref().map(|debug| Listening {
            key: "http.debug.addr".to_owned(),
            listen: &debug.listen,
            tls: None,
            serves: Serves::Operators,
        }));
        let others = http.listeners.iter().enumerate();
        all.extend(others.map(|(index, other)| Listening {
            key: format!("http.listeners[{index}].addr"),
            listen: &other.listen,
            tls: other.tls.as_ref(),
            serves: other.serves,
        }));
        all
    }

    /// Whether an address is free, or taken by the server that should have it.
    async fn listener(&self, listening: &Listening<'_>, holder: &Holder, found: &mut Findings) {
        let Listening { key, listen, .. } = listening;
        let Listen::Tcp(address) = listen else {
            // Binding it would take the place of the server's socket.
            return;
        };
        if address.ends_with(":0") {
            found.ok("listener", format!("`{key}` is {address}: any free port"));
            return;
        }
        let runs = matches!(holder, Holder::Server(_));
        match Listener::bind(listen).await {
            Ok(_free) if runs => {
                let text = format!("the server runs, but nothing listens on {address} (`{key}`)");
                let fix = "restart the server: it was started with another address";
                found.fail("listener", text, fix);
            }
            Ok(_free) => found.ok("listener", format!("{address} (`{key}`) is free")),
            Err(BindError::Tcp { source, .. })
                if source.kind() == std::io::ErrorKind::AddrInUse =>
            {
                self.taken(listening, address, holder, found).await;
            }
            Err(error) => {
                let fix = format!("correct `{key}`");
                found.fail("listener", on_one_line(&error), fix);
            }
        }
    }

    async fn taken(
        &self,
        listening: &Listening<'_>,
        address: &str,
        holder: &Holder,
        found: &mut Findings,
    ) {
        let key = &listening.key;
        let answering = self.answering(listening, address).await;
        match (answering, holder) {
            (Answering::Millpond, Holder::Server(_) | Holder::Unknown) => {
                found.ok(
                    "listener",
                    format!("the server listens on {address} (`{key}`)"),
                );
            }
            (Answering::Millpond, Holder::Nobody) => {
                let text = format!("another millpond, on another data directory, uses {address}");
                found.fail("listener", text, format!("stop it, or change `{key}`"));
            }
            (Answering::Closed(error), Holder::Server(_) | Holder::Unknown) => {
                let error = on_one_line(&error);
                let text =
                    format!("{address} (`{key}`) is in use, but no registry answers: {error}");
                let fix = "look at the server's log: a failing check of `health` closes the API, and \
                           too many connections (`http.limits`) are refused";
                found.fail("listener", text, fix);
            }
            (Answering::Other | Answering::Closed(_), _) => {
                let text = format!("another program uses {address}");
                found.fail("listener", text, format!("stop it, or change `{key}`"));
            }
            (Answering::Secret, _) => {
                let text =
                    format!("{address} is in use; by whom can't be told without a certificate");
                found.ok("listener", text);
            }
        }
    }

    /// Who answers at an address that is in use.
    async fn answering(&self, listening: &Listening<'_>, address: &str) -> Answering {
        let Some(client) = self.client_of(listening, address) else {
            return Answering::Secret;
        };
        let status = |error: &UpstreamError| error.status();
        match (client.observe_base().await, listening.serves) {
            (Ok(base), Serves::Registry) => {
                let named = base.cache_status.unwrap_or_default();
                if named.starts_with(OWN_NAME) || base.challenge.is_some() {
                    Answering::Millpond
                } else {
                    Answering::Other
                }
            }
            // There is no registry on it.
            (Err(error), Serves::Operators) if status(&error) == Some(404) => Answering::Millpond,
            (Err(error), Serves::Registry)
                if status(&error) == Some(503)
                    || matches!(error.failure, Failure::Timeout { .. }) =>
            {
                Answering::Closed(error)
            }
            // The handshake may want a client's certificate.
            (Err(_), Serves::Registry) if listening.tls.is_some() => Answering::Secret,
            _ => Answering::Other,
        }
    }

    /// A client for an address, whoever answers there.
    fn client_of(&self, listening: &Listening<'_>, address: &str) -> Option<Upstream> {
        let (host, port) = address.rsplit_once(':')?;
        let host = match host {
            "" | "0.0.0.0" | "[::]" => "127.0.0.1",
            host => host,
        };
        let scheme = if listening.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let mut upstream = Config::default_config().proxy.default;
        upstream.url = Url::parse(&format!("{scheme}://{host}:{port}")).ok()?;
        upstream.proxy = crate::config::ForwardProxy::Direct;
        upstream.insecure = true;
        let (files, metrics) = (TlsFiles::default(), Metrics::default());
        Upstream::new(upstream, &files, self.timeouts, self.clock, &metrics).ok()
    }

    async fn usage(&self, backend: &mut Backend, holder: &Holder, found: &mut Findings) {
        let images: Vec<Image> = match backend.list(Operation::Images).await {
            Ok(images) => images,
            Err(error) => {
                let text = format!("the cache can't be listed: {}", on_one_line(error.as_ref()));
                found.warn("usage", text, "wait until the server has read its index");
                return;
            }
        };
        let own = match backend {
            Backend::Own(operator) => Some(operator.cache.usage().used),
            Backend::Server(_) => None,
        };
        let (used, full) = match holder {
            Holder::Server(Some(status)) => (status.used, status.full),
            _ => (own.unwrap_or_default(), 0),
        };
        let cached = usage::Cached {
            images: &images,
            used,
            full,
        };
        usage::compare(&cached, self.config, self.clock, found);
    }
}
