//! `millpond check`: what it finds, and that it names the place.
#![cfg(unix)]

use std::path::Path;
use std::process::{Command, Output};

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
