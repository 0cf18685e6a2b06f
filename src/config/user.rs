//! Where the files of the person who runs a command are, by the environment: accounts as Docker and containers
//! keep them, and what commands remember.
//!
//! Sources: docker/cli; containers-auth.json(5); XDG Base Directory Specification.

use std::ffi::OsString;
use std::path::PathBuf;

/// The files that may have accounts for registries, in the order in which they count.
#[expect(
    clippy::disallowed_methods,
    reason = "variables of the user's, not of the configuration's"
)]
pub fn account_files() -> Vec<PathBuf> {
    account_files_of(|name| std::env::var_os(name))
}

/// The directory for what commands remember and may lose.
#[expect(
    clippy::disallowed_methods,
    reason = "variables of the user's, not of the configuration's"
)]
pub fn cache_directory() -> PathBuf {
    cache_directory_of(|name| std::env::var_os(name))
}

fn account_files_of(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name: &str, below: &str| {
        let value = variable(name).filter(|value| !value.is_empty())?;
        Some(PathBuf::from(value).join(below))
    };
    let containers = "containers/auth.json";
    let config = path("XDG_CONFIG_HOME", containers)
        .or_else(|| path("HOME", ".config/containers/auth.json"));
    let docker =
        path("DOCKER_CONFIG", "config.json").or_else(|| path("HOME", ".docker/config.json"));
    let named = variable("REGISTRY_AUTH_FILE").filter(|value| !value.is_empty());
    let all = [
        named.map(PathBuf::from),
        path("XDG_RUNTIME_DIR", containers),
        config,
        docker,
    ];
    all.into_iter().flatten().collect()
}

fn cache_directory_of(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let path = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let home = || path("HOME").map(|home| home.join(".cache"));
    let parent = path("XDG_CACHE_HOME").or_else(home);
    parent.unwrap_or_else(std::env::temp_dir).join("millpond")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(variables: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        move |name| {
            let mut variables = variables.iter();
            let (_, value) = variables.find(|(known, _)| *known == name)?;
            Some(value.into())
        }
    }

    #[test]
    fn accounts_are_where_docker_and_containers_keep_them() {
        let files = account_files_of(variable(&[
            ("HOME", "/home/a"),
            ("XDG_RUNTIME_DIR", "/run/1"),
        ]));
        let expected = [
            "/run/1/containers/auth.json",
            "/home/a/.config/containers/auth.json",
            "/home/a/.docker/config.json",
        ];
        assert!(files.iter().eq(expected.map(PathBuf::from).iter()));
        let files = account_files_of(variable(&[
            ("HOME", "/home/a"),
            ("DOCKER_CONFIG", "/d"),
            ("XDG_CONFIG_HOME", "/c"),
            ("REGISTRY_AUTH_FILE", "/r"),
        ]));
        let expected = ["/r", "/c/containers/auth.json", "/d/config.json"];
        assert!(files.iter().eq(expected.map(PathBuf::from).iter()));
    }

    #[test]
    fn what_is_remembered_is_in_the_users_cache() {
        for (variables, expected) in [
            (&[("HOME", "/home/a")][..], "/home/a/.cache/millpond"),
            (&[("HOME", "/a"), ("XDG_CACHE_HOME", "/c")], "/c/millpond"),
            (
                &[("HOME", "/a"), ("XDG_CACHE_HOME", "relative")],
                "/a/.cache/millpond",
            ),
        ] {
            assert_eq!(
                cache_directory_of(variable(variables)),
                PathBuf::from(expected)
            );
        }
    }
}
