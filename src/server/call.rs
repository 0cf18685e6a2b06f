//! A parsed request, and the step from the name in it to a repository that its caller may access.

use http::Response;

use super::body::Body;
use super::conditional::Conditions;
use crate::download::Client;
use crate::metrics::Outcome;
use crate::mirror::{Mirror, MirrorError, ReadMode, Target};
use crate::oci::{Accept, RepoName};

/// A response and what is counted of it.
pub(super) type Answered = (Response<Body>, Outcome);

/// Who sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// Nobody is asked for credentials yet.
    Anonymous,
}

/// A request, parsed.
pub(super) struct Call<'a> {
    pub(super) caller: Caller,
    /// containerd's `ns` parameter.
    pub(super) ns: Option<&'a str>,
    /// The host that the client addressed.
    pub(super) host: Option<&'a str>,
    pub(super) conditions: Conditions<'a>,
    /// The manifest types that the client reads. Everything, unless the action depends on it.
    pub(super) accept: Accept,
    pub(super) mode: ReadMode,
    /// For fairness among clients.
    pub(super) client: Client,
}

impl Call<'_> {
    /// The repository that the call addresses, if the caller may access it.
    pub(super) fn target(&self, mirror: &Mirror, name: &RepoName) -> Result<Target, MirrorError> {
        let target = mirror.upstreams.target(self.ns, self.host, name)?;
        match self.caller {
            // Everybody may read everything that the mirror's own credentials can read.
            Caller::Anonymous => Ok(target),
        }
    }
}
