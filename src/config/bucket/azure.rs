//! `storage.azure`: Azure Blob Storage.

use url::Url;

use super::common::{UNVERIFIED, chunk_size, endpoint, is_of_header, root, secret};
use crate::config::address::alias;
use crate::config::registry_url::is_loopback;
use crate::config::secret::Secret;
use crate::config::section::Section;

/// The largest block of a blob.
const MAX_CHUNK: u64 = 4000 << 20;
const DEFAULT_REALM: &str = "core.windows.net";

/// A container in Azure Blob Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Azure {
    pub account: String,
    pub container: String,
    /// The account's blob service, `http` or `https`, without credentials, query and fragment:
    /// `https://account.blob.core.windows.net/`.
    pub endpoint: Url,
    /// Without credentials, they come from the environment: variables, a workload identity, or the
    /// managed identity.
    pub credentials: Option<AzureCredentials>,
    /// Whether certificates aren't checked.
    pub skip_verify: bool,
    /// What the names of all objects start with: without a slash at either end, and often empty.
    pub root: String,
    /// The bytes of each block of an upload, 5 MiB to 4,000 MiB.
    pub chunk_size: u64,
}

/// Who asks for objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AzureCredentials {
    /// Everybody who has one of the account's keys, in base64.
    AccountKey(Secret),
    /// An application that is registered with Microsoft Entra.
    ClientSecret {
        tenant: String,
        client: String,
        secret: Secret,
    },
}

/// The value of `credentials.type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    SharedKey,
    ClientSecret,
    Default,
}

const KINDS: [(&str, Kind); 3] = [
    ("shared_key", Kind::SharedKey),
    ("client_secret", Kind::ClientSecret),
    ("default_credentials", Kind::Default),
];

/// Reads the section. None where a key is missing or wrong, which is reported.
pub(super) fn read(section: &Section<'_>) -> Option<Azure> {
    unsupported(section);
    let account = named(
        section,
        "accountname",
        "the storage account's name",
        |text| {
            let is_name = (3..=24).contains(&text.len()) && text.chars().all(is_plain);
            is_name
                .then_some(())
                .ok_or("write the storage account's name: 3 to 24 lower-case letters and digits")
        },
    );
    let container = named(section, "container", "the container's name", |text| {
        is_container(text).then_some(()).ok_or(
            "write the container's name: 3 to 63 lower-case letters, digits and single -, with a \
             letter or digit at both ends, such as images",
        )
    });
    let endpoint = service(section, account.as_deref());
    let credentials = credentials(section);
    let skip_verify = section.bool("skipverify", false);
    if skip_verify {
        section.doubt("skipverify", UNVERIFIED);
    }
    let root = root(section);
    let chunk_size = chunk_size(section, MAX_CHUNK);
    let endpoint = endpoint?;
    if endpoint.scheme() == "http"
        && !is_loopback(&endpoint)
        && !matches!(credentials, Some(AzureCredentials::AccountKey(_)))
    {
        let reason =
            "is an http:// URL: tokens would be sent over plain HTTP; write an https:// URL";
        section.reject("serviceurl", reason);
    }
    Some(Azure {
        account: account?,
        container: container?,
        endpoint,
        credentials,
        skip_verify,
        root,
        chunk_size,
    })
}

/// A required name.
fn named(
    section: &Section<'_>,
    key: &'static str,
    advice: &str,
    check: impl FnOnce(&str) -> Result<(), &'static str>,
) -> Option<String> {
    if section.text(key).is_none() {
        section.missing(key, advice);
    }
    section.value(key, |text| check(text).map(|()| text.to_owned()))
}

fn is_plain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// Source: <https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata>.
fn is_container(text: &str) -> bool {
    (3..=63).contains(&text.len())
        && text.chars().all(|c| is_plain(c) || c == '-')
        && text.starts_with(is_plain)
        && text.ends_with(is_plain)
        && !text.contains("--")
}

