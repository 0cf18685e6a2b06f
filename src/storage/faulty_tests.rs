//! The store of `testkit/faulty`.

use std::io;
use std::sync::Arc;

use super::faulty::{FaultyStore, Operation};
use super::*;
use crate::oci::Algorithm;
use crate::storage::{MemoryStore, contract, put, read_all};
use bytes::Bytes;

fn faulty() -> FaultyStore {
    FaultyStore::new(Arc::new(MemoryStore::new()))
}

fn content() -> (Digest, Bytes) {
    let content = Bytes::from_static(b"content");
    (Digest::of(Algorithm::Sha256, &content), content)
}

#[tokio::test]
async fn without_faults_keeps_the_contract() {
    contract::holds(async || (Arc::new(faulty()) as Arc<dyn Store>, None)).await;
}

#[tokio::test]
async fn the_nth_call_fails_once_or_for_good() {
    let store = faulty();
    let (digest, _) = content();
    store.fail(Operation::Size, 2, io::ErrorKind::StorageFull);
    assert_eq!(store.size(&digest).await.unwrap(), None);
    // A call of another operation doesn't count.
    assert!(store.repositories().await.unwrap().is_empty());
    assert!(store.size(&digest).await.unwrap_err().is_full());
    assert_eq!(store.size(&digest).await.unwrap(), None);

    store.fail_from(Operation::Size, 2, io::ErrorKind::ReadOnlyFilesystem);
    store.size(&digest).await.unwrap();
    for _ in 0..2 {
        assert!(store.size(&digest).await.unwrap_err().is_read_only());
    }
}

#[tokio::test]
async fn a_failed_write_or_commit_leaves_no_blob() {
    let store = faulty();
    let (digest, content) = content();
    for operation in [Operation::Write, Operation::Commit] {
        store.fail(operation, 1, io::ErrorKind::StorageFull);
        let error = put(&store, &digest, content.clone()).await.unwrap_err();
        assert!(error.is_full());
        assert_eq!(store.size(&digest).await.unwrap(), None);
    }
    let mut stage = store.stage(&digest, "u").await.unwrap();
    store.fail(Operation::Write, 1, io::ErrorKind::StorageFull);
    let chunks = std::slice::from_ref(&content);
    stage.write_at(0, chunks).unwrap_err();
    stage.write_at(0, chunks).unwrap_err();
    stage.commit().unwrap_err();
    put(&store, &digest, content).await.unwrap();
}

#[tokio::test]
async fn failing_calls_leave_a_partial_unchanged() {
    let store = faulty();
    let (digest, content) = content();
    let mut stage = store.stage(&digest, "u").await.unwrap();
    stage.write_at(0, &[content.slice(..3)]).unwrap();
    let full = io::ErrorKind::StorageFull;
    store.fail(Operation::Checkpoint, 2, full);
    stage.checkpoint(7, false).unwrap();
    stage.write_at(3, &[content.slice(3..)]).unwrap();
    assert!(stage.checkpoint(7, false).unwrap_err().is_full());
    // A stage that lacks data can still be left.
    store.fail(Operation::Write, 1, full);
    stage.write_at(0, &[]).unwrap_err();
    stage.leave();

    for operation in [Operation::Resume, Operation::Partials, Operation::Discard] {
        store.fail(operation, 1, full);
    }
    assert!(store.resume(&digest, "u").await.unwrap_err().is_full());
    assert!(store.partials().await.unwrap_err().is_full());
    assert!(store.discard(&digest, "u").await.unwrap_err().is_full());
    let (mut stage, partial) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(partial.ranges.len(), 3);
    stage.checkpoint(7, false).unwrap();
    store.fail(Operation::Commit, 1, full);
    assert!(stage.commit().unwrap_err().is_full());
    assert!(store.partials().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stalled_call_waits_for_its_release() {
    let store = Arc::new(faulty());
    let (digest, content) = content();
    for operation in [Operation::Stage, Operation::Write, Operation::Commit] {
        store.remove(&digest).await.unwrap();
        let stall = store.stall(operation, 1);
        let (putting, content) = (Arc::clone(&store), content.clone());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { put(&*putting, &digest, content).await });
        stall.reached().await;
        assert_eq!(store.size(&digest).await.unwrap(), None, "{operation:?}");
        stall.release();
        tasks.join_next().await.unwrap().unwrap().unwrap();
        assert!(store.size(&digest).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn dropping_a_stall_lets_the_call_go_on() {
    let store = faulty();
    drop(store.stall(Operation::Tags, 1));
    let repo = "a".parse().unwrap();
    assert!(store.tags(&repo).await.unwrap().is_empty());
}

#[tokio::test]
async fn reads_fail_and_fall_short() {
    let store = faulty();
    let (digest, content) = content();
    put(&store, &digest, content.clone()).await.unwrap();
    store.shorten(1, 3);
    store.fail(Operation::Read, 2, io::ErrorKind::Other);
    let reader = store.open(&digest).await.unwrap().unwrap().reader;
    assert_eq!(reader.read_at(0, 9).await.unwrap(), &content[..3]);
    assert!(reader.read_at(3, 9).await.unwrap_err().is_damage());
    assert_eq!(reader.read_at(3, 9).await.unwrap(), &content[3..]);

    let mut stage = store.stage(&digest, "u").await.unwrap();
    stage.write_at(0, std::slice::from_ref(&content)).unwrap();
    let mut buffer = [0; 7];
    store.shorten(1, 2);
    assert_eq!(stage.content().read_blocking(0, &mut buffer).unwrap(), 2);
    store.fail(Operation::Read, 1, io::ErrorKind::Other);
    stage.content().read_blocking(0, &mut buffer).unwrap_err();
    store.fail(Operation::Read, 1, io::ErrorKind::Other);
    stage.content().read_at(0, 9).await.unwrap_err();
}

#[tokio::test]
async fn chance_is_the_same_for_the_same_seed() {
    let outcomes = async |seed| {
        let store = faulty();
        let (digest, content) = content();
        put(&store, &digest, content).await.unwrap();
        store.fail_by_chance(seed, 300, &[Operation::Read, Operation::Open]);
        let mut outcomes = Vec::new();
        for _ in 0..100 {
            outcomes.push(read_all(&store, &digest, 9).await.is_ok());
        }
        store.fail_by_chance(seed, 0, &[]);
        assert!(read_all(&store, &digest, 9).await.unwrap().is_some());
        outcomes
    };
    let (one, same, other) = (outcomes(1).await, outcomes(1).await, outcomes(2).await);
    assert_eq!(one, same);
    assert_ne!(one, other);
    assert!(one.contains(&true) && one.contains(&false));
}
