//! Uploads: parts, offsets, broken connections, several writers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

async fn append(
    rig: &Rig,
    id: &UploadId,
    part: Part,
    mut body: Script,
) -> Result<u64, HostedError> {
    rig.hosted.append(&app(), id, part, &mut body).await
}

async fn finish(rig: &Rig, id: &UploadId, content: &str) -> Result<(), HostedError> {
    let digest = sha256(content);
    let (repo, mut body) = (app(), Script::none());
    rig.hosted
        .finish(&repo, id, &digest, Part::NONE, &mut body)
        .await
}

async fn start(rig: &Rig) -> UploadId {
    rig.hosted.start_upload(&app(), None).await.unwrap()
}

#[tokio::test]
async fn parts_become_a_blob() {
    on_both(async |rig| {
        for algorithm in Algorithm::ALL {
            for named in [None, Some(algorithm)] {
                let content = format!("the content for {algorithm} {named:?}");
                let digest = Digest::of(algorithm, content.as_bytes());
                let id = rig.hosted.start_upload(&app(), named).await.unwrap();
                assert_eq!(rig.hosted.upload_status(&app(), &id).await.unwrap(), 0);
                let (one, two) = content.split_at(10);
                assert_eq!(
                    append(&rig, &id, chunked(), Script::of(one)).await.unwrap(),
                    10
                );
                assert_eq!(rig.hosted.upload_status(&app(), &id).await.unwrap(), 10);
                let mut last = Script::of(two);
                let finished = rig
                    .hosted
                    .finish(&app(), &id, &digest, from(10), &mut last)
                    .await;
                finished.unwrap();
                assert_eq!(rig.read(&digest).await, content);
                assert_eq!(rig.head(&repo("ci/other"), &digest).await, None);
                // Again, because the answer may have been lost.
                let mut none = Script::none();
                let again = rig
                    .hosted
                    .finish(&app(), &id, &digest, Part::NONE, &mut none)
                    .await;
                again.unwrap();
                let gone = rig.hosted.upload_status(&app(), &id).await;
                assert!(matches!(gone, Err(HostedError::UnknownUpload)));
            }
        }
        assert_eq!(rig.store.uploads().await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn a_blob_is_put_by_one_request() {
    on_both(async |rig| {
        for algorithm in Algorithm::ALL {
            for content in ["", "whole"] {
                let digest = Digest::of(algorithm, content.as_bytes());
                let mut body = Script::of(content);
                let put = rig.hosted.put_blob(&app(), &digest, None, &mut body).await;
                put.unwrap();
                assert_eq!(rig.head(&app(), &digest).await, Some(content.len() as u64));
            }
        }
        let mut body = Script::of("other");
        let wrong = rig
            .hosted
            .put_blob(&app(), &sha256("this"), None, &mut body)
            .await;
        assert!(matches!(wrong, Err(HostedError::WrongDigest { .. })));
        assert_eq!(rig.store.uploads().await.unwrap(), []);
        rig.cache.check_index();
    })
    .await;
}

#[tokio::test]
async fn a_wrong_digest_ends_the_upload_and_a_wrong_start_does_not() {
    on_both(async |rig| {
        let id = start(&rig).await;
        append(&rig, &id, chunked(), Script::of("abc"))
            .await
            .unwrap();
        for start in [0, 2, 4, u64::MAX] {
            let wrong = append(&rig, &id, from(start), Script::of("x")).await;
            assert_eq!(wrong.unwrap_err().received(), Some(3), "{start}");
        }
        let mut last = Script::of("x");
        let wrong = rig
            .hosted
            .finish(&app(), &id, &sha256("abcx"), from(1), &mut last)
            .await;
        assert_eq!(wrong.unwrap_err().received(), Some(3));
        assert_eq!(
            append(&rig, &id, from(3), Script::of("def")).await.unwrap(),
            6
        );
        let wrong = finish(&rig, &id, "abc").await;
        assert!(matches!(wrong, Err(HostedError::WrongDigest { .. })));
        let gone = finish(&rig, &id, "abcdef").await;
        assert!(matches!(gone, Err(HostedError::UnknownUpload)));
        assert!(!rig.has("abcdef").await);
        assert_eq!(rig.store.uploads().await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn what_a_broken_request_brought_is_kept_across_a_restart() {
    on_both(async |rig| {
        let id = start(&rig).await;
        let broken = append(&rig, &id, chunked(), Script::of("begun ").then(Sent::Break)).await;
        assert!(matches!(
            broken,
            Err(HostedError::Body(BodyError::Broken(_)))
        ));
        assert_eq!(rig.hosted.upload_status(&app(), &id).await.unwrap(), 6);
        let rig = rig.restarted(space()).await;
        assert_eq!(rig.hosted.upload_status(&app(), &id).await.unwrap(), 6);
        append(&rig, &id, from(6), Script::of("and ended"))
            .await
            .unwrap();
        finish(&rig, &id, "begun and ended").await.unwrap();
        assert!(rig.has("begun and ended").await);
    })
    .await;
}

#[tokio::test]
async fn an_upload_belongs_to_its_repository() {
    on_both(async |rig| {
        let id = start(&rig).await;
        for (repo, id) in [
            (repo("ci/other"), id),
            (app(), UploadId::from_random([7; 16])),
        ] {
            let status = rig.hosted.upload_status(&repo, &id).await;
            assert!(matches!(status, Err(HostedError::UnknownUpload)));
            let cancelled = rig.hosted.cancel(&repo, &id).await;
            assert!(matches!(cancelled, Err(HostedError::UnknownUpload)));
        }
        rig.hosted.cancel(&app(), &id).await.unwrap();
        let status = rig.hosted.upload_status(&app(), &id).await;
        assert!(matches!(status, Err(HostedError::UnknownUpload)));
        let other = rig.hosted.start_upload(&repo("library/debian"), None).await;
        assert!(matches!(other, Err(HostedError::NotHosted)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_second_writer_is_refused_while_the_first_one_sends() {
    let rig = Rig::new().await;
    let (id, release) = (start(&rig).await, CancellationToken::new());
    let body = Script::of("first").then(Sent::Pause(release.clone()));
    let body = body.then(Sent::Bytes(Bytes::from_static(b" half")));
    let first = append(&rig, &id, chunked(), body);
    let second = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        for part in [chunked(), from(5)] {
            let busy = append(&rig, &id, part, Script::of("mixed")).await;
            assert!(matches!(busy, Err(HostedError::UploadBusy)));
        }
        release.cancel();
    };
    let (first, ()) = tokio::join!(first, second);
    assert_eq!(first.unwrap(), 10);
    finish(&rig, &id, "first half").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_writer_is_replaced_by_one_at_the_right_byte() {
    let rig = Rig::new().await;
    let (id, never) = (start(&rig).await, CancellationToken::new());
    let body = Script::of("first").then(Sent::Pause(never.clone()));
    let first = append(&rig, &id, chunked(), body);
    let second = async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(rig.hosted.upload_status(&app(), &id).await.unwrap(), 5);
        let busy = append(&rig, &id, from(4), Script::of("x")).await;
        assert!(matches!(busy, Err(HostedError::UploadBusy)));
        append(&rig, &id, from(5), Script::of(" and second")).await
    };
    let (first, second) = tokio::join!(first, second);
    assert!(matches!(first, Err(HostedError::UploadBusy)));
    assert_eq!(second.unwrap(), 16);
    finish(&rig, &id, "first and second").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_question_waits_for_what_a_broken_connection_still_delivers() {
    let rig = Rig::new().await;
    let (id, late) = (start(&rig).await, CancellationToken::new());
    let body = Script::of("12345").then(Sent::Pause(late.clone()));
    let body = body
        .then(Sent::Bytes(Bytes::from_static(b"678")))
        .then(Sent::Break);
    let first = append(&rig, &id, chunked(), body);
    let question = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let repo = app();
        let status = rig.hosted.upload_status(&repo, &id);
        let deliver = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            late.cancel();
        };
        tokio::join!(status, deliver).0.unwrap()
    };
    let (first, status) = tokio::join!(first, question);
    assert!(matches!(first, Err(HostedError::Body(_))));
    assert_eq!(status, 8);
    assert_eq!(
        append(&rig, &id, from(8), Script::of("9")).await.unwrap(),
        9
    );
}

#[tokio::test]
async fn a_request_that_goes_away_loses_nothing_it_brought() {
    on_both(async |rig| {
        let (id, never) = (start(&rig).await, CancellationToken::new());
        let body = Script::of("the whole of it").then(Sent::Pause(never));
        let mut first = Box::pin(append(&rig, &id, chunked(), body));
        assert!(futures_util::poll!(&mut first).is_pending());
        // Until it has taken everything from its connection.
        while rig.hosted.upload_status(&app(), &id).await.unwrap() < 15 {
            assert!(futures_util::poll!(&mut first).is_pending());
        }
        drop(first);
        append(&rig, &id, from(15), Script::of("!")).await.unwrap();
        finish(&rig, &id, "the whole of it!").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_second_end_during_the_first_succeeds_too() {
    let rig = Rig::new().await;
    let id = start(&rig).await;
    append(&rig, &id, chunked(), Script::of("once"))
        .await
        .unwrap();
    let stall = rig.store.stall(Operation::CommitUpload, 1);
    let second = async {
        stall.reached().await;
        let mut second = Box::pin(finish(&rig, &id, "once"));
        assert!(futures_util::poll!(&mut second).is_pending());
        stall.release();
        second.await
    };
    let (first, second) = tokio::join!(finish(&rig, &id, "once"), second);
    first.unwrap();
    second.unwrap();
}

#[tokio::test]
async fn lengths_are_checked() {
    on_both(async |rig| {
        for (end, length) in [(Some(9), None), (None, Some(9))] {
            let id = start(&rig).await;
            let part = Part {
                start: Some(0),
                end,
                length,
            };
            let wrong = append(&rig, &id, part, Script::of("123")).await;
            assert!(matches!(
                wrong,
                Err(HostedError::WrongLength { sent: 3, .. })
            ));
            assert_eq!(rig.hosted.upload_status(&app(), &id).await.unwrap(), 3);
        }
        let small = SpaceSettings {
            maxblob: 5,
            ..space()
        };
        let rig = rig.restarted(small).await;
        let id = start(&rig).await;
        let mut body = Script::of("123456");
        let digest = sha256("123456");
        let large = rig
            .hosted
            .put_blob(&app(), &digest, Some(6), &mut body)
            .await;
        assert!(matches!(
            large,
            Err(HostedError::TooLarge { bytes: 6, max: 5 })
        ));
        assert_eq!(body.0.len(), 1, "nothing was read");
        let large = append(&rig, &id, chunked(), Script::of("123456")).await;
        assert!(matches!(large, Err(HostedError::TooLarge { .. })));
    })
    .await;
}

#[tokio::test]
async fn the_quota_counts_blobs_once_and_open_uploads() {
    on_both(async |rig| {
        let quota = with_policy(HostedPolicy {
            quota: Some(20),
            ..policy()
        });
        let rig = rig.restarted(quota).await;
        rig.put("0123456789").await;
        rig.put_to(&repo("ci/other"), "0123456789").await;
        let (repo, digest) = (app(), sha256("01234567890"));
        let mut body = Script::of("01234567890");
        let refused = rig
            .hosted
            .put_blob(&repo, &digest, Some(11), &mut body)
            .await;
        let Err(HostedError::OverQuota { quota, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((quota.needed, quota.used, quota.quota), (11, 10, 20));
        assert!(!body.0.is_empty(), "nothing was read");
        // Without a length, as the bytes arrive.
        let id = start(&rig).await;
        let refused = append(&rig, &id, chunked(), Script::of("01234567890")).await;
        assert!(matches!(refused, Err(HostedError::OverQuota { .. })));
        let refused = append(&rig, &id, chunked(), Script::of("0123")).await;
        assert!(matches!(refused, Err(HostedError::OverQuota { .. })));
        rig.hosted.cancel(&app(), &id).await.unwrap();
        rig.put("9876543210").await;
        rig.cache.check_index();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn uploads_expire_and_their_number_is_bounded() {
    let two = SpaceSettings {
        uploads_max: 2,
        ..space()
    };
    let rig = Rig::with(two.clone()).await;
    let (one, _) = (start(&rig).await, start(&rig).await);
    let refused = rig.hosted.start_upload(&app(), None).await;
    assert!(matches!(
        refused,
        Err(HostedError::TooManyUploads { max: 2, .. })
    ));
    append(&rig, &one, chunked(), Script::of("kept"))
        .await
        .unwrap();
    rig.pass(HOUR * 23).await;
    assert_eq!(rig.hosted.upload_status(&app(), &one).await.unwrap(), 4);
    rig.pass(2 * HOUR).await;
    assert_eq!(rig.hosted.upload_status(&app(), &one).await.unwrap(), 4);
    assert_eq!(rig.store.uploads().await.unwrap().len(), 1);
    let rig = rig.restarted(two).await;
    rig.pass(DAY + HOUR).await;
    let gone = rig.hosted.upload_status(&app(), &one).await;
    assert!(matches!(gone, Err(HostedError::UnknownUpload)));
    assert_eq!(rig.store.uploads().await.unwrap(), []);
}

#[tokio::test]
async fn a_full_disk_ends_a_request_and_not_the_upload() {
    on_both(async |rig| {
        let id = start(&rig).await;
        append(&rig, &id, chunked(), Script::of("before"))
            .await
            .unwrap();
        rig.store
            .fail(Operation::Append, 1, std::io::ErrorKind::StorageFull);
        let full = append(&rig, &id, chunked(), Script::of(" lost"))
            .await
            .unwrap_err();
        assert_eq!(
            crate::oci::Classified::kind(&full),
            crate::oci::ErrorKind::Full
        );
        assert_eq!(rig.hosted.upload_status(&app(), &id).await.unwrap(), 6);
        append(&rig, &id, from(6), Script::of(" after"))
            .await
            .unwrap();
        rig.store
            .fail(Operation::CommitUpload, 1, std::io::ErrorKind::StorageFull);
        let full = finish(&rig, &id, "before after").await.unwrap_err();
        assert_eq!(
            crate::oci::Classified::kind(&full),
            crate::oci::ErrorKind::Full
        );
        finish(&rig, &id, "before after").await.unwrap();
        assert!(rig.has("before after").await);
        rig.cache.check_index();
    })
    .await;
}

/// Eight MiB; counts those that were taken.
struct Counted(Arc<AtomicU64>);

#[async_trait::async_trait]
impl PushBody for Counted {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        let taken = self.0.fetch_add(1, Ordering::SeqCst);
        Ok((taken < 8).then(|| Bytes::from(vec![7; 1024 * 1024])))
    }
}

#[tokio::test]
async fn a_connection_is_not_read_while_the_disk_is_behind() {
    let rig = Rig::new().await;
    let id = start(&rig).await;
    let stall = rig.store.stall(Operation::Append, 1);
    let taken = Arc::new(AtomicU64::new(0));
    let mut body = Counted(Arc::clone(&taken));
    let repo = app();
    let mut first = Box::pin(rig.hosted.append(&repo, &id, chunked(), &mut body));
    assert!(futures_util::poll!(&mut first).is_pending());
    tokio::select! {
        _ = &mut first => panic!("it can't be written"),
        () = stall.reached() => {}
    }
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(taken.load(Ordering::SeqCst) <= 3);
    drop(stall);
    assert_eq!(first.await.unwrap(), 8 * 1024 * 1024);
}
