//! `millpond check`: what it finds, and that it names the place.
#![cfg(unix)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

struct Site(TempDir);

impl Site {
    /// A configuration file of these lines.
    fn new(lines: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = lines
            .join("\n")
            .replace("DIR", &dir.path().display().to_string());
        std::fs::write(dir.path().join("c.yml"), text).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, command: &str, variables: &[(&str, &str)]) -> Output {
        let mut program = Command::new(env!("CARGO_BIN_EXE_millpond"));
        program
            .arg(command)
            .arg("--config")
            .arg(self.path().join("c.yml"));
        program.envs(variables.iter().copied()).output().unwrap()
    }

    /// What a command that fails says, with this in place of the directory: `DIR`.
    fn refused(&self, command: &str, variables: &[(&str, &str)]) -> String {
        let output = self.run(command, variables);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        text.replace(&self.path().display().to_string(), "DIR")
    }
}

#[test]
fn a_ca_file_without_a_certificate_is_found_before_the_start() {
    let site = Site::new(&[
        "version: 0.1",
        "storage: {filesystem: {rootdirectory: DIR/data}}",
        "proxy:",
        "  remoteurl: https://registry.example",
        "  upstreams:",
        "    - name: other.example",
        "      remoteurl: https://other.example",
        "      ca: DIR/ca.pem",
    ]);
    std::fs::write(site.path().join("ca.pem"), "not a certificate\n").unwrap();
    for command in ["check", "serve"] {
        let text = site.refused(command, &[]);
        let expected = "millpond: DIR/c.yml:8: `proxy.upstreams[0].ca`: ";
        let told = text.lines().last().unwrap();
        assert!(told.starts_with(expected), "{command}: {text}");
        assert!(told.contains("certificate"), "{command}: {text}");
    }
}

#[test]
fn a_data_directory_that_cannot_be_used_is_found_and_none_is_made() {
    let site = Site::new(&[
        "version: 0.1",
        "storage:",
        "  filesystem:",
        "    rootdirectory: DIR/file/data",
        "proxy: {remoteurl: 'https://registry.example'}",
    ]);
    let wanted = site.run("check", &[]);
    assert!(wanted.status.success(), "{wanted:?}");
    assert!(!site.path().join("file").exists(), "nothing is made");
    std::fs::write(site.path().join("file"), "").unwrap();
    let key = "`storage.filesystem.rootdirectory`: ";
    let text = site.refused("check", &[]);
    assert!(
        text.starts_with(&format!("millpond: DIR/c.yml:4: {key}")),
        "{text}"
    );
    let variable = "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY";
    let path = site.path().join("file/other").display().to_string();
    let text = site.refused("check", &[(variable, &path)]);
    assert!(
        text.starts_with(&format!("millpond: {variable}: {key}")),
        "{text}"
    );
}

#[test]
fn the_version_names_the_commit() {
    let program = Command::new(env!("CARGO_BIN_EXE_millpond"))
        .arg("--version")
        .output();
    let version = String::from_utf8(program.unwrap().stdout).unwrap();
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        let output = git
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    let is_own =
        git(&["rev-parse", "--show-toplevel"]).as_deref() == Some(env!("CARGO_MANIFEST_DIR"));
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| is_own);
    let expected = match commit {
        Some(commit) => format!("millpond {} ({commit})\n", env!("CARGO_PKG_VERSION")),
        None => format!("millpond {}\n", env!("CARGO_PKG_VERSION")),
    };
    assert_eq!(version, expected);
}

#[test]
fn space_that_can_never_be_free_is_a_warning() {
    let site = Site::new(&[
        "version: 0.1",
        "storage:",
        "  filesystem: {rootdirectory: DIR/data}",
        "  minfree: 8000TiB",
        "proxy: {remoteurl: 'https://registry.example'}",
    ]);
    let output = site.run("check", &[]);
    assert!(output.status.success(), "{output:?}");
    let warning = format!(
        "warning: {}/c.yml:4: `storage.minfree` wants ",
        site.path().display()
    );
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&warning), "{text}");
    let possible = site.run("check", &[("REGISTRY_STORAGE_MINFREE", "1MiB")]);
    let text = String::from_utf8(possible.stderr).unwrap();
    assert!(!text.contains("minfree"), "{text}");
}

