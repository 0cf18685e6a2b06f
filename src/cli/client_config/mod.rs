//! `millpond client-config`: what a client's configuration needs, so that it pulls through the mirror.
//!
//! Each client (`docker.rs`, `containerd.rs`, ...) has a plan: its files, and for each an edit that adds
//! the mirror's entries to a text and removes them from it. Printing applies the edits to empty texts;
//! writing and undoing (`files.rs`) apply them to the files below a directory. Nothing but the files that
//! this module's plans name, their backups and temporary files is ever written or removed.

mod buildkit;
mod containerd;
mod containers;
mod docker;
mod edit;
mod files;
mod json;
mod mirror;
mod rancher;
#[cfg(test)]
mod tests;
mod toml;
mod transaction;
mod yaml;

use std::path::PathBuf;

use super::{Located, load, print, say};
use edit::Plan;
use files::Root;
use mirror::{Mirror, Registries};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Client {
    /// dockerd: /etc/docker/daemon.json; for images of docker.io only
    Docker,
    /// containerd and Kubernetes nodes: hosts.toml files below /etc/containerd/certs.d
    Containerd,
    /// CRI-O: /etc/containers/registries.conf.d/millpond.conf
    Crio,
    /// Podman, Buildah and Skopeo: /etc/containers/registries.conf.d/millpond.conf
    Podman,
    /// BuildKit: /etc/buildkit/buildkitd.toml
    Buildkit,
    /// K3s: /etc/rancher/k3s/registries.yaml
    K3s,
    /// RKE2: /etc/rancher/rke2/registries.yaml
    Rke2,
}

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The client to configure
    #[arg(value_enum, value_name = "CLIENT")]
    client: Client,
    /// The mirror's address as the client reaches it: http:// or https://, a host and a port
    ///
    /// With http:// the client is told to use plain HTTP.
    #[arg(long, value_name = "URL")]
    mirror: String,
    /// A registry to pull from through the mirror, as in the names of images; may be repeated
    ///
    /// `all` stands for every registry: containerd, K3s and RKE2 have an entry for that, the others
    /// need --config to know them [default: the upstreams of --config, else docker.io]
    #[arg(long = "upstream", value_name = "REGISTRY")]
    upstreams: Vec<String>,
    /// A file of certificate authorities (PEM), which is copied to where the client looks for it
    /// [default: the client trusts the system's authorities]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A client certificate (PEM), which is copied in the same way [default: none]
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The key of the client certificate (PEM), which is copied in the same way
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Change the files below this directory, which stands for the root of the client's file system
    /// [default: print what the files need]
    ///
    /// `--write /` configures this machine. Other settings in the files are kept. The content before
    /// the first change is kept in FILE.millpond-backup, what other changes would lose in
    /// FILE.millpond-backup.2 and so on.
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Undo what --write has done with the same options
    ///
    /// Restores the backups and removes the files that didn't exist. From a file that has been changed
    /// since, only the mirror's entries are removed.
    #[arg(long, requires = "write")]
    undo: bool,
    #[command(flatten)]
    located: Located,
}

pub(super) fn client_config(options: &Options) -> anyhow::Result<()> {
    let (plan, root) = prepare(options)?;
    let Some(root) = &root else {
        return show(&plan);
    };
    let report = if options.undo {
        root.undo(&plan)?
    } else {
        root.write(&plan)?
    };
    if report.lines.is_empty() {
        say(if options.undo {
            "nothing to undo"
        } else {
            "nothing to change: the files have the mirror's entries"
        });
        return Ok(());
    }
    report.lines.iter().for_each(|line| say(line));
    next(&plan);
    Ok(())
}

/// The plan, and the directory that --write names.
fn prepare(options: &Options) -> anyhow::Result<(Plan, Option<Root>)> {
    let client = options.cert.as_deref().zip(options.key.as_deref());
    let mirror = Mirror::new(&options.mirror, options.ca.as_deref(), client)?;
    let config = options.located.config.as_deref();
    let config = config.map(|path| load(Some(path))).transpose()?;
    let config = config.as_ref().map(|loaded| &loaded.config);
    let registries = Registries::new(&options.upstreams, config)?;
    let root = options.write.as_deref().map(Root::open).transpose()?;
    let empty = Root::nothing();
    let seen = root.as_ref().unwrap_or(&empty);
    let plan = plan(options.client, &mirror, &registries, seen, options.undo)?;
    Ok((plan, root))
}

fn plan(
    client: Client,
    mirror: &Mirror,
    registries: &Registries,
    root: &Root,
    is_undo: bool,
) -> anyhow::Result<Plan> {
    const CRIO: (&str, &str) = ("crio", "`systemctl reload crio`");
    const PODMAN: (&str, &str) = ("podman", "nothing: the file is read for each pull");
    match client {
        Client::Docker => docker::plan(mirror, registries),
        Client::Containerd => containerd::plan(mirror, registries, root, is_undo),
        Client::Crio => containers::plan(mirror, registries, root, CRIO),
        Client::Podman => containers::plan(mirror, registries, root, PODMAN),
        Client::Buildkit => buildkit::plan(mirror, registries),
        Client::K3s => {
            let services = "k3s (on an agent: k3s-agent)";
            Ok(rancher::plan(mirror, registries, ("k3s", services)))
        }
        Client::Rke2 => {
            let services = "rke2-server (on an agent: rke2-agent)";
            Ok(rancher::plan(mirror, registries, ("rke2", services)))
        }
    }
}

/// Prints what the files need: the content of one file, or of several with their paths as comments.
fn show(plan: &Plan) -> anyhow::Result<()> {
    let (text, files) = contents(plan)?;
    print(&text)?;
    if let [file] = files.as_slice() {
        say(&format!("file: {file}"));
    }
    for file in &plan.files {
        if let Some(from) = file.copied_from() {
            say(&format!(
                "copy {} to {}",
                from.display(),
                file.path().display()
            ));
        }
    }
    next(plan);
    Ok(())
}

/// What goes into files that are edited, and the paths of these.
fn contents(plan: &Plan) -> anyhow::Result<(String, Vec<String>)> {
    let mut contents = Vec::new();
    for file in plan
        .files
        .iter()
        .filter(|file| file.copied_from().is_none())
    {
        let content = file.edit().apply("");
        let content = content.map_err(|refused| refused.in_file(file.path()))?;
        contents.push((file.path().display().to_string(), content));
    }
    let text = match contents.as_slice() {
        [(_, content)] => content.clone(),
        several => {
            let named = several
                .iter()
                .map(|(path, text)| format!("# {path}\n{text}"));
            named.collect::<Vec<_>>().join("\n")
        }
    };
    Ok((text, contents.into_iter().map(|(path, _)| path).collect()))
}

/// What the operator has to do, so that the client reads the files.
fn next(plan: &Plan) {
    plan.next
        .iter()
        .for_each(|line| say(&format!("next: {line}")));
}
