//! What a listener's handshakes use, and its replacement.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::{
    ProducesTickets, ServerSessionMemoryCache, StoresServerSessions,
};
use tokio_rustls::rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::rustls::{
    Error, InconsistentKeys, ServerConfig, ServerConnection, SignatureAlgorithm,
    SupportedCipherSuite, version,
};
use tokio_util::sync::CancellationToken;

use super::clients::ClientCertificates;
use super::error::TlsError;
use super::expiry::expiry;
use super::files::{Files, Fingerprint};
use crate::clock::Clock;
use crate::config::{Tls, TlsVersion};
use crate::error_chain::on_one_line;
use crate::metrics::Metrics;
pub use crate::renewal::INTERVAL;
use crate::tasks::Tasks;

/// How long before a certificate expires the log warns of it, and how often it repeats that.
pub const EXPIRY_WARNING: Duration = Duration::from_hours(14 * 24);
const WARNING_INTERVAL: Duration = Duration::from_hours(24);
/// Bytes of an RSA public key (`SubjectPublicKeyInfo`) of 3,072 bits, and a few more.
const MAX_QUICK_RSA: usize = 430;
/// Sessions that are remembered for clients of TLS 1.2 that take no tickets; some hundred bytes each.
const MAX_SESSIONS: usize = 1024;

/// The TLS of one listener.
pub struct ServerTls {
    settings: Tls,
    /// The address of the listener as it is configured.
    listener: String,
    /// Whether HTTP/2 is offered.
    http2: bool,
    provider: Arc<CryptoProvider>,
    clock: Clock,
    metrics: Arc<Metrics>,
    current: RwLock<Arc<Version>>,
    state: Mutex<CheckState>,
}

#[derive(Debug)]
struct CheckState {
    /// The files that were read last: those in use, or refused ones.
    seen: Fingerprint,
    warned: Option<Instant>,
}

/// One state of the files, in use.
#[derive(Debug)]
pub struct Version {
    config: Arc<ServerConfig>,
    clients: Option<ClientCertificates>,
    /// When the first certificate of the chain to expire does.
    expires: SystemTime,
    sessions: Sessions,
    signs_slowly: bool,
    clock: Clock,
}

/// What resumes sessions. It outlives a replacement of the certificate, but not one of the authorities:
/// a session has the verdict on its client.
#[derive(Debug, Clone)]
struct Sessions {
    authorities: Fingerprint,
    tickets: Arc<dyn ProducesTickets>,
    cache: Arc<dyn StoresServerSessions>,
}

/// What a look at the files has led to.
#[derive(Debug)]
pub enum Checked {
    Unchanged,
    Replaced,
    /// The version in use stays.
    Refused(TlsError),
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files. Blocks, for small files once at the start.
    pub fn load(
        settings: Tls,
        listener: String,
        http2: bool,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(provider(&settings));
        let files = Files::read(&settings)?;
        let version = Version::new(&settings, &files, http2, &provider, None, clock)?;
        let state = CheckState {
            seen: files.fingerprint(),
            warned: None,
        };
        let tls = Self {
            settings,
            listener,
            http2,
            provider,
            clock,
            metrics,
            current: RwLock::new(Arc::new(version)),
            state: Mutex::new(state),
        };
        tls.report_expiry();
        Ok(tls)
    }

    /// What the next handshake uses.
    pub fn current(&self) -> Arc<Version> {
        Arc::clone(&self.current.read())
    }

    /// Reads the files every [`INTERVAL`] until `stop`.
    pub fn watch(self: &Arc<Self>, tasks: &Tasks, stop: CancellationToken) {
        let this = Arc::clone(self);
        tasks.spawn_restarted("TLS certificates", stop, move || {
            let this = Arc::clone(&this);
            async move {
                loop {
                    tokio::time::sleep(INTERVAL).await;
                    let this = Arc::clone(&this);
                    let checked = tokio::task::spawn_blocking(move || this.check()).await;
                    if let Err(error) = checked {
                        tracing::error!(error = %on_one_line(&error), "the TLS files couldn't be checked");
                    }
                }
            }
        });
    }

