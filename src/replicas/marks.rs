//! The marks on the messages between replicas.
//!
//! A request has `Millpond-Peer: 1.TIME.NONCE.MAC` and `Millpond-Upstream: NAME`. TIME is in seconds since
//! 1970, NONCE 16 random bytes, MAC the HMAC-SHA256 (RFC 2104) by the shared secret over a line each of
//! `millpond request 1`, the method, the path with its query, the upstream's name, TIME and NONCE. The
//! answer has `Millpond-Peer: 1.MAC`, over `millpond answer 1`, the request's NONCE, the status and the
//! fields that replicas rely on. Bytes are in hexadecimal.
//!
//! A request for a hosted repository that a replica relays to the writer has `Millpond-Caller: CALLER`
//! instead of the upstream. Its MAC covers `millpond relayed request 1` as the first line and CALLER in the
//! upstream's place. So neither kind of request can be made of the other one, and a request that has both
//! fields isn't marked.
//!
//! A request whose time differs by more than [`WINDOW`] from this replica's, or whose nonce has been seen
//! in that time, isn't marked. Beyond [`MAX_NONCES`] in a window none is, so that memory stays bounded.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{hmac, rand};
use http::header::{AGE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use parking_lot::Mutex;

use crate::oci::digits;

/// On requests of replicas to each other, and on the answers.
pub const PEER: HeaderName = HeaderName::from_static("millpond-peer");
/// The name of the upstream that a request of a replica is about.
pub const UPSTREAM: HeaderName = HeaderName::from_static("millpond-upstream");
/// The client for which a replica relays a request to the writer of hosted content.
pub const CALLER: HeaderName = HeaderName::from_static("millpond-caller");

/// How far the clocks of two replicas may differ, the time of the request on its way included.
const WINDOW: Duration = Duration::from_secs(30);
/// Nonces that are remembered, in each of two halves; about 3 MB.
const MAX_NONCES: usize = 50_000;
/// The fields of an answer that its mark covers, beside the status.
const COVERED: [HeaderName; 3] = [
    AGE,
    RETRY_AFTER,
    HeaderName::from_static("docker-content-digest"),
];

/// What makes a request unlike all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce([u8; 16]);

/// The system gives no random bytes.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct RandomError;

/// Makes and checks marks by one secret.
#[derive(Debug)]
pub struct Marks {
    key: hmac::Key,
    seen: Mutex<Seen>,
}

/// The nonces that were seen, in two halves: the older one is forgotten when the newer one is as old as
/// a mark can be valid.
#[derive(Debug)]
struct Seen {
    newer: HashSet<Nonce>,
    older: HashSet<Nonce>,
    since: SystemTime,
}

/// What a request of a replica is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// Content of the upstream with this name; empty for a request about none.
    Upstream(&'a str),
    /// A hosted repository, for this client: a [`RelayedCaller`](super::RelayedCaller), encoded.
    Relayed(&'a str),
}

impl<'a> Subject<'a> {
    /// The field that says so, and its value.
    const fn field(self) -> (HeaderName, &'a str) {
        match self {
            Self::Upstream(name) => (UPSTREAM, name),
            Self::Relayed(caller) => (CALLER, caller),
        }
    }

    /// What the headers of a request say; none where they say nothing, or both.
    fn of(headers: &'a HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).map(HeaderValue::to_str);
        match (text(UPSTREAM), text(CALLER)) {
            (Some(Ok(name)), None) => Some(Self::Upstream(name)),
            (None, Some(Ok(caller))) => Some(Self::Relayed(caller)),
            _ => None,
        }
    }
}

/// What a request asks.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    method: &'a str,
    target: &'a str,
    subject: Subject<'a>,
}

impl Marks {
    pub fn new(secret: &str) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            seen: Mutex::new(Seen {
                newer: HashSet::new(),
                older: HashSet::new(),
                since: SystemTime::UNIX_EPOCH,
            }),
        }
    }

    /// Adds the mark to a request, of which the nonce is needed for the answer. `target` is the path with
    /// its query.
    pub fn mark(
        &self,
        headers: &mut HeaderMap,
        (method, target): (&str, &str),
        subject: Subject<'_>,
        now: SystemTime,
    ) -> Result<Nonce, RandomError> {
        let mut bytes = [0; 16];
        rand::fill(&mut bytes).map_err(|_unspecified| RandomError)?;
        let nonce = Nonce(bytes);
        let (time, asked) = (
            seconds(now),
            Asked {
                method,
                target,
                subject,
            },
        );
        let mac = hmac::sign(&self.key, &request(asked, time, nonce));
        let nonce_text = const_hex::encode(nonce.0);
        let text = format!("1.{time}.{nonce_text}.{}", const_hex::encode(mac.as_ref()));
        let (name, said) = subject.field();
        if let (Ok(value), Ok(said)) = (HeaderValue::try_from(text), HeaderValue::try_from(said)) {
            headers.insert(PEER, value);
            headers.insert(name, said);
        }
        Ok(nonce)
    }

    /// The nonce of a request and what it is about, if a replica sent it lately, and for the first time.
    pub fn check<'a>(
        &self,
        headers: &'a HeaderMap,
        (method, target): (&str, &str),
        now: SystemTime,
    ) -> Option<(Nonce, Subject<'a>)> {
        let mark = headers.get(PEER)?.to_str().ok()?;
        let subject = Subject::of(headers)?;
        let mut parts = mark.strip_prefix("1.")?.split('.');
        let time: u64 = digits(parts.next()?)?;
        let nonce = Nonce(const_hex::decode_to_array(parts.next()?).ok()?);
        let mac: [u8; 32] = const_hex::decode_to_array(parts.next()?).ok()?;
        let asked = Asked {
            method,
            target,
            subject,
        };
        if parts.next().is_some() || seconds(now).abs_diff(time) > WINDOW.as_secs() {
            return None;
        }
        hmac::verify(&self.key, &request(asked, time, nonce), &mac).ok()?;
        self.seen
            .lock()
            .note(nonce, now)
            .then_some((nonce, subject))
    }

    /// Adds the mark to the answer to a request with this nonce.
    pub fn mark_answer(&self, nonce: Nonce, status: u16, headers: &mut HeaderMap) {
        let mac = hmac::sign(&self.key, &answer(nonce, status, headers));
        let text = format!("1.{}", const_hex::encode(mac.as_ref()));
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(PEER, value);
        }
    }

    /// Whether a replica gave this answer to the request with this nonce.
    pub fn is_answer(&self, nonce: Nonce, status: u16, headers: &HeaderMap) -> bool {
        let mark = headers.get(PEER).and_then(|mark| mark.to_str().ok());
        let mac = mark.and_then(|mark| const_hex::decode(mark.strip_prefix("1.")?).ok());
        let verified =
            mac.map(|mac| hmac::verify(&self.key, &answer(nonce, status, headers), &mac));
        matches!(verified, Some(Ok(())))
    }
}

