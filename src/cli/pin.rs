//! `millpond pin` and `unpin`.

use std::time::Duration;

use super::operate::{Backend, stored_reference, with_backend};
use super::{Located, print};
use crate::admin::operate::{Operation, PinOperation};
use crate::cache::Pin;

/// `millpond pin`
pub(super) fn pin(
    located: &Located,
    images: &[String],
    lasting: Option<Duration>,
) -> anyhow::Result<()> {
    let pin = PinOperation::Add {
        references: stored(located, images)?,
        seconds: lasting.map(|lasting| lasting.as_secs().max(1)),
    };
    let run = async |backend: &mut Backend| backend.run(Operation::Pins(pin)).await;
    let pins: Vec<Pin> = with_backend(located, run)?;
    let lines = pins.iter().map(|pin| match &pin.until {
        Some(until) => format!("pinned until {until}: {}\n", pin.reference),
        None => format!("pinned: {}\n", pin.reference),
    });
    print(&lines.collect::<String>())
}

/// `millpond unpin`
pub(super) fn unpin(located: &Located, images: &[String]) -> anyhow::Result<()> {
    let references = stored(located, images)?;
    with_backend(located, async |backend| {
        for reference in references {
            let unpin = Operation::Pins(PinOperation::Remove { reference });
            let ended: Vec<Pin> = backend.run(unpin).await?;
            for pin in ended {
                print(&format!("no longer pinned: {}\n", pin.reference))?;
            }
        }
        Ok(())
    })
}

/// The references as the store knows them.
fn stored(located: &Located, images: &[String]) -> anyhow::Result<Vec<String>> {
    let images = images.iter();
    images
        .map(|image| stored_reference(located, image))
        .collect()
}
