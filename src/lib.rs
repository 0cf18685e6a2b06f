//! millpond: a pull-through caching mirror for container registries.

pub mod clock;
pub mod oci;
pub mod upstream;
