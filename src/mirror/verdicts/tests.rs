use std::sync::Mutex;

use tokio::time::advance;

use super::*;
use crate::upstream::UpstreamError;

const TTL: Duration = Duration::from_mins(5);
const STALE: Duration = Duration::from_hours(1);

fn access() -> CallerAccess {
    CallerAccess {
        ttl: TTL,
        stale: STALE,
        ..CallerAccess::default()
    }
}

fn failed(failure: crate::upstream::Failure) -> MirrorError {
    let url = url::Url::parse("https://registry.example/v2/").unwrap();
    MirrorError::Upstream(UpstreamError::new(&url, failure))
}

fn denied() -> MirrorError {
    failed(crate::upstream::Failure::Denied(None))
}

fn missing() -> MirrorError {
    failed(crate::upstream::Failure::NotFound(None))
}

fn down() -> MirrorError {
    failed(crate::upstream::Failure::Unavailable {
        status: 503,
        retry_after: None,
    })
}

fn key() -> VerdictKey {
    ("app".parse().unwrap(), CallerId::ANONYMOUS, Class::Content)
}

/// Verdicts over an upstream that gives these answers, one after the other.
struct Bench {
    verdicts: Verdicts,
    answers: Arc<Mutex<Vec<Result<(), MirrorError>>>>,
}

impl Bench {
    fn new(mut answers: Vec<Result<(), MirrorError>>) -> Self {
        answers.reverse();
        Self {
            verdicts: Verdicts::new(TaskTracker::new(), Clock::system()),
            answers: Arc::new(Mutex::new(answers)),
        }
    }

    async fn get(&self, question: Question) -> Result<(), MirrorError> {
        let ask = |_| {
            let answers = Arc::clone(&self.answers);
            async move {
                tokio::task::yield_now().await;
                answers.lock().unwrap().pop().unwrap()
            }
        };
        self.verdicts.get(key(), question, access(), ask).await
    }

    async fn tags(&self) -> Result<(), MirrorError> {
        self.get(Question::Tags).await
    }

