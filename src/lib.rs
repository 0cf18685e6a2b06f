//! millpond: a pull-through caching mirror for container registries.

pub mod clock;
pub mod config;
pub mod metrics;
pub mod oci;
pub mod retention;
pub mod store;
