#![cfg(unix)]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join_all;
use testkit::time::{eventually, passing};

use super::*;
use crate::upstream::tests::script::Script;

/// What a helper that is this script gives for `registry.example`: `user:password`, or the token.
async fn given(script: &Script) -> Result<String, HelperError> {
    let secret = get(&script.command(), "registry.example").await?;
    Ok(match secret {
        Secret::Basic(header) => {
            let encoded = header.to_str().unwrap().strip_prefix("Basic ").unwrap();
            String::from_utf8(BASE64_STANDARD.decode(encoded).unwrap()).unwrap()
        }
        Secret::Refresh(token) => format!("token {}", token.expose_secret()),
    })
}

async fn error(text: &str) -> HelperError {
    given(&Script::new(text)).await.unwrap_err()
}

#[tokio::test]
async fn a_helper_is_asked_for_the_server() {
    let script = Script::new(
        r#"server=$(cat); echo "{\"ServerURL\":\"$server\",\"Username\":\"$1\",\"Secret\":\"of $server\"}""#,
    );
    let expected = "get:of registry.example";
    assert_eq!(given(&script).await.unwrap(), expected);
    // It may ignore what it is asked, and write much to its standard error.
    script.becomes(
        r#"exec <&-; head -c 100000 /dev/zero >&2; echo '{"Username":"<token>","Secret":"refresh"}'"#,
    );
    assert_eq!(given(&script).await.unwrap(), "token refresh");
}

#[tokio::test]
async fn a_helper_that_fails_is_named_without_the_secret() {
    let failed = error("echo no network >&2; exit 3").await.to_string();
    let expected = "it ended with exit status: 3 (standard error: no network)";
    assert_eq!(failed, expected);
    let missing = error("echo 'credentials not found in native keychain'; exit 1").await;
    assert!(matches!(missing, HelperError::NotFound), "{missing}");
    let nowhere = get("/nowhere/docker-credential-x", "a")
        .await
        .err()
        .unwrap();
    assert!(matches!(nowhere, HelperError::Start(_)), "{nowhere}");

    let shown = error(
        r#"echo '{"Username":"u","Secret":"hunter2+/="'; echo "bad key: 'hunter2+/='" >&2; exit 1"#,
    )
    .await
    .to_string();
    assert!(shown.contains("bad key: <hidden>"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn garbage_is_no_credential() {
    for text in [
        "",
        "echo hunter2",
        "echo '[]'",
        r#"echo '{"Username":"u"}'"#,
        r#"echo '{"Username":"u","Secret":"hunter2"}{}'"#,
    ] {
        let error = error(text).await;
        assert!(matches!(error, HelperError::Garbage(_)), "{text}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    let empty = error(r#"echo '{"Username":"u","Secret":""}'"#).await;
    assert!(
        matches!(empty, HelperError::Login(LoginError::Empty)),
        "{empty}"
    );
}

#[tokio::test]
async fn output_is_bounded() {
    for text in ["head -c 65537 /dev/zero", "exec yes hunter2"] {
        let error = error(text).await;
        assert!(matches!(error, HelperError::TooLong), "{text}: {error}");
    }
    let long = error("head -c 65536 /dev/zero").await;
    assert!(matches!(long, HelperError::Garbage(_)), "{long}");
    let words = error("yes words | head -c 9999 >&2; exit 1")
        .await
        .to_string();
    assert!(words.len() < 300, "{words}");
}

/// Whether a process has ended; it may wait to be reaped.
#[cfg(target_os = "linux")]
fn has_ended(id: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.trim()));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn a_helper_that_hangs_is_killed_with_its_children() {
    let _frozen = testkit::time::freeze();
    let script =
        Script::new("sleep 1000 & echo $! > \"$0.id\"; cat \"$0.id\" > \"$0.child\"; wait");
    let child = script.path("helper.child");
    let asked = async {
        eventually("it runs", || {
            std::fs::read(&child).is_ok_and(|id| id.ends_with(b"\n"))
        })
        .await;
    };
    let asking = given(&script);
    let mut asking = std::pin::pin!(asking);
    tokio::select! {
        biased;
        () = asked => {}
        _ = &mut asking => panic!("it hangs"),
    }
    let error = passing(asking).await.unwrap_err();
    assert!(matches!(error, HelperError::Deadline(DEADLINE)), "{error}");
    let id = std::fs::read_to_string(&child).unwrap();
    eventually("its child has ended", || has_ended(&id)).await;
}

#[tokio::test]
async fn one_helper_runs_for_a_server_at_a_time() {
    let script = Script::new("mkdir \"$0.lock\" || echo twice > \"$0.twice\"; rmdir \"$0.lock\"");
    join_all((0..4).map(|_| given(&script))).await;
    assert_eq!(script.runs(), 4);
    assert!(!script.path("helper.twice").exists());
}
