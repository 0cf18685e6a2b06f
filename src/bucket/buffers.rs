//! The memory of parts on their way to the bucket. To have the system map new memory for each part, and clear
//! it, takes more time than reading and sending the part.

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::error::BucketError;
use crate::cache::{MAX_READ, Reader};

/// What was sent, for what is read next. Dropped when nothing is uploaded.
#[derive(Debug)]
pub(super) struct Buffers {
    free: Mutex<Vec<BytesMut>>,
    /// How many are kept.
    most: usize,
}

impl Buffers {
    /// Keeps as much memory as so many parts of these bytes take.
    pub(super) fn new(parts: usize, part: u64) -> Self {
        let pieces = usize::try_from(part.div_ceil(MAX_READ as u64)).unwrap_or(usize::MAX);
        Self {
            free: Mutex::default(),
            most: parts.saturating_mul(pieces),
        }
    }

    /// Reads local content in pieces.
    pub(super) async fn read(
        &self,
        reader: &Reader,
        start: u64,
        length: u64,
    ) -> Result<Vec<Bytes>, BucketError> {
        let (mut pieces, mut at, end) = (Vec::new(), start, start + length);
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(MAX_READ);
            let buffer = self.free.lock().pop().unwrap_or_default();
            let piece = reader.read_into(buffer, at, most).await;
            let piece = piece.map_err(BucketError::failed)?;
            if piece.is_empty() {
                let (received, expected) = (at - start, length);
                return Err(BucketError::Short { received, expected });
            }
            at += piece.len() as u64;
            pieces.push(piece);
            // What is in the page cache is copied without waiting.
            tokio::task::yield_now().await;
        }
        Ok(pieces)
    }

    /// Keeps the memory of what was read and isn't used any more.
    pub(super) fn reuse(&self, pieces: Vec<Bytes>) {
        let mut free = self.free.lock();
        let room = self.most.saturating_sub(free.len());
        let unused = pieces
            .into_iter()
            .filter_map(|piece| piece.try_into_mut().ok());
        free.extend(unused.take(room));
    }

    /// Buffers that wait for the next part.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.free.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of content, the last of them short.
    fn content() -> Vec<u8> {
        let numbers = (0..2 * MAX_READ as u64 + 9).map(|at| at.wrapping_mul(at));
        numbers
            .map(|number| (number >> 3).to_le_bytes()[0])
            .collect()
    }

    fn addresses(pieces: &[Bytes]) -> Vec<*const u8> {
        let mut addresses: Vec<_> = pieces.iter().map(|piece| piece.as_ptr()).collect();
        addresses.sort_unstable();
        addresses
    }

    #[tokio::test]
    async fn a_part_is_read_into_the_memory_of_one_that_was_sent() {
        let content = content();
        let reader = Reader::of_temporary(&content);
        let buffers = Buffers::new(1, content.len() as u64);
        let whole = content.len() as u64;
        let first = buffers.read(&reader, 0, whole).await.unwrap();
        assert_eq!(first.concat(), content);
        let before = addresses(&first);
        buffers.reuse(first);
        let second = buffers.read(&reader, 5, whole - 5).await.unwrap();
        assert_eq!(second.concat(), content[5..]);
        // The short one had no room for what it got now.
        let same = addresses(&second);
        let same = same.iter().filter(|address| before.contains(address));
        assert!(same.count() >= 2);
        assert_eq!(buffers.free(), 0);
    }

    #[tokio::test]
    async fn what_is_still_used_stays_as_it_is() {
        let content = content();
        let reader = Reader::of_temporary(&content);
        let buffers = Buffers::new(4, MAX_READ as u64);
        let sent = buffers.read(&reader, 0, 9).await.unwrap();
        let kept = sent.clone();
        buffers.reuse(sent);
        assert_eq!(buffers.free(), 0);
        let other = buffers.read(&reader, 9, 9).await.unwrap();
        assert_eq!(other.concat(), content[9..18]);
        assert_eq!(kept.concat(), content[..9]);
    }

    #[tokio::test]
    async fn no_more_is_kept_than_the_parts_take() {
        let content = content();
        let reader = Reader::of_temporary(&content);
        let buffers = Buffers::new(2, 9);
        for _ in 0..2 {
            let mut pieces = Vec::new();
            for at in 0..3 {
                pieces.extend(buffers.read(&reader, at, 9).await.unwrap());
            }
            buffers.reuse(pieces);
            assert_eq!(buffers.free(), 2);
        }
    }

    #[tokio::test]
    async fn content_that_is_too_short_is_an_error() {
        let reader = Reader::of_temporary(b"0123");
        let buffers = Buffers::new(1, 9);
        let error = buffers.read(&reader, 1, 9).await.unwrap_err();
        let is_short = matches!(
            error,
            BucketError::Short {
                received: 3,
                expected: 9
            }
        );
        assert!(is_short, "{error}");
    }
}
