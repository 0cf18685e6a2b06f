//! `storage.s3`: Amazon S3 and the servers that speak its protocol.

use url::{Host, Url};

use super::common::{UNVERIFIED, chunk_size, endpoint, is_of_header, root, secret};
use crate::config::registry_url::authority;
use crate::config::secret::Secret;
use crate::config::section::Section;
use crate::config::yaml::{Node, Value};

/// The largest part of an upload.
const MAX_CHUNK: u64 = 5 << 30;
/// The region of servers that have none.
const DEFAULT_REGION: &str = "us-east-1";
/// The classes whose objects can be read at once, except those of special buckets.
const CLASSES: [&str; 5] = [
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
];

const CLASS_ADVICE: &str = "write STANDARD, NONE, REDUCED_REDUNDANCY, STANDARD_IA, ONEZONE_IA, \
     INTELLIGENT_TIERING or GLACIER_IR";

/// A bucket in S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3 {
    pub bucket: String,
    /// The region that requests are signed for.
    pub region: String,
    /// `http` or `https`, without credentials, query and fragment. None is Amazon's, over TLS.
    pub endpoint: Option<Url>,
    /// Whether the bucket's name is in the path of URLs, and not in their host.
    pub force_path_style: bool,
    /// Without keys, credentials come from the environment: variables, a web identity, or the
    /// instance.
    pub keys: Option<S3Keys>,
    /// Whether certificates aren't checked.
    pub skip_verify: bool,
    /// What the server is told to encrypt objects with. None leaves that to the bucket's settings.
    pub encryption: Option<S3Encryption>,
    /// The class of new objects, as `x-amz-storage-class` has it. None leaves out the header.
    ///
    /// `object_store` sends it for `Attribute::StorageClass` of an upload, and not with a copy.
    pub storage_class: Option<String>,
    /// What the names of all objects start with: without a slash at either end, and often empty.
    pub root: String,
    /// The bytes of each part of an upload, 5 MiB to 5 GiB.
    pub chunk_size: u64,
}

/// An access key. Its texts can be parts of headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Keys {
    pub access: String,
    pub secret: Secret,
    /// Of temporary keys.
    pub token: Option<Secret>,
}

/// The server's encryption of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Encryption {
    /// With keys of the store's own (`AES256`).
    Store,
    /// With a key of the key management service (`aws:kms`), by its id.
    Kms(String),
}

impl S3 {
    /// The URL that the names of objects are appended to, without a slash at the end:
    /// `https://bucket.s3.eu-west-1.amazonaws.com` or `http://minio:9000/bucket`. `object_store` takes
    /// it as the endpoint of virtual-hosted requests, whichever style it has.
    pub fn url(&self) -> String {
        let (scheme, host) = match &self.endpoint {
            Some(endpoint) => {
                let path = endpoint.path().trim_end_matches('/');
                (endpoint.scheme(), authority(endpoint) + path)
            }
            None => ("https", amazon(&self.region)),
        };
        let bucket = &self.bucket;
        if self.force_path_style {
            format!("{scheme}://{host}/{bucket}")
        } else {
            format!("{scheme}://{bucket}.{host}")
        }
    }

    /// Whether connections are encrypted, so that bodies needn't be signed.
    pub fn is_secure(&self) -> bool {
        let endpoint = self.endpoint.as_ref();
        endpoint.is_none_or(|endpoint| endpoint.scheme() == "https")
    }
}

/// The host of S3 in a region. China's are in a domain of their own.
fn amazon(region: &str) -> String {
    let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("s3.{region}.amazonaws.com{suffix}")
}

