//! The service of the configuration in effect. A request is answered to its end by the one that it began
//! with.

use std::future::Future;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Request, Response};

use super::body::Body;
use super::request::{Handler, Peer, RequestBody};
use super::service::Service;

/// Answers each request by the service of that moment.
#[derive(Debug)]
pub struct Current(ArcSwap<Service>);

impl Current {
    pub fn new(service: Service) -> Self {
        Self(ArcSwap::from_pointee(service))
    }

    /// Answers requests that begin from now on by another service.
    pub fn replace(&self, service: Service) {
        self.0.store(Arc::new(service));
    }

    /// Whether a request that needs neither an upstream nor the store is answered.
    pub async fn answers(&self) -> bool {
        self.0.load_full().answers().await
    }
}

impl Handler for Current {
    fn handle(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> impl Future<Output = Response<Body>> + Send {
        self.0.load_full().handle(request, peer)
    }
}
