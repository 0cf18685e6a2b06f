//! What every test needs: a scripted upstream, images for it, the mirror with a client, and control
//! of the time.

#[path = "../../../testkit/faulty/mod.rs"]
mod faulty;
pub(crate) mod log;
mod mirror;
pub(crate) mod push;
pub(crate) mod replicas;

use millpond::oci::{Algorithm, Digest};

pub(crate) use faulty::{FaultyStore, Operation, Stall};
pub(crate) use mirror::{
    Answer, Mirror, Setup, blob_path, mirrored, mirrored_with, over_faulty_store, put_blob,
    put_image, read, to_end,
};
pub(crate) use testkit::time::{advance, eventually, passing, settle};
pub(crate) use testkit::{ALWAYS, Gate, Image, Reply, Seen, noise};

pub(crate) type Registry = testkit::Registry<Digest>;

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}
