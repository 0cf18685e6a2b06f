//! The `auth` section: who callers are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::Config;
use super::address::networks;
use super::http::web_url;
use super::registry_url::is_loopback;
use super::section::Section;

const DEFAULT_TOKEN_TTL: Duration = Duration::from_mins(5);
/// Docker takes tokens for valid for a minute at least.
const MIN_TOKEN_TTL: Duration = Duration::from_mins(1);
const MAX_TOKEN_TTL: Duration = Duration::from_hours(24);
/// The longest name of a user or a group, in bytes.
const MAX_NAME: usize = 256;

/// Signatures with a private key. A secret that both sides share (HS256) is none, and neither is
/// `none`.
const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];
/// Issuers whose tokens anybody can get for any project of theirs.
const PUBLIC_ISSUERS: [&str; 2] = [
    "https://token.actions.githubusercontent.com",
    "https://gitlab.com",
];

/// How callers say who they are. Empty where nobody can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// A file of user names and bcrypt hashes, one pair a line.
    pub htpasswd: Option<PathBuf>,
    /// The token service of others, in place of the built-in one.
    pub token: Option<TokenService>,
    pub certificates: Vec<CertificateUser>,
    pub oidc: Vec<OidcIssuer>,
    pub networks: Vec<NetworkUser>,
    /// The groups of each user of the htpasswd file.
    pub groups: BTreeMap<String, Vec<String>>,
    /// The file of the key that seals tokens; else one in the data directory.
    pub key: Option<PathBuf>,
    /// How long a token of the built-in service is valid.
    pub token_ttl: Duration,
}

/// A service that issues JWTs (distribution's "Token Authentication Specification").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenService {
    /// Where clients get tokens.
    pub realm: String,
    /// What the claim `aud` must name.
    pub service: String,
    /// What the claim `iss` must be.
    pub issuer: String,
    /// A PEM file of certificates that signed tokens, or the certificates in tokens.
    pub root_cert_bundle: Option<PathBuf>,
    /// A file of public keys (RFC 7517).
    pub jwks: Option<PathBuf>,
    pub algorithms: Vec<String>,
}

/// The user that owns certain client certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateUser {
    pub matches: CertificateMatch,
    /// None is the matched name itself.
    pub user: Option<String>,
    pub groups: Vec<String>,
}

/// Which certificates: a pattern in which `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateMatch {
    /// Of the common name; `O=acme*`: of the value of one attribute of the subject.
    Subject(String),
    /// Of a DNS name, a mail address or a URI among the subject's alternative names.
    AlternativeName(String),
}

/// An OpenID Connect issuer whose identity tokens say who callers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcIssuer {
    /// Scheme `https` (or `http` on this machine); compared with the claim `iss` as it is written.
    pub issuer: String,
    /// What the claim `aud` must name.
    pub audience: String,
    pub algorithms: Vec<String>,
    /// The claim that is the user's name.
    pub user: String,
    /// The claim that is the list of the user's groups.
    pub groups: Option<String>,
    /// Claims that must have these values.
    pub required: BTreeMap<String, String>,
    /// A file of certificate authorities (PEM) besides the system's.
    pub ca: Option<PathBuf>,
}

/// The user that callers from some networks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkUser {
    pub networks: Vec<IpNet>,
    pub user: String,
    pub groups: Vec<String>,
}

impl Auth {
    /// Whether callers can say who they are.
    pub fn is_configured(&self) -> bool {
        self.htpasswd.is_some()
            || self.token.is_some()
            || !self.certificates.is_empty()
            || !self.oidc.is_empty()
            || !self.networks.is_empty()
    }
}

