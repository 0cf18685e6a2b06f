//! One upstream, or one of its endpoints: the way to it, its API, the credentials, its rate limit.

use std::sync::Arc;

use super::clocks;
use super::finding::Findings;
use super::reach::{Server, Side};
use crate::app::{self, StartError};
use crate::cli::handshake::Trust;
use crate::clock::Clock;
use crate::config::{self, Authorize, Credentials, Timeouts};
use crate::copy::image::Image;
use crate::error_chain::on_one_line;
use crate::oci::{Reference, RepoName};
use crate::upstream::{Challenged, Failure, Observation, Upstream, UpstreamError};

/// A repository that Docker Hub always has, by which it tells its rate limit. A HEAD counts as no pull.
const HUB_SAMPLE: &str = "docker.io/library/hello-world";
/// The repository that a token is asked for where no image is named. It needn't exist.
const ANY_REPOSITORY: &str = "millpond/doctor";
/// The share of a rate limit, in percent, that should be left.
pub(super) const LOW: u64 = 10;

/// An upstream of the configuration.
#[derive(Debug)]
pub(super) struct UpstreamCheck<'a> {
    pub(super) config: &'a config::Upstream,
    /// Which of several endpoints it is.
    pub(super) endpoint: Option<&'a config::Endpoint>,
    /// The file and the line of its section.
    pub(super) place: String,
    pub(super) timeouts: Timeouts,
    /// An image of this upstream, if the operator names one.
    pub(super) image: Option<&'a Image>,
    pub(super) clock: Clock,
}

