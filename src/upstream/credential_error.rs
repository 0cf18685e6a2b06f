//! Why there are no credentials for a request that needs them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::account::LoginError;
use super::docker_config::DockerConfigError;
use super::helper::HelperError;

/// Why there are no credentials. Shows no secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialError {
    #[error("{} can't be read: {source}", path.display())]
    File {
        path: PathBuf,
        source: Arc<io::Error>,
    },
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{} is empty or not UTF-8", path.display())]
    Content { path: PathBuf },
    #[error("the configured credentials can't be used: {0}")]
    Login(#[from] LoginError),
    #[error("{}: {error}", path.display())]
    DockerConfig {
        path: PathBuf,
        error: DockerConfigError,
    },
    #[error("{} has none for {server}", path.display())]
    NoEntry { path: PathBuf, server: String },
    #[error("the credential helper {command:?} failed for {server}: {error}")]
    Helper {
        command: String,
        server: String,
        error: HelperError,
    },
    #[error(
        "the upstream asks for a user name and password, but the credentials are an identity token"
    )]
    IdentityToken,
    /// A proxy could read them.
    #[error(
        "they would pass through a proxy over plain HTTP; use an https:// URL, write \
         `proxyurl: none`, or write `plainhttp: true` to permit it"
    )]
    Exposed,
}
