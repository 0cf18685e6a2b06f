//! Addresses of mirrors, certificates, and which registries are meant.

use super::*;

fn refusal(machine: &Machine, line: &str) -> String {
    let error = prepare(&machine.options(line)).map(|_| ()).unwrap_err();
    let dir = machine.0.path().display().to_string();
    format!("{error:#}").replace(&dir, "DIR")
}

/// Options of `docker`, and what is said about them.
const WRONG: [(&str, &str); 14] = [
    (
        "--mirror mirror.example:5000",
        "--mirror mirror.example:5000: write http://HOST[:PORT]",
    ),
    ("--mirror ftp://mirror.example", "write http://HOST[:PORT]"),
    (
        "--mirror http://mirror.example/v2",
        "a scheme, a host and a port only",
    ),
    (
        "--mirror http://user:secret@mirror.example",
        "a scheme, a host and a port only",
    ),
    (
        "--mirror http://mirror.example --ca CA",
        "need an https:// URL",
    ),
    (
        "--mirror https://mirror.example --ca KEY",
        "DIR/KEY: no CERTIFICATE in PEM form",
    ),
    (
        "--mirror https://mirror.example --ca missing",
        "missing: No such file",
    ),
    (
        "--mirror https://mirror.example --cert CERT --key CERT",
        "DIR/CERT: no PRIVATE KEY in PEM form",
    ),
    (
        "--mirror http://m.example --upstream library",
        "--upstream library: write the registry",
    ),
    (
        "--mirror http://m.example --upstream Ghcr.io",
        "--upstream Ghcr.io: write the registry",
    ),
    (
        "--mirror http://m.example --upstream https://ghcr.io",
        "write the registry",
    ),
    (
        "--mirror http://m.example --upstream a.example/b",
        "write the registry",
    ),
    (
        "--mirror http://m.example --upstream ghcr.io",
        "for docker.io only",
    ),
    (
        "--mirror http://m.example --write missing",
        "--write missing: No such file",
    ),
];

#[test]
fn wrong_options_are_named() {
    let machine = Machine::new();
    fs::write(machine.0.path().join("CONFIG"), "not a key").unwrap();
    for (line, expected) in WRONG {
        let told = refusal(&machine, &format!("docker {line}"));
        assert!(told.contains(expected), "{line}: {told}");
        assert!(!told.contains("secret"), "{told}");
    }
}

#[test]
fn the_options_for_a_certificate_and_undo_need_others() {
    for line in [
        "docker --mirror https://m.example --cert CERT",
        "docker --mirror https://m.example --key KEY",
        "docker --mirror https://m.example --undo",
        "docker",
        "nerdctl --mirror https://m.example",
    ] {
        let words = std::iter::once("millpond").chain(line.split(' '));
        assert!(Line::try_parse_from(words).is_err(), "{line}");
    }
}

const CONFIG: &str = "
version: 0.1
storage: {inmemory: {}}
proxy:
  remoteurl: https://registry-1.docker.io
  upstreams:
    - {name: ghcr.io, remoteurl: 'https://ghcr.io'}
    - {name: quay, remoteurl: 'https://quay.io'}
    - {name: own.example, remoteurl: 'http://127.0.0.1:5001'}
";

#[test]
fn registries_come_from_the_configuration() {
    let registries = |wanted: &[&str], config: &str| {
        let loaded = crate::config::parse(config, "c.yml", std::iter::empty()).unwrap();
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let registries = Registries::new(&wanted, Some(&loaded.config));
        registries
            .map_err(|error| error.to_string())
            .map(|registries| {
                let listed = registries.listed().iter().map(|registry| {
                    let prefix = registry.prefix.as_deref().unwrap_or("-");
                    format!("{} {prefix} {}", registry.name, registry.server)
                });
                (listed.collect::<Vec<_>>().join("\n"), registries.all())
            })
    };
    let all = "docker.io - https://registry-1.docker.io\n\
               ghcr.io ghcr.io https://ghcr.io\n\
               quay.io quay https://quay.io\n\
               127.0.0.1:5001 own.example http://127.0.0.1:5001\n\
               own.example own.example http://127.0.0.1:5001";
    assert_eq!(registries(&[], CONFIG), Ok((all.to_owned(), false)));
    assert_eq!(registries(&["all"], CONFIG), Ok((all.to_owned(), true)));
    let one = "quay.io quay https://quay.io";
    assert_eq!(
        registries(&["quay.io"], CONFIG),
        Ok((one.to_owned(), false))
    );
    let error = registries(&["gcr.io"], CONFIG).unwrap_err();
    assert!(
        error.contains("no such upstream, but docker.io, ghcr.io, quay.io"),
        "{error}"
    );
}

#[test]
fn docker_needs_docker_hub_as_the_default_upstream() {
    let machine = Machine::new();
    let config = CONFIG
        .replace("registry-1.docker.io", "registry.example")
        .replace(
            "{name: quay, remoteurl: 'https://quay.io'}",
            "{name: hub, remoteurl: 'https://registry-1.docker.io'}",
        );
    fs::write(machine.0.path().join("CONFIG"), config).unwrap();
    let told = refusal(&machine, "docker --mirror http://m.example --config CONFIG");
    assert!(
        told.contains("docker.io must be the mirror's default upstream"),
        "{told}"
    );
    // The others name it.
    let options =
        machine.options("podman --mirror http://m.example --config CONFIG --upstream docker.io");
    let (plan, _) = prepare(&options).unwrap();
    let (text, _) = contents(&plan).unwrap();
    assert!(text.contains("location = \"m.example/hub\""), "{text}");
}
