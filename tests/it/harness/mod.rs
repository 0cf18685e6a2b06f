//! What every test needs: a scripted upstream, images to put into it, the mirror with a client,
//! and command of the time.

#[path = "../../../testkit/faulty/mod.rs"]
mod faulty;
mod images;
mod mirror;
mod registry;
mod reply;
mod time;

pub(crate) use faulty::{FaultyStore, Operation};
pub(crate) use images::{Image, digest, noise};
pub(crate) use mirror::{Answer, Mirror, Setup, read, to_end};
pub(crate) use registry::{ALWAYS, Registry, Seen};
pub(crate) use reply::{Gate, Reply};
pub(crate) use time::{advance, eventually, freeze, passing, settle};
