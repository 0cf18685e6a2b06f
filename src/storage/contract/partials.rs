//! The parts of the suite about writing anywhere, and about partials.

use super::{Algorithm, Bytes, Digest, Stage, Store, commit, digest, put, read_all, text, write};
use crate::oci::RangeSet;
use crate::storage::{MAX_KEPT_RANGES, Partial, blocking};

fn partial(total: u64, ranges: &[(u64, u64)]) -> Partial {
    let mut set = RangeSet::new();
    for (start, end) in ranges {
        set.insert(*start, *end);
    }
    Partial {
        upstream: "u".into(),
        total,
        ranges: set,
    }
}

async fn keep(stage: &dyn Stage, partial: &Partial) {
    let (keeper, partial) = (stage.keeper(), partial.clone());
    blocking(move || keeper.keep(&partial)).await.unwrap();
}

async fn leave(stage: Box<dyn Stage>) {
    let left = blocking(move || {
        stage.leave();
        Ok(())
    });
    left.await.unwrap();
}

/// What was read back, zeros as `.`.
fn read(stage: &dyn Stage, offset: u64, max: usize) -> String {
    let mut buffer = vec![b'x'; max];
    let read = stage.read_at(offset, &mut buffer).unwrap();
    buffer.truncate(read);
    String::from_utf8(buffer).unwrap().replace('\0', ".")
}

/// A partial with `abc` at 0 and `h` at 7 of 8 bytes.
async fn left(store: &dyn Store, digest: &Digest) -> Partial {
    let kept = partial(8, &[(0, 3), (7, 8)]);
    let stage = write(store.stage(digest).await.unwrap(), 0, &["abc"]).await;
    let stage = write(stage, 7, &["h"]).await;
    keep(stage.as_ref(), &kept).await;
    leave(stage).await;
    kept
}

async fn listed(store: &dyn Store) -> Vec<(Digest, Partial)> {
    let partials = store.partials().await.unwrap();
    let named = partials.into_iter();
    named
        .map(|(digest, partial, _)| (digest, partial))
        .collect()
}

pub(super) async fn parts_are_written_in_any_order(store: &dyn Store) {
    let digest = digest("abcdefgh");
    let stage = write(store.stage(&digest).await.unwrap(), 5, &["fg", "", "h"]).await;
    assert_eq!(read(stage.as_ref(), 0, 9), ".....fgh");
    assert_eq!(read(stage.as_ref(), 6, 1), "g");
    for end in [8, u64::MAX] {
        assert_eq!(read(stage.as_ref(), end, 9), "");
    }
    let stage = write(stage, 20, &[""]).await;
    let stage = write(stage, 0, &["ab", "?d"]).await;
    assert_eq!(text(&stage.content(), 0, 9).await, "ab?d\0fgh");
    let stage = write(stage, 2, &["c", "de"]).await;
    assert_eq!(read(stage.as_ref(), 0, 9), "abcdefgh");
    commit(stage).await;
    let whole = read_all(store, &digest, 9).await.unwrap();
    assert_eq!(whole, Some("abcdefgh".into()));
}

pub(super) async fn a_write_past_every_offset_ends_the_stage(store: &dyn Store) {
    let digest = digest("a");
    for offset in [i64::MAX as u64, u64::MAX] {
        let mut stage = write(store.stage(&digest).await.unwrap(), 0, &["a"]).await;
        let stage = blocking(move || {
            stage
                .write_at(offset, &[Bytes::from_static(b"a")])
                .unwrap_err();
            Ok(stage)
        });
        let stage = stage.await.unwrap();
        assert_eq!(read(stage.as_ref(), 0, 9), "a");
        drop(stage);
        assert_eq!(store.size(&digest).await.unwrap(), None);
    }
}

pub(super) async fn what_was_kept_and_left_is_taken_up_again(store: &dyn Store) {
    let digest = digest("abcdefgh");
    let kept = left(store, &digest).await;
    assert_eq!(listed(store).await, [(digest, kept.clone())]);
    assert!(store.open(&digest).await.unwrap().is_none());

    let (stage, partial) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(partial, kept);
    assert_eq!(read(stage.as_ref(), 0, 9), "abc....h");
    assert_eq!(text(&stage.content(), 0, 3).await, "abc");
    // Left without being kept again: as it was before.
    let stage = write(stage, 3, &["d"]).await;
    leave(stage).await;
    let (stage, partial) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(partial, kept);
    let more = self::partial(8, &[(0, 5), (7, 8)]);
    let stage = write(stage, 3, &["de"]).await;
    keep(stage.as_ref(), &more).await;
    leave(stage).await;
    let (stage, partial) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(partial, more);
    commit(write(stage, 5, &["fg"]).await).await;
    let whole = read_all(store, &digest, 8).await.unwrap();
    assert_eq!(whole, Some("abcdefgh".into()));
    assert!(store.resume(&digest, "u").await.unwrap().is_none());
    assert!(listed(store).await.is_empty());
}

