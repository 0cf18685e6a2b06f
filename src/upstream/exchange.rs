//! Sends the requests of one account, or of the one that has most left.

use http::header::HeaderValue;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::error::{Failure, UpstreamError};
use super::limits::Limits;
use super::reply::UpstreamResponse;
use super::transport::UpstreamRequest;
use crate::error_chain::on_one_line;
use crate::oci::RepoName;

impl Endpoint {
    /// Asks with one of the accounts: the one that has most left, of equal ones the one that was used
    /// least; the next one, if that is told to wait or can't be used.
    pub(super) async fn ask_with_accounts(
        &self,
        repo: &RepoName,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let now = Instant::now();
        let mut accounts: Vec<_> = self.accounts().collect();
        accounts.sort_by_cached_key(|auth| auth.general_limits().budget.preference(now));
        let mut last = None;
        for auth in accounts {
            let asked = self.with_account(auth);
            match asked.ask_authenticated(repo, ask).await {
                Err(error) if is_of_account(&error) => {
                    let account = &auth.general_limits().account;
                    tracing::debug!(upstream = self.name(), account, error = %on_one_line(&error), "trying the next account");
                    let is_first = last.is_none();
                    // A limit passes; credentials that are refused don't.
                    if is_first || matches!(error.failure, Failure::RateLimited { .. }) {
                        last = Some(error);
                    }
                }
                answer => return answer,
            }
        }
        // There is always an account.
        Err(last.unwrap_or_else(|| UpstreamError::new(&ask.url, Failure::Busy)))
    }

    /// Sends a request, unless the endpoint has told the account to wait.
    pub(super) async fn exchange(
        &self,
        limits: &Limits,
        ask: &UpstreamRequest,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let patience = self.transport.timeouts.header;
        let mut sending = limits.enter(ask, patience).await.map_err(|pause| {
            limits.withheld();
            let retry_after = Some(pause);
            UpstreamError::new(&ask.url, Failure::RateLimited { retry_after })
        })?;
        let mut result = self.transport.exchange(ask, authorization).await;
        sending.ended(&mut result);
        result
    }
}

/// Whether another account may be answered.
const fn is_of_account(error: &UpstreamError) -> bool {
    matches!(
        error.failure,
        Failure::RateLimited { .. }
            | Failure::CredentialsRefused { .. }
            | Failure::NoCredentials(_)
    )
}