pub(super) fn read(auth: &Section<'_>) -> Auth {
    auth.refuse(
        "silly",
        "it lets everybody in who sends any Authorization header; remove it",
    );
    let htpasswd = auth.has("htpasswd");
    let htpasswd = auth.section("htpasswd", |section| {
        section.ignore(&[("realm", "passwords are asked for by the token service")]);
        if htpasswd && section.text("path").is_none() {
            section.missing("path", "the path of the htpasswd file");
        }
        file(section, "path")
    });
    let token = auth.has("token");
    let token = auth.section("token", |section| token_service(section, token));
    let seconds = |text: Duration| (MIN_TOKEN_TTL..=MAX_TOKEN_TTL).contains(&text);
    let token_ttl = auth.duration("tokenttl", DEFAULT_TOKEN_TTL);
    if !seconds(token_ttl) {
        auth.reject("tokenttl", "must be from 1m to 24h");
    }
    Auth {
        htpasswd,
        token,
        certificates: auth
            .sections("certificates", certificate)
            .into_iter()
            .flatten()
            .collect(),
        oidc: auth.sections("oidc", oidc).into_iter().flatten().collect(),
        networks: auth
            .sections("networks", network)
            .into_iter()
            .flatten()
            .collect(),
        groups: groups(auth),
        key: file(auth, "key"),
        token_ttl,
    }
}

/// A file at a key; opened once, so that a wrong path shows at the start.
fn file(section: &Section<'_>, key: &'static str) -> Option<PathBuf> {
    let path = section.value(key, |text| {
        match std::fs::File::open(text).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => Ok(text.to_owned()),
            Ok(_) => Err("it is not a file".to_owned()),
            Err(error) => Err(format!("it can't be read: {error}")),
        }
    });
    path.map(PathBuf::from)
}

fn name(text: &str) -> Result<String, &'static str> {
    let is_plain = |c: char| !c.is_control() && !c.is_whitespace() && c != ':';
    let valid = !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(is_plain);
    let name = valid.then(|| text.to_owned());
    name.ok_or("write a name of at most 256 bytes, without blanks and colons")
}

fn required(section: &Section<'_>, key: &'static str, advice: &str) -> Option<String> {
    let text = section.value(key, |text| Ok::<_, &str>(text.to_owned()));
    if text.is_none() {
        section.missing(key, advice);
    }
    text
}

fn token_service(section: &Section<'_>, is_written: bool) -> Option<TokenService> {
    section.ignore(&[
        ("autoredirect", "clients are told the configured realm"),
        ("autoredirectpath", "clients are told the configured realm"),
    ]);
    let root_cert_bundle = file(section, "rootcertbundle");
    let jwks = file(section, "jwks");
    let algorithms = algorithms(section, "signingalgorithms", &ALGORITHMS);
    if !is_written {
        for key in ["realm", "service", "issuer"] {
            section.text(key);
        }
        section.print_nothing("signingalgorithms");
        return None;
    }
    let realm = section.value("realm", |text| {
        let valid = web_url(text).filter(|_| !text.contains(['"', '\\']));
        let realm = valid.map(|_| text.to_owned());
        realm.ok_or("write a URL such as https://auth.example.com/token")
    });
    if section.text("realm").is_none() {
        section.missing("realm", "the URL of the token service");
    }
    let service = required(
        section,
        "service",
        "what tokens must be for, such as the registry's name",
    );
    let issuer = required(section, "issuer", "who issues the tokens");
    if section.text("rootcertbundle").is_none() && section.text("jwks").is_none() {
        section.missing(
            "rootcertbundle",
            "the PEM file of the issuer's certificates",
        );
    }
    Some(TokenService {
        realm: realm?,
        service: service?,
        issuer: issuer?,
        root_cert_bundle,
        jwks,
        algorithms,
    })
}

fn algorithms(section: &Section<'_>, key: &'static str, default: &[&str]) -> Vec<String> {
    let given = section.values(key, |text, _| {
        let known = ALGORITHMS.contains(&text).then(|| text.to_owned());
        known.ok_or_else(|| format!("write one of {}", ALGORITHMS.join(", ")))
    });
    if !given.is_empty() {
        return given;
    }
    let default: Vec<_> = default.iter().map(ToString::to_string).collect();
    section.print(key, default.clone());
    default
}

fn user_groups(section: &Section<'_>) -> Vec<String> {
    section.values("groups", |text, _| name(text))
}

