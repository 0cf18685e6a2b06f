//! Small documents from servers that are no registries: the keys of issuers of tokens.

use std::time::Duration;

use reqwest::Client;
use tokio::time::timeout;
use url::Url;

use super::clients::authorities;
use super::error::SetupError;
use super::reply::shared;
use crate::config::is_loopback;

/// Fetches documents over https. It follows no redirect, and sends no credentials.
#[derive(Debug)]
pub struct Documents(Client);

/// Why a document can't be fetched. No variant shows a query.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("its address is not an https:// URL")]
    Address,
    #[error("the server can't be reached")]
    Http(#[source] reqwest::Error),
    #[error("the server answered with status {0}")]
    Status(u16),
    #[error("the document has more than {0} bytes")]
    TooLarge(usize),
    #[error("the server didn't answer within {0:?}")]
    Timeout(Duration),
}

impl Documents {
    /// `ca_pem` holds certificates that are trusted besides the system's.
    pub fn new(ca_pem: Option<&[u8]>) -> Result<Self, SetupError> {
        let mut builder = Client::builder().redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = ca_pem {
            builder = builder.tls_certs_merge(authorities(pem)?);
        }
        let built = builder.build();
        // A system without CA certificates can still ask this machine over plain http.
        let built = built.or_else(|_| {
            let builder = Client::builder().redirect(reqwest::redirect::Policy::none());
            builder.tls_certs_only([]).build()
        });
        built
            .map(Self)
            .map_err(|error| SetupError::Tls(shared(error)))
    }

    /// Fetches a document of at most `max` bytes within `deadline`. Plain http is for this machine
    /// only.
    pub async fn get(
        &self,
        address: &str,
        max: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, DocumentError> {
        let url = Url::parse(address).map_err(|_not_a_url| DocumentError::Address)?;
        if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
            return Err(DocumentError::Address);
        }
        let fetched = timeout(deadline, self.fetch(url, max)).await;
        fetched.unwrap_or(Err(DocumentError::Timeout(deadline)))
    }

    async fn fetch(&self, url: Url, max: usize) -> Result<Vec<u8>, DocumentError> {
        let failed = |error: reqwest::Error| DocumentError::Http(error.without_url());
        let mut response = self.0.get(url).send().await.map_err(failed)?;
        if response.status() != http::StatusCode::OK {
            return Err(DocumentError::Status(response.status().as_u16()));
        }
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if document.len() + chunk.len() > max {
                return Err(DocumentError::TooLarge(max));
            }
            document.extend_from_slice(&chunk);
        }
        Ok(document)
    }
}
