//! The sections `access` and `deny`: what callers may do.

use ipnet::IpNet;

use crate::oci::{Digest, ImagePattern, Pattern};

use super::Config;
use super::proxy::Proxy;
use super::registry_url::authority;
use super::rules;
use super::section::Section;
use super::upstream::Upstream;

/// What a caller wants to do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Read a manifest, a blob or referrers.
    Pull,
    /// Write a manifest or a blob.
    Push,
    /// Remove a manifest, a tag or a blob.
    Delete,
    /// List tags, and see the repository in the catalog.
    List,
}

/// Each permission by its name.
pub const PERMISSIONS: [(&str, Permission); 4] = [
    ("pull", Permission::Pull),
    ("push", Permission::Push),
    ("delete", Permission::Delete),
    ("list", Permission::List),
];

/// What callers may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessConfig {
    /// The first rule that matches decides. Without rules, the defaults do.
    pub rules: Vec<AccessRule>,
    /// What nobody may pull.
    pub deny: DenyConfig,
}

/// What nobody may pull, whatever the rules say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DenyConfig {
    /// Of manifests and blobs, in all repositories.
    pub digests: Vec<Digest>,
    /// Whole repositories, or tags of them.
    pub images: Vec<ImagePattern>,
}

/// One rule. It matches a request if all its parts match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    /// Where it is written: `config.yml:12`.
    pub place: String,
    /// Names of upstreams; empty matches all.
    pub upstreams: Vec<String>,
    /// Compared with the whole stored name; empty matches all.
    pub repositories: Vec<Pattern>,
    pub callers: Callers,
    /// Empty matches all.
    pub actions: Vec<Permission>,
    pub effect: Effect,
}

/// Who calls, and from where: both must match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Callers {
    /// Every caller, anonymous ones included. If it is false, one of the next three must match.
    pub anyone: bool,
    /// Callers without a user.
    pub anonymous: bool,
    pub users: Vec<Pattern>,
    pub groups: Vec<String>,
    /// The networks that the caller's address must belong to; empty matches all.
    pub networks: Vec<IpNet>,
}

/// What a rule does with the requests that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Allow,
    Deny,
    /// Deny, as if the repository didn't exist.
    Hide,
}

/// Reads `access` and `deny`.
pub(super) fn read(root: &Section<'_>, proxy: &Proxy) -> AccessConfig {
    let rules = root.sections("access", |section| rule(section, proxy));
    let rules: Vec<AccessRule> = rules.into_iter().flatten().collect();
    for (index, later) in rules.iter().enumerate() {
        let mut earlier = rules.iter().take(index);
        if let Some(earlier) = earlier.find(|earlier| earlier.covers(later)) {
            let place = &earlier.place;
            root.doubt_at(
                &format!("access[{index}]"),
                format!("never decides: the rule at {place} matches all its requests"),
            );
        }
    }
    let deny = root.section("deny", |deny| DenyConfig {
        digests: deny.values("digests", |text, _| text.parse::<Digest>()),
        images: rules::images(deny, "images", &proxy.default),
    });
    AccessConfig { rules, deny }
}

fn rule(section: &Section<'_>, proxy: &Proxy) -> Option<AccessRule> {
    let upstreams = list(section, "upstreams", |text, _| {
        let mut known = proxy.all_upstreams();
        let found = known.find(|upstream| {
            upstream.name == text || upstream.aliases.iter().any(|alias| alias == text)
        });
        found
            .map(|upstream| upstream.name.clone())
            .ok_or("no upstream has this name; write one of proxy.upstreams, or the default's")
    });
    let repositories = list(section, "repositories", |text, path| {
        let pattern = rules::repository(text)?;
        rules::warn_of_no_match(section, path, text, text, &proxy.default);
        Ok::<_, String>(pattern)
    });
    let actions = list(section, "actions", |text, _| {
        let known = PERMISSIONS.iter().find(|(name, _)| *name == text);
        known
            .map(|(name, _)| *name)
            .ok_or("write pull, push, delete or list")
    });
    let actions = PERMISSIONS
        .into_iter()
        .filter(|(name, _)| actions.contains(name));
    let (callers, named) = callers(section);
    let effect = effect(section);
    if effect == Some(Effect::Allow) && !named {
        section.missing(
            "anyone",
            "`anyone: true` to allow it to all callers, or name them by users, groups, networks or \
             anonymous",
        );
    }
    Some(AccessRule {
        place: section.place(),
        upstreams,
        repositories,
        callers,
        actions: actions.map(|(_, permission)| permission).collect(),
        effect: effect?,
    })
}

/// A list, which may be missing but not empty: a list that a template left empty would make the rule
/// match more than its author meant.
fn list<T: std::fmt::Display, E: std::fmt::Display>(
    section: &Section<'_>,
    key: &'static str,
    mut parse: impl FnMut(&str, &str) -> Result<T, E>,
) -> Vec<T> {
    let mut has_items = false;
    let values = section.values(key, |text, path| {
        has_items = true;
        parse(text, path)
    });
    if values.is_empty() {
        section.print_nothing(key);
    }
    if section.has(key) && !has_items {
        section.reject(
            key,
            "is empty; remove the key, or write what the rule is for",
        );
    }
    values
}