pub(super) async fn what_was_never_kept_is_not_left(store: &dyn Store) {
    let digest = digest("abc");
    let stage = write(store.stage(&digest).await.unwrap(), 0, &["ab"]).await;
    let reader = stage.content();
    leave(stage).await;
    assert_eq!(text(&reader, 0, 9).await, "ab");
    assert!(listed(store).await.is_empty());
    assert!(store.resume(&digest, "u").await.unwrap().is_none());
    assert!(!store.discard(&digest, "u").await.unwrap());
}

pub(super) async fn a_partial_ends_with_its_stage(store: &dyn Store) {
    let digest = digest("abc");
    for again in [false, true] {
        let mut stage = write(store.stage(&digest).await.unwrap(), 0, &["ab"]).await;
        keep(stage.as_ref(), &partial(3, &[(0, 2)])).await;
        if again {
            leave(stage).await;
            stage = store.resume(&digest, "u").await.unwrap().unwrap().0;
        }
        drop(stage);
        assert!(listed(store).await.is_empty());
        assert!(store.resume(&digest, "u").await.unwrap().is_none());
    }
}

pub(super) async fn a_partial_in_hand_is_nobody_elses(store: &dyn Store) {
    let digest = digest("abc");
    let stage = write(store.stage(&digest).await.unwrap(), 0, &["ab"]).await;
    keep(stage.as_ref(), &partial(3, &[(0, 2)])).await;
    for _ in 0..2 {
        assert!(listed(store).await.is_empty());
        assert!(store.resume(&digest, "u").await.unwrap().is_none());
        assert!(!store.discard(&digest, "u").await.unwrap());
    }
    leave(stage).await;
    let (stage, _) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert!(listed(store).await.is_empty());
    assert!(store.resume(&digest, "u").await.unwrap().is_none());
    assert!(!store.discard(&digest, "u").await.unwrap());
    assert_eq!(read(stage.as_ref(), 0, 9), "ab");
    leave(stage).await;
    assert_eq!(listed(store).await.len(), 1);
}

pub(super) async fn there_is_one_partial_a_digest_at_most(store: &dyn Store) {
    let digest = digest("abcdefgh");
    let newer = partial(8, &[(0, 1)]);
    // Kept while the other is left: the other goes at once.
    left(store, &digest).await;
    let stage = write(store.stage(&digest).await.unwrap(), 0, &["a"]).await;
    assert_eq!(listed(store).await.len(), 1);
    keep(stage.as_ref(), &newer).await;
    assert!(listed(store).await.is_empty());
    leave(stage).await;
    assert_eq!(listed(store).await, [(digest, newer.clone())]);

    // Kept while the other is in hand: whoever is left last stays.
    let (other, _) = store.resume(&digest, "u").await.unwrap().unwrap();
    let stage = write(store.stage(&digest).await.unwrap(), 0, &["abcd"]).await;
    keep(stage.as_ref(), &partial(8, &[(0, 4)])).await;
    assert_eq!(read(other.as_ref(), 0, 9), "a");
    leave(stage).await;
    leave(other).await;
    assert_eq!(listed(store).await, [(digest, newer)]);
    let (stage, _) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(read(stage.as_ref(), 0, 9), "a");
    drop(stage);
    assert!(store.resume(&digest, "u").await.unwrap().is_none());
}

pub(super) async fn a_commit_ends_every_partial(store: &dyn Store) {
    let digest = digest("abcdefgh");
    // The second time the blob is there already.
    for _ in 0..2 {
        left(store, &digest).await;
        put(store, &digest, "abcdefgh".into()).await.unwrap();
        assert!(listed(store).await.is_empty());
        assert!(store.resume(&digest, "u").await.unwrap().is_none());
        assert_eq!(store.size(&digest).await.unwrap(), Some(8));
    }
    let stage = write(store.stage(&digest).await.unwrap(), 0, &["abcdefgh"]).await;
    keep(stage.as_ref(), &partial(8, &[(0, 8)])).await;
    commit(stage).await;
    assert!(listed(store).await.is_empty());
}

