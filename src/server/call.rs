//! A parsed request, and the step from the name in it to a repository that its caller may access.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::Response;

use super::body::Body;
use super::conditional::Conditions;
use super::push_head::{HeadError, PushHead};
use super::relay_head::RelayHead;
use crate::access::{Access, Denied, HOSTED, Permission, Resource};
use crate::auth::{AuthError, Caller};
use crate::download::Client;
use crate::hosted::HostedError;
use crate::metrics::{Addressed, Outcome};
use crate::mirror::{Mirror, MirrorError, ReadMode, Target};
use crate::oci::{Accept, Classified, Digest, ErrorKind, Reference, RepoName};
use crate::upstream::RelayError;

/// A response and what is counted of it.
pub(super) type Answered = (Response<Body>, Outcome);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error(transparent)]
    Caller(#[from] AuthError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Place(#[from] WrongPlace),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Hosted(#[from] HostedError),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// A request that its repository isn't there for.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum WrongPlace {
    #[error("this is a read-only mirror: push to the upstream registry itself")]
    OnlyMirrored,
    /// The patterns of the repositories that are hosted.
    #[error("only {0} can be pushed to here; everything else is a read-only mirror")]
    Mirrored(Arc<str>),
    #[error("repositories of this name are hosted here and have no upstream")]
    Hosted,
    /// The patterns of the repositories that are hosted.
    #[error("this server has no upstream; it has only the repositories {0}")]
    Nowhere(Arc<str>),
}

impl Classified for WrongPlace {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OnlyMirrored | Self::Mirrored(_) => ErrorKind::ReadOnly,
            Self::Hosted | Self::Nowhere(_) => ErrorKind::NameUnknown,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }
}

/// Who sends a request, and so where its caller is authorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender<'a> {
    /// A client: here.
    Client,
    /// Another replica, which asks for content of the upstream with this name: there.
    Replica { upstream: &'a str },
    /// Another replica, which relays its client's request for a hosted repository: there.
    Relay,
}

/// A request, parsed.
pub(super) struct Call<'a> {
    pub(super) caller: Caller,
    /// Takes the upstream that the call turns out to be for.
    pub(super) addressed: &'a Addressed,
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
    pub(super) sender: Sender<'a>,
    /// What the head of a push says of its body.
    pub(super) push: Option<Box<PushHead>>,
    /// What another replica is told of the request, where that one writes the hosted repository.
    pub(super) relay: Option<Box<RelayHead>>,
}

impl Call<'_> {
    /// Whether a client of this replica sends it.
    pub(super) fn is_of_client(&self) -> bool {
        self.sender == Sender::Client
    }

    /// The repository that the call addresses, if the caller may access it.
    pub(super) fn target(
        &self,
        mirror: &Mirror,
        access: &Access,
        name: &RepoName,
        wanted: (Permission, Option<&Reference>),
    ) -> Result<Target, CallError> {
        if let Sender::Replica { upstream } = self.sender {
            let login = self.caller.login.as_ref();
            let target = mirror.upstreams.of_peer(upstream, name, login)?;
            self.addressed.set(target.upstream.metrics_id());
            return Ok(target);
        }
        let target = mirror.upstreams.target(self.ns, self.host, name)?;
        self.addressed.set(target.upstream.metrics_id());
        let login = self.caller.login_for(target.upstream.name());
        let target = target.with_login(login);
        let (permission, reference) = wanted;
        let resource = Resource {
            upstream: target.upstream.name(),
            repository: &target.stored,
            reference,
        };
        // Both permissions that exist read: distribution's word for it is pull.
        if !self.caller.grants(target.qualified(name).as_str(), "pull") {
            access.log_lack_of_grant(&self.caller, &resource, permission);
            return Err(AuthError::Scope.into());
        }
        access.decide(&self.caller, &resource, permission)?;
        Ok(target)
    }

    /// Checks that the caller may access a hosted repository.
    pub(super) fn permit_hosted(
        &self,
        access: &Access,
        name: &RepoName,
        (permission, reference): (Permission, Option<&Reference>),
    ) -> Result<(), CallError> {
        if !self.is_of_client() {
            return Ok(());
        }
        let resource = Resource {
            upstream: HOSTED,
            repository: name,
            reference,
        };
        // Distribution's words.
        let action = match permission {
            Permission::Pull | Permission::List => "pull",
            Permission::Push => "push",
            Permission::Delete => "delete",
        };
        if !self.caller.grants(name.as_str(), action) {
            access.log_lack_of_grant(&self.caller, &resource, permission);
            return Err(AuthError::Scope.into());
        }
        Ok(access.decide(&self.caller, &resource, permission)?)
    }

    /// Checks that the manifest that a reference turned out to name isn't on the deny list.
    pub(super) fn permits(
        &self,
        access: &Access,
        target: &Target,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<(), CallError> {
        if !self.is_of_client() {
            return Ok(());
        }
        let resource = Resource {
            upstream: target.upstream.name(),
            repository: &target.stored,
            reference: Some(reference),
        };
        Ok(access.decide_content(&self.caller, &resource, digest)?)
    }

    /// The same for a manifest of a hosted repository.
    pub(super) fn permits_content(
        &self,
        access: &Access,
        name: &RepoName,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<(), CallError> {
        if !self.is_of_client() {
            return Ok(());
        }
        let resource = Resource {
            upstream: HOSTED,
            repository: name,
            reference: Some(reference),
        };
        Ok(access.decide_content(&self.caller, &resource, digest)?)
    }
}

impl CallError {
    fn classified(&self) -> &dyn Classified {
        match self {
            Self::Mirror(error) => error,
            Self::Caller(error) => error,
            Self::Denied(error) => error,
            Self::Place(error) => error,
            Self::Head(error) => error,
            Self::Hosted(error) => error,
            Self::Relay(error) => error,
        }
    }
}

impl Classified for CallError {
    fn kind(&self) -> ErrorKind {
        self.classified().kind()
    }

    fn reason(&self) -> Cow<'static, str> {
        self.classified().reason()
    }

    fn retry_after(&self) -> Option<Duration> {
        self.classified().retry_after()
    }

    fn missing_parts(&self) -> &[Digest] {
        self.classified().missing_parts()
    }
}
