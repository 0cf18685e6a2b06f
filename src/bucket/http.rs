//! The HTTP client of the bucket: deadlines, counts, and bounds of what is read whole.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::header::DATE;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use parking_lot::Mutex;
use reqwest::Client;
use tokio::time::{Instant, timeout};

use super::error::{BucketSetupError, Told};
use crate::metrics::{BucketMetrics, BucketRequest};

const USER_AGENT: &str = concat!("millpond/", env!("CARGO_PKG_VERSION"));
/// How long a body may be silent.
const STALL: Duration = Duration::from_secs(30);
/// How long a list may take until its head, and what is neither a read nor a list; an upload has this time
/// and that which its bytes take.
const SLOW: Duration = Duration::from_secs(30);
/// The slowest upload, in bytes per second.
const SLOWEST: u64 = 256 * 1024;
/// The longest answer that is read whole, in bytes: a list of 1,000 objects has some 500 KiB.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// Idle connections that are kept.
const MAX_IDLE: usize = 32;

/// How the bucket is reached.
#[derive(Debug, Clone)]
pub(super) struct Http {
    pub(super) metrics: Arc<BucketMetrics>,
    pub(super) date: Arc<Date>,
    /// Until the head of the answer to a read.
    pub(super) timeout: Duration,
    pub(super) accepts_invalid_certificates: bool,
}

impl Http {
    /// The connector for the client of the store. Blocks: the system's certificates are read.
    pub(super) fn connector(self) -> Result<Connector, BucketSetupError> {
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.timeout)
            .read_timeout(STALL)
            .pool_max_idle_per_host(MAX_IDLE)
            .tls_danger_accept_invalid_certs(self.accepts_invalid_certificates)
            .http1_only()
            .build();
        let client = client.map_err(|error| BucketSetupError::Client(Arc::new(error)))?;
        Ok(Connector(Arc::new(Service { client, http: self })))
    }
}

/// Gives the one client to whoever asks: the store, and what fetches its credentials.
#[derive(Debug)]
pub(super) struct Connector(Arc<Service>);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Shared(Arc::clone(&self.0))))
    }
}

#[derive(Debug)]
struct Shared(Arc<Service>);

#[async_trait]
impl HttpService for Shared {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.0.call(request).await
    }
}

#[derive(Debug)]
struct Service {
    client: Client,
    http: Http,
}

impl Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let kind = kind(&request);
        let deadline = match kind {
            BucketRequest::Get | BucketRequest::Head => self.http.timeout,
            _ => {
                let bytes = request.body().content_length() as u64;
                SLOW + Duration::from_secs(bytes / SLOWEST)
            }
        };
        let (metrics, started) = (&self.http.metrics, Instant::now());
        let asked = timeout(deadline, HttpService::call(&self.client, request)).await;
        let answer = asked.unwrap_or_else(|_elapsed| {
            let told = Told(format!("no answer within {deadline:?}"));
            Err(HttpError::new(HttpErrorKind::Timeout, told))
        });
        metrics.request(
            kind,
            answer.as_ref().ok().map(|answer| answer.status().as_u16()),
        );
        let mut answer = answer?;
        if kind == BucketRequest::Get {
            metrics.source().answered(started.elapsed());
        }
        self.http.date.note(answer.headers());
        // What begins behind the end of an object isn't there.
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            *answer.status_mut() = StatusCode::NOT_FOUND;
        }
        // Only the content of objects is read piece by piece.
        if kind == BucketRequest::Get && answer.status().is_success() {
            return Ok(answer);
        }
        Ok(answer.map(bounded))
    }
}

fn bounded(body: HttpResponseBody) -> HttpResponseBody {
    let limited = Limited::new(body, MAX_ANSWER);
    HttpResponseBody::new(limited.map_err(|error| {
        let told = Told::of(&*error);
        HttpError::new(HttpErrorKind::Decode, told)
    }))
}

/// What a request is, by its method and query: those of the three kinds of stores.
fn kind(request: &HttpRequest) -> BucketRequest {
    let query = request.uri().query().unwrap_or_default();
    let lists = ["list-type=", "comp=list", "uploads"];
    match *request.method() {
        Method::GET if lists.iter().any(|list| query.contains(list)) => BucketRequest::List,
        Method::GET => BucketRequest::Get,
        Method::HEAD => BucketRequest::Head,
        Method::DELETE => BucketRequest::Delete,
        _ => BucketRequest::Put,
    }
}

/// The bucket's own time, by the `Date` of its last answer.
#[derive(Debug, Default)]
pub(super) struct Date(Mutex<Option<(Instant, SystemTime)>>);

impl Date {
    fn note(&self, headers: &http::HeaderMap) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        if let Some(date) = date {
            *self.0.lock() = Some((Instant::now(), date));
        }
    }

    /// An answer had this date.
    #[cfg(test)]
    pub(super) fn tell(&self, now: SystemTime) {
        *self.0.lock() = Some((Instant::now(), now));
    }

    /// None before the first answer.
    pub(super) fn now(&self) -> Option<SystemTime> {
        let (at, date) = (*self.0.lock())?;
        date.checked_add(at.elapsed())
    }
}
