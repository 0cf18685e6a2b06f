//! Wires what answers clients and operators: listeners and their connections.

use std::sync::Arc;

use super::listeners::{ListenersTls, Sockets};
use super::{Shared, StartError, descriptors};
use crate::admin::Admin;
use crate::admin::health::Health;
use crate::admin::operate::Operator;
use crate::admin::socket::AdminSocket;
use crate::config::{self, Config, Serves};
use crate::error_chain::on_one_line;
use crate::server::listener::{Address, Listener};
use crate::server::{Admission, ConnectionSettings, Current, Handler, ResponseBuffers, serve};
use crate::storage::Layout;
use crate::systemd::Handed;
use crate::tls::ServerTls;

/// Listeners and their connections.
pub(super) struct Serving<'a> {
    connections: ConnectionSettings,
    shared: &'a Shared,
}

/// Where requests are answered.
pub(super) struct Addresses {
    pub(super) main: Address,
    /// Those of `http.listeners`.
    pub(super) others: Vec<Address>,
    pub(super) debug: Option<Address>,
}

impl<'a> Serving<'a> {
    /// Connections of the registry API, without TLS. `admission` has their limits.
    pub(super) fn new(config: &Config, shared: &'a Shared, admission: Arc<Admission>) -> Self {
        Self {
            connections: ConnectionSettings {
                http2: config.http.http2,
                tls: None,
                admission,
                buffers: ResponseBuffers::default(),
                metrics: Arc::clone(&shared.metrics),
                clock: shared.clock,
            },
            shared,
        }
    }

    /// The same with connections of their own, which clients of the registry can't use up.
    fn for_operators(&self) -> Self {
        let mut connections = self.connections.clone();
        connections.admission = Admission::new(descriptors::OPERATORS);
        Self {
            connections,
            shared: self.shared,
        }
    }

    /// The same with TLS.
    fn with_tls(&self, tls: Option<Arc<ServerTls>>) -> Self {
        let mut connections = self.connections.clone();
        connections.tls = tls;
        Self {
            connections,
            shared: self.shared,
        }
    }

    /// Begins to answer. Without `sockets`, only commands on the data directory.
    pub(super) async fn begin(
        &self,
        config: &Config,
        tls: &ListenersTls,
        service: &Arc<Current>,
        sockets: Option<Handed>,
    ) -> Result<Addresses, StartError> {
        let operators = self.for_operators();
        let Some(sockets) = sockets else {
            let main = operators.take_commands(config).await;
            let main = main.ok_or(StartError::NoCommands)?;
            return Ok(Addresses {
                main,
                others: Vec::new(),
                debug: None,
            });
        };
        let mut sockets = Sockets::new(config, sockets)?;
        let debug = operators.listen_for_debug(config, &mut sockets).await?;
        operators.take_commands(config).await;
        let listening = self.listen_all(config, tls, service, &mut sockets);
        let (main, others) = listening.await?;
        Ok(Addresses {
            main,
            others,
            debug,
        })
    }

    /// Serves `http.addr` and the additional listeners. Returns where each of them listens.
    async fn listen_all(
        &self,
        config: &Config,
        tls: &ListenersTls,
        service: &Arc<Current>,
        sockets: &mut Sockets,
    ) -> Result<(Address, Vec<Address>), StartError> {
        for tls in tls.iter() {
            tls.watch(&self.shared.background, self.shared.stop_now.clone());
        }
        let main = self.with_tls(tls.main.clone());
        let socket = sockets.main().await?;
        let address = main.listen("listener", socket, Arc::clone(service))?;
        let operators = self.for_operators();
        let mut addresses = Vec::new();
        for (index, (listener, tls)) in config.http.listeners.iter().zip(&tls.others).enumerate() {
            let (socket, tls) = (sockets.other(index, listener).await?, tls.clone());
            let address = match listener.serves {
                Serves::Registry => {
                    let serving = self.with_tls(tls);
                    serving.listen("listener", socket, Arc::clone(service))?
                }
                Serves::Operators => {
                    let admin = self.admin(config.http.metrics_path());
                    let serving = operators.with_tls(tls);
                    serving.listen("operators' listener", socket, admin)?
                }
            };
            addresses.push(address);
        }
        Ok((address, addresses))
    }

    /// What answers operators.
    fn admin(&self, metrics_path: Option<&str>) -> Arc<Admin> {
        let Shared {
            cache,
            metrics,
            background,
            availability,
            replication,
            bucket,
            ..
        } = self.shared;
        let tasks = background.clone();
        Arc::new(Admin {
            health: Health::new(
                cache.clone(),
                tasks,
                Arc::clone(metrics),
                availability.clone(),
            )
            .with_replicas(replication.as_ref().map(|replication| &replication.peers))
            .with_bucket(bucket.as_ref()),
            upstreams: Arc::clone(&self.shared.upstreams),
            metrics_path: metrics_path.map(str::to_owned),
        })
    }

    /// Serves the debug listener, where one is configured.
    async fn listen_for_debug(
        &self,
        config: &Config,
        sockets: &mut Sockets,
    ) -> Result<Option<Address>, StartError> {
        let Some(debug) = &config.http.debug else {
            return Ok(None);
        };
        let admin = self.admin(debug.metrics_path.as_deref());
        let socket = sockets.debug(debug).await?;
        self.listen("debug listener", socket, admin).map(Some)
    }

    /// Takes commands on the data directory's admin socket, if that is possible. Pulls don't depend on it.
    async fn take_commands(&self, config: &Config) -> Option<Address> {
        let config::Storage::Filesystem { root, .. } = &config.storage else {
            return None;
        };
        let path = Layout::new(root).admin_socket();
        let listener = match Listener::bind(&config::Listen::Unix(path)).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(error = %on_one_line(&error), "the commands on a running server work only while it is stopped");
                return None;
            }
        };
        let address = listener.address().ok()?;
        match listener.make_private() {
            Ok(()) => {
                let operator = Operator {
                    cache: self.shared.cache.clone(),
                    denials: self.shared.denials.clone(),
                    levels: Some(Arc::clone(&self.shared.levels)),
                    clock: self.shared.clock,
                    upstreams: Some(Arc::clone(&self.shared.upstreams)),
                    reloads: Some(Arc::clone(&self.shared.reloads)),
                    mirror: Some(Arc::clone(&self.shared.mirror)),
                };
                let pages = self.admin(config.http.metrics_path());
                let socket = AdminSocket { operator, pages };
                self.serve("admin socket", listener, Arc::new(socket));
                Some(address)
            }
            Err(error) => {
                tracing::warn!(error = %on_one_line(&error), "the admin socket can't be made private");
                None
            }
        }
    }

    /// Answers on a socket from now on.
    fn listen<H: Handler>(
        &self,
        task: &'static str,
        listener: Listener,
        handler: Arc<H>,
    ) -> Result<Address, StartError> {
        let address = listener.address().map_err(StartError::Address)?;
        self.serve(task, listener, handler);
        Ok(address)
    }

    fn serve<H: Handler>(&self, task: &'static str, listener: Listener, handler: Arc<H>) {
        let shared = self.shared;
        let tasks = shared.background.tracked_by(&shared.connections);
        let serving = serve(
            listener,
            handler,
            self.connections.clone(),
            tasks.clone(),
            shared.stop_accepting.clone(),
        );
        tasks.spawn_required(task, serving);
    }
}
