//! The client of the configured store.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::HttpConnector as _;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::MultipartStore;
use object_store::signer::Signer;
use object_store::{
    Attribute, AttributeValue, Attributes, BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
};

use super::client::Stores;
use super::error::{BucketSetupError, Told};
use super::http::Http;
use crate::config::{Azure, AzureCredentials, BucketStore, Gcs, GcsKey, S3, S3Encryption};

/// Opens the store. Nothing is sent yet. Blocks: files of keys and certificates are read.
pub(super) fn open(store: &BucketStore, http: Http) -> Result<Stores, BucketSetupError> {
    match store {
        BucketStore::S3(store) => s3(store, http),
        BucketStore::Gcs(store) => gcs(store, http),
        BucketStore::Azure(store) => azure(store, http),
    }
}

/// Whoever asks decides what is tried again.
fn no_retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: Duration::ZERO,
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "errors are mapped with it, and end here"
)]
fn unusable(error: object_store::Error) -> BucketSetupError {
    BucketSetupError::Client(Arc::new(Told::of(&error)))
}

/// One store as its traits.
fn stores(store: impl ObjectStore + MultipartStore + Signer) -> Stores {
    let store = Arc::new(store);
    Stores {
        objects: Arc::clone(&store) as _,
        parts: Arc::clone(&store) as _,
        signer: Some(store),
        attributes: Attributes::new(),
        http: None,
    }
}

fn s3(s3: &S3, http: Http) -> Result<Stores, BucketSetupError> {
    let builder = match &s3.keys {
        Some(keys) => {
            let builder = AmazonS3Builder::new()
                .with_access_key_id(&keys.access)
                .with_secret_access_key(keys.secret.expose());
            match &keys.token {
                Some(token) => builder.with_token(token.expose()),
                None => builder,
            }
        }
        None => with_credentials_of_environment(AmazonS3Builder::new()),
    };
    let connector = http.connector()?;
    // The same connections as those of the store.
    let http = connector.connect(&ClientOptions::new()).map_err(unusable)?;
    let builder = builder
        .with_region(&s3.region)
        .with_bucket_name(&s3.bucket)
        // It has the bucket's name, in its host or its path.
        .with_endpoint(s3.url())
        .with_virtual_hosted_style_request(true)
        // TLS protects what is sent; without it, the signature does.
        .with_unsigned_payload(s3.is_secure())
        .with_allow_http(!s3.is_secure())
        // Several servers lack it.
        .with_disable_bulk_delete(true)
        .with_retry(no_retries())
        .with_http_connector(connector);
    let builder = match &s3.encryption {
        Some(S3Encryption::Kms(key)) => builder.with_sse_kms_encryption(key),
        Some(S3Encryption::Store) => {
            let key = "aws_server_side_encryption".parse().map_err(unusable)?;
            builder.with_config(key, "AES256")
        }
        None => builder,
    };
    let class = s3.storage_class.iter();
    let class = class.map(|class| (Attribute::StorageClass, AttributeValue::from(class.clone())));
    Ok(Stores {
        attributes: class.collect(),
        http: Some(http),
        ..stores(builder.build().map_err(unusable)?)
    })
}

/// Only the credentials: the rest of the environment's settings would replace the configured ones.
#[expect(
    clippy::disallowed_methods,
    reason = "where the operator configures no keys, they are where all clients of the store look for them"
)]
fn with_credentials_of_environment(builder: AmazonS3Builder) -> AmazonS3Builder {
    use AmazonS3ConfigKey as Key;
    let is_credential = |key: &Key| {
        matches!(
            key,
            Key::AccessKeyId
                | Key::SecretAccessKey
                | Key::Token
                | Key::WebIdentityTokenFile
                | Key::RoleArn
                | Key::RoleSessionName
                | Key::StsEndpoint
                | Key::ContainerCredentialsRelativeUri
                | Key::ContainerCredentialsFullUri
                | Key::ContainerAuthorizationTokenFile
                | Key::MetadataEndpoint
                | Key::ImdsV1Fallback
        )
    };
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let key: Key = name
            .strip_prefix("AWS_")
            .and(name.to_ascii_lowercase().parse().ok())?;
        Some((key, value.into_string().ok()?))
    });
    variables
        .filter(|(key, _)| is_credential(key))
        .fold(builder, |builder, (key, value)| {
            builder.with_config(key, value)
        })
}

fn gcs(gcs: &Gcs, http: Http) -> Result<Stores, BucketSetupError> {
    let builder = match &gcs.key {
        Some(GcsKey::Json(key)) => {
            GoogleCloudStorageBuilder::new().with_service_account_key(key.expose())
        }
        Some(GcsKey::File(path)) => {
            let key = fs::read_to_string(path).map_err(|source| BucketSetupError::Credentials {
                path: path.clone(),
                source,
            })?;
            GoogleCloudStorageBuilder::new().with_service_account_key(key)
        }
        None => GoogleCloudStorageBuilder::from_env(),
    };
    let builder = builder
        .with_bucket_name(&gcs.bucket)
        .with_retry(no_retries())
        .with_http_connector(http.connector()?);
    Ok(stores(builder.build().map_err(unusable)?))
}

fn azure(azure: &Azure, http: Http) -> Result<Stores, BucketSetupError> {
    let builder = match &azure.credentials {
        Some(AzureCredentials::AccountKey(key)) => {
            MicrosoftAzureBuilder::new().with_access_key(key.expose())
        }
        Some(AzureCredentials::ClientSecret {
            tenant,
            client,
            secret,
        }) => MicrosoftAzureBuilder::new().with_client_secret_authorization(
            client,
            secret.expose(),
            tenant,
        ),
        None => MicrosoftAzureBuilder::from_env(),
    };
    let endpoint = azure.endpoint.as_str().trim_end_matches('/').to_owned();
    let builder = builder
        .with_account(&azure.account)
        .with_container_name(&azure.container)
        .with_endpoint(endpoint)
        .with_allow_http(azure.endpoint.scheme() == "http")
        .with_retry(no_retries())
        .with_http_connector(http.connector()?);
    Ok(stores(builder.build().map_err(unusable)?))
}
