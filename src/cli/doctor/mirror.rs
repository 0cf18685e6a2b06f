//! The view of a client: a mirror, from its name to a sample pull. The upstream client asks the mirror
//! like any registry, with containerd's `ns` parameter in the query of its URL.

use std::net::SocketAddr;

use url::Url;

use super::clocks;
use super::finding::Findings;
use super::reach::{Server, Side, speaks_tls};
use crate::cli::handshake::Trust;
use crate::clock::Clock;
use crate::config::{Config, Credentials, Timeouts};
use crate::copy::image::Image;
use crate::error_chain::on_one_line;
use crate::metrics::Metrics;
use crate::oci::Accept;
use crate::upstream::{Challenged, Failure, SetupError, TlsFiles, Upstream, UpstreamError};

/// A registry that no mirror has. The name is reserved (RFC 6761, section 6.4).
const NO_REGISTRY: &str = "doctor.invalid";
/// What the mirror is called in errors.
const NAME: &str = "mirror";

/// What a client knows of a mirror.
pub(super) struct MirrorSettings {
    pub(super) url: Url,
    /// Authorities (PEM) besides those of the system.
    pub(super) ca: Option<Vec<u8>>,
    pub(super) login: Option<Credentials>,
    pub(super) image: Image,
}

/// A client of the mirror.
pub(super) struct MirrorCheck {
    settings: MirrorSettings,
    /// Asks for the image's registry.
    pub(super) client: Upstream,
    /// Asks for [`NO_REGISTRY`].
    stranger: Upstream,
    clock: Clock,
}

impl MirrorCheck {
    pub(super) fn new(
        settings: MirrorSettings,
        timeouts: Timeouts,
        clock: Clock,
    ) -> Result<Self, SetupError> {
        let files = TlsFiles {
            ca: settings.ca.clone(),
            ..TlsFiles::default()
        };
        let client = |registry: &str| {
            let mut upstream = Config::default_config().proxy.default;
            NAME.clone_into(&mut upstream.name);
            upstream.url = settings.url.clone();
            upstream.url.query_pairs_mut().append_pair("ns", registry);
            upstream.aliases.clear();
            upstream.is_docker_hub = false;
            upstream.credentials.clone_from(&settings.login);
            // Who writes http:// has decided.
            upstream.plain_http = settings.url.scheme() == "http";
            Upstream::new(upstream, &files, timeouts, clock, &Metrics::default())
        };
        Ok(Self {
            client: client(&settings.image.registry)?,
            stranger: client(NO_REGISTRY)?,
            settings,
            clock,
        })
    }

    pub(super) fn subject(&self) -> String {
        format!(
            "mirror {}",
            self.settings.url.as_str().trim_end_matches('/')
        )
    }

    /// Name, connection, TLS, the API, login and clock. Whether the mirror can be asked for images.
    pub(super) async fn connect(&self, found: &mut Findings) -> bool {
        let mut address = None;
        if self.client.is_proxied() {
            let text =
                "a proxy of the environment is used: name, connection and TLS aren't checked";
            found.ok("proxy", text);
        } else {
            let trust = Trust {
                ca: self.settings.ca.clone(),
                ..Trust::default()
            };
            let server = Server {
                url: &self.settings.url,
                trust: &trust,
                side: Side::Mirror,
                clock: self.clock,
            };
            address = server.reach(found).await;
            if address.is_none() {
                return false;
            }
        }
        let base = match self.client.observe_base().await {
            Ok(base) => base,
            Err(error) => {
                self.no_registry(&error, address, found).await;
                return false;
            }
        };
        let is_usable = match &base.challenge {
            None => {
                found.ok("api", "/v2/ answers and asks for no login");
                true
            }
            Some(challenge) => self.sign_in(challenge, found).await,
        };
        clocks::compare(base.date, self.clock, NAME, found);
        is_usable
    }

    async fn no_registry(
        &self,
        error: &UpstreamError,
        address: Option<SocketAddr>,
        found: &mut Findings,
    ) {
        let url = &self.settings.url;
        if let Some(address) = address.filter(|_| url.scheme() == "http")
            && speaks_tls(address, url).await
        {
            let text = format!("{address} speaks TLS, and the URL is http");
            let url = url.as_str().replacen("http://", "https://", 1);
            let fix = format!("use {url}, and take the mirror out of insecure registries");
            found.fail("protocol", text, fix);
            return;
        }
        let fix = match error.failure {
            Failure::NotFound(_) => {
                "add the path of `http.prefix` to the URL, or use the port of `http.addr`: no \
                 registry is here"
            }
            Failure::Unavailable { .. } => "look at the mirror's log and at proxies before it",
            _ => "use the mirror's own address: this server isn't a registry",
        };
        let text = format!("/v2/ isn't a registry's: {}", on_one_line(error));
        found.fail("api", text, fix);
    }

