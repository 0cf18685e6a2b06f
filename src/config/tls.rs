//! `http.tls` and the `tls` of each listener.

use std::fmt;
use std::path::PathBuf;

use super::section::Section;

/// The cipher suites that are implemented, by the names that Go's `crypto/tls` and so the reference
/// registry give them. The first three are those of TLS 1.3.
pub const CIPHER_SUITES: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
/// Those that the reference registry knows besides: CBC mode, RC4, 3DES, or an RSA key exchange without
/// forward secrecy.
const WEAK_CIPHER_SUITES: [&str; 14] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];
const CLIENT_AUTH: [(&str, ClientAuth); 4] = [
    ("request-client-cert", ClientAuth::Request),
    ("require-any-client-cert", ClientAuth::RequireAny),
    ("verify-client-cert-if-given", ClientAuth::VerifyIfGiven),
    (
        "require-and-verify-client-cert",
        ClientAuth::RequireAndVerify,
    ),
];
const CLIENT_AUTH_ADVICE: &str = "write request-client-cert, require-any-client-cert, \
     verify-client-cert-if-given or require-and-verify-client-cert";
const VERSIONS: [(&str, Minimum); 4] = [
    ("tls1.0", Minimum::Obsolete),
    ("tls1.1", Minimum::Obsolete),
    ("tls1.2", Minimum::Supported(TlsVersion::Tls12)),
    ("tls1.3", Minimum::Supported(TlsVersion::Tls13)),
];

/// The TLS of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// A PEM file: the server's certificate, and then those of its issuers.
    pub certificate: PathBuf,
    /// A PEM file: the certificate's private key.
    pub key: PathBuf,
    /// PEM files: the authorities that sign clients' certificates.
    pub client_cas: Vec<PathBuf>,
    pub client_auth: ClientAuth,
    pub minimum: TlsVersion,
    /// Of [`CIPHER_SUITES`]; at least one.
    pub cipher_suites: Vec<&'static str>,
}

/// Whether clients show a certificate, and whether it is verified in the handshake: the modes of Go's
/// `crypto/tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate is asked for.
    None,
    Request,
    RequireAny,
    VerifyIfGiven,
    RequireAndVerify,
}

/// A version of TLS that is implemented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TlsVersion {
    #[default]
    Tls12,
    Tls13,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Minimum {
    Obsolete,
    Supported(TlsVersion),
}

/// A cipher suite that may be named.
#[derive(Clone, Copy)]
enum Named {
    Supported(&'static str),
    Weak(&'static str),
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Supported(name) | Self::Weak(name)) = self;
        f.write_str(name)
    }
}

/// Reads the `tls` of a section. None where it has none, as in the reference registry: neither a
/// certificate nor anything that would need one.
pub(super) fn read(section: &Section<'_>) -> Option<Tls> {
    let tls = section.section("tls", fields);
    if tls.is_none() {
        section.print_nothing("tls");
    }
    tls
}

fn fields(tls: &Section<'_>) -> Option<Tls> {
    tls.refuse(
        "letsencrypt",
        "no ACME client is built in; let certbot, cert-manager or another one write the files of \
         `certificate` and `key`, which are read again when they change",
    );
    let path = |key| tls.value(key, |text| Ok::<_, String>(text.to_owned()));
    let (certificate, key) = (path("certificate"), path("key"));
    let client_cas = tls.values("clientcas", |text, _| Ok::<_, String>(text.to_owned()));
    let client_auth = client_auth(tls, !client_cas.is_empty());
    let is_versioned = tls.text("minimumtls").is_some();
    let minimum = minimum(tls);
    let (cipher_suites, has_suites) = cipher_suites(tls, minimum);
    let has_more = client_auth != ClientAuth::None || is_versioned || has_suites;
    let (certificate, key) = match (certificate, key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) if !has_more => return None,
        (certificate, _) => {
            let (missing, advice) = match certificate {
                None => ("certificate", "the path of a PEM file with the certificate"),
                Some(_) => ("key", "the path of a PEM file with the private key"),
            };
            tls.missing(missing, advice);
            return None;
        }
    };
    Some(Tls {
        certificate: certificate.into(),
        key: key.into(),
        client_cas: client_cas.into_iter().map(PathBuf::from).collect(),
        client_auth,
        minimum,
        cipher_suites,
    })
}

