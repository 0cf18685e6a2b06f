//! The suite's tests of staged writes, and of resuming them.

use std::time::SystemTime;

use futures_util::FutureExt as _;

use super::{
    Algorithm, Bytes, Digest, Partial, Stage, Store, blocking, commit, digest, partial, put,
    read_all, staged, text, write,
};

async fn checkpoint(mut stage: Box<dyn Stage>, total: u64) -> Box<dyn Stage> {
    blocking(move || {
        stage.checkpoint(total, false)?;
        Ok(stage)
    })
    .await
    .unwrap()
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
    let read = stage.content().read_blocking(offset, &mut buffer).unwrap();
    buffer.truncate(read);
    String::from_utf8(buffer).unwrap().replace('\0', ".")
}

/// A partial with `abc` at 0 and `h` at 7 of 8 bytes.
async fn left(store: &dyn Store, digest: &Digest) -> Partial {
    let stage = staged(store, digest, "abc").await;
    let stage = write(stage, 7, &["h"]).await;
    leave(checkpoint(stage, 8).await).await;
    partial(8, &[(0, 3), (7, 8)])
}

async fn listed(store: &dyn Store) -> Vec<(Digest, Partial)> {
    let partials = store.partials().await.unwrap();
    let named = partials
        .into_iter()
        .map(|(digest, partial, _)| (digest, partial));
    named.collect()
}

pub(super) async fn a_stage_is_read_while_it_grows(store: &dyn Store) {
    let digest = digest("abcdef");
    let stage = store.stage(&digest, "u").await.unwrap();
    let early = stage.content();
    assert_eq!(text(&early, 0, 9).await, "");
    let stage = write(stage, 0, &["abc"]).await;
    let late = stage.content();
    assert_eq!(text(&early, 0, 9).await, "abc");
    let stage = write(stage, 3, &["def"]).await;
    assert_eq!(text(&early, 1, 9).await, "bcdef");
    assert_eq!(text(&late, 4, 9).await, "ef");
    commit(stage).await;
    for reader in [early.clone(), early, late] {
        assert_eq!(text(&reader, 0, 9).await, "abcdef");
    }
}

pub(super) async fn a_dropped_stage_leaves_nothing(store: &dyn Store) {
    let digest = digest("abc");
    let stage = staged(store, &digest, "ab").await;
    let reader = stage.content();
    drop(stage);
    assert!(store.open(&digest).await.unwrap().is_none());
    assert_eq!(text(&reader, 0, 9).await, "ab");
    assert!(store.repositories().await.unwrap().is_empty());
    put(store, &digest, "abc".into()).await.unwrap();
    assert_eq!(store.size(&digest).await.unwrap(), Some(3));
}

pub(super) async fn stages_of_two_upstreams_are_apart(store: &dyn Store) {
    let digest = digest("abc");
    let first = staged(store, &digest, "ab").await;
    let second = write(store.stage(&digest, "v").await.unwrap(), 0, &["xy"]).await;
    assert_eq!(text(&first.content(), 0, 9).await, "ab");
    assert_eq!(text(&second.content(), 0, 9).await, "xy");
    drop(second);
    commit(write(first, 2, &["c"]).await).await;
    let whole = read_all(store, &digest, 3).await.unwrap();
    assert_eq!(whole, Some("abc".into()));
}

pub(super) async fn a_second_commit_changes_nothing(store: &dyn Store) {
    let digest = digest("abc");
    let first = staged(store, &digest, "abc").await;
    let second = write(store.stage(&digest, "v").await.unwrap(), 0, &["abc"]).await;
    let follower = second.content();
    commit(first).await;
    let open = store.open(&digest).await.unwrap().unwrap();
    commit(second).await;
    assert_eq!(text(&open.reader, 0, 9).await, "abc");
    assert_eq!(text(&follower, 0, 9).await, "abc");
    assert!(store.remove(&digest).await.unwrap());
    assert!(!store.remove(&digest).await.unwrap());
}

pub(super) async fn parts_are_written_in_any_order(store: &dyn Store) {
    let digest = digest("abcdefgh");
    let stage = store.stage(&digest, "u").await.unwrap();
    let stage = write(stage, 5, &["fg", "", "h"]).await;
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
        let mut stage = staged(store, &digest, "a").await;
        let stage = blocking(move || {
            let chunks = [Bytes::from_static(b"a")];
            stage.write_at(offset, &chunks).unwrap_err();
            Ok(stage)
        });
        let stage = stage.await.unwrap();
        assert_eq!(read(stage.as_ref(), 0, 9), "a");
        drop(stage);
        assert_eq!(store.size(&digest).await.unwrap(), None);
    }
}

pub(super) async fn a_left_stage_is_resumed(store: &dyn Store) {
    let digest = digest("abcdefgh");
    let claimed = left(store, &digest).await;
    assert_eq!(listed(store).await, [(digest, claimed.clone())]);
    assert!(store.open(&digest).await.unwrap().is_none());

    let (stage, partial) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(partial, claimed);
    assert_eq!(read(stage.as_ref(), 0, 9), "abc....h");
    assert_eq!(text(&stage.content(), 0, 3).await, "abc");
    // Left without another checkpoint: as it was before.
    let stage = write(stage, 3, &["d"]).await;
    leave(stage).await;
    let (stage, partial) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(partial, claimed);
    let stage = checkpoint(write(stage, 3, &["de"]).await, 8).await;
    leave(stage).await;
    let (stage, partial) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(partial, super::partial(8, &[(0, 5), (7, 8)]));
    commit(write(stage, 5, &["fg"]).await).await;
    let whole = read_all(store, &digest, 8).await.unwrap();
    assert_eq!(whole, Some("abcdefgh".into()));
    assert!(store.resume(&digest, "u").await.unwrap().is_none());
    assert!(listed(store).await.is_empty());
}

