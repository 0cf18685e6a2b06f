//! The admin socket: the operations, as JSON over HTTP on a unix socket of the data directory. Who
//! may write in that directory may use it; it is never on TCP.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::operate::{OperateError, Operator};
use crate::error_chain::on_one_line;
use crate::oci::error::first_error;
use crate::oci::{Classified, ErrorKind};
use crate::server::{Body, Handler, Peer, RequestBody, RequestBodyError, refused};

/// Largest request, in bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// Answers on the admin socket.
#[derive(Debug)]
pub struct Socket(Operator);

impl Socket {
    pub fn new(operator: Operator) -> Self {
        Self(operator)
    }

    async fn answer(&self, method: &Method, uri: &Uri, body: &[u8]) -> Response<Body> {
        match (method.as_str(), uri.path()) {
            ("GET", "/images") => result(self.0.images(position(uri)).await),
            ("GET", "/entries") => result(self.0.entries(position(uri)).await),
            ("GET", "/leftovers") => result(self.0.leftovers().await),
            ("POST", "/purge") => match serde_json::from_slice(body) {
                Ok(purge) => result(self.0.purge(&purge).await),
                Err(error) => refused(&SocketError::Request(error)),
            },
            ("POST", "/scrub") => match serde_json::from_slice(body) {
                Ok(scrub) => result(self.0.scrub(&scrub).await),
                Err(error) => refused(&SocketError::Request(error)),
            },
            _ => refused(&SocketError::NoSuchOperation),
        }
    }
}

impl Handler for Socket {
    async fn handle(self: Arc<Self>, request: Request<RequestBody>, _peer: Peer) -> Response<Body> {
        let (head, body) = request.into_parts();
        match body.read(MAX_REQUEST).await {
            Ok(body) => self.answer(&head.method, &head.uri, &body).await,
            Err(error) => refused(&SocketError::Body(error)),
        }
    }
}

/// `from` of the query.
fn position(uri: &Uri) -> usize {
    let query = uri.query().and_then(|query| query.strip_prefix("from="));
    query.and_then(|from| from.parse().ok()).unwrap_or(0)
}

fn result<T: Serialize>(result: Result<T, OperateError>) -> Response<Body> {
    let done = match result {
        Ok(done) => done,
        Err(error) => return refused(&error),
    };
    let mut response = Response::new(Body::bytes(serde_json::to_vec(&done).unwrap_or_default()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Why a request on the socket is no operation.
#[derive(Debug, thiserror::Error)]
enum SocketError {
    #[error("no such operation")]
    NoSuchOperation,
    #[error("the request isn't valid: {0}")]
    Request(serde_json::Error),
    #[error(transparent)]
    Body(RequestBodyError),
}

impl Classified for SocketError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchOperation => ErrorKind::NoSuchPath,
            Self::Request(_) => ErrorKind::BadRequest,
            Self::Body(_) => ErrorKind::TooLarge,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }
}

/// Operators get the same text as the log.
impl Classified for OperateError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Selection { .. } => ErrorKind::BadRequest,
            Self::NotReady(_) => ErrorKind::Busy,
            Self::Store(_) => ErrorKind::Internal,
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
    #[error("the server's answer can't be read: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("the request can't be made: {0}")]
    Request(#[from] http::Error),
}

/// A command line's connection to a running server.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    sender: hyper::client::conn::http1::SendRequest<http_body_util::Full<Bytes>>,
}

impl Client {
    /// Connects. `tasks` owns the connection.
    pub async fn connect(
        path: &Path,
        tasks: &tokio_util::task::TaskTracker,
    ) -> Result<Self, ClientError> {
        let stream = tokio::net::UnixStream::connect(path)
            .await
            .map_err(|source| ClientError::Connect {
                path: path.to_owned(),
                source,
            })?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let broken = |source| ClientError::Broken {
            path: path.to_owned(),
            source,
        };
        let (sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .map_err(broken)?;
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %on_one_line(&error), "the admin connection ended");
            }
        });
        Ok(Self {
            path: path.to_owned(),
            sender,
        })
    }

    pub async fn get<T: DeserializeOwned>(&mut self, uri: &str) -> Result<T, ClientError> {
        self.ask(Request::get(uri).body(Bytes::new())?).await
    }

    pub async fn post<T: DeserializeOwned>(
        &mut self,
        uri: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.ask(Request::post(uri).body(serde_json::to_vec(body)?.into())?)
            .await
    }

    /// The server is the operator's own: its answers are bounded by its pages.
    async fn ask<T: DeserializeOwned>(
        &mut self,
        request: Request<Bytes>,
    ) -> Result<T, ClientError> {
        let path = self.path.clone();
        let broken = |source| ClientError::Broken {
            path: path.clone(),
            source,
        };
        let request = request.map(http_body_util::Full::new);
        self.sender.ready().await.map_err(broken)?;
        let response = self.sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(broken)?
            .to_bytes();
        if status.is_success() {
            Ok(serde_json::from_slice(&body)?)
        } else {
            let told = first_error(&body).map(|(_code, message)| message);
            let text = || String::from_utf8_lossy(&body).into_owned();
            Err(ClientError::Refused(told.unwrap_or_else(text)))
        }
    }
}
