//! The HTTP client of one other replica, and the certificates by which replicas are trusted.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client};

use super::clients::{USER_AGENT, authorities};
use super::error::SetupError;
use super::reply::shared;

/// Idle connections that are kept to a replica.
const MAX_IDLE: usize = 32;

/// How long they are kept. Less than the replica keeps them: a request on a connection that is being closed
/// would look like a replica's failure.
const IDLE_TIME: Duration = Duration::from_mins(1);

/// The certificates that are trusted beside the system's, as their file has them now.
pub(super) struct PeerTrust(RwLock<Trusted>);

/// Replaced as a whole, so that its address tells whether a client has been made with it.
type Trusted = Arc<Vec<Certificate>>;

/// The client of one replica. It is made anew when other certificates are trusted; requests in flight end with
/// the client that they began with.
pub(super) struct PeerClient {
    member: Arc<str>,
    /// How long connecting may take.
    connect: Duration,
    current: RwLock<Current>,
}

struct Current {
    client: Client,
    /// None: the replica speaks plain HTTP.
    trusted: Option<Trusted>,
}

impl PeerTrust {
    /// Trusts these certificates (PEM).
    pub(super) fn new(pem: &[u8]) -> Result<Self, SetupError> {
        Ok(Self(RwLock::new(Arc::new(authorities(pem)?))))
    }

    /// Trusts others from now on. After an error, nothing has changed.
    pub(super) fn replace(&self, pem: &[u8]) -> Result<(), SetupError> {
        let trusted = Arc::new(authorities(pem)?);
        *self.0.write() = trusted;
        Ok(())
    }

    fn current(&self) -> Trusted {
        Arc::clone(&self.0.read())
    }
}

impl PeerClient {
    /// The client of the member `host:port`. Blocks: the system's certificates are read.
    pub(super) fn new(
        member: &Arc<str>,
        connect: Duration,
        trust: Option<&PeerTrust>,
    ) -> Result<Self, SetupError> {
        let trusted = trust.map(PeerTrust::current);
        Ok(Self {
            member: Arc::clone(member),
            connect,
            current: RwLock::new(Current::new(member, connect, trusted)?),
        })
    }

    pub(super) fn get(&self) -> Client {
        self.current.read().client.clone()
    }

    /// Trusts for new connections what is trusted now. After an error, what was used before stays in use.
    /// Blocks.
    pub(super) fn follow(&self, trust: &PeerTrust) -> Result<(), SetupError> {
        let trusted = trust.current();
        let before = self.current.read().trusted.clone();
        if !before.is_some_and(|before| Arc::ptr_eq(&before, &trusted)) {
            let current = Current::new(&self.member, self.connect, Some(trusted))?;
            *self.current.write() = current;
        }
        Ok(())
    }
}

impl Current {
    fn new(
        member: &Arc<str>,
        connect: Duration,
        trusted: Option<Trusted>,
    ) -> Result<Self, SetupError> {
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(connect)
            .pool_max_idle_per_host(MAX_IDLE)
            .pool_idle_timeout(IDLE_TIME)
            .no_proxy()
            .dns_resolver(Arc::new(ToMember(Arc::clone(member))))
            .http1_only();
        let builder = match &trusted {
            Some(trusted) => builder.tls_certs_merge(trusted.iter().cloned()),
            None => builder.tls_certs_only([]),
        };
        let client = builder.build();
        let client = client.map_err(|error| SetupError::Tls(shared(error)))?;
        Ok(Self { client, trusted })
    }
}

/// Finds the addresses of one member, whatever name its certificate has.
struct ToMember(Arc<str>);

impl Resolve for ToMember {
    fn resolve(&self, _name: Name) -> Resolving {
        let member = Arc::clone(&self.0);
        Box::pin(async move {
            let addresses: Vec<_> = tokio::net::lookup_host(&*member).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
