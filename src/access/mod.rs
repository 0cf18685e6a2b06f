//! What callers may do: the rules of the configuration (`rules`), of which the first that matches
//! decides, the deny list (`deny`) that stands above them, and the audit log (`audit`).
//!
//! A request is decided before anything is looked up for it ([`Access::decide`]), and once more by the
//! digest that its tag turned out to name ([`Access::decide_content`]). A response that is being sent
//! is watched ([`Watch`]), so that a new entry of the deny list ends it.
//!
//! What must never happen: a request for a denied name reaches an upstream; a caller can tell a hidden
//! repository from one that doesn't exist; a refusal is missing from the audit log without a word.

mod audit;
mod audit_file;
mod deny;
mod deny_file;
mod entry;
mod error;
mod explain;
mod hide;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::auth::Caller;
use crate::config::{AccessRule, DenyConfig, Effect, Proxy};
use crate::oci::{Digest, Reference, RepoName};

pub use crate::config::Permission;
pub use audit::{Audit, AuditEvent};
pub use deny::{DenyList, Watch};
pub use entry::DeniedEntry;
pub use error::{Denied, DenyError};
pub use explain::{explain, summary};
use hide::NotFoundTimes;
use rules::Rules;
pub use rules::Verdict;

/// What stands for the upstream of a hosted repository.
pub const HOSTED: &str = "hosted";

/// What a caller wants to access.
#[derive(Debug, Clone, Copy)]
pub struct Resource<'a> {
    /// The name of the upstream; [`HOSTED`] for a repository without one.
    pub upstream: &'a str,
    /// The repository's name in the store: that of a named upstream comes before it.
    pub repository: &'a RepoName,
    /// The tag or the digest, where the request names one.
    pub reference: Option<&'a Reference>,
}

/// Decides what callers may do. Clones share everything. The default permits everyone to pull and list everything.
#[derive(Debug, Clone)]
pub struct Access {
    rules: Arc<Rules>,
    hides: bool,
    denied: Arc<DenyList>,
    audit: Audit,
    not_found: Arc<NotFoundTimes>,
}

impl Default for Access {
    fn default() -> Self {
        Self::over(Rules::new(Vec::new(), false, None))
    }
}

impl Access {
    /// `has_users`: whether callers can say who they are. Nothing is denied besides, and nothing
    /// logged.
    pub fn new(rules: Vec<AccessRule>, has_users: bool, proxy: &Proxy) -> Self {
        Self::over(Rules::new(rules, has_users, Some(proxy)))
    }

    fn over(rules: Rules) -> Self {
        Self {
            hides: rules.hides(),
            rules: Arc::new(rules),
            denied: Arc::default(),
            audit: Audit::default(),
            not_found: Arc::default(),
        }
    }

    /// The same with a deny list and an audit log.
    #[must_use]
    pub fn with(self, denied: Arc<DenyList>, audit: Audit) -> Self {
        Self {
            denied,
            audit,
            ..self
        }
    }

    /// Other rules over the same deny list and audit log, and what was learned so far.
    #[must_use]
    pub fn with_rules(&self, rules: Vec<AccessRule>, has_users: bool, proxy: &Proxy) -> Self {
        Self {
            not_found: Arc::clone(&self.not_found),
            ..Self::new(rules, has_users, proxy).with(Arc::clone(&self.denied), self.audit.clone())
        }
    }

    /// The deny list and the audit log, for operators.
    pub fn denials(&self) -> Denials {
        Denials {
            list: Arc::clone(&self.denied),
            audit: self.audit.clone(),
        }
    }

    /// Where pushes and deletions are logged.
    pub const fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Whether everyone may pull and list everything that isn't on the deny list.
    pub fn is_open(&self) -> bool {
        self.rules.is_open()
    }

    /// Decides whether a caller may do something, and logs a refusal.
    pub fn decide(
        &self,
        caller: &Caller,
        resource: &Resource<'_>,
        permission: Permission,
    ) -> Result<(), Denied> {
        self.check(caller, resource, permission)
            .inspect_err(|denied| self.audit.refused(caller, resource, permission, denied))
    }

    fn check(
        &self,
        caller: &Caller,
        resource: &Resource<'_>,
        permission: Permission,
    ) -> Result<(), Denied> {
        if !self.is_open() {
            self.check_rules(caller, resource, permission)?;
        } else if matches!(permission, Permission::Push | Permission::Delete) && !caller.is_local {
            return Err(Denied::NoWriters {
                action: audit::name(permission),
                repository: resource.repository.as_str().into(),
            });
        }
        let listed = self
            .denied
            .of_request(resource.repository, resource.reference);
        listed.map_or(Ok(()), |entry| Err(Denied::Listed(entry)))
    }

