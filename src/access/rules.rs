//! The rules, and what holds where none matches.

use std::net::IpAddr;
use std::sync::Arc;

use quick_cache::sync::Cache;

use super::Resource;
use crate::auth::{Caller, User};
use crate::config::{AccessRule, Callers, Effect, Permission, Proxy};
use crate::oci::{Pattern, RepoName};

/// Repositories for which it is remembered which rules name them; the least used are forgotten.
const MAX_REPOSITORIES: usize = 10_000;

/// The rules of the configuration. They don't change.
#[derive(Debug)]
pub(super) struct Rules {
    all: Vec<AccessRule>,
    /// Whether callers can say who they are.
    has_users: bool,
    /// The upstreams from which anonymous callers may pull where there are no rules.
    anonymous: Vec<String>,
    /// Positions of the rules that match a repository, in their order: comparing it with all patterns
    /// takes far longer than comparing a caller with a few rules. The stored name determines the
    /// upstream.
    matching: Cache<RepoName, Arc<[usize]>>,
}

/// What was decided, and the rule that did it, if one did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'a> {
    pub effect: Effect,
    pub rule: Option<&'a AccessRule>,
}

impl Rules {
    pub(super) fn new(rules: Vec<AccessRule>, has_users: bool, proxy: Option<&Proxy>) -> Self {
        let upstreams = proxy.into_iter().flat_map(Proxy::all_upstreams);
        let anonymous = upstreams.filter(|upstream| upstream.anonymous);
        Self {
            all: rules,
            has_users,
            anonymous: anonymous.map(|upstream| upstream.name.clone()).collect(),
            matching: Cache::new(MAX_REPOSITORIES),
        }
    }

    pub(super) fn all(&self) -> &[AccessRule] {
        &self.all
    }

    pub(super) const fn has_users(&self) -> bool {
        self.has_users
    }

    /// Whether everyone may pull and list everything.
    pub(super) const fn is_open(&self) -> bool {
        self.all.is_empty() && !self.has_users
    }

    /// Whether some rule hides what it denies.
    pub(super) fn hides(&self) -> bool {
        self.all.iter().any(|rule| rule.effect == Effect::Hide)
    }

    /// The first matching rule decides.
    pub(super) fn verdict(
        &self,
        caller: &Caller,
        resource: &Resource<'_>,
        permission: Permission,
    ) -> Verdict<'_> {
        if !self.all.is_empty() {
            let matching = self.matching(resource);
            let mut rules = matching.iter().filter_map(|at| self.all.get(*at));
            let rule = rules.find(|rule| {
                (rule.actions.is_empty() || rule.actions.contains(&permission))
                    && rule.callers.matches(caller)
            });
            return Verdict {
                effect: rule.map_or(Effect::Deny, |rule| rule.effect),
                rule,
            };
        }
        Verdict {
            effect: self.without_rules(caller.is_anonymous(), resource.upstream, permission),
            rule: None,
        }
    }

    fn without_rules(&self, is_anonymous: bool, upstream: &str, permission: Permission) -> Effect {
        let reads = matches!(permission, Permission::Pull | Permission::List);
        let allowed = if !self.has_users {
            reads
        } else if is_anonymous {
            reads && self.anonymous.iter().any(|name| name == upstream)
        } else {
            true
        };
        if allowed { Effect::Allow } else { Effect::Deny }
    }

    fn matching(&self, resource: &Resource<'_>) -> Arc<[usize]> {
        if let Some(known) = self.matching.get(resource.repository) {
            return known;
        }
        let rules = self.all.iter().enumerate();
        let rules = rules.filter(|(_, rule)| rule.is_about(resource));
        let matching: Arc<[usize]> = rules.map(|(at, _)| at).collect();
        self.matching
            .insert(resource.repository.clone(), Arc::clone(&matching));
        matching
    }

    /// What anonymous callers may do with an upstream's repositories: `all`, `nothing`, or what
    /// decides.
    pub(super) fn of_anonymous(
        &self,
        proxy: &Proxy,
        upstream: &str,
        permission: Permission,
    ) -> String {
        if self.all.is_empty() {
            let effect = self.without_rules(true, upstream, permission);
            return word(effect == Effect::Allow).to_owned();
        }
        // Those that may decide, up to one that decides everything else.
        let mut some = Vec::new();
        let mut rest = Effect::Deny;
        for rule in &self.all {
            let of_action = rule.actions.is_empty() || rule.actions.contains(&permission);
            let of_anonymous = rule.callers.anyone || rule.callers.anonymous;
            if !of_action || !of_anonymous || !rule.concerns(proxy, upstream) {
                continue;
            }
            some.push(rule);
            if rule.has_all_of(upstream) && rule.callers.networks.is_empty() {
                rest = rule.effect;
                break;
            }
        }
        let allows = |rule: &&AccessRule| rule.effect == Effect::Allow;
        if some.iter().all(allows) && rest == Effect::Allow {
            return word(true).to_owned();
        }
        if !some.iter().any(allows) {
            return word(false).to_owned();
        }
        let places: Vec<_> = some.iter().map(|rule| rule.place.as_str()).collect();
        format!("see {}", places.join(", "))
    }
}

const fn word(allowed: bool) -> &'static str {
    if allowed { "all" } else { "nothing" }
}

impl AccessRule {
    /// Whether it can match repositories of an upstream.
    fn concerns(&self, proxy: &Proxy, upstream: &str) -> bool {
        let of_upstream = |pattern: &Pattern| {
            let pattern = pattern.to_string();
            let first = pattern.split('/').next().unwrap_or_default();
            let mut named = proxy.upstreams.iter();
            let named = named.find(|named| named.name == first);
            first.contains('*') || named.unwrap_or(&proxy.default).name == upstream
        };
        (self.upstreams.is_empty() || self.upstreams.iter().any(|name| name == upstream))
            && (self.repositories.is_empty() || self.repositories.iter().any(of_upstream))
    }

    /// Whether it matches all repositories of an upstream that it concerns.
    fn has_all_of(&self, upstream: &str) -> bool {
        let all = format!("{upstream}/**");
        let mut patterns = self.repositories.iter();
        self.has_all_repositories() || patterns.any(|pattern| pattern.to_string() == all)
    }

    fn is_about(&self, resource: &Resource<'_>) -> bool {
        let of_upstream = self.upstreams.is_empty()
            || self.upstreams.iter().any(|name| name == resource.upstream);
        let repository = resource.repository.as_str();
        let mut patterns = self.repositories.iter();
        of_upstream
            && (self.repositories.is_empty() || patterns.any(|pattern| pattern.matches(repository)))
    }
}

impl Callers {
    /// Whether a caller is one of them.
    pub fn matches(&self, caller: &Caller) -> bool {
        let who = self.anyone
            || match caller.user.as_deref() {
                None => self.anonymous,
                Some(user) => self.names(user),
            };
        who && self.has_address(caller.address)
    }

    fn names(&self, user: &User) -> bool {
        self.users.iter().any(|pattern| pattern.matches(&user.name))
            || self.groups.iter().any(|group| user.groups.contains(group))
    }

    /// A caller on a unix socket has no address, and is in no network.
    fn has_address(&self, address: Option<IpAddr>) -> bool {
        if self.networks.is_empty() {
            return true;
        }
        // An IPv4 address that came in on an IPv6 socket.
        let address = address.map(|address| address.to_canonical());
        address.is_some_and(|address| self.networks.iter().any(|net| net.contains(&address)))
    }
}
