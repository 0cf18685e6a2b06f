//! Several replicas in processes of their own, on addresses of the loopback network: what clients get while
//! replicas are killed, stopped, restarted, added and removed, and what the upstream is asked meanwhile.
//!
//! Processes live in real time; what is done to them is decided by what clients have received, and nothing here
//! passes or fails by the clock.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod cluster;
mod load;
mod restarts;
mod scaling;
mod stops;

use millpond::oci::Digest;

type Upstream = testkit::Registry<Digest>;

/// Of all replicas.
const SECRET: &str = "a secret of all the replicas";