impl UpstreamCheck<'_> {
    pub(super) fn subject(&self) -> String {
        let name = &self.config.name;
        match self.endpoint {
            Some(endpoint) => format!("upstream {name} at {}", endpoint.label()),
            None => format!("upstream {name}"),
        }
    }

    pub(super) async fn run(&self, found: &mut Findings) {
        let client = self.client(self.config.credentials.clone());
        let files = app::tls_files(self.config);
        let (client, files) = match (client, files) {
            (Ok(client), Ok(files)) => (client, files),
            (Err(error), _) | (_, Err(error)) => {
                let fix = format!("correct the files that {} names", self.place);
                found.fail("setup", on_one_line(&error), fix);
                return;
            }
        };
        if client.is_proxied() {
            let text = "a forward proxy is used: name, connection and TLS aren't checked";
            found.ok("proxy", text);
        } else {
            let trust = Trust {
                ca: files.ca,
                ca_only: self.config.ca_only,
                identity: files.identity,
                insecure: self.config.insecure,
                minimum: self.config.minimum_tls,
            };
            let server = Server {
                url: &self.config.url,
                trust: &trust,
                side: Side::Upstream,
                clock: self.clock,
            };
            if server.reach(found).await.is_none() {
                return;
            }
        }
        match client.observe_base().await {
            Ok(base) => {
                found.ok("api", format!("{} answers /v2/", self.config.url));
                clocks::compare(base.date, self.clock, "upstream", found);
                self.credentials(&client, &base, found).await;
            }
            Err(error) => self.no_registry(&error, found),
        }
    }

    /// The client with this account, which no other one replaces.
    fn client(&self, account: Option<Credentials>) -> Result<Upstream, StartError> {
        let config = config::Upstream {
            credentials: account,
            accounts: Vec::new(),
            ..self.config.clone()
        };
        app::upstream_client(&config, self.timeouts, self.clock, &Arc::default())
    }

    fn no_registry(&self, error: &UpstreamError, found: &mut Findings) {
        let text = on_one_line(error);
        let place = &self.place;
        let fix = match error.failure {
            Failure::RateLimited { .. } => {
                "wait, or configure an account with a higher limit".into()
            }
            Failure::Unavailable { .. } => "wait: the upstream fails; see its status page".into(),
            Failure::Timeout { .. } | Failure::Unreachable(_) | Failure::Broken { .. } => {
                format!("check `proxyurl` and firewalls for the upstream at {place}")
            }
            _ => format!("correct `remoteurl` at {place}: no registry is there"),
        };
        found.fail("api", format!("/v2/ isn't a registry's: {text}"), fix);
    }

    async fn credentials(&self, client: &Upstream, base: &Observation, found: &mut Findings) {
        if self.config.caller.authorize == Authorize::Caller {
            let text = "each client uses its own account (`authorize: caller`): none is checked";
            found.ok("credentials", text);
            return;
        }
        if let (Some(Challenged::Bearer { realm, withheld }), true) =
            (&base.challenge, self.has_credentials())
            && *withheld
        {
            let text = format!(
                "the credentials are never sent to the token service {realm}, which is on another site"
            );
            let fix = format!("add `realm: {realm}` at {}, if you trust it", self.place);
            found.warn("credentials", text, fix);
            return;
        }
        self.repository_credentials(client, found).await;
        let Some((repo, reference)) = self.sample() else {
            return;
        };
        self.further_accounts(&repo, found).await;
        let has_account = self.config.credentials.is_some();
        match client.sign_in(&repo).await {
            Ok(_) if base.challenge.is_none() && has_account => {
                let text = "/v2/ asks for no login, so the credentials aren't checked";
                found.ok("credentials", text);
            }
            Ok(_) if has_account => found.ok("credentials", "the credentials are accepted"),
            Ok(_) => {
                let text = "none are configured, and anonymous requests are answered";
                found.ok("credentials", text);
            }
            Err(error) => {
                self.refused(&error, &repo, base, found);
                return;
            }
        }
        // Other registries send no limit, and an invented repository would be asked for.
        if !self.is_invented() {
            let observed = client.observe_manifest(&repo, &reference).await;
            self.rate_limit(observed, found);
        }
    }

    /// The `accounts` that share the requests.
    async fn further_accounts(&self, repo: &RepoName, found: &mut Findings) {
        for (index, account) in self.config.accounts.iter().enumerate() {
            let Ok(client) = self.client(Some(account.clone())) else {
                continue;
            };
            let which = format!("of `accounts[{index}]`");
            self.signed_in(client.sign_in(repo).await, &which, found);
        }
    }

    /// Those for some repositories, each with an invented repository that it is for.
    async fn repository_credentials(&self, client: &Upstream, found: &mut Findings) {
        for item in &self.config.repository_credentials {
            let Some(pattern) = item.repositories.first() else {
                continue;
            };
            let Ok(repo) = pattern.to_string().replace('*', "x").parse::<RepoName>() else {
                continue;
            };
            let which = format!("for {pattern}");
            self.signed_in(client.sign_in(&repo).await, &which, found);
        }
    }

    /// Adds how the upstream has answered to further credentials. `which` follows "the credentials".
    fn signed_in(
        &self,
        answer: Result<Observation, UpstreamError>,
        which: &str,
        found: &mut Findings,
    ) {
        let error = match answer {
            Err(UpstreamError {
                failure: Failure::CredentialsRefused { status: 403, .. } | Failure::Denied(_),
                ..
            })
            | Ok(_) => {
                return found.ok(
                    "credentials",
                    format!("the credentials {which} are accepted"),
                );
            }
            Err(error) => error,
        };
        let (text, place) = (on_one_line(&error), &self.place);
        match error.failure {
            Failure::CredentialsRefused { .. } | Failure::Unauthorized(_) => {
                let text = format!("the credentials {which} are wrong: {text}");
                let fix = format!("correct them in the section of the upstream at {place}");
                found.fail("credentials", text, fix);
            }
            Failure::NoCredentials(_) => {
                let text = format!("the credentials {which} can't be had: {text}");
                let fix = format!("correct their source in the section of the upstream at {place}");
                found.fail("credentials", text, fix);
            }
            _ => {
                let text = format!("the credentials {which} can't be checked: {text}");
                found.warn("credentials", text, "try again when the upstream answers");
            }
        }
    }

    fn refused(
        &self,
        error: &UpstreamError,
        repo: &RepoName,
        base: &Observation,
        found: &mut Findings,
    ) {
        let (text, place) = (on_one_line(error), &self.place);
        let has_account = self.config.credentials.is_some();
        match error.failure {
            // Some token services refuse who asks for what doesn't exist.
            Failure::CredentialsRefused { status: 403, .. } | Failure::Denied(_)
                if self.is_invented() =>
            {
                let text = "the token service answers; --image says what may be pulled";
                found.ok("credentials", text);
            }
            Failure::CredentialsRefused { status: 403, .. } | Failure::Denied(_) => {
                let text = format!("{repo} may not be read: {text}");
                let fix = format!("use an account that may, at {place}");
                found.fail("credentials", text, fix);
            }
            Failure::CredentialsRefused { .. } => {
                let text = format!("the credentials are wrong: {text}");
                let fix = format!("correct user name and password of the upstream at {place}");
                found.fail("credentials", text, fix);
            }
            Failure::NoCredentials(_) => {
                let text = format!("the credentials can't be had: {text}");
                let fix = format!("correct the source of the credentials at {place}");
                found.fail("credentials", text, fix);
            }
            Failure::Unauthorized(_) if !has_account => {
                let text =
                    format!("the upstream asks for credentials, and none are configured: {text}");
                let fix = format!("add `username` and `password` to the upstream at {place}");
                // It may be that only an invented repository needs them.
                let is_certain =
                    !self.is_invented() || matches!(base.challenge, Some(Challenged::Basic));
                if is_certain {
                    found.fail("credentials", text, fix);
                } else {
                    found.warn("credentials", text, fix);
                }
            }
            _ => {
                let text = format!("no token can be had: {text}");
                let fix = "look whether the token service answers; behind a proxy, set `proxyurl`";
                found.fail("credentials", text, fix);
            }
        }
    }

    /// Whether the sample may not exist.
    fn is_invented(&self) -> bool {
        self.image.is_none() && !self.config.is_docker_hub
    }

    fn rate_limit(&self, observed: Result<Observation, UpstreamError>, found: &mut Findings) {
        let fix = if self.has_credentials() {
            "wait, or use an account with a higher limit"
        } else {
            "configure an account (`username`, `password`): its limit is higher, and its own"
        };
        let observed = match observed {
            Ok(observed) => observed,
            Err(error) if matches!(error.failure, Failure::RateLimited { .. }) => {
                found.fail("rate-limit", "no pulls are left: 429", fix);
                return;
            }
            Err(error) => {
                let text = format!("the sample can't be read: {}", on_one_line(&error));
                found.warn("pull", text, "name an image of this upstream with --image");
                return;
            }
        };
        let (Some(limit), Some(left)) = (observed.rate_limit, observed.rate_limit_remaining) else {
            return;
        };
        let text = format!("{left} of {limit} pulls are left");
        match (number(&limit), number(&left)) {
            (Some(limit), Some(left)) if left <= limit * LOW / 100 => {
                found.warn("rate-limit", text, fix);
            }
            _ => found.ok("rate-limit", text),
        }
    }

    fn has_credentials(&self) -> bool {
        self.config.credentials.is_some() || !self.config.repository_credentials.is_empty()
    }

    /// What a token is asked for, by its name there.
    fn sample(&self) -> Option<(RepoName, Reference)> {
        let (repo, reference) = self.plain_sample()?;
        let prefix = self.endpoint.and_then(|endpoint| endpoint.prefix.as_ref());
        let repo = prefix.map_or(repo.clone(), |prefix| repo.below(prefix));
        Some((repo, reference))
    }

    fn plain_sample(&self) -> Option<(RepoName, Reference)> {
        if let Some(image) = self.image {
            return Some((image.repo.clone(), image.reference.clone()));
        }
        if self.config.is_docker_hub {
            let image: Image = HUB_SAMPLE.parse().ok()?;
            return Some((image.repo, image.reference));
        }
        Some((ANY_REPOSITORY.parse().ok()?, "latest".parse().ok()?))
    }
}

/// The number of `76;w=21600`. It is at most a million: it is only compared.
fn number(text: &str) -> Option<u64> {
    let number = text.split(';').next()?.trim().parse::<u64>().ok()?;
    Some(number.min(1_000_000))
}
