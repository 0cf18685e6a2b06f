//! What every test needs: a scripted upstream, images to put into it, the mirror with a client,
//! and command of the time.

mod images;
mod mirror;
mod registry;
mod reply;
mod time;

pub(crate) use images::{Image, digest, noise};
pub(crate) use mirror::{Answer, Mirror, Setup, read, to_end};
pub(crate) use registry::{ALWAYS, Registry, Seen};
pub(crate) use reply::{Gate, Reply};
pub(crate) use time::{advance, eventually, freeze, passing, settle};
