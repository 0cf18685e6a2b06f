//! The writer under overlapping, reordered and contradictory chunks: it hashes the bytes of the file.

use std::io;

use proptest::prelude::*;

use super::super::writer::Writer;
use super::*;
use crate::oci::RangeSet;

const LENGTH: usize = 64;
/// Batches of one schedule.
const BATCHES: usize = 6;

/// A chunk that the upstream sends: its range, and which of its bytes are wrong.
#[derive(Debug, Clone)]
struct Sent {
    start: usize,
    length: usize,
    lies: u64,
}

fn sent() -> impl Strategy<Value = Sent> {
    let lies = prop_oneof![4 => Just(0), 1 => any::<u64>()];
    (0..LENGTH, 1..=LENGTH, lies).prop_map(|(start, length, lies)| Sent {
        start,
        length: length.min(LENGTH - start),
        lies,
    })
}

/// The bytes of a chunk of `content`.
fn bytes_of(sent: &Sent, content: &Bytes) -> Bytes {
    let place = sent.start..sent.start + sent.length;
    let lie = |(index, byte): (usize, &u8)| byte ^ u8::from(sent.lies >> index & 1 == 1);
    content[place].iter().enumerate().map(lie).collect()
}

/// Returns the writer after these batches, and the bytes in its file.
fn write(batches: &[Vec<(u64, Bytes)>], fails: Option<u64>) -> (Box<Writer>, Bytes) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let store = FaultyStore::new(Arc::new(MemoryStore::new()));
    if let Some(nth) = fails {
        store.fail(Operation::Write, nth, io::ErrorKind::StorageFull);
    }
    let digest = Digest::of(Algorithm::Sha256, b"");
    let stage = runtime.block_on(store.stage(&digest, UPSTREAM)).unwrap();
    let writer = Writer::new(Some(stage), Algorithm::Sha256, RangeSet::new(), None);
    let mut writer = Box::new(writer);
    for batch in batches {
        writer = writer.take(batch.clone());
        if writer.changed.is_some() {
            break;
        }
        writer.failure = None;
    }
    while writer.is_behind() {
        writer = writer.take(Vec::new());
    }
    let mut file = vec![0; LENGTH];
    let content = writer.content().unwrap();
    let read = content.read_blocking(0, &mut file).unwrap();
    file.truncate(read);
    (writer, file.into())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hashed_bytes_are_those_of_the_file(
        schedule in prop::collection::vec(prop::collection::vec(sent(), 0..6), 1..BATCHES),
        fails in prop::option::weighted(0.2, 1_u64..4),
    ) {
        let (content, _) = content(LENGTH);
        let batches: Vec<Vec<_>> = schedule
            .iter()
            .map(|batch| {
                let chunk = |sent: &Sent| (sent.start as u64, bytes_of(sent, &content));
                batch.iter().map(chunk).collect()
            })
            .collect();
        let (mut writer, file) = write(&batches, fails);
        if writer.changed.is_some() {
            return Ok(());
        }
        let (hashed, writing) = (usize::try_from(writer.hashed).unwrap(), writer.writing);
        let hash = writer.finish(Algorithm::Sha256).unwrap();
        if writing {
            prop_assert_eq!(hash, Digest::of(Algorithm::Sha256, &file[..hashed]));
        }
        // The first copy of each byte counts, whatever fails.
        let mut first = [None; LENGTH];
        for (start, bytes) in batches.iter().flatten() {
            for (at, byte) in bytes.iter().enumerate() {
                first[usize::try_from(*start).unwrap() + at].get_or_insert(*byte);
            }
        }
        if fails.is_none() {
            let known: Vec<u8> = first.iter().map_while(|byte| *byte).collect();
            prop_assert_eq!(&file[..hashed], &known);
        }
    }
}

#[tokio::test]
async fn a_second_copy_in_one_batch_does_not_reach_the_file() {
    let bench = Bench::new();
    let (content, digest) = content(300);
    let (first, broken_off) = streams(0, Some(300));
    // Two copies of 100..200 wait for the writer together; the second is wrong.
    let mut copies = content.to_vec();
    copies[100..200].fill(0xEE);
    let again = sends(0, Some(300), &copies.into(), 100);
    let source = Script::new([broken_off, again]);
    let writing = bench.store.stall(Operation::Write, 1);
    let mut follower = bench.join(digest, "a", &source);
    first.send(Ok(content.slice(..100))).await.unwrap();
    writing.reached().await;
    first.send(Ok(content.slice(100..200))).await.unwrap();
    first.send(Err(broken())).await.unwrap();
    assert_eq!(follower.total().await.unwrap(), Some(300));
    read_range(&mut follower, 0, 200).await.unwrap();
    // The second stream is open, and its first chunk waits to be compared.
    while !source.openings.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    writing.release();
    let read = read_to_end(&mut follower).await;
    fails_with!(read, DownloadError::Changed { at: 100, .. });
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await, None);
}
