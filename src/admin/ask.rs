//! Asks a running server for one of its pages for operators.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::TaskTracker;

use crate::error_chain::on_one_line;

/// Largest page, in bytes.
const MAX_PAGE: usize = 1024 * 1024;

/// Where a server answers operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The path of a socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

/// Why a server doesn't answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("can't connect to {place}: {source}")]
    Connect { place: String, source: io::Error },
    #[error("{place} doesn't speak HTTP, or broke off: {source}")]
    Broken { place: String, source: hyper::Error },
    #[error("the answer of {place} can't be read: {reason}")]
    Body { place: String, reason: String },
    #[error("{0:?} is no path of a page")]
    Path(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

impl Place {
    /// Sends a GET for `path`. Returns status and body. Waits without end: the caller bounds the time.
    /// `tasks` owns the connection.
    pub async fn get(
        &self,
        path: &str,
        tasks: &TaskTracker,
    ) -> Result<(StatusCode, Bytes), AskError> {
        let connect = |source| self.unreachable(source);
        match self {
            Self::Unix(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(connect)?;
                self.get_on(stream, path, tasks).await
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(connect)?;
                self.get_on(stream, path, tasks).await
            }
        }
    }

    /// That no connection could be made.
    pub fn unreachable(&self, source: io::Error) -> AskError {
        AskError::Connect {
            place: self.to_string(),
            source,
        }
    }

    /// The same as [`get`](Self::get) on a connection that the caller has made.
    pub async fn get_on(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        path: &str,
        tasks: &TaskTracker,
    ) -> Result<(StatusCode, Bytes), AskError> {
        let host = match self {
            Self::Unix(_) => "localhost",
            Self::Tcp(address) => address,
        };
        let broken = |source| AskError::Broken {
            place: self.to_string(),
            source,
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %on_one_line(&error), "the connection ended");
            }
        });
        let request = Request::get(path).body(Empty::<Bytes>::new());
        let (Ok(mut request), Ok(host)) = (request, HeaderValue::try_from(host)) else {
            return Err(AskError::Path(path.to_owned()));
        };
        request.headers_mut().insert(HOST, host);
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_PAGE).collect().await;
        let body = body.map_err(|error| AskError::Body {
            place: self.to_string(),
            reason: error.to_string(),
        })?;
        Ok((status, body.to_bytes()))
    }
}