    /// Reads the files, and uses what they hold if it has changed and is in order. Blocks.
    pub fn check(&self) -> Checked {
        let read = Files::read(&self.settings);
        let seen = match &read {
            Ok(files) => files.fingerprint(),
            Err(error) => Fingerprint::of(&[error.to_string().as_bytes()]),
        };
        let is_unchanged = {
            let mut state = self.state.lock();
            std::mem::replace(&mut state.seen, seen) == seen
        };
        let checked = if is_unchanged {
            Checked::Unchanged
        } else {
            match read.and_then(|files| self.replace(&files)) {
                Ok(()) => Checked::Replaced,
                Err(error) => {
                    tracing::error!(
                        listener = self.listener,
                        error = %on_one_line(&error),
                        "the changed TLS files are not used; the certificate in use stays"
                    );
                    Checked::Refused(error)
                }
            }
        };
        self.report_expiry();
        checked
    }

    fn replace(&self, files: &Files<'_>) -> Result<(), TlsError> {
        let before = self.current();
        let sessions = Some(&before.sessions);
        let (settings, provider) = (&self.settings, &self.provider);
        let new = Version::new(settings, files, self.http2, provider, sessions, self.clock)?;
        let now = self.clock.wall();
        if new.expires <= now && before.expires > now {
            let path = self.settings.certificate.clone();
            return Err(TlsError::Expired { path });
        }
        let expires = timestamp(new.expires);
        *self.current.write() = Arc::new(new);
        self.state.lock().warned = None;
        tracing::info!(listener = self.listener, %expires, "the changed TLS files are in use");
        Ok(())
    }

    /// Shows when the certificate in use expires, and warns of it in time.
    fn report_expiry(&self) {
        let expires = self.current().expires;
        let since_epoch = expires.duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since_epoch.map_or(0, |since| since.as_secs());
        self.metrics.tls_expiry(&self.listener, seconds);
        let left = expires.duration_since(self.clock.wall()).ok();
        if left.is_some_and(|left| left > EXPIRY_WARNING) {
            return;
        }
        let now = self.clock.now();
        {
            let mut state = self.state.lock();
            let is_recent = |warned: Instant| now - warned < WARNING_INTERVAL;
            if state.warned.is_some_and(is_recent) {
                return;
            }
            state.warned = Some(now);
        }
        tracing::warn!(
            listener = self.listener,
            certificate = %self.settings.certificate.display(),
            expires = %timestamp(expires),
            "{}",
            match left {
                Some(_) => "the TLS certificate expires within 14 days",
                None => "the TLS certificate has expired: clients refuse it",
            }
        );
    }
}

