//! The parts of a request besides its head: the client that sent it, and its body; and what answers
//! requests.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use super::body::Body;
use crate::auth::Certificate;

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
    /// That of a request that no client sent.
    Empty,
    Http1(Incoming),
    Http2(h2::RecvStream),
}

/// Why a request's body can't be read.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    #[error("the body has more than {max} bytes, or broke off: {source}")]
    Http1 {
        max: usize,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the body broke off: {0}")]
    BrokeOff(#[from] hyper::Error),
    #[error("the body broke off: {0}")]
    Http2(#[from] h2::Error),
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
}

impl RequestBody {
    /// The next part of the body; none at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RequestBodyError> {
        match self {
            Self::Empty => Ok(None),
            Self::Http1(incoming) => {
                while let Some(frame) = incoming.frame().await {
                    // Trailers mean nothing here.
                    if let Ok(data) = frame?.into_data() {
                        return Ok(Some(data));
                    }
                }
                Ok(None)
            }
            Self::Http2(stream) => {
                let data = stream.data().await.transpose()?;
                if let Some(data) = &data {
                    stream.flow_control().release_capacity(data.len())?;
                }
                Ok(data)
            }
        }
    }

    /// Reads the whole body, of at most `max` bytes.
    pub async fn read(self, max: usize) -> Result<Bytes, RequestBodyError> {
        let mut stream: h2::RecvStream = match self {
            Self::Empty => return Ok(Bytes::new()),
            Self::Http1(incoming) => {
                let collected = Limited::new(incoming, max).collect().await;
                let failed = |source| RequestBodyError::Http1 { max, source };
                return Ok(collected.map_err(failed)?.to_bytes());
            }
            Self::Http2(stream) => stream,
        };
        let mut body = BytesMut::new();
        while let Some(data) = stream.data().await.transpose()? {
            if body.len() + data.len() > max {
                return Err(RequestBodyError::TooLarge(max));
            }
            body.extend_from_slice(&data);
            stream.flow_control().release_capacity(data.len())?;
        }
        Ok(body.freeze())
    }
}
