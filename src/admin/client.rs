//! A command's connection to the admin socket of a running server.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;

use super::content::ContentQuery;
use super::operate::Operation;
use super::socket::WARM;
use crate::copy::warm::{Event, WarmRequest};
use crate::error_chain::on_one_line;
use crate::oci::error::first_error;

/// Longest line of an answer that has events, in bytes: the contents of the largest image.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// Why the socket of a running server gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("can't connect to {path}: {source}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("the server at {path} broke off: {source}")]
    Broken { path: PathBuf, source: hyper::Error },
    #[error("the server at {path} broke off: {source}")]
    Upload { path: PathBuf, source: io::Error },
    #[error("the server refused: {0}")]
    Refused(String),
    #[error("the request can't be made, or its answer can't be read: {0}")]
    Request(#[from] serde_json::Error),
    #[error(transparent)]
    Uri(#[from] http::uri::InvalidUri),
    #[error("the server's answer has a line of more than {MAX_LINE} bytes")]
    Line,
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

    /// The server's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the server carry out an operation. Returns its result as JSON. The server is the
    /// operator's own: its answers are bounded by its pages.
    pub async fn run(&mut self, operation: &Operation) -> Result<Bytes, ClientError> {
        let request = Request::new(Full::from(serde_json::to_vec(operation)?));
        let body = self.send(request).await?;
        let whole = body.collect().await;
        Ok(whole.map_err(|source| self.broken(source))?.to_bytes())
    }

    /// Has the server fetch images. Dropping the result ends that.
    pub async fn warm(mut self, request: &WarmRequest) -> Result<Events, ClientError> {
        let mut request = Request::new(Full::from(serde_json::to_vec(request)?));
        *request.uri_mut() = http::Uri::from_static(WARM);
        let body = self.send(request).await?;
        Ok(Events {
            client: self,
            body,
            line: BytesMut::new(),
        })
    }

    /// Reads content of a repository. Nothing of it is verified here.
    pub async fn content(
        &mut self,
        query: &ContentQuery,
    ) -> Result<ContentStream<'_>, ClientError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = query.uri()?;
        let body = self.send(request).await?;
        Ok(ContentStream { client: self, body })
    }

    /// Sends a request. Returns the body of its answer, unless that is a refusal.
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Incoming, ClientError> {
        let sent = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        let answer = sent.await.map_err(|source| self.broken(source))?;
        let (head, body) = answer.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        let body = body.collect().await.map_err(|source| self.broken(source))?;
        Err(ClientError::Refused(told(&body.to_bytes())))
    }

    fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Broken {
            path: self.path.clone(),
            source,
        }
    }
}

/// Content that is being read.
#[derive(Debug)]
pub struct ContentStream<'a> {
    client: &'a Client,
    body: Incoming,
}

impl ContentStream<'_> {
    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| self.client.broken(source))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// What the body of a refusal says.
pub(super) fn told(body: &[u8]) -> String {
    let told = first_error(body).map(|(_code, message)| message);
    told.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

/// The events of images that are being fetched.
#[derive(Debug)]
pub struct Events {
    client: Client,
    body: Incoming,
    /// What has been read of the next ones.
    line: BytesMut,
}

impl Events {
    /// The connection, once all events have been read.
    pub fn into_client(self) -> Client {
        self.client
    }

    /// The next event; none at the end.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line = self.line.split_to(end + 1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.line.len() > MAX_LINE {
                return Err(ClientError::Line);
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            let frame = frame.map_err(|source| self.client.broken(source))?;
            if let Ok(data) = frame.into_data() {
                self.line.extend_from_slice(&data);
            }
        }
    }
}