pub(super) async fn a_stage_without_a_checkpoint_is_not_left(store: &dyn Store) {
    let digest = digest("abc");
    let stage = staged(store, &digest, "ab").await;
    let reader = stage.content();
    leave(stage).await;
    assert_eq!(text(&reader, 0, 9).await, "ab");
    assert!(listed(store).await.is_empty());
    assert!(store.resume(&digest, "u").await.unwrap().is_none());
    assert!(!store.discard(&digest, "u").await.unwrap());
}

/// A second stage waits for the end of the first, whichever that is; meanwhile its partial is
/// hidden.
pub(super) async fn there_is_one_stage_for_a_digest_and_upstream(store: &dyn Store) {
    let (digest, other) = (digest("abc"), digest("other"));
    for left_at_the_end in [false, true] {
        let mut stage = staged(store, &digest, "ab").await;
        stage = checkpoint(stage, 3).await;
        for resumed in [false, true] {
            if resumed {
                leave(stage).await;
                stage = store.resume(&digest, "u").await.unwrap().unwrap().0;
            }
            assert!(listed(store).await.is_empty());
            assert!(!store.discard(&digest, "u").await.unwrap());
            let mut second = store.stage(&digest, "u");
            assert!((&mut second).now_or_never().is_none());
            // A cancelled one takes nothing.
            drop(store.resume(&digest, "u").now_or_never());
        }
        let mut second = store.resume(&digest, "u");
        assert!((&mut second).now_or_never().is_none());
        // Other keys don't wait.
        drop(store.stage(&other, "u").await.unwrap());
        drop(store.stage(&digest, "v").await.unwrap());
        if left_at_the_end {
            leave(stage).await;
            let (stage, resumed) = second.await.unwrap().unwrap();
            assert_eq!(resumed, partial(3, &[(0, 2)]));
            leave(stage).await;
            assert_eq!(listed(store).await, [(digest, partial(3, &[(0, 2)]))]);
            assert!(store.discard(&digest, "u").await.unwrap());
        } else {
            drop(stage);
            assert!(second.await.unwrap().is_none());
        }
        assert!(listed(store).await.is_empty());
    }
    // A commit ends a stage, too.
    let first = staged(store, &digest, "abc").await;
    let mut second = store.stage(&digest, "u");
    assert!((&mut second).now_or_never().is_none());
    commit(first).await;
    let second = write(second.await.unwrap(), 0, &["abc"]).await;
    commit(second).await;
    assert_eq!(store.size(&digest).await.unwrap(), Some(3));
}

pub(super) async fn a_new_stage_takes_the_place_of_a_partial(store: &dyn Store) {
    let digest = digest("abcdefgh");
    left(store, &digest).await;
    let stage = staged(store, &digest, "a").await;
    assert!(listed(store).await.is_empty());
    assert_eq!(read(stage.as_ref(), 0, 9), "a");
    let stage = checkpoint(stage, 8).await;
    leave(stage).await;
    assert_eq!(listed(store).await, [(digest, partial(8, &[(0, 1)]))]);
    // Without a checkpoint of its own it leaves nothing, and not what was there before either.
    leave(store.stage(&digest, "u").await.unwrap()).await;
    assert!(listed(store).await.is_empty());
    // Dropped, with a checkpoint.
    left(store, &digest).await;
    let (stage, _) = store.resume(&digest, "u").await.unwrap().unwrap();
    drop(stage);
    assert!(store.resume(&digest, "u").await.unwrap().is_none());
}

pub(super) async fn a_commit_removes_every_partial(store: &dyn Store) {
    let digest = digest("abcdefgh");
    // The second time the blob is there already.
    for _ in 0..2 {
        left(store, &digest).await;
        put(store, &digest, "abcdefgh".into()).await.unwrap();
        assert!(listed(store).await.is_empty());
        assert!(store.resume(&digest, "u").await.unwrap().is_none());
        assert_eq!(store.size(&digest).await.unwrap(), Some(8));
    }
    let stage = staged(store, &digest, "abcdefgh").await;
    commit(checkpoint(stage, 8).await).await;
    assert!(listed(store).await.is_empty());
}

pub(super) async fn a_partial_belongs_to_one_upstream(store: &dyn Store) {
    let digest = digest("abcdefgh");
    let claimed = left(store, &digest).await;
    let other = Partial {
        upstream: "v".into(),
        ..partial(8, &[(0, 1)])
    };
    let stage = write(store.stage(&digest, "v").await.unwrap(), 0, &["x"]).await;
    leave(checkpoint(stage, 8).await).await;
    let both = [(digest, claimed.clone()), (digest, other.clone())];
    assert_eq!(listed(store).await, both);
    assert!(store.resume(&digest, "w").await.unwrap().is_none());
    let (stage, resumed) = store.resume(&digest, "v").await.unwrap().unwrap();
    assert_eq!((&*read(stage.as_ref(), 0, 9), resumed), ("x", other));
    leave(stage).await;
    assert!(store.discard(&digest, "v").await.unwrap());
    assert_eq!(listed(store).await, [(digest, claimed)]);
    let stage = write(store.stage(&digest, "v").await.unwrap(), 0, &["abcdefgh"]).await;
    commit(stage).await;
    assert!(listed(store).await.is_empty());
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
    for (_, _, modified) in all {
        assert!(modified > SystemTime::UNIX_EPOCH);
    }

    let gone = digests.remove(4);
    assert!(store.discard(&gone, "u").await.unwrap());
    assert!(!store.discard(&gone, "u").await.unwrap());
    assert!(store.resume(&gone, "u").await.unwrap().is_none());
    let left = listed(store).await;
    assert!(left.iter().map(|(digest, _)| digest).eq(&digests));
}
