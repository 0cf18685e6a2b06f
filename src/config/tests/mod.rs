mod access;
mod bucket;
mod download;
mod messages;
mod storage;
mod tls;
mod variables;

/// For each key that is read, variables that change it.
pub(crate) fn every_key() -> Vec<Vec<(&'static str, &'static str)>> {
    variables::every_key()
}

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret;

use tracing::Level;

use super::*;

const EXAMPLE: &str = include_str!("../../../config.example.yml");
/// Debian's /etc/docker/registry/config.yml of distribution 2.8, made a proxy.
const DISTRIBUTION: &str = "\
version: 0.1
log:
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/docker-registry
  delete:
    enabled: true
http:
  addr: :5000
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
proxy:
  remoteurl: https://registry-1.docker.io
  username: someone
  password: 1e5
";

fn environment<'a>(
    variables: &'a [(&'a str, &'a str)],
) -> impl Iterator<Item = (String, String)> + 'a {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

fn loaded(text: &str, variables: &[(&str, &str)]) -> Loaded {
    match parse(text, "config.yml", environment(variables)) {
        Ok(loaded) => loaded,
        Err(error) => panic!("{error}"),
    }
}

/// The configuration of a file that starts with a version line.
fn config(text: &str) -> Config {
    loaded(&format!("version: 0.1\n{text}"), &[]).config
}

/// The configuration of a file that starts with a version line, and that of what is printed of it.
fn loaded_twice(text: &str) -> [Config; 2] {
    let first = loaded(&format!("version: 0.1\n{text}"), &[]);
    assert_eq!(first.warnings, Vec::<String>::new());
    let second = loaded(&first.effective, &[]);
    assert_eq!(second.effective, first.effective);
    [first.config, second.config]
}

fn problems(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match parse(text, "config.yml", environment(variables)) {
        Err(ConfigError::Problems(problems)) => problems.iter().map(ToString::to_string).collect(),
        Err(error) => panic!("{error}"),
        Ok(_) => Vec::new(),
    }
}

#[test]
fn defaults_without_a_file() {
    let Loaded {
        config, warnings, ..
    } = load(None, environment(&[])).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.log.level, Level::INFO);
    assert!(config.log.access.is_some() && config.http.http2 && !config.http.relative_urls);
    assert_eq!(config.http.listen, Listen::Tcp(":5000".to_owned()));
    assert_eq!(config.http.debug, None);
    let root = PathBuf::from("./millpond-data");
    assert_eq!(config.storage, Storage::Filesystem { root, mode: None });
    let proxy = config.proxy;
    assert_eq!(proxy.default.name, "docker.io");
    assert_eq!(proxy.default.url.as_str(), "https://registry-1.docker.io/");
    assert!(proxy.default.is_docker_hub && proxy.default.credentials.is_none());
    let aliases = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    assert_eq!(proxy.default.aliases, aliases);
    assert_eq!(proxy.ttl, Some(Duration::from_hours(168)));
    assert_eq!(proxy.tags.times.ttl, Duration::from_mins(1));
    assert_eq!(proxy.timeouts.stall, Duration::from_mins(1));
}

#[test]
fn a_distribution_proxy_starts_unchanged() {
    let Loaded {
        config, warnings, ..
    } = loaded(DISTRIBUTION, &[("REGISTRY_PROXY_ANONYMOUS", "true")]);
    assert_eq!(
        warnings,
        [
            "config.yml:6: `storage.cache` has no effect: descriptors are cached in its own way",
            "config.yml:10: `storage.delete` has no effect: what a mirror holds goes when it \
             expires or is purged",
        ]
    );
    let root = PathBuf::from("/var/lib/docker-registry");
    assert_eq!(config.storage, Storage::Filesystem { root, mode: None });
    assert_eq!(config.log.fields.get("service").unwrap(), "registry");
    assert_eq!(
        config.http.headers.get("x-content-type-options").unwrap(),
        "nosniff"
    );
    let [check] = &config.health.checks[..] else {
        panic!("{:?}", config.health);
    };
    assert_eq!(check.name, "storagedriver_filesystem");
    assert_eq!(check.timing.threshold.get(), 3);
    let credentials = config.proxy.default.credentials.unwrap();
    assert_eq!(login(&credentials), ("someone", "1e5"));
}

/// The user name and password of credentials that are written in the configuration.
fn login(credentials: &Credentials) -> (&str, &str) {
    let Credentials::Fixed { username, password } = credentials else {
        panic!("{credentials:?}");
    };
    (username, password.expose_secret())
}

