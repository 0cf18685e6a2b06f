//! The admin socket: the operations, as JSON over HTTP on a unix socket of the data directory. Who
//! may write in that directory may use it; it is never on TCP.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;

use super::operate::{OperateError, Operation, Operator};
use super::{Admin, JSON, response};
use crate::error_chain::on_one_line;
use crate::oci::error::first_error;
use crate::oci::{Classified, ErrorKind};
use crate::server::{Body, Handler, Peer, RequestBody, refused};

/// Largest request, in bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// Where operations are sent to; the other paths are those of the listeners for operators.
const OPERATIONS: &str = "/";

/// Answers on the admin socket.
#[derive(Debug)]
pub struct AdminSocket {
    pub operator: Operator,
    pub pages: Arc<Admin>,
}

impl Handler for AdminSocket {
    async fn handle(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        if request.uri().path() != OPERATIONS {
            return Arc::clone(&self.pages).handle(request, peer).await;
        }
        let answer = async {
            let body = request.into_body().read(MAX_REQUEST).await?;
            self.operator.run(serde_json::from_slice(&body)?).await
        };
        match answer.await {
            Ok(json) => response(StatusCode::OK, JSON, json),
            Err(error) => refused(&error),
        }
    }
}

/// Operators get the same text as the log.
impl Classified for OperateError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Request(_) | Self::Selection { .. } | Self::Level(_) | Self::NoServer => {
                ErrorKind::BadRequest
            }
            Self::Body(_) => ErrorKind::TooLarge,
            Self::NotReady(_) | Self::NotReloaded(_) => ErrorKind::Busy,
            Self::Store(_) => ErrorKind::Internal,
            Self::Deny(error) => error.kind(),
            Self::Pin(error) => error.kind(),
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        on_one_line(self).into()
    }
}

/// Why the socket of a running server gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("can't connect to {path}: {source}")]
    Connect {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the server at {path} broke off: {source}")]
    Broken { path: PathBuf, source: hyper::Error },
    #[error("the server refused: {0}")]
    Refused(String),
    #[error("the request can't be made: {0}")]
    Request(#[from] serde_json::Error),
}

/// A command line's connection to a running server.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects. `tasks` owns the connection.
    pub async fn connect(
        path: &Path,
        tasks: &tokio_util::task::TaskTracker,
    ) -> Result<Self, ClientError> {
        let path = path.to_owned();
        let stream = match tokio::net::UnixStream::connect(&path).await {
            Ok(stream) => hyper_util::rt::TokioIo::new(stream),
            Err(source) => return Err(ClientError::Connect { path, source }),
        };
        let (sender, connection) = match http1::handshake(stream).await {
            Ok(connected) => connected,
            Err(source) => return Err(ClientError::Broken { path, source }),
        };
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %on_one_line(&error), "the admin connection ended");
            }
        });
        Ok(Self { path, sender })
    }

    /// Has the server carry out an operation. Returns its result as JSON. The server is the
    /// operator's own: its answers are bounded by its pages.
    pub async fn run(&mut self, operation: &Operation) -> Result<Bytes, ClientError> {
        let request = Request::new(Full::new(serde_json::to_vec(operation)?.into()));
        let sent = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            Ok((head.status, body.collect().await?.to_bytes()))
        };
        let (status, body) = sent.await.map_err(|source| ClientError::Broken {
            path: self.path.clone(),
            source,
        })?;
        if status.is_success() {
            return Ok(body);
        }
        let told = first_error(&body).map(|(_code, message)| message);
        let text = || String::from_utf8_lossy(&body).into_owned();
        Err(ClientError::Refused(told.unwrap_or_else(text)))
    }
}
