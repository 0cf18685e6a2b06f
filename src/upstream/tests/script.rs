//! A credential helper that does what a test says.

use std::path::PathBuf;

use tempfile::TempDir;

/// The helper; it is removed with its files when this is dropped.
pub(crate) struct Script {
    dir: TempDir,
}

impl Script {
    /// A helper that is this shell script.
    pub(crate) fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let helper = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/upstream/tests/credential-helper"
        );
        std::os::unix::fs::symlink(helper, dir.path().join("helper")).unwrap();
        let script = Self { dir };
        script.becomes(text);
        script
    }

    /// A helper that gives these credentials.
    pub(crate) fn giving(username: &str, secret: &str) -> Self {
        Self::new(&answer(username, secret))
    }

    /// From now on, it is this shell script. `runs` counts how often it has run.
    pub(crate) fn becomes(&self, text: &str) {
        let counted = format!("echo run >> \"$0.runs\"\n{text}\n");
        // Never half of it: a helper may start at this moment.
        std::fs::write(self.path("new"), counted).unwrap();
        std::fs::rename(self.path("new"), self.path("helper.sh")).unwrap();
    }

    /// From now on, it gives these credentials.
    pub(crate) fn gives(&self, username: &str, secret: &str) {
        self.becomes(&answer(username, secret));
    }

    pub(crate) fn command(&self) -> String {
        self.path("helper").display().to_string()
    }

    /// A file beside it, which it finds as `$0.` and what follows `helper.` in the name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// How often it has run.
    pub(crate) fn runs(&self) -> usize {
        let runs = std::fs::read_to_string(self.path("helper.runs"));
        runs.map_or(0, |runs| runs.lines().count())
    }
}

/// A shell script that gives these credentials.
fn answer(username: &str, secret: &str) -> String {
    format!(r#"echo '{{"ServerURL":"","Username":"{username}","Secret":"{secret}"}}'"#)
}