    fn unasked(&self) -> usize {
        self.answers.lock().unwrap().len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_permission_is_valid_for_its_time() {
    let bench = Bench::new(vec![Ok(()), Err(denied())]);
    assert!(!bench.verdicts.is_allowed(&key()));
    bench.tags().await.unwrap();
    advance(Duration::from_secs(5 * 60 - 1)).await;
    bench.tags().await.unwrap();
    assert!(bench.verdicts.is_allowed(&key()));
    advance(Duration::from_secs(1)).await;
    assert!(!bench.verdicts.is_allowed(&key()));
    assert!(bench.tags().await.unwrap_err().is_refusal());
    assert_eq!(bench.unasked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_valid_for_ten_seconds() {
    let bench = Bench::new(vec![Err(denied()), Ok(())]);
    for _ in 0..3 {
        assert!(bench.tags().await.unwrap_err().is_refusal());
    }
    advance(REFUSED_FOR).await;
    bench.tags().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_404_is_no_verdict() {
    let bench = Bench::new(vec![Err(missing()), Err(missing()), Ok(())]);
    assert!(bench.tags().await.unwrap_err().is_not_found());
    assert!(bench.tags().await.unwrap_err().is_not_found());
    bench.tags().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_permission_outlives_an_outage_and_not_for_ever() {
    let bench = Bench::new(vec![Ok(()), Err(down()), Err(down()), Err(down())]);
    bench.tags().await.unwrap();
    advance(TTL).await;
    bench.tags().await.unwrap();
    // Asked again only after a while.
    bench.tags().await.unwrap();
    assert_eq!(bench.unasked(), 2);
    advance(Duration::from_secs(60 * 60 - 1)).await;
    bench.tags().await.unwrap();
    advance(Duration::from_secs(1)).await;
    assert!(bench.tags().await.unwrap_err().permits_stale());
}

#[tokio::test(start_paused = true)]
async fn an_outage_permits_nothing_new() {
    let bench = Bench::new(vec![Err(down()), Err(denied()), Err(down())]);
    assert!(bench.tags().await.unwrap_err().permits_stale());
    assert!(bench.tags().await.unwrap_err().is_refusal());
    advance(REFUSED_FOR).await;
    assert!(bench.tags().await.unwrap_err().permits_stale());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_a_permission() {
    let bench = Bench::new(vec![Ok(()), Err(down())]);
    bench.tags().await.unwrap();
    bench.verdicts.on_error(&key(), &Question::Tags, &down());
    bench.verdicts.on_error(&key(), &Question::Tags, &missing());
    bench.tags().await.unwrap();
    bench.verdicts.on_error(&key(), &Question::Tags, &denied());
    assert!(bench.tags().await.unwrap_err().is_refusal());
    // What was permitted before the refusal isn't, while the upstream can't answer.
    advance(REFUSED_FOR).await;
    assert!(bench.tags().await.unwrap_err().permits_stale());
}

#[tokio::test(start_paused = true)]
async fn one_question_for_all_that_wait_and_a_404_only_for_the_same_one() {
    let bench = Bench::new(vec![Ok(())]);
    let (one, other) = tokio::join!(bench.tags(), bench.tags());
    assert!(one.is_ok() && other.is_ok());

    let digest = Digest::of(crate::oci::Algorithm::Sha256, b"");
    let bench = Bench::new(vec![Err(missing()), Ok(())]);
    let (blob, tags) = tokio::join!(bench.get(Question::Blob(digest)), bench.tags());
    assert!(blob.unwrap_err().is_not_found());
    tags.unwrap();
    assert_eq!(bench.unasked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_waited_for_only_without_a_permission() {
    let bench = Bench::new(vec![Ok(())]);
    bench.tags().await.unwrap();
    advance(TTL).await;
    let silent = |_| std::future::pending();
    let asked = Instant::now();
    let get = || bench.verdicts.get(key(), Question::Tags, access(), silent);
    get().await.unwrap();
    assert_eq!(asked.elapsed(), PATIENCE);
    get().await.unwrap();
    assert_eq!(asked.elapsed(), PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn accounts_and_repositories_are_apart() {
    let bench = Bench::new(vec![Ok(())]);
    bench.tags().await.unwrap();
    for (repo, class) in [("app/b", Class::Content), ("app", Class::List)] {
        let other = (repo.parse().unwrap(), CallerId::ANONYMOUS, class);
        assert!(!bench.verdicts.is_allowed(&other));
    }
}

fn blob() -> Question {
    Question::Blob(Digest::of(crate::oci::Algorithm::Sha256, b""))
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_one_item_refuses_no_other() {
    let bench = Bench::new(vec![Ok(()), Ok(()), Err(denied()), Ok(())]);
    bench.tags().await.unwrap();
    bench.verdicts.on_error(&key(), &blob(), &denied());
    // The others are asked for again, and this one isn't.
    bench.tags().await.unwrap();
    assert_eq!(bench.unasked(), 2);
    assert!(bench.get(blob()).await.unwrap_err().is_refusal());
    assert_eq!(bench.unasked(), 2);
    // Without a permission, too, and where both wait for one answer.
    advance(TTL).await;
    let (refused, tags) = tokio::join!(bench.get(blob()), bench.tags());
    assert!(refused.unwrap_err().is_refusal());
    tags.unwrap();
    assert_eq!(bench.unasked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_404_or_a_limit_extends_no_permission() {
    let limited = || failed(crate::upstream::Failure::RateLimited { retry_after: None });
    let bench = Bench::new(vec![Ok(()), Err(limited()), Err(missing()), Err(down())]);
    bench.tags().await.unwrap();
    advance(TTL).await;
    assert!(bench.tags().await.is_err());
    assert!(bench.tags().await.unwrap_err().is_not_found());
    assert!(bench.tags().await.unwrap_err().is_outage());
}

#[tokio::test(start_paused = true)]
async fn a_permission_from_before_a_refusal_is_void() {
    let bench = Bench::new(vec![]);
    let slow = |_| async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    };
    let get = bench.verdicts.get(key(), Question::Tags, access(), slow);
    let refuse = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.verdicts.on_error(&key(), &blob(), &denied());
    };
    let (got, ()) = tokio::join!(get, refuse);
    got.unwrap();
    assert!(!bench.verdicts.is_allowed(&key()));
}
