//! The images that a command is for: from its arguments, from lists, and from Kubernetes manifests.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize as _;
use serde_yaml::Value;

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// The most images of one command.
const MAX_IMAGES: usize = 10_000;
/// The files that mean standard input.
const STDIN: &str = "-";

/// Where the names of images come from.
#[derive(Debug, clap::Args)]
pub(super) struct Images {
    /// Images such as debian:12 or ghcr.io/owner/app:1.0; names without a registry are those of the
    /// default upstream
    #[arg(value_name = "IMAGE", required_unless_present_any = ["from_file", "from_k8s"])]
    names: Vec<String>,
    /// A file with an image a line; what follows a # is a comment. - is standard input
    #[arg(long, value_name = "FILE")]
    from_file: Vec<PathBuf>,
    /// A file with YAML documents: the images of each field named `image`. - is standard input
    #[arg(long, value_name = "FILE")]
    from_k8s: Vec<PathBuf>,
}

impl Images {
    /// All of them, each once, in the order in which they are named.
    pub(super) fn read(&self) -> anyhow::Result<Vec<String>> {
        let mut all = self.names.clone();
        for path in &self.from_file {
            all.extend(of_lines(&text(path)?));
        }
        for path in &self.from_k8s {
            let images = of_documents(&text(path)?);
            all.extend(images.with_context(|| format!("{} isn't YAML", path.display()))?);
        }
        let mut seen = BTreeSet::new();
        all.retain(|image| seen.insert(image.clone()));
        anyhow::ensure!(!all.is_empty(), "no image is named");
        anyhow::ensure!(
            all.len() <= MAX_IMAGES,
            "{} images are named; a command takes at most {MAX_IMAGES}",
            all.len()
        );
        Ok(all)
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = |source: &mut dyn Read, text: &mut String| -> io::Result<usize> {
        source.take(MAX_FILE + 1).read_to_string(text)
    };
    let length = if path == Path::new(STDIN) {
        read(&mut io::stdin().lock(), &mut text)
    } else {
        File::open(path).and_then(|mut file| read(&mut file, &mut text))
    };
    let length = length.with_context(|| format!("{} can't be read", path.display()))?;
    anyhow::ensure!(
        length as u64 <= MAX_FILE,
        "{} has more than {MAX_FILE} bytes",
        path.display()
    );
    Ok(text)
}

fn of_lines(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let names = lines.map(str::trim).filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// The texts of all fields named `image`, at any depth.
fn of_documents(text: &str) -> Result<Vec<String>, serde_yaml::Error> {
    let mut images = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        collect(&Value::deserialize(document)?, &mut images);
    }
    Ok(images)
}

fn collect(value: &Value, images: &mut Vec<String>) {
    match value {
        Value::Sequence(items) => items.iter().for_each(|item| collect(item, images)),
        Value::Mapping(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value) {
                    (Some("image"), Value::String(image)) if !image.trim().is_empty() => {
                        images.push(image.trim().to_owned());
                    }
                    (_, value) => collect(value, images),
                }
            }
        }
        Value::Tagged(tagged) => collect(&tagged.value, images),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_comments_and_empty_lines() {
        let text = "# ours\n debian:12  # the base\n\nghcr.io/a/b@sha256:1\n";
        assert_eq!(of_lines(text), ["debian:12", "ghcr.io/a/b@sha256:1"]);
    }

    #[test]
    fn images_are_found_at_any_depth_of_any_document() {
        let text = "\
kind: Pod
spec:
  initContainers: [{name: a, image: 'busybox:1'}]
  containers:
    - image: debian:12
    - {name: no image}
---
kind: CronJob
spec: {jobTemplate: {spec: {template: {spec: {containers: [{image: team/app}]}}}}}
---
image: {repository: not, tag: ours}
---
";
        let found = of_documents(text).unwrap();
        assert_eq!(found, ["busybox:1", "debian:12", "team/app"]);
        assert!(of_documents("a: [").is_err());
    }

    #[test]
    fn each_image_is_named_once() {
        let images = Images {
            names: ["b", "a", "b"].map(str::to_owned).to_vec(),
            from_file: Vec::new(),
            from_k8s: Vec::new(),
        };
        assert_eq!(images.read().unwrap(), ["b", "a"]);
    }
}
