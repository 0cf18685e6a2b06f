//! Tells the program which commit it is built from: what `MILLPOND_COMMIT` says, else what git says
//! about this directory, else nothing, as in a source archive.

#![expect(
    clippy::disallowed_methods,
    reason = "a build script has no configuration but the environment"
)]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MILLPOND_COMMIT");
    let given = std::env::var("MILLPOND_COMMIT").ok();
    let commit = given.filter(|commit| !commit.is_empty()).or_else(from_git);
    let shown = commit.map_or_else(String::new, |commit| format!(" ({commit})"));
    println!("cargo::rustc-env=MILLPOND_COMMIT_SHOWN={shown}");
}

fn from_git() -> Option<String> {
    // A repository that only happens to be around an unpacked archive isn't this program's.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().ok()?;
    if Path::new(&top).canonicalize().ok()? != root {
        return None;
    }
    // Git appends to this file whenever another commit is checked out.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// What git says, without the line's end; none without git, or where it fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