#[test]
fn hints_fit_the_error_of_the_listener() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    for (address, hint) in [
        (
            taken.as_str(),
            "is another program, or another millpond, using it?",
        ),
        // TEST-NET-1: nobody has it.
        (
            "192.0.2.1:5000",
            "no interface of this machine has that address",
        ),
    ] {
        let site = Site::new(&[
            "version: 0.1",
            "storage: {inmemory: {}}",
            "http:",
            &format!("  addr: '{address}'"),
            "proxy: {remoteurl: 'http://registry.example'}",
        ]);
        let text = site.refused("serve", &[]);
        let told = text.lines().last().unwrap();
        let expected = format!("millpond: DIR/c.yml:4: `http.addr`: can't listen on {address}: ");
        assert!(told.starts_with(&expected), "{text}");
        assert!(told.ends_with(hint), "{text}");
    }
}

#[test]
fn tls_files_that_cant_be_used_are_found_before_the_start() {
    let site = Site::new(&[
        "version: 0.1",
        "storage: {filesystem: {rootdirectory: DIR/data}}",
        "proxy: {remoteurl: 'https://registry.example'}",
        "http:",
        "  addr: 127.0.0.1:0",
        "  listeners:",
        "    - addr: 127.0.0.1:1",
        "      tls:",
        "        certificate: DIR/cert.pem",
        "        key: DIR/key.pem",
    ]);
    let missing = site.refused("check", &[]);
    let expected = "millpond: DIR/c.yml:8: `http.listeners[0].tls`: TLS on 127.0.0.1:1: the file \
                    DIR/cert.pem can't be read: No such file";
    assert!(missing.contains(expected), "{missing}");
    let authority = testkit::Authority::new("tests");
    let [one, other] = [authority.server(), authority.server()];
    std::fs::write(site.path().join("cert.pem"), one.certificate).unwrap();
    std::fs::write(site.path().join("key.pem"), other.key).unwrap();
    for command in ["check", "serve"] {
        let text = site.refused(command, &[]);
        let expected = "millpond: DIR/c.yml:10: `http.listeners[0].tls.key`: TLS on 127.0.0.1:1: the \
                        private key in DIR/key.pem doesn't belong to the certificate in DIR/cert.pem";
        assert!(text.contains(expected), "{text}");
    }
    std::fs::write(site.path().join("key.pem"), one.key).unwrap();
    assert!(site.run("check", &[]).status.success());
}

/// Rules for two upstreams.
const RULES: [&str; 9] = [
    "version: 0.1",
    "storage: {filesystem: {rootdirectory: DIR/data}}",
    "proxy:",
    "  remoteurl: https://registry-1.docker.io",
    "  upstreams: [{name: ghcr.io, remoteurl: 'https://ghcr.io'}]",
    "access:",
    "  - {repositories: [ghcr.io/acme/**], groups: [acme], effect: allow}",
    "  - {repositories: [ghcr.io/acme/**], effect: deny, hide: true}",
    "  - {networks: [10.0.0.0/8], actions: [pull], effect: allow}",
];

