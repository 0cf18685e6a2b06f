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
    // Build scripts run in the package's directory. That is asked for at run time: a build script
    // from a copied `target` was compiled elsewhere, and cargo takes it for up to date.
    //
    // A repository that only happens to be around an unpacked archive isn't this program's.
    if !git(&["rev-parse", "--show-cdup"])?.is_empty() {
        return None;
    }
    // Git appends to this file whenever another commit is checked out. A repository without
    // reflogs has the commit in one of the others.
    if !watch("logs/HEAD") {
        for others in ["HEAD", "refs", "packed-refs", "reftable"] {
            watch(others);
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// Makes cargo run this again when a file or directory of the repository changes. Returns whether it
/// exists: cargo would take a missing one for changed each time.
fn watch(name: &str) -> bool {
    // Worktrees have some of the files in a directory of their own, and share the others.
    let path = git(&["rev-parse", "--git-path", name]);
    let path = path.filter(|path| Path::new(path).exists());
    if let Some(path) = &path {
        println!("cargo::rerun-if-changed={path}");
    }
    path.is_some()
}

/// What git says, without the line's end; none without git, or where it fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
