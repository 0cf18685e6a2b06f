//! As much of HTTP/2 as a client needs that opens streams and takes no bytes (RFC 9113, RFC 7541).

use std::collections::HashMap;
use std::io::Read as _;
use std::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM_AND_HEADERS: u8 = 5;
const WINDOW_UPDATE: u8 = 8;
const INITIAL_WINDOW_SIZE: u8 = 4;
/// The most that a window can be.
pub(crate) const MAX_WINDOW: u32 = (1 << 31) - 1;
/// What a connection's is at first.
const DEFAULT_WINDOW: u32 = 65_535;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What a client sends to ask for `path` on so many streams with this window; the
/// connection's is as large as can be.
pub(crate) fn opening(window: u32, path: &str, streams: usize) -> Vec<u8> {
    let mut settings = vec![0, INITIAL_WINDOW_SIZE];
    settings.extend(window.to_be_bytes());
    let mut opening = PREFACE.to_vec();
    opening.extend(frame(SETTINGS, 0, 0, &settings));
    let more = (MAX_WINDOW - DEFAULT_WINDOW).to_be_bytes();
    opening.extend(frame(WINDOW_UPDATE, 0, 0, &more));
    // From the static table: GET, http. Literals without indexing: the path, the authority.
    let mut head = vec![0x82, 0x86];
    for (index, value) in [(0x04, path), (0x01, "x")] {
        head.extend([index, u8::try_from(value.len()).unwrap()]);
        head.extend(value.as_bytes());
    }
    for stream in 0..u32::try_from(streams).unwrap() {
        opening.extend(frame(
            HEADERS,
            END_STREAM_AND_HEADERS,
            2 * stream + 1,
            &head,
        ));
    }
    opening
}

/// What the server has answered on one connection.
#[derive(Default)]
pub(crate) struct Answers {
    unread: Vec<u8>,
    /// Bytes of the body of each stream.
    bodies: HashMap<u32, u32>,
}

impl Answers {
    /// Streams of which so many bytes of the body have come.
    pub(crate) fn full(&self, bytes: u32) -> usize {
        self.bodies.values().filter(|body| **body == bytes).count()
    }

    pub(crate) fn read(&mut self, stream: &mut TcpStream) {
        let mut some = [0; 16 * 1024];
        let read = stream.read(&mut some).unwrap();
        assert!(read > 0, "the server has closed the connection");
        self.unread.extend(&some[..read]);
        while let Some(head) = self.unread.get(..9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let (kind, id) = (
                head[3],
                u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            );
            let whole = 9 + usize::try_from(length).unwrap();
            if self.unread.len() < whole {
                return;
            }
            assert_ne!(kind, GOAWAY, "the server gives up the connection");
            if kind == DATA {
                *self.bodies.entry(id).or_default() += length;
            }
            self.unread.drain(..whole);
        }
    }
}
