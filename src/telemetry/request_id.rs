//! Request ids: the client's own, or generated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{HeaderMap, HeaderValue};

use super::X_REQUEST_ID;

/// Longest id that is accepted from a client, in bytes.
const MAX_ID: usize = 128;
/// Hexadecimal digits of a generated id: the process's, and the request's.
const PROCESS_DIGITS: usize = 16;
const DIGITS: usize = 28;

/// The id of a request. Clones share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Id);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Id {
    Generated([u8; DIGITS]),
    /// Visible ASCII.
    Client(Arc<str>),
}

/// Generates the ids of one process: a random number that is the process's own, and a counter. They
/// needn't be hard to guess.
#[derive(Debug)]
pub struct RequestIds {
    /// In hexadecimal digits.
    process: [u8; PROCESS_DIGITS],
    next: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self {
            process: const_hex::const_encode::<8, false>(&fastrand::u64(..).to_be_bytes())
                .as_bytes()
                .try_into()
                .unwrap_or([b'0'; PROCESS_DIGITS]),
            next: AtomicU64::new(0),
        }
    }
}

impl RequestIds {
    /// The client's id, if it sends a single one of 1 to [`MAX_ID`] visible ASCII characters; otherwise a
    /// new one.
    pub fn of(&self, headers: &HeaderMap) -> RequestId {
        let given = headers.get(X_REQUEST_ID);
        let given = given.filter(|_| headers.get_all(X_REQUEST_ID).iter().nth(1).is_none());
        given.and_then(accepted).unwrap_or_else(|| self.generate())
    }

    fn generate(&self) -> RequestId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut digits = [0; DIGITS];
        let (process, request) = digits.split_at_mut(self.process.len());
        process.copy_from_slice(&self.process);
        let [_, _, bytes @ ..] = number.to_be_bytes();
        request.copy_from_slice(const_hex::const_encode::<6, false>(&bytes).as_bytes());
        RequestId(Id::Generated(digits))
    }
}

fn accepted(value: &HeaderValue) -> Option<RequestId> {
    let text = value.to_str().ok()?;
    let valid = (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    valid.then(|| RequestId(Id::Client(text.into())))
}

impl RequestId {
    pub fn as_str(&self) -> &str {
        match &self.0 {
            // Hexadecimal digits.
            Id::Generated(digits) => std::str::from_utf8(digits).unwrap_or_default(),
            Id::Client(text) => text,
        }
    }

    /// As the value of a header.
    pub fn header(&self) -> HeaderValue {
        let bytes = match &self.0 {
            Id::Generated(digits) => digits,
            Id::Client(text) => text.as_bytes(),
        };
        HeaderValue::from_bytes(bytes).unwrap_or(HeaderValue::from_static(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ids: &RequestIds, values: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(X_REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
        }
        ids.of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_clients_id_is_taken_if_it_is_one_visible_word() {
        let ids = RequestIds::default();
        let long = "x".repeat(MAX_ID);
        for id in ["a", "7d9f/-_.~\"\\{}", &long] {
            assert_eq!(of(&ids, &[id.as_bytes()]), id);
        }
        let too_long = "x".repeat(MAX_ID + 1);
        for bad in ["", "a b", "a\tb", "\u{e4}", &too_long] {
            let id = of(&ids, &[bad.as_bytes()]);
            assert_eq!(id.len(), DIGITS, "{bad:?}: {id}");
        }
        assert_eq!(of(&ids, &[b"a", b"a"]).len(), DIGITS, "two headers");
        assert_eq!(of(&ids, &[b"\xff\xfe"]).len(), DIGITS);
    }

    #[test]
    fn generated_ids_differ_within_a_process_and_between_processes() {
        let (ids, others) = (RequestIds::default(), RequestIds::default());
        let mut made: Vec<_> = (0..1000).map(|_| of(&ids, &[])).collect();
        made.extend((0..1000).map(|_| of(&others, &[])));
        made.sort_unstable();
        made.dedup();
        assert_eq!(made.len(), 2000);
        assert!(
            made.iter()
                .all(|id| id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
    }
}
