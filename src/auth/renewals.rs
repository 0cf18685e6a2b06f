//! The keys that are read again when their files change.

use std::error::Error;
use std::sync::Arc;

use super::AuthenticatorOptions;
use super::error::AuthSetupError;
use super::users::Users;
use crate::renewal::{Renewable, WatchedFiles};

/// Keys of the users.
#[derive(Debug)]
struct Keys {
    what: &'static str,
    files: WatchedFiles,
    users: Arc<Users>,
    read: fn(&Users) -> Result<(), AuthSetupError>,
}

impl Renewable for Keys {
    fn what(&self) -> String {
        self.what.to_owned()
    }

    fn files(&self) -> &WatchedFiles {
        &self.files
    }

    fn renew(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok((self.read)(&self.users)?)
    }
}

/// What is renewed.
pub(super) type Renewals = Vec<Arc<dyn Renewable>>;

/// The users, and those of their keys that are renewed. Blocks.
pub(super) fn open(
    options: AuthenticatorOptions,
) -> Result<(Arc<Users>, Renewals), AuthSetupError> {
    let service = options.config.token.as_ref();
    let external = service.and_then(|service| service.root_cert_bundle.clone());
    let external = external
        .into_iter()
        .chain(service.and_then(|service| service.jwks.clone()));
    let external = WatchedFiles::new(external);
    let key = WatchedFiles::new(options.config.key.clone());
    let users = Arc::new(Users::open(options)?);
    let keys = |what, files, read| Keys {
        what,
        files,
        users: Arc::clone(&users),
        read,
    };
    let all = [
        keys("auth.token", external, Users::renew_external as fn(&_) -> _),
        keys("auth.key", key, Users::renew_key),
    ];
    let watched = all.into_iter().filter(|keys| !keys.files.is_empty());
    let watched = watched.map(|keys| Arc::new(keys) as Arc<dyn Renewable>);
    let watched = watched.collect();
    Ok((users, watched))
}
