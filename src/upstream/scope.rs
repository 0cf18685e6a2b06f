//! The scope of a token (distribution, "Token Scope Documentation"): what a token service is asked
//! for. Pure.
//!
//! The mirror only ever reads, so it asks for `pull` of the one repository. A challenge can't talk
//! it into more: of the challenge's scope only the read-only actions for that repository are
//! used, and only after the narrow scope was refused.

use crate::oci::RepoName;

/// What stands for the repository's name in a configured scope.
const PLACEHOLDER: &str = "{name}";
/// Actions that don't change anything, as registries name them (`metadata_read`: Azure).
const READ_ONLY: [&str; 6] = [
    "pull",
    "read",
    "list",
    "metadata_read",
    "metadata/read",
    "content/read",
];

/// The scopes to ask for, each when the one before it was refused; each is one or more, separated by
/// blanks. `configured` is the operator's scope, in which `{name}` stands for the repository's name;
/// `challenge` is the one that the upstream's challenge asks for.
pub(super) fn scopes(
    repo: &RepoName,
    configured: Option<&str>,
    challenge: Option<&str>,
) -> Vec<String> {
    if let Some(template) = configured {
        return vec![template.replace(PLACEHOLDER, repo.as_str())];
    }
    let narrow = format!("repository:{repo}:pull");
    let wider = challenge.and_then(|challenge| read_only(repo, challenge));
    let wider = wider.filter(|wider| *wider != narrow);
    std::iter::once(narrow).chain(wider).collect()
}

/// The challenge's scopes for this repository, with their read-only actions and `pull`.
fn read_only(repo: &RepoName, challenge: &str) -> Option<String> {
    let scopes = challenge.split_ascii_whitespace();
    let scopes = scopes.filter_map(|scope| {
        let (class, rest) = scope.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let is_repository = class == "repository" || class.starts_with("repository(");
        if !is_repository || name != repo.as_str() {
            return None;
        }
        let actions = actions.split(',');
        let others = actions.filter(|action| *action != "pull" && READ_ONLY.contains(action));
        let actions: Vec<&str> = std::iter::once("pull").chain(others).collect();
        Some(format!("{class}:{name}:{}", actions.join(",")))
    });
    let scopes: Vec<String> = scopes.collect();
    (!scopes.is_empty()).then(|| scopes.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_never_widens_the_first_scope() {
        let repo: RepoName = "a/b".parse().unwrap();
        for (challenge, wider) in [
            (None, None),
            (Some(""), None),
            (Some("repository:a/b:pull"), None),
            (Some("repository:a/b:pull,push,delete,*"), None),
            (Some("repository:a/b:push"), None),
            (Some("repository:other:pull,list"), None),
            (Some("registry:catalog:*"), None),
            (Some("repository:a/b"), None),
            (Some("x repository:a/b:"), None),
            (
                Some("repository:a/b:metadata_read,push"),
                Some("repository:a/b:pull,metadata_read"),
            ),
            (
                Some("repository(plugin):a/b:pull,push registry:catalog:*"),
                Some("repository(plugin):a/b:pull"),
            ),
            (
                Some("repository:a/b:list repository:evil:list repository:a/b:read"),
                Some("repository:a/b:pull,list repository:a/b:pull,read"),
            ),
        ] {
            let expected = std::iter::once("repository:a/b:pull").chain(wider);
            let found = scopes(&repo, None, challenge);
            assert!(found.iter().eq(expected), "{challenge:?} {found:?}");
            // A configured scope is final.
            let template = "repository:prefix/{name}:pull,list";
            let configured = scopes(&repo, Some(template), challenge);
            assert_eq!(configured, ["repository:prefix/a/b:pull,list"]);
        }
    }
}
