//! Docker: `daemon.json`, and certificates below `/etc/docker/certs.d`
//! (<https://docs.docker.com/reference/cli/dockerd/>). A mirror is asked for Docker Hub's images only, and
//! isn't told the registry's name.

use anyhow::{bail, ensure};

use super::edit::{Edit, FileEdit, Plan, Refused};
use super::json;
use super::mirror::{HUB, Mirror, Registries};

const MIRRORS: &str = "registry-mirrors";
const INSECURE: &str = "insecure-registries";

pub(super) fn plan(mirror: &Mirror, registries: &Registries) -> anyhow::Result<Plan> {
    ensure!(
        !registries.all(),
        "docker uses mirrors for docker.io only: leave out --upstream all"
    );
    let is_hub = |registry: &&super::mirror::Registry| registry.name == HUB;
    let Some(hub) = registries.listed().iter().find(is_hub) else {
        bail!("docker uses mirrors for docker.io only: the upstreams don't include it");
    };
    ensure!(
        hub.prefix.is_none(),
        "docker doesn't tell a mirror the registry's name, so docker.io must be the mirror's default \
         upstream (proxy.remoteurl)"
    );
    let folder = format!("/etc/docker/certs.d/{}", mirror.authority());
    let (_, mut files) = mirror.place(&folder, ["ca.crt", "client.cert", "client.key"]);
    let mut others = registries.listed().iter();
    let others = others.find_map(|registry| registry.prefix.as_deref());
    files.push(FileEdit::new(
        "/etc/docker/daemon.json",
        DaemonJson {
            url: mirror.url(),
            authority: mirror.authority().to_owned(),
            // Its images are pulled by the mirror's own name, which Docker takes for HTTPS.
            is_insecure: !mirror.is_https() && others.is_some(),
        },
    ));
    let mut next = vec![
        "`systemctl reload docker`: dockerd reads the mirrors again, and keeps its containers running"
            .to_owned(),
    ];
    if let Some(prefix) = others {
        next.push(format!(
            "docker uses mirrors for docker.io only; pull other images as {}/{prefix}/REPOSITORY",
            mirror.authority()
        ));
    }
    Ok(Plan { files, next })
}

struct DaemonJson {
    url: String,
    authority: String,
    is_insecure: bool,
}

impl DaemonJson {
    /// dockerd itself adds the slash.
    fn is_ours(&self, item: &str) -> bool {
        item.strip_suffix('/').unwrap_or(item) == self.url
    }
}

impl Edit for DaemonJson {
    fn apply(&self, text: &str) -> Result<String, Refused> {
        let text = json::insert(text, MIRRORS, &self.url, |item| self.is_ours(item))?;
        if !self.is_insecure {
            return Ok(text);
        }
        json::insert(&text, INSECURE, &self.authority, |item| {
            item == self.authority
        })
    }

    fn revert(&self, text: &str, _: Option<&str>) -> Result<String, Refused> {
        let text = json::remove(text, MIRRORS, |item| self.is_ours(item))?;
        if !self.is_insecure {
            return Ok(text);
        }
        json::remove(&text, INSECURE, |item| item == self.authority)
    }
}