impl Version {
    /// When the first certificate of the chain to expire does.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    fn new(
        settings: &Tls,
        files: &Files<'_>,
        http2: bool,
        provider: &Arc<CryptoProvider>,
        before: Option<&Sessions>,
        clock: Clock,
    ) -> Result<Self, TlsError> {
        let chain = files.chain()?;
        let malformed = || TlsError::Certificate {
            path: settings.certificate.clone(),
        };
        let expires = chain.iter().map(|certificate| expiry(certificate));
        let expires = expires.collect::<Option<Vec<_>>>();
        let expires = expires.and_then(|all| all.into_iter().min());
        let expires = expires.ok_or_else(malformed)?;
        let identity = CertifiedKey::from_der(chain, files.key()?, provider);
        let identity = identity.map_err(|error| unusable(settings, error))?;
        let signs_slowly = signs_slowly(&*identity.key);
        let authorities = files.authorities()?;
        let clients = ClientCertificates::new(settings.client_auth, authorities, provider)?;
        let sessions = Sessions::after(before, files.authorities_fingerprint())?;

        let time = Arc::new(WallTime(clock));
        let versions: &[_] = match settings.minimum {
            TlsVersion::Tls12 if has_suite_of_12(provider) => &[&version::TLS13, &version::TLS12],
            _ => &[&version::TLS13],
        };
        let builder = ServerConfig::builder_with_details(Arc::clone(provider), time);
        let builder = builder.with_protocol_versions(versions)?;
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(clients.in_handshake()),
            None => builder.with_no_client_auth(),
        };
        let identity = Arc::new(SingleCertAndKey::from(identity));
        let mut config = builder.with_cert_resolver(identity);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if http2 {
            config.alpn_protocols.insert(0, b"h2".to_vec());
        }
        config.ticketer = Arc::clone(&sessions.tickets);
        config.session_storage = Arc::clone(&sessions.cache);
        Ok(Self {
            config: Arc::new(config),
            clients,
            expires,
            sessions,
            signs_slowly,
            clock,
        })
    }

    /// Whether a signature takes too long for a thread of the runtime.
    pub const fn signs_slowly(&self) -> bool {
        self.signs_slowly
    }

    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// The certificate of a client after the handshake, if it is verified. An error where the client
    /// isn't accepted without.
    pub fn verified_client(
        &self,
        connection: &ServerConnection,
    ) -> Result<Option<CertificateDer<'static>>, Error> {
        let Some(clients) = &self.clients else {
            return Ok(None);
        };
        clients.verified(connection, unix_time(self.clock))
    }
}

impl Sessions {
    /// Those of the version before, if it has the same authorities.
    fn after(before: Option<&Self>, authorities: Fingerprint) -> Result<Self, Error> {
        match before {
            Some(before) if before.authorities == authorities => Ok(before.clone()),
            _ => Ok(Self {
                authorities,
                tickets: aws_lc_rs::Ticketer::new()?,
                cache: ServerSessionMemoryCache::new(MAX_SESSIONS),
            }),
        }
    }
}

/// Whether a signature with this key takes about 1 ms or more: 0.3 ms were measured for RSA with 2,048
/// bits, 1.6 ms with 4,096, and less than 0.1 ms for all other kinds.
pub(super) fn signs_slowly(key: &dyn SigningKey) -> bool {
    let is_rsa = key.algorithm() == SignatureAlgorithm::RSA;
    let public = key.public_key();
    is_rsa && public.is_none_or(|public| public.len() > MAX_QUICK_RSA)
}

/// The cryptography of a listener: with the suites that are configured.
fn provider(settings: &Tls) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let suites = &mut provider.cipher_suites;
    suites.retain(|suite| settings.cipher_suites.contains(&&*name_in_go(*suite)));
    provider
}

/// The name that Go gives a cipher suite.
pub(super) fn name_in_go(suite: SupportedCipherSuite) -> String {
    let name = suite.suite().as_str().unwrap_or_default();
    name.replacen("TLS13_", "TLS_", 1)
}

fn has_suite_of_12(provider: &CryptoProvider) -> bool {
    let suites = &mut provider.cipher_suites.iter();
    suites.any(|suite| suite.version().version == version::TLS12.version)
}

fn unusable(settings: &Tls, error: Error) -> TlsError {
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch {
            certificate: settings.certificate.clone(),
            key: settings.key.clone(),
        },
        Error::InvalidCertificate(_) => TlsError::Certificate {
            path: settings.certificate.clone(),
        },
        source => TlsError::Key {
            path: settings.key.clone(),
            source,
        },
    }
}

/// Only times from 1970 to 9999 have this form; no certificate has later ones.
fn timestamp(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time.max(SystemTime::UNIX_EPOCH))
}

/// The wall time that certificates of clients are judged by.
#[derive(Debug)]
struct WallTime(Clock);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0))
    }
}

fn unix_time(clock: Clock) -> UnixTime {
    let since_epoch = clock.wall().duration_since(SystemTime::UNIX_EPOCH);
    UnixTime::since_unix_epoch(since_epoch.unwrap_or_default())
}
