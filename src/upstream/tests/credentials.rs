//! Credentials from files, Docker configurations and helpers, and their renewal.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::script::Script;
use super::*;
use crate::config::{Helper, RepositoryCredentials, Written};
use crate::oci::{Classified as _, ErrorKind};

const SECOND: Duration = Duration::from_secs(1);
const PASSWORDS: [&str; 3] = ["one", "two", "three"];

fn basic(password: &str) -> String {
    let encoded = BASE64_STANDARD.encode(format!("user:{password}"));
    format!("Basic {encoded}")
}

/// A registry whose password changes.
struct Changing {
    server: Server,
    password: Arc<Mutex<String>>,
}

impl Changing {
    /// With a token service, whose tokens are the passwords and live this many seconds.
    async fn with_tokens(lifetime: u64) -> Self {
        Self::new(move |seen, password| {
            if seen.is_token() {
                if seen.header("authorization") == Some(&basic(password)) {
                    let token = format!(r#"{{"token":"{password}","expires_in":{lifetime}}}"#);
                    return Reply::ok(token);
                }
                return Reply::new(401, "");
            }
            match seen.header("authorization") {
                Some(given) if given == format!("Bearer {password}") => Reply::ok(MANIFEST),
                _ => Reply::challenge(seen, ""),
            }
        })
        .await
    }

    /// With Basic.
    async fn basic() -> Self {
        Self::new(|seen, password| match seen.header("authorization") {
            Some(given) if given == basic(password) => Reply::ok(MANIFEST),
            _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=r"),
        })
        .await
    }

    async fn new(script: impl Fn(&Seen, &str) -> Reply + Send + Sync + 'static) -> Self {
        let password = Arc::new(Mutex::new(PASSWORDS[0].to_owned()));
        let current = Arc::clone(&password);
        let server = Server::scripted(move |seen| script(seen, &current.lock())).await;
        Self { server, password }
    }

    fn change(&self, password: &str) {
        password.clone_into(&mut self.password.lock());
    }

    fn client(&self, credentials: Credentials) -> Upstream {
        connect(self.config(credentials))
    }

    fn config(&self, credentials: Credentials) -> config::Upstream {
        let mut config = config(&self.server.url());
        config.credentials = Some(credentials);
        config
    }

    /// How often each password was sent, whether it was right or not.
    fn sent(&self) -> [usize; 3] {
        let seen = self.server.seen("");
        PASSWORDS.map(|password| {
            let basic = basic(password);
            let matching = seen
                .iter()
                .filter(|seen| seen.header("authorization") == Some(&basic));
            matching.count()
        })
    }
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("user", "user\n");
        files.write("password", "one\n");
        files
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn credentials(&self) -> Credentials {
        Credentials::Files {
            username: Written::File(self.path("user")),
            password: Written::File(self.path("password")),
        }
    }

    fn docker(&self, config: &str) -> Credentials {
        self.write("config.json", config);
        Credentials::DockerConfig(self.path("config.json"))
    }
}

fn helper(script: &Script, lifetime: Option<Duration>) -> Credentials {
    Credentials::Helper(Helper {
        command: script.command(),
        lifetime,
    })
}

fn auth(password: &str) -> String {
    BASE64_STANDARD.encode(format!("user:{password}"))
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_takes_effect_and_tokens_of_the_old_secret_are_dropped() {
    let _frozen = freeze();
    let files = Files::new();
    let registry = Changing::with_tokens(300).await;
    let upstream = registry.client(files.credentials());
    get_tag(&upstream).await.unwrap();
    get_tag(&upstream).await.unwrap();
    assert_eq!(registry.sent(), [1, 0, 0]);
    files.write("password", "two\r\n");
    registry.change("two");
    tokio::time::advance(Duration::from_secs(10)).await;
    registry.server.take();
    get_tag(&upstream).await.unwrap();
    // The token that was valid for minutes isn't sent any more: nothing is refused.
    assert_eq!(counts(&registry.server), (1, 1));
    assert_eq!(registry.sent(), [0, 1, 0]);
    // What can't be used in the middle of a change doesn't matter.
    files.write("password", "");
    tokio::time::advance(Duration::from_secs(10)).await;
    get_tag(&upstream).await.unwrap();
    std::fs::remove_file(files.path("password")).unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    get_tag(&upstream).await.unwrap();
    assert_eq!(registry.sent(), [0, 1, 0]);
    files.write("password", "three");
    registry.change("three");
    tokio::time::advance(SECOND).await;
    get_tag(&upstream).await.unwrap();
    assert_eq!(registry.sent(), [0, 1, 1]);
}

/// Both kinds of files say that this is the password.
fn write_password(files: &Files, registry: &Changing, password: &str) -> [Credentials; 2] {
    files.write("password", password);
    let (host, auth) = (registry.server.address, auth(password));
    let entries =
        format!(r#"{{"127.0.0.1":{{"auth":"eDp5"}},"http://{host}/":{{"auth":"{auth}"}}}}"#);
    let docker = files.docker(&format!(r#"{{"auths":{entries}}}"#));
    [files.credentials(), docker]
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_are_read_again_at_once() {
    let _frozen = freeze();
    for registry in [Changing::with_tokens(5).await, Changing::basic().await] {
        let files = Files::new();
        for credentials in write_password(&files, &registry, "one") {
            registry.change("one");
            write_password(&files, &registry, "one");
            let upstream = registry.client(credentials);
            get_tag(&upstream).await.unwrap();
            registry.change("two");
            write_password(&files, &registry, "two");
            tokio::time::advance(5 * SECOND).await;
            get_tag(&upstream).await.unwrap();
            // Wrong for good: it isn't sent again and again.
            registry.change("three");
            tokio::time::advance(5 * SECOND).await;
            registry.server.take();
            let error = get_tag(&upstream).await.unwrap_err();
            assert_eq!(error.class(), "credentials_refused", "{error}");
            assert_eq!(registry.sent(), [0, 1, 0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_live_for_seconds_are_renewed_before_they_are_refused() {
    let _frozen = freeze();
    let registry = Changing::with_tokens(5).await;
    let upstream = registry.client(credentials("user", "one"));
    for _ in 0..60 {
        get_tag(&upstream).await.unwrap();
        tokio::time::advance(SECOND).await;
    }
    // A request each second, and the one that was challenged.
    assert_eq!(counts(&registry.server), (12, 61));
}

#[tokio::test(start_paused = true)]
async fn a_helper_runs_once_in_its_lifetime_and_when_its_credentials_are_refused() {
    let _frozen = freeze();
    let script = Script::giving("user", "one");
    let registry = Changing::basic().await;
    let upstream = registry.client(helper(&script, Some(60 * SECOND)));
    for _ in 0..3 {
        get_tag(&upstream).await.unwrap();
    }
    assert_eq!(script.runs(), 1);
    tokio::time::advance(60 * SECOND).await;
    get_tag(&upstream).await.unwrap();
    assert_eq!(script.runs(), 2);
    // It rotates: the old password is refused, the new one is sent at once.
    script.gives("user", "two");
    registry.change("two");
    get_tag(&upstream).await.unwrap();
    assert_eq!((script.runs(), registry.sent()), (3, [5, 1, 0]));
    // Refused for good: the helper isn't run for each request.
    registry.change("three");
    for _ in 0..3 {
        let error = get_tag(&upstream).await.unwrap_err();
        assert_eq!(error.class(), "credentials_refused", "{error}");
    }
    assert_eq!(script.runs(), 4);
}

#[tokio::test(start_paused = true)]
async fn without_a_lifetime_a_helper_runs_once() {
    let _frozen = freeze();
    let script = Script::giving("user", "one");
    let registry = Changing::basic().await;
    let upstream = registry.client(helper(&script, None));
    get_tag(&upstream).await.unwrap();
    tokio::time::advance(Duration::from_hours(1000)).await;
    get_tag(&upstream).await.unwrap();
    assert_eq!(script.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_that_need_a_failing_helper_fail_and_a_valid_token_needs_none() {
    let _frozen = freeze();
    let script = Script::new("echo no network >&2; exit 1");
    let registry = Changing::with_tokens(300).await;
    let upstream = registry.client(helper(&script, Some(SECOND)));
    let all = futures_util::future::join_all((0..9).map(|_| get_tag(&upstream))).await;
    for error in all.into_iter().map(Result::unwrap_err) {
        assert_eq!(error.class(), "no_credentials", "{error}");
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.is_transient(), "what is cached may be served");
        let text = crate::error_chain::on_one_line(&error);
        assert!(
            text.contains(&script.command()) && text.contains("no network"),
            "{text}"
        );
        assert!(!error.reason().contains("network"), "{}", error.reason());
    }
    assert_eq!(script.runs(), 1);
    script.gives("user", "one");
    tokio::time::advance(5 * SECOND).await;
    get_tag(&upstream).await.unwrap();
    script.becomes("exit 1");
    tokio::time::advance(60 * SECOND).await;
    get_tag(&upstream).await.unwrap();
    assert_eq!(
        script.runs(),
        3,
        "its lifetime is over, and the token is still valid"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_without_credentials_is_sent_only_where_it_is_configured() {
    let _frozen = freeze();
    let server = Server::scripted(|seen| match seen.header("authorization") {
        _ if seen.is_token() => Reply::ok(r#"{"token":"t"}"#),
        Some("Bearer t") => Reply::ok(MANIFEST),
        _ => Reply::challenge(seen, ""),
    })
    .await;
    let files = Files::new();
    let script = Script::new("exit 1");
    for credentials in [
        helper(&script, None),
        files.docker("{}"),
        files.docker("no JSON"),
        Credentials::DockerConfig("/nowhere/config.json".into()),
        Credentials::Files {
            username: Written::Text("user".into()),
            password: Written::File("/nowhere/password".into()),
        },
    ] {
        let mut config = config(&server.url());
        config.credentials = Some(credentials);
        let error = get_tag(&connect(config.clone())).await.unwrap_err();
        assert_eq!(error.class(), "no_credentials", "{error}");
        config.credentials_required = false;
        get_tag(&connect(config)).await.unwrap();
    }
    let seen = server.seen("GET /token");
    assert_eq!(seen.len(), 5);
    assert!(
        seen.iter()
            .all(|seen| seen.header("authorization").is_none())
    );
}

/// A registry whose token service takes the refresh token `r` in a form.
async fn oauth2(status: u16) -> Server {
    Server::scripted(move |seen| {
        if seen.line.contains("/token") {
            let is_right = seen.line == "POST /token" && seen.body.contains("refresh_token=r");
            let status = if is_right { 200 } else { status };
            return Reply::new(status, r#"{"access_token":"t"}"#);
        }
        match seen.header("authorization") {
            Some("Bearer t") => Reply::ok(MANIFEST),
            _ => Reply::challenge(seen, ""),
        }
    })
    .await
}

fn identity_token(files: &Files, server: &Server, token: &str) -> Credentials {
    let host = server.address;
    files.docker(&format!(
        r#"{{"auths":{{"{host}":{{"auth":"eDp5","identitytoken":"{token}"}}}}}}"#
    ))
}

#[tokio::test]
async fn an_identity_token_is_exchanged_in_a_form() {
    let files = Files::new();
    let server = oauth2(500).await;
    let mut config = config(&server.url());
    config.credentials = Some(identity_token(&files, &server, "r"));
    get_tag(&connect(config)).await.unwrap();
    let posts = server.seen("POST");
    assert_eq!(posts.len(), 1);
    assert_eq!(posts[0].header("authorization"), None);
    let kind = posts[0].header("content-type");
    assert_eq!(kind, Some("application/x-www-form-urlencoded"));
    let form = "grant_type=refresh_token&service=registry&client_id=millpond\
                &scope=repository%3Alibrary%2Fapp%3Apull&refresh_token=r";
    assert_eq!(posts[0].body, form);
}

#[tokio::test]
async fn a_refused_identity_token_is_read_again_and_then_an_error() {
    for status in [400, 401] {
        let files = Files::new();
        let server = oauth2(status).await;
        let mut config = config(&server.url());
        config.credentials = Some(identity_token(&files, &server, "hunter2"));
        let upstream = connect(config);
        let error = get_tag(&upstream).await.unwrap_err();
        assert_eq!(error.class(), "credentials_refused", "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        identity_token(&files, &server, "r");
        get_tag(&upstream).await.unwrap();
    }
}

#[tokio::test]
async fn an_identity_token_is_no_password() {
    let files = Files::new();
    let server = replying(Reply::new(401, "").with("WWW-Authenticate", "Basic realm=r")).await;
    let mut config = config(&server.url());
    config.credentials = Some(identity_token(&files, &server, "r"));
    let error = get_tag(&connect(config)).await.unwrap_err();
    assert_eq!(error.class(), "no_credentials", "{error}");
    assert_eq!(server.count(""), 1);
}

#[tokio::test(start_paused = true)]
async fn a_docker_configuration_may_name_a_helper() {
    let _frozen = freeze();
    // Helpers are looked for in PATH: this one is nowhere.
    let files = Files::new();
    let registry = Changing::basic().await;
    let upstream = registry.client(files.docker(r#"{"credsStore":"millpond-test-nowhere"}"#));
    let error = get_tag(&upstream).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("docker-credential-millpond-test-nowhere"),
        "{error}"
    );
    // The file changes: its entry counts before the store.
    let host = registry.server.address;
    let entry = format!(r#"{{"{host}":{{"auth":"{}"}}}}"#, auth("one"));
    files.docker(&format!(
        r#"{{"auths":{entry},"credsStore":"millpond-test-nowhere"}}"#
    ));
    tokio::time::advance(10 * SECOND).await;
    get_tag(&upstream).await.unwrap();
}

async fn get(upstream: &Upstream, repo: &str) -> Result<(), UpstreamError> {
    let (repo, accept) = (repo.parse().unwrap(), Accept::everything());
    upstream
        .get_manifest(&repo, &tag(), &accept)
        .await
        .map(drop)
}

#[tokio::test]
async fn repositories_may_have_credentials_of_their_own() {
    let server = Server::scripted(|seen| match seen.header("authorization") {
        Some(_) => Reply::ok(MANIFEST),
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=r"),
    })
    .await;
    let files = Files::new();
    let mut config = config(&server.url());
    config.credentials = Some(credentials("user", "one"));
    config.repository_credentials = vec![
        RepositoryCredentials {
            repositories: vec!["team/app".parse().unwrap(), "other/*".parse().unwrap()],
            credentials: credentials("user", "two"),
        },
        RepositoryCredentials {
            repositories: vec!["team/**".parse().unwrap()],
            credentials: files.docker(&format!(
                r#"{{"auths":{{"{0}/team":{{"auth":"{1}"}},"{0}/team/x":{{"auth":"{2}"}}}}}}"#,
                server.address,
                auth("three"),
                auth("four")
            )),
        },
    ];
    let upstream = connect(config);
    for (repo, password) in [
        ("library/app", "one"),
        ("team/app", "two"),
        ("other/app", "two"),
        ("team/a/b", "three"),
        ("team/x", "four"),
    ] {
        for _ in 0..2 {
            get(&upstream, repo).await.unwrap();
            let last = server.seen(repo).pop().unwrap();
            assert_eq!(
                last.header("authorization"),
                Some(&*basic(password)),
                "{repo}"
            );
        }
    }
}

#[tokio::test]
async fn accounts_share_no_tokens() {
    // A scope without the repository's name is the same for all.
    let server = Server::scripted(|seen| {
        if seen.is_token() {
            let account = seen.header("authorization").unwrap_or("anonymous");
            return Reply::ok(format!(r#"{{"token":"{}"}}"#, account.replace(' ', "-")));
        }
        match seen.header("authorization") {
            Some(_) => Reply::ok(MANIFEST),
            None => Reply::challenge(seen, ""),
        }
    })
    .await;
    let mut config = config(&server.url());
    config.scope = Some("all:pull".into());
    config.credentials = Some(credentials("user", "one"));
    config.repository_credentials = vec![RepositoryCredentials {
        repositories: vec!["team/*".parse().unwrap()],
        credentials: credentials("user", "two"),
    }];
    let upstream = connect(config);
    for (repo, password) in [
        ("library/app", "one"),
        ("team/app", "two"),
        ("library/b", "one"),
    ] {
        get(&upstream, repo).await.unwrap();
        let last = server.seen(repo).pop().unwrap();
        let expected = format!("Bearer {}", basic(password).replace(' ', "-"));
        assert_eq!(last.header("authorization"), Some(&*expected), "{repo}");
    }
}

#[tokio::test]
async fn too_large_a_file_is_not_read() {
    let files = Files::new();
    files.write("password", &"x".repeat(70_000));
    let registry = Changing::basic().await;
    let error = get_tag(&registry.client(files.credentials()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("65536"), "{error}");
}