/// The blob service's URL: it is written, or made of the account and the realm.
fn service(section: &Section<'_>, account: Option<&str>) -> Option<Url> {
    let realm = section.value("realm", |text| {
        let is_host = alias(text).is_some() && !text.contains(':');
        is_host
            .then(|| text.to_ascii_lowercase())
            .ok_or("write the end of the service's host, such as core.chinacloudapi.cn")
    });
    if section.text("serviceurl").is_some() {
        if realm.is_some() {
            section.doubt("realm", "has no effect: `serviceurl` is set");
        }
        return endpoint(section, "serviceurl", "https", "`accountkey`");
    }
    let realm = realm.as_deref().unwrap_or(DEFAULT_REALM);
    section.print("realm", realm);
    Url::parse(&format!("https://{}.blob.{realm}/", account?)).ok()
}

fn credentials(section: &Section<'_>) -> Option<AzureCredentials> {
    let key = secret(section, "accountkey");
    let (kind, client) = section.section("credentials", |credentials| {
        let kind = credentials.parsed("type", |text| {
            let kind = KINDS.iter().find(|(name, _)| *name == text);
            kind.map(|(_, kind)| *kind)
                .ok_or("write shared_key, client_secret or default_credentials")
        });
        let has_client = ["tenantid", "clientid", "secret"]
            .iter()
            .any(|key| credentials.text(key).is_some());
        let kind = kind.unwrap_or(match (&key, has_client) {
            (_, true) => Kind::ClientSecret,
            (Some(_), false) => Kind::SharedKey,
            (None, false) => Kind::Default,
        });
        let name = KINDS.iter().find(|(_, known)| *known == kind);
        if let Some((name, _)) = name {
            credentials.print("type", *name);
        }
        if has_client && kind != Kind::ClientSecret {
            let reason = "isn't client_secret, but `tenantid`, `clientid` or `secret` is set; keep one \
                          source of credentials";
            credentials.reject("type", reason);
        }
        (kind, client_secret(credentials, kind))
    });
    match (kind, key) {
        (Kind::SharedKey, None) => {
            section.missing("accountkey", "a key of the storage account");
            None
        }
        (Kind::SharedKey, Some(key)) => Some(AzureCredentials::AccountKey(key)),
        (_, Some(_)) => {
            let credentials = section.path("credentials");
            let reason = format!("and `{credentials}` are two sources of credentials; keep one");
            section.reject("accountkey", reason);
            None
        }
        (_, None) => client,
    }
}

/// An application's credentials, where `kind` is theirs.
fn client_secret(credentials: &Section<'_>, kind: Kind) -> Option<AzureCredentials> {
    let id = |key: &'static str| {
        credentials.value(key, |text| {
            let is_id = !text.contains(['/', '?', '#']) && is_of_header(text);
            is_id.then(|| text.to_owned()).ok_or("write an id")
        })
    };
    let (tenant, client) = (id("tenantid"), id("clientid"));
    let secret = secret(credentials, "secret");
    if kind != Kind::ClientSecret {
        return None;
    }
    for (key, advice) in [
        ("tenantid", "the id of the tenant"),
        ("clientid", "the id of the application"),
        ("secret", "a secret of the application"),
    ] {
        if credentials.text(key).is_none() {
            credentials.missing(key, advice);
        }
    }
    Some(AzureCredentials::ClientSecret {
        tenant: tenant?,
        client: client?,
        secret: secret?,
    })
}

fn unsupported(section: &Section<'_>) {
    section.refuse(
        "connectionstring",
        "write its parts as `accountname`, `accountkey` and `serviceurl`",
    );
    let reason = "how often requests are sent again is built in";
    section.ignore(&[
        ("max_retries", reason),
        ("retry_delay", reason),
        ("copy_status_poll_max_retry", reason),
        ("copy_status_poll_delay", reason),
    ]);
}
