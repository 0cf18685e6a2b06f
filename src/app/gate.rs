//! Wires what tells who sends a request.

use std::sync::Arc;

use super::{Shared, StartError};
use crate::auth::{Authenticator, AuthenticatorOptions, UpstreamLogins};
use crate::config::{self, Config};
use crate::mirror::{LoginChecks, Mirror};
use crate::storage::Layout;

impl Shared {
    /// Whether two configurations identify callers in the same way, so that what is remembered of
    /// passwords and tokens still counts. Where logins are checked at upstreams, those are a part of it.
    pub(super) fn is_same_authenticator(old: &Config, new: &Config) -> bool {
        old.auth == new.auth
            && old.http.host == new.http.host
            && old.http.prefix == new.http.prefix
            && old.http.trusted_proxies == new.http.trusted_proxies
            && old.proxy.takes_logins() == new.proxy.takes_logins()
            && (!new.proxy.takes_logins()
                || (old.proxy.default == new.proxy.default
                    && old.proxy.upstreams == new.proxy.upstreams
                    && old.proxy.timeouts == new.proxy.timeouts))
    }

    pub(super) async fn authenticator(
        &self,
        config: &Config,
        mirror: &Arc<Mirror>,
    ) -> Result<Authenticator, StartError> {
        let logins = config.proxy.takes_logins().then(|| {
            let checks = LoginChecks::new(Arc::clone(mirror), self.tasks.clone());
            Arc::new(checks) as Arc<dyn UpstreamLogins>
        });
        let host = config.http.host.as_ref();
        let key = match &config.storage {
            config::Storage::Filesystem { root, .. } => Some(Layout::new(root).token_key()),
            config::Storage::Memory => None,
        };
        let authenticator = Authenticator::open(AuthenticatorOptions {
            config: config.auth.clone(),
            origin: host.map(|host| host.as_str().trim_end_matches('/').to_owned()),
            prefix: config.http.prefix.clone(),
            trusted_proxies: config.http.trusted_proxies.clone(),
            key,
            logins,
            failures: Arc::new(self.denials.audit().clone()),
            clock: self.clock,
            metrics: Arc::clone(&self.metrics),
        });
        Ok(authenticator.await?)
    }
}
