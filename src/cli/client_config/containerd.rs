//! containerd: a `hosts.toml` for each registry in the folder that `config_path` in `config.toml` names
//! (containerd's docs/hosts.md and docs/cri/registry.md).

use toml_edit::{Array, DocumentMut, Item, Table, Value};

use super::edit::{Edit, FileEdit, Plan, Refused};
use super::files::{Kind, Root};
use super::mirror::{Mirror, Placed, Registries, Registry};
use super::toml;

const CONFIG: &str = "/etc/containerd/config.toml";
const CERTS: &str = "/etc/containerd/certs.d";
/// The folder for every registry that has none of its own.
const DEFAULT: &str = "_default";

/// For an undo, the files of all registries may name the mirror.
pub(super) fn plan(
    mirror: &Mirror,
    registries: &Registries,
    root: &Root,
    is_undo: bool,
) -> anyhow::Result<Plan> {
    let config = root.read(CONFIG.as_ref())?.unwrap_or_default();
    let cri =
        Cri::read(&config).map_err(|refused| refused.in_file(&root.named(CONFIG.as_ref())))?;
    let folder = cri.folder.as_deref().unwrap_or(CERTS);
    let own = format!("{folder}/{}", mirror.authority());
    let (_, mut files) = mirror.place(&own, ["ca.crt", "client.cert", "client.key"]);
    // Relative to the hosts.toml: the folder may be mounted elsewhere.
    let sibling = format!("../{}", mirror.authority());
    let (placed, _) = mirror.place(&sibling, ["ca.crt", "client.cert", "client.key"]);
    if cri.is_enabled {
        files.push(FileEdit::new(CONFIG, ConfigPath));
    }
    let mut hosts = wanted(registries);
    let present = is_undo.then(|| root.list(folder.as_ref(), Kind::Directory));
    for name in present.transpose()?.unwrap_or_default() {
        if hosts.iter().all(|(known, _)| *known != name) {
            hosts.push((name, None));
        }
    }
    for (name, server) in hosts {
        files.push(FileEdit::new(
            format!("{folder}/{name}/hosts.toml"),
            HostsToml {
                url: mirror.url(),
                server,
                placed: placed.clone(),
            },
        ));
    }
    let next = if cri.folder.is_some() {
        "nothing: containerd reads hosts.toml files for each pull".to_owned()
    } else if cri.is_enabled {
        "`systemctl restart containerd`, because config.toml changes (containers keep running); \
         hosts.toml files alone need no restart"
            .to_owned()
    } else {
        format!(
            "nothing: nerdctl and `ctr images pull --hosts-dir {folder}` read the files; the CRI plugin \
             is disabled in {CONFIG}"
        )
    };
    let next = vec![next];
    Ok(Plan { files, next })
}

/// The folder of each registry, with the URL of the registry itself.
fn wanted(registries: &Registries) -> Vec<(String, Option<String>)> {
    let listed = registries.listed().iter();
    let named = |registry: &Registry| (registry.name.clone(), Some(registry.server.clone()));
    let mut hosts: Vec<(String, Option<String>)> = listed.map(named).collect();
    if registries.all() {
        hosts.push((DEFAULT.to_owned(), None));
    }
    hosts
}

/// What `config.toml` says about registries.
struct Cri {
    is_enabled: bool,
    /// The folder of the hosts files, if one is configured: the first of `config_path`.
    folder: Option<String>,
}

impl Cri {
    fn read(text: &str) -> Result<Self, Refused> {
        let document = toml::parse(text)?;
        let disabled = document.get("disabled_plugins").and_then(Item::as_array);
        let is_cri = |plugin: &Value| {
            let name = plugin.as_str().unwrap_or_default();
            matches!(
                name,
                "cri" | "io.containerd.grpc.v1.cri" | "io.containerd.cri.v1.images"
            )
        };
        let is_enabled = !disabled.is_some_and(|plugins| plugins.iter().any(is_cri));
        let path = registry_path(&document);
        let mut registry = Some(document.as_item());
        for key in path {
            registry = registry.and_then(|item| item.get(key));
        }
        let configured = registry.and_then(|registry| registry.get("config_path"));
        let configured = configured.and_then(Item::as_str).unwrap_or_default();
        let mut folders = configured.split(':');
        let folder = folders.find(|folder| folder.starts_with('/'));
        Ok(Self {
            is_enabled,
            folder: folder.map(str::to_owned),
        })
    }
}

