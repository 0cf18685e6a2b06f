//! Wires what decides about access.

use std::sync::Arc;

use super::StartError;
use crate::access::{Access, Audit, DenyList};
use crate::clock::Clock;
use crate::config::{Config, Storage};
use crate::metrics::Metrics;
use crate::storage::Layout;

/// The rules, the deny list with what operators have added to it, and the audit log.
pub(super) async fn access(
    config: &Config,
    clock: Clock,
    metrics: &Metrics,
) -> Result<Access, StartError> {
    let saved = match &config.storage {
        Storage::Filesystem { root, .. } => Some(Layout::new(root).denied()),
        Storage::Memory => None,
    };
    let denied = Arc::new(DenyList::open(&config.access.deny, saved).await?);
    let audit = match &config.log.audit {
        Some(to) => Audit::start(to, clock, metrics).map_err(StartError::Audit)?,
        None => Audit::default(),
    };
    let rules = config.access.rules.clone();
    Ok(Access::new(rules, config.has_users(), &config.proxy).with(denied, audit))
}
