//! Recognises the requests of other replicas, and signs the answers.

use std::sync::Arc;

use http::Response;
use http::request::Parts;

use super::body::Body;
use crate::clock::Clock;
use crate::replicas::{Marks, Nonce};

/// Recognises the requests of other replicas.
#[derive(Debug)]
pub struct PeerGate {
    pub marks: Arc<Marks>,
    pub clock: Clock,
}

/// The request of another replica.
#[derive(Debug)]
pub(super) struct FromPeer {
    nonce: Nonce,
    upstream: String,
}

impl FromPeer {
    /// The name of the upstream that it is about; empty for a request about none.
    pub(super) fn upstream(&self) -> &str {
        &self.upstream
    }
}

impl PeerGate {
    /// What is to be known of a request, if another replica sends it. Boxed: most requests are of clients.
    pub(super) fn recognise(&self, head: &Parts) -> Option<Box<FromPeer>> {
        let target = head.uri.path_and_query();
        let target = target.map_or("", |target| target.as_str());
        let asked = (head.method.as_str(), target);
        let checked = self.marks.check(&head.headers, asked, self.clock.wall());
        checked.map(|(nonce, upstream)| {
            let upstream = upstream.to_owned();
            Box::new(FromPeer { nonce, upstream })
        })
    }

    /// Signs the answer to a request.
    pub(super) fn sign(&self, request: &FromPeer, response: &mut Response<Body>) {
        let status = response.status().as_u16();
        let headers = response.headers_mut();
        self.marks.mark_answer(request.nonce, status, headers);
    }
}
