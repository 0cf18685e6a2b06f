//! Callers: who they are and where they are.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use crate::replicas::RelayedCaller;
use crate::upstream::Login;

/// Who sends a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// None for an anonymous caller.
    pub user: Option<Arc<User>>,
    /// None on a unix socket.
    pub address: Option<IpAddr>,
    /// The request came through a unix socket.
    pub is_local: bool,
    /// What the caller presents to the upstream (`proxy.authorize: caller`); see
    /// [`login_for`](Self::login_for).
    pub login: Option<Arc<Login>>,
    /// The only upstream that may get the login; None is the one that the request is for.
    pub login_upstream: Option<Arc<str>>,
    /// What the token of an external token service permits; None is no limit.
    pub granted: Option<Arc<Grants>>,
}

/// A caller that has said who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// The certificate of a client, which its TLS handshake has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// DER (RFC 5280).
    pub der: Vec<u8>,
}

/// What a token permits (distribution's "Token Authentication Implementation", claim `access`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants(Vec<Grant>);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Grant {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    #[serde(default)]
    actions: Vec<String>,
}

impl Grants {
    pub(super) fn new(grants: Vec<Grant>) -> Self {
        Self(grants)
    }

    /// Each as `type:name:action,action`, as in the parameter `scope` of a token request.
    fn scopes(&self) -> Vec<String> {
        let scope = |grant: &Grant| {
            let actions = grant.actions.join(",");
            format!("{}:{}:{actions}", grant.kind, grant.name)
        };
        self.0.iter().map(scope).collect()
    }

    /// What [`scopes`](Self::scopes) wrote; anything else permits nothing.
    fn of_scopes(scopes: &[String]) -> Self {
        let grant = |scope: &String| {
            let (kind, rest) = scope.split_once(':')?;
            // A name may have the port of a host.
            let (name, actions) = rest.rsplit_once(':')?;
            Some(Grant {
                kind: kind.to_owned(),
                name: name.to_owned(),
                actions: actions.split(',').map(str::to_owned).collect(),
            })
        };
        Self(scopes.iter().filter_map(grant).collect())
    }

    fn permit(&self, kind: &str, name: &str, action: &str) -> bool {
        let mut grants = self.0.iter();
        grants.any(|grant| {
            let mut actions = grant.actions.iter();
            grant.kind == kind
                && grant.name == name
                && actions.any(|granted| granted == action || granted == "*")
        })
    }
}

impl Caller {
    pub const fn anonymous(address: Option<IpAddr>) -> Self {
        Self {
            user: None,
            address,
            is_local: false,
            login: None,
            login_upstream: None,
            granted: None,
        }
    }

    /// What another replica is told of the caller. The login at an upstream isn't part of it.
    pub fn relayed(&self) -> RelayedCaller {
        let user = self.user.as_deref();
        RelayedCaller {
            user: user.map(|user| user.name.clone()),
            groups: user.map_or_else(Vec::new, |user| user.groups.clone()),
            address: self.address,
            scopes: self.granted.as_deref().map(Grants::scopes),
        }
    }

    /// The caller for which another replica relays a request.
    pub fn of_relay(relayed: &RelayedCaller) -> Self {
        let user = relayed.user.as_ref().map(|name| User {
            name: name.clone(),
            groups: relayed.groups.clone(),
        });
        let scopes = relayed.scopes.as_deref();
        Self {
            user: user.map(Arc::new),
            granted: scopes.map(|scopes| Arc::new(Grants::of_scopes(scopes))),
            ..Self::anonymous(relayed.address)
        }
    }

    /// Whether nobody vouches for the caller: neither a user nor a token that permits something.
    pub fn is_anonymous(&self) -> bool {
        self.user.is_none() && self.granted.is_none()
    }

    /// What the caller presents to an upstream. A login within a token was for one upstream, and goes
    /// to no other.
    pub fn login_for(&self, upstream: &str) -> Option<&Arc<Login>> {
        let login = self.login.as_ref();
        login.filter(|_| {
            self.login_upstream
                .as_deref()
                .is_none_or(|only| only == upstream)
        })
    }

    /// Whether the caller's token permits an action (`pull`, `push`, `delete`) on a repository, by its
    /// name with the upstream's before it, where that isn't the default one. Without an external token service, every token does.
    pub fn grants(&self, repository: &str, action: &str) -> bool {
        let granted = self.granted.as_ref();
        granted.is_none_or(|granted| granted.permit("repository", repository, action))
    }

    /// The same for the catalog.
    pub fn grants_catalog(&self) -> bool {
        let granted = self.granted.as_ref();
        granted.is_none_or(|granted| granted.permit("registry", "catalog", "*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relayed_caller_may_do_what_it_may_do_here() {
        let grant = |kind: &str, name: &str, actions: &[&str]| Grant {
            kind: kind.to_owned(),
            name: name.to_owned(),
            actions: actions.iter().map(ToString::to_string).collect(),
        };
        let granted = Grants::new(vec![
            grant("repository", "ci/app", &["pull", "push"]),
            grant("repository", "registry.example:5000/base", &["pull"]),
            grant("registry", "catalog", &["*"]),
        ]);
        let user = User {
            name: "ann".to_owned(),
            groups: vec!["dev".to_owned()],
        };
        let caller = Caller {
            user: Some(Arc::new(user)),
            granted: Some(Arc::new(granted)),
            ..Caller::anonymous(Some([10, 0, 0, 7].into()))
        };
        let relayed = Caller::of_relay(&caller.relayed());
        assert_eq!(relayed.user, caller.user);
        assert_eq!(relayed.address, caller.address);
        assert_eq!(relayed.granted, caller.granted);
        assert!(!relayed.grants("ci/app", "delete") && relayed.grants("ci/app", "push"));
        let limited = RelayedCaller {
            scopes: Some(vec!["nonsense".to_owned()]),
            ..RelayedCaller::default()
        };
        assert!(!Caller::of_relay(&limited).grants("ci/app", "pull"));
        let unlimited = Caller::of_relay(&Caller::anonymous(None).relayed());
        assert!(unlimited.is_anonymous() && unlimited.grants("ci/app", "pull"));
    }
}