#[test]
fn upstreams_at_one_host_share_its_names_out() {
    let proxy = config(
        "proxy: {upstreams: [{name: hub.a, remoteurl: 'https://docker.io', aliases: [registry-1.docker.io]}, \
         {name: b.c, remoteurl: 'https://x'}, {name: d.e, remoteurl: 'https://x', aliases: [x]}]}",
    )
    .proxy;
    assert_eq!(proxy.default.aliases, ["docker.io", "index.docker.io"]);
    let aliases = proxy.upstreams.iter().map(|upstream| &*upstream.aliases);
    let expected = [
        &["hub.a", "registry-1.docker.io"][..],
        &["b.c"],
        &["d.e", "x"],
    ];
    assert!(aliases.eq(expected), "{:?}", proxy.upstreams);
    // Its images need `library/` all the same.
    let hubs = proxy
        .upstreams
        .iter()
        .map(|upstream| upstream.is_docker_hub);
    assert!(hubs.eq([true, false, false]));
}

#[test]
fn credentials_have_several_sources() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let file = file.display();
    let text = format!(
        "proxy:\n  remoteurl: https://a\n  anonymous: true\n  usernamefile: {file}\n  password: hunter2\n  credentials:\n  \
         - {{repositories: [team/*, other/**], exec: {{command: docker-credential-x, lifetime: 12h}}}}\n  \
         - {{repositories: [app], dockerconfig: {file}}}\n  \
         - {{repositories: ['**'], username: u, password: hunter2}}\n  proxyurl: socks5h://u:hunter2@p\n"
    );
    for config in loaded_twice(&text) {
        let default = config.proxy.default;
        let Some(Credentials::Files { username, password }) = default.credentials else {
            panic!("{:?}", default.credentials);
        };
        assert!(matches!(username, Written::File(_)) && matches!(password, Written::Text(_)));
        let [helper, docker, fixed] = &default.repository_credentials[..] else {
            panic!("{:?}", default.repository_credentials);
        };
        let command = "docker-credential-x".to_owned();
        let lifetime = Some(Duration::from_hours(12));
        let expected = Helper { command, lifetime };
        assert!(matches!(&helper.credentials, Credentials::Helper(helper) if *helper == expected));
        assert_eq!(helper.repositories.len(), 2);
        assert!(matches!(docker.credentials, Credentials::DockerConfig(_)));
        assert_eq!(login(&fixed.credentials).0, "u");
        assert!(default.credentials_required);
    }
    assert!(
        !loaded(&format!("version: 0.1\n{text}"), &[])
            .effective
            .contains("hunter2")
    );
}

/// The example with its commented keys in use.
fn uncommented() -> String {
    let line = |line: &str| {
        let key = |text: &str| {
            let text = text.trim_start();
            let (key, _) = text.strip_prefix("- ").unwrap_or(text).split_once(':')?;
            key.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                .then_some(())
        };
        match line.split_once("# ") {
            Some((indent, text)) if indent.trim().is_empty() && key(text).is_some() => {
                format!("{indent}{text}\n")
            }
            _ => format!("{line}\n"),
        }
    };
    EXAMPLE.lines().map(line).collect()
}

#[test]
fn the_example_has_the_default_values_and_every_key() {
    let example = loaded(EXAMPLE, &[]);
    assert_eq!(example.warnings, Vec::<String>::new());
    let default = load(None, environment(&[])).unwrap();
    assert_eq!(example.effective, default.effective);

    let document = Document::parse(&uncommented(), None).unwrap();
    assert_eq!(document.duplicates, []);
    let context = Context::new(Report::new("example"), Variables::default());
    check(Some(document.root), &context);
    context
        .keys
        .report_unknown(&context.variables, &context.report);
    let keys = context.keys.effective();
    let (problems, _, places) = context.report.finish();
    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
    // It names files that don't exist, and all drivers and sources of credentials.
    for problem in &problems {
        let is_expected = [
            "names two drivers",
            "it can't be read",
            "two sources",
            "say the same",
            "can't be used with `storage.inmemory`",
            "are two buckets",
            "with `replicas` needs a bucket",
            "which replicas don't show each other",
        ];
        assert!(
            is_expected
                .iter()
                .any(|expected| problem.contains(expected)),
            "{problem}"
        );
    }
    // Not every entry of these has all keys; together, the entries show them.
    let alternatives = ["auth.certificates[", "proxy.tags.rules["];
    let is_alternative = |path: &String| alternatives.iter().any(|list| path.starts_with(list));
    let missing = keys.iter().filter(|path| !places.has(path));
    let missing: Vec<_> = missing.filter(|path| !is_alternative(path)).collect();
    assert_eq!(
        missing,
        ["tags", "loglevel", "storage.s3aws"],
        "a section without effect, a deprecated key and another name of a section aren't shown; all \
         others are"
    );
}

