//! The collector of traces, which takes OTLP over HTTP.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, redirect};
use tokio::time::timeout;
use url::Url;

use super::clients::USER_AGENT;
use super::error::SetupError;
use super::reply::shared;
use crate::config;

/// Largest response that is read, in bytes; they hold a number and a message.
const MAX_RESPONSE: usize = 64 * 1024;

/// Sends spans to a collector. It follows no redirect.
#[derive(Debug)]
pub struct Collector {
    client: Client,
    endpoint: Url,
    headers: HeaderMap,
    deadline: Duration,
}

/// Why a collector hasn't taken spans. No variant shows the URL's query.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    #[error("the collector of traces can't be reached")]
    Http(#[source] reqwest::Error),
    #[error("the collector of traces answered with status {0}")]
    Status(u16),
    #[error("the collector of traces sent more than {MAX_RESPONSE} bytes")]
    TooLarge,
    #[error("the collector of traces didn't answer within {0:?}")]
    Timeout(Duration),
}

impl CollectorError {
    /// Whether the same request may succeed later (OTLP, "Retryable Response Codes").
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Http(_) | Self::Timeout(_) => true,
            Self::Status(status) => matches!(status, 429 | 502..=504),
            Self::TooLarge => false,
        }
    }
}

impl Collector {
    /// Sets up the client; nothing is sent.
    pub fn new(tracing: &config::Tracing) -> Result<Self, SetupError> {
        let builder = || {
            Client::builder()
                .user_agent(USER_AGENT)
                .redirect(redirect::Policy::none())
        };
        let built = builder().build();
        // A system without CA certificates can still speak to a collector over plain http.
        let built = built.or_else(|error| match tracing.endpoint.scheme() {
            "http" => builder().tls_certs_only([]).build(),
            _ => Err(error),
        });
        let mut headers = tracing.headers.clone();
        let protobuf = HeaderValue::from_static("application/x-protobuf");
        headers.insert(CONTENT_TYPE, protobuf);
        Ok(Self {
            client: built.map_err(|error| SetupError::Tls(shared(error)))?,
            endpoint: tracing.endpoint.clone(),
            headers,
            deadline: tracing.timeout,
        })
    }

    /// Sends a request of OTLP. Returns the body of the response.
    pub async fn post(&self, body: Vec<u8>) -> Result<Vec<u8>, CollectorError> {
        let sent = timeout(self.deadline, self.exchange(body)).await;
        sent.unwrap_or(Err(CollectorError::Timeout(self.deadline)))
    }

    async fn exchange(&self, body: Vec<u8>) -> Result<Vec<u8>, CollectorError> {
        let failed = |error: reqwest::Error| CollectorError::Http(error.without_url());
        let request = self.client.post(self.endpoint.clone());
        let request = request.headers(self.headers.clone()).body(body);
        let mut response = request.send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(CollectorError::Status(response.status().as_u16()));
        }
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if document.len() + chunk.len() > MAX_RESPONSE {
                return Err(CollectorError::TooLarge);
            }
            document.extend_from_slice(&chunk);
        }
        Ok(document)
    }
}
