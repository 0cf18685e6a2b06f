//! What blobs are made of: bytes that nothing can compress, and that whoever knows the blob's seed
//! can make again at any offset, to compare.

/// Bytes of one piece; every piece has a generator of its own.
pub(crate) const PIECE: usize = 1 << 20;

/// Fills `piece` with the piece of this number of a blob, or with its beginning.
pub(crate) fn fill(seed: u64, number: u64, piece: &mut [u8]) {
    fastrand::Rng::with_seed((seed << 32) ^ number).fill(piece);
}
