//! BuildKit: `buildkitd.toml` (BuildKit's docs/buildkitd.toml.md). It tells a mirror the registry's name.

use toml_edit::{ArrayOfTables, Item, Table, Value};

use super::edit::{Edit, FileEdit, Plan, Refused};
use super::mirror::{Mirror, Placed, Registries};
use super::toml;

const FILE: &str = "/etc/buildkit/buildkitd.toml";
const NAMES: [&str; 3] = [
    "millpond-ca.crt",
    "millpond-client.crt",
    "millpond-client.key",
];

pub(super) fn plan(mirror: &Mirror, registries: &Registries) -> anyhow::Result<Plan> {
    let (placed, mut files) = mirror.place("/etc/buildkit", NAMES);
    let registries = registries.named("buildkit")?.iter();
    files.push(FileEdit::new(
        FILE,
        BuildkitdToml {
            authority: mirror.authority().to_owned(),
            is_https: mirror.is_https(),
            placed,
            registries: registries.map(|registry| registry.name.clone()).collect(),
        },
    ));
    let next = vec![format!(
        "restart buildkitd, or create the builder anew: `docker buildx create --buildkitd-config {FILE}`"
    )];
    Ok(Plan { files, next })
}

struct BuildkitdToml {
    authority: String,
    is_https: bool,
    placed: Placed,
    registries: Vec<String>,
}

impl BuildkitdToml {
    /// The settings of the connection to the mirror.
    fn connect(&self, root: &mut Table, text: &str) -> Result<(), Refused> {
        let path = ["registry", self.authority.as_str()];
        if !self.is_https {
            let own = toml::table(root, &path, text)?;
            toml::set(own, "http", Value::from(true), "  ");
        }
        if let Some(ca) = &self.placed.ca {
            toml::put_first(root, &[path[0], path[1], "ca"], ca, text)?;
        }
        if let Some((certificate, key)) = &self.placed.client {
            let own = toml::table(root, &path, text)?;
            let pairs = own.entry("keypair");
            let pairs = pairs.or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
            let pairs = pairs.as_array_of_tables_mut().ok_or_else(|| {
                let path = [path[0], path[1], "keypair"];
                toml::refused(text, &path, "is no list of tables with headers, [[...]]")
            })?;
            if !pairs.iter().any(|pair| is_pair(pair, certificate, key)) {
                let mut pair = Table::new();
                toml::set(&mut pair, "key", Value::from(key), "  ");
                toml::set(&mut pair, "cert", Value::from(certificate), "  ");
                pairs.push(pair);
            }
        }
        Ok(())
    }
}

fn is_pair(pair: &Table, certificate: &str, key: &str) -> bool {
    let text = |name: &str| pair.get(name).and_then(Item::as_str);
    text("cert") == Some(certificate) && text("key") == Some(key)
}

impl Edit for BuildkitdToml {
    fn apply(&self, text: &str) -> Result<String, Refused> {
        let mut document = toml::parse(text)?;
        for name in &self.registries {
            let path = ["registry", name, "mirrors"];
            toml::put_first(&mut document, &path, &self.authority, text)?;
        }
        self.connect(&mut document, text)?;
        Ok(toml::print(&document))
    }

    fn revert(&self, text: &str, _: Option<&str>) -> Result<String, Refused> {
        let mut document = toml::parse(text)?;
        let Some(registries) = document.get_mut("registry").and_then(Item::as_table_mut) else {
            return Ok(text.to_owned());
        };
        let had_registries = !registries.is_empty();
        let keys: Vec<String> = registries.iter().map(|(key, _)| key.to_owned()).collect();
        for key in keys {
            let Some(table) = registries.get_mut(&key).and_then(Item::as_table_mut) else {
                continue;
            };
            let had_entries = !table.is_empty();
            toml::take(table, "mirrors", &self.authority);
            if key == self.authority {
                self.disconnect(table);
            }
            if had_entries && table.is_empty() {
                registries.remove(&key);
            }
        }
        if had_registries && registries.is_empty() {
            document.remove("registry");
        }
        Ok(toml::print(&document))
    }
}

impl BuildkitdToml {
    fn disconnect(&self, own: &mut Table) {
        if !self.is_https && own.get("http").and_then(Item::as_bool) == Some(true) {
            own.remove("http");
        }
        if let Some(ca) = &self.placed.ca {
            toml::take(own, "ca", ca);
        }
        let pairs = own
            .get_mut("keypair")
            .and_then(Item::as_array_of_tables_mut);
        if let (Some((certificate, key)), Some(pairs)) = (&self.placed.client, pairs) {
            pairs.retain(|pair| !is_pair(pair, certificate, key));
            if pairs.is_empty() {
                own.remove("keypair");
            }
        }
    }
}
