//! What the scripted registry sends back, byte for byte where it matters.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use millpond::oci::ByteRange;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

/// Something that waits until the test opens it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(CancellationToken);

impl Gate {
    pub(crate) fn open(&self) {
        self.0.cancel();
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    framing: Framing,
    /// Body bytes after which the connection is closed.
    cut: Option<usize>,
    /// Body bytes from here on wait for the gate; at none, even the head does.
    gate: Option<(Option<usize>, Gate)>,
    /// The body comes in pieces of so many bytes, with so much time before each.
    trickle: Option<(usize, Duration)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    /// Nothing is sent, and the connection stays open.
    Silence,
    /// Nothing is sent, and the connection is closed.
    HangUp,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            framing: Framing::Length,
            cut: None,
            gate: None,
            trickle: None,
        }
    }

    pub(crate) fn json(body: &serde_json::Value) -> Self {
        Self::new(200, body.to_string()).with("Content-Type", "application/json")
    }

    /// An error document of this status.
    pub(crate) fn error(status: u16) -> Self {
        let document = r#"{"errors":[{"code":"SCRIPTED","message":"as the script says"}]}"#;
        Self::new(status, document).with("Content-Type", "application/json")
    }

    /// `multipart/byteranges` with these parts.
    pub(crate) fn ranges(content: &[u8], parts: &[ByteRange]) -> Self {
        let mut body = Vec::new();
        for part in parts {
            let placed = part.content_range(content.len() as u64);
            let head = format!("\r\n--scripted\r\nContent-Range: {placed}\r\n\r\n");
            body.extend(head.into_bytes());
            let [start, end] = [part.start, part.end].map(|at| usize::try_from(at).unwrap());
            body.extend(&content[start..end]);
        }
        body.extend(b"\r\n--scripted--\r\n");
        let kind = "multipart/byteranges; boundary=scripted";
        Self::new(206, body).with("Content-Type", kind)
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(307, "elsewhere").with("Location", to)
    }

    /// Never answers.
    pub(crate) fn silence() -> Self {
        let framing = Framing::Silence;
        Self {
            framing,
            ..Self::new(200, "")
        }
    }

    pub(crate) fn is_silence(&self) -> bool {
        self.framing == Framing::Silence
    }

    /// Closes the connection instead of answering.
    pub(crate) fn hang_up() -> Self {
        let framing = Framing::HangUp;
        Self {
            framing,
            ..Self::new(200, "")
        }
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// The same head with other bytes of the same number.
    #[must_use]
    pub(crate) fn forged(mut self) -> Self {
        self.body = self.body.iter().map(|byte| byte ^ 1).collect();
        self
    }

    /// Promises everything, and closes after `bytes` of the body.
    #[must_use]
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// Without Content-Length.
    #[must_use]
    pub(crate) fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// The body from byte `at` on waits.
    #[must_use]
    pub(crate) fn gated(mut self, at: usize, gate: &Gate) -> Self {
        self.gate = Some((Some(at), gate.clone()));
        self
    }

    /// Sends `bytes` of the body every `pause`.
    #[must_use]
    pub(crate) fn trickling(mut self, bytes: usize, pause: Duration) -> Self {
        self.trickle = Some((bytes, pause));
        self
    }

    /// All of it waits, the head included.
    #[must_use]
    pub(crate) fn held(mut self, gate: &Gate) -> Self {
        self.gate = Some((None, gate.clone()));
        self
    }

    /// Sends it; false when the connection is to be closed.
    pub(super) async fn send(
        self,
        to: &mut (impl AsyncWrite + Unpin),
        is_head: bool,
    ) -> io::Result<bool> {
        match self.framing {
            Framing::Silence | Framing::HangUp => return Ok(false),
            Framing::Length | Framing::Chunked => {}
        }
        let gated_at = match &self.gate {
            Some((None, gate)) => {
                gate.0.cancelled().await;
                None
            }
            Some((Some(at), _)) => Some(*at),
            None => None,
        };
        to.write_all(self.head().as_bytes()).await?;
        if is_head {
            to.flush().await?;
            return Ok(true);
        }
        if let Some((bytes, pause)) = self.trickle {
            for piece in self.body.chunks(bytes) {
                tokio::time::sleep(pause).await;
                self.send_piece(to, piece).await?;
            }
            return Ok(true);
        }
        let end = self.cut.unwrap_or(self.body.len()).min(self.body.len());
        let middle = gated_at.unwrap_or(end).min(end);
        self.send_piece(to, &self.body[..middle]).await?;
        if let (Some(_), Some((_, gate))) = (gated_at, &self.gate) {
            to.flush().await?;
            gate.0.cancelled().await;
        }
        self.send_piece(to, &self.body[middle..end]).await?;
        if self.cut.is_none() && self.framing == Framing::Chunked {
            to.write_all(b"0\r\n\r\n").await?;
        }
        to.flush().await?;
        Ok(self.cut.is_none())
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        let framing = match self.framing {
            Framing::Chunked => "Transfer-Encoding: chunked".to_owned(),
            _ => format!("Content-Length: {}", self.body.len()),
        };
        head + &framing + "\r\n\r\n"
    }

    async fn send_piece(&self, to: &mut (impl AsyncWrite + Unpin), piece: &[u8]) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        if self.framing == Framing::Chunked {
            to.write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                .await?;
            to.write_all(piece).await?;
            to.write_all(b"\r\n").await?;
        } else {
            to.write_all(piece).await?;
        }
        to.flush().await
    }
}