    fn check_rules(
        &self,
        caller: &Caller,
        resource: &Resource<'_>,
        permission: Permission,
    ) -> Result<(), Denied> {
        let Verdict { effect, rule } = self.rules.verdict(caller, resource, permission);
        let place = || rule.map(|rule| rule.place.as_str().into());
        match effect {
            Effect::Allow => Ok(()),
            Effect::Hide => Err(Denied::Hidden(place().unwrap_or_default())),
            Effect::Deny if caller.is_anonymous() && self.rules.has_users() => {
                Err(Denied::Anonymous(place()))
            }
            Effect::Deny => Err(Denied::Caller(place())),
        }
    }

    /// Whether a caller may do something. Logs nothing.
    pub fn permits(
        &self,
        caller: &Caller,
        resource: &Resource<'_>,
        permission: Permission,
    ) -> bool {
        self.check(caller, resource, permission).is_ok()
    }

    /// Decides about the content that a request turned out to mean: a tag names a digest that may be
    /// on the deny list. Logs a refusal.
    pub fn decide_content(
        &self,
        caller: &Caller,
        resource: &Resource<'_>,
        digest: &Digest,
    ) -> Result<(), Denied> {
        let Some(entry) = self.denied.of_digest(digest) else {
            return Ok(());
        };
        let denied = Denied::Listed(entry);
        self.audit
            .refused(caller, resource, Permission::Pull, &denied);
        Err(denied)
    }

    /// Logs that the caller's token of an external token service doesn't permit something.
    pub fn log_lack_of_grant(
        &self,
        caller: &Caller,
        resource: &Resource<'_>,
        permission: Permission,
    ) {
        let denied = Denied::Caller(None);
        self.audit.refused(caller, resource, permission, &denied);
    }

    /// Logs that a caller gets no catalog.
    pub fn log_refused_catalog(&self, caller: &Caller) {
        self.audit.catalog_refused(caller);
    }

    /// Whether the catalog shows a repository: its tags can be listed, or it can be pulled.
    pub fn shows(&self, caller: &Caller, upstream: &str, repository: &RepoName) -> bool {
        let resource = Resource {
            upstream,
            repository,
            reference: None,
        };
        let mut permissions = [Permission::List, Permission::Pull].into_iter();
        permissions.any(|permission| self.permits(caller, &resource, permission))
    }

    /// Why a caller who can see no repository at all gets no catalog: it may once it has said who it
    /// is.
    pub fn decide_empty_catalog(&self, caller: &Caller) -> Result<(), Denied> {
        if self.rules.has_users() && caller.is_anonymous() {
            self.log_refused_catalog(caller);
            return Err(Denied::Anonymous(None));
        }
        Ok(())
    }

    /// Looks after a response with this content.
    pub fn watch(&self, repository: &RepoName, digest: Digest) -> Watch {
        Watch::new(&self.denied, repository, Reference::Digest(digest))
    }

    /// Whether a rule hides repositories. Then all that an upstream doesn't have, or doesn't give to
    /// this mirror, is answered alike.
    pub const fn hides(&self) -> bool {
        self.hides
    }

    /// Remembers how long it took to learn from an upstream that it has no such thing. Not for an answer
    /// that came without asking it: a caller that asks for those would make hidden names answer at once.
    pub fn took_to_find_nothing(&self, time: Duration) {
        self.not_found.note(time);
    }

    /// Waits until a request has taken as long as an upstream takes to say that it has no such thing.
    pub async fn wait_like_not_found(&self, started: Instant) {
        tokio::time::sleep_until(started + self.not_found.any()).await;
    }
}

/// Changes the deny list, and logs that.
#[derive(Debug, Clone, Default)]
pub struct Denials {
    list: Arc<DenyList>,
    audit: Audit,
}

impl Denials {
    pub fn new(list: Arc<DenyList>, audit: Audit) -> Self {
        Self { list, audit }
    }

    /// Where changes are logged.
    pub const fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Replaces the entries of the configuration, in effect at once.
    pub fn configure(&self, config: &DenyConfig) {
        self.list.configure(config);
    }

    /// All entries, sorted.
    pub fn list(&self) -> Vec<DeniedEntry> {
        self.list.list()
    }

    /// Adds an entry, in effect at once. `added` is the time (RFC 3339).
    pub async fn add(
        &self,
        reference: &str,
        reason: Option<String>,
        added: String,
    ) -> Result<DeniedEntry, DenyError> {
        let result = self
            .list
            .add(reference, reason.clone(), added.clone())
            .await;
        match &result {
            Ok(entry) => self.audit.list_changed(AuditEvent::Denied, entry),
            // In effect all the same.
            Err(DenyError::Save { .. }) => {
                let entry = DeniedEntry {
                    reference: reference.to_owned(),
                    reason,
                    added: Some(added),
                };
                self.audit.list_changed(AuditEvent::Denied, &entry);
            }
            Err(_) => {}
        }
        result
    }

    /// Removes an entry that was added at run time.
    pub async fn remove(&self, reference: &str) -> Result<DeniedEntry, DenyError> {
        let removed = self.list.remove(reference).await?;
        self.audit.list_changed(AuditEvent::DenialRemoved, &removed);
        Ok(removed)
    }
}
