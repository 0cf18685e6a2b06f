//! Replicas as processes.

use std::net::Ipv4Addr;

use millpond::replicas::Members;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Program, ReservedPort};

use crate::load::Address;
use crate::{SECRET, Upstream};

pub(crate) struct Cluster {
    pub(crate) replicas: Vec<Program>,
    names: Vec<String>,
    /// With a directory for each.
    _directory: TempDir,
}

impl Cluster {
    /// Starts replicas on hosts from 127.0.0.1 on. `proxy` has more keys of that section.
    pub(crate) fn start(count: u8, upstream: &Upstream, proxy: &Value) -> Self {
        let ports = (1..=count).map(|last| {
            let host = Ipv4Addr::new(127, 0, 0, last);
            [ReservedPort::at(host), ReservedPort::at(host)]
        });
        let ports: Vec<_> = ports.collect();
        let names = ports.iter().map(|[main, _]| main.address.to_string());
        let names: Vec<_> = names.collect();
        let (peers, directory) = (json!(names), tempfile::tempdir().unwrap());
        let root = directory.path().to_owned();
        let mut cluster = Self {
            replicas: Vec::new(),
            names: names.clone(),
            _directory: directory,
        };
        for (ports, own) in ports.into_iter().zip(&names) {
            let data = root.join(own);
            std::fs::create_dir(&data).unwrap();
            let variables = format!(
                "export REGISTRY_REPLICAS_PEERS='{peers}' REGISTRY_REPLICAS_SELF={own} \
                 REGISTRY_REPLICAS_SECRET='{SECRET}' REGISTRY_REPLICAS_TIMEOUT=2s \
                 REGISTRY_HTTP_SHUTDOWNDELAY=200ms;"
            );
            let (binary, upstream) = (env!("CARGO_BIN_EXE_millpond"), upstream.address);
            let mut program = Program::on(ports, binary, &data, upstream, &variables, proxy);
            program.start();
            cluster.replicas.push(program);
        }
        cluster
    }

    /// The replicas in the order in which they own a key: the owner first.
    pub(crate) fn order(&self, key: &str) -> Vec<usize> {
        let mut left: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let mut order = Vec::new();
        while !left.is_empty() {
            let owner = Members::new(left.iter().copied(), None).ahead(key)[0].to_string();
            order.push(self.names.iter().position(|name| *name == owner).unwrap());
            left.retain(|name| *name != owner);
        }
        order
    }

    /// Where the replicas answer.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        let replicas = self.replicas.iter();
        let addresses = replicas.map(|replica| Address {
            registry: replica.address,
            health: replica.debug,
        });
        addresses.collect()
    }
}
