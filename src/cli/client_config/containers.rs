//! Podman, Buildah, Skopeo and CRI-O: `registries.conf` and its drop-in files (containers-registries.conf(5),
//! containers-registries.conf.d(5)), and certificates below `/etc/containers/certs.d`
//! (containers-certs.d(5)). They don't tell a mirror the registry's name.

use std::path::{Path, PathBuf};

use toml_edit::{ArrayOfTables, Item, Table, Value};

use super::edit::{Edit, FileEdit, Plan, Refused};
use super::files::{Kind, Root};
use super::mirror::{Mirror, Registries, Registry};
use super::toml;

const MAIN: &str = "/etc/containers/registries.conf";
const DROP_INS: &str = "/etc/containers/registries.conf.d";
const OWN: &str = "/etc/containers/registries.conf.d/millpond.conf";

/// `client` and `next` are for messages.
pub(super) fn plan(
    mirror: &Mirror,
    registries: &Registries,
    root: &Root,
    (client, next): (&str, &str),
) -> anyhow::Result<Plan> {
    let folder = format!("/etc/containers/certs.d/{}", mirror.authority());
    let (_, mut files) = mirror.place(&folder, ["ca.crt", "client.cert", "client.key"]);
    for (path, registries) in distributed(registries.named(client)?, root)? {
        let edit = RegistriesConf {
            authority: mirror.authority().to_owned(),
            is_insecure: !mirror.is_https(),
            registries,
        };
        files.push(FileEdit::new(path, edit));
    }
    let next = vec![next.to_owned()];
    Ok(Plan { files, next })
}

/// Which registries each file gets: those that it configures already and, for a file of our own, all
/// others. A later file's entry replaces an earlier one's.
fn distributed(
    registries: &[Registry],
    root: &Root,
) -> anyhow::Result<Vec<(PathBuf, Vec<Registry>)>> {
    let mut files: Vec<(PathBuf, Vec<Registry>)> = Vec::new();
    let mut left = registries.to_vec();
    let drop_ins = root.list(DROP_INS.as_ref(), Kind::File)?.into_iter();
    let drop_ins = drop_ins.map(|name| Path::new(DROP_INS).join(name));
    let mut paths: Vec<PathBuf> = vec![PathBuf::from(MAIN)];
    paths.extend(drop_ins.filter(|path| path.extension().is_some_and(|ending| ending == "conf")));
    for path in paths
        .into_iter()
        .rev()
        .filter(|path| *path != Path::new(OWN))
    {
        let Some(text) = root.read(&path)? else {
            continue;
        };
        let configured =
            configured(&text).map_err(|refused| refused.in_file(&root.named(&path)))?;
        let is_here = |registry: &Registry| configured.contains(&registry.name);
        let (here, elsewhere) = left.into_iter().partition(is_here);
        left = elsewhere;
        files.push((path, here));
    }
    files.push((PathBuf::from(OWN), left));
    Ok(files)
}

/// The registries that a file has entries for.
fn configured(text: &str) -> Result<Vec<String>, Refused> {
    let document = toml::parse(text)?;
    if document.contains_key("registries") {
        let problem = "is of version 1 of the format, which can't be used beside mirrors";
        return Err(toml::refused(text, &["registries"], problem));
    }
    let registries = document.get("registry").and_then(Item::as_array_of_tables);
    let registries = registries.into_iter().flatten();
    Ok(registries
        .filter_map(|table| Some(prefix(table)?.to_owned()))
        .collect())
}

/// What an entry is for.
fn prefix(table: &Table) -> Option<&str> {
    let prefix = table.get("prefix").or_else(|| table.get("location"));
    prefix.and_then(Item::as_str)
}

struct RegistriesConf {
    authority: String,
    is_insecure: bool,
    registries: Vec<Registry>,
}

impl RegistriesConf {
    /// A repository's name is put behind the location.
    fn location(&self, registry: &Registry) -> String {
        match &registry.prefix {
            Some(prefix) => format!("{}/{prefix}", self.authority),
            None => self.authority.clone(),
        }
    }

    fn is_ours(&self, mirror: &Table) -> bool {
        let location = mirror.get("location").and_then(Item::as_str);
        let rest = location.and_then(|location| location.strip_prefix(&self.authority));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn add(&self, registry: &Registry, entry: &mut Table) -> Result<(), Refused> {
        let location = self.location(registry);
        let mirrors = list(entry, "mirror")?;
        let is_it = |mirror: &Table| {
            mirror.get("location").and_then(Item::as_str) == Some(location.as_str())
        };
        let found = mirrors.iter().position(is_it);
        let index = if let Some(index) = found {
            index
        } else {
            let mut mirror = Table::new();
            toml::set(&mut mirror, "location", Value::from(&location), "");
            mirrors.insert(0, mirror);
            0
        };
        if let Some(mirror) = mirrors.get_mut(index)
            && self.is_insecure
        {
            toml::set(mirror, "insecure", Value::from(true), "");
        }
        Ok(())
    }
}

/// The tables `[[key]]` of a table.
fn list<'a>(table: &'a mut Table, key: &str) -> Result<&'a mut ArrayOfTables, Refused> {
    let item = table.entry(key);
    let item = item.or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    let text = format!("`{key}` is no list of tables with headers, [[...]]");
    item.as_array_of_tables_mut()
        .ok_or_else(|| Refused::at(None, text))
}

impl Edit for RegistriesConf {
    fn apply(&self, text: &str) -> Result<String, Refused> {
        configured(text)?;
        let mut document = toml::parse(text)?;
        for registry in &self.registries {
            let entries = list(&mut document, "registry")?;
            let is_it = |entry: &Table| prefix(entry) == Some(registry.name.as_str());
            let found = entries.iter().position(is_it);
            let index = if let Some(index) = found {
                index
            } else {
                let mut entry = Table::new();
                toml::set(&mut entry, "location", Value::from(&registry.name), "");
                entries.push(entry);
                entries.len() - 1
            };
            if let Some(entry) = entries.get_mut(index) {
                self.add(registry, entry)?;
            }
        }
        Ok(toml::print(&document))
    }

    fn revert(&self, text: &str, _: Option<&str>) -> Result<String, Refused> {
        let mut document = toml::parse(text)?;
        let entries = document.get_mut("registry");
        let Some(entries) = entries.and_then(Item::as_array_of_tables_mut) else {
            return Ok(text.to_owned());
        };
        // Entries that are for the mirror only go with it.
        entries.retain(|entry| {
            let mirrors = entry.get("mirror").and_then(Item::as_array_of_tables);
            let mut mirrors = mirrors.into_iter().flatten();
            let is_only_ours = mirrors.next().is_some_and(|mirror| self.is_ours(mirror))
                && mirrors.next().is_none();
            let known = ["location", "mirror"];
            !(is_only_ours && entry.iter().all(|(key, _)| known.contains(&key)))
        });
        for entry in entries.iter_mut() {
            let mirrors = entry.get_mut("mirror");
            if let Some(mirrors) = mirrors.and_then(Item::as_array_of_tables_mut) {
                mirrors.retain(|mirror| !self.is_ours(mirror));
                if mirrors.is_empty() {
                    entry.remove("mirror");
                }
            }
        }
        if entries.is_empty() {
            document.remove("registry");
        }
        Ok(toml::print(&document))
    }
}
