//! Finds the addresses of the replicas.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::time::timeout;

/// The longest that a look-up may take.
pub(super) const LOOKUP_TIME: Duration = Duration::from_secs(5);

/// Looks up the addresses of `host:port`. By default, the system is asked.
#[derive(Clone)]
pub struct Lookup(Arc<Find>);

type Find = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookup")
    }
}

impl Default for Lookup {
    fn default() -> Self {
        Self::by(|name| async move { Ok(tokio::net::lookup_host(name).await?.collect()) })
    }
}

impl Lookup {
    /// Asks `find`.
    pub fn by<F>(find: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        Self(Arc::new(move |name| find(name).boxed()))
    }

    /// The addresses of `host:port`. An error of the kind `TimedOut` after [`LOOKUP_TIME`].
    pub(super) async fn addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let looked_up = timeout(LOOKUP_TIME, (self.0)(name.to_owned())).await;
        looked_up.unwrap_or_else(|_elapsed| {
            let reason = format!("no answer within {LOOKUP_TIME:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, reason))
        })
    }
}
