//! What the scripted registry sends, byte for byte where a test needs that.

use std::fmt::Display;
use std::io;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::line::Line;
use crate::registry::Seen;

/// Closed until the test opens it.
#[derive(Debug, Clone, Default)]
pub struct Gate(CancellationToken);

impl Gate {
    pub fn open(&self) {
        self.0.cancel();
    }

    pub(crate) async fn opened(&self) {
        self.0.cancelled().await;
    }
}

/// A response, and how its connection fares.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
    headers: Vec<(String, String)>,
    framing: Framing,
    /// The Content-Length, where it isn't the body's.
    announced: Option<usize>,
    end: End,
    /// The body waits for the gate at this offset, or the whole response does.
    gate: Option<(Option<usize>, Gate)>,
    /// Bytes of each piece of the body, and the time before it is sent.
    trickle: Option<(usize, Duration)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    /// Neither head nor body is sent.
    Nothing,
}

/// What becomes of the connection after the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    KeepOpen,
    Close,
    /// Sends nothing more until the client closes the connection.
    Stall,
}

/// Where a response is sent.
pub(crate) struct Wire<'a, W> {
    pub(crate) to: W,
    pub(crate) line: &'a Line,
}

impl Reply {
    pub fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self::of(status, Bytes::copy_from_slice(body.as_ref()))
    }

    pub fn ok(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, body)
    }

    pub(crate) fn of(status: u16, body: Bytes) -> Self {
        Self {
            status,
            body,
            headers: Vec::new(),
            framing: Framing::Length,
            announced: None,
            end: End::KeepOpen,
            gate: None,
            trickle: None,
        }
    }

    pub fn json(body: &serde_json::Value) -> Self {
        Self::ok(body.to_string()).with("Content-Type", "application/json")
    }

    /// An error document with this status.
    pub fn error(status: u16) -> Self {
        let document = r#"{"errors":[{"code":"SCRIPTED","message":"as the script says"}]}"#;
        Self::new(status, document).with("Content-Type", "application/json")
    }

    /// A 206 with one range of `content`.
    pub fn range(content: &Bytes, range: Range<u64>) -> Self {
        let placed = content_range(&range, content.len());
        Self::of(206, content.slice(indices(&range))).with("Content-Range", placed)
    }

    /// A 206 with `multipart/byteranges` of `content`.
    pub fn ranges(content: &[u8], parts: &[Range<u64>]) -> Self {
        let mut body = Vec::new();
        for part in parts {
            let placed = content_range(part, content.len());
            let head = format!("\r\n--scripted\r\nContent-Range: {placed}\r\n\r\n");
            body.extend(head.into_bytes());
            body.extend(&content[indices(part)]);
        }
        body.extend(b"\r\n--scripted--\r\n");
        let kind = "multipart/byteranges; boundary=scripted";
        Self::new(206, body).with("Content-Type", kind)
    }

    /// A 307.
    pub fn redirect(to: &str) -> Self {
        Self::new(307, "elsewhere").with("Location", to)
    }

    /// A 401 with a Bearer challenge that names `/token` on the same server.
    pub fn challenge(seen: &Seen, scope: &str) -> Self {
        let realm = format!("{}/token", seen.base());
        let challenge = format!(r#"Bearer realm="{realm}",service="registry",scope="{scope}""#);
        let document = r#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#;
        Self::new(401, document).with("WWW-Authenticate", challenge)
    }

    /// Never responds.
    pub fn silence() -> Self {
        Self {
            framing: Framing::Nothing,
            end: End::Stall,
            ..Self::ok("")
        }
    }

    /// Closes the connection instead of responding.
    pub fn hang_up() -> Self {
        Self {
            framing: Framing::Nothing,
            end: End::Close,
            ..Self::ok("")
        }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same head with other bytes of the same number.
    #[must_use]
    pub fn forged(mut self) -> Self {
        self.body = self.body.iter().map(|byte| byte ^ 1).collect();
        self
    }

    /// Announces the whole body and closes the connection after `bytes` of it.
    #[must_use]
    pub fn cut(mut self, bytes: usize) -> Self {
        let length = self.body.len();
        self.body.truncate(bytes);
        self.announcing(length)
    }

    /// A Content-Length that isn't the body's. The connection is closed after the body. The answer to
    /// a HEAD has no body, and is whole.
    #[must_use]
    pub fn announcing(mut self, length: usize) -> Self {
        self.announced = Some(length);
        self.end = End::Close;
        self
    }

    /// Chunked, without Content-Length, in two chunks.
    #[must_use]
    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// The body from byte `at` on waits for the gate.
    #[must_use]
    pub fn gated(mut self, at: usize, gate: &Gate) -> Self {
        self.gate = Some((Some(at), gate.clone()));
        self
    }

    /// The whole response waits for the gate.
    #[must_use]
    pub fn held(mut self, gate: &Gate) -> Self {
        self.gate = Some((None, gate.clone()));
        self
    }

    /// Sends `bytes` of the body after each `pause`.
    #[must_use]
    pub fn trickling(mut self, bytes: usize, pause: Duration) -> Self {
        self.trickle = Some((bytes, pause));
        self
    }

    /// Nothing follows the body, and the connection stays open.
    #[must_use]
    pub fn then_stall(mut self) -> Self {
        self.end = End::Stall;
        self
    }

    pub(crate) async fn send(
        self,
        wire: &mut Wire<'_, impl AsyncWrite + Unpin>,
        seen: &Seen,
    ) -> io::Result<End> {
        if let Some((None, gate)) = &self.gate {
            gate.opened().await;
        }
        if self.framing == Framing::Nothing {
            return Ok(self.end);
        }
        wire.to.write_all(self.head().as_bytes()).await?;
        if seen.is_head() {
            wire.to.flush().await?;
            return Ok(End::KeepOpen);
        }
        let is_blob = seen.path().contains("/blobs/");
        if let Some((Some(at), gate)) = &self.gate {
            let (before, after) = self.body.split_at((*at).min(self.body.len()));
            self.send_part(wire, before, is_blob).await?;
            wire.to.flush().await?;
            gate.opened().await;
            self.send_part(wire, after, is_blob).await?;
        } else {
            self.send_part(wire, &self.body, is_blob).await?;
        }
        if self.framing == Framing::Chunked && self.end == End::KeepOpen {
            wire.to.write_all(b"0\r\n\r\n").await?;
        }
        wire.to.flush().await?;
        Ok(self.end)
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        let framing = if self.framing == Framing::Chunked {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!(
                "Content-Length: {}",
                self.announced.unwrap_or(self.body.len())
            )
        };
        head + &framing + "\r\n\r\n"
    }

    /// Sends some of the body, in pieces, each as a chunk where the framing says so.
    async fn send_part(
        &self,
        wire: &mut Wire<'_, impl AsyncWrite + Unpin>,
        part: &[u8],
        is_blob: bool,
    ) -> io::Result<()> {
        let chunked = self.framing == Framing::Chunked;
        let (mut size, pause) = self.trickle.unwrap_or((wire.line.piece(), Duration::ZERO));
        if chunked {
            size = size.min(part.len().div_ceil(2));
        }
        for piece in part.chunks(size.max(1)) {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            if chunked {
                let length = format!("{:x}\r\n", piece.len());
                wire.to.write_all(length.as_bytes()).await?;
            }
            wire.to.write_all(piece).await?;
            if chunked {
                wire.to.write_all(b"\r\n").await?;
            }
            wire.to.flush().await?;
            wire.line.spend(piece.len(), is_blob).await;
        }
        Ok(())
    }
}

fn indices(range: &Range<u64>) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

/// The value of Content-Range: `bytes 0-9/100`.
fn content_range(range: &Range<u64>, total: usize) -> String {
    format!("bytes {}-{}/{total}", range.start, range.end - 1)
}
