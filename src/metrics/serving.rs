//! What clients asked for and got. Counters that most requests need are found by position; a family
//! of series takes a lock that all threads share, and compares labels.

use std::sync::OnceLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::Registrar;
use super::labels::{
    Handshake, HandshakeResult, Kind, OfKind, OfReason, Outcome, RefusedConnection, Served,
    ServedStatus,
};

/// The statuses of nearly all answers.
const STATUSES: [u16; 10] = [200, 206, 304, 400, 401, 403, 404, 416, 429, 502];

/// A series that appears when it is first counted.
type Found = OnceLock<Counter>;

#[derive(Debug)]
pub(super) struct Serving {
    requests: Family<Served, Counter>,
    responses: Family<ServedStatus, Counter>,
    bytes: Family<OfKind, Counter>,
    refused: Family<OfReason, Counter>,
    handshakes: Family<HandshakeResult, Counter>,
    found: [OfOneKind; Kind::ALL.len()],
}

#[derive(Debug, Default)]
struct OfOneKind {
    results: [Found; Outcome::ALL.len()],
    statuses: [Found; STATUSES.len()],
    bytes: Found,
}

impl Serving {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        let serving = Self {
            requests: r.metric(
                "requests",
                "Clients' requests by where the answer came from",
            ),
            responses: r.metric("responses", "Clients' requests by status"),
            bytes: r.bytes("client_sent", "Body bytes sent to clients"),
            refused: r.metric(
                "connections_refused",
                "Client connections that were refused, by the limit",
            ),
            handshakes: r.metric("tls_handshakes", "TLS handshakes of clients by their end"),
            found: Default::default(),
        };
        // A rate needs the zero before the first refusal.
        for &reason in RefusedConnection::ALL {
            let labels = OfReason { reason };
            drop(serving.refused.get_or_create_owned(&labels));
        }
        for &result in Handshake::ALL {
            let labels = HandshakeResult { result };
            drop(serving.handshakes.get_or_create_owned(&labels));
        }
        serving
    }

    pub(super) fn served(&self, kind: Kind, result: Outcome, status: u16) {
        let found = self.found.get(kind as usize);
        let slot = found.and_then(|found| found.results.get(result as usize));
        let of_result = || self.requests.get_or_create_owned(&Served { kind, result });
        count(slot, of_result, 1);
        let position = STATUSES.iter().position(|known| *known == status);
        let slot = found
            .zip(position)
            .and_then(|(found, position)| found.statuses.get(position));
        let of_status = || {
            self.responses
                .get_or_create_owned(&ServedStatus { kind, status })
        };
        count(slot, of_status, 1);
    }

    pub(super) fn refused(&self, reason: RefusedConnection) {
        self.refused.get_or_create_owned(&OfReason { reason }).inc();
    }

    pub(super) fn handshake(&self, result: Handshake) {
        let labels = HandshakeResult { result };
        self.handshakes.get_or_create_owned(&labels).inc();
    }

    pub(super) fn sent(&self, kind: Kind, bytes: u64) {
        let slot = self.found.get(kind as usize).map(|found| &found.bytes);
        count(
            slot,
            || self.bytes.get_or_create_owned(&OfKind { kind }),
            bytes,
        );
    }
}

fn count(slot: Option<&Found>, find: impl FnOnce() -> Counter, by: u64) {
    match slot {
        Some(slot) => slot.get_or_init(find).inc_by(by),
        None => find().inc_by(by),
    };
}
