//! Logins to the mirror's own name with accounts that only an upstream knows.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::error::AuthError;
use crate::upstream::Login;

/// Is told what the upstream answered, also when the client has gone: whether the login is right.
pub type Counted = Box<dyn FnOnce(bool) + Send>;

/// Asks upstreams about logins.
pub trait UpstreamLogins: Debug + Send + Sync {
    /// The name of the upstream that knows the login; None where none does. `upstream` is the name in the
    /// client's realm. `counted` is called if the upstream is asked.
    fn check(
        &self,
        upstream: Option<&str>,
        login: Login,
        counted: Counted,
    ) -> BoxFuture<'_, Result<Option<Arc<str>>, AuthError>>;
}
