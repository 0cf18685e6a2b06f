//! The way to a server, step by step: its name, a connection, TLS.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::{self, CertificateError};
use url::{Host, Url};

use super::certificate::{Chain, date};
use super::finding::Findings;
use crate::cli::handshake::{Outcome, Trust, handshake};
use crate::clock::Clock;
use crate::error_chain::on_one_line;
use crate::tls::EXPIRY_WARNING;

/// For one connection, and for what a server says first.
const STEP_TIME: Duration = Duration::from_secs(5);
/// The most addresses of a name that are shown.
const MAX_ADDRESSES: usize = 4;

/// Whose server it is, for the advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Mirror,
    Upstream,
}

/// A server, and how it is connected to.
#[derive(Debug)]
pub(super) struct Server<'a> {
    pub(super) url: &'a Url,
    pub(super) trust: &'a Trust,
    pub(super) side: Side,
    pub(super) clock: Clock,
}

impl Server<'_> {
    /// Resolves, connects, and makes a TLS handshake where the URL is https. Returns an address that
    /// can be connected to, if requests may be sent. Only the first step that fails is reported.
    pub(super) async fn reach(&self, found: &mut Findings) -> Option<SocketAddr> {
        let addresses = self.resolve(found).await?;
        let (stream, address) = self.connect(&addresses, found).await?;
        if self.url.scheme() == "https" {
            let shaken = timeout(STEP_TIME, handshake(stream, self.url, self.trust)).await;
            let Ok(outcome) = shaken else {
                let text = format!("{address} accepts connections, but makes no TLS handshake");
                found.fail("tls", text, "look at the server's log; is it overloaded?");
                return None;
            };
            self.judge(outcome, address, found).await?;
        }
        Some(address)
    }

    async fn resolve(&self, found: &mut Findings) -> Option<Vec<SocketAddr>> {
        let port = self.url.port_or_known_default().unwrap_or_default();
        let name = match self.url.host()? {
            Host::Ipv4(address) => return Some(vec![(address, port).into()]),
            Host::Ipv6(address) => return Some(vec![(address, port).into()]),
            Host::Domain(name) => name,
        };
        let resolved = tokio::net::lookup_host((name, port)).await;
        let addresses: Vec<_> = match resolved {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                let text = format!("the name {name} doesn't resolve: {}", on_one_line(&error));
                found.fail("dns", text, self.unresolved(name));
                return None;
            }
        };
        if addresses.is_empty() {
            let text = format!("the name {name} has no address");
            found.fail("dns", text, self.unresolved(name));
            return None;
        }
        let shown = addresses.iter().take(MAX_ADDRESSES);
        let shown: Vec<_> = shown.map(|address| address.ip().to_string()).collect();
        found.ok("dns", format!("{name} resolves to {}", shown.join(", ")));
        Some(addresses)
    }

    fn unresolved(&self, name: &str) -> String {
        let written = match self.side {
            Side::Mirror => "the mirror's URL",
            Side::Upstream => "`remoteurl`",
        };
        format!("correct {written}, or make {name} known to DNS or /etc/hosts of this machine")
    }

    /// The first address that can be connected to.
    async fn connect(
        &self,
        addresses: &[SocketAddr],
        found: &mut Findings,
    ) -> Option<(TcpStream, SocketAddr)> {
        let mut failures = Vec::new();
        for address in addresses {
            let failure = match timeout(STEP_TIME, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    self.connected(*address, &failures, found);
                    return Some((stream, *address));
                }
                Ok(Err(error)) => on_one_line(&error),
                Err(_elapsed) => format!("no answer within {} s", STEP_TIME.as_secs()),
            };
            failures.push(format!("{address}: {failure}"));
        }
        let text = format!("can't connect to {}", failures.join(", "));
        let fix = match self.side {
            Side::Mirror => {
                "start the mirror, write the port of its `http.addr`, or open the firewall between"
            }
            Side::Upstream => {
                "correct the port of `remoteurl`, open the firewall, or set `proxyurl` where only a \
                 proxy may go out"
            }
        };
        found.fail("connect", text, fix);
        None
    }

    fn connected(&self, address: SocketAddr, failures: &[String], found: &mut Findings) {
        if failures.is_empty() {
            found.ok("connect", format!("{address} accepts connections"));
            return;
        }
        let failed = failures.join(", ");
        let text = format!("{address} accepts connections, but of the same name not {failed}");
        let host = self.url.host_str().unwrap_or_default();
        let fix = format!("remove that address from {host} in DNS, or make it reachable");
        found.warn("connect", text, fix);
    }

    async fn judge(
        &self,
        outcome: Outcome,
        address: SocketAddr,
        found: &mut Findings,
    ) -> Option<()> {
        let chain = Chain::read(&outcome.chain);
        match outcome.result {
            Ok(version) => {
                self.trusted(version, chain?, found);
                Some(())
            }
            Err(error) => {
                let inner = error.get_ref();
                let tls = inner.and_then(|error| error.downcast_ref::<rustls::Error>());
                match (tls, chain) {
                    (Some(rustls::Error::InvalidCertificate(error)), Some(chain)) => {
                        let (text, fix) = self.refused(error, &chain);
                        found.fail("tls", text, fix);
                    }
                    _ if speaks_http(address).await => {
                        let text = format!("{address} speaks plain HTTP, and the URL is https");
                        found.fail("protocol", text, self.plain());
                    }
                    _ => {
                        let text = format!("the TLS handshake fails: {}", on_one_line(&error));
                        let fix = "compare the TLS versions and client certificates that both sides \
                                   want (`minimumtls`, `certificate`, `http.tls`)";
                        found.fail("tls", text, fix);
                    }
                }
                None
            }
        }
    }

    fn trusted(&self, version: &str, chain: Chain, found: &mut Findings) {
        let Chain { names, expires, .. } = chain;
        let now = self.clock.wall();
        let expiry = date(expires);
        if self.trust.insecure {
            let text = format!("the certificate for {names} isn't checked (`insecure`)");
            let fix = "remove `insecure` and name the upstream's authority in `ca`";
            found.warn("tls", text, fix);
        } else if expires < now + EXPIRY_WARNING {
            let text = format!("the certificate for {names} expires soon, on {expiry}");
            found.warn("tls", text, "renew the certificate now");
        } else {
            let text =
                format!("{version}, a trusted certificate for {names}, valid until {expiry}");
            found.ok("tls", text);
        }
    }

    /// What is wrong with a certificate, and what to do.
    fn refused(&self, error: &CertificateError, chain: &Chain) -> (String, String) {
        let Chain { names, issuer, .. } = chain;
        let host = self.url.host_str().unwrap_or_default();
        let ca = match self.side {
            Side::Mirror => "name its authority with --ca FILE, and give clients the same file",
            Side::Upstream => "name its authority in the `ca` of this upstream",
        };
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                format!(
                    "the certificate for {names} has expired on {}",
                    date(chain.expires)
                ),
                "renew the certificate; if it is new, correct this machine's clock".to_owned(),
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
                format!(
                    "the certificate for {names} is valid from {} on, not yet",
                    date(chain.starts)
                ),
                "correct this machine's clock, or wait".to_owned(),
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                (
                    format!("the certificate is for {names}, not for {host}"),
                    format!("use a name that it has, or issue one for {host}"),
                )
            }
            CertificateError::UnknownIssuer if chain.is_self_signed => (
                format!("the certificate for {names} is self-signed and not trusted"),
                ca.to_owned(),
            ),
            CertificateError::UnknownIssuer => (
                format!("the certificate for {names} is issued by an unknown authority ({issuer})"),
                format!("{ca}; or have the server send the certificates of its issuers, too"),
            ),
            other => (
                format!("the certificate for {names} isn't accepted: {other}"),
                "issue another certificate".to_owned(),
            ),
        }
    }

    fn plain(&self) -> String {
        let url = self.url.as_str().replacen("https://", "http://", 1);
        match self.side {
            Side::Mirror => format!("configure `http.tls` in the mirror, or use {url}"),
            Side::Upstream => format!("write `remoteurl: {url}`, or TLS at the upstream"),
        }
    }
}

/// Whether a server answers a request that comes without TLS. Asks it nothing else.
async fn speaks_http(address: SocketAddr) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = b"HEAD / HTTP/1.1\r\nHost: doctor\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut start = [0; 5];
        stream.read_exact(&mut start).await.ok()?;
        Some(start == *b"HTTP/")
    };
    timeout(STEP_TIME, asked).await.ok().flatten() == Some(true)
}

/// Whether a server makes a TLS handshake, whatever its certificate is.
pub(super) async fn speaks_tls(address: SocketAddr, url: &Url) -> bool {
    let anyone = Trust {
        insecure: true,
        ..Trust::default()
    };
    let asked = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let outcome = handshake(stream, url, &anyone).await;
        let Err(error) = outcome.result else {
            return Some(true);
        };
        let inner = error.get_ref()?;
        let tls = inner.downcast_ref::<rustls::Error>();
        Some(matches!(tls, Some(rustls::Error::AlertReceived(_))))
    };
    timeout(STEP_TIME, asked).await.ok().flatten() == Some(true)
}
