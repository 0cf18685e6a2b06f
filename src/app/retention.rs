//! From the configuration to what retention is told.

use std::path::Path;
use std::sync::Arc;

use super::StartError;
use crate::config::{Config, Storage};
use crate::retention::{MinFree, Settings, TtlPolicy};
use crate::store::Layout;

pub(super) fn settings(config: &Config) -> Result<Settings, StartError> {
    let root = match &config.storage {
        Storage::Filesystem { root } => Some(root),
        Storage::Memory => None,
    };
    Ok(Settings {
        ttl: TtlPolicy::sliding(config.proxy.ttl),
        pins: Vec::new(),
        max_size: None,
        min_free: None,
        state: root.map(|root| Layout::new(root).scheduler_state()),
    })
}