#[test]
fn printed_values_are_read_back() {
    let files = tempfile::tempdir().unwrap();
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, "").unwrap();
    let text = format!(
        "version: 0.1\nlog: {{level: trace, formatter: json, fields: {{a: 1}}, accesslog: {{disabled: true}}}}\n\
         storage: inmemory\n\
         http: {{addr: '[::1]:0', prefix: /a/b/, host: 'https://m.example', headers: {{X-A: [b, c]}},\n  \
           debug: {{addr: ':1', prometheus: {{enabled: false}}}}, http2: {{disabled: yes}}, draintimeout: 0,\n  \
           limits: {{connections: 9, peraddress: 3}}}}\n\
         proxy:\n  remoteurl: http://[::1]:7101\n  username: u\n  password: hunter2\n  ttl: 0\n  tags: {{ttl: 1.5s}}\n  \
           upstreams:\n  - {{name: ghcr.io, remoteurl: 'https://ghcr.io', ca: '{}', aliases: ['X:1']}}\n",
        ca.display()
    );
    let first = loaded(&text, &[]);
    let printed = first.effective;
    assert!(
        !printed.contains("hunter2") && printed.contains("password: <hidden>"),
        "{printed}"
    );
    assert!(!format!("{:?}", first.config).contains("hunter2"));
    let second = loaded(&printed, &[]);
    assert_eq!(second.effective, printed);
    let second = second.config;
    assert_eq!(second.proxy.ttl, None);
    assert_eq!(second.http.prefix, "/a/b");
    let limits = second.http.limits;
    assert_eq!(
        (limits.total, limits.per_address),
        (Some(9), NonZeroUsize::new(3))
    );
    assert_eq!(second.http.debug.unwrap().metrics_path, None);
    assert_eq!(second.proxy.default.name, "[::1]:7101");
    assert_eq!(second.proxy.upstreams[0].aliases, ["ghcr.io", "x:1"]);
    assert_eq!(second.proxy.upstreams[0].ca.as_deref(), Some(ca.as_path()));
}

#[test]
fn docker_hub_has_several_spellings() {
    for url in [
        "https://registry-1.docker.io",
        "https://registry-1.docker.io/",
        "https://index.docker.io/v1/",
        "http://docker.io",
        "https://hub.docker.com",
        "https://Docker.io:443",
    ] {
        let default = config(&format!("proxy: {{remoteurl: '{url}'}}"))
            .proxy
            .default;
        assert_eq!(
            default.url.as_str(),
            "https://registry-1.docker.io/",
            "{url}"
        );
        assert_eq!(
            (default.name.as_str(), default.is_docker_hub),
            ("docker.io", true)
        );
    }
    let mirror = "proxy: {remoteurl: 'http://127.0.0.1:7101', aliases: [Docker.IO]}";
    let mirror = config(mirror).proxy.default;
    assert_eq!(
        (mirror.name.as_str(), mirror.is_docker_hub),
        ("127.0.0.1:7101", true)
    );
    let other = config("proxy: {remoteurl: 'https://docker.io:5000'}")
        .proxy
        .default;
    assert_eq!(
        (other.name.as_str(), other.is_docker_hub),
        ("docker.io:5000", false)
    );
}

#[test]
fn files_are_read_up_to_a_limit_and_found_by_argument_or_variable() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("config.yml");
    let load_file = |text: &[u8]| {
        std::fs::write(&path, text).unwrap();
        load(
            Some(&path),
            environment(&[("REGISTRY_PROXY_ANONYMOUS", "true")]),
        )
    };
    assert!(load_file(DISTRIBUTION.as_bytes()).is_ok());
    assert!(matches!(load_file(b"\xff"), Err(ConfigError::Read { .. })));
    let comment = vec![b'#'; usize::try_from(MAX_FILE).unwrap() + 1];
    assert!(matches!(
        load_file(&comment),
        Err(ConfigError::TooLarge { .. })
    ));
    // One byte less is read, and lacks the version.
    let expected = format!("{}: `version` is missing", path.display());
    let error = load_file(&comment[1..]).unwrap_err().to_string();
    assert!(error.starts_with(&expected), "{error}");
    let error = load(Some(Path::new("/nowhere")), environment(&[])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the configuration file /nowhere"
    );

    std::fs::write(&path, "version: 0.1\nhttp: {addr: ':7'}\n").unwrap();
    let named = path.display().to_string();
    let loaded = load(None, environment(&[(PATH_VARIABLE, &named)])).unwrap();
    assert_eq!(loaded.config.http.listen, Listen::Tcp(":7".to_owned()));
}

#[test]
fn a_nonempty_no_color_turns_colours_off() {
    for (value, colours) in [
        (None, true),
        (Some(""), true),
        (Some("1"), false),
        (Some("0"), false),
    ] {
        let value = value.map(OsStr::new);
        assert_eq!(permits_colours(value), colours, "{value:?}");
    }
}