pub(super) async fn a_late_keeper_leaves_nothing(store: &dyn Store) {
    let digest = digest("abcdefgh");
    let whole = partial(8, &[(0, 8)]);
    let late = async |keeper: Box<dyn crate::storage::Keeper>| {
        let whole = whole.clone();
        blocking(move || keeper.keep(&whole)).await.unwrap();
    };
    let stage = write(store.stage(&digest).await.unwrap(), 0, &["abcdefgh"]).await;
    let (dropped, keeper) = (stage.keeper(), stage.keeper());
    late(keeper).await;
    drop(stage);
    // It doesn't touch the partial of another stage, either.
    let kept = left(store, &digest).await;
    late(dropped).await;
    assert_eq!(listed(store).await, [(digest, kept)]);

    let (stage, _) = store.resume(&digest, "u").await.unwrap().unwrap();
    let discarded = stage.keeper();
    leave(stage).await;
    assert!(store.discard(&digest, "u").await.unwrap());
    late(discarded).await;
    assert!(listed(store).await.is_empty());

    let stage = write(store.stage(&digest).await.unwrap(), 0, &["abcdefgh"]).await;
    let committed = stage.keeper();
    commit(stage).await;
    late(committed).await;
    assert!(listed(store).await.is_empty());
    assert!(store.resume(&digest, "u").await.unwrap().is_none());
    assert_eq!(store.size(&digest).await.unwrap(), Some(8));
}

pub(super) async fn more_ranges_than_are_kept_are_forgotten(store: &dyn Store) {
    let digest = digest("x");
    let size = MAX_KEPT_RANGES * 2 + 2;
    let mut stage = store.stage(&digest).await.unwrap();
    let stage = blocking(move || {
        stage.write_at(0, &[Bytes::from(vec![b'x'; size])])?;
        Ok(stage)
    });
    let stage = stage.await.unwrap();
    let size = size as u64;
    let ranges: Vec<_> = (0..size / 2).map(|at| (at * 2, at * 2 + 1)).collect();
    keep(stage.as_ref(), &partial(size, &ranges)).await;
    leave(stage).await;
    let expected = partial(size, &ranges[..MAX_KEPT_RANGES]);
    assert_eq!(listed(store).await, [(digest, expected.clone())]);
    let (_stage, resumed) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(resumed, expected);
}

pub(super) async fn partials_are_listed_in_order_and_discarded(store: &dyn Store) {
    let mut digests: Vec<_> = (0..9).map(|n| digest(&n.to_string())).collect();
    digests.push(Digest::of(Algorithm::Sha512, b""));
    for digest in &digests {
        left(store, digest).await;
    }
    digests.sort_unstable();
    let all = store.partials().await.unwrap();
    assert!(all.iter().map(|(digest, ..)| digest).eq(&digests));
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    assert!(all.iter().all(|(_, _, modified)| *modified > epoch));

    let gone = digests.remove(4);
    assert!(store.discard(&gone, "u").await.unwrap());
    assert!(!store.discard(&gone, "u").await.unwrap());
    assert!(store.resume(&gone, "u").await.unwrap().is_none());
    let left = listed(store).await;
    assert!(left.iter().map(|(digest, _)| digest).eq(&digests));
}

pub(super) async fn a_partial_belongs_to_one_upstream(store: &dyn Store) {
    let digest = digest("abcdefgh");
    let kept = left(store, &digest).await;
    let other = Partial {
        upstream: "v".into(),
        ..partial(8, &[(0, 1)])
    };
    let stage = write(store.stage(&digest).await.unwrap(), 0, &["x"]).await;
    keep(stage.as_ref(), &other).await;
    leave(stage).await;
    let both = [(digest, kept.clone()), (digest, other.clone())];
    assert_eq!(listed(store).await, both);
    assert!(store.resume(&digest, "w").await.unwrap().is_none());
    let (stage, resumed) = store.resume(&digest, "v").await.unwrap().unwrap();
    assert_eq!(
        (read(stage.as_ref(), 0, 9), resumed),
        ("x".to_owned(), other)
    );
    leave(stage).await;
    assert!(store.discard(&digest, "v").await.unwrap());
    assert_eq!(listed(store).await, [(digest, kept)]);
    let stage = write(store.stage(&digest).await.unwrap(), 0, &["abcdefgh"]).await;
    commit(stage).await;
    assert!(listed(store).await.is_empty());
}
