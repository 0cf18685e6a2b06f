//! The admin socket: the operations, as JSON over HTTP on a unix socket of the data directory. Who
//! may write in that directory may use it; it is never on TCP. Images that are fetched ahead, and content
//! of bundles, have paths of their own.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode};

use super::content::{self, CONTENT, ContentQuery};
use super::operate::{OperateError, Operator};
use super::{Admin, JSON, response};
use crate::error_chain::on_one_line;
use crate::oci::{Classified, ErrorKind};
use crate::server::{Body, Handler, Peer, RequestBody, refused};

/// Largest request, in bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// Largest list of images, in bytes.
const MAX_IMAGES: usize = 4 * 1024 * 1024;
const BYTES: &str = "application/octet-stream";
const EVENTS: &str = "application/x-ndjson";

/// Where images to be fetched are sent to.
pub(super) const WARM: &str = "/warm";
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
        let answer = match request.uri().path() {
            OPERATIONS => self.operate(request.into_body()).await,
            WARM => self.warm(request.into_body()).await,
            CONTENT => Box::pin(self.content(request)).await,
            _ => return Arc::clone(&self.pages).handle(request, peer).await,
        };
        answer.unwrap_or_else(|error| refused(&error))
    }
}

impl AdminSocket {
    async fn operate(&self, body: RequestBody) -> Result<Response<Body>, OperateError> {
        let body = body.read(MAX_REQUEST).await?;
        let json = Box::pin(self.operator.run(serde_json::from_slice(&body)?)).await?;
        Ok(response(StatusCode::OK, JSON, json))
    }

    /// Reads content of the cache, or writes what comes from a bundle.
    async fn content(&self, request: Request<RequestBody>) -> Result<Response<Body>, OperateError> {
        let query = ContentQuery::parse(request.uri().query().unwrap_or_default())?;
        let cache = &self.operator.cache;
        if request.method() == Method::PUT {
            content::write(cache, &query, request.into_body()).await?;
            return Ok(response(StatusCode::OK, JSON, "{}"));
        }
        let mut answer = response(StatusCode::OK, BYTES, Bytes::new());
        *answer.body_mut() = content::read(cache, &query).await?;
        Ok(answer)
    }

    /// Answers with an event a line.
    async fn warm(&self, body: RequestBody) -> Result<Response<Body>, OperateError> {
        let body = body.read(MAX_IMAGES).await?;
        let events = self.operator.warm(serde_json::from_slice(&body)?).await?;
        let lines = events.map(|event| {
            // Numbers and texts can't fail to be written.
            let mut line = serde_json::to_vec(&event).unwrap_or_default();
            line.push(b'\n');
            Ok(Bytes::from(line))
        });
        let mut answer = response(StatusCode::OK, EVENTS, Bytes::new());
        *answer.body_mut() = Body::stream(lines);
        Ok(answer)
    }
}

/// Operators get the same text as the log.
impl Classified for OperateError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Request(_)
            | Self::Selection { .. }
            | Self::Level(_)
            | Self::Name(_)
            | Self::NoServer => ErrorKind::BadRequest,
            Self::Body(_) => ErrorKind::TooLarge,
            Self::NotReady(_) | Self::NotReloaded(_) => ErrorKind::Busy,
            Self::Store(_) => ErrorKind::Internal,
            Self::Deny(error) => error.kind(),
            Self::Pin(error) => error.kind(),
            Self::Import(error) => error.kind(),
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        on_one_line(self).into()
    }
}
