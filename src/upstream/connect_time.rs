//! How long connections take: the name, TCP, a proxy and TLS. The HTTP library makes connections by itself
//! and tells nothing of them; a layer around its connector measures those that succeed, and gives each one a
//! span of the request that it is made for. The library may give a request another connection that becomes
//! free meanwhile: the span then ends later than the request.

use std::fmt::Display;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::metrics::UpstreamMetrics;
use crate::telemetry::{self, SpanKind};

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
    S::Error: Display + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, destination: Destination) -> Self::Future {
        let metrics = Arc::clone(&self.metrics);
        let mut span = telemetry::span("connect", SpanKind::Internal);
        let connecting = self.connector.call(destination);
        Box::pin(async move {
            let started = Instant::now();
            let connected = connecting.await;
            match (&connected, &mut span) {
                (Ok(_), _) => metrics.connected(started.elapsed()),
                (Err(error), Some(span)) => span.fail(&error.to_string()),
                (Err(_), None) => {}
            }
            connected
        })
    }
}
