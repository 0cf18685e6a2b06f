//! The output for each client and each way to reach the mirror, as documented by the clients' projects.

use std::fmt::Write as _;

use super::*;

fn golden(client: &str) -> &'static str {
    match client {
        "docker" => include_str!("golden/docker.txt"),
        "containerd" => include_str!("golden/containerd.txt"),
        "crio" => include_str!("golden/crio.txt"),
        "podman" => include_str!("golden/podman.txt"),
        "buildkit" => include_str!("golden/buildkit.txt"),
        "k3s" => include_str!("golden/k3s.txt"),
        "rke2" => include_str!("golden/rke2.txt"),
        _ => panic!("{client}"),
    }
}

/// What a plan writes to an empty machine.
fn described(options: &Options) -> String {
    let (plan, _) = prepare(options).unwrap();
    let mut text = String::new();
    for file in &plan.files {
        let content = match file.copied_from() {
            Some(from) => format!("(copy of {})\n", from.file_name().unwrap().display()),
            None => file.edit().apply("").unwrap(),
        };
        let secret = if file.is_secret() { ", secret" } else { "" };
        writeln!(text, "--- {}{secret}\n{content}", file.path().display()).unwrap();
    }
    for line in &plan.next {
        writeln!(text, "next: {line}").unwrap();
    }
    text
}

#[test]
fn every_client_gets_what_its_documentation_says() {
    let machine = Machine::new();
    for client in CLIENTS {
        let mut text = String::new();
        for (name, way) in WAYS {
            let others = "--upstream docker.io --upstream ghcr.io";
            let options = machine.options(&format!("{client} {way} {others}"));
            writeln!(text, "=== {name}\n{}", described(&options)).unwrap();
        }
        assert_eq!(text, golden(client), "{client}");
    }
}

#[test]
fn every_format_parses_again() {
    let machine = Machine::new();
    for client in CLIENTS {
        for (_, way) in WAYS {
            let options = machine.options(&format!("{client} {way}"));
            let (plan, _) = prepare(&options).unwrap();
            for file in plan
                .files
                .iter()
                .filter(|file| file.copied_from().is_none())
            {
                let text = file.edit().apply("").unwrap();
                assert!(text.ends_with('\n'), "{client} {way}: {text}");
                assert_eq!(file.edit().apply(&text).unwrap(), text, "{client} {way}");
                let reverted = file.edit().revert(&text, Some("")).unwrap();
                assert!(
                    !reverted.contains("mirror.example"),
                    "{client} {way}: {reverted}"
                );
            }
        }
    }
}

#[test]
fn all_registries_where_the_client_has_an_entry_for_them() {
    let machine = Machine::new();
    let printed = |client: &str| {
        let line = format!("{client} --mirror http://mirror.example:5000 --upstream all");
        let prepared = prepare(&machine.options(&line));
        prepared
            .map(|(plan, _)| contents(&plan).unwrap())
            .map_err(|error| error.to_string())
    };
    let (text, files) = printed("containerd").unwrap();
    let default = "/etc/containerd/certs.d/_default/hosts.toml";
    assert_eq!(files, ["/etc/containerd/config.toml", default]);
    let host = "[host.\"http://mirror.example:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n";
    assert!(text.ends_with(&format!("\n# {default}\n{host}")), "{text}");
    let wildcard = "mirrors:\n  '*':\n    endpoint:\n    - http://mirror.example:5000\n";
    for client in ["k3s", "rke2"] {
        assert_eq!(printed(client).unwrap().0, wildcard, "{client}");
    }
    for client in ["crio", "podman", "buildkit"] {
        let error = printed(client).unwrap_err();
        assert!(error.contains("has no entry for all registries"), "{error}");
    }
    let error = printed("docker").unwrap_err();
    assert!(error.contains("for docker.io only"), "{error}");
}
