//! The rules in words, for operators.

use std::fmt::Display;

use super::rules::Rules;
use super::{Permission, Resource, Verdict};
use crate::auth::Caller;
use crate::config::{AccessRule, Callers, Config, Effect, PERMISSIONS};

/// Says which rule decides about an action of a caller.
pub fn explain(
    config: &Config,
    caller: &Caller,
    resource: &Resource<'_>,
    permission: Permission,
) -> String {
    let rules = rules(config);
    let Verdict { effect, rule } = rules.verdict(caller, resource, permission);
    let user = caller.user.as_ref();
    let who = user.map_or("an anonymous caller", |user| user.name.as_str());
    let whence = caller
        .address
        .map_or_else(String::new, |address| format!(" at {address}"));
    let (repository, upstream) = (resource.repository, resource.upstream);
    let may = match effect {
        Effect::Allow => "may",
        Effect::Deny => "may not",
        Effect::Hide => "may not (and can't tell whether it exists)",
    };
    let because = match rule {
        Some(rule) => format!("the rule at {} decides: {}", rule.place, line(rule)),
        None => format!("no rule matches: {}", otherwise(&rules)),
    };
    let action = action(permission);
    format!("{who}{whence} {may} {action} {repository} of {upstream}: {because}")
}

/// The rules in effect, the defaults, and what anonymous callers may do at each upstream; a line each.
pub fn summary(config: &Config) -> Vec<String> {
    let rules = rules(config);
    let mut lines = vec!["Who may do what; the first rule that matches decides:".to_owned()];
    for rule in rules.all() {
        lines.push(format!("  {}: {}", rule.place, line(rule)));
    }
    lines.push(format!("  otherwise: {}", otherwise(&rules)));
    let deny = &config.access.deny;
    let denied = deny.digests.len() + deny.images.len();
    if denied > 0 {
        lines.push(format!("  above all rules: {denied} entries of `deny`"));
    }
    lines.push("Anonymous callers:".to_owned());
    for upstream in config.proxy.all_upstreams() {
        let may = |permission| rules.of_anonymous(&config.proxy, &upstream.name, permission);
        let account = if upstream.lends_account() {
            ", with this mirror's account"
        } else {
            ""
        };
        let (pull, list) = (may(Permission::Pull), may(Permission::List));
        lines.push(format!(
            "  {}: pull {pull}; list {list}{account}",
            upstream.name
        ));
    }
    lines
}

fn rules(config: &Config) -> Rules {
    Rules::new(
        config.access.rules.clone(),
        config.has_users(),
        Some(&config.proxy),
    )
}

fn otherwise(rules: &Rules) -> &'static str {
    if !rules.all().is_empty() {
        "deny anyone everything"
    } else if rules.has_users() {
        "allow users everything, and anonymous callers what `anonymous: true` opens"
    } else {
        "allow anyone to pull and list everything, and callers on a unix socket to push"
    }
}

fn action(permission: Permission) -> &'static str {
    let mut names = PERMISSIONS.iter();
    let found = names.find(|(_, known)| *known == permission);
    found.map_or("", |(name, _)| name)
}

/// A rule on one line: `allow group acme to pull, list ghcr.io/acme/**`.
fn line(rule: &AccessRule) -> String {
    let effect = match rule.effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
        Effect::Hide => "deny and hide:",
    };
    let actions: Vec<_> = rule.actions.iter().map(|one| action(*one)).collect();
    let actions = if actions.is_empty() {
        "do everything".to_owned()
    } else {
        actions.join(", ")
    };
    let repositories = match rule.repositories.as_slice() {
        [] => "all repositories".to_owned(),
        some => join(some),
    };
    let of = match rule.upstreams.as_slice() {
        [] => String::new(),
        some => format!(" of {}", join(some)),
    };
    let callers = who(&rule.callers);
    format!("{effect} {callers} to {actions} in {repositories}{of}")
}

fn who(callers: &Callers) -> String {
    let mut who = Vec::new();
    if callers.anyone {
        who.push("anyone".to_owned());
    } else {
        who.extend(callers.anonymous.then(|| "anonymous callers".to_owned()));
        who.extend(callers.users.iter().map(|user| format!("user {user}")));
        who.extend(callers.groups.iter().map(|group| format!("group {group}")));
    }
    let from = match callers.networks.as_slice() {
        [] => String::new(),
        some => format!(" from {}", join(some)),
    };
    format!("{}{from}", who.join(", "))
}

fn join(items: &[impl Display]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}
