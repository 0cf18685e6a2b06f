//! What the tests and benches of millpond share.
//!
//! [`Registry`] is the upstream of every test: it serves content, or what a script answers, and can
//! misbehave down to the byte. [`Image`] makes content for it. [`time`] controls tokio's paused time, [`orders`] explores orders of events.
//! `faulty/` beside this crate's sources is a store that fails; the tests include it by path, because
//! it implements a trait of millpond.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(
    missing_debug_implementations,
    reason = "no test prints a running server"
)]

mod bucket;
mod content;
mod images;
mod line;
pub mod orders;
#[cfg(unix)]
mod program;
mod pushes;
mod registry;
mod reply;
pub mod time;
mod tls;

pub use content::{digest, noise, sha512};
pub use images::{Image, media_type};
#[cfg(unix)]
pub use program::{Program, ReservedPort, configure, poll};
pub use registry::{ALWAYS, Options, Registry, Seen};
pub use reply::{Gate, Reply};
pub use tls::{Authority, Identity, Signed};
