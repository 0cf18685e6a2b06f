//! The test command itself: `tests/run`, with a cargo that only pretends.
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

/// Lints fail; one test passes.
const CARGO: &str = "#!/bin/sh\ncase $1 in\n  clippy) echo a lint; exit 101 ;;\n  \
                     test) echo 'test result: ok. 3 passed; 0 failed' ;;\nesac\n";

/// Runs the command, with a directory of its own for temporary files.
fn run(arguments: &[&str]) -> (Output, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let programs = directory.path().join("bin");
    let files = directory.path().join("tmp");
    std::fs::create_dir(&programs).unwrap();
    std::fs::create_dir(&files).unwrap();
    let cargo = programs.join("cargo");
    std::fs::write(&cargo, CARGO).unwrap();
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("bash")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/run"))
        .args(arguments)
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
        .env("TMPDIR", files)
        .output();
    (output.unwrap(), directory)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn unknown_arguments_are_refused_and_help_is_given() {
    let (help, _) = run(&["--help"]);
    assert!(help.status.success());
    let usage = text(&help.stdout);
    assert!(usage.starts_with("usage: tests/run [--no-e2e]"), "{usage}");
    for arguments in [&["--no-e2"][..], &["--no-e2e", "e2e"]] {
        let (refused, _) = run(arguments);
        assert_eq!(refused.status.code(), Some(2));
        assert!(refused.stdout.is_empty(), "nothing ran");
        assert!(text(&refused.stderr).contains("unknown argument: "));
    }
}

#[test]
fn after_a_step_that_fails_the_others_run_and_the_summary_names_it() {
    let (output, directory) = run(&["--no-e2e"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    let summary = "\ntest result: ok. 3 passed; 0 failed\n\
                   FAILED: cargo clippy --locked --workspace --all-targets -- -D warnings\n\
                   FAILED: cargo clippy --locked --no-default-features -- -D warnings\n";
    assert!(shown.ends_with(summary), "{shown}");
    assert!(shown.contains("== cargo doc "), "{shown}");
    let left = std::fs::read_dir(directory.path().join("tmp")).unwrap();
    assert_eq!(left.count(), 0, "no file is left behind");
}