impl Seen {
    /// Whether the nonce is new and there is room for it.
    fn note(&mut self, nonce: Nonce, now: SystemTime) -> bool {
        // A mark is valid from half of this before its time to half of this after it.
        let age = now.duration_since(self.since);
        if age.is_ok_and(|age| age > WINDOW * 2) {
            self.older = std::mem::take(&mut self.newer);
            self.since = now;
        }
        !self.older.contains(&nonce) && self.newer.len() < MAX_NONCES && self.newer.insert(nonce)
    }
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn request(asked: Asked<'_>, time: u64, Nonce(nonce): Nonce) -> Vec<u8> {
    let Asked {
        method,
        target,
        subject,
    } = asked;
    let (kind, said) = match subject {
        Subject::Upstream(name) => ("request", name),
        Subject::Relayed(caller) => ("relayed request", caller),
    };
    let nonce = const_hex::encode(nonce);
    format!("millpond {kind} 1\n{method}\n{target}\n{said}\n{time}\n{nonce}").into_bytes()
}

fn answer(Nonce(nonce): Nonce, status: u16, headers: &HeaderMap) -> Vec<u8> {
    let nonce = const_hex::encode(nonce);
    let mut text = format!("millpond answer 1\n{nonce}\n{status}").into_bytes();
    for name in &COVERED {
        text.push(b'\n');
        text.extend_from_slice(headers.get(name).map_or(&[], HeaderValue::as_bytes));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: (&str, &str) = ("GET", "/v2/a/blobs/sha256:1?x");

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn marked(marks: &Marks) -> HeaderMap {
        let mut headers = HeaderMap::new();
        marks
            .mark(&mut headers, ASKED, Subject::Upstream("docker.io"), at(100))
            .unwrap();
        headers
    }

    fn is_marked(marks: &Marks, headers: &HeaderMap, asked: (&str, &str), now: u64) -> bool {
        marks.check(headers, asked, at(now)).is_some()
    }

    #[test]
    fn a_mark_counts_once_for_its_request_and_within_its_window() {
        let (one, other) = (
            Marks::new("one secret of many"),
            Marks::new("another of the secrets"),
        );
        let headers = marked(&one);
        assert!(!is_marked(&other, &headers, ASKED, 100));
        assert!(!is_marked(&one, &headers, ("HEAD", ASKED.1), 100));
        assert!(!is_marked(
            &one,
            &headers,
            ("GET", "/v2/a/blobs/sha256:1"),
            100
        ));
        for late in [69, 131, 100_000] {
            assert!(!is_marked(&one, &headers, ASKED, late));
        }
        let mut elsewhere = headers.clone();
        elsewhere.insert(UPSTREAM, HeaderValue::from_static("quay.io"));
        assert!(!is_marked(&one, &elsewhere, ASKED, 100));
        assert!(is_marked(&one, &headers, ASKED, 70));
        for again in 70..=131 {
            assert!(!is_marked(&one, &headers, ASKED, again), "{again}");
        }
    }

    #[test]
    fn a_relayed_request_is_for_the_caller_that_its_mark_covers() {
        let marks = Marks::new("one secret of many");
        let ann = Subject::Relayed("user=ann");
        let relayed = || {
            let mut headers = HeaderMap::new();
            marks.mark(&mut headers, ASKED, ann, at(100)).unwrap();
            headers
        };
        let check = |headers: &HeaderMap| {
            let checked = marks.check(headers, ASKED, at(100));
            checked.map(|(_, subject)| format!("{subject:?}"))
        };
        assert_eq!(check(&relayed()), Some(format!("{ann:?}")));
        let mut other = relayed();
        other.insert(CALLER, HeaderValue::from_static("user=bob"));
        assert_eq!(check(&other), None);
        // A request about an upstream is none for a hosted repository, nor the other way round.
        let mut both = relayed();
        both.insert(UPSTREAM, HeaderValue::from_static("user=ann"));
        assert_eq!(check(&both), None);
        let mut swapped = relayed();
        let caller = swapped.remove(CALLER).unwrap();
        swapped.insert(UPSTREAM, caller);
        assert_eq!(check(&swapped), None);
        let mut swapped = marked(&marks);
        let upstream = swapped.remove(UPSTREAM).unwrap();
        swapped.insert(CALLER, upstream);
        assert_eq!(check(&swapped), None);
        let mut added = marked(&marks);
        added.insert(CALLER, HeaderValue::from_static("user=ann"));
        assert_eq!(check(&added), None);
    }

    #[test]
    fn malformed_marks_are_none() {
        let marks = Marks::new("one secret of many");
        let good = marked(&marks)[PEER].to_str().unwrap().to_owned();
        for text in [
            "",
            "1",
            "1.",
            "1.1.1.1",
            "1.-1.0.0",
            good.trim_start_matches("1."),
            &format!("{good}.0"),
            &good.replacen('1', "2", 1),
        ] {
            let mut headers = marked(&marks);
            headers.insert(PEER, HeaderValue::try_from(text).unwrap());
            assert!(!is_marked(&marks, &headers, ASKED, 100), "{text}");
        }
        assert!(!is_marked(&marks, &HeaderMap::new(), ASKED, 100));
    }

    #[test]
    fn an_answer_is_the_one_to_its_request() {
        let marks = Marks::new("one secret of many");
        let (nonce, other) = (Nonce([1; 16]), Nonce([2; 16]));
        let mut headers = HeaderMap::new();
        headers.insert(AGE, HeaderValue::from_static("7"));
        marks.mark_answer(nonce, 200, &mut headers);
        assert!(marks.is_answer(nonce, 200, &headers));
        assert!(!marks.is_answer(other, 200, &headers));
        assert!(!marks.is_answer(nonce, 404, &headers));
        let mut younger = headers.clone();
        younger.insert(AGE, HeaderValue::from_static("0"));
        assert!(!marks.is_answer(nonce, 200, &younger));
        headers.remove(PEER);
        assert!(!marks.is_answer(nonce, 200, &headers));
    }

    #[test]
    fn the_nonces_are_bounded() {
        let mut seen = Seen {
            newer: HashSet::new(),
            older: HashSet::new(),
            since: at(0),
        };
        let nonce = |number: usize| Nonce((number as u128).to_be_bytes());
        for number in 0..MAX_NONCES {
            assert!(seen.note(nonce(number), at(1)));
        }
        assert!(!seen.note(nonce(MAX_NONCES), at(1)));
        assert!(seen.note(nonce(MAX_NONCES), at(61)));
        assert!(!seen.note(nonce(0), at(62)), "still remembered");
        assert!(seen.note(nonce(1 << 20), at(130)));
        assert_eq!(seen.older.len(), 1);
    }
}
