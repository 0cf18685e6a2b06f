//! Recognises the requests of other replicas, and signs the answers.

use std::sync::Arc;

use http::Response;
use http::request::Parts;

use super::body::Body;
use crate::clock::Clock;
use crate::replicas::{Marks, Nonce, RelayedCaller, Subject};

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
    pub(super) subject: PeerSubject,
}

/// What the request of another replica is about.
#[derive(Debug)]
pub(super) enum PeerSubject {
    /// The upstream with this name; empty for a request about none.
    Upstream(String),
    /// A hosted repository, for this client of the other replica, which has authorized it.
    Relayed(RelayedCaller),
}

impl PeerGate {
    /// What is to be known of a request, if another replica sends it. Boxed: most requests are of clients.
    pub(super) fn recognise(&self, head: &Parts) -> Option<Box<FromPeer>> {
        let target = head.uri.path_and_query();
        let target = target.map_or("", |target| target.as_str());
        let asked = (head.method.as_str(), target);
        let checked = self.marks.check(&head.headers, asked, self.clock.wall());
        let (nonce, subject) = checked?;
        let subject = match subject {
            Subject::Upstream(name) => PeerSubject::Upstream(name.to_owned()),
            Subject::Relayed(caller) => PeerSubject::Relayed(RelayedCaller::parse(caller)?),
        };
        Some(Box::new(FromPeer { nonce, subject }))
    }

    /// Signs the answer to a request.
    pub(super) fn sign(&self, request: &FromPeer, response: &mut Response<Body>) {
        let status = response.status().as_u16();
        let headers = response.headers_mut();
        self.marks.mark_answer(request.nonce, status, headers);
    }
}