    async fn sign_in(&self, challenge: &Challenged, found: &mut Findings) -> bool {
        let login = self.settings.login.is_some();
        if let Challenged::Bearer {
            realm,
            withheld: true,
        } = challenge
            && login
        {
            let text = format!("the login isn't sent to {realm}, which isn't on the mirror's site");
            let fix = "set `http.host` of the mirror to the URL that clients use";
            found.warn("credentials", text, fix);
        }
        match self.client.sign_in(&self.settings.image.repo).await {
            Ok(_) if login => found.ok("api", "/v2/ answers and accepts the login"),
            Ok(_) => found.ok("api", "/v2/ answers, and anonymous callers get a token"),
            Err(error) => {
                let (text, fix) = refused(&error, login);
                found.fail("credentials", text, fix);
                return false;
            }
        }
        true
    }

    /// Whether containerd's `ns` parameter selects the registry, or is refused.
    pub(super) async fn route(&self, found: &mut Findings) {
        let Image {
            repo, reference, ..
        } = &self.settings.image;
        let accept = Accept::everything();
        let asked = self.stranger.get_manifest(repo, reference, &accept);
        match asked.await {
            Ok(_) => {
                let text = format!("?ns={NO_REGISTRY} is answered with another registry's image");
                let fix = "use millpond, or list registries one by one in containerd's hosts files: \
                           `_default` would pull from the wrong registry";
                found.fail("ns", text, fix);
            }
            Err(error) if error.status().is_some_and(|status| status < 500) => {
                let text =
                    "other registries (?ns=) are refused, so that clients pull them directly";
                found.ok("ns", text);
            }
            Err(error) => {
                let text = format!("?ns={NO_REGISTRY} fails: {}", on_one_line(&error));
                found.warn("ns", text, "look at the mirror's log");
            }
        }
    }

    /// What is wrong where an image can't be pulled, and what to do.
    pub(super) fn explain(&self, error: &UpstreamError) -> (String, String) {
        let (image, login) = (&self.settings.image, self.settings.login.is_some());
        let registry = &image.registry;
        match &error.failure {
            Failure::NotFound(Some(message)) if message.starts_with("NAME_UNKNOWN") => (
                format!("{registry} isn't mirrored: {message}"),
                format!(
                    "add an upstream named {registry} to `proxy.upstreams` (or an alias), or check \
                     with --image REGISTRY/NAME of one that is"
                ),
            ),
            Failure::NotFound(_) => (
                format!("the mirror finds no {image}: {}", on_one_line(error)),
                "name an image that exists with --image".to_owned(),
            ),
            Failure::Unauthorized(_)
            | Failure::CredentialsRefused { .. }
            | Failure::NoCredentials(_) => refused(error, login),
            Failure::Denied(_) => (
                format!("{image} may not be pulled: {}", on_one_line(error)),
                "look at `access` and `deny` of the mirror (millpond access explain), or use --user"
                    .to_owned(),
            ),
            Failure::RateLimited { .. } => (
                format!("{image} can't be pulled: {}", on_one_line(error)),
                "give the mirror an account at the upstream (`proxy.username`), or wait".to_owned(),
            ),
            Failure::Unavailable { .. } => (
                format!("{image} can't be pulled: {}", on_one_line(error)),
                "run `millpond doctor CONFIG` where the mirror runs: its upstream doesn't answer"
                    .to_owned(),
            ),
            Failure::Protocol(_) | Failure::Manifest(_) => (
                format!("{image} arrives with wrong content: {}", on_one_line(error)),
                "pull without a proxy between, and run `millpond scrub --repair` at the mirror"
                    .to_owned(),
            ),
            _ => (
                format!("{image} can't be pulled: {}", on_one_line(error)),
                "look at the mirror's log, and raise --timeout for a slow network".to_owned(),
            ),
        }
    }

    pub(super) fn image(&self) -> &Image {
        &self.settings.image
    }
}

/// Why a login isn't enough.
fn refused(error: &UpstreamError, login: bool) -> (String, String) {
    let text = on_one_line(error);
    if login {
        (
            format!("the login is refused: {text}"),
            "correct --user and the password".to_owned(),
        )
    } else {
        (
            format!("a login is needed: {text}"),
            "use --user NAME --password-stdin, or permit anonymous callers in `access`".to_owned(),
        )
    }
}

/// The image that is pulled where none is named: of 10 kB.
pub(super) fn default_image() -> Option<Image> {
    "docker.io/library/hello-world".parse().ok()
}