/// Where the version of the file has the settings of registries. containerd 2 reads all of them.
fn registry_path(document: &DocumentMut) -> [&'static str; 3] {
    let plugin = match document.get("version").and_then(Item::as_integer) {
        None | Some(1) => "cri",
        Some(2) => "io.containerd.grpc.v1.cri",
        Some(_) => "io.containerd.cri.v1.images",
    };
    ["plugins", plugin, "registry"]
}

/// `config_path` in `config.toml`.
struct ConfigPath;

impl Edit for ConfigPath {
    fn apply(&self, text: &str) -> Result<String, Refused> {
        if Cri::read(text)?.folder.is_some() {
            return Ok(text.to_owned());
        }
        let mut document = toml::parse(text)?;
        if text.trim().is_empty() {
            document.insert("version", toml_edit::value(2));
        }
        let path = registry_path(&document);
        let registry = toml::table(&mut document, &path, text)?;
        for key in ["mirrors", "configs"] {
            // containerd 2 and, for mirrors, 1 refuse to start the plugin with both.
            if registry.contains_key(key) {
                let path = [path[0], path[1], path[2], key];
                let problem = "can't be used with hosts.toml files: move its settings to them, and \
                               remove it";
                return Err(toml::refused(text, &path, problem));
            }
        }
        toml::set(registry, "config_path", Value::from(CERTS), "  ");
        Ok(toml::print(&document))
    }

    /// Without the original nobody knows who set `config_path`.
    fn revert(&self, text: &str, original: Option<&str>) -> Result<String, Refused> {
        let had_none = match original {
            Some(original) => Cri::read(original)?.folder.is_none(),
            None => false,
        };
        if !had_none || Cri::read(text)?.folder.as_deref() != Some(CERTS) {
            return Ok(text.to_owned());
        }
        let mut document = toml::parse(text)?;
        let path = registry_path(&document);
        let registry = toml::table(&mut document, &path, text)?;
        registry.remove("config_path");
        if registry.is_empty() {
            toml::table(&mut document, &path[..2], text)?.remove(path[2]);
        }
        Ok(toml::print(&document))
    }
}

struct HostsToml {
    url: String,
    /// The registry itself, which containerd asks when no host can answer.
    server: Option<String>,
    placed: Placed,
}

impl Edit for HostsToml {
    fn apply(&self, text: &str) -> Result<String, Refused> {
        let mut document = toml::parse(text)?;
        if text.trim().is_empty()
            && let Some(server) = &self.server
        {
            document.insert("server", toml_edit::value(server));
        }
        let is_new = !document.contains_key("host");
        let hosts = toml::table(&mut document, &["host"], text)?;
        hosts.set_implicit(is_new || hosts.is_implicit());
        if !hosts.contains_key(&self.url) {
            toml::insert_first(hosts, &self.url, Table::new());
        }
        let host = toml::table(&mut document, &["host", &self.url], text)?;
        if !host.contains_key("capabilities") {
            let capabilities = Array::from_iter(["pull", "resolve"]);
            toml::set(host, "capabilities", Value::from(capabilities), "  ");
        }
        if let Some(ca) = &self.placed.ca {
            toml::set(host, "ca", Value::from(ca), "  ");
        }
        if let Some((certificate, key)) = &self.placed.client {
            let pair = Value::from(Array::from_iter([certificate, key]));
            toml::set(host, "client", Value::from(Array::from_iter([pair])), "  ");
        }
        Ok(toml::print(&document))
    }

    fn revert(&self, text: &str, original: Option<&str>) -> Result<String, Refused> {
        let mut document = toml::parse(text)?;
        let hosts = document.get_mut("host").and_then(Item::as_table_mut);
        let Some(hosts) = hosts.filter(|hosts| hosts.contains_key(&self.url)) else {
            return Ok(text.to_owned());
        };
        hosts.remove(&self.url);
        if hosts.is_empty() {
            document.remove("host");
        }
        // A file of ours has nothing else than the server.
        if original.is_none() && document.iter().all(|(key, _)| key == "server") {
            return Ok(String::new());
        }
        Ok(toml::print(&document))
    }
}
