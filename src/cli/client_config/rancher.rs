//! K3s and RKE2: `registries.yaml` (<https://docs.k3s.io/installation/private-registry>). Their containerd
//! tells a mirror the registry's name.

use serde_yaml::{Mapping, Value};

use super::edit::{Edit, FileEdit, Plan, Refused};
use super::mirror::{Mirror, Placed, Registries};
use super::yaml;

/// The entry for every registry that has none of its own (K3s and RKE2 since January 2024).
const ALL: &str = "*";
const NAMES: [&str; 3] = [
    "millpond-ca.crt",
    "millpond-client.crt",
    "millpond-client.key",
];

/// `name` is `k3s` or `rke2`, `services` those that read the file.
pub(super) fn plan(
    mirror: &Mirror,
    registries: &Registries,
    (name, services): (&str, &str),
) -> Plan {
    let folder = format!("/etc/rancher/{name}");
    let (placed, mut files) = mirror.place(&folder, NAMES);
    let listed = registries.listed().iter();
    let mut names: Vec<String> = listed.map(|registry| registry.name.clone()).collect();
    if registries.all() {
        names.push(ALL.to_owned());
    }
    files.push(FileEdit::new(
        format!("{folder}/registries.yaml"),
        RegistriesYaml {
            authority: mirror.authority().to_owned(),
            url: mirror.url(),
            placed,
            registries: names,
        },
    ));
    let next = vec![format!(
        "restart {services} on this node; each node has a file of its own"
    )];
    Plan { files, next }
}

struct RegistriesYaml {
    authority: String,
    url: String,
    placed: Placed,
    registries: Vec<String>,
}

impl RegistriesYaml {
    /// Removes the mirror from a registry's entry; whether it was in it.
    fn take_from(&self, entry: &mut Value) -> bool {
        let Some(Value::Sequence(endpoints)) = entry.get_mut("endpoint") else {
            return false;
        };
        let before = endpoints.len();
        endpoints.retain(|endpoint| endpoint != self.url.as_str());
        let is_taken = endpoints.len() < before;
        if is_taken {
            prune(entry, "endpoint");
        }
        is_taken
    }

    /// Removes the certificates from the mirror's entry in `configs`; whether one was in it.
    fn take_from_config(&self, own: &mut Value) -> bool {
        let Some(Value::Mapping(tls)) = own.get_mut("tls") else {
            return false;
        };
        let (before, ours) = (tls.len(), self.tls());
        tls.retain(|key, file| {
            let mut ours = ours.iter();
            !ours.any(|(our_key, our)| key == *our_key && file == *our)
        });
        let is_taken = tls.len() < before;
        if is_taken {
            prune(own, "tls");
        }
        is_taken
    }

    /// The keys of `configs.AUTHORITY.tls`.
    fn tls(&self) -> Vec<(&'static str, &str)> {
        let mut tls = Vec::new();
        if let Some(ca) = &self.placed.ca {
            tls.push(("ca_file", ca.as_str()));
        }
        if let Some((certificate, key)) = &self.placed.client {
            tls.push(("cert_file", certificate.as_str()));
            tls.push(("key_file", key.as_str()));
        }
        tls
    }
}

impl Edit for RegistriesYaml {
    fn apply(&self, text: &str) -> Result<String, Refused> {
        let mut document = yaml::parse(text)?;
        for name in &self.registries {
            let entry = yaml::mapping(&mut document, &["mirrors", name], text)?;
            let endpoints = entry.entry(Value::from("endpoint"));
            let endpoints = endpoints.or_insert_with(|| Value::Sequence(Vec::new()));
            let endpoints = endpoints
                .as_sequence_mut()
                .ok_or_else(|| yaml::refused(text, "endpoint", "isn't a list"))?;
            if !endpoints
                .iter()
                .any(|endpoint| endpoint == self.url.as_str())
            {
                endpoints.insert(0, Value::from(self.url.as_str()));
            }
        }
        for (key, file) in self.tls() {
            let tls = yaml::mapping(&mut document, &["configs", &self.authority, "tls"], text)?;
            tls.insert(Value::from(key), Value::from(file));
        }
        yaml::print(text, &document)
    }

    fn revert(&self, text: &str, _: Option<&str>) -> Result<String, Refused> {
        let mut document = yaml::parse(text)?;
        // What was empty before stays.
        let mut is_taken = false;
        if let Some(Value::Mapping(mirrors)) = document.get_mut("mirrors") {
            mirrors.retain(|_, entry| {
                let is_ours = self.take_from(entry);
                is_taken |= is_ours;
                !(is_ours && is_empty(entry))
            });
        }
        if is_taken {
            prune_mapping(&mut document, "mirrors");
        }
        if let Some(configs) = document.get_mut("configs")
            && let Some(own) = configs.get_mut(&self.authority)
            && self.take_from_config(own)
        {
            prune(configs, &self.authority);
            prune_mapping(&mut document, "configs");
        }
        yaml::print(text, &document)
    }

    fn loses_comments(&self) -> bool {
        true
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Sequence(items) => items.is_empty(),
        Value::Mapping(entries) => entries.is_empty(),
        _ => false,
    }
}

/// Removes a key whose list or mapping has become empty.
fn prune(value: &mut Value, key: &str) {
    if let Value::Mapping(mapping) = value {
        prune_mapping(mapping, key);
    }
}

fn prune_mapping(mapping: &mut Mapping, key: &str) {
    if mapping.get(key).is_some_and(is_empty) {
        mapping.shift_remove(key);
    }
}