fn client_auth(tls: &Section<'_>, has_authorities: bool) -> ClientAuth {
    let default = if has_authorities {
        ClientAuth::RequireAndVerify
    } else {
        ClientAuth::None
    };
    let chosen = tls.choice("clientauth", CLIENT_AUTH_ADVICE, &CLIENT_AUTH, default);
    let verifies = matches!(
        chosen,
        ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify
    );
    if verifies && !has_authorities {
        let authorities = tls.path("clientcas");
        tls.reject(
            "clientauth",
            format_args!(
                "needs `{authorities}`: without them, no certificate of a client is valid"
            ),
        );
    }
    chosen
}

fn minimum(tls: &Section<'_>) -> TlsVersion {
    let advice = "write tls1.2 or tls1.3";
    let default = Minimum::Supported(TlsVersion::Tls12);
    match tls.choice("minimumtls", advice, &VERSIONS, default) {
        Minimum::Supported(version) => version,
        Minimum::Obsolete => {
            tls.doubt(
                "minimumtls",
                "names a version that RFC 8996 forbids: clients need at least TLS 1.2",
            );
            tls.print("minimumtls", "tls1.2");
            TlsVersion::Tls12
        }
    }
}

/// The suites in use, and whether any were named. Names of TLS 1.2 leave the suites of TLS 1.3 as they
/// are, as in Go.
fn cipher_suites(tls: &Section<'_>, minimum: TlsVersion) -> (Vec<&'static str>, bool) {
    let mut weak = Vec::new();
    let named = tls.values("ciphersuites", |text, path| {
        let suite = suite(text)?;
        if let Named::Weak(_) = suite {
            weak.push(path.to_owned());
        }
        Ok::<_, String>(suite)
    });
    for path in weak {
        tls.doubt_at(
            &path,
            "has no effect: the suite is not implemented, because it is broken or has no forward \
             secrecy",
        );
    }
    let supported = named.iter().filter_map(|named| match named {
        Named::Supported(name) => Some(*name),
        Named::Weak(_) => None,
    });
    let supported: Vec<_> = supported.collect();
    if !named.is_empty() && supported.is_empty() {
        let advice = format!("names no suite that is implemented; {}", allowed());
        tls.reject("ciphersuites", advice);
    }
    tls.print("ciphersuites", supported.clone());
    let uses = |name: &str| supported.is_empty() || supported.contains(&name);
    let names_13 = supported.iter().any(|name| is_of_13(name));
    let is_in_use = |name: &&str| {
        if is_of_13(name) {
            !names_13 || uses(name)
        } else {
            minimum == TlsVersion::Tls12 && uses(name)
        }
    };
    let in_use = CIPHER_SUITES.into_iter().filter(is_in_use).collect();
    (in_use, !named.is_empty())
}

/// Whether a suite is one of TLS 1.3, whose suites name no key exchange (RFC 8446, appendix B.4).
fn is_of_13(name: &str) -> bool {
    !name.contains("_WITH_")
}

fn suite(text: &str) -> Result<Named, String> {
    let is_it = |name: &&&str| **name == text;
    let supported = CIPHER_SUITES.iter().find(is_it).copied();
    let weak = || WEAK_CIPHER_SUITES.iter().find(is_it).copied();
    let named = supported.map(Named::Supported);
    named
        .or_else(|| weak().map(Named::Weak))
        .ok_or_else(allowed)
}

fn allowed() -> String {
    format!("write any of {}", CIPHER_SUITES.join(", "))
}
