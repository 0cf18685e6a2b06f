//! `storage.azure`: Azure Blob Storage.

use url::Url;

use crate::config::secret::Secret;

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
