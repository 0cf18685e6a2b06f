mod files;
mod golden;
mod merge;
mod mirror;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use tempfile::TempDir;

use super::*;

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nQ0E=\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nS0VZ\n-----END PRIVATE KEY-----\n";
const CLIENTS: [&str; 7] = [
    "docker",
    "containerd",
    "crio",
    "podman",
    "buildkit",
    "k3s",
    "rke2",
];
/// The ways to reach the mirror: `CA` and others stand for files.
const WAYS: [(&str, &str); 4] = [
    ("http", "--mirror http://mirror.example:5000"),
    ("https", "--mirror https://mirror.example"),
    ("ca", "--mirror https://mirror.example:5000 --ca CA"),
    (
        "client certificate",
        "--mirror https://mirror.example:5000 --ca CA --cert CERT --key KEY",
    ),
];

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// A machine of a client's: files below `root`, and those of the operator beside it.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        for (name, text) in [("CA", CERTIFICATE), ("CERT", CERTIFICATE), ("KEY", KEY)] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self(dir)
    }

    /// The options of a command line; its files are those of the operator.
    fn options(&self, line: &str) -> Options {
        let word = |word: &str| match word {
            "CA" | "CERT" | "KEY" | "CONFIG" => self.0.path().join(word).display().to_string(),
            "ROOT" => self.root().display().to_string(),
            word => word.to_owned(),
        };
        let words = std::iter::once("millpond".to_owned()).chain(line.split(' ').map(word));
        Line::try_parse_from(words).unwrap().options
    }

    fn root(&self) -> PathBuf {
        self.0.path().canonicalize().unwrap().join("root")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// What `--write ROOT` reports, `ROOT` standing for that directory.
    fn write(&self, line: &str) -> Result<Vec<String>, String> {
        self.change(&format!("{line} --write ROOT"))
    }

    fn undo(&self, line: &str) -> Result<Vec<String>, String> {
        self.change(&format!("{line} --write ROOT --undo"))
    }

    fn change(&self, line: &str) -> Result<Vec<String>, String> {
        let options = self.options(line);
        let report = prepare(&options).and_then(|(plan, root)| {
            let root = root.unwrap();
            if options.undo {
                root.undo(&plan)
            } else {
                root.write(&plan)
            }
        });
        let root = self.root().display().to_string();
        let named = |text: String| text.replace(&root, "ROOT");
        match report {
            Ok(report) => Ok(report.lines.into_iter().map(named).collect()),
            Err(error) => Err(named(format!("{error:#}"))),
        }
    }

    /// Every file and directory with its mode and content.
    fn snapshot(&self) -> Vec<(PathBuf, u32, String)> {
        let mut found = Vec::new();
        visit(&self.root(), &mut found);
        found.sort();
        found
    }
}

fn visit(dir: &Path, found: &mut Vec<(PathBuf, u32, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mode = path.metadata().unwrap().permissions().mode();
        if path.is_dir() {
            visit(&path, found);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, mode, text));
        }
    }
}