/// Reads the section. None where a key is missing or wrong, which is reported.
pub(super) fn read(section: &Section<'_>) -> Option<S3> {
    unsupported(section);
    let has_endpoint = section.text("regionendpoint").is_some();
    let bucket = bucket(section, has_endpoint);
    let region = region(section, has_endpoint);
    let endpoint = secured_endpoint(section, has_endpoint);
    let path_style = section.bool("forcepathstyle", has_endpoint);
    let keys = keys(section);
    let skip_verify = skip_verify(section, endpoint.as_ref());
    let encryption = encryption(section);
    let storage_class = storage_class(section);
    let root = root(section);
    let chunk_size = chunk_size(section, MAX_CHUNK);
    let has_address = endpoint
        .as_ref()
        .is_some_and(|endpoint| !matches!(endpoint.host(), Some(Host::Domain(_))));
    if has_address && !path_style {
        let reason = "is false, but `regionendpoint` has an address, and the bucket's name can't be \
                      put in front of one; remove it";
        section.reject("forcepathstyle", reason);
    }
    let bucket = bucket?;
    // Amazon's certificates are for names with one more label.
    let force_path_style = path_style || (!has_endpoint && bucket.contains('.'));
    section.print("forcepathstyle", force_path_style);
    Some(S3 {
        bucket,
        region: region?,
        endpoint,
        force_path_style,
        keys,
        skip_verify,
        encryption,
        storage_class,
        root,
        chunk_size,
    })
}

/// Other servers than Amazon's permit more names.
fn bucket(section: &Section<'_>, has_endpoint: bool) -> Option<String> {
    if section.text("bucket").is_none() {
        section.missing("bucket", "the bucket's name");
    }
    section.value("bucket", |text| {
        if text.ends_with("--x-s3") {
            return Err("directory buckets (S3 Express One Zone) aren't supported");
        }
        if has_endpoint {
            let named = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            let is_name = (3..=255).contains(&text.len()) && text.bytes().all(named);
            let is_name = is_name && !text.contains("..");
            return is_name.then(|| text.to_owned()).ok_or(
                "write the bucket's name: 3 to 255 letters, digits and . _ -, such as images",
            );
        }
        is_amazon_bucket(text).then(|| text.to_owned()).ok_or(
            "write the bucket's name: 3 to 63 lower-case letters, digits and . -, with a letter or \
             digit at both ends, such as images",
        )
    })
}

/// Source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>.
fn is_amazon_bucket(text: &str) -> bool {
    let is_edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&text.len())
        && text.chars().all(|c| is_edge(c) || ".-".contains(c))
        && text.starts_with(is_edge)
        && text.ends_with(is_edge)
        && !text.contains("..")
        && text.parse::<std::net::Ipv4Addr>().is_err()
}

/// The region that is written, else that of the environment, which all tools of Amazon's read.
fn region(section: &Section<'_>, has_endpoint: bool) -> Option<String> {
    if section.text("region").is_some() {
        return section.value("region", |text| {
            is_region(text)
                .then(|| text.to_owned())
                .ok_or("write a region such as eu-west-1")
        });
    }
    let inherited = section.aws_region().filter(|text| is_region(text));
    let region = inherited.or(has_endpoint.then_some(DEFAULT_REGION));
    match region {
        Some(region) => section.print("region", region),
        None => section.missing(
            "region",
            "the bucket's region, such as eu-west-1, or `regionendpoint` for a server that isn't \
             Amazon's",
        ),
    }
    region.map(str::to_owned)
}

fn is_region(text: &str) -> bool {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=63).contains(&text.len()) && text.bytes().all(named)
}

/// The endpoint. `secure` is for one without a scheme.
fn secured_endpoint(section: &Section<'_>, has_endpoint: bool) -> Option<Url> {
    let is_secure = section.bool("secure", true);
    let scheme = if is_secure { "https" } else { "http" };
    let keys = "`accesskey` and `secretkey`";
    let endpoint = endpoint(section, "regionendpoint", scheme, keys);
    if !is_secure && !has_endpoint {
        let reason = "is false, but `regionendpoint` isn't set: Amazon's servers are asked over TLS; \
                      remove it, or write `regionendpoint`";
        section.reject("secure", reason);
    }
    if let Some(endpoint) = &endpoint {
        let has_tls = endpoint.scheme() == "https";
        if has_tls && !is_secure {
            section.doubt(
                "secure",
                "has no effect: `regionendpoint` begins with https://",
            );
        }
        section.print("secure", has_tls);
    }
    endpoint
}

