//! The parts of a request besides its head: the client that sent it, and its body; and what answers
//! requests.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::body::Body;
use super::socket::{Progress, ReceivingBody};
use crate::auth::Certificate;

/// How long a client may send no byte of a body. A body as a whole has no time limit.
const SILENCE: Duration = Duration::from_mins(1);

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    fn handle(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// The other end of a client's connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// None for a unix socket.
    pub address: Option<IpAddr>,
    /// Address and port for people, or `unix`.
    pub name: Arc<str>,
    /// The certificate that the client proved to own.
    pub certificate: Option<Arc<Certificate>>,
    /// Whether the connection uses TLS.
    pub is_secure: bool,
}

impl Peer {
    pub(super) fn tcp(address: SocketAddr) -> Self {
        Self {
            address: Some(address.ip()),
            name: address.to_string().into(),
            certificate: None,
            is_secure: false,
        }
    }
}

/// The body of a request, not read yet. Dropping it discards what the client still sends.
#[derive(Debug)]
pub enum RequestBody {
    Empty,
    /// With what tells the socket that it is being received. In memory of its own, because most requests have none.
    Http1(Box<(Incoming, ReceivingBody)>),
    Http2(h2::RecvStream),
}

/// Why a request's body can't be read.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    #[error("the body broke off: {0}")]
    Http1(#[from] hyper::Error),
    #[error("the body broke off: {0}")]
    Http2(#[from] h2::Error),
    #[error("no byte of the body came within {SILENCE:?}")]
    Silent,
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
}

impl RequestBody {
    /// The body that follows a head.
    pub(super) fn http1(body: Incoming, progress: &Arc<Progress>) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        Self::Http1(Box::new((body, progress.body_begins())))
    }

    /// The next bytes, at least one, which must come within a minute; none at the end of a complete body. Cancel
    /// safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RequestBodyError> {
        let next = timeout(SILENCE, self.received()).await;
        next.unwrap_or(Err(RequestBodyError::Silent))
    }

    async fn received(&mut self) -> Result<Option<Bytes>, RequestBodyError> {
        loop {
            let bytes = match self {
                Self::Empty => None,
                Self::Http1(receiving) => {
                    let frame = receiving.0.frame().await.transpose()?;
                    // Trailers say nothing here.
                    frame.map(|frame| frame.into_data().unwrap_or_default())
                }
                Self::Http2(stream) => {
                    let bytes = stream.data().await.transpose()?;
                    if let Some(bytes) = &bytes {
                        stream.flow_control().release_capacity(bytes.len())?;
                    }
                    bytes
                }
            };
            if bytes.as_ref().is_none_or(|bytes| !bytes.is_empty()) {
                return Ok(bytes);
            }
        }
    }

    /// Whether nothing more comes, as far as the body's head tells.
    pub(super) fn is_at_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(receiving) => receiving.0.is_end_stream(),
            Self::Http2(stream) => stream.is_end_stream(),
        }
    }

    /// Reads the whole body, of at most `max` bytes.
    pub async fn read(mut self, max: usize) -> Result<Bytes, RequestBodyError> {
        let mut body = BytesMut::new();
        while let Some(data) = self.next().await? {
            if body.len() + data.len() > max {
                return Err(RequestBodyError::TooLarge(max));
            }
            body.extend_from_slice(&data);
        }
        Ok(body.freeze())
    }
}
