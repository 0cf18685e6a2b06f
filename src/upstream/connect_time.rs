//! How long connections take: the name, TCP, a proxy and TLS. The HTTP library makes connections by itself
//! and tells nothing of them; a layer around its connector measures those that succeed.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::metrics::UpstreamMetrics;

/// The layer, and the connector with it.
#[derive(Clone)]
pub(super) struct ConnectTime<S = ()> {
    connector: S,
    metrics: Arc<UpstreamMetrics>,
}

impl ConnectTime {
    pub(super) fn new(metrics: &Arc<UpstreamMetrics>) -> Self {
        Self {
            connector: (),
            metrics: Arc::clone(metrics),
        }
    }
}

impl<S> Layer<S> for ConnectTime {
    type Service = ConnectTime<S>;

    fn layer(&self, connector: S) -> ConnectTime<S> {
        ConnectTime {
            connector,
            metrics: Arc::clone(&self.metrics),
        }
    }
}

impl<S, Destination> Service<Destination> for ConnectTime<S>
where
    S: Service<Destination, Future: Send + 'static>,
    S::Response: 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, destination: Destination) -> Self::Future {
        let metrics = Arc::clone(&self.metrics);
        let connecting = self.connector.call(destination);
        Box::pin(async move {
            let started = Instant::now();
            let connected = connecting.await;
            if connected.is_ok() {
                metrics.connected(started.elapsed());
            }
            connected
        })
    }
}
