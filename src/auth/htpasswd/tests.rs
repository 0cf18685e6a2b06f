use super::super::throttle::Throttle;
use super::*;

fn attempt(throttle: &Arc<Throttle>, address: &str) -> Attempt {
    Attempt::new(throttle, Throttle::key(address.parse().ok(), "alice"), true)
}

fn hash(password: &str) -> String {
    bcrypt::hash(password, 4).unwrap()
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("htpasswd");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

async fn verify(users: &Htpasswd, user: &str, password: &str) -> Verdict {
    let basic = Basic::new(user.to_owned(), password.to_owned());
    let attempt = attempt(&Arc::default(), "192.0.2.1");
    users.verify(&basic, &attempt).await.unwrap()
}

#[test]
fn only_bcrypt_lines_count_and_others_are_reported_by_number() {
    let right = hash("x");
    let slow = right.replacen("$04$", "$17$", 1);
    let text = format!(
        "# users\nalice:{right}\n\nmd5:$apr1$abcdefgh$0123456789012345678901\n\
         sha:{{SHA}}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\ncrypt:rl.3StKT.4T8M\nplain:x\nempty:\nnone\n\
         :{right}\nslow:{slow}\ncut:{}\nbob:{right}\n",
        right.strip_suffix(|_: char| true).unwrap()
    );
    let users = Users::parse(&text);
    let mut names: Vec<_> = users.hashes.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["alice", "bob"]);
    assert_eq!(users.unusable, [4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(users.cost, 4);
}

#[tokio::test]
async fn passwords_are_verified() {
    let (_directory, path) = file(&format!("alice:{}\nmd5:$apr1$a$b\n", hash("secret")));
    let users = Htpasswd::open(&path).unwrap();
    for _ in 0..2 {
        assert_eq!(verify(&users, "alice", "secret").await, Verdict::Right);
        assert_eq!(verify(&users, "alice", "Secret").await, Verdict::Wrong);
        assert_eq!(verify(&users, "bob", "secret").await, Verdict::Unknown);
        assert_eq!(verify(&users, "md5", "$apr1$a$b").await, Verdict::Unknown);
    }
    let (hash, is_known) = users.state.lock().users.hash("bob");
    assert!(
        !is_known && cost(&hash) == Some(4),
        "hashed all the same: {hash}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_read_and_what_was_remembered_is_forgotten() {
    let (_directory, path) = file(&format!("alice:{}\n", hash("old")));
    let users = Htpasswd::open(&path).unwrap();
    assert_eq!(verify(&users, "alice", "old").await, Verdict::Right);
    std::fs::write(&path, format!("alice:{}\nbob:{}\n", hash("new"), hash("b"))).unwrap();
    tokio::time::advance(CHECK_INTERVAL).await;
    assert_eq!(verify(&users, "alice", "old").await, Verdict::Wrong);
    assert_eq!(verify(&users, "alice", "new").await, Verdict::Right);
    assert_eq!(verify(&users, "bob", "b").await, Verdict::Right);
    std::fs::remove_file(&path).unwrap();
    tokio::time::advance(CHECK_INTERVAL).await;
    assert_eq!(
        verify(&users, "bob", "b").await,
        Verdict::Right,
        "users stay"
    );
}

#[tokio::test]
async fn too_many_waiting_passwords_are_refused() {
    let (_directory, path) = file("");
    let users = Htpasswd::open(&path).unwrap();
    let held = users.hold_all().await;
    let basic = Basic::new("a".to_owned(), "b".to_owned());
    let attempt = attempt(&Arc::default(), "192.0.2.1");
    let refused = users.verify(&basic, &attempt).await;
    assert!(matches!(refused, Err(AuthError::Busy)), "{refused:?}");
    drop(held);
}

#[tokio::test]
async fn one_network_does_not_keep_others_out() {
    let (_directory, path) = file("");
    let users = Htpasswd::open(&path).unwrap();
    let throttle = Arc::default();
    let near = attempt(&throttle, "2001:db8::1");
    let held: Vec<_> = (0..MAX_OF_NETWORK)
        .map(|_| users.networks.enter(near.network()).unwrap())
        .collect();
    let basic = Basic::new("a".to_owned(), "b".to_owned());
    let refused = users
        .verify(&basic, &attempt(&throttle, "2001:db8::2"))
        .await;
    assert!(matches!(refused, Err(AuthError::Busy)), "{refused:?}");
    let other = attempt(&throttle, "2001:db8:1::1");
    assert_eq!(
        users.verify(&basic, &other).await.unwrap(),
        Verdict::Unknown
    );
    drop(held);
    assert_eq!(users.verify(&basic, &near).await.unwrap(), Verdict::Unknown);
    assert!(users.networks.0.lock().is_empty(), "none is left");
}

#[tokio::test]
async fn work_of_cancelled_requests_holds_its_place_and_counts() {
    let (_directory, path) = file(&format!("alice:{}\n", bcrypt::hash("a", 9).unwrap()));
    let users = Arc::new(Htpasswd::open(&path).unwrap());
    let throttle = Arc::default();
    // As many wrong passwords as the throttle permits.
    for _ in 0..5 {
        let (users_, attempt) = (Arc::clone(&users), attempt(&throttle, "192.0.2.1"));
        let request = tokio_util::task::TaskTracker::new().spawn(async move {
            let basic = Basic::new("alice".to_owned(), "wrong".to_owned());
            users_.verify(&basic, &attempt).await.map(|_verdict| ())
        });
        while users.running.available_permits() == MAX_RUNNING && !request.is_finished() {
            tokio::task::yield_now().await;
        }
        request.abort();
        // Comes when nothing runs.
        let all = u32::try_from(MAX_RUNNING).unwrap();
        drop(users.running.acquire_many(all).await.unwrap());
    }
    let next = attempt(&throttle, "192.0.2.1").check();
    assert!(matches!(next, Err(AuthError::Throttled(_))), "{next:?}");
}