/// Both keys or none; a token with both only.
fn keys(section: &Section<'_>) -> Option<S3Keys> {
    let access = section.text("accesskey");
    if let Some(access) = &access {
        if is_of_header(access) {
            section.print("accesskey", access.as_str());
        } else {
            // Not shown: it may be the other key.
            let reason = "must be printable ASCII text without blanks and line breaks";
            section.reject("accesskey", reason);
        }
    }
    let secret_key = secret(section, "secretkey");
    let token = secret(section, "sessiontoken");
    let (given, missing) = match (access, secret_key) {
        (Some(access), Some(secret)) => {
            return Some(S3Keys {
                access,
                secret,
                token,
            });
        }
        (Some(_), None) => ("accesskey", "secretkey"),
        (None, Some(_)) => ("secretkey", "accesskey"),
        (None, None) if token.is_some() => ("sessiontoken", "accesskey"),
        (None, None) => return None,
    };
    let missing = section.path(missing);
    let reason = format!("is set, but `{missing}` isn't; write both or none");
    section.reject(given, reason);
    None
}

fn skip_verify(section: &Section<'_>, endpoint: Option<&Url>) -> bool {
    let skip_verify = section.bool("skipverify", false);
    let has_tls = endpoint.is_none_or(|endpoint| endpoint.scheme() == "https");
    if skip_verify && has_tls {
        section.doubt("skipverify", UNVERIFIED);
    } else if skip_verify {
        section.doubt(
            "skipverify",
            "has no effect: `regionendpoint` begins with http://",
        );
    }
    skip_verify
}

fn encryption(section: &Section<'_>) -> Option<S3Encryption> {
    let is_encrypted = section.bool("encrypt", false);
    let key = section.value("keyid", |text| {
        is_of_header(text)
            .then(|| text.to_owned())
            .ok_or("write the id or the ARN of a key")
    });
    if !is_encrypted && key.is_some() {
        section.doubt("keyid", "has no effect: `encrypt` isn't true");
    }
    is_encrypted.then(|| key.map_or(S3Encryption::Store, S3Encryption::Kms))
}

/// NONE is for servers that don't know the header, which STANDARD doesn't need.
fn storage_class(section: &Section<'_>) -> Option<String> {
    let class = section.value("storageclass", |text| {
        let class = text.to_ascii_uppercase();
        let is_default = matches!(class.as_str(), "STANDARD" | "NONE");
        if is_default || CLASSES.contains(&class.as_str()) {
            return Ok(class);
        }
        Err(CLASS_ADVICE)
    })?;
    CLASSES.contains(&class.as_str()).then_some(class)
}

fn unsupported(section: &Section<'_>) {
    section.refuse_switch("v4auth", true, "requests are signed with version 4");
    section.refuse_switch(
        "accelerate",
        false,
        "write `regionendpoint: https://s3-accelerate.amazonaws.com` and `forcepathstyle: false`",
    );
    section.refuse_switch(
        "usedualstack",
        false,
        "write `regionendpoint: https://s3.dualstack.REGION.amazonaws.com`",
    );
    section.refuse_switch(
        "usefipsendpoint",
        false,
        "write `regionendpoint: https://s3-fips.REGION.amazonaws.com`",
    );
    section.refuse_if(
        "objectacl",
        |node| !node.is_empty() && !is(node, "private"),
        "objects have the bucket's default ACL; remove it, and let the bucket's owner own all objects \
         (`BucketOwnerEnforced`)",
    );
    let copies = "objects are copied by one request";
    let logs = "`log.levels` says what is logged";
    section.ignore(&[
        ("multipartcopychunksize", copies),
        ("multipartcopymaxconcurrency", copies),
        ("multipartcopythresholdsize", copies),
        ("useragent", "requests have millpond's own"),
        ("loglevel", logs),
        ("logs3apirequests", logs),
        ("logs3apiresponseheaders", logs),
    ]);
}

fn is(node: &Node, expected: &str) -> bool {
    matches!(&node.value, Value::Scalar(text) if text == expected)
}
