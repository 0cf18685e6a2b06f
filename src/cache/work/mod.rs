//! The work that the cache does by itself, in tasks of its own.

pub(super) mod deletion;
pub(super) mod expiry;
pub(super) mod reconcile;
mod save;
pub(super) mod scrub;

use std::sync::Arc;

use super::state::journal::Journal;
use super::{Inner, Upkeep};

/// Loads the state, then schedules until the stop, while the index is built from the store.
pub(super) async fn run(shared: Arc<Inner>) {
    let _ended = shared.ended.clone().drop_guard();
    let saver = match shared.settings.state.clone() {
        None => None,
        Some(path) => reconcile::load(&shared, Journal::at(path)).await,
    };
    let saver = saver.filter(|_| shared.settings.upkeep == Upkeep::Full);
    tokio::join!(expiry::run(&shared, saver), reconcile::run(&shared));
}
