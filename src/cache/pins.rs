//! Pins that operators make at run time: they keep images from eviction and from expiry, and are saved
//! in the data directory. The index applies them.
//!
//! A change that can't be saved doesn't happen. While the file can't be read, the index isn't complete, so
//! that nothing is deleted.

mod file;
mod list;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::state::timestamp::Timestamp;
use super::{Cache, Inner};
pub(super) use list::PinList;
use list::{ByReference, compile};
pub use list::{Pin, PinError};

/// Reads the file, and applies what it has.
pub(super) async fn load(shared: &Arc<Inner>) -> Result<(), PinError> {
    let Some(path) = shared.pins.path.clone() else {
        return Ok(());
    };
    let shared = Arc::clone(shared);
    let reading = tokio::task::spawn_blocking(move || {
        let mut pins = ByReference::new();
        for pin in file::read(&path)? {
            let invalid = |reason: String| PinError::Invalid {
                path: path.clone(),
                reason,
            };
            let bad_time = |text| invalid(format!("{text:?} is no time"));
            pin.end().map_err(bad_time)?;
            pin.selection()
                .map_err(|error| invalid(error.to_string()))?;
            pins.insert(pin.reference.clone(), pin);
        }
        shared.apply_pins(pins)
    });
    reading.await.unwrap_or(Err(PinError::Lost))
}

impl Inner {
    fn apply_pins(&self, mut pins: ByReference) -> Result<(), PinError> {
        let now = self.now();
        pins.retain(|_, pin| pin.is_live(now));
        let compiled = compile(&pins)?;
        *self.pins.pins.lock() = pins;
        self.with(|index| index.set_pins(compiled));
        Ok(())
    }

    /// Changes the pins, saves them and applies them. Blocks.
    fn change_pins<T>(
        &self,
        change: impl FnOnce(&mut ByReference, Timestamp) -> Result<T, PinError>,
        _turn: OwnedSemaphorePermit,
    ) -> Result<T, PinError> {
        let now = self.now();
        let mut pins = self.pins.pins.lock().clone();
        pins.retain(|_, pin| pin.is_live(now));
        let changed = change(&mut pins, now)?;
        compile(&pins)?;
        if let Some(path) = &self.pins.path {
            file::write(path, pins.values())?;
        }
        self.apply_pins(pins)?;
        Ok(changed)
    }
}

impl Cache {
    /// The pins that were made at run time and haven't ended, sorted.
    pub fn pins(&self) -> Vec<Pin> {
        let now = self.inner.now();
        let pins = self.inner.pins.pins.lock();
        pins.values()
            .filter(|pin| pin.is_live(now))
            .cloned()
            .collect()
    }

    /// Keeps what the references select from eviction and from expiry, for as long as said; none is until
    /// it is unpinned. A reference that is pinned already gets the new end. All are pinned, or none.
    pub async fn pin(
        &self,
        references: Vec<String>,
        lasting: Option<Duration>,
    ) -> Result<Vec<Pin>, PinError> {
        self.changing_pins(move |pins, now| {
            let show =
                |time: Timestamp| humantime::format_rfc3339_seconds(time.system_time()).to_string();
            let new = references.into_iter().map(|reference| Pin {
                reference,
                added: show(now),
                until: lasting.map(|lasting| show(now.after(lasting))),
            });
            let new: Vec<_> = new.collect();
            for pin in &new {
                pins.insert(pin.reference.clone(), pin.clone());
            }
            Ok(new)
        })
        .await
    }

    /// Ends a pin.
    pub async fn unpin(&self, reference: String) -> Result<Pin, PinError> {
        self.changing_pins(move |pins, _now| {
            pins.remove(&reference).ok_or(PinError::Unknown(reference))
        })
        .await
    }

    async fn changing_pins<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut ByReference, Timestamp) -> Result<T, PinError> + Send + 'static,
    ) -> Result<T, PinError> {
        // Before that, the file may not have been read.
        self.ready().await?;
        let turn = Arc::clone(&self.inner.pins.changing).acquire_owned().await;
        let turn = turn.map_err(|_closed| PinError::Lost)?;
        let inner = Arc::clone(&self.inner);
        // Ends also if the caller gives up, so that the file and the index agree.
        let changing = tokio::task::spawn_blocking(move || inner.change_pins(change, turn));
        changing.await.unwrap_or(Err(PinError::Lost))
    }
}