#[test]
fn who_may_do_what_is_printed_as_a_comment() {
    let site = Site::new(&RULES);
    let output = site.run("check", &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.replace(&site.path().display().to_string(), "DIR");
    let comments: Vec<_> = text.lines().filter(|line| line.starts_with('#')).collect();
    assert_eq!(
        comments,
        [
            "# Who may do what; the first rule that matches decides:",
            "#   DIR/c.yml:7: allow group acme to do everything in ghcr.io/acme/**",
            "#   DIR/c.yml:8: deny and hide: anyone to do everything in ghcr.io/acme/**",
            "#   DIR/c.yml:9: allow anyone from 10.0.0.0/8 to pull in all repositories",
            "#   otherwise: deny anyone everything",
            "# Anonymous callers:",
            "#   docker.io: pull see DIR/c.yml:9; list nothing",
            "#   ghcr.io: pull see DIR/c.yml:8, DIR/c.yml:9; list nothing",
        ],
        "{text}"
    );
    let open = Site::new(&RULES[..5]).run("check", &[]);
    let text = String::from_utf8(open.stdout).unwrap();
    let line = "\n#   docker.io: pull all; list all\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn a_decision_is_explained() {
    let site = Site::new(&RULES);
    let explain = |arguments: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_millpond"));
        program.args(["access", "explain"]).args(arguments);
        program.arg("--config").arg(site.path().join("c.yml"));
        let output = program.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.replace(&site.path().display().to_string(), "DIR")
    };
    for (arguments, start) in [
        (
            ["bob", "ghcr.io/acme/app", "--group", "acme"].as_slice(),
            "bob may pull ghcr.io/acme/app of ghcr.io: the rule at DIR/c.yml:7 decides: ",
        ),
        (
            &["anonymous", "ghcr.io/acme/app", "--action", "list"],
            "an anonymous caller may not (and can't tell whether it exists) list ghcr.io/acme/app",
        ),
        (
            &["anonymous", "debian", "--address", "10.1.2.3"],
            "an anonymous caller at 10.1.2.3 may pull library/debian of docker.io: the rule at DIR/c.yml:9",
        ),
        (
            &["anonymous", "docker.io/library/debian"],
            "an anonymous caller may not pull library/debian of docker.io: no rule matches: deny",
        ),
    ] {
        let text = explain(arguments);
        assert!(text.starts_with(start), "{arguments:?}: {text}");
    }
}

#[test]
fn a_reference_registry_with_an_account_starts_with_one_variable() {
    // As its documentation has it, with an account.
    let site = Site::new(&[
        "version: 0.1",
        "log: {fields: {service: registry}}",
        "storage:",
        "  cache: {blobdescriptor: inmemory}",
        "  filesystem: {rootdirectory: DIR/data}",
        "http:",
        "  addr: :0",
        "  headers: {X-Content-Type-Options: [nosniff]}",
        "health: {storagedriver: {enabled: true, interval: 10s, threshold: 3}}",
        "proxy:",
        "  remoteurl: https://registry-1.docker.io",
        "  username: someone",
        "  password: s3cret",
    ]);
    for command in ["check", "serve"] {
        let text = site.refused(command, &[]);
        let expected = "DIR/c.yml:12: everyone who can reach :0 could pull what the account for \
                        registry-1.docker.io can read; write one of:";
        assert!(text.contains(expected), "{command}: {text}");
        for fix in ["access: ", "auth: ", "REGISTRY_PROXY_ANONYMOUS=true"] {
            assert!(text.contains(fix), "{command}: {text}");
        }
        assert!(!text.contains("s3cret"), "{text}");
    }
    let output = site.run("check", &[("REGISTRY_PROXY_ANONYMOUS", "true")]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = "#   docker.io: pull all; list all, with this mirror's account\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn an_open_server_says_so_at_its_start() {
    const OPEN: &str = "everyone who can reach this address may pull";
    let account = ["  username: someone", "  password: s3cret"];
    for (address, more, variables, is_open) in [
        // With an account, the variable is needed.
        (
            ":0",
            account.as_slice(),
            [("REGISTRY_PROXY_ANONYMOUS", "true")].as_slice(),
            true,
        ),
        (":0", &[], &[], true),
        ("127.0.0.1:0", &account, &[], false),
        (
            ":0",
            &["access: [{networks: [10.0.0.0/8], effect: allow}]"],
            &[],
            false,
        ),
    ] {
        let addr = format!("  addr: '{address}'");
        let mut lines = vec![
            "version: 0.1",
            "storage: {inmemory: {}}",
            "http:",
            &addr,
            "proxy:",
            "  remoteurl: https://registry-1.docker.io",
        ];
        lines.extend(more);
        let site = Site::new(&lines);
        let mut program = Command::new(env!("CARGO_BIN_EXE_millpond"));
        program
            .args(["serve", "--config"])
            .arg(site.path().join("c.yml"));
        let program = program
            .envs(variables.iter().copied())
            .stderr(Stdio::piped());
        let mut child = program.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        while !text.contains("millpond is ready") {
            assert!(log.read_line(&mut text).unwrap() > 0, "{text}");
        }
        let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        log.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        assert_eq!(text.contains(OPEN), is_open, "{address}: {text}");
    }
}
