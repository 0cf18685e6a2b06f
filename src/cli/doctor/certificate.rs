//! What a certificate says about itself, in words.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The most names of a certificate that are shown.
const MAX_NAMES: usize = 5;
/// The end of the year 9999, which stands for no end (RFC 5280, section 4.1.2.5).
const LAST: i64 = 253_402_300_799;

/// A server's certificate and those of its issuers, as the server sent them.
#[derive(Debug)]
pub(super) struct Chain {
    /// Its names, such as `DNS mirror.example, IP 10.0.0.1`.
    pub(super) names: String,
    pub(super) issuer: String,
    /// Whether it has signed itself.
    pub(super) is_self_signed: bool,
    /// The end of the validity of the first one that expires.
    pub(super) expires: SystemTime,
    /// The start of the validity of the server's own.
    pub(super) starts: SystemTime,
}

impl Chain {
    /// None where the server's certificate is malformed or missing.
    pub(super) fn read(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let parsed = chain.iter().filter_map(|der| {
            let (_rest, certificate) = X509Certificate::from_der(der).ok()?;
            Some(certificate)
        });
        let parsed: Vec<_> = parsed.collect();
        let leaf = parsed.first()?;
        let ends = parsed.iter();
        let ends = ends.map(|certificate| certificate.validity().not_after.timestamp());
        Some(Self {
            names: names(leaf),
            issuer: leaf.issuer().to_string(),
            is_self_signed: leaf.issuer() == leaf.subject(),
            expires: time(ends.min()?),
            starts: time(leaf.validity().not_before.timestamp()),
        })
    }
}

fn names(certificate: &X509Certificate<'_>) -> String {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.map(|extension| &extension.value.general_names);
    let mut shown: Vec<String> = Vec::new();
    for name in names.into_iter().flatten() {
        match name {
            GeneralName::DNSName(name) => shown.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => shown.extend(address(bytes)),
            _ => {}
        }
    }
    let more = shown.len().saturating_sub(MAX_NAMES);
    shown.truncate(MAX_NAMES);
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    if shown.is_empty() {
        return "no name".to_owned();
    }
    shown.join(", ")
}

fn address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    address.map(|address| address.to_string())
}

fn time(timestamp: i64) -> SystemTime {
    let seconds = timestamp.clamp(0, LAST).unsigned_abs();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// `2027-03-01`
pub(super) fn date(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    // What can be shown ends with the year 9999.
    let seconds = seconds.min(LAST.unsigned_abs());
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_validity_are_read() {
        let signed = testkit::Authority::new("doctors").server_until((2031, 2, 3));
        let der = CertificateDer::from(signed.der);
        let chain = Chain::read(&[der]).unwrap();
        assert_eq!(chain.names, "127.0.0.1, localhost");
        assert!(chain.issuer.contains("CN=doctors"), "{}", chain.issuer);
        assert!(!chain.is_self_signed);
        assert_eq!(date(chain.expires), "2031-02-03");
        assert!(Chain::read(&[]).is_none());
        assert!(Chain::read(&[vec![1, 2, 3].into()]).is_none());
    }

    #[test]
    fn no_date_is_out_of_range() {
        assert_eq!(date(time(i64::MAX)), "9999-12-31");
        assert_eq!(date(time(i64::MIN)), "1970-01-01");
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(date(far), "9999-12-31");
    }
}