/// A truth value that isn't printed if it is false.
fn flag(section: &Section<'_>, key: &'static str) -> bool {
    let flag = section.bool(key, false);
    if !flag {
        section.print_nothing(key);
    }
    flag
}

fn effect(section: &Section<'_>) -> Option<Effect> {
    let hide = flag(section, "hide");
    if section.text("effect").is_none() {
        section.missing("effect", "allow or deny");
        return None;
    }
    let effects = [("allow", Effect::Allow), ("deny", Effect::Deny)];
    let effect = section.choice("effect", "write allow or deny", &effects, Effect::Deny);
    if hide && effect == Effect::Allow {
        section.reject("hide", "needs `effect: deny`");
    }
    Some(if hide { Effect::Hide } else { effect })
}

/// The callers of a rule, and whether it names any.
fn callers(section: &Section<'_>) -> (Callers, bool) {
    let mut callers = Callers {
        anyone: flag(section, "anyone"),
        anonymous: flag(section, "anonymous"),
        users: list(section, "users", |text, _| {
            Pattern::of_users(text)
                .ok_or("write a user's name without blanks, or * for a part of it")
        }),
        groups: list(section, "groups", |text, _| Ok::<_, &str>(text.to_owned())),
        networks: list(section, "networks", |text, _| network(text)),
    };
    let by_name = callers.anonymous || !callers.users.is_empty() || !callers.groups.is_empty();
    if callers.anyone && by_name {
        section.doubt(
            "anyone",
            "makes the rule match every caller; the others that it names have no effect",
        );
    }
    // Whatever is wrong with them has been reported.
    let lists = ["users", "groups", "networks"];
    let named =
        callers.anyone || callers.anonymous || lists.into_iter().any(|key| section.has(key));
    callers.anyone |= !by_name;
    (callers, named)
}

/// A network in CIDR notation, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text
        .parse()
        .map_err(|_invalid| "write a network such as 10.0.0.0/8 or fd00::/8".to_owned())?;
    let whole = network.trunc();
    if network == whole {
        Ok(network)
    } else {
        Err(format!("it has bits after its prefix; write {whole}"))
    }
}

impl AccessRule {
    /// Whether the rule matches every request that another one matches. May miss some cases.
    fn covers(&self, other: &Self) -> bool {
        fn has_all<T: PartialEq>(all: &[T], some: &[T]) -> bool {
            all.is_empty() || (!some.is_empty() && some.iter().all(|one| all.contains(one)))
        }
        self.covers_repositories(&other.repositories)
            && has_all(&self.upstreams, &other.upstreams)
            && has_all(&self.actions, &other.actions)
            && self.callers.covers(&other.callers)
    }

    fn covers_repositories(&self, others: &[Pattern]) -> bool {
        self.has_all_repositories()
            || (!others.is_empty() && others.iter().all(|one| self.repositories.contains(one)))
    }

    /// Whether it matches every repository of its upstreams.
    pub fn has_all_repositories(&self) -> bool {
        self.repositories.is_empty() || self.repositories.iter().any(Pattern::is_everything)
    }
}

impl Callers {
    fn covers(&self, other: &Self) -> bool {
        let who = self.anyone
            || (!other.anyone
                && (self.anonymous || !other.anonymous)
                && other.users.iter().all(|user| self.users.contains(user))
                && other.groups.iter().all(|group| self.groups.contains(group)));
        let within = |network: &IpNet| self.networks.iter().any(|own| own.contains(network));
        let whence = self.networks.is_empty()
            || (!other.networks.is_empty() && other.networks.iter().all(within));
        who && whence
    }
}

/// Refuses to lend an upstream's account to everyone who can reach the server, unless the operator
/// has said who may use it.
pub(super) fn guard(root: &Section<'_>, config: &Config) {
    if config.lends_by_accident().is_none() {
        return;
    }
    let listen = &config.http.listen;
    let check = |section: &str, upstream: &Upstream| {
        if !upstream.lends_by_accident() {
            return;
        }
        let variable = section.to_ascii_uppercase();
        let variable = variable.replace(['.', '['], "_").replace(']', "");
        let host = authority(&upstream.url);
        let message = format!(
            "everyone who can reach {listen} could pull what the account for {host} can read; write \
             one of:\n  \
             access: [{{networks: [10.0.0.0/8], effect: allow}}]  # rules for callers\n  \
             auth: {{...}}  # callers need credentials\n  \
             {section}.anonymous: true  # everyone may; or REGISTRY_{variable}_ANONYMOUS=true"
        );
        root.problem_at(&format!("{section}.username"), message);
    };
    check("proxy", &config.proxy.default);
    for (index, upstream) in config.proxy.upstreams.iter().enumerate() {
        check(&format!("proxy.upstreams[{index}]"), upstream);
    }
}

/// Warns of `anonymous` where it decides nothing.
pub(super) fn doubt_anonymous(section: &Section<'_>, config: &Config) {
    let proxy = &config.proxy;
    let named = proxy.upstreams.iter().enumerate();
    let named = named.map(|(index, upstream)| (format!("proxy.upstreams[{index}]"), upstream));
    for (path, upstream) in named.chain([("proxy".to_owned(), &proxy.default)]) {
        if upstream.anonymous && !config.access.rules.is_empty() {
            section.doubt_at(
                &format!("{path}.anonymous"),
                "has no effect: the rules of `access` decide what anonymous callers may do",
            );
        }
    }
}