/// Whether a text may be the short name of a subject's attribute.
fn is_attribute(kind: &str) -> bool {
    !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn certificate(section: &Section<'_>) -> Option<CertificateUser> {
    let subject = section.value("subject", |text| match text.split_once('=') {
        Some((kind, _)) if !is_attribute(kind) => {
            Err("write a pattern of the common name such as build-*, or of one attribute such as O=acme*")
        }
        _ => Ok(text.to_owned()),
    });
    let san = section.value("san", |text| Ok::<_, &str>(text.to_owned()));
    let matches = match (subject, san) {
        (Some(subject), None) => Some(CertificateMatch::Subject(subject)),
        (None, Some(san)) => Some(CertificateMatch::AlternativeName(san)),
        (Some(_), Some(_)) => {
            section.reject("san", "is set beside `subject`; write one of them");
            None
        }
        (None, None) if section.has("subject") => None,
        (None, None) => {
            section.missing("subject", "a pattern of the common name, or `san`");
            None
        }
    };
    let user = section.value("user", name);
    let groups = user_groups(section);
    Some(CertificateUser {
        matches: matches?,
        user,
        groups,
    })
}

fn oidc(section: &Section<'_>) -> Option<OidcIssuer> {
    let issuer = section.value("issuer", |text| match web_url(text) {
        Some(url) if url.scheme() == "https" || is_loopback(&url) => Ok(text.to_owned()),
        _ => Err("write an https:// URL such as https://token.actions.githubusercontent.com"),
    });
    if section.text("issuer").is_none() {
        section.missing("issuer", "the issuer's URL, as its tokens have it");
    }
    let audience = required(
        section,
        "audience",
        "what tokens must be for, such as this mirror's URL",
    );
    let algorithms = algorithms(section, "algorithms", &["RS256", "ES256"]);
    let claim = |key| section.value(key, |text| Ok::<_, &str>(text.to_owned()));
    let user = claim("user").unwrap_or_else(|| "sub".to_owned());
    section.print("user", user.as_str());
    let groups = claim("groups");
    let required = section.texts("required");
    let ca = file(section, "ca");
    Some(OidcIssuer {
        issuer: issuer?,
        audience: audience?,
        algorithms,
        user,
        groups,
        required,
        ca,
    })
}

/// Refuses to take everybody at a public issuer for a user, unless rules say what each may do.
pub(super) fn guard(root: &Section<'_>, config: &Config) {
    const REASON: &str = "issues tokens for everybody's projects: each of them is a user here; \
        write `required` to name yours, such as { repository_owner: acme }";
    for (index, issuer) in config.auth.oidc.iter().enumerate() {
        let is_public = PUBLIC_ISSUERS.contains(&issuer.issuer.trim_end_matches('/'));
        if !is_public || !issuer.required.is_empty() {
            continue;
        }
        let path = format!("auth.oidc[{index}].issuer");
        if config.access.rules.is_empty() {
            root.problem_at(&path, format!("`{path}` {REASON}"));
        } else {
            root.doubt_at(&path, REASON);
        }
    }
}

fn network(section: &Section<'_>) -> Option<NetworkUser> {
    let networks = networks(section, "networks");
    if networks.is_empty() && !section.has("networks") {
        section.missing("networks", "a list of networks such as [10.0.0.0/8]");
    }
    let user = section.value("user", name);
    if section.text("user").is_none() {
        section.missing("user", "the name of the user that callers from there are");
    }
    let groups = user_groups(section);
    Some(NetworkUser {
        networks,
        user: user?,
        groups,
    })
}

/// From the users of each group to the groups of each user.
fn groups(auth: &Section<'_>) -> BTreeMap<String, Vec<String>> {
    let mut of_users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut printed = serde_yaml::Mapping::new();
    for (group, users) in auth.lists("groups", name) {
        printed.insert(group.as_str().into(), users.clone().into());
        for user in users {
            of_users.entry(user).or_default().push(group.clone());
        }
    }
    auth.print("groups", printed);
    of_users
}
