//! Which hosts belong together: where the operator's credentials may be sent. Pure.

use url::{Host, Url};

/// Whether two hosts are the same or share a registrable domain (public suffix list). An IP address
/// and a name of a single label belong to no domain, so they are only ever the same host.
pub(super) fn same_site(a: &Url, b: &Url) -> bool {
    match (a.host(), b.host()) {
        (Some(Host::Domain(one)), Some(Host::Domain(other))) => {
            one == other || registrable(one).is_some_and(|one| registrable(other) == Some(one))
        }
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// Whether a host has a name that anybody could have registered, and the port of its scheme.
pub(super) fn is_public(authority: &str) -> bool {
    psl::domain(authority.as_bytes()).is_some_and(|domain| domain.suffix().is_known())
}

fn registrable(host: &str) -> Option<&str> {
    psl::domain_str(host.strip_suffix('.').unwrap_or(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_hosts_and_addresses_are_no_public_names() {
        for public in ["ghcr.io", "team.azurecr.io", "registry.gitlab.com"] {
            assert!(is_public(public), "{public}");
        }
        for internal in [
            "10.0.0.1",
            "10.0.0.1:5000",
            "[fd00::1]",
            "registry",
            "registry:5000",
            "harbor.internal",
            "harbor.svc.cluster.local",
            "ghcr.io:5000",
            "io",
            "",
        ] {
            assert!(!is_public(internal), "{internal}");
        }
    }

    fn site(a: &str, b: &str) -> bool {
        let url = |host: &str| Url::parse(&format!("https://{host}/")).unwrap();
        same_site(&url(a), &url(b))
    }

    /// (registry, token service), as their challenges name them.
    const REGISTRIES: &[(&str, &str)] = &[
        ("registry-1.docker.io", "auth.docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("quay.io", "quay.io"),
        ("public.ecr.aws", "public.ecr.aws"),
        ("gcr.io", "gcr.io"),
        ("europe-docker.pkg.dev", "europe-docker.pkg.dev"),
        ("team.azurecr.io", "team.azurecr.io"),
        ("registry.gitlab.com", "gitlab.com"),
        ("registry.gitlab.example.co.uk", "gitlab.example.co.uk"),
        ("registry.digitalocean.com", "api.digitalocean.com"),
        ("registry.redhat.io", "registry.redhat.io"),
        ("harbor.corp.example:8443", "harbor.corp.example"),
        ("127.0.0.1:5000", "127.0.0.1:5001"),
        ("[::1]:5000", "[::1]"),
        ("registry:5000", "registry:5001"),
    ];

    #[test]
    fn registries_and_their_token_services_are_one_site() {
        for (registry, realm) in REGISTRIES {
            assert!(site(registry, realm), "{registry} {realm}");
        }
    }

    #[test]
    fn hosts_that_share_only_a_public_suffix_are_not_one_site() {
        for (a, b) in [
            ("registry.example.com", "registry.example.org"),
            ("one.co.uk", "two.co.uk"),
            ("one.github.io", "two.github.io"),
            ("one.azurecr.io.evil.example", "one.azurecr.io"),
            ("registry-1.docker.io", "auth.docker.io.evil.example"),
            ("example.com", "notexample.com"),
            ("registry", "auth"),
            ("registry.corp", "auth.corp"),
            ("com", "com."),
            ("127.0.0.1", "127.0.0.2"),
            ("127.0.0.1", "localhost"),
            ("[::1]", "[::2]"),
        ] {
            assert!(!site(a, b), "{a} {b}");
            assert!(!site(b, a), "{b} {a}");
        }
    }
}
